"""Relative actions through LeRobot's own steps: units worked out by hand, queue, ensembling, real-time chunking."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy_env
from helpers.commands import DEBUG, evaluate, run, train, train_arguments
from helpers.processors import override_name
from helpers.tiny import CAMERA, make_config, make_dataset
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.rtc import RTCConfig
from lerobot.rollout.inference.rtc import RTCInferenceEngine

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.dataset_stats import check_relative_horizon, check_relative_stats
from lerobot_policy_vla0.errors import CheckpointError, ConfigError, StateError, StatsError
from lerobot_policy_vla0.execution.relative import ORIGIN

# An arm's joint and its gripper: offsets of the joint lie in [-4, 6], the gripper's opening in [0, 10].
STATS = {
    "action": {"min": torch.tensor([-4.0, 0.0]), "max": torch.tensor([6.0, 10.0])},
    "observation.state": {"min": torch.tensor([0.0, 0.0]), "max": torch.tensor([100.0, 10.0])},
}
NAMES = ["joint.pos", "gripper.pos"]


def relative_config(**options: Any) -> Any:
    return make_config(
        **{"use_relative_actions": True, "action_feature_names": NAMES, "n_bins": 1000, **options}
    )


def observation(*states: tuple[float, float], **more: Any) -> dict[str, Any]:
    n = len(states)
    return {
        CAMERA: torch.full((n, 3, 64, 64), 0.5),
        "observation.state": torch.tensor(states),
        "task": ["push"] * n,
        **more,
    }


# ---------------------------------------------------------------- units


@pytest.mark.parametrize("state_in_prompt", [False, True])
def test_actions_become_offsets_from_the_state_and_come_back(state_in_prompt: bool) -> None:
    pre, post = make_vla0_pre_post_processors(relative_config(state_in_prompt=state_in_prompt), STATS)
    actions = torch.tensor(
        [[[51.0, 5.0], [46.0, 0.0], [56.0, 10.0]], [[10.0, 2.5], [11.0, 2.5], [12.0, 2.5]]]
    )
    out = pre(observation((50.0, 9.0), (10.0, 1.0), action=actions))
    # First row, joint: offsets 1, -4, 6 of [-4, 6] are the middle and the ends; the gripper stays absolute.
    expected = [[[0.0, 0.0], [-1.0, -1.0], [1.0, 1.0]], [[-0.2, -0.5], [0.0, -0.5], [0.2, -0.5]]]
    torch.testing.assert_close(out["action"], torch.tensor(expected))
    assert ORIGIN not in out
    torch.testing.assert_close(post(out["action"]), actions)
    # The raw state is the anchor; the prompt says the normalised one.
    spoken = out["observation.state"] if state_in_prompt else None
    if spoken is not None:
        torch.testing.assert_close(spoken, torch.tensor([[0.0, 0.8], [-0.8, -0.8]]))


def test_an_observation_says_where_the_absolute_zero_lies() -> None:
    pre, _ = make_vla0_pre_post_processors(relative_config(), STATS)
    out = pre(observation((50.0, 9.0), (1.0, 9.0)))
    # -50 and -1 in [-4, 6]; the gripper's zero is its lower end whatever its state.
    torch.testing.assert_close(out[ORIGIN], torch.tensor([[-10.2, -1.0], [-0.4, -1.0]]))
    assert out.get("action") is None
    assert "vla0_origin_asked" not in str(out)
    one = pre({**{k: v[0] for k, v in observation((50.0, 9.0)).items()}})  # a robot's, without a batch axis
    torch.testing.assert_close(one[ORIGIN], torch.tensor([[-10.2, -1.0]]))


def test_lerobots_steps_stand_where_lerobot_puts_them_under_the_names_it_overrides() -> None:
    pre, post = make_vla0_pre_post_processors(relative_config(state_in_prompt=True), STATS)
    assert [override_name(step) for step in pre.steps] == [
        "rename_observations_processor",
        "to_batch_processor",
        "vla0_zero_action",
        "relative_actions_processor",
        "normalizer_processor",
        "vla0_origin",
        "vla0_prompt",
        "device_processor",
    ]
    assert [override_name(step) for step in post.steps] == [
        "unnormalizer_processor",
        "absolute_actions_processor",
        "device_processor",
    ]
    plain, _ = make_vla0_pre_post_processors(relative_config(), STATS)
    assert [override_name(step) for step in plain.steps][4:] == [
        "vla0_prompt",
        "device_processor",
        "normalizer_processor",
        "vla0_origin",
    ]


# ---------------------------------------------------------------- the queue and the ensembler


class Scripted(VLA0Policy):
    """A policy whose answers are given."""

    answers: list[torch.Tensor]

    def _predict(self, batch: dict[str, Any], committed: Any = None) -> torch.Tensor:
        return self.answers.pop(0)


def rollout(policy: VLA0Policy, states: list[list[tuple[float, float]]]) -> list[torch.Tensor]:
    """Drive the policy as lerobot-eval does, with the given states; return the actions in the robot's units."""
    pre, post = make_vla0_pre_post_processors(policy.config, STATS)
    policy.reset()
    return [post(policy.select_action(pre(observation(*rows)))) for rows in states]


