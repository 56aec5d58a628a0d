"""Stages about acting: passes by width, whole chunks against transformers' `generate`, kernels and their gaps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import decode_shapes
import numpy as np
import torch
from decode_shapes import CHUNK, DIMS, MAX_ANSWER, N_BINS, Passes, TransformersPasses, milliseconds
from hardware import copy_bandwidth, percentiles, synchronise

from gpu_parts.figures import Figures
from gpu_parts.kernels import kernels_of
from gpu_parts.scripted import Chunks, ScriptedRunner
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.decoding.fast import FastDecoder
from lerobot_policy_vla0.decoding.speculative import PreviousChunkDrafter
from lerobot_policy_vla0.text.grammar import AnswerGrammar

ACCEPTANCE = Path(__file__).resolve().parents[1] / "results" / "decode_demo_bins1000_bfloat16.json"
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
BATCHES = (1, 8)
#: Widths at which the lean pass is held against transformers' modules.
COMPARED = (1, 8, 32)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _on_fixed_memory(vlm: VLM, batch: int, device: torch.device, max_width: int) -> Passes:
    """Return passes as they run on CUDA; a trial run on a CPU goes the same way, uncaptured."""
    timed = Passes(vlm, batch, device, max_width)
    timed.runner.static = True
    return timed


@contextmanager
def _uncaptured(timed: Passes) -> Iterator[None]:
    """Run passes as without CUDA graphs, for a while."""
    timed.runner.static = False
    try:
        yield
    finally:
        timed.runner.static = True


@torch.inference_mode()
def passes(figures: Figures, name: str, repeats: int) -> None:
    """Time vision tower, prefill and passes of every width at batch 1 and 8.

    Vision, prefill and some passes also uncaptured, and by transformers' modules.
    """
    parts = ["vision_ms", "prefill_ms", *(f"pass_ms_width{width}" for width in WIDTHS)]
    compared = [part for part in parts if part not in _not_compared()]
    parts += [f"{how}_{part}" for how in ("uncaptured", "transformers") for part in compared]
    figures.plan(["floor_ms_per_pass", *(f"batch{batch}_{part}" for batch in BATCHES for part in parts)])
    device = _device()
    vlm = decode_shapes.build(name, device)
    floor = 1e3 * decode_shapes.weight_bytes(vlm) / copy_bandwidth(device)
    figures.put("floor_ms_per_pass", round(floor, 3))
    for batch in BATCHES:
        timed = _on_fixed_memory(vlm, batch, device, max(WIDTHS))

        def took(run: Any) -> float:
            return round(milliseconds(run, device, repeats), 3)

        figures.measure(f"batch{batch}_vision_ms", partial(took, timed.vision))
        figures.measure(f"batch{batch}_prefill_ms", partial(took, timed.prefill))
        for width in WIDTHS:
            figures.measure(f"batch{batch}_pass_ms_width{width}", partial(took, partial(timed.score, width)))

        def compare(name: str, of: Passes | TransformersPasses, took: Any = took, batch: int = batch) -> None:
            figures.measure(f"batch{batch}_{name}_vision_ms", partial(took, of.vision))
            figures.measure(f"batch{batch}_{name}_prefill_ms", partial(took, of.prefill))
            for width in (width for width in WIDTHS if width in COMPARED):
                one = partial(of.score, width)
                figures.measure(f"batch{batch}_{name}_pass_ms_width{width}", partial(took, one))

        with _uncaptured(timed):
            compare("uncaptured", timed)
        compare("transformers", TransformersPasses(timed))


def _not_compared() -> set[str]:
    return {f"pass_ms_width{width}" for width in WIDTHS if width not in COMPARED}


# ------------------------------------------------------------------ whole chunks


def _decoder(vlm: VLM, device: torch.device, *, drafts: bool, draft_width: int | None = None) -> Any:
    grammar = AnswerGrammar(n_bins=N_BINS, n_numbers=CHUNK * DIMS, tokens=vlm.tokens, device=device)
    shape = (CHUNK, DIMS)
    drafter = PreviousChunkDrafter(grammar, shape=shape, draft_width=draft_width) if drafts else None
    return FastDecoder(vlm, grammar, shape=shape, drafter=drafter)


def recorded_passes(acceptance: Path) -> tuple[float, int]:
    """Return the passes per chunk of our shape by a trained policy's rollouts, and the width they were of."""
    table = json.loads(acceptance.read_text())["n_action_steps_1"]["speculative"]
    return table["passes_per_varying_number"] * CHUNK * DIMS, table["width"]


