"""How many robots one `vla0 serve` answers: chunks per second and latency of 1, 4 and 16 robots at once.

    python benchmarks/serving.py --policy CHECKPOINT --dataset ROOT [--robots 1 4 16] [--seconds 20] [--output FILE]
    python benchmarks/serving.py --policy CHECKPOINT --dataset ROOT --soak 1000000   # does memory grow?

The server is the command itself, in a process of its own. The robots are connections of one client process, which plays
recorded episodes, an episode per robot and a query every ``n_action_steps`` frames. ``busy`` robots ask again at once:
what the model can do. ``paced`` robots ask once they have executed their actions, at the data set's rate: what robots
do. The client takes some of the same cores. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import aiohttp
import numpy as np
from hardware import hardware
from lerobot.datasets import LeRobotDataset

from lerobot_policy_vla0.tools.loading import load_config
from lerobot_policy_vla0.tools.serving.messages import pack_for_openpi

PORT = 8765
MAX_BATCH = 16
STARTING_S = 300.0


@dataclass
class Robots:
    """What a number of robots got."""

    latencies: list[float] = field(default_factory=list)  # seconds
    answered: int = 0
    late: int = 0  # paced robots: answers that came after the actions before them had been executed


def messages(policy: Path, dataset: Path, robots: int) -> tuple[list[list[bytes]], float]:
    """Return each robot's packed observations, and the seconds that the actions of an answer last."""
    config = load_config(policy, [])
    data = LeRobotDataset("local/benchmark", root=dataset)
    packed = []
    for episode in range(robots):
        first = data.meta.episodes[episode % data.num_episodes]["dataset_from_index"]
        last = data.meta.episodes[episode % data.num_episodes]["dataset_to_index"]
        frames = [data[index] for index in range(first, last, config.n_action_steps)]
        packed.append([pack_for_openpi(as_message(frame, config)) for frame in frames])
    return packed, config.n_action_steps / data.fps


