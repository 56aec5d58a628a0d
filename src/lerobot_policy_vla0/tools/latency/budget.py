"""Computes what a query's time allows a robot to do: control rate, chunk and mode.

The rules are LeRobot 0.6.1's own: `lerobot-rollout`'s sync and RTC engines (``rollout/inference``,
``policies/rtc/action_queue.py``) and the asynchronous client (``async_inference/robot_client.py``). The tests compare
them with this module.

A *step* is one control step, ``1 / fps`` seconds. In all modes a query takes ``d = ceil(latency * fps)`` steps.
Meanwhile the robot executes what is left of the previous chunk, and then stands still at its last goal. What happens
between two queries repeats, so that one such cycle is enough to plan with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from lerobot_policy_vla0.errors import ConfigError

#: The highest control rate and the largest chunk size that are searched.
MAX_FPS, MAX_CHUNK = 240, 400


@dataclass(frozen=True)
class QueryTime:
    """How many milliseconds a query takes, as a function of the chunk."""

    fixed_ms: float  # camera images, prompt and processors
    per_step_ms: float  # decoding one step of the chunk

    def __post_init__(self) -> None:
        for name in ("fixed_ms", "per_step_ms"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and at least 0 milliseconds.")

    def milliseconds(self, chunk_size: int) -> float:
        """Return the time of a query for a chunk of ``chunk_size`` steps.

        >>> QueryTime(fixed_ms=50, per_step_ms=10).milliseconds(8)
        130
        """
        return self.fixed_ms + self.per_step_ms * chunk_size


@dataclass(frozen=True)
class Loop:
    """The control loop around a policy. The defaults are LeRobot's."""

    fps: float  # control steps per second
    chunk_size: int  # steps predicted per query
    n_action_steps: int  # sync: steps executed per query
    execution_horizon: int = 10  # RTC: rows of the running chunk that a query is given
    queue_threshold: int = 30  # RTC: it queries when no more steps than this are left
    chunk_size_threshold: float = (
        0.5  # async: it sends an observation when no larger share of a chunk is left
    )
    network_ms: float = 0.0  # async: the way to the policy server and back, for one observation

    def __post_init__(self) -> None:
        for name in ("fps", "chunk_size", "n_action_steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and above 0.")
        if self.n_action_steps > self.chunk_size:
            raise ConfigError(
                f"n_action_steps={self.n_action_steps} is more than chunk_size={self.chunk_size}: only predicted "
                "steps can be executed. Lower n_action_steps."
            )
        for name in ("execution_horizon", "queue_threshold"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 steps.")
        if not 0 <= self.chunk_size_threshold <= 1:
            raise ConfigError(f"chunk_size_threshold={self.chunk_size_threshold} must lie in [0, 1].")
        if not 0 <= self.network_ms < math.inf:
            raise ConfigError(
                f"network_ms={self.network_ms} must be finite and at least 0 milliseconds (there and back)."
            )


@dataclass(frozen=True)
class Plan:
    """What a mode does with a query's time, in the cycle that repeats."""

    mode: str  # "sync", "rtc" or "async"
    latency_ms: float  # time of a query, the network's included
    delay_steps: int  # control steps d that pass meanwhile
    left_steps: int  # steps of a chunk still to be executed when it arrives, if no earlier one was missed
    executed_steps: int  # steps executed per query, 0 if the robot never moves
    still_ms: float  # time per query without a new goal; RTC then skips as many steps
    committed_steps: int  # RTC: of the d steps, those with which the next chunk begins, so that it joins
    fps: float  # of the loop

    @property
    def moving_share(self) -> float:
        """Share of the time, in [0, 1], in which the robot gets new goals."""
        moving = 1e3 * self.executed_steps / self.fps
        return moving / (moving + self.still_ms) if moving else 0.0

    @property
    def verdict(self) -> str:
        """``keeps up``, ``pauses`` (stands still between chunks), or ``refused`` (never moves, or rather stands)."""
        if self.moving_share < 0.5:
            return "refused"
        return "pauses" if self.still_ms > 0 else "keeps up"


def delay_steps(latency_ms: float, fps: float) -> int:
    """Return the control steps that pass during a query, rounded up as LeRobot's RTC does.

    >>> delay_steps(130, 30), delay_steps(33, 30), delay_steps(0, 30)
    (4, 1, 0)
    """
    return math.ceil((latency_ms / 1e3) / (1.0 / fps))


def plan_sync(time: QueryTime, loop: Loop) -> Plan:
    """Plan ``--inference.type=sync``: the loop waits for each query, then executes ``n_action_steps``.

    The step that queries takes the query's time instead of ``1 / fps``. With ``n_action_steps=1`` (ensembling) that is
    every step.
    """
    latency, steps = time.milliseconds(loop.chunk_size), loop.n_action_steps
    still = max(0.0, latency - 1e3 / loop.fps)
    return Plan("sync", latency, delay_steps(latency, loop.fps), steps, steps, still, 0, loop.fps)


def plan_rtc(time: QueryTime, loop: Loop) -> Plan:
    """Plan ``--inference.type=rtc``: a thread queries while the loop executes the previous chunk.

    LeRobot drops a new chunk's first ``d`` steps, and queries again as soon as ``queue_threshold`` or fewer of the
    others are left. These have to last for ``d`` steps. With ``chunk_size >= 2 d`` and ``queue_threshold >= d`` the
    robot never waits; with ``chunk_size <= d`` it never moves. A query that begins just after a step's action was taken
    waits one step less than planned here.
    """
    latency = time.milliseconds(loop.chunk_size)
    delay = delay_steps(latency, loop.fps)
    left = max(0, loop.chunk_size - delay)
    queued = min(left, loop.queue_threshold)  # when the next query begins
    starved = max(0, delay - queued)
    executed, committed = (left - queued) + min(delay, queued), min(delay, queued, loop.execution_horizon)
    return Plan("rtc", latency, delay, left, executed, 1e3 * starved / loop.fps, committed, loop.fps)


def plan_async(time: QueryTime, loop: Loop) -> Plan:
    """Plan `vla0 serve` and LeRobot's robot client, with ``actions_per_chunk`` equal to ``chunk_size``.

    The client labels an observation with the step it executed last. When the chunk arrives, the client drops every
    action up to the one it has executed, so a chunk of 1 never moves the robot. It sends an observation at each step
    with ``floor(threshold * chunk_size)`` or fewer steps left, which have to last for ``d - 1`` more. While the server
    computes, it keeps the newest observation, so the next chunk can be a step older than its query took. With
    ``chunk_size >= 2 d + 1`` the robot never waits. ``still_ms`` is the longest possible wait.
    """
    n = loop.chunk_size
    latency = time.milliseconds(n) + loop.network_ms
    delay = max(1, delay_steps(latency, loop.fps))
    threshold = max(k for k in range(n + 1) if k / n <= loop.chunk_size_threshold)
    left = max(0, n - 1 - delay)
    # Executed and starved steps per query. If a chunk is too short, queries follow one another, and each brings what
    # the previous one left of n - 1 steps. If the threshold is too low, the queue runs empty once per chunk.
    cycles = [(max(0, left - threshold) + delay, 0)]
    if n == 1:
        cycles = [(0, delay)]
    else:
        gained = min(delay, max(1, (n - 1) // 2))
        cycles.append((gained, delay - gained))
        if n - 1 > threshold:
            cycles.append((n - 1 - threshold, max(0, delay - 1 - threshold)))
    starving = [cycle for cycle in cycles if cycle[1]] or cycles[:1]
    executed, starved = min(starving, key=lambda cycle: cycle[0] / sum(cycle))
    return Plan("async", latency, delay, left, executed, 1e3 * starved / loop.fps, 0, loop.fps)


PLANNERS: dict[str, Callable[[QueryTime, Loop], Plan]]
PLANNERS = {"sync": plan_sync, "rtc": plan_rtc, "async": plan_async}


def highest_fps(mode: str, time: QueryTime, loop: Loop, *, keeping_up: bool = True) -> int | None:
    """Return the highest whole control rate that a mode keeps up with (or at least is not refused at), or None."""
    return next(
        (fps for fps in range(MAX_FPS, 0, -1) if _fits(mode, time, replace(loop, fps=fps), keeping_up)), None
    )


def chunk_range(mode: str, time: QueryTime, loop: Loop) -> tuple[int, int] | None:
    """Return the smallest and the largest chunk size that a mode keeps up with at ``loop.fps``, or None.

    A longer chunk lasts longer and takes longer to decode. RTC and async have a smallest one, if any; sync has a
    largest one. In this search sync executes whole chunks.
    """
    sizes = [
        size
        for size in range(1, MAX_CHUNK + 1)
        if _fits(mode, time, replace(loop, chunk_size=size, n_action_steps=size), True)
    ]
    return (sizes[0], sizes[-1]) if sizes else None


def threshold_fix(mode: str, time: QueryTime, loop: Loop) -> str | None:
    """Return the option with which a mode would query earlier and keep up, or None if that would not help."""
    delay = PLANNERS[mode](time, loop).delay_steps
    if mode == "rtc":
        option, value = "--inference.queue_threshold", float(delay)
        earlier = replace(loop, queue_threshold=max(delay, loop.queue_threshold))
    else:
        option = "--chunk_size_threshold"
        value = min(1.0, math.ceil(100 * (delay - 1) / loop.chunk_size) / 100)
        earlier = replace(loop, chunk_size_threshold=max(value, loop.chunk_size_threshold))
    if mode == "sync" or _fits(mode, time, loop, True) or not _fits(mode, time, earlier, True):
        return None
    return f"set {option} to {value:g}"


def _fits(mode: str, time: QueryTime, loop: Loop, keeping_up: bool) -> bool:
    verdict = PLANNERS[mode](time, loop).verdict
    return verdict == "keeps up" or (not keeping_up and verdict == "pauses")


def objection(mode: str, time: QueryTime, loop: Loop) -> str | None:
    """Return why a mode is refused, with both values and the fix, or None if it is not."""
    plan = PLANNERS[mode](time, loop)
    if plan.verdict != "refused":
        return None
    steps = f"{plan.delay_steps} control step{'s' * (plan.delay_steps != 1)} at fps={loop.fps:g}"
    took = f"a query takes {plan.latency_ms:.0f} ms, {steps}"
    if mode == "sync":
        what = (
            f"{took}, for n_action_steps={loop.n_action_steps}: the robot would stand still for "
            f"{plan.still_ms:.0f} ms of every {1e3 * plan.executed_steps / loop.fps + plan.still_ms:.0f}"
        )
    elif plan.executed_steps == 0:
        what = f"{took}, and the chunk has no more than chunk_size={loop.chunk_size}: " + (
            "LeRobot drops as many from its beginning, so the robot would never move"
            if mode == "rtc"
            else "LeRobot's client drops the first, so the robot would never move again"
        )
    else:
        still = round(plan.still_ms * loop.fps / 1e3)
        what = (
            f"{took}, and chunk_size={loop.chunk_size} leaves {plan.executed_steps} to execute meanwhile: the robot "
            f"would stand still for {still} of every {still + plan.executed_steps} steps"
        )
    return f"{mode}: {what}. {_fix(mode, time, loop)}"


def _fix(mode: str, time: QueryTime, loop: Loop) -> str:
    """Return what would make a refused mode move, as a sentence."""
    fixes = []
    if mode == "sync":
        steps = range(loop.n_action_steps, loop.chunk_size + 1)
        enough = [n for n in steps if _fits(mode, time, replace(loop, n_action_steps=n), False)]
        if enough:
            fixes.append(
                f"set --policy.n_action_steps to {enough[0]} or more (and --policy.ensemble_n_chunks to 1)"
            )
    earlier = threshold_fix(mode, time, loop)
    if earlier is not None:
        fixes.append(earlier)
    for keeping_up in (True, False):
        fps = highest_fps(mode, time, loop, keeping_up=keeping_up)
        if fps is not None and fps < loop.fps:
            fixes.append(f"lower --fps to {fps}{'' if keeping_up else ' (with pauses)'}")
            break
    chunks = chunk_range(mode, time, loop)
    if chunks is not None and chunks[0] > loop.chunk_size:
        fixes.append(f"train with --policy.chunk_size={chunks[0]} or more")
    others = [m for m in PLANNERS if m != mode and PLANNERS[m](time, loop).verdict != "refused"]
    if others:
        fixes.append(f"use {' or '.join(others)}")
    if not fixes:
        return "Decode faster: a faster device, or --policy.param_dtype=bfloat16."
    return f"{fixes[0][0].upper()}{'; or '.join(fixes)[1:]}."
