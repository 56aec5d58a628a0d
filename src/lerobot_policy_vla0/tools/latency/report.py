"""Writes a latency plan as a table for people, and as a dictionary for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lerobot_policy_vla0.tools.latency import budget
from lerobot_policy_vla0.tools.latency.budget import Loop, Plan, QueryTime
from lerobot_policy_vla0.tools.reporting.pages import Table, text_table

if TYPE_CHECKING:
    from lerobot_policy_vla0.tools.latency.probe import Measurement

HEADINGS = ["mode", "steps/query", "query ms", "delay d", "left", "still ms", "moving"]
HEADINGS += ["verdict", "keeps up to", "or with chunk"]


@dataclass(frozen=True)
class Line:
    """One mode and its plan."""

    name: str  # in the table
    loop: Loop
    plan: Plan
    objection: str | None  # why it is refused
    highest_fps: int | None  # that it keeps up with
    chunks: tuple[int, int] | None  # the smallest and the largest chunk that it keeps up with at loop.fps


def make_lines(time: QueryTime, loop: Loop) -> list[Line]:
    """Return a line per mode: sync as configured, sync with one step per query (ensembling), RTC, async."""
    wanted = [("sync", "sync", loop)]
    if loop.n_action_steps != 1:
        wanted.append(("sync, 1 step", "sync", replace(loop, n_action_steps=1)))
    wanted += [("rtc", "rtc", loop), ("async", "async", loop)]
    lines = []
    for name, mode, of in wanted:
        plan, objection = budget.PLANNERS[mode](time, of), budget.objection(mode, time, of)
        limits = budget.highest_fps(mode, time, of), budget.chunk_range(mode, time, of)
        lines.append(Line(name, of, plan, objection, *limits))
    return lines


def as_table(time: QueryTime, loop: Loop, lines: Sequence[Line], measurement: Measurement | None) -> str:
    """Return the plan as text."""
    said = []
    if measurement is not None:
        said.append(
            f"{measurement.decoder} decoder on {measurement.device}, chunk of {loop.chunk_size} x "
            f"{measurement.action_dim} numbers up to {measurement.n_bins}, {measurement.drafted.queries} queries "
            f"each on {measurement.frames}:"
        )
        for name, timing in (("no previous chunk", measurement.cold), ("after a chunk", measurement.drafted)):
            prompt = f"{timing.prefill_ms:.1f} ms" if timing.prefill_ms else "not told"  # by an engine
            said.append(
                f"  {name:17s} median {timing.median_ms:7.1f} ms, p95 {timing.p95_ms:7.1f}, slowest "
                f"{timing.slowest_ms:7.1f}; {timing.passes:g} passes, prompt {prompt}"
            )
        said.append("planned with the slower p95.")
        if measurement.frames.startswith("made-up"):
            said[-1] += " --dataset.root=... measures on frames of your own, where drafts fit better."
    said.append(
        f"a query takes {time.milliseconds(loop.chunk_size):.1f} ms: {time.fixed_ms:.1f} once and "
        f"{time.per_step_ms:.2f} per step of chunk_size={loop.chunk_size}; fps={loop.fps:g}"
    )
    said += ["", text_table(Table(HEADINGS, [_cells(line) for line in lines], text=(7,))), ""]
    said += _remarks(time, loop, lines)
    return "\n".join(said)


def _cells(line: Line) -> tuple[str, ...]:
    plan = line.plan
    chunks = "none"
    if line.chunks is not None:
        smallest, largest = line.chunks
        chunks = f"{smallest}+" if largest == budget.MAX_CHUNK else f"{smallest} to {largest}"
    return (
        line.name,
        str(plan.executed_steps),
        f"{plan.latency_ms:.0f}",
        str(plan.delay_steps),
        str(plan.left_steps),
        f"{plan.still_ms:.0f}",
        f"{100 * plan.moving_share:.0f} %",
        plan.verdict,
        f"{line.highest_fps} fps" if line.highest_fps else "no fps",
        chunks,
    )


def _remarks(time: QueryTime, loop: Loop, lines: Sequence[Line]) -> list[str]:
    """Return what the table does not show: why a mode is refused, what would not join, which chunk keeps up."""
    said = []
    for line in lines:
        if line.objection is not None:
            said.append(f"refused: {line.name}: {line.objection.partition(': ')[2]}")
        elif line.plan.mode != "sync" and line.plan.verdict == "pauses":
            # The chunk sizes were found with these thresholds, so an earlier query is the better answer.
            earlier = budget.threshold_fix(line.plan.mode, time, line.loop)
            if earlier is not None:
                said.append(f"{line.name}: {earlier} to keep up.")
            elif line.chunks is not None:
                said.append(f"{line.name}: chunk_size={line.chunks[0]} (by training) would keep up.")
            else:
                said.append(f"{line.name}: no chunk_size keeps up at this fps.")
        plan = line.plan
        if plan.mode == "rtc" and plan.verdict != "refused" and loop.execution_horizon < plan.delay_steps:
            said.append(
                f"rtc: the next chunk is given {plan.committed_steps} of the {plan.delay_steps} steps that pass, so it "
                f"may not join: set --inference.rtc.execution_horizon={plan.delay_steps}."
            )
    return said


def as_json(
    time: QueryTime, loop: Loop, lines: Sequence[Line], measurement: Measurement | None
) -> dict[str, Any]:
    """Return the plan as plain values."""
    return {
        "latency_ms": time.milliseconds(loop.chunk_size),
        "fixed_ms": time.fixed_ms,
        "per_step_ms": time.per_step_ms,
        "loop": asdict(loop),
        "measured": None if measurement is None else asdict(measurement),
        "modes": [
            {
                "name": line.name,
                "n_action_steps": line.loop.n_action_steps,
                **asdict(line.plan),
                "moving_share": line.plan.moving_share,
                "verdict": line.plan.verdict,
                "objection": line.objection,
                "highest_fps": line.highest_fps,
                "chunks": line.chunks,
            }
            for line in lines
        ],
    }
