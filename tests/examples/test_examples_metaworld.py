"""The demo's recordings and baselines: complete, resumable, the same whatever happened on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.paths import REPO
from helpers.waiting import LONG, wait_until

sys.path.insert(0, str(REPO / "examples" / "metaworld"))

import baselines
import experts
import record
from experts import RawEnv

EXAMPLES = Path(record.__file__).parent
TASK = "reach-v3"
SECOND = "handle-press-v3"
SEED = 8
# Of the tasks and seeds tried, those the experts solve in the fewest steps.
SETTINGS: dict[str, Any] = {
    "tasks": [TASK, SECOND],
    "episodes": 1,
    "seed": SEED,
    "image_size": 64,
    "noise": 0.0,
}
LENGTHS = {TASK: 36, SECOND: 31}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An episode of each of two tasks, played by two workers."""
    root = tmp_path_factory.mktemp("recorded") / "dataset"
    return record.record(SETTINGS, root, "local/two", workers=2)


def content(root: Path) -> dict[str, np.ndarray]:
    """Return everything training reads from a dataset."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/two", root=root)
    items = [dataset[index] for index in range(len(dataset))]
    keys = ("observation.image", "observation.state", "action", "episode_index", "frame_index", "timestamp")
    arrays = {key: np.stack([item[key].numpy() for item in items]) for key in keys}
    return {**arrays, "task": np.array([item["task"] for item in items])}


def expert_actions(seed: int, task: str = TASK) -> np.ndarray:
    """Return what the expert does from a seed, clipped as the environment clips it: (T, 4)."""
    env = RawEnv(task)
    raw, _ = env.reset(seed=seed)
    actions = []
    terminated = False
    while not terminated:
        actions.append(np.clip(env.expert_policy.get_action(raw), -1, 1).astype(np.float32))
        raw, _, terminated, _, _ = env.step(actions[-1])
    return np.stack(actions)


# ---- without rendering ---------------------------------------------------------------------------------------


def test_an_episode_depends_on_its_seed_alone() -> None:
    env = RawEnv(TASK)
    env.reset(seed=3)
    for _ in range(20):
        env.step(np.array([1, -1, 1, 1], np.float32))
    used, _ = env.reset(seed=7)
    fresh, _ = RawEnv(TASK).reset(seed=7)
    other, _ = env.reset(seed=8)
    assert np.array_equal(used, fresh)
    assert not np.array_equal(used, other)


def test_a_black_frame_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="single value 0: its OpenGL context is not current"):
        experts.shrunk(np.zeros((480, 480, 3), np.uint8), 240)


def test_a_frame_is_shrunk_to_means() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (480, 480, 3), dtype=np.uint8)
    assert np.array_equal(experts.shrunk(frame, 480), frame)
    mean = frame.reshape(240, 2, 240, 2, 3).mean(axis=(1, 3))  # of 2 x 2 pixels
    assert np.abs(experts.shrunk(frame, 240) - mean).max() <= 0.5


def test_a_folder_recorded_elsewhere_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "precious.txt").write_text("1")
    assert record.main(["--task", TASK, "--root", str(root), "--repo-id", "local/x"]) == 2
    assert f"{root} exists and has no recording.json" in capsys.readouterr().err
    assert [path.name for path in root.iterdir()] == ["precious.txt"]


def test_an_unknown_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        record.main(["--task", "reach-v9", "--root", str(tmp_path / "x"), "--repo-id", "local/x"])
    assert "unknown --task reach-v9; known: " in capsys.readouterr().err


def test_a_group_of_tasks_is_recorded_task_by_task() -> None:
    from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS

    arguments = ["--task", "hard", "--task", "metaworld-reach-v3", "--task", "reach-v3", "--root", "x"]
    options = record.parse_arguments([*arguments, "--repo-id", "local/x"])
    assert options.task == [*DIFFICULTY_TO_TASKS["hard"], "reach-v3"]
    assert len(options.task) == 7


def test_tasks_with_one_instruction_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "dataset"
    tasks = ["--task", "push-v3", "--task", "reach-v3", "--task", "push-back-v3"]
    assert record.main([*tasks, "--root", str(root), "--repo-id", "local/x"]) == 2
    message = capsys.readouterr().err
    assert "push-v3 and push-back-v3 have the same instruction, 'Push the puck to a goal'" in message
    assert list(tmp_path.iterdir()) == []


# ---- with rendering ------------------------------------------------------------------------------------------


@pytest.mark.sim
def test_a_recording_holds_what_the_expert_did(recorded: Path) -> None:
    from lerobot.envs.metaworld import TASK_DESCRIPTIONS

    data = content(recorded)
    first, second = LENGTHS.values()
    assert data["episode_index"].tolist() == [0] * first + [1] * second
    experts_did = [expert_actions(SEED, task) for task in (TASK, SECOND)]
    assert np.array_equal(data["action"], np.concatenate(experts_did))
    # Every frame carries its own task's instruction.
    assert data["task"].tolist() == [TASK_DESCRIPTIONS[TASK]] * first + [TASK_DESCRIPTIONS[SECOND]] * second
    assert data["timestamp"][1] == pytest.approx(1 / 80)
    assert data["observation.image"].shape == (first + second, 3, 64, 64)
    start, _ = RawEnv(TASK).reset(seed=SEED)
    assert data["observation.state"][0] == pytest.approx(start[:4], abs=1e-6)
    # Every frame is a picture, and the arm moves.
    assert data["observation.image"].std(axis=(1, 2, 3)).min() > 0.1
    assert np.abs(data["observation.image"][first - 1] - data["observation.image"][0]).mean() > 0.01
    # The second task's scene is not the first's.
    assert np.abs(data["observation.image"][first] - data["observation.image"][0]).mean() > 0.01


@pytest.mark.sim
def test_lerobot_eval_starts_from_the_same_state_and_picture() -> None:
    from lerobot.envs.configs import MetaworldEnv as MetaworldEnvConfig
    from lerobot.envs.utils import NEW_ROLLOUT_OPTION

    vector = MetaworldEnvConfig(task=TASK).create_envs(n_envs=2, use_async_envs=True)[TASK][0]
    try:
        # As lerobot_eval.rollout does for `--seed=7` and two environments.
        theirs, _ = vector.reset(seed=[7, 8], options={NEW_ROLLOUT_OPTION: True})
    finally:
        vector.close()
    env = RawEnv(TASK)
    pictures = []
    for index, seed in enumerate((7, 8)):
        raw, _ = env.reset(seed=seed)
        pictures.append(env.render())
        assert theirs["agent_pos"][index] == pytest.approx(raw[:4], abs=1e-9)
        assert np.array_equal(theirs["pixels"][index], pictures[-1])
    env.close()
    assert not np.array_equal(*pictures)


@pytest.mark.sim
def test_a_killed_recording_goes_on_and_equals_an_uninterrupted_one(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "dataset"
    command = [sys.executable, EXAMPLES / "record.py", "--task", TASK, "--task", SECOND]
    command += ["--episodes", "1", "--seed", str(SEED), "--image-size", "64", "--workers", "1"]
    command += ["--root", root, "--repo-id", "local/two"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = tmp_path / "dataset.staging" / TASK / f"{SEED}.npz"
    wait_until(lambda: first.is_file() or process.poll() is not None)
    assert process.poll() is None
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=LONG)
    assert alive == []
    assert not root.exists()

    staged = list(first.parents[1].glob("*/*.npz"))
    options = [str(argument) for argument in command[2:]]
    assert record.main(options) == 0
    printed = capsys.readouterr().out
    assert f"going on: {len(staged)} episodes are in {first.parents[1]}" in printed

    ours, theirs = content(root), content(recorded)
    for key, value in theirs.items():
        assert np.array_equal(ours[key], value), key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]

    # A complete dataset is reused; other settings are refused and named.
    assert record.main(options) == 0
    assert "reusing" in capsys.readouterr().out
    options[options.index("64")] = "96"
    assert record.main(options) == 2
    message = capsys.readouterr().err
    assert "recorded with other settings (image_size: recorded 64, asked for 96)" in message
    assert "nothing was changed" in message


@pytest.mark.sim
def test_one_policy_trains_on_both_tasks_and_is_evaluated_on_each(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.envs.metaworld import TASK_DESCRIPTIONS, MetaworldEnv
    from lerobot.scripts import lerobot_eval, lerobot_train

    from lerobot_policy_vla0 import VLA0Policy

    config = EXAMPLES.parents[1] / "configs" / "metaworld_multitask.yaml"
    arguments = [f"--config_path={config}", f"--dataset.root={recorded}", "--dataset.eval_split=0"]
    arguments += ["--eval_steps=0", "--steps=2", "--save_freq=2", "--batch_size=4", "--num_workers=0"]
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments, f"--output_dir={tmp_path / 'train'}"])
    lerobot_train.main()

    # An episode of a random policy takes 500 steps, each drawn twice, and LeRobot has no option for that.
    build = MetaworldEnv.__init__

    def short(env: MetaworldEnv, *args: Any, **kwargs: Any) -> None:
        build(env, *args, **kwargs)
        env._max_episode_steps = 2

    asked: list[tuple[str, float]] = []  # instruction, and how much the picture varies
    select = VLA0Policy.select_action

    def watched(policy: VLA0Policy, batch: dict[str, Any]) -> Any:
        asked.append((batch["task"][0], float(batch["observation.image"].std())))
        return select(policy, batch)

    monkeypatch.setattr(MetaworldEnv, "__init__", short)
    monkeypatch.setattr(VLA0Policy, "select_action", watched)
    checkpoint = tmp_path / "train" / "checkpoints" / "last" / "pretrained_model"
    arguments = [f"--policy.path={checkpoint}", "--policy.device=cpu", "--policy.dtype=float32"]
    arguments += ["--env.type=metaworld", f"--env.task={TASK},{SECOND}", "--seed=200000"]
    arguments += ["--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path / 'eval'}"]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *arguments])
    lerobot_eval.main()

    instructions = [TASK_DESCRIPTIONS[TASK]] * 2 + [TASK_DESCRIPTIONS[SECOND]] * 2
    assert [instruction for instruction, _ in asked] == instructions
    assert min(variation for _, variation in asked) > 0.05  # no black frames from the second environment
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert list(info["per_group"]) == [TASK, SECOND]
    assert [group["n_episodes"] for group in info["per_group"].values()] == [1, 1]


@pytest.mark.sim
def test_staged_episodes_of_another_size_are_refused(tmp_path: Path) -> None:
    staging = tmp_path / "dataset.staging"
    staging.mkdir()
    (staging / "recording.json").write_text(json.dumps({"image_size": 64, "noise": 0.1}))
    with pytest.raises(record.RecordingError, match=r"noise: recorded 0\.1, asked for 0\.0"):
        record.record(SETTINGS, tmp_path / "dataset", "local/reach", workers=1)


@pytest.mark.sim
def test_baselines_are_deterministic_and_know_their_own_seeds(recorded: Path, tmp_path: Path) -> None:
    written = tmp_path / "b.json"

    def play(seeds: range) -> dict[str, Any]:
        baselines.run(TASK, recorded, seeds, 2, written)
        return json.loads(written.read_text())

    result = play(range(20, 22))
    assert result == play(range(20, 22))
    assert result["seeds"] == [20, 21]
    # Of this task's demonstrations only.
    assert result["constant"]["action"] == pytest.approx(expert_actions(SEED).mean(axis=0), abs=1e-5)
    assert [replay["demonstration_steps"] for replay in result["blind_replays"]] == [LENGTHS[TASK]]
    for outcome in (result["constant"], *result["blind_replays"]):
        assert outcome["n_success"] == sum(outcome["success"])
        assert [steps == 500 for steps in outcome["steps"]] == [not solved for solved in outcome["success"]]

    options = [
        "--task",
        TASK,
        "--root",
        str(recorded),
        "--output",
        str(written),
        "--episodes",
        "5",
    ]
    with pytest.raises(
        baselines.BaselineError, match=r"seeds 4 to 8 include 1 that were recorded .*first is 8"
    ):
        play(range(4, 9))
    assert baselines.main([*options, "--seeds", "4"]) == 2
    with pytest.raises(baselines.BaselineError, match="has no episode of push-v3"):
        baselines.run("push-v3", recorded, range(20, 21), 1, written)


@pytest.mark.sim
def test_replaying_a_demonstration_on_its_own_seed_succeeds(recorded: Path) -> None:
    actions = baselines.demonstrations(recorded, SECOND)
    assert list(actions) == [1]
    seeds = range(SEED, SEED + 1)
    result = baselines.play(RawEnv(SECOND), seeds, list(actions[1]))
    assert result == {"n_success": 1, "success": [True], "steps": [LENGTHS[SECOND]]}


@pytest.mark.sim
def test_a_disturbed_demonstration_is_replayed_as_the_undisturbed_expert_plays_it(tmp_path: Path) -> None:
    settings = {"noise": 0.5}
    recording = {"settings": settings, "episodes": [[TASK, 7]]}
    (tmp_path / baselines.SETTINGS_FILE).write_text(json.dumps(recording))
    env = RawEnv(TASK)
    stored = np.zeros((3, 4), np.float32)
    played = baselines.executed_actions(env, tmp_path, TASK, 0, stored)
    np.testing.assert_array_equal(played, expert_actions(7))
    settings["noise"] = 0.0
    (tmp_path / baselines.SETTINGS_FILE).write_text(json.dumps(recording))
    assert baselines.executed_actions(env, tmp_path, TASK, 0, stored) is stored
