"""`vla0 open-loop`: errors equal those of a plain loop over frames, and of a person with a pencil."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.browser import open_page
from helpers.engine_server import serving
from helpers.made_up_data import REPO_ID, Page, write_dataset
from helpers.tiny import CAMERA, make_config
from numpy.typing import NDArray

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.inspection.open_loop import (
    SHARES,
    EpisodeResult,
    OpenLoopResult,
    summary,
)
from lerobot_policy_vla0.tools.loading import DatasetSource, held_out_episodes

CHUNK = 3
STATS = {"action": {"min": torch.tensor([-2.0, 0.0]), "max": torch.tensor([6.0, 1.0])}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of 5, 2, 4 and 3 frames under two tasks; one value lies outside the statistics."""
    rng = np.random.default_rng(1)
    episodes = [np.stack([rng.uniform(-2, 6, n), rng.uniform(0, 1, n)], 1) for n in (5, 2, 4, 3)]
    episodes[2][0, 1] = 1.5
    return write_dataset(
        tmp_path_factory.mktemp("data") / "demos",
        [e.tolist() for e in episodes],
        cameras={CAMERA: (64, 64)},
        names=["lift", "grip"],
        tasks=["push", "pull"],
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights and its processors, as training leaves them."""
    folder = tmp_path_factory.mktemp("policy") / "pretrained_model"
    torch.manual_seed(0)
    config = make_config(chunk_size=CHUNK, n_action_steps=CHUNK, n_bins=100)
    VLA0Policy(config, STATS).save_pretrained(folder)
    for pipeline in make_vla0_pre_post_processors(config, STATS):
        pipeline.save_pretrained(folder)
    (folder / "train_config.json").write_text(
        json.dumps({"dataset": {"repo_id": REPO_ID, "episodes": None, "eval_split": 0.5}})
    )
    return folder


def arguments(checkpoint: Path, data: Path, *more: str) -> list[str]:
    return [
        "open-loop",
        f"--policy.path={checkpoint}",
        f"--dataset.repo_id={REPO_ID}",
        f"--dataset.root={data}",
        *more,
    ]


def run(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """Run the command; return its JSON."""
    capsys.readouterr()
    assert main(arguments(checkpoint, data, "--json", *more)) == 0
    numbers: dict[str, Any] = json.loads(capsys.readouterr().out)
    return numbers


# ---------------------------------------------------------------------- against a plain loop


def plain_loop(checkpoint: Path, data: Path, episodes: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ask the policy frame by frame; return absolute errors ``(n, 2)``, in units and in bins, past-the-end left out."""
    from lerobot.datasets import LeRobotDataset

    policy = VLA0Policy.from_pretrained(checkpoint)
    preprocess, postprocess = make_vla0_pre_post_processors(policy.config, STATS)
    dataset = LeRobotDataset(REPO_ID, root=data)
    low, high = STATS["action"]["min"], STATS["action"]["max"]
    units, bins = [], []
    for episode in episodes:
        row = dataset.meta.episodes[episode]
        for index in range(row["dataset_from_index"], row["dataset_to_index"]):
            item = dataset[index]
            chunk = policy.predict_action_chunk(preprocess({CAMERA: item[CAMERA], "task": item["task"]}))
            predicted = postprocess(chunk)[0]
            for step in range(CHUNK):
                if index + step >= row["dataset_to_index"]:
                    break
                demonstrated = dataset[index + step]["action"]
                units.append((predicted[step] - demonstrated).abs().numpy())
                written = ((demonstrated - low) / (high - low)).clamp(0, 1).mul(100).round()
                said = ((predicted[step] - low) / (high - low)).mul(100).round()
                bins.append((written - said).abs().numpy())
    return np.stack(units), np.stack(bins)


def test_errors_equal_those_of_a_plain_loop(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = run(checkpoint, data, capsys, "--episodes=0-2", "--batch-size=3")
    units, bins = plain_loop(checkpoint, data, [0, 1, 2])
    assert numbers["frames"] == 11
    # Two frames at the end of each episode reach past it by 1 and 2 steps.
    assert (numbers["steps_compared"], numbers["steps_past_the_end"]) == (33 - 9, 9)
    np.testing.assert_allclose(numbers["mae_by_dimension"], units.mean(0), rtol=1e-5)
    np.testing.assert_allclose(numbers["mae"], units.mean(), rtol=1e-5)
    np.testing.assert_allclose(numbers["mae_bins_by_dimension"], bins.mean(0), rtol=1e-5)
    assert numbers["bin_in_units"] == pytest.approx([0.08, 0.01])
    assert numbers["dimensions"] == ["lift", "grip"]
    # The value 1.5 of episode 2's first frame is seen by that frame only, in one of 24 steps.
    assert numbers["outside_training_range_by_dimension"] == pytest.approx([0.0, 1 / 24], rel=1e-5)
    assert [e["seen"] for e in numbers["episodes"]] == ["trained on", "trained on", "held out"]


def test_the_batch_size_and_the_decoder_change_nothing(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(checkpoint, data, capsys, "--episodes=0,3", "--batch-size=1")
    other = run(checkpoint, data, capsys, "--episodes=0,3", "--batch-size=8", "--policy.decoder=reference")
    assert first["mae_bins"] == other["mae_bins"]
    assert first["inside_band_by_share"] == other["inside_band_by_share"]


def test_an_engine_gives_the_same_errors_and_coarser_bands(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no bands, if it tells no log-probabilities."""
    ours = run(checkpoint, data, capsys, "--episodes=0,3")
    about_bands = ("band_width_by_dimension", "inside_band_by_dimension", "inside_band_by_share")
    with serving(checkpoint) as (engine, address):
        ask = ("--episodes=0,3", f"--policy.engine={address}")
        theirs = run(checkpoint, data, capsys, *ask)
        engine.fault = "no log-probabilities"
        silent = run(checkpoint, data, capsys, *ask)
        page = tmp_path / "report"
        assert main(arguments(checkpoint, data, *ask, "--out", str(page))) == 0
    out = capsys.readouterr().out
    probability = "probability_by_dimension"
    assert theirs.keys() == ours.keys()
    for key in ours.keys() - {*about_bands, probability}:
        assert theirs[key] == silent[key] == ours[key], key
    np.testing.assert_allclose(theirs[probability], ours[probability], rtol=1e-3)
    assert all(0 < share <= 1 for share in theirs["inside_band_by_share"]["0.99"])
    assert silent[probability] == silent["band_width_by_dimension"] == [None, None]
    assert set(map(tuple, silent["inside_band_by_share"].values())) == {(None, None)}
    assert re.search(r"^lift .* - +- +-$", out, re.MULTILINE), out
    assert (page / "index.html").is_file()


def test_what_training_held_out_is_the_default(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks push (0, 2) and pull (1, 3): LeRobot holds out the last half of each."""
    numbers = run(checkpoint, data, capsys)
    assert [(e["episode"], e["seen"]) for e in numbers["episodes"]] == [(2, "held out"), (3, "held out")]


def test_held_out_is_what_lerobot_holds_out(data: Path) -> None:
    from lerobot.configs.default import DatasetConfig
    from lerobot.datasets import LeRobotDatasetMetadata
    from lerobot.datasets.factory import make_train_eval_datasets

    meta = LeRobotDatasetMetadata(REPO_ID, root=data)
    source = DatasetSource(REPO_ID, str(data))
    for split, episodes in ((0.5, None), (0.3, None), (0.5, [0, 2, 3])):
        wanted = DatasetConfig(REPO_ID, root=str(data), eval_split=split, episodes=episodes)
        config = make_config(chunk_size=CHUNK, n_action_steps=CHUNK)
        try:
            train, held = make_train_eval_datasets(
                SimpleNamespace(dataset=wanted, trainable_config=config, tolerance_s=1e-4)  # type: ignore[arg-type]
            )
        except ValueError:
            continue
        training = {"repo_id": REPO_ID, "eval_split": split, "episodes": episodes}
        unseen = held_out_episodes(meta, source, training)
        assert unseen is not None and held is not None
        assert set(unseen) == set(range(4)) - set(train.episodes)
        assert set(held.episodes) <= set(unseen)
    assert held_out_episodes(meta, source, {"repo_id": "somebody/else", "eval_split": 0.5}) is None
    assert held_out_episodes(meta, source, {}) is None
    assert held_out_episodes(meta, source, {"repo_id": REPO_ID}) == []


def test_frames_can_be_thinned_out(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strided = run(checkpoint, data, capsys, "--episodes=0,1", "--stride=2")
    assert [e["frames"] for e in strided["episodes"]] == [3, 1]
    counted = run(checkpoint, data, capsys, "--episodes=0,1", "--frames-per-episode=3")
    assert [e["frames"] for e in counted["episodes"]] == [3, 2]


# ---------------------------------------------------------------------- with a pencil


def test_means_leave_out_what_lies_past_the_end() -> None:
    """One episode of two frames, chunks of two steps, one dimension; a bin is half a unit."""
    demonstrated = np.array([[[0.0], [1.0]], [[1.0], [1.0]]])
    predicted = np.array([[[0.5], [3.0]], [[1.0], [9.0]]])  # the 9 is past the end
    bins = {
        "demonstrated_bins": (2 * demonstrated).astype(int),
        "predicted_bins": (2 * predicted).astype(int),
    }
    inside = np.zeros((len(SHARES), 2, 2, 1), dtype=bool)
    inside[-1, 0] = True
    episode = EpisodeResult(
        index=7,
        task="push",
        length=2,
        seen="held out",
        frames=np.arange(2),
        valid=np.array([[True, True], [True, False]]),
        demonstrated=demonstrated,
        predicted=predicted,
        low=predicted - 1,
        high=predicted + 1,
        clipped=np.zeros((2, 2, 1), dtype=bool),
        inside=inside,
        probability=np.ones((2, 2, 1)),
        **bins,
    )
    result = OpenLoopResult("p", "d", ["x"], 100, 10, np.array([0.5]), np.array([1.0]), [episode])
    numbers = summary(result)
    assert numbers["mae"] == pytest.approx((0.5 + 2 + 0) / 3, abs=1e-5)
    assert numbers["mae_bins"] == pytest.approx((1 + 4 + 0) / 3, abs=1e-4)
    assert numbers["mae_by_step"] == [0.25, 2.0]
    assert numbers["mae_bins_by_step"] == [0.5, 4.0]
    assert numbers["mean_action_mae_by_dimension"] == pytest.approx([1 / 3], abs=1e-5)
    assert numbers["same_bin_by_dimension"] == pytest.approx([1 / 3], abs=1e-5)
    assert numbers["inside_band_by_share"]["0.99"] == pytest.approx([2 / 3], abs=1e-5)
    assert numbers["inside_band_by_share"]["0.5"] == [0.0]
    assert numbers["band_width_by_dimension"] == [2.0]
    assert numbers["probability_by_dimension"] == [1.0]
    assert numbers["episodes"][0]["mae"] == numbers["mae"]


# ---------------------------------------------------------------------- reports and thresholds


def test_the_same_report_twice_to_the_byte_and_nothing_outside_the_page(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        out = tmp_path / name
        assert (
            main(arguments(checkpoint, data, "--episodes=2,3", "--policy.temperature=0.7", f"--out={out}"))
            == 0
        )
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["episode_000002.png", "episode_000003.png", "horizon.png", "index.html", "report.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    page = Page(tmp_path / "a" / "index.html")
    assert page.links == []
    assert page.pictures == [
        (tmp_path / "a" / name).read_bytes()
        for name in ("horizon.png", "episode_000002.png", "episode_000003.png")
    ]
    numbers = json.loads((tmp_path / "a" / "report.json").read_text())
    assert [e["episode"] for e in numbers["episodes"]] == [2, 3]
    assert {"lift", "grip", "held out", "push"} <= set(page.cells)
    text = capsys.readouterr().out
    assert "2 episode(s) (2 held out of training), 7 frames" in text
    assert "in the 90% band" in text


def test_a_browser_shows_the_page(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    assert main(arguments(checkpoint, data, "--episodes=2", f"--out={tmp_path / 'out'}")) == 0
    assert "held out" in open_page(tmp_path / "out" / "index.html", tmp_path)


def test_an_error_above_its_threshold_ends_with_status_one(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = run(checkpoint, data, capsys, "--episodes=1")
    above = numbers["mae_bins"] + 1
    assert main(arguments(checkpoint, data, "--episodes=1", f"--max-mae-bins={above}", "--max-mae=100")) == 0
    capsys.readouterr()
    assert main(arguments(checkpoint, data, "--episodes=1", "--max-mae-bins=0.5", "--max-mae=0.001")) == 1
    lines = capsys.readouterr().err
    assert (
        f"mean absolute error {numbers['mae_bins']:g} (bins) is above --max-mae-bins=0.5; worst dimension"
        in lines
    )
    assert f"mean absolute error {numbers['mae']:g} (in the robot's units) is above --max-mae=0.001" in lines


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--episodes="], r"--episodes='': '' is neither an episode nor a range"),
        (["--episodes=3-1"], r"'3-1' is neither an episode nor a range such as 5-7"),
        (["--episodes=one"], r"'one' is neither an episode nor a range"),
        (["--episodes=2,9-11"], r"the dataset has no episode 9, 10, 11; it has 4, 0 to 3\."),
        (["--stride=0"], r"--stride=0 must be at least 1"),
        (["--batch-size=0"], r"--batch-size=0 must be at least 1"),
        (["--policy.chunk_size=5"], r"chunk_size is 5, the checkpoint has 3"),
        (['--rename_map={"observation.images.nope": "x"}'], r"renames \['observation.images.nope'\]"),
        (
            [f'--rename_map={{"{CAMERA}": "observation.images.front"}}'],
            r"reads the cameras \['observation.images.top'\].*missing: \['observation.images.top'\].*--rename_map",
        ),
    ],
)
def test_bad_input_is_named(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(arguments(checkpoint, data, *more)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_policy_of_another_robot_is_refused_and_its_cameras_can_be_renamed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = write_dataset(tmp_path / "three", [[[0.0, 1.0, 2.0]]], cameras={CAMERA: (64, 64)})
    assert main(arguments(checkpoint, three)) == 2
    assert "the policy's actions have 2 dimensions, the dataset's 3" in capsys.readouterr().err
    front = write_dataset(
        tmp_path / "front", [[[0.0, 0.5]] * 3], cameras={"observation.images.front": (64, 64)}
    )
    assert main(arguments(checkpoint, front)) == 2
    assert "the dataset has ['observation.images.front']" in capsys.readouterr().err
    renamed = run(
        checkpoint, front, capsys, f'--rename_map={{"observation.images.front": "{CAMERA}"}}', "--episodes=0"
    )
    assert renamed["frames"] == 3


def test_a_rename_map_that_is_no_mapping_is_refused(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("[1]", "{", '{"a": 1}'):
        with pytest.raises(SystemExit):
            main(arguments(checkpoint, data, f"--rename_map={text}"))
        assert "is not a JSON object of texts" in capsys.readouterr().err


def test_nan_demonstrations_are_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_dataset(tmp_path / "nan", [[[0.0, 0.5]], [[0.0, float("nan")]]], cameras={CAMERA: (64, 64)})
    assert main(arguments(checkpoint, root, "--episodes=0-1")) == 2
    assert "episode 1 has NaN or infinite actions" in capsys.readouterr().err
