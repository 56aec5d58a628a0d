"""saved_normalizers.py: processors that do not fit the policy are found when a checkpoint is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import REPO
from helpers.tiny import make_config, make_stats
from lerobot.configs.types import NormalizationMode
from safetensors.torch import load_file, save_file

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.checkpoints.saved_normalizers import read_normalizers
from lerobot_policy_vla0.errors import CheckpointError, StatsError

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
NAMES = {PRE: "normalizer_processor", POST: "unnormalizer_processor"}


def save(folder: Path, **options: Any) -> Path:
    config = make_config(**options)
    VLA0Policy(config).save_pretrained(folder)
    for pipeline in make_vla0_pre_post_processors(config, make_stats()):
        pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def with_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("state"), state_in_prompt=True)


@pytest.fixture(scope="module")
def relative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("relative"), use_relative_actions=True, relative_exclude_joints=[])


def step_of(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of a saved processor, and its (un)normaliser in it."""
    saved = json.loads((folder / name).read_text())
    (step,) = [s for s in saved["steps"] if s.get("class", "").endswith(f".{NAMES[name]}")]
    return saved, step


def edit_stats(folder: Path, name: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = folder / step_of(folder, name)[1]["state_file"]
    save_file(edit(load_file(file)), file)


def edit_options(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    saved, step = step_of(folder, name)
    edit(step["config"])
    (folder / name).write_text(json.dumps(saved))


def rename(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda stats: {key.replace(old, new): value for key, value in stats.items()}


def test_what_was_saved_is_read_back(with_state: Path) -> None:
    before, after = read_normalizers(with_state)
    assert before is not None
    assert after is not None
    assert (before.file, after.file) == (with_state / PRE, with_state / POST)
    assert before.features == ["observation.images.top", "observation.state", "action"]
    assert before.mode("STATE") is before.mode("ACTION") is NormalizationMode.MIN_MAX
    assert after.mode("REWARD") is NormalizationMode.IDENTITY
    for saved in (before, after):
        assert saved.stats["action"]["min"].tolist() == [-2.0, -2.0]
        assert saved.stats["observation.state"]["max"].tolist() == [1.0, 1.0]


def test_a_checkpoint_of_an_earlier_version_is_read_by_its_registry_names() -> None:
    before, after = read_normalizers(REPO / "tests" / "data" / "checkpoint_7b7b3f1")
    assert before is not None
    assert after is not None
    assert torch.equal(before.stats["action"]["min"], after.stats["action"]["min"])


def test_a_folder_without_processors_is_loaded_as_before(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "bare")
    for file in folder.glob("policy_p*"):
        file.unlink()
    assert read_normalizers(folder) == (None, None)
    VLA0Policy.from_pretrained(folder)


DAMAGES: list[tuple[str, Callable[[Path], object], type[Exception], str]] = [
    # LeRobot's issue 1763: the arm gets numbers from -1 to 1 as degrees.
    (
        "plain",
        lambda folder: edit_stats(folder, POST, rename("action", "so100.action")),
        StatsError,
        "'min' and 'max' of 'action', got none of 'action', only of ['observation.state', 'so100.action']. If "
        "'so100.action' is meant, rename it to 'action' there. They are in the state_file of ",
    ),
    (
        "plain",
        lambda folder: edit_stats(folder, POST, lambda s: {k: v.repeat(2)[:3] for k, v in s.items()}),
        StatsError,
        "the action statistics 'min'/'max' have 3/3 values, but the action has 2 dimensions: they are of another robot",
    ),
    (
        "plain",
        lambda folder: edit_stats(folder, POST, lambda s: {k: torch.zeros(2) for k in s}),
        StatsError,
        "the action statistics say that nothing ever moves: min and max are both [0.0, 0.0]",
    ),
    (
        "plain",
        lambda folder: edit_options(folder, POST, lambda config: config["norm_map"].pop("ACTION")),
        CheckpointError,
        "policy_postprocessor.json converts 'action' with IDENTITY (its norm_map has ['STATE', 'VISUAL']), but "
        "normalization_mapping['ACTION'] is MIN_MAX. LeRobot uses the file",
    ),
    (
        "with_state",
        lambda folder: edit_stats(folder, PRE, rename("observation.state", "states")),
        StatsError,
        "of 'observation.state', got none of 'observation.state', only of ['action', 'states']. If 'states' is meant, "
        "rename it to 'observation.state' there.",
    ),
    (
        "with_state",
        lambda folder: edit_options(folder, PRE, lambda config: config["features"].pop("observation.state")),
        CheckpointError,
        "converts the features ['observation.images.top', 'action'], and state_in_prompt=True needs "
        "'observation.state' among them",
    ),
    (
        "with_state",
        lambda folder: edit_options(folder, PRE, lambda config: config["norm_map"].update(STATE="MEAN_STD")),
        CheckpointError,
        "converts 'observation.state' with MEAN_STD",
    ),
    (
        "relative",
        lambda folder: edit_stats(folder, PRE, lambda s: {**s, "action.max": s["action.max"] + 1}),
        StatsError,
        "have different statistics ['max'] of 'action', and use_relative_actions=True needs the same in both",
    ),
    (
        "plain",
        lambda folder: (folder / POST).write_text('{"steps": []}'),
        CheckpointError,
        "has 0 steps 'unnormalizer_processor', expected one",
    ),
    (
        "plain",
        lambda folder: (folder / step_of(folder, POST)[1]["state_file"]).unlink(),
        CheckpointError,
        "the step 'unnormalizer_processor' of ",
    ),
]


@pytest.mark.parametrize(
    ("checkpoint", "damage", "kind", "said"),
    DAMAGES,
    ids=[
        "key",
        "size",
        "zeros",
        "mode",
        "state key",
        "state feature",
        "state mode",
        "pair",
        "no step",
        "no file",
    ],
)
def test_a_checkpoint_that_would_move_a_robot_wrongly_is_not_loaded(
    checkpoint: str,
    damage: Callable[[Path], object],
    kind: type[Exception],
    said: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(request.getfixturevalue(checkpoint), tmp_path / "damaged")
    damage(folder)
    with pytest.raises(kind) as error:
        VLA0Policy.from_pretrained(folder)
    assert said in str(error.value)
    assert str(folder) in str(error.value) or kind is StatsError


def test_training_further_replaces_statistics_so_the_saved_ones_need_not_fit(
    plain: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(plain, tmp_path / "damaged")
    edit_stats(folder, POST, rename("action", "so100.action"))
    VLA0Policy.from_pretrained(folder, dataset_stats=make_stats())


def test_another_mode_at_evaluation_is_refused_because_lerobot_takes_the_files(plain: Path) -> None:
    config = VLA0Policy.from_pretrained(plain).config
    config.normalization_mapping = {**config.normalization_mapping, "ACTION": NormalizationMode.QUANTILES}
    with pytest.raises(CheckpointError, match=r"converts 'action' with MIN_MAX .* is QUANTILES\."):
        VLA0Policy.from_pretrained(plain, config=config)
    quantiles = {"q01": torch.zeros(2), "q99": torch.ones(2)}
    VLA0Policy.from_pretrained(plain, config=config, dataset_stats={"action": quantiles})


def test_a_loaded_policy_compares_the_first_state_with_the_saved_statistics(plain: Path) -> None:
    states = VLA0Policy.from_pretrained(plain)._training_states
    assert states is not None
    assert (states.low.tolist(), states.high.tolist()) == ([-1.0, -1.0], [1.0, 1.0])