def surprise_for(vlm: VLM, device: torch.device, wanted: float, width: int, chunks: int = 15) -> float:
    """Return the share of surprising numbers with which a chunk takes the passes wanted, found without any pass."""
    request = decode_shapes.make_request(vlm, 1, device)
    low, high = 0.0, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        decoder = _decoder(vlm, device, drafts=True, draft_width=width)
        decoder.runner = ScriptedRunner(None)
        script = Chunks(1, (CHUNK, DIMS), N_BINS, middle)
        taken = []
        for _ in range(chunks):
            decoder.runner.script = script.next()
            decoder.decode(request)
            taken.append(decoder.last.passes)
        if np.mean(taken[1:]) < wanted:  # without the first chunk, which has no previous one
            low = middle
        else:
            high = middle
    return (low + high) / 2


def host_ms_per_pass(vlm: VLM, device: torch.device, batch: int, surprise: float, chunks: int = 20) -> float:
    """Return the milliseconds that drafts and acceptance take per pass of width 32, found without any pass."""
    request = decode_shapes.make_request(vlm, batch, device)
    decoder = _decoder(vlm, device, drafts=True, draft_width=32)
    decoder.runner = ScriptedRunner(None)
    script = Chunks(batch, (CHUNK, DIMS), N_BINS, surprise)
    times = []
    for _ in range(chunks):
        decoder.runner.script = script.next()
        decoder.runner.seconds = 0.0
        began = time.perf_counter()
        decoder.decode(request)
        spent = time.perf_counter() - began - decoder.runner.seconds
        times.append(1e3 * spent / decoder.last.passes)
    return round(float(np.median(times[2:])), 3)


