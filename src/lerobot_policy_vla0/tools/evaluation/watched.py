"""Watches the environments of a ``lerobot-eval`` and notes every step: the part of `vla0 eval` that runs in the worker.

Nothing of LeRobot is patched. LeRobot builds environments with the ``create_envs`` of the config class that
``--env.type`` names, and packages may register config classes. So a subclass of that class is registered under another
name, whose ``create_envs`` puts a `WatchedEnv` around each vector environment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation import heartbeat, steps
from lerobot_policy_vla0.tools.evaluation.heartbeat import Activity, Heartbeat
from lerobot_policy_vla0.tools.evaluation.perturbation import Perturbation, camera_direction
from lerobot_policy_vla0.tools.evaluation.queries import Query
from lerobot_policy_vla0.tools.evaluation.steps import Step, StepWriter

_PREFIX = "vla0_watched_"  # of the registered name


@dataclass(frozen=True)
class WatchOrder:
    """What a worker is asked to do beside evaluating."""

    folder: str  # of the attempt: where `lerobot-eval` writes, too
    n_episodes: int  # of every task
    first_episode: int = 0  # its index in the undivided evaluation
    task: tuple[str, int] | None = None  # the shard's in the undivided evaluation; None: as LeRobot names it
    perturbation: Perturbation | None = None  # of what the policy sees

    def as_argument(self) -> str:
        """Return it as the worker's first argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> WatchOrder:
        """Return what `as_argument` wrote."""
        raw = json.loads(text)
        if raw["task"] is not None:
            raw["task"] = tuple(raw["task"])
        if raw["perturbation"] is not None:
            raw["perturbation"] = Perturbation(**raw["perturbation"])
        return cls(**raw)


class Watch:
    """What is noted about all environments of one worker."""

    def __init__(self, order: WatchOrder) -> None:
        self.order = order
        self.perturbation = order.perturbation or Perturbation()
        self.heartbeat = Heartbeat(Path(order.folder) / heartbeat.FILE_NAME)
        self.steps: StepWriter | None = None  # as soon as there are environments
        self.played = 0  # episodes that ended
        self.solved = 0
        self.query: Query | None = None  # since the last step

    def arguments(self, arguments: Sequence[str]) -> list[str]:
        """Return arguments of ``lerobot-eval`` that evaluate the same, watched.

        Arguments that LeRobot will refuse are returned unchanged. Packages that register environments are imported, as
        LeRobot does later.
        """
        from lerobot.configs import parser
        from lerobot.envs.configs import EnvConfig
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
        for package in parser.parse_plugin_args(parser.PLUGIN_DISCOVERY_SUFFIX, list(arguments)).values():
            parser.load_plugin(package)
        kinds = [argument.removeprefix("--env.type=") for argument in arguments if "--env.type=" in argument]
        if not kinds or kinds[0] not in EnvConfig.get_known_choices():
            return list(arguments)
        name = self._register(kinds[0])
        return [f"--env.type={name}" if a.startswith("--env.type=") else a for a in arguments]

    def _register(self, kind: str) -> str:
        """Register the config of watched environments of a kind; return its name."""
        from lerobot.envs.configs import EnvConfig, HubEnvConfig

        original: Any = EnvConfig.get_choice_class(kind)
        if issubclass(original, HubEnvConfig):
            if self.perturbation != Perturbation():
                raise EvaluationError(
                    f"--perturb {self.perturbation.label}: --env.type={kind} builds its environment with code from the "
                    "Hub, which cannot be perturbed"
                )
            self.heartbeat.beat(Activity.UNWATCHED)
            return kind
        watch = self

        class WatchedConfig(original):
            """The same options and environments."""

            @property
            def type(self) -> str:
                return kind

            def create_envs(self, *args: Any, **kwargs: Any) -> dict[str, dict[int, WatchedEnv]]:
                watch.heartbeat.beat(Activity.BUILDING)
                built = super().create_envs(*args, **kwargs)
                if watch.perturbation.camera:
                    from lerobot_policy_vla0.tools.libero.camera import move_cameras

                    distance = watch.perturbation.camera
                    for tasks in built.values():
                        for task_id, env in tasks.items():
                            tasks[task_id] = move_cameras(env, distance, camera_direction)
                watch.steps = StepWriter(Path(watch.order.folder) / steps.FILE_NAME)
                watch.heartbeat.beat(Activity.LOADING)
                return {
                    group: {
                        task_id: WatchedEnv(env, watch, watch.order.task or (group, task_id), self.fps)
                        for task_id, env in tasks.items()
                    }
                    for group, tasks in built.items()
                }

        EnvConfig.register_subclass(_PREFIX + kind, WatchedConfig)
        return _PREFIX + kind

    def note_query(self, query: Query) -> None:
        """Note that the policy's model answered."""
        self.query = query
        self.heartbeat.again(self.heartbeat.note.activity)

    def finish(self) -> None:
        """Note that ``lerobot-eval`` is done, and complete the file of steps."""
        if self.steps is not None:
            self.steps.finish()
        self.heartbeat.beat(Activity.EXITING, played=self.played, solved=self.solved)