def as_message(frame: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return a frame of a data set as a client sends it."""
    message: dict[str, Any] = {
        key: (frame[key].permute(1, 2, 0) * 255).round().byte().numpy() for key in config.camera_keys
    }
    if "observation.state" in frame:
        message["observation.state"] = frame["observation.state"].numpy()
    return message | {"task": frame["task"]}


@contextmanager
def server(policy: Path, options: list[str]) -> Iterator[subprocess.Popen[Any]]:
    """Run ``vla0 serve``."""
    command = [sys.executable, "-m", "lerobot_policy_vla0.tools.commands", "serve", "--no-grpc"]
    arguments = [f"--policy.path={policy}", f"--websocket-port={PORT}", f"--max-batch={MAX_BATCH}", *options]
    with TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            deadline = time.monotonic() + STARTING_S
            while True:
                log.seek(0)
                said = log.read()
                if "Ctrl-C ends this" in said:
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {said[-2000:]}")
                time.sleep(0.2)
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def resident_megabytes(process: subprocess.Popen[Any]) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


async def drive(packed: list[list[bytes]], *, stop: Any, pace: float | None, robots: Robots) -> None:
    """Let all robots ask until ``stop(robots)`` says so."""

    async def one(session: aiohttp.ClientSession, own: list[bytes], delay: float) -> None:
        async with session.ws_connect(f"http://127.0.0.1:{PORT}", max_msg_size=0) as socket:
            await socket.receive()
            await asyncio.sleep(delay)
            step, due = 0, time.perf_counter()
            while not stop(robots):
                began = time.perf_counter()
                await socket.send_bytes(own[step % len(own)])
                answer = await socket.receive()
                if answer.type is not aiohttp.WSMsgType.BINARY:
                    raise RuntimeError(f"the server says {answer.data!r}")
                now = time.perf_counter()
                robots.latencies.append(now - began)
                robots.answered += 1
                step += 1
                if pace is not None:
                    due += pace
                    robots.late += now > due
                    due = max(due, now)
                    await asyncio.sleep(due - now)

    async with aiohttp.ClientSession() as session:
        spread = (pace or 0.0) / len(packed)  # robots do not begin together
        await asyncio.gather(*(one(session, own, k * spread) for k, own in enumerate(packed)))


def measure(packed: list[list[bytes]], seconds: float, pace: float | None) -> dict[str, Any]:
    """Return what some robots got within a time, after two seconds that are not counted."""
    asyncio.run(drive(packed, stop=until(2.0), pace=pace, robots=Robots()))
    robots = Robots()
    began = time.perf_counter()
    asyncio.run(drive(packed, stop=until(seconds), pace=pace, robots=robots))
    spent = time.perf_counter() - began
    p50, p99 = np.percentile(robots.latencies, [50, 99]) * 1e3
    return {
        "robots": len(packed),
        "pace": "busy" if pace is None else "paced",
        "chunks_per_second": robots.answered / spent,
        "latency_ms": {"p50": float(p50), "p99": float(p99)},
        "late_share": robots.late / robots.answered if pace is not None else None,
    }


def until(seconds: float) -> Any:
    """Return a stop that says so after some seconds."""
    end = time.perf_counter() + seconds
    return lambda _: time.perf_counter() > end


def soak(packed: list[list[bytes]], chunks: int, process: subprocess.Popen[Any]) -> dict[str, Any]:
    """Serve many chunks in twenty parts, with new connections in each; return the memory after each."""
    part = max(chunks // 20, 1)
    memory, began = [resident_megabytes(process)], time.perf_counter()
    served = 0
    while served < chunks:
        robots = Robots()
        asyncio.run(drive(packed, stop=lambda r: r.answered >= part, pace=None, robots=robots))
        served += robots.answered
        memory.append(resident_megabytes(process))
        print(f"{served:>9,} chunks, {memory[-1]:.1f} MB, {time.perf_counter() - began:.0f} s", flush=True)
    half = memory[len(memory) // 2 :]
    slope = statistics.linear_regression(range(len(half)), half).slope if len(half) > 1 else 0.0
    return {
        "chunks": served,
        "seconds": time.perf_counter() - began,
        "resident_mb": memory,
        "mb_per_100k_chunks_second_half": slope * 100_000 / part,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of recorded demonstrations")
    parser.add_argument("--robots", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    parser.add_argument("--soak", type=int, metavar="N", help="serve N chunks to 16 robots instead")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    arguments, options = parser.parse_known_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends too
    result: dict[str, Any] = {"benchmark": "serving", **hardware(), "options": options}
    count = MAX_BATCH if arguments.soak else max(arguments.robots)
    packed, lasts = messages(arguments.policy, arguments.dataset, count)
    with server(arguments.policy, options) as process:
        if arguments.soak:
            result["soak"] = soak(packed, arguments.soak, process)
        else:
            rows = [
                measure(packed[:number], arguments.seconds, pace)
                for pace in (None, lasts)
                for number in arguments.robots
            ]
            print(f"an answer's actions last {lasts * 1e3:.0f} ms")
            print("robots  pace   chunks/s   of one   p50 ms   p99 ms   late")
            for row in rows:
                alone = next(r for r in rows if r["pace"] == row["pace"])["chunks_per_second"]
                row["times_one"] = row["chunks_per_second"] / alone
                late = "" if row["late_share"] is None else f"{row['late_share']:.1%}"
                print(
                    f"{row['robots']:>6}  {row['pace']:<5} {row['chunks_per_second']:>9.1f} {row['times_one']:>8.2f}"
                    f" {row['latency_ms']['p50']:>8.1f} {row['latency_ms']['p99']:>8.1f} {late:>6}"
                )
            result |= {
                "answer_lasts_s": lasts,
                "rows": rows,
                "server_resident_mb": resident_megabytes(process),
            }
    text = json.dumps(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
