"""Everything an owner of a GPU should know about this package on it, in eight minutes.

    python benchmarks/gpu.py [--minutes 8] [--stages passes,chunk] [--vlm qwen2.5-vl-3b-random | tiny] [--out FILE]

Every stage runs in a process of its own with a time limit. One that fails or takes too long is reported, with the end
of what it printed, and the next one runs. The results' file is written again after every stage. Prints the floor, the
figures stage by stage and, last, one line of JSON. Needs no LeRobot command and no network (docs/gpu.md); without a GPU
it measures nothing unless ``--vlm tiny`` asks for a trial run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu_parts.figures import NOT_MEASURED, PENDING, Figures

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
#: Lines of a failed stage's output that are kept.
_TAIL = 40
#: Repeats of a short thing that is timed.
_REPEATS = 20


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        seconds: its share of eight minutes; what stages before it left over comes on top.
        run: measures, given the figures, the backbone's name and how often short things are repeated.
        what: for the table.
    """

    seconds: int
    run: Callable[[Figures, str, int], None]
    what: str


# What a stage imports is imported in its own process: torch alone takes seconds, and a GPU remembers who used it.


def _versions(figures: Figures, vlm: str, repeats: int) -> None:
    from gpu_parts import machine

    machine.versions(figures, vlm)


def _tests(figures: Figures, vlm: str, repeats: int) -> None:
    from gpu_parts import machine

    machine.tests(figures)


def _passes(figures: Figures, vlm: str, repeats: int) -> None:
    from gpu_parts import acting

    acting.passes(figures, vlm, repeats)


def _chunk(figures: Figures, vlm: str, repeats: int) -> None:
    from gpu_parts import acting

    acting.chunk(figures, vlm, repeats)


def _kernels(figures: Figures, vlm: str, repeats: int) -> None:
    from gpu_parts import acting

    acting.kernels(figures, vlm, repeats)