def test_a_queued_step_goes_to_where_the_query_meant_it_however_far_the_robot_got() -> None:
    policy = Scripted(relative_config(n_action_steps=3)).eval()
    offsets = torch.tensor([[[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]], [[-1.0, 0.0], [-2.0, 1.0], [-3.0, 2.0]]])
    low, high = STATS["action"]["min"], STATS["action"]["max"]
    policy.answers = [2 * (offsets - low) / (high - low) - 1]
    got = rollout(
        policy, [[(50.0, 1.0), (20.0, 1.0)], [(53.5, 2.0), (20.0, 3.0)], [(40.0, 9.0), (19.0, 0.0)]]
    )
    for step, actions in enumerate(got):
        expected = [[50.0 + step + 1, 5.0 + step], [20.0 - step - 1, float(step)]]
        torch.testing.assert_close(actions, torch.tensor(expected), rtol=0, atol=1e-4)


def test_chunks_from_different_states_are_averaged_where_they_mean_the_same_thing() -> None:
    policy = Scripted(relative_config(n_action_steps=1, ensemble_n_chunks=3, ensemble_old_weight=0.5)).eval()
    # Offsets of the joint: the second chunk's query was at 52, so 1 there is 53; the first said 50 + 2 = 52.
    joints = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    grippers = [[2.0, 4.0, 6.0], [8.0, 8.0, 8.0], [0.0, 0.0, 0.0]]
    chunks = [
        [[2 * (a + 4) / 10 - 1, 2 * b / 10 - 1] for a, b in zip(*rows, strict=True)]
        for rows in zip(joints, grippers, strict=True)
    ]
    policy.answers = [torch.tensor([chunk]) for chunk in chunks]
    first, second, third = rollout(policy, [[(50.0, 0.0)], [(52.0, 0.0)], [(51.0, 5.0)]])
    torch.testing.assert_close(first, torch.tensor([[51.0, 2.0]]), rtol=0, atol=1e-4)
    # (53 + 0.5 * 52) / 1.5 and (8 + 0.5 * 4) / 1.5
    torch.testing.assert_close(second, torch.tensor([[79.0 / 1.5, 10.0 / 1.5]]), rtol=0, atol=1e-4)
    # newest 51, the second said 52 + 2, the first 50 + 3; (0 + 0.5 * 8 + 0.5 * 6) / 2
    torch.testing.assert_close(third, torch.tensor([[(51 + 27 + 26.5) / 2, 3.5]]), rtol=0, atol=1e-4)