@torch.inference_mode()
def chunk(figures: Figures, name: str, repeats: int, acceptance: Path = ACCEPTANCE) -> None:
    """Time whole chunks: drafts accepted as in a trained policy's rollouts, no drafts, and transformers' `generate`."""
    parts = ("host_ms_per_pass", "speculative", "fast", "hf_generate", "times_faster_than_hf_generate")
    figures.plan([*("acceptance_from", "surprise"), *(f"batch{b}_{part}" for b in BATCHES for part in parts)])
    device = _device()
    vlm = decode_shapes.build(name, device)
    floor = 1e3 * decode_shapes.weight_bytes(vlm) / copy_bandwidth(device)
    wanted, width = recorded_passes(acceptance)
    figures.put("acceptance_from", f"{acceptance.name}: {wanted:.1f} passes of width {width} per chunk")
    surprise = surprise_for(vlm, device, wanted, width)
    figures.put("surprise", round(surprise, 3))
    for batch in BATCHES:
        request = decode_shapes.make_request(vlm, batch, device)

        def speculative(batch: int = batch, request: Any = request) -> dict[str, Any]:
            decoder = _decoder(vlm, device, drafts=True)
            decoder.decode(request)  # measures how wide a pass pays, on passes as they are
            decoder.reset()
            decoder.runner = ScriptedRunner(decoder.runner)
            script = Chunks(batch, (CHUNK, DIMS), N_BINS, surprise)
            times, taken, tokens = [], [], 0
            warm = max(repeats, 2)  # until acceptance and width have settled
            for index in range(warm + repeats):
                decoder.runner.script = script.next()
                decoder.runner.seconds = 0.0
                synchronise(device)
                began = time.perf_counter()
                decoder.decode(request)
                synchronise(device)
                if index >= warm:
                    times.append(1e3 * (time.perf_counter() - began - decoder.runner.seconds))
                    taken.append(decoder.last.passes)
                    tokens += decoder.last.tokens
            return {
                **_times(times),
                "passes": round(float(np.mean(taken)), 1),
                "width": decoder.drafter.width,
                "tokens": round(tokens / repeats / batch, 1),
                "floor_ms": round(float(np.mean(taken)) * floor, 2),
            }

        def fast(request: Any = request) -> dict[str, Any]:
            decoder = _decoder(vlm, device, drafts=False)
            decoder.decode(request)
            times = []
            for _ in range(max(repeats // 5, 1)):
                synchronise(device)
                began = time.perf_counter()
                decoder.decode(request)
                synchronise(device)
                times.append(1e3 * (time.perf_counter() - began))
            taken = decoder.last.passes
            return {**_times(times), "passes": taken, "floor_ms": round(taken * floor, 2)}

        def generate(batch: int = batch, request: Any = request) -> dict[str, Any]:
            # As many tokens as a chunk has, whatever the weights would like to say.
            ours = figures.values[f"batch{batch}_speculative"]
            tokens = round(ours["tokens"]) if isinstance(ours, dict) else MAX_ANSWER
            decode_shapes.generate(vlm, request, 4, 4)
            times = []
            for _ in range(2 if device.type == "cuda" else 1):
                synchronise(device)
                began = time.perf_counter()
                ids = decode_shapes.generate(vlm, request, tokens, tokens)
                synchronise(device)
                times.append(1e3 * (time.perf_counter() - began))
                assert ids.shape[1] == tokens, f"generate wrote {ids.shape[1]} tokens instead of {tokens}"
            return {**_times(times), "tokens": tokens, "floor_ms": round(tokens * floor, 2)}

        figures.measure(
            f"batch{batch}_host_ms_per_pass", partial(host_ms_per_pass, vlm, device, batch, surprise)
        )
        figures.measure(f"batch{batch}_speculative", speculative)
        figures.measure(f"batch{batch}_fast", fast)
        figures.measure(f"batch{batch}_hf_generate", generate)
        rows = [figures.values[f"batch{batch}_{part}"] for part in ("hf_generate", "speculative")]
        ratio = f"batch{batch}_times_faster_than_hf_generate"
        if all(isinstance(row, dict) for row in rows):
            figures.put(ratio, round(rows[0]["ms_p50"] / rows[1]["ms_p50"], 2))
        else:
            figures.skip(ratio, "it needs both times")


def _times(values: list[float]) -> dict[str, float]:
    p50, p95 = percentiles(values)
    return {"ms_p50": round(p50, 2), "ms_p95": round(p95, 2), "chunks": len(values)}


# ------------------------------------------------------------------ kernels


@torch.inference_mode()
def kernels(figures: Figures, name: str, repeats: int) -> None:
    """Count kernels and the time between them: vision, prefill, passes; captured and not, and by transformers' modules.

    In one process, the lean pass and what it replaces: a figure named ``transformers_...`` is the one before.
    """
    parts = ["vision", "prefill", *(f"pass_width{width}" for width in COMPARED)]
    before = [f"transformers_{part}" for part in parts]
    uncaptured = [f"{part}_uncaptured" for part in parts]
    figures.plan([*parts, *uncaptured, *before, "hf_generate_per_token"])
    device = _device()
    vlm = decode_shapes.build(name, device)
    timed = _on_fixed_memory(vlm, 1, device, max(COMPARED))
    timed.prefill()
    transformers = TransformersPasses(timed)

    def count(names: list[str], of: Passes | TransformersPasses) -> None:
        work = [of.vision, of.prefill, *(partial(of.score, width) for width in COMPARED)]
        for part, run in zip(names, work, strict=True):
            figures.measure(part, partial(kernels_of, run, device, repeats))

    count(parts, timed)
    with _uncaptured(timed):
        count(uncaptured, timed)
    count(before, transformers)

    def per_token() -> dict[str, float]:
        more = 9 if device.type == "cuda" else 2
        request = timed.request
        short, long = (
            kernels_of(partial(decode_shapes.generate, vlm, request, n, n), device, 1) for n in (1, 1 + more)
        )
        token = {key: round((long[key] - short[key]) / more, 3) for key in long}
        return {**token, "host_ms": round(token["wall_ms"] - token["busy_ms"], 3)}

    figures.measure("hf_generate_per_token", per_token)
