"""`vla0 ablate`: what a file asks for, and that it runs, resumes and reports through LeRobot's real commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest
import yaml
from helpers.commands import preloaded
from helpers.evaluations import write_evaluation
from helpers.paths import REPO
from helpers.tiny import SMALL, make_dataset
from helpers.waiting import LONG, has_ended, wait_until

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools import workers
from lerobot_policy_vla0.tools.ablation import sweep as sweep_module
from lerobot_policy_vla0.tools.ablation import training
from lerobot_policy_vla0.tools.ablation.plan import Training, read_plan
from lerobot_policy_vla0.tools.ablation.report import read_factor
from lerobot_policy_vla0.tools.ablation.training import finished_policy, train
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.evaluation import shards

CONFIGS = REPO / "configs" / "ablations"

PLAN: dict[str, Any] = {
    "seeds": [4, 7],
    "first_eval_seed": 500,
    "train": {"steps": 10, "policy.n_bins": 100},
    "eval": {"env.type": "toy", "policy.device": "cpu"},
    "factors": {
        "bins": {"100": None, "10": {"train": {"policy.n_bins": 10}}},
        "steps": {
            "all": {},
            "one": {"eval": {"policy.n_action_steps": 1}},
            "coarse": {"train": {"policy.n_bins": 10}},
        },
    },
}


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# ---------------------------------------------------------------- what a file asks for


def test_variants_share_what_they_have_in_common(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path / "a.yaml", PLAN))
    assert [f.name for f in plan.factors] == ["bins", "steps"]
    bins, steps = plan.factors
    assert [v.name for v in bins.variants] == ["100", "10"]
    assert len(plan.trainings(4)) == 2
    assert len(plan.evaluations(4)) == 3
    assert bins.variants[0] == type(bins.variants[0])("100", steps.variants[0].evaluations)
    assert bins.variants[1].evaluations == steps.variants[2].evaluations
    one = steps.variants[1].evaluations
    assert [e.training for e in one] == [e.training for e in steps.variants[0].evaluations]
    assert one[0].arguments == {
        "env.type": "toy",
        "policy.device": "cpu",
        "policy.n_action_steps": "1",
        "seed": "500",
    }
    assert [e.arguments["seed"] for e in one] == ["500", "10500"]
    assert [(t.seed, t.arguments) for t in plan.trainings(7)] == [
        (7, {"steps": "10", "policy.n_bins": "100"}),
        (7, {"steps": "10", "policy.n_bins": "10"}),
    ]


def test_a_seed_alone_has_the_trainings_and_starts_that_it_has_among_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", PLAN)
    everything, one = read_plan(path), read_plan(path, only_seeds=[7])
    assert one.seeds == (7,)
    assert one.trainings(7) == everything.trainings(7)
    assert one.evaluations(7) == everything.evaluations(7)
    assert {evaluation.arguments["seed"] for evaluation in one.evaluations(7)} == {"10500"}
    with pytest.raises(EvaluationError, match=r"has no seed \[5\]; it has \[4, 7\]"):
        read_plan(path, only_seeds=[5])


def test_a_training_is_needed_until_all_its_evaluations_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = read_plan(write(tmp_path / "a.yaml", PLAN), only_seeds=[4])
    begun: list[Training] = []

    def note(trainings: Any, *_: Any) -> list[str]:
        begun.extend(trainings)
        return []

    monkeypatch.setattr(sweep_module, "_train_all", note)
    fine, coarse = plan.trainings(4)
    of_fine = [one for one in plan.evaluations(4) if one.training == fine]
    of_coarse = [one for one in plan.evaluations(4) if one.training == coarse]
    assert (len(of_fine), len(of_coarse)) == (2, 1)
    for finished, expected in (([], [fine, coarse]), ([*of_coarse, of_fine[1]], [fine]), ([of_fine[0]], [])):
        for evaluation in finished:
            folder = sweep_module.evaluation_folder(tmp_path / "out", evaluation)
            folder.mkdir(parents=True)
            write_evaluation(folder, {("toy", 0): [True]})
        begun.clear()
        sweep_module.sweep(plan, tmp_path / "out", say=lambda _: None)
        assert begun == expected


def test_an_edited_file_names_other_folders(tmp_path: Path) -> None:
    before = read_plan(write(tmp_path / "a.yaml", PLAN)).evaluations(4)
    after = read_plan(write(tmp_path / "a.yaml", {**PLAN, "train": {"steps": 11, "policy.n_bins": 100}}))
    names = {e.name for e in before} | {e.training.name for e in before}
    assert names.isdisjoint(
        {e.name for e in after.evaluations(4)} | {e.training.name for e in after.evaluations(4)}
    )


def test_one_question_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", PLAN)
    assert [f.name for f in read_plan(path, ["steps"]).factors] == ["steps"]
    with pytest.raises(EvaluationError, match=r"no factor \['masks'\]; it has \['bins', 'steps'\]"):
        read_plan(path, ["masks"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweeps": {}}, r"has \['sweeps'\]"),
        ({"factors": {}}, "no 'factors'"),
        ({"seeds": [1, 1]}, "not a list of different whole numbers"),
        ({"train": {"output_dir": "x"}}, "train: output_dir is set by the ablation itself"),
        ({"eval": {"policy.path": "x"}}, "eval: policy.path is set by the ablation itself"),
        ({"train": ["steps"]}, "is not a mapping"),
        ({"factors": {"a": {"b": {"policy.n_bins": 3}}}}, "a: b may change 'train' and 'eval'"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_plan(write(tmp_path / "a.yaml", {**PLAN, **change}))


def test_a_file_that_is_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read as YAML"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(EvaluationError, match="cannot be read as YAML"):
        read_plan(tmp_path / "bad.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_files_vary_options_that_exist(path: Path) -> None:
    import dataclasses

    from lerobot_policy_vla0 import VLA0Config

    plan = read_plan(path)
    known = {f"policy.{field.name}" for field in dataclasses.fields(VLA0Config)}
    asked = " ".join(factor.name for factor in plan.factors)
    assert all(question in asked for question in ("masking", "ensembling", "bins")), asked
    for evaluation in plan.evaluations(plan.seeds[0]):
        names = {*evaluation.arguments, *evaluation.training.arguments}
        assert {name for name in names if name.startswith("policy.")} <= known


# ---------------------------------------------------------------- one training

#: Writes checkpoints as lerobot-train does, one per step, and stops after the step that the file "stop" names.
STUB = (
    f"""
