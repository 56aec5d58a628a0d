"""benchmarks/real_size.py with the tiny model: every stage works, and one that fails is reported beside the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import REPO

from lerobot_policy_vla0.decoding.report import RowTrace

pytest.importorskip("peft", reason="the benchmark trains an adapter, which needs the [lora] extra")

sys.path.insert(0, str(REPO / "benchmarks"))
import real_size

FIGURES = real_size.FIGURES


def become_here(command: str, *arguments: str) -> None:
    """Run in this process what a stage starts."""
    from lerobot.scripts.lerobot_eval import main as lerobot_eval
    from lerobot.scripts.lerobot_train import main as lerobot_train

    from lerobot_policy_vla0.tools.commands import main as vla0

    if command == "vla0":
        vla0(list(arguments))
        return
    sys.argv = [command, *arguments]
    {"lerobot-train": lerobot_train, "lerobot-eval": lerobot_eval}[command]()


def test_every_stage_goes_on_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_size, "become", become_here)
    monkeypatch.setattr(sys, "argv", sys.argv)
    place = real_size.Place(tmp_path, "tiny", tmp_path / "no processor")
    figures = {}
    for name, stage in real_size.STAGES.items():
        assert all(getattr(place, folder).is_dir() for folder in stage.needs), name
        stage.run(place)
        lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith(FIGURES)]
        figures[name] = {
            key: value for line in lines for key, value in json.loads(line.removeprefix(FIGURES)).items()
        }
    parameters = figures["build"]["parameters"]
    assert figures["load"]["weights_gb"] == pytest.approx(2 * parameters / 1e9, abs=1e-4)
    assert figures["load_float32"]["weights_gb"] == pytest.approx(4 * parameters / 1e9, abs=1e-4)
    assert figures["load_imported"]["weights_gb"] == figures["load"]["weights_gb"]
    assert figures["chunk"]["second_chunk_s"] > 0
    asked = figures["reference"]
    assert asked["equal"] or asked["margin_at_first_difference"] <= real_size.NEAR_TIE
    assert asked["reference_passes"] > asked["fast_passes"] > asked["asked_again_passes"]
    assert len(asked["asked_again_widths"]) == asked["asked_again_passes"]
    assert max(asked["asked_again_widths"]) > 8, "a draft that is right is fed in wide passes"
    said = json.loads((place.evaluation / "eval_info.json").read_text())
    assert said["overall"]["n_episodes"] == 1 and said["overall"]["pc_success"] == 0.0
    # As the Hub has them: names of earlier versions, the vocabulary once, no file too many.
    index = json.loads((place.backbone / "model.safetensors.index.json").read_text())["weight_map"]
    assert {"model.embed_tokens.weight", "visual.patch_embed.proj.weight"} <= index.keys()
    assert "lm_head.weight" not in index
    assert set(index.values()) == {path.name for path in place.backbone.glob("*.safetensors")}


def test_a_difference_is_measured_where_it_begins() -> None:
    trace = RowTrace([3, 11, 4, 10], [None, np.eye(12)[11], 0.01 * np.eye(12)[4], None])
    assert real_size.margin_at_difference(trace, [3, 11, 4, 10]) is None
    assert real_size.margin_at_difference(trace, [3, 11, 5, 10]) == pytest.approx(0.01)
    assert real_size.margin_at_difference(trace, [3, 2, 5, 10]) == pytest.approx(1.0)


def test_a_stage_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    earlier = {"build": {"s": 1.5, "commit": "abc1234"}}
    (tmp_path / "stages.json").write_text(json.dumps(earlier))
    command = [sys.executable, str(REPO / "benchmarks" / "real_size.py"), "--keep", str(tmp_path)]
    command += ["--stages", "load", "train", "merge"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    assert list(stages) == ["build", "train", "merge", "load"]  # an earlier call's are kept
    assert stages["build"] == earlier["build"]
    assert stages["train"]["skipped"] == "needs backbone (stage build), dataset (stage record)"
    assert stages["merge"]["skipped"] == "needs adapter (stage train)"
    assert stages["load"]["failed"] == "exit status 1"
    assert "config.json" in stages["load"]["output"][-1]
    assert "FAILED, exit status 1" in done.stdout
    assert stages["load"]["peak_gb"] > stages["load"]["peak_anonymous_gb"] > 0.1


def test_without_the_tokenizer_the_real_model_is_not_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "benchmarks" / "real_size.py"), "--vlm", "qwen2.5-vl-3b-random"]
    done = subprocess.run(
        [*command, "--processor", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert f"not measured: there is no tokenizer.json in {tmp_path}. Download" in done.stderr
