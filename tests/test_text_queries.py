"""LeRobot's text queries (from 0.6.2 on), through its own engines: `/vqa` and `/autosteer` of `lerobot-rollout`."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.speaking import ANSWER, GOAL, QUESTION_TEXT, SUBTASK
from helpers.tiny import CAMERA, make_config, make_stats
from lerobot.rollout.inference import rtc, sync
from lerobot.utils import constants

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors

pytestmark = pytest.mark.skipif(
    not hasattr(constants, "QUERY_KIND"), reason="this LeRobot has no text queries yet (0.6.2 has)"
)

FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    CAMERA: {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
}


def observation(level: int) -> dict[str, Any]:
    return {"x": 0.1, "y": 0.2, "top": np.full((64, 64, 3), level, np.uint8)}


def frame(level: int) -> dict[str, Any]:
    """Return what `get_action` takes, of the same moment as `observation`."""
    return {
        "observation.state": np.array([0.1, 0.2], np.float32),
        CAMERA: np.full((64, 64, 3), level, np.uint8),
    }


def parts(backbone: Path, **options: Any) -> tuple[VLA0Policy, Any, Any]:
    config = make_config(
        vlm_model_name=str(backbone), chunk_size=4, n_action_steps=4, decoder="fast", **options
    )
    torch.manual_seed(0)
    policy = VLA0Policy(config).eval()
    return policy, *make_vla0_pre_post_processors(config, make_stats())


def sync_engine(backbone: Path, **options: Any) -> Any:
    return engine_of(*parts(backbone, **options))


def engine_of(*made: Any) -> Any:
    return sync.SyncInferenceEngine(
        *made,
        dataset_features=FEATURES,
        ordered_action_keys=["x", "y"],
        task="wave",
        device="cpu",
        robot_type="toy",
    )


def asked(engine: Any, level: int) -> list[Any]:
    """Serve the pending query; return the answers that came."""
    answers: list[Any] = []
    engine.set_answer_observer(answers.append)
    engine.pump_query(observation(level))
    return answers


def test_questions_on_the_control_thread_change_no_action(speaking_backbone: Path) -> None:
    def actions(questions: bool) -> list[list[float]]:
        engine = sync_engine(speaking_backbone)
        assert engine.supports_text_queries
        sent = []
        for step in range(6):
            sent.append(engine.get_action(frame(40 * step)).tolist())
            if questions:
                assert engine.ask(QUESTION_TEXT)
                (answer,) = asked(engine, 40 * step)
                assert (answer.error, answer.answer) == (None, ANSWER)
        return sent

    assert actions(True) == actions(False)


def test_autosteer_gets_one_subtask_and_the_next_action_follows_it(speaking_backbone: Path) -> None:
    engine = sync_engine(speaking_backbone)
    engine.get_action(frame(0))
    assert len(engine._policy.executor.queue) == 3
    engine.start_autosteer(GOAL, interval_s=1000.0)
    (answer,) = asked(engine, 0)
    assert (answer.error, answer.answer) == (None, SUBTASK)
    assert engine.task == SUBTASK
    assert len(engine._policy.executor.queue) == 3
    engine.get_action(frame(0))
    assert engine.dispatched_task == SUBTASK
    assert len(engine._policy.executor.queue) == 3  # a new chunk, for the new task


def test_what_cannot_be_asked_is_an_answer_with_an_error_and_the_arm_goes_on(speaking_backbone: Path) -> None:
    engine = sync_engine(speaking_backbone, max_prompt_length=200)
    engine.get_action(frame(0))
    for question, error in (
        ("x" * 500, "PromptError: the prompt for question 'xxx"),
        (" ", "PromptError: the question is ' '"),
    ):
        engine.ask(question)
        (answer,) = asked(engine, 0)
        assert answer.answer is None
        assert answer.error.startswith(error)
    assert engine.get_action(frame(0)).shape == (2,)


def test_the_tiny_backbone_has_no_text_queries() -> None:
    config = make_config()
    engine = engine_of(VLA0Policy(config).eval(), *make_vla0_pre_post_processors(config, make_stats()))
    assert not engine.supports_text_queries


def test_questions_on_the_thread_of_real_time_chunking(speaking_backbone: Path) -> None:
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    engine = rtc.RTCInferenceEngine(
        *parts(speaking_backbone),
        SimpleNamespace(robot_type="toy", action_features={"x": float, "y": float}),
        RTCConfig(enabled=True, execution_horizon=3),
        FEATURES,
        "wave",
        0.01,  # steps per second: no machine is late
        "cpu",
    )
    assert engine.supports_text_queries
    answers: list[Any] = []
    engine.set_answer_observer(answers.append)
    engine.start()
    engine.resume()
    try:
        for count in range(1, 4):
            engine.notify_observation(observation(50 * count))
            assert engine.ask(QUESTION_TEXT)
            deadline = time.monotonic() + 600
            while len(answers) < count and time.monotonic() < deadline:
                assert not engine.failed, engine.failure_traceback
                engine.pump_query(observation(50 * count))
                engine.get_action(None)
                time.sleep(0.01)
    finally:
        engine.stop()
    assert [(answer.error, answer.answer) for answer in answers] == [(None, ANSWER)] * 3
    assert engine.action_queue.qsize() > 0