import json, os, runpy, sys, time
from pathlib import Path
# By its path: the package around it would import LeRobot, which a stub has no time for.
runpy.run_path({workers.__file__!r})["end_with_parent"](int(sys.argv[1]))
"""
    + """
given = dict(a[2:].split("=", 1) for a in sys.argv[2:])
if "resume" in given:
    config = Path(given["config_path"])
    out = config.parents[3]
    steps = json.loads(config.read_text())["steps"]
    step = int(config.parents[1].resolve().name)
else:
    out, steps, step = Path(given["output_dir"]), int(given["steps"]), 0
    out.mkdir(parents=True)
print("seed", given.get("seed"), "device", given.get("policy.device"), "variable", os.environ.get("STUB"), flush=True)
while step < steps:
    step += 1
    stop = out.parent / "stop"
    if stop.exists() and step > int(stop.read_text()):
        stop.unlink()
        sys.exit("out of memory")
    hang = out.parent / "hang"
    if hang.exists():
        time.sleep(3600)
    folder = out / "checkpoints" / f"{step:06d}"
    (folder / "training_state").mkdir(parents=True)
    (folder / "pretrained_model").mkdir()
    (folder / "training_state" / "training_step.json").write_text(json.dumps({"step": step}))
    (folder / "pretrained_model" / "train_config.json").write_text(json.dumps({"steps": steps}))
    last = out / "checkpoints" / "last"
    last.unlink(missing_ok=True)
    last.symlink_to(folder.name)
"""
)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Replace lerobot-train by a stub; returns a training of three steps."""
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(training, "_COMMAND", (sys.executable, str(path)))
    return Training("a", 5, {"steps": "3"})


