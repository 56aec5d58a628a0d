"""`vla0 ablate`: what a file asks for, and that it runs, resumes and reports through LeRobot's real commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import SMALL, make_dataset

from lerobot_policy_vla0.ablation.plan import read_plan
from lerobot_policy_vla0.ablation.training import finished_policy
from lerobot_policy_vla0.commands import main
from lerobot_policy_vla0.errors import EvaluationError

CONFIGS = Path(__file__).parent.parent / "configs" / "ablations"

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


def test_an_edited_file_names_other_folders(tmp_path: Path) -> None:
    before = read_plan(write(tmp_path / "a.yaml", PLAN)).evaluations(4)
    after = read_plan(write(tmp_path / "a.yaml", {**PLAN, "train": {"steps": 11, "policy.n_bins": 100}}))
    names = {e.name for e in before} | {e.training.name for e in before}
    assert names.isdisjoint({e.name for e in after.evaluations(4)} | {e.training.name for e in after.evaluations(4)})


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
    assert {"masking", "ensembling", "bins", "state"} <= {f.name for f in plan.factors}
    for evaluation in plan.evaluations(plan.seeds[0]):
        names = {*evaluation.arguments, *evaluation.training.arguments}
        assert {name for name in names if name.startswith("policy.")} <= known


# ---------------------------------------------------------------- running it


@pytest.fixture
def small_plan(tmp_path: Path) -> Path:
    """Two variants of a two-step training on a made-up dataset, played in the toy environment."""
    root = make_dataset(tmp_path / "data")
    return write(
        tmp_path / "small.yaml",
        {
            "seeds": [0, 1],
            "train": {
                "policy.type": "vla0",
                "policy.vlm_model_name": "tiny",
                **{f"policy.tiny.{name}": value for name, value in SMALL.items()},
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
                "save_freq": 1,
                "env_eval_freq": 0,
                "wandb.enable": False,
            },
            "eval": {"env.type": "toy", "eval.n_episodes": 2, "eval.batch_size": 1, "policy.device": "cpu"},
            "factors": {
                "steps": {"all": {}, "one": {"eval": {"policy.n_action_steps": 1}}},
            },
        },
    )
