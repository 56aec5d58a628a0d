"""benchmarks/decode.py: all of it on a tiny model, with a made-up simulator in the place of Meta-World."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.paths import REPO
from helpers.tiny import make_config, make_restless, make_stats

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors

sys.path.insert(0, str(REPO / "benchmarks"))

import decode
import decode_shapes

STEPS, DIMS, LIMIT = 3, 2, 13


class MadeUpEnv:
    """Shows a picture of its own at every step, and is never solved."""

    task_description = "push the button"

    def __init__(self, task: str, obs_type: str) -> None:
        assert (task, obs_type) == ("made-up-v3", "pixels_agent_pos")
        self._random = np.random.default_rng(0)

    def reset(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self._random = np.random.default_rng(seed)
        return self._look(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        assert action.shape == (DIMS,) and np.isfinite(action).all()
        return self._look(), 0.0, False, False, {}

    def _look(self) -> dict[str, Any]:
        picture = self._random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return {"pixels": picture, "agent_pos": self._random.random(DIMS)}

    def close(self) -> None:
        """Do nothing."""


def run(monkeypatch: pytest.MonkeyPatch, output: Path, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["decode.py", "--output", str(output), *arguments])
    decode.main()
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def test_every_decoder_answers_what_a_policy_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(
        cameras=("observation.image",), chunk_size=STEPS, n_action_steps=STEPS, action_dim=DIMS
    )
    checkpoint = tmp_path / "policy"
    make_restless(VLA0Policy(config)).save_pretrained(checkpoint)
    for processor in make_vla0_pre_post_processors(config, make_stats(DIMS)):
        processor.save_pretrained(checkpoint)
    simulator = types.ModuleType("lerobot.envs.metaworld")
    simulator.MetaworldEnv = MadeUpEnv  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lerobot.envs.metaworld", simulator)
    arguments = ["--policy", str(checkpoint), "--task", "made-up-v3", "--limit", str(LIMIT)]
    result = run(monkeypatch, tmp_path / "out" / "decode.json", *arguments, "--n-action-steps", "1", "3")

    said = capsys.readouterr().out.splitlines()
    assert json.loads(said[-1]) == result
    assert said.count(f"  seed 300000: not solved after {LIMIT} steps") == 2, "once for each number of steps"
    assert (result["benchmark"], result["task"], result["dtype"]) == ("decode", "made-up-v3", "float32")
    for steps, queries in ((1, 13), (3, 5)):  # of each of two episodes
        table = result[f"n_action_steps_{steps}"]
        assert table["differences_from_reference"] == 0 and table["varying_dimensions"] == [0, 1]
        asked = {name: 2 * -(-queries // stride) for name, stride in decode.STRIDE.items()}
        assert {name: table[name]["chunks"] for name in decode.DECODERS} == asked
        for name in decode.DECODERS:
            row = table[name]
            assert row["ms_p95"] >= row["ms_p50"] > 0 and row["floor_ms"] > 0
            assert row["passes_per_number"] == pytest.approx(row["passes"] / (STEPS * DIMS), abs=1e-3)
        one_by_one, fast, drafts = (table[name] for name in decode.DECODERS[1:])
        # A pass per token; forced tokens ride along; guesses spare passes, and the report's numbers fit each other.
        assert one_by_one["tokens_per_pass"] == 1.0 and one_by_one["forced_share"] == 0.0
        assert drafts["passes"] < fast["passes"] < one_by_one["passes"]
        assert drafts["tokens_per_pass"] > fast["tokens_per_pass"] > 1.0
        assert 0 < drafts["accepted_share"] < 1 and drafts["width"] >= 1 and drafts["prefill_ms"] > 0
        assert sum(table["passes_ended_in_dimension"]) <= drafts["passes"]
    assert result["chunks_per_s_batch1"] > 0 and result["chunks_per_s_batch10"] > 0
    assert result["peak_rss_mb"] > 100 and result["cpu"]


def test_passes_of_a_random_model_make_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_shapes, "WIDTHS", (1, 32))
    rollouts = {"passes_per_varying_number": 0.5, "width": 24}
    acceptance = tmp_path / "rollouts.json"
    acceptance.write_text(json.dumps({"n_action_steps_1": {"speculative": rollouts}}))
    options = ["--vlm", "tiny", "--repeats", "1", "--acceptance", str(acceptance)]
    result = run(monkeypatch, tmp_path / "decode.json", *options)
    assert result["vlm"] == "tiny" and result["parameters"] > 1e5 and result["floor_ms_per_pass"] > 0
    # A prompt's text before its image is taken over from the query before.
    assert result["prompt_tokens_reused_batch1"] == result["prompt_tokens_reused_batch8"] == 40
    estimate = result["estimate"]
    assert (estimate["passes"], estimate["width"]) == (28.0, 32), (
        "half of 8 x 7 numbers; the next width timed"
    )
    assert estimate["ms_per_chunk"] == pytest.approx(
        result["prefill_ms_batch1"] + 27 * result["pass_ms_batch1_width32"], abs=0.1
    )


def test_without_a_policy_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["decode.py", "--policy", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stopped:
        decode.main()
    assert stopped.value.code == 0
    assert f"not measured: {tmp_path / 'none'} is missing; run `make demo` first" in capsys.readouterr().err