def test_a_training_runs_once(stub: Training, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert finished_policy(folder) is None
    done = train(stub, folder, {"STUB": "yes"}, "cpu", Event())
    assert done == folder / "run-1" / "checkpoints" / "000003" / "pretrained_model"
    assert (folder / "run-1.log").read_text() == "seed 5 device cpu variable yes\n"
    assert train(stub, folder, {}, None, Event()) == done == finished_policy(folder)
    assert (folder / "run-1.log").read_text() == "seed 5 device cpu variable yes\n"
    with pytest.raises(EvaluationError, match=r"other arguments \(steps differ\)"):
        train(Training("a", 5, {"steps": "4"}), folder, {}, None, Event())


def test_a_training_goes_on_from_its_last_checkpoint(stub: Training, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "stop").write_text("2")
    with pytest.raises(EvaluationError, match=r"status 1; log: .*run-1.log.* out of memory"):
        train(stub, folder, {}, None, Event())
    assert finished_policy(folder) is None
    done = train(stub, folder, {}, None, Event())
    assert done.relative_to(folder).as_posix() == "run-1/checkpoints/000003/pretrained_model"
    assert sorted(p.name for p in folder.iterdir()) == ["arguments.json", "run-1", "run-1.log"]


def test_without_a_checkpoint_it_begins_anew_beside_what_there_was(stub: Training, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "stop").write_text("0")
    with pytest.raises(EvaluationError, match="out of memory"):
        train(stub, folder, {}, None, Event())
    assert train(stub, folder, {}, None, Event()).is_relative_to(folder / "run-2")
    assert (folder / "run-1").is_dir()


def test_a_training_can_be_stopped(stub: Training, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "hang").write_text("")
    stop = Event()
    Timer(1.0, stop.set).start()
    began = time.monotonic()
    with pytest.raises(EvaluationError, match="was stopped"):
        train(stub, folder, {}, None, stop)
    assert time.monotonic() - began < LONG  # it hangs for longer


def test_a_training_ends_when_its_parent_is_killed(stub: Training, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "hang").write_text("")
    program = (
        "import os, sys; from pathlib import Path; from threading import Event\n"
        "from lerobot_policy_vla0.tools.ablation import training\n"
        f"training._COMMAND = {training._COMMAND!r}\n"
        "print(os.getpid(), flush=True)\n"
        f"training.train(training.Training('a', 5, {{'steps': '3'}}), Path({str(folder)!r}), {{}}, None, Event())\n"
    )
    with subprocess.Popen(preloaded("-c", program), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        parent = int(process.stdout.readline())
        log = folder / "run-1.log"
        wait_until(lambda: (log.exists() and log.read_text()) or process.poll() is not None)
        assert process.poll() is None  # the training is at work
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        assert len(children) == 1
        os.kill(parent, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: has_ended(int(children[0])), lambda: "the training outlived its parent")


# ---------------------------------------------------------------- all of it


@pytest.fixture
def small_plan(tmp_path: Path) -> Path:
    """One two-step training on a made-up dataset, played in the toy environment in two ways."""
    root = make_dataset(tmp_path / "data")
    tiny = {f"policy.tiny.{name}": value for name, value in SMALL.items()}
    return write(
        tmp_path / "small.yaml",
        {
            "seeds": [3],
            "first_eval_seed": 70,
            "train": {
                "policy.type": "vla0",
                "policy.vlm_model_name": "tiny",
                **tiny,
                "policy.device": "cpu",
                "policy.dtype": "float32",
                "policy.chunk_size": 3,
                "policy.n_action_steps": 3,
                "policy.n_bins": 100,
                "policy.image_size": [56, 56],
                "policy.system_prompt": "{N} integers 0-{B}",
                "policy.push_to_hub": False,
                "dataset.repo_id": "local/tiny",
                "dataset.root": str(root),
                "batch_size": 2,
                "num_workers": 0,
                "steps": 2,
                "save_freq": 2,
                "env_eval_freq": 0,
                "wandb.enable": False,
            },
            "eval": {
                "env.type": "scored",
                "env.discover_packages_path": "helpers.scored_env",
                "eval.n_episodes": 3,
                "policy.device": "cpu",
            },
            "factors": {
                "steps": {"all": {}, "one": {"eval": {"policy.n_action_steps": 1}}},
                "seeds": {"all": {}},
            },
        },
    )


def test_it_trains_evaluates_and_compares(
    small_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(REPO / "src"), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    # What comes after the interpreter runs in forks that have imported LeRobot.
    monkeypatch.setattr(training, "_COMMAND", tuple(preloaded(*training._COMMAND[1:])))
    monkeypatch.setattr(shards, "WORKER", tuple(preloaded(*shards.WORKER[1:])))
    out = tmp_path / "out"
    command = ["ablate", str(small_plan), "--out", str(out)]
    assert main([*command, "--report-only"]) == 2
    assert "nothing below" in capsys.readouterr().err
    assert main([*command, "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["train", "eval", "eval"]
    assert not out.exists()

    assert main(command) == 0
    first = capsys.readouterr().out
    assert first.count("[1/1] train") == 1
    assert first.count("solved, ") == 2  # two evaluations for three rows
    plan = read_plan(small_plan)
    config = json.loads((out / "train" / plan.trainings(3)[0].name / "arguments.json").read_text())
    assert config["seed"] == "3" and config["steps"] == "2"
    (every, one), (again,) = (read_factor(factor, out) for factor in plan.factors)
    assert [every.run is not None and e.seed for e in every.run.episodes] == [70, 71, 72]
    assert [e.success for e in again.run.episodes] == [e.success for e in every.run.episodes]
    assert len(one.run.queries) > len(every.run.queries) >= 3  # a query per step instead of one per three
    assert one.comparison is not None and one.comparison.n == 3
    solved = sum(e.success for e in every.run.episodes)
    assert re.search(rf"\| +{solved} of 3 = .* \| {solved}/3 ", first)

    report = (out / "report.md").read_bytes()
    page = (out / "report" / "steps" / "index.html").read_bytes()
    assert main(command) == 0  # nothing left to do, the same report
    assert "is not needed: all its evaluations are finished" in capsys.readouterr().out
    assert (out / "report.md").read_bytes() == report
    assert (out / "report" / "steps" / "index.html").read_bytes() == page

    (
        out / "eval" / plan.evaluations(3)[1].name / "shards" / "scored_00" / "attempt-1" / "eval_info.json"
    ).unlink()
    assert main([*command, "--report-only"]) == 1
    text = capsys.readouterr().out
    assert "not measured" in text
    assert f"**Not finished, and not counted:** {plan.evaluations(3)[1].name}" in text
