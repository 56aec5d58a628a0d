"""Stages about the machine itself: what is installed, how fast memory and matrix products are, and the `gpu` tests."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

from gpu_parts.figures import Figures

REPO = Path(__file__).resolve().parents[2]

PACKAGES = ("torch", "transformers", "lerobot", "peft", "flash-attn", "flash-attn-3", "bitsandbytes", "numpy")


def versions(figures: Figures, vlm: str) -> None:
    """Name software and device; measure bandwidth and matrix products; compute the floor of a pass."""
    figures.plan(
        [
            *("python", *PACKAGES, "driver", "cuda", "device_name", "memory_gb", "multiprocessors"),
            *("copy_gb_per_s", "matmul_bf16_tflop_per_s", "pass_reads_gb", "floor_ms_per_pass"),
        ]
    )
    figures.put("python", platform.python_version())
    for name in PACKAGES:
        figures.put(name, _version(name))
    import torch
    from hardware import copy_bandwidth
    from train_step import matmul_rate

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        figures.measure("driver", _driver)
        figures.put("cuda", torch.version.cuda)
        figures.put("device_name", properties.name)
        figures.put("memory_gb", round(properties.total_memory / 1e9, 1))
        figures.put("multiprocessors", properties.multi_processor_count)
    else:
        for name in ("driver", "cuda", "device_name", "memory_gb", "multiprocessors"):
            figures.skip(name, "no GPU")

    # Reading and writing a gigabyte: no cache holds it.
    figures.measure("copy_gb_per_s", lambda: round(copy_bandwidth(device, 1024 if cuda else 64) / 1e9, 1))
    figures.measure("matmul_bf16_tflop_per_s", lambda: round(matmul_rate(device, torch.bfloat16) / 1e12, 3))

    def pass_bytes() -> float:
        from decode_shapes import build, weight_bytes

        return round(weight_bytes(build(vlm, torch.device("meta"))) / 1e9, 4)

    figures.measure("pass_reads_gb", pass_bytes)
    numbers = [figures.values[name] for name in ("pass_reads_gb", "copy_gb_per_s")]
    if all(isinstance(number, float) for number in numbers):
        figures.put("floor_ms_per_pass", round(1e3 * numbers[0] / numbers[1], 3))
    else:
        figures.skip("floor_ms_per_pass", "it needs pass_reads_gb and copy_gb_per_s")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def tests(figures: Figures, folder: Path | None = None) -> None:
    """Run the tests marked `gpu`.

    Args:
        figures: gets their numbers, and the message of each that failed.
        folder: run those in this folder instead of this repository's.
    """
    names = ("passed", "failed", "errors", "skipped", "failures", "skipped_because")
    figures.plan(names)
    if find_spec("pytest") is None:
        for name in names:
            figures.skip(name, "pytest is not installed")
        return
    with TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={report}", *([str(folder)] if folder else [])]
        code = subprocess.run(command, cwd=folder or REPO, check=False).returncode
        if not report.is_file():
            for name in names:
                figures.fail(name, f"pytest ended with exit code {code} before it wrote its report")
            return
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    found: dict[str, list[Any]] = {
        kind: [(case, part) for case in cases for part in case.findall(kind)]
        for kind in ("failure", "error", "skipped")
    }
    bad = found["failure"] + found["error"]
    figures.put("passed", len(cases) - len({id(case) for case, _ in bad + found["skipped"]}))
    figures.put("failed", len(found["failure"]))
    figures.put("errors", len(found["error"]))
    figures.put("skipped", len(found["skipped"]))
    figures.put("skipped_because", sorted({part.get("message", "") for _, part in found["skipped"]}))
    messages = {f"{c.get('classname')}.{c.get('name')}": _message(part) for c, part in bad}
    figures.put("failures", messages)
    if bad or code not in (0, 5):  # 5: no test was there
        figures.failed += list(messages) or [f"pytest: exit code {code}"]
        figures.put("failures", messages or {"pytest": f"exit code {code}"})
    if not cases:
        figures.skip("passed", "no test is marked gpu here")
    elif len(found["skipped"]) == len(cases):
        figures.skip("passed", "every test was skipped")


def _message(part: Any) -> str:
    return str(part.get("message", "")).strip()[:500]
