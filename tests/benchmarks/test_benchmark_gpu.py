"""benchmarks/gpu.py: every stage on a tiny model and a CPU, so that the first run on a GPU finds no slip of the pen."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.gpu_files import GpuFilesOnly
from helpers.paths import REPO

sys.path.insert(0, str(REPO / "benchmarks"))

import decode_shapes
import gpu
import train_step
from gpu_parts import acting, learning, machine
from gpu_parts.figures import NOT_MEASURED, PENDING, Figures
from gpu_parts.kernels import busy_and_span
from gpu_parts.scripted import Chunks, ScriptedRunner

CPU = torch.device("cpu")
#: In two parts: `pytest -m gpu` reads files with this word, and none of the tests here is for it.
MARKED = "@pytest.mark." + "gpu\n"


@pytest.fixture
def figures(tmp_path: Path) -> Figures:
    return Figures(tmp_path / "figures.json")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little work: chunks of two steps, few widths, batches of two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(acting, "CHUNK", 2)
    monkeypatch.setattr(acting, "WIDTHS", (1, 8))
    monkeypatch.setattr(acting, "BATCHES", (1, 2))
    cameras, side, dims, _, options = train_step.SHAPES["demo"]
    monkeypatch.setitem(train_step.SHAPES, "demo", (cameras, side, dims, 2, options))


def missing(figures: Figures) -> dict[str, Any]:
    return {name: value for name, value in figures.values.items() if NOT_MEASURED in str(value)}


# ---------------------------------------------------------------- stages


@pytest.mark.usefixtures("small")
def test_passes_chunks_and_kernels_are_measured(figures: Figures) -> None:
    acting.passes(figures, "tiny", 1)
    for part in ("vision_ms", "prefill_ms", "pass_ms_width1", "pass_ms_width8"):
        assert all(figures.values[f"batch{batch}_{part}"] > 0 for batch in (1, 2)), part
    acting.chunk(figures, "tiny", 2)
    for batch in (1, 2):
        ours, plain = (figures.values[f"batch{batch}_{kind}"] for kind in ("speculative", "hf_generate"))
        assert ours["passes"] < plain["tokens"], "no draft was accepted"
        assert figures.values[f"batch{batch}_host_ms_per_pass"] > 0 and ours["ms_p50"] > 0
        assert plain["tokens"] == round(ours["tokens"])
    acting.kernels(figures, "tiny", 1)
    for part in ("vision", "prefill", "pass_width1", "pass_width8", "pass_width32"):
        before, fixed, plain = (
            figures.values[name] for name in (f"transformers_{part}", part, f"{part}_uncaptured")
        )
        assert plain["kernels"] < 0.8 * before["kernels"], part
        # On a CPU nothing is captured: over fixed memory the same operations run, and some copies.
        assert 50 < fixed["kernels"] < before["kernels"] and fixed["kernels"] < plain["kernels"] + 60, part
        assert fixed["busy_ms"] > 0 and fixed["gaps_ms"] >= 0
    for how in ("uncaptured", "transformers"):
        for part in ("vision_ms", "prefill_ms", "pass_ms_width8"):
            assert figures.values[f"batch2_{how}_{part}"] > 0
    assert not missing(figures) and not figures.failed
    assert json.loads(figures.path.read_text())["figures"].keys() == figures.values.keys()


@pytest.mark.usefixtures("small")
def test_training_steps_are_measured(figures: Figures) -> None:
    pytest.importorskip("peft")
    learning.full(figures, "tiny", 1)
    learning.compiled(figures, "tiny", 1)
    learning.one_step(figures, "tiny", 1, "eager", {"attn_implementation": "eager"})
    learning.lora(figures, "tiny", 1)
    assert not missing(figures) and not figures.failed
    steps = [value for value in figures.values.values() if isinstance(value, dict)]
    assert len(steps) == 9
    for step in steps:
        assert step["samples_per_s"] == pytest.approx(1e3 * step["batch_size"] / step["ms"], rel=0.05)
        assert step["peak_mb"] > 0
    assert figures.values["four_times_the_batch"]["batch_size"] == 8
    share = figures.values["lora"]["tflop"] / figures.values["ours"]["tflop"]
    assert 1 / 3 < share < 2 / 3, "two forward operations of six, and two or none backward"
    assert figures.values["compiled"]["note"] == "trial run: not compiled"


def test_the_backbone_for_four_bits_is_written_and_read(tmp_path: Path) -> None:
    learning.save_random_backbone("tiny", tmp_path, CPU)
    policy = learning.load_backbone(tmp_path, "demo", CPU, dict(learning.FULL))
    learning.adapt(policy)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert {p.dtype for name, p in policy.named_parameters() if "lora_" not in name} == {torch.bfloat16}


def test_versions_and_floor(figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine.versions(figures, "tiny")
    values = figures.values
    assert values["torch"] == torch.__version__.partition("+")[0]
    assert values["driver"] == "not measured: no GPU"
    layers = decode_shapes.build("tiny", CPU).model.model.language_model.layers
    size = sum(p.numel() for p in layers.parameters()) * 2
    assert values["pass_reads_gb"] == pytest.approx(size / 1e9, abs=1e-4)
    assert values["floor_ms_per_pass"] == pytest.approx(
        1e3 * values["pass_reads_gb"] / values["copy_gb_per_s"], abs=1e-3
    )


def test_the_gpu_tests_are_counted_and_failures_named(tmp_path: Path, figures: Figures) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        f"import pytest\n{MARKED}def test_good(): pass\n"
        f"{MARKED}def test_bad(): assert 1 + 1 == 3, 'wrong sum'\n"
        f"{MARKED}@pytest.mark.skip(reason='not here')\ndef test_left_out(): pass\n"
        "def test_unmarked(): raise RuntimeError\n"
    )
    machine.tests(figures, folder)
    counts = [figures.values[name] for name in ("passed", "failed", "errors", "skipped")]
    assert counts == [1, 1, 0, 1]
    assert figures.values["skipped_because"] == ["not here"]
    (folder / "test_some.py").write_text(f"import pytest\n{MARKED}@pytest.mark.skip\ndef test_none(): pass\n")
    alone = Figures(tmp_path / "alone.json")
    machine.tests(alone, folder)
    assert alone.values["passed"] == "not measured: every test was skipped" and not alone.failed
    assert list(figures.values["failures"]) == figures.failed == ["test_some.test_bad"]
    assert "wrong sum" in figures.values["failures"]["test_some.test_bad"]


def test_minus_m_gpu_reads_only_files_with_such_tests(tmp_path: Path) -> None:
    plain, marked = tmp_path / "test_plain.py", tmp_path / "test_marked.py"
    plain.write_text("import a_package_that_is_not_there\n")
    marked.write_text(f"import pytest\n{MARKED}def test_x(): pass\n")
    assert GpuFilesOnly().pytest_ignore_collect(plain) is True
    assert GpuFilesOnly().pytest_ignore_collect(marked) is None
    assert GpuFilesOnly().pytest_ignore_collect(tmp_path) is None


@torch.inference_mode()
def test_transformers_modules_are_asked_for_the_scores_that_the_lean_pass_gives() -> None:
    lean = decode_shapes.Passes(decode_shapes.build("tiny", CPU), 2, CPU, 8)
    before = decode_shapes.TransformersPasses(lean)
    for run in ("prefill", "score", "score"):
        arguments = [8] * (run == "score")
        ours, theirs = (getattr(of, run)(*arguments) for of in (lean, before))
        assert ours.shape == theirs.shape
        # In bfloat16, and with logits of transformers' head in bfloat16.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.05)
        assert np.abs(ours).max() > 0.05


# ---------------------------------------------------------------- scripted answers


def test_a_scripted_model_writes_its_script_through_the_real_decoder() -> None:
    vlm = decode_shapes.build("tiny", CPU)
    request = decode_shapes.make_request(vlm, 2, CPU)
    decoder = acting._decoder(vlm, CPU, drafts=True, draft_width=16)
    decoder.runner = ScriptedRunner(decoder.runner)
    chunks = Chunks(2, (decode_shapes.CHUNK, decode_shapes.DIMS), decode_shapes.N_BINS, 0.2)
    for _ in range(3):
        decoder.runner.script = chunks.next()
        decoder.decode(request)
        assert decoder.last is not None
        assert [trace.symbols for trace in decoder.last.traces] == decoder.runner.script
    assert decoder.last.passes < len(decoder.runner.script[0]) / 2


def test_surprises_are_chosen_for_the_recorded_passes() -> None:
    vlm = decode_shapes.build("tiny", CPU)
    wanted, width = acting.recorded_passes(acting.ACCEPTANCE)
    table = json.loads(acting.ACCEPTANCE.read_text())["n_action_steps_1"]["speculative"]
    assert wanted == pytest.approx(56 * table["passes_per_varying_number"])
    surprise = acting.surprise_for(vlm, CPU, wanted, width)
    decoder = acting._decoder(vlm, CPU, drafts=True, draft_width=width)
    decoder.runner = ScriptedRunner(None)
    chunks = Chunks(1, (decode_shapes.CHUNK, decode_shapes.DIMS), decode_shapes.N_BINS, surprise, seed=1)
    request = decode_shapes.make_request(vlm, 1, CPU)
    taken = []
    for _ in range(25):
        decoder.runner.script = chunks.next()
        decoder.decode(request)
        assert decoder.last is not None
        taken.append(decoder.last.passes)
    assert np.mean(taken[1:]) == pytest.approx(wanted, rel=0.25)


def test_busy_time_counts_overlapping_kernels_once() -> None:
    assert busy_and_span([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.0, 1.5)]) == (4.0, 6.0)


# ---------------------------------------------------------------- figures and processes


def test_a_figure_that_fails_says_why_and_the_next_one_is_measured(figures: Figures) -> None:
    figures.plan(["first", "second", "third"])
    figures.measure("first", lambda: [][0])
    figures.measure("second", lambda: 2)
    stored = json.loads(figures.path.read_text())
    assert stored["figures"] == {
        "first": "not measured: IndexError: list index out of range",
        "second": 2,
        "third": PENDING,
    }
    assert stored["failed"] == ["first"]


def test_a_stage_that_crashes_or_hangs_is_reported_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = (
        "import json, sys; part = sys.argv[1]\n"
        "def say(**figures): open(part, 'w').write(json.dumps({'figures': figures, 'failed': []}))\n"
    )
    programs = {
        "versions": begun + f"say(a=1, b={PENDING!r}); print('the last words'); sys.exit(3)",
        "tests": "import time; time.sleep(600)",
        "passes": begun + "say(c=2.5)",
    }
    limits = {"versions": 60.0, "tests": 0.5, "passes": 60.0}
    attend, seen = gpu.attend, []

    def stand_in(command: list[str], limit: float, log: Path) -> tuple[str, float]:
        name, part = (command[command.index(option) + 1] for option in ("--stage", "--part"))
        seen.append(json.loads(path.read_text())["stages"])
        return attend([sys.executable, "-c", programs[name], part], limits[name], log)

    monkeypatch.setattr(gpu, "attend", stand_in)
    path = tmp_path / "deep" / "gpu.json"
    gpu.run_all(list(programs), "tiny", 8, path, {"device": "cpu"}, 1)
    stages = json.loads(path.read_text())["stages"]
    assert stages["versions"]["status"] == "failed: exit code 3"
    assert stages["versions"]["figures"] == {"a": 1, "b": "not measured: the stage failed: exit code 3"}
    assert stages["versions"]["output_tail"] == ["the last words"]
    assert stages["tests"]["status"].startswith("timed out after 0 s")
    assert stages["passes"]["status"] == "ok" and stages["passes"]["figures"] == {"c": 2.5}
    assert stages["train"]["status"] == "not measured: left out by --stages"
    # Written again after each stage.
    assert seen[0]["versions"]["status"] == "not measured: its turn has not come"
    assert seen[1]["versions"]["status"] == "failed: exit code 3"
    assert "| the last words" in capsys.readouterr().out


def test_what_a_crashed_stage_left_running_is_ended(tmp_path: Path) -> None:
    program = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); sys.exit(1)"
    log = tmp_path / "log"
    status, _ = gpu.attend([sys.executable, "-c", program], 60, log)
    assert status == "failed: exit code 1"
    left = Path(f"/proc/{int(log.read_text())}")
    deadline = time.monotonic() + 60  # it was killed; how soon it is gone is up to the machine
    while left.exists() and (left / "stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.05)


def test_stages_run_by_name_in_processes_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("the words are those for a machine without a GPU")
    out = tmp_path / "gpu.json"
    arguments = ["--vlm", "tiny", "--stages", "flash,qlora", "--out", str(out), "--commit", "abc"]
    assert gpu.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert result == json.loads(out.read_text())
    assert (result["device"], result["commit"], result["vlm"]) == ("cpu", "abc", "tiny")
    assert result["stages"]["flash"]["figures"].keys() == {"flash_attention_2", "flash_attention_3"}
    said = [value for stage in ("flash", "qlora") for value in result["stages"][stage]["figures"].values()]
    assert all(value.startswith("not measured: ") for value in said)
    assert "2 of 2 stages ended well" in lines


def test_without_a_gpu_nothing_is_measured_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"].startswith("not measured: no GPU")
    assert not out.exists()


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match="no stage 'speed': choose from versions, tests, passes"
    ):
        gpu.stage_names("passes,speed")


# ---------------------------------------------------------------- wheels for a machine without network


def wheels(tmp_path: Path, *arguments: str, megabytes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the script with a pip that writes one file of the given size per package."""
    pip = tmp_path / "python"
    pip.write_text(
        '#!/usr/bin/env bash\ncase "$*" in *--version) exit 0 ;; esac\n'
        f'printf "%s\\n" "$*" > {tmp_path}/asked\n'
        "while [ $# -gt 0 ]; do case $1 in --dest) to=$2; shift ;; *==*) "
        f'head -c {megabytes}000000 /dev/zero > "$to/${{1%%==*}}.whl" ;; esac; shift; done\n'
    )
    pip.chmod(0o755)
    script = str(REPO / "scripts" / "offline_wheels.sh")
    return subprocess.run(
        ["bash", script, *arguments],
        env={**os.environ, "PYTHON": str(pip)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheels_come_in_the_versions_of_the_constraints(tmp_path: Path) -> None:
    out = tmp_path / "wheels"
    options = ["--python-version", "3.13", "--platform", "manylinux_2_28_x86_64", "--without", "peft"]
    done = wheels(tmp_path, str(out), *options, "--with", "toml")
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().split()
    pins = (REPO / "constraints.txt").read_text().split()
    chosen = [word for word in asked if "==" in word]
    assert set(chosen) <= set(pins) and any(word.startswith("lerobot==") for word in chosen)
    assert not any(word.startswith("peft==") for word in chosen)
    assert asked[asked.index("--python-version") + 1] == "3.13"
    assert asked[asked.index("--platform") + 1] == "manylinux_2_28_x86_64" and "--no-deps" in asked
    assert len(list(out.glob("*.whl"))) == len(set(chosen))
    assert f"{len(set(chosen))} MB, in {out}" in done.stdout
    again = wheels(tmp_path, str(out))
    assert again.returncode == 1 and "holds wheels already" in again.stderr


def test_wheels_over_the_limit_are_not_written(tmp_path: Path) -> None:
    done = wheels(tmp_path, str(tmp_path / "out"), megabytes=3)
    assert done.returncode == 1
    assert "more than --limit-mb=60: nothing was written" in done.stderr
    assert not (tmp_path / "out").exists()
    unknown = wheels(tmp_path, str(tmp_path / "out"), "--with", "no-such-package")
    assert unknown.returncode == 1 and "no-such-package is not in constraints.txt" in unknown.stderr
