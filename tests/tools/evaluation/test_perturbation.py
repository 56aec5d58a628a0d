"""`vla0 eval --perturb`: which pixels change and that nothing else does, what is drawn, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers.toy_env import ToyEnv

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation.paraphrases import paraphrase
from lerobot_policy_vla0.tools.evaluation.perturbation import (
    Perturbation,
    camera_direction,
    parse_perturbation,
)
from lerobot_policy_vla0.tools.evaluation.watched import Watch, WatchedEnv, WatchOrder
from lerobot_policy_vla0.tools.libero.setup import find_package


def pictures(seed: int = 0, size: int = 48) -> np.ndarray:
    """Pictures (3, H, W, 3) that no move leaves as they are, away from black and white."""
    return np.random.default_rng(seed).integers(60, 190, (3, size, size, 3), dtype=np.uint8)


def shown(
    setting: str, observation: dict[str, Any], seeds: tuple[int, ...] = (5, 6, 7), step: int = 0
) -> Any:
    """What the policy sees of an observation."""
    return parse_perturbation(setting).observation(observation, seeds, step)


# ---- pictures --------------------------------------------------------------------------------------------------


def test_a_shift_moves_the_picture_and_repeats_the_edge() -> None:
    seeds = tuple(range(24))
    before = np.repeat(pictures()[:1], len(seeds), axis=0)
    after = shown("shift=8px", {"pixels": before}, seeds)["pixels"]
    directions = set()
    for one, moved in zip(before, after, strict=True):
        candidates = {
            "right": (moved[:, 8:], one[:, :-8], moved[:, :8], one[:, :1]),
            "left": (moved[:, :-8], one[:, 8:], moved[:, -8:], one[:, -1:]),
            "down": (moved[8:], one[:-8], moved[:8], one[:1]),
            "up": (moved[:-8], one[8:], moved[-8:], one[-1:]),
        }
        found = [
            name
            for name, (inside, source, edge, repeated) in candidates.items()
            if np.array_equal(inside, source) and np.array_equal(edge, np.broadcast_to(repeated, edge.shape))
        ]
        assert len(found) == 1
        directions.add(found[0])
    assert directions == {"right", "left", "down", "up"}


def test_light_changes_by_the_fraction_for_all_cameras_of_an_episode() -> None:
    seeds = tuple(range(16))
    before = {name: np.repeat(pictures(i)[:1], len(seeds), axis=0) for i, name in enumerate(("top", "wrist"))}
    after = shown("brightness=0.2", {"pixels": before}, seeds)["pixels"]
    factors = []
    for row in range(len(seeds)):
        (factor,) = {
            factor
            for name in before
            for factor in (0.8, 1.2)
            if np.array_equal(after[name][row], np.rint(before[name][row] * factor).astype(np.uint8))
        }
        factors.append(factor)
    assert set(factors) == {0.8, 1.2}
    bright = shown("brightness=0.9", {"pixels": np.full((1, 8, 8, 3), 200, np.uint8)}, (0,))["pixels"]
    assert set(np.unique(bright)) <= {20, 255}  # clipped, not wrapped


def test_noise_has_the_deviation_and_is_new_in_every_step() -> None:
    before = {"pixels": np.full((2, 96, 96, 3), 128, np.uint8)}
    first, second = (shown("noise=4", before, (5, 6), step)["pixels"].astype(int) - 128 for step in (0, 1))
    for noise in (first[0], first[1], second[0]):
        assert noise.std() == pytest.approx(np.sqrt(4**2 + 1 / 12), rel=0.02) and abs(noise.mean()) < 0.1
    for other in (first[1], second[0]):
        assert abs(np.corrcoef(first[0].ravel(), other.ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(
    "setting", ["shift=8px", "brightness=0.2", "noise=4", "shift=3px,brightness=0.1,noise=1"]
)
def test_only_pictures_change_and_by_seed_and_step_alone(setting: str) -> None:
    state = np.arange(6.0).reshape(3, 2)
    observation = {
        "pixels": {"top": pictures(1), "wrist": pictures(2)},
        "agent_pos": state,
        "robot_state": {"a": state},
    }
    copies = {name: picture.copy() for name, picture in observation["pixels"].items()}  # type: ignore[attr-defined]
    once = shown(setting, observation, step=4)
    assert (
        once["agent_pos"] is state
        and once["robot_state"] == {"a": state}
        and once.keys() == observation.keys()
    )
    for name, picture in copies.items():
        np.testing.assert_array_equal(observation["pixels"][name], picture)  # type: ignore[call-overload]
        assert once["pixels"][name].dtype == np.uint8 and once["pixels"][name].shape == picture.shape
        assert all((once["pixels"][name][row] != picture[row]).mean() > 0.3 for row in range(3))
    # An episode looks the same in another batch, alone, and again.
    alone = {"pixels": {name: picture[1:2] for name, picture in copies.items()}}
    for name in copies:
        np.testing.assert_array_equal(
            shown(setting, alone, (6,), 4)["pixels"][name][0], once["pixels"][name][1]
        )


def test_what_is_drawn_does_not_depend_on_what_else_is() -> None:
    before = {"pixels": pictures()}
    both = shown("shift=8px,noise=4", before)["pixels"].astype(int)
    moved = shown("shift=8px", before)["pixels"]
    noise = shown("noise=4", {"pixels": np.full_like(before["pixels"], 128)})["pixels"].astype(int) - 128
    np.testing.assert_array_equal(both, moved + noise)


def test_pictures_that_are_none_are_refused() -> None:
    with pytest.raises(
        EvaluationError, match=r"--perturb noise=4: the environment returns no uint8 pictures"
    ):
        shown("noise=4", {"agent_pos": np.zeros((3, 2))})
    with pytest.raises(EvaluationError, match=r"no uint8 pictures"):
        shown("noise=4", {"pixels": pictures() / 255})
    with pytest.raises(EvaluationError, match=r"the pictures have 48 x 48 pixels: shift them by less"):
        shown("shift=48px", {"pixels": pictures()})
    with pytest.raises(EvaluationError, match=r"an episode has no seed"):
        parse_perturbation("noise=4").observation({"pixels": pictures()}, [None] * 3, 0)
    state = {"agent_pos": np.zeros((3, 2))}
    assert parse_perturbation("instruction=paraphrase").observation(state, [None] * 3, 0) is state


def test_the_camera_moves_in_a_direction_of_length_one_by_seed() -> None:
    directions = np.array([camera_direction(seed) for seed in range(400)])
    assert np.allclose(np.linalg.norm(directions, axis=1), 1)
    assert np.abs(directions.mean(axis=0)).max() < 0.1  # no side is preferred
    np.testing.assert_array_equal(camera_direction(3), directions[3])


# ---- instructions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "said"),
    [
        ("turn on the stove and put the moka pot on it", "switch on the stove and place the moka pot on it"),
        ("open the top drawer and put the bowl inside", "open up the top drawer and place the bowl inside"),
        ("put the mug in the microwave and close it", "place the mug in the microwave and shut it"),
        ("Push a button on the coffee machine", "Press a button on the coffee machine"),
        ("push the plate to the front of the stove", "move the plate to the front of the stove"),
        ("Pick and place a puck to a goal", "Grab and set a puck to a goal"),
        ("Hammer a screw on the wall", None),
        ("input the opened placement", None),  # parts of words are not verbs
    ],
)
def test_verbs_are_replaced_by_others(instruction: str, said: str | None) -> None:
    assert paraphrase(instruction) == said


def test_every_task_of_libero_has_a_paraphrase() -> None:
    if importlib.util.find_spec("libero") is None:
        pytest.skip("hf-libero is not installed (extra `libero`)")
    files = sorted((find_package() / "bddl_files").glob("libero_*/*.bddl"))
    tasks = {path.stem.split("SCENE")[-1].lstrip("0123456789_").replace("_", " ") for path in files}
    assert len(tasks) > 90
    assert [task for task in tasks if paraphrase(task) in (None, task)] == []


def test_an_instruction_without_a_paraphrase_is_an_error(tmp_path: Path) -> None:
    rules = parse_perturbation("instruction=paraphrase")
    assert rules.task("open the microwave") == "open up the microwave"
    with pytest.raises(
        EvaluationError, match=r"no rule paraphrases 'wave': give a file of \{\"wave\": \"...\"\} as"
    ):
        rules.task("wave")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"wave": "say hello"}))
    own = parse_perturbation(f"instruction=@{file}")
    assert (own.task("wave"), own.label) == ("say hello", "instruction=@mine.json")
    with pytest.raises(
        EvaluationError, match=r"instruction=@mine.json: the file has no paraphrase of 'open it': add it"
    ):
        own.task("open it")
    assert Perturbation().task("wave") == "wave"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a JSON object of"),
        ("[]", "is not a JSON object of"),
        ("{}", "is not a JSON object of"),
        ('{"a": 1}', "'a' is to become 1, which is no paraphrase"),
        ('{"a": " "}', "which is no paraphrase"),
        ('{"a": "a"}', "'a' is to become 'a', which is no paraphrase"),
    ],
)
def test_a_file_that_holds_no_paraphrases_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(EvaluationError, match=message):
        parse_perturbation(f"instruction=@{tmp_path / 'mine.json'}")


# ---- the setting -----------------------------------------------------------------------------------------------


def test_a_setting_is_always_written_in_the_same_way() -> None:
    text = "camera=10mm, noise=4.0,instruction=paraphrase,brightness=.20,shift=08px"
    setting = parse_perturbation(text)
    assert setting == Perturbation(8, 0.2, 4.0, "paraphrase", 0.01)
    assert setting.label == "shift=8px,brightness=0.2,noise=4,instruction=paraphrase,camera=1cm"
    assert parse_perturbation(setting.label) == setting


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("blur=3", "'blur=3' is none of"),
        ("", "'' is none of"),
        ("shift=8", "'shift=8' has to be one of"),
        ("shift=0px", "'shift=0px'"),
        ("shift=65px", "'shift=65px'"),
        ("brightness=20%", "'brightness=20%'"),
        ("brightness=1", "'brightness=1'"),
        ("noise=1.2.3", "'noise=1.2.3'"),
        ("noise=-4", "'noise=-4'"),
        ("noise=nan", "'noise=nan'"),
        ("instruction=french", "'instruction=french'"),
        ("camera=1", "'camera=1'"),
        ("camera=1m", "'camera=1m'"),
        ("camera=21cm", "'camera=21cm'"),
        ("noise=4,camera", "'camera' has to be one of"),
    ],
)
def test_a_wrong_setting_is_told_all_that_are_allowed(text: str, item: str) -> None:
    with pytest.raises(EvaluationError) as error:
        parse_perturbation(text)
    assert f"--perturb {text}: {item}" in str(error.value)
    for allowed in (
        "shift=1px to 64px",
        "brightness=0.01 to 0.9",
        "noise=0.1 to 64",
        "instruction=paraphrase or instruction=@FILE.json",
        "camera=0.1cm to 20cm (or mm; LIBERO only)",
    ):
        assert allowed in str(error.value)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(EvaluationError, match="noise is given twice"):
        parse_perturbation("noise=4,noise=5")


def test_only_liberos_camera_can_be_moved() -> None:
    setting = parse_perturbation("camera=1cm")
    setting.check_environment("libero")
    with pytest.raises(
        EvaluationError, match=r"camera=1cm moves the camera in the simulator.*not in --env.type=pusht"
    ):
        setting.check_environment("pusht")


# ---- in the worker ---------------------------------------------------------------------------------------------


def watched(tmp_path: Path, setting: str, env: Any) -> WatchedEnv:
    """An environment as the worker wraps it, after what it is asked to do went through the command line."""
    order = WatchOrder(str(tmp_path), n_episodes=4, task=("toy", 0), perturbation=parse_perturbation(setting))
    again = WatchOrder.from_argument(order.as_argument())
    assert again == order
    return WatchedEnv(env, Watch(again), ("toy", 0), 10)


def toys(task: str = "open it") -> gym.vector.SyncVectorEnv:
    return gym.vector.SyncVectorEnv([lambda: ToyEnv(task) for _ in range(2)])


def test_the_policy_sees_it_and_the_simulation_does_not(tmp_path: Path) -> None:
    plain, perturbed = toys(), watched(tmp_path, "noise=4,instruction=paraphrase", toys())
    assert (
        perturbed.call("task_description") == ("open up it",) * 2
        and perturbed.call("task") == ("open up it",) * 2
    )
    actions = np.array([[0.5, -1.0], [2.0, 0.25]], np.float32)
    given = actions.copy()
    (a, info_a), (b, info_b) = plain.reset(seed=[5, 6]), perturbed.reset(seed=[5, 6])
    assert info_a.keys() == info_b.keys()
    expected = parse_perturbation("noise=4")
    for step in range(1, 4):
        np.testing.assert_array_equal(
            b["pixels"]["top"], expected.observation(a, [5, 6], step - 1)["pixels"]["top"]
        )
        np.testing.assert_array_equal(a["agent_pos"], b["agent_pos"])
        (a, *rest_a), (b, *rest_b) = plain.step(actions), perturbed.step(actions)
        for one, other in zip(rest_a[:3], rest_b[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(actions, given)
    np.testing.assert_array_equal(
        plain.call("render"), perturbed.call("render")
    )  # videos show the scene itself


def test_a_missing_paraphrase_ends_the_worker_before_the_policy_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no rule paraphrases 'wave'"):
        watched(tmp_path, "instruction=paraphrase", toys("wave"))


class Mute:
    """A vector environment without an instruction."""

    num_envs = 1

    def call(self, name: str) -> Any:
        raise AttributeError(name)


def test_an_environment_without_an_instruction_is_refused(tmp_path: Path) -> None:
    env = watched(tmp_path, "instruction=paraphrase", Mute())
    with pytest.raises(AttributeError):
        env.call("task_description")  # LeRobot then asks for the task
    with pytest.raises(EvaluationError, match="the environment has no instruction that could be paraphrased"):
        env.call("task")