class WatchedEnv:
    """A vector environment that notes what is done with it, and perturbs what it shows; all else is its own.

    Args:
        env: the environment, of ``B`` episodes at a time.
        watch: of the worker.
        task: LeRobot's name of the task and its index, in the undivided evaluation.
        fps: control steps per second of simulated time.
    """

    def __init__(self, env: Any, watch: Watch, task: tuple[str, int], fps: float) -> None:
        self._env, self._watch, self._task, self._fps = env, watch, task, fps
        self._step, self._max_steps = 0, None
        self._batches = 0  # resets so far
        self._seeds: list[int | None] = [None] * env.num_envs
        self._began = 0.0
        self._playing: NDArray[np.bool_] = np.zeros(env.num_envs, bool)  # episodes that have not ended
        self._solved = np.zeros(env.num_envs, bool)
        self._n_counted = 0  # episodes of this batch that count
        self._rows: list[Step] = []  # of the episodes being played
        if isinstance(env, gym.vector.SyncVectorEnv):  # an instruction without a paraphrase is an error now
            with suppress(AttributeError, NotImplementedError):
                self.call("task_description")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def _beat(self, activity: Activity) -> None:
        watch = self._watch
        watch.heartbeat.beat(activity, step=self._step, played=watch.played, solved=watch.solved)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method or read an attribute of every environment."""
        if name == "render":
            with self._watch.heartbeat.during(Activity.RENDERING):
                return self._env.call(name, *args, **kwargs)
        if name in ("task_description", "task") and self._watch.perturbation.instruction:
            return self._other_words(name)
        result = self._env.call(name, *args, **kwargs)
        if name == "_max_episode_steps":  # LeRobot asks for it after every reset
            self._max_steps = result[0]
        return result

    def _other_words(self, name: str) -> tuple[str, ...]:
        """Return the paraphrased instructions. LeRobot asks for ``task`` where there is no ``task_description``."""
        try:
            instructions = self._env.call(name)
        except (AttributeError, NotImplementedError):
            if name == "task":  # LeRobot would go on without an instruction
                raise EvaluationError(
                    "--perturb instruction: the environment has no instruction that could be paraphrased"
                ) from None
            raise
        return tuple(self._watch.perturbation.task(one) for one in instructions)

    def reset(self, *, seed: Sequence[int] | None = None, **kwargs: Any) -> Any:
        """Begin an episode in every environment."""
        self._step, self._rows, self._watch.query = 0, [], None
        self._seeds = [None] * self.num_envs if seed is None else list(seed)
        # The last batch may be larger than the number of episodes left: LeRobot plays more and forgets them.
        first = self._batches * self.num_envs
        self._batches += 1
        self._playing[:] = first + np.arange(self.num_envs) < self._watch.order.n_episodes
        self._solved[:] = False
        self._n_counted = int(self._playing.sum())
        self._beat(Activity.RESETTING)
        observation, info = self._env.reset(seed=seed, **kwargs)
        self._beat(Activity.ACTING)
        self._began = time.monotonic()
        return self._watch.perturbation.observation(observation, self._seeds, 0), info

    def step(self, actions: NDArray[Any]) -> Any:
        """Execute one action ``(B, D)`` in every environment."""
        self._step += 1
        self._beat(Activity.STEPPING)
        observation, rewards, terminated, truncated, info = self._env.step(actions)
        solved = successes(info, self.num_envs)
        self._note_step(actions, rewards, solved)
        self._solved |= self._playing & solved
        self._playing &= ~(terminated | truncated)
        if self._step == self._max_steps:  # LeRobot ends the episode, whatever the environments say
            self._playing[:] = False
        if self._playing.any():
            self._beat(Activity.ACTING)
        else:
            self._end_episodes()
        shown = self._watch.perturbation.observation(observation, self._seeds, self._step)
        return shown, rewards, terminated, truncated, info

    def _note_step(self, actions: NDArray[Any], rewards: NDArray[Any], solved: NDArray[np.bool_]) -> None:
        """Add a row for every episode that has not ended."""
        watch, passed = self._watch, time.monotonic() - self._began
        first = watch.order.first_episode + (self._batches - 1) * self.num_envs
        query, watch.query = watch.query, None
        for i in np.flatnonzero(self._playing).tolist():
            row = Step(
                *self._task,
                episode=first + i,
                seed=self._seeds[i],
                step=self._step - 1,
                time=(self._step - 1) / self._fps,
                wall_time=passed,
                action=actions[i].tolist(),
                reward=float(rewards[i]),
                success=bool(solved[i]),
                passes=query.passes if query else None,
                query_ms=query.milliseconds if query else None,
            )
            self._rows.append(row)

    def _end_episodes(self) -> None:
        watch = self._watch
        if watch.steps is not None and self._rows:
            watch.steps.write(self._rows)
        self._rows = []
        watch.played += self._n_counted
        watch.solved += int(self._solved.sum())
        self._n_counted, self._solved[:] = 0, False  # LeRobot may go on with episodes that it will forget
        self._beat(Activity.BETWEEN)


def successes(info: dict[str, Any], n_envs: int) -> NDArray[np.bool_]:
    """Return which environments ``(B,)`` LeRobot takes for solved after a step, from the step's ``info``.

    >>> successes({"is_success": np.array([True, False])}, 2).tolist()
    [True, False]
    >>> successes({"final_info": {"is_success": True}, "is_success": [False]}, 1).tolist()
    [True]
    """
    where = info.get("final_info", info)
    if isinstance(where, dict):
        found: Any = where.get("is_success", False)
    else:  # gymnasium below 1.0
        found = [isinstance(one, dict) and bool(one.get("is_success")) for one in where]
    return np.broadcast_to(np.asarray(found, dtype=bool), (n_envs,))