def test_a_dimension_whose_offset_never_changes_still_follows_the_query() -> None:
    stats = {**STATS, "action": {"min": torch.tensor([2.0, 0.0]), "max": torch.tensor([2.0, 10.0])}}
    policy = Scripted(relative_config(n_action_steps=2)).eval()
    policy.answers = [torch.tensor([[[-1.0, 0.0]] * 3])]
    pre, post = make_vla0_pre_post_processors(policy.config, stats)
    policy.reset()
    got = [post(policy.select_action(pre(observation(state)))) for state in ((50.0, 0.0), (57.25, 0.0))]
    for action in got:
        torch.testing.assert_close(action, torch.tensor([[52.0, 5.0]]), rtol=0, atol=1e-4)


def test_the_gripper_is_snapped_and_stays_absolute() -> None:
    policy = Scripted(relative_config(n_action_steps=2, binary_action_indices=[1])).eval()
    policy.answers = [torch.tensor([[[0.0, 0.1], [0.0, -0.1], [0.0, 0.0]]])]
    got = rollout(policy, [[(50.0, 3.0)], [(60.0, 4.0)]])
    assert [float(action[0, 1]) for action in got] == [10.0, 0.0]
    assert [round(float(action[0, 0]), 3) for action in got] == [51.0, 51.0]


def test_a_batch_without_its_origin_or_state_moves_nothing() -> None:
    config = relative_config()
    policy = VLA0Policy(config).eval()
    pre, _ = make_vla0_pre_post_processors(config, STATS)
    batch = pre(observation((50.0, 9.0)))
    del batch[ORIGIN]
    with pytest.raises(
        StateError, match=r"the batch has no 'observation.vla0_origin', which use_relative_actions=True"
    ):
        policy.select_action(batch)
    without = observation((50.0, 9.0))
    del without["observation.state"]
    with pytest.raises(
        StateError, match=r"use_relative_actions=True needs 'observation.state' of shape \(batch, stat"
    ):
        pre(without)
    with pytest.raises(StateError, match=r"needs 'observation.state'.*got None"):
        pre({**without, "action": torch.zeros(1, 3, 2)})  # LeRobot would train on absolute actions
    with pytest.raises(
        StateError, match=r"NaN or infinite values in dimensions \[0\], and use_relative_actions=True"
    ):
        pre(observation((float("nan"), 0.0)))


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"relative_exclude_joints": ["claw"]},
            "relative_exclude_joints=['claw'] matches none of the action's dimensions ['joint.pos', 'gripper.pos']: "
            "all of them would become relative. Set relative_exclude_joints to names of dimensions that stay absolute, "
            "or to [] if there are none.",
        ),
        (
            {"binary_action_indices": [0, 1]},
            "binary_action_indices=[0, 1] snaps dimension(s) [0] to the ends of their range, but "
            "use_relative_actions=True with relative_exclude_joints=['gripper'] makes them offsets. Exclude them by "
            "name, or take them out of binary_action_indices.",
        ),
    ],
    ids=["matches nothing", "snapped offset"],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        relative_config(**options).validate_features()
    assert str(error.value) == message


def test_an_exclusion_without_relative_actions_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"relative_exclude_joints=\['wrist'\] has no effect with use_relative_actions"
    ):
        make_config(relative_exclude_joints=["wrist"])


def test_excluding_by_names_the_dataset_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"relative_exclude_joints=\['gripper'\] matches none .* None"):
        relative_config(action_feature_names=None).validate_features()
    relative_config(action_feature_names=None, relative_exclude_joints=[]).validate_features()


def test_a_state_that_is_missing_or_too_short_is_refused() -> None:
    config = relative_config()
    config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (1,))
    with pytest.raises(ConfigError, match="the state has 1 dimensions and the action 2"):
        config.validate_features()
    del config.input_features["observation.state"]
    with pytest.raises(ConfigError, match=r"use_relative_actions=True needs an 'observation.state' of shape"):
        config.validate_features()


