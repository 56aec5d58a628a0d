"""Watches the environments of a ``lerobot-eval``: the part of `vla0 eval` that runs in the worker.

Nothing of LeRobot is patched. LeRobot builds environments with the ``create_envs`` of the config class that
``--env.type`` names, and packages may register config classes. So a subclass of that class is registered under another
name, whose ``create_envs`` puts a `WatchedEnv` around each vector environment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.tools.evaluation import heartbeat
from lerobot_policy_vla0.tools.evaluation.heartbeat import Activity, Heartbeat
from lerobot_policy_vla0.tools.evaluation.queries import Query

_PREFIX = "vla0_watched_"  # of the registered name


@dataclass(frozen=True)
class WatchOrder:
    """What a worker is asked to do beside evaluating."""

    folder: str  # of the attempt: where `lerobot-eval` writes, too

    def as_argument(self) -> str:
        """Return it as the worker's first argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> WatchOrder:
        """Return what `as_argument` wrote."""
        return cls(**json.loads(text))


class Watch:
    """What is noted about all environments of one worker."""

    def __init__(self, order: WatchOrder) -> None:
        self.order = order
        self.heartbeat = Heartbeat(Path(order.folder) / heartbeat.FILE_NAME)
        self.played = 0  # episodes that ended
        self.solved = 0

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
            self.heartbeat.beat(Activity.UNWATCHED)
            return kind
        watch = self

        class WatchedConfig(original):  # type: ignore[misc]
            """The same options and environments."""

            @property
            def type(self) -> str:
                return kind

            def create_envs(self, *args: Any, **kwargs: Any) -> dict[str, dict[int, WatchedEnv]]:
                watch.heartbeat.beat(Activity.BUILDING)
                built = super().create_envs(*args, **kwargs)
                watch.heartbeat.beat(Activity.LOADING)
                return {
                    group: {task_id: WatchedEnv(env, watch) for task_id, env in tasks.items()}
                    for group, tasks in built.items()
                }

        EnvConfig.register_subclass(_PREFIX + kind, WatchedConfig)
        return _PREFIX + kind

    def note_query(self, query: Query) -> None:
        """Note that the policy's model answered."""
        self.heartbeat.again(self.heartbeat.note.activity)

    def finish(self) -> None:
        """Note that ``lerobot-eval`` is done."""
        self.heartbeat.beat(Activity.EXITING, played=self.played, solved=self.solved)


class WatchedEnv:
    """A vector environment that notes what is done with it; everything else is the environment's own."""

    def __init__(self, env: Any, watch: Watch) -> None:
        self._env, self._watch = env, watch
        self._step, self._max_steps = 0, None
        self._playing: NDArray[np.bool_] = np.zeros(env.num_envs, bool)  # episodes that have not ended
        self._solved = np.zeros(env.num_envs, bool)

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
        result = self._env.call(name, *args, **kwargs)
        if name == "_max_episode_steps":  # LeRobot asks for it after every reset
            self._max_steps = result[0]
        return result

    def reset(self, **kwargs: Any) -> Any:
        """Begin an episode in every environment."""
        self._step = 0
        self._playing[:], self._solved[:] = True, False
        self._beat(Activity.RESETTING)
        result = self._env.reset(**kwargs)
        self._beat(Activity.ACTING)
        return result

    def step(self, actions: NDArray[Any]) -> Any:
        """Execute one action ``(B, D)`` in every environment."""
        self._step += 1
        self._beat(Activity.STEPPING)
        result = self._env.step(actions)
        _, _, terminated, truncated, info = result
        self._solved |= self._playing & successes(info, self.num_envs)
        self._playing &= ~(terminated | truncated)
        if self._step == self._max_steps:  # LeRobot ends the episode, whatever the environments say
            self._playing[:] = False
        if not self._playing.any():
            self._watch.played += self.num_envs
            self._watch.solved += int(self._solved.sum())
            self._beat(Activity.BETWEEN)
        else:
            self._beat(Activity.ACTING)
        return result


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
