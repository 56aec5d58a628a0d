"""What benchmarks/so101_realtime.py makes of the arm's log."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.paths import REPO

pytest.importorskip("so101_nexus", reason="pip install 'lerobot_policy_vla0[so101]'")
sys.path.insert(0, str(REPO / "benchmarks"))

import so101_realtime


def test_only_the_last_start_counts_and_late_commands_are_idle_ticks(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    lines = [{"reset": None}, {"time": 0.0, "success": True}, {"reset": 7}]
    lines += [{"time": 10 + tick / 30, "success": tick == 5} for tick in (0, 1, 2, 5, 6)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = so101_realtime.steps_of(log)
    assert [round(30 * (step["time"] - 10)) for step in steps] == [0, 1, 2, 5, 6]

    never = [{"time": tick / 30, "success": False} for tick in range(4)]
    report = so101_realtime.summary([steps, never])
    assert (report["lifted"], report["starts"], report["commands"]) == (1, 2, 9)
    assert report["median_s_until_lifted"] == pytest.approx(5 / 30, abs=0.01)
    assert report["idle_ticks"] == 2
    assert report["interval_ms"]["p50"] == pytest.approx(33.3, abs=0.1)
    assert report["interval_ms"]["p99"] == pytest.approx(100, abs=0.1)
    silent = so101_realtime.summary([[]])
    assert (silent["lifted"], silent["commands"], silent["interval_ms"]) == (0, 0, {})


def test_the_arms_options_are_lerobots(tmp_path: Path) -> None:
    options = so101_realtime.robot_options(3, 64, tmp_path / "log")
    assert "--robot.seed=3" in options and any("image_size: 64" in option for option in options)
    described = json.loads(options[-1].removeprefix("--robot.cameras="))
    assert described["wrist"]["source"] == "wrist_camera" and described["side"]["width"] == 64