def test_statistics_of_absolute_actions_are_told_by_what_they_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def counted(actions: int, states: int) -> Any:
        return {
            "action": {**STATS["action"], "count": np.array([actions])},
            "observation.state": {**STATS["observation.state"], "count": np.array([states])},
        }

    with pytest.raises(StatsError) as error:
        make_vla0_pre_post_processors(relative_config(), counted(24, 24))
    assert str(error.value) == (
        "use_relative_actions=True, but the dataset's action statistics are of absolute actions (they count 24 actions "
        "for 24 states, every frame once). Train on a copy with those of relative actions: lerobot-edit-dataset "
        "--repo_id=NAME --new_repo_id=NAME_relative --operation.type=recompute_stats --operation.relative_action=true "
        "--operation.chunk_size=3 --operation.relative_exclude_joints='[\"gripper\"]'"
    )
    make_vla0_pre_post_processors(relative_config(), counted(54, 24))  # 3 episodes of 8: 18 whole chunks of 3
    assert "actions for" not in caplog.text and "offsets" not in caplog.text
    with caplog.at_level(logging.WARNING):
        check_relative_stats(make_config(), counted(54, 24))
    assert "count 54 actions for 24 states: they look like those of relative actions" in caplog.text
    caplog.clear()
    check_relative_stats(make_config(), counted(24, 24))
    check_relative_stats(relative_config(chunk_size=1, n_action_steps=1), counted(24, 24))  # cannot be told
    assert "actions for" not in caplog.text and "offsets" not in caplog.text


# ---------------------------------------------------------------- LeRobot's commands

RELATIVE = ["--policy.use_relative_actions=true", '--policy.relative_exclude_joints=["y"]']


