"""Scripted experts become a data set in order of task and seed, whoever is faster and whatever fails on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_policy_vla0.tools import recorder
from lerobot_policy_vla0.tools.recorder import Episode, Key, Result

SETTINGS = {"tasks": ["a", "b"], "episodes": 2, "seed": 10, "image_size": 0, "noise": 0.0}
STEPS = 3


def played(task: str, seed: int, success: bool = True) -> Episode[Result]:
    """Return an episode whose actions say which it is."""
    result = Result(
        task=task,
        instruction=f"do {task}",
        seed=seed,
        success=success,
        steps=STEPS,
        failure="" if success else "the expert failed",
    )
    action = np.full((STEPS, 2), seed + 100 * (task == "b"), np.float32)
    return Episode(result, {"action": action, "observation.state": action / 2})


def test_a_staged_episode_reads_back_unchanged(tmp_path: Path) -> None:
    episode, failure = played("a", 5), played("a", 6, success=False)
    for seed, one in ((5, episode), (6, failure)):
        recorder.write_episode(tmp_path / "a" / f"{seed}.npz", one)
    read = recorder.read_episode(tmp_path / "a" / "5.npz", Result)
    assert read.result == episode.result == recorder.read_result(tmp_path / "a" / "5.npz", Result)
    assert read.frames.keys() == episode.frames.keys()
    assert all(np.array_equal(read.frames[key], values) for key, values in episode.frames.items())
    # Of a failure nothing is kept but how it went.
    assert recorder.read_episode(tmp_path / "a" / "6.npz", Result) == Episode(failure.result, {})
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["5.npz", "6.npz"]


def test_episodes_are_written_in_order_and_failures_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, asked, written = tmp_path / "dataset", [], []
    add = recorder._add_episode

    def watched(dataset: LeRobotDataset, episode: Episode[Result]) -> None:
        written.append((episode.result.task, episode.result.seed, len(asked)))
        add(dataset, episode)

    monkeypatch.setattr(recorder, "_add_episode", watched)

    def play(todo: list[tuple[Key, Path]]) -> Iterator[Result]:
        asked.append([key for key, _ in todo])
        for key, path in reversed(todo):  # the last one is the fastest
            episode = played(*key, success=key != ("a", 10))
            recorder.write_episode(path, episode)
            yield episode.result

    vector = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    features = {"action": vector, "observation.state": vector}
    recorder.record(SETTINGS, root, "local/two", Result, play, fps=10, features=features, use_videos=False)

    assert asked == [[("a", 10), ("a", 11), ("b", 10), ("b", 11)], [("a", 12)]]
    # As soon as it was known what the first episode is, although the next one was still to be played.
    assert written == [("a", 11, 1), ("a", 12, 2), ("b", 10, 2), ("b", 11, 2)]
    kept = [["a", 11], ["a", 12], ["b", 10], ["b", 11]]
    assert json.loads((root / "recording.json").read_text()) == {"settings": SETTINGS, "episodes": kept}
    dataset = LeRobotDataset("local/two", root=root)
    rows = dataset.hf_dataset.with_format("numpy")
    assert rows["action"][:][:, 0].tolist() == [11] * 3 + [12] * 3 + [110] * 3 + [111] * 3
    assert [dataset[index]["task"] for index in (0, 11)] == ["do a", "do b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]
