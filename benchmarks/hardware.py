"""What a figure was measured on."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """Name the machine, the software and the commit a figure belongs to."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:  # a copy of the sources on a machine without git
        commit = ""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = f"{names[0]} x{len(names)}" if names else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"cpu": cpu, "gpu": device, "torch": torch.__version__, "commit": commit or "unknown"}


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Return bytes per second read and written by a large copy: the floor of any pass over the weights."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        synchronise(device)
        began = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        best = min(best, time.perf_counter() - began)
    return 2 * source.numel() / best


def synchronise(device: torch.device) -> None:
    """Wait for what was started on an accelerator."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def percentiles(values: list[float]) -> tuple[float, float]:
    """Return median and 95th percentile."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