@pytest.fixture(scope="module")
def absolute_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def relative_root(absolute_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set, with the statistics LeRobot's own command computes."""
    from lerobot.scripts.lerobot_edit_dataset import main

    root: Path = tmp_path_factory.mktemp("data") / "relative"
    with pytest.MonkeyPatch.context() as patch:
        run(
            main,
            [
                "--repo_id=local/tiny",
                f"--root={absolute_root}",
                "--new_repo_id=local/tiny_relative",
                f"--new_root={root}",
                "--operation.type=recompute_stats",
                "--operation.relative_action=true",
                "--operation.chunk_size=3",
                '--operation.relative_exclude_joints=["y"]',
            ],
            patch,
        )
    return root


@pytest.fixture(scope="module")
def checkpoint(relative_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of relative actions trained by lerobot-train, with the state in its prompt as well."""
    output = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        train(
            [
                DEBUG,
                *train_arguments(relative_root, output, steps=2, save=2),
                *RELATIVE,
                "--policy.state_in_prompt=true",
                "--policy.n_action_steps=2",
                "--dataset.eval_split=0.34",
                "--eval_steps=2",
            ],
            patch,
        )
    return output / "checkpoints/000002/pretrained_model"


def test_statistics_for_chunks_of_another_length_are_pointed_out(
    relative_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lerobot.datasets import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata("local/tiny", root=relative_root)
    with caplog.at_level(logging.WARNING):
        check_relative_horizon(relative_config(), meta.stats, meta)
        check_relative_horizon(relative_config(chunk_size=4, n_action_steps=4), meta.stats, None)
    assert "actions for" not in caplog.text and "offsets" not in caplog.text
    with caplog.at_level(logging.WARNING):
        check_relative_horizon(relative_config(chunk_size=4, n_action_steps=4), meta.stats, meta)
    # Three episodes of 8 frames: 3 * 6 * 3 and 3 * 5 * 4.
    assert "count 54 offsets, where chunks of chunk_size=4 make 60" in caplog.text


def test_training_on_statistics_of_absolute_actions_is_refused(
    absolute_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [DEBUG, *train_arguments(absolute_root, tmp_path / "out", steps=1, save=1), *RELATIVE]
    with pytest.raises(StatsError, match=r"statistics are of absolute actions .*--operation\.chunk_size=3"):
        train(arguments, monkeypatch)


def test_the_checkpoint_holds_the_statistics_lerobot_computed(checkpoint: Path, relative_root: Path) -> None:
    stored = json.loads((checkpoint / "config.json").read_text())
    assert stored["use_relative_actions"] is True
    assert stored["action_feature_names"] == ["x", "y"]
    _, post = make_pre_post_processors(
        VLA0Policy.from_pretrained(checkpoint).config, pretrained_path=str(checkpoint)
    )
    stats = json.loads((relative_root / "meta/stats.json").read_text())["action"]
    # x = 8 * level - 2 relative to level: (8 * level' - 2) - level, level' up to two frames of 1/24 later. Chunks
    # begin at frames 0 to 5 of the episodes of 8, so levels from 0 to 21/24.
    np.testing.assert_allclose(stats["min"][0], -2.0, atol=1e-6)
    np.testing.assert_allclose(stats["max"][0], 8 * 23 / 24 - 2 - 21 / 24, atol=1e-6)
    np.testing.assert_allclose(
        (stats["min"][1], stats["max"][1]), (1 / 24, 1.0), atol=1e-6
    )  # y stays absolute
    saved = post.steps[0]._tensor_stats["action"]
    torch.testing.assert_close(saved["min"], torch.tensor(stats["min"], dtype=torch.float32))


@pytest.mark.parametrize("ensemble", [False, True], ids=["queue", "ensemble"])
def test_lerobot_eval_executes_the_queries_own_offsets(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ensemble: bool
) -> None:
    """What reaches the environment is worked out from the states it was in and the raw answers."""
    states: list[np.ndarray] = []
    executed: list[np.ndarray] = []
    answers: list[torch.Tensor] = []
    step, predict = toy_env.ToyEnv.step, VLA0Policy._predict

    def recording_step(self: Any, action: np.ndarray) -> Any:
        states.append(self._position.copy())
        executed.append(np.array(action))
        return step(self, action)

    def recording_predict(self: Any, batch: Any, committed: Any = None) -> torch.Tensor:
        answers.append(predict(self, batch, committed))
        return answers[-1]

    monkeypatch.setattr(toy_env.ToyEnv, "step", recording_step)
    monkeypatch.setattr(VLA0Policy, "_predict", recording_predict)
    monkeypatch.setattr(VLA0Policy, "warm_up", lambda self, batch=1: None)
    options = [
        "--policy.n_action_steps=2",
        "--policy.ensemble_n_chunks=2" if ensemble else "--policy.ensemble_n_chunks=1",
    ]
    evaluate(
        [
            f"--policy.path={checkpoint}",
            *options,
            "--env.type=toy",
            "--eval.n_episodes=1",
            "--eval.batch_size=1",
            "--seed=3",
            f"--output_dir={tmp_path}",
        ],
        monkeypatch,
    )
    _, post = make_pre_post_processors(
        VLA0Policy.from_pretrained(checkpoint).config, pretrained_path=str(checkpoint)
    )
    unnormalise = post.steps[0]
    offsets = [unnormalise._normalize_action(answer, inverse=True)[0].numpy() for answer in answers]
    assert len(executed) == toy_env.STEPS or len(executed) == len(answers) * 2
    assert np.ptp([state[0] for state in states]) > 1e-3  # it moved between query and execution
    for tick, action in enumerate(executed):
        query, within = divmod(tick, 2)
        meant = offsets[query][within] + states[2 * query] * [1, 0]
        if ensemble and query and within == 0:
            meant = (meant + offsets[query - 1][2] + states[2 * query - 2] * [1, 0]) / 2
        np.testing.assert_allclose(action, meant, atol=1e-4)


def test_fine_tuning_and_other_options_of_a_checkpoint(
    checkpoint: Path, relative_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = [
        f"--policy.path={checkpoint}",
        "--policy.push_to_hub=false",
        "--num_workers=0",
        "--env_eval_freq=0",
        "--peft.method_type=LORA",
        "--peft.r=4",
        *train_arguments(relative_root, tmp_path / "out", steps=1, save=1),
    ]
    train(again, monkeypatch)
    again = [word for word in again if "output_dir" not in word]
    tuned = tmp_path / "out/checkpoints/000001/pretrained_model"
    for folder in (checkpoint, tuned):
        policy = VLA0Policy.from_pretrained(folder)
        pre, post = make_pre_post_processors(policy.config, pretrained_path=str(folder))
        policy.reset()
        action = post(policy.select_action(pre(observation((3.0, 0.5)))))
        assert 3.0 - 2.0 - 1e-4 <= float(action[0, 0]) <= 3.0 + 4.7917 + 1e-4  # offsets of the test above
    with pytest.raises(CheckpointError, match="use_relative_actions is False, the checkpoint has True"):
        train(
            [
                *again,
                f"--output_dir={tmp_path / 'other'}",
                "--policy.use_relative_actions=false",
                '--policy.relative_exclude_joints=["gripper"]',
            ],
            monkeypatch,
        )


# ---------------------------------------------------------------- real-time chunking


def test_lerobots_engine_re_anchors_what_is_left_of_a_chunk(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed beginning of a new answer is the rest of the old one, seen from where the robot is now."""
    policy = VLA0Policy.from_pretrained(checkpoint)
    pre, post = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    monkeypatch.setattr("lerobot.rollout.inference.rtc.LatencyTracker", FixedLatency)
    calls: list[dict[str, Any]] = []
    predict = policy.predict_action_chunk

    def recording(batch: Any, **options: Any) -> torch.Tensor:
        left = engine.action_queue.get_processed_left_over() if calls else None  # in the robot's units
        chunk = predict(batch, **options)
        calls.append(
            {**options, "left": left, "chunk": post(chunk)[0], "state": pre.steps[3].get_cached_state()}
        )
        if len(calls) == 2:
            engine._shutdown_event.set()
        return chunk

    engine = RTCInferenceEngine(
        policy,
        pre,
        post,
        SimpleNamespace(robot_type="toy", action_features={"x": float, "y": float}),
        RTCConfig(enabled=True, execution_horizon=3),
        {
            "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
            CAMERA: {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
        },
        "raise the bar",
        0.1,  # steps per second: no machine is late
        "cpu",
    )
    monkeypatch.setattr(policy, "supports_rtc", lambda: True)
    monkeypatch.setattr(policy, "predict_action_chunk", recording)
    policy.reset()
    picture = np.full((64, 64, 3), 90, np.uint8)
    engine._action_queue = None
    from lerobot.policies.rtc import ActionQueue

    engine._action_queue = ActionQueue(engine._rtc_config)
    engine._policy_active.set()
    engine.notify_observation({"x": 0.25, "y": 0.5, "top": picture})
    notify = engine._action_queue.merge

    def merge(*arguments: Any) -> None:
        notify(*arguments)
        engine.get_action(None)  # the robot executes a step and moves on
        engine.notify_observation({"x": 0.75, "y": 0.5, "top": picture})

    monkeypatch.setattr(engine._action_queue, "merge", merge)
    engine._rtc_loop()

    first, second = calls
    assert first["prev_chunk_left_over"] is None and second["inference_delay"] == 1
    assert [float(call["state"][0, 0]) for call in calls] == [0.25, 0.75]
    torch.testing.assert_close(second["left"][0], first["chunk"][-len(second["left"])])
    # In the policy's units LeRobot subtracted the new state; what comes back begins with the very place left over.
    low, high = (post.steps[0]._tensor_stats["action"][key] for key in ("min", "max"))
    relative = second["left"][0] - torch.tensor([0.75, 0.0])
    expected = 2 * (relative - low) / (high - low) - 1
    torch.testing.assert_close(second["prev_chunk_left_over"][0], expected, rtol=0, atol=1e-5)
    inside = expected.abs() <= 1
    half_a_bin = (high - low) / 100 / 2 + 1e-5
    assert bool(((second["chunk"][0] - second["left"][0]).abs() <= half_a_bin)[inside].all())


class FixedLatency:
    """One control step of latency, whatever the machine does."""

    def max(self) -> float:
        return 10.0

    def add(self, latency: float) -> None:
        del latency

    def reset(self) -> None:
        pass
