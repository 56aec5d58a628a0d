"""The least time a chunk of the 3B model can take on a GPU, and what an SO-100 could do with it: computed.

    python benchmarks/latency_budget.py [--chunk-size 30] [--output FILE]

A pass reads the decoder layers' weights once, so passes x bytes / bandwidth is a floor; the prompt's arithmetic, the
vision tower, kernel launches and the control loop come on top. How many passes a number takes comes from a trained
policy's rollouts (another model, another task, integers up to 1000): an assumption, and the weakest one here.
Bandwidths are the vendors' figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from hardware import hardware
from transformers import AutoModelForImageTextToText

from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.tools.inspection.cost import vlm_config_3b
from lerobot_policy_vla0.tools.latency.budget import Loop, QueryTime, highest_fps, plan_rtc, plan_sync

#: GB/s.
BANDWIDTH = {
    "Jetson AGX Orin": 204.8,
    "L4": 300,
    "RTX 3090": 936,
    "RTX 4090": 1008,
    "RTX 5090": 1792,
    "A100 80 GB": 2039,
    "H100 SXM": 3350,
    "H200": 4800,
}
JOINTS = 6
ROLLOUTS = Path(__file__).parent / "results" / "decode_demo_bins1000_bfloat16.json"


def bytes_per_pass() -> int:
    """Return what a decoding pass of the 3B model reads in bfloat16: its decoder layers."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(vlm_config_3b(build_tiny_tokenizer()))
    return 2 * sum(p.numel() for p in model.model.language_model.layers.parameters())


def budget(chunk: int, fps: int, rollouts: dict[str, Any], read: int) -> list[dict[str, Any]]:
    """Return a row per GPU."""

    def passes(executed: int, decoder: str) -> float:
        return float(rollouts[f"n_action_steps_{executed}"][decoder]["passes_per_varying_number"])

    rows = []
    for name, bandwidth in BANDWIDTH.items():
        ms = read / bandwidth / 1e6
        # The prompt's pass is among them. Sync executes whole chunks of five; under RTC two of five pass meanwhile.
        sync = QueryTime(fixed_ms=0, per_step_ms=JOINTS * passes(5, "speculative") * ms)
        rtc = QueryTime(fixed_ms=0, per_step_ms=JOINTS * passes(2, "speculative") * ms)
        loop = Loop(fps=fps, chunk_size=chunk, n_action_steps=chunk, execution_horizon=chunk)
        standing, running = plan_sync(sync, loop), plan_rtc(rtc, loop)
        rows.append(
            {
                "gpu": name,
                "gb_per_s": bandwidth,
                "ms_per_pass": round(ms, 2),
                "token_by_token_ms": round(JOINTS * chunk * passes(5, "hf_generate") * ms),
                "sync_ms": round(sync.milliseconds(chunk)),
                "sync_moving": round(standing.moving_share, 2),
                "rtc_ms": round(rtc.milliseconds(chunk)),
                "rtc_delay_steps": running.delay_steps,
                "rtc_verdict": running.verdict,
                "rtc_highest_fps": highest_fps("rtc", rtc, loop),
            }
        )
    return rows


def main() -> None:
    """Compute, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunk-size", type=int, default=30)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--output", type=Path, help="write the JSON line to this file too")
    arguments = parser.parse_args()
    read = bytes_per_pass()
    rows = budget(arguments.chunk_size, arguments.fps, json.loads(ROLLOUTS.read_text()), read)
    print(
        f"computed: chunk of {arguments.chunk_size} x {JOINTS}, {read / 1e9:.2f} GB per pass, {arguments.fps} fps"
    )
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    result = {
        "benchmark": "latency_budget",
        "computed": True,
        "chunk_size": arguments.chunk_size,
        "action_dim": JOINTS,
        "fps": arguments.fps,
        "bytes_per_pass": read,
        "passes_from": ROLLOUTS.name,
        "rows": rows,
        "commit": hardware()["commit"],
    }
    line = json.dumps(result)
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