def _train(figures: Figures, vlm: str, repeats: int) -> None:
    from gpu_parts import learning

    learning.full(figures, vlm, max(repeats // 4, 1))


def _lora(figures: Figures, vlm: str, repeats: int) -> None:
    if _skipped(figures, ["lora", "lora_no_checkpointing"], lacking("peft")):
        return
    from gpu_parts import learning

    learning.lora(figures, vlm, max(repeats // 4, 1))


def _qlora(figures: Figures, vlm: str, repeats: int) -> None:
    if _skipped(figures, ["qlora"], lacking("bitsandbytes", "peft", gpu=True)):
        return
    from gpu_parts import learning

    learning.qlora(figures, vlm, max(repeats // 4, 1))


def _flash(figures: Figures, vlm: str, repeats: int) -> None:
    modules = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
    figures.plan(modules)
    for kind, module in modules.items():
        if _skipped(figures, [kind], lacking(module, gpu=True)):
            continue
        from gpu_parts import learning

        learning.one_step(figures, vlm, max(repeats // 4, 1), kind, {"attn_implementation": kind})


def lacking(*modules: str, gpu: bool = False) -> str:
    """Return why something cannot be measured here, before anything heavy is imported; nothing if it can."""
    for module in modules:
        if find_spec(module) is None:
            return f"{module} is not installed"
    if gpu:
        import torch

        if not torch.cuda.is_available():
            return "it needs a GPU"
    return ""


def _skipped(figures: Figures, names: Sequence[str], reason: str) -> bool:
    for name in names if reason else ():
        figures.skip(name, reason)
    return bool(reason)


def _compile(figures: Figures, vlm: str, repeats: int) -> None:
    from gpu_parts import learning

    learning.compiled(figures, vlm, max(repeats // 4, 1))


STAGES = {
    "versions": Stage(30, _versions, "software, device, bandwidth, floor"),
    "tests": Stage(90, _tests, "pytest -m gpu"),
    "passes": Stage(60, _passes, "vision tower, prefill, passes by width, batch 1 and 8"),
    "chunk": Stage(70, _chunk, "whole chunks with the demo's acceptance, and transformers' generate"),
    "kernels": Stage(40, _kernels, "kernels and the gaps between them"),
    "train": Stage(60, _train, "training step, all weights in bfloat16"),
    "lora": Stage(30, _lora, "training step, adapters on bfloat16"),
    "qlora": Stage(20, _qlora, "training step, adapters on four bits"),
    "flash": Stage(20, _flash, "training step with flash attention"),
    "compile": Stage(60, _compile, "training step with compiled layers"),
}


# ------------------------------------------------------------------ in a stage's own process


def run_stage(name: str, vlm: str, repeats: int, path: Path) -> int:
    """Run one stage in this process; return 1 if a figure failed."""
    figures = Figures(path)
    STAGES[name].run(figures, vlm, repeats)
    if figures.failed:
        print(f"failed: {', '.join(figures.failed)}")
    return int(bool(figures.failed))


# ------------------------------------------------------------------ around the stages


def environment() -> dict[str, str]:
    """Return what stages run in: this checkout's sources, and nobody who waits for a network."""
    sources = [str(REPO / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    # A stage would compile LeRobot's and transformers' sources again, ten times in eight minutes.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(path for path in sources if path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def attend(command: Sequence[str], limit: float, log: Path) -> tuple[str, float]:
    """Run a command with all it starts, its output going to a file; return how it ended and its seconds.

    Args:
        command: the program and its arguments.
        limit: seconds after which it is ended.
        log: for what it prints.
    """
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
        try:
            code = process.wait(timeout=max(limit, 0.0))
            status = "ok" if code == 0 else f"failed: exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"timed out after {limit:.0f} s"
        finally:  # also when this process is interrupted, and what a stage that crashed left behind
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, time.monotonic() - began


def collect(path: Path, status: str, seconds: float, log: Path) -> dict[str, Any]:
    """Return the record of a stage that has ended: its figures, and of one that failed the end of its output."""
    try:
        figures = json.loads(path.read_text())["figures"]
    except FileNotFoundError:  # it ended before it named any
        figures = {}
    for name, value in figures.items():
        if value == PENDING:
            figures[name] = f"{NOT_MEASURED}the stage {status}"
    record: dict[str, Any] = {"status": status, "seconds": round(seconds, 1), "figures": figures}
    if status != "ok":
        record["output_tail"] = log.read_text(errors="replace").splitlines()[-_TAIL:]
    return record


def show(name: str, record: dict[str, Any]) -> None:
    """Print a stage as a part of the table."""
    print(f"\n{name}: {STAGES[name].what}: {record['status']}, {record['seconds']:.0f} s")
    for figure, value in record["figures"].items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {part}" for key, part in value.items())
        print(f"  {figure:<38}{value}")
    for line in record.get("output_tail", ()):
        print(f"    | {line}")
    sys.stdout.flush()


def keep(result: dict[str, Any], path: Path) -> None:
    """Write the results so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(fresh, path)


def run_all(
    names: Sequence[str], vlm: str, minutes: float, path: Path, result: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Run stages one after the other; return the results, which are in the file as well.

    Args:
        names: of the stages.
        vlm: the backbone.
        minutes: for all stages of the table; a selection gets its share.
        path: of the results.
        result: what they begin with.
        repeats: of short things.
    """
    result["stages"] = {
        name: {
            "status": NOT_MEASURED + ("its turn has not come" if name in names else "left out by --stages"),
            "seconds": 0.0,
            "figures": {},
        }
        for name in STAGES
    }
    keep(result, path)
    scale = 60 * minutes / sum(stage.seconds for stage in STAGES.values())
    deadline = time.monotonic()
    for name in names:
        deadline = max(deadline + scale * STAGES[name].seconds, time.monotonic())
        with TemporaryDirectory() as folder:
            part, log = Path(folder) / "figures.json", Path(folder) / "output"
            command = [sys.executable, str(HERE / "gpu.py"), "--stage", name, "--part", str(part)]
            command += ["--vlm", vlm, "--repeats", str(repeats)]
            status, seconds = attend(command, deadline - time.monotonic(), log)
            result["stages"][name] = collect(part, status, seconds, log)
        keep(result, path)
        show(name, result["stages"][name])
        if name == "versions":
            show_floor(result["stages"][name]["figures"])
    return result


def show_floor(figures: dict[str, Any]) -> None:
    """Print the least time any decoder can take for a pass."""
    print(
        f"\nfloor: a pass reads {figures.get('pass_reads_gb', '?')} GB of weights; at the bandwidth of a copy, "
        f"{figures.get('copy_gb_per_s', '?')} GB/s, that takes {figures.get('floor_ms_per_pass', '?')} ms",
        flush=True,
    )


def stage_names(text: str) -> list[str]:
    """Return the stages that an option names.

    Raises:
        argparse.ArgumentTypeError: if there is none of that name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if name not in STAGES]
    if wrong or not names:
        raise argparse.ArgumentTypeError(
            f"no stage {', '.join(wrong) or text!r}: choose from {', '.join(STAGES)}"
        )
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages; return 1 if one failed or took too long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vlm", default="qwen2.5-vl-3b-random", choices=("tiny", "qwen2.5-vl-3b-random"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all stages; scales the limit of each")
    parser.add_argument("--stages", type=stage_names, default=list(STAGES), help="of " + ", ".join(STAGES))
    parser.add_argument(
        "--out",
        type=Path,
        help="default: benchmarks/results/gpu.json; of a trial run outputs/benchmarks/gpu.json",
    )
    parser.add_argument("--commit", help="of these sources, where there is no git to ask")
    parser.add_argument("--repeats", type=int, help=f"of short things; default: {_REPEATS}, without a GPU 1")
    parser.add_argument("--stage", choices=tuple(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.stage:
        return run_stage(given.stage, given.vlm, given.repeats, given.part)
    if find_spec("torch") is None:
        print(
            f"gpu: {sys.executable} has no torch. Run `make setup` first; without network: docs/gpu.md",
            file=sys.stderr,
        )
        return 2
    import torch
    from hardware import hardware

    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "vlm": given.vlm,
        "device": device,
        "minutes": given.minutes,
        **hardware(),
    }
    if given.commit:
        result["commit"] = given.commit
    trial = device == "cpu" or given.vlm == "tiny"
    if device == "cpu" and given.vlm != "tiny":
        result["status"] = (
            NOT_MEASURED + "no GPU (torch.cuda.is_available() is False); a trial run: --vlm tiny"
        )
        print(result["status"])
        print(json.dumps(result))
        return 0
    path = given.out or (REPO / "outputs/benchmarks/gpu.json" if trial else HERE / "results" / "gpu.json")
    repeats = given.repeats or (_REPEATS if device == "cuda" else 1)
    print(
        f"gpu: {device}, {given.vlm}, {given.minutes:g} minutes for all stages; results in {path}", flush=True
    )
    run_all(given.stages, given.vlm, given.minutes, path, result, repeats)
    bad = [name for name in given.stages if result["stages"][name]["status"] != "ok"]
    print(
        f"\n{len(given.stages) - len(bad)} of {len(given.stages)} stages ended well"
        + (f"; not {', '.join(bad)}" if bad else "")
    )
    print(json.dumps(result))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
