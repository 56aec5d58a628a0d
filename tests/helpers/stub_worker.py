"""Stands in for a shard's process where a test is about the processes: the same arguments, an answer at once.

Behaves as ``STUB_ACCIDENTS`` says: ``<first seed>:<what>[:<how often>]``, several separated by commas. What: ``die``
(killed), ``fail`` (status 1 and a message), ``half`` (killed while writing the result), ``wrong`` (an episode too
few), ``hang`` (before the first note), ``stall`` (in a step, while a thread works on), ``late`` (after the result).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.evaluations import eval_info


def note(out: Path, beat: int, activity: str, step: int = 0, played: int = 0, solved: int = 0) -> None:
    """Write what a worker writes about itself; see `evaluation.heartbeat`."""
    text = {"beat": beat, "activity": activity, "step": step, "played": played, "solved": solved}
    (out / "heartbeat.json").write_text(json.dumps(text).ljust(199) + "\n")


def chatter(out: Path) -> None:
    """Look busy."""
    while True:
        print("still here", flush=True)
        (out / "busy").write_text(str(time.time()))
        time.sleep(0.05)


def main() -> None:
    """Write what `lerobot-eval` would write, or have an accident."""
    arguments = dict(argument[2:].split("=", 1) for argument in sys.argv[3:])
    out, seed, n = Path(arguments["output_dir"]), int(arguments["seed"]), int(arguments["eval.n_episodes"])
    assert json.loads(sys.argv[2])["folder"] == str(out)
    group = arguments["env.task"]
    keys = ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID", "OMP_NUM_THREADS", "MUJOCO_GL")
    (out / "surroundings.json").write_text(
        json.dumps(
            {**{key: os.environ.get(key) for key in keys}, **arguments, "order": json.loads(sys.argv[2])}
        )
    )
    print("Running\rrolling out", "\rlast words", flush=True)
    ids = json.loads(arguments.get("env.task_ids", "[0]"))
    text = json.dumps(eval_info({(group, ids[0]): [(seed + i) % 3 == 0 for i in range(n)]}))
    for accident in filter(None, os.environ.get("STUB_ACCIDENTS", "").split(",")):
        at, what, *times = accident.split(":")
        before = len(list(out.parent.glob("attempt-*.log"))) - 1
        if int(at) != seed or before >= int(*(times or ["99"])):
            continue
        if what == "fail":
            raise RuntimeError("no such policy")
        if what == "hang":
            (out / "pid").write_text(str(os.getpid()))
            time.sleep(3600)
        if what == "stall":
            (out / "pid").write_text(str(os.getpid()))
            for step in range(5):
                note(out, step, "stepping the environments", step + 1, played=2, solved=1)
            threading.Thread(target=chatter, args=(out,), daemon=True).start()
            time.sleep(3600)
        if what == "late":
            (out / "eval_info.json").write_text(text)
            (out / "steps.parquet").write_text("late")
            note(out, 1, "exiting", played=n)
            time.sleep(3600)
        if what == "half":
            (out / "eval_info.json").write_text(text[: len(text) // 2])
            (out / "steps.parquet.part").write_text("half")
        if what == "wrong":
            (out / "eval_info.json").write_text(json.dumps(eval_info({(group, ids[0]): [True] * (n - 1)})))
            return
        os.kill(os.getpid(), signal.SIGKILL)
    (out / "eval_info.json").write_text(text)
    (out / "steps.parquet").write_text(f"steps from seed {seed} on")
    (out / "queries.json").write_text("[[2, 10.0], [1, 30.0]]")


if __name__ == "__main__":
    main()
