"""Stages about training: a step of the full model and of adapters, and what each way of computing it changes."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import decode_shapes
import torch
from hardware import synchronise
from memory import peak_mb, reset_peak
from train_step import (
    SHAPES,
    Steps,
    data_sheet_rate,
    make_config,
    make_policy,
    matmul_rate,
    model_flops,
    rates,
    time_step,
)

from gpu_parts.figures import Figures
from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.backbone.shared_prefix import base_attention

#: Everything held in bfloat16, the arithmetic too: a 3B model, its gradients and AdamW's moments fit 40 GB.
FULL = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
LORA = {"method_type": "LORA", "r": 16}


class Measured:
    """A policy in training, and what its steps are held against.

    Args:
        policy: with adapters in place, if it has any.
        shape: see `train_step.SHAPES`.
        counted: steps that are timed.
        adapter: only adapters are trained.
    """

    def __init__(self, policy: VLA0Policy, shape: str, counted: int, *, adapter: bool = False) -> None:
        self.policy = policy.train()
        self.counted, self._adapter = counted, adapter
        self.device = next(policy.parameters()).device
        self.rows = SHAPES[shape][3]
        self.steps = Steps(policy, self.rows)
        self._rate = matmul_rate(self.device, torch.bfloat16)

    def time(self, step: Callable[[], None], steps: Steps | None = None, rows: int = 0) -> dict[str, Any]:
        """Return time, throughput, utilisation and peak memory of a kind of step.

        Args:
            step: takes it.
            steps: that it belongs to; None for those of this object.
            rows: samples per step; 0 for those of this object.
        """
        steps, rows = steps or self.steps, rows or self.rows
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        flops = model_flops(self.policy, steps.batch, steps.answer_tokens, adapter=self._adapter)
        reset_peak(self.device)
        times = time_step(step, self.device, self.counted)
        peak = peak_mb(self.device)
        figures = rates(statistics.median(times), rows, flops, self._rate, data_sheet_rate(self.device))
        return {
            **figures,
            "peak_mb": peak,
            "batch_size": rows,
            "tflop": round(flops / 1e12, 6),
            "floor_ms": round(1e3 * flops / self._rate, 1),
        }


def _setting(vlm: str) -> tuple[str, dict[str, Any], torch.device]:
    """Return shape, options and device for a backbone."""
    large = vlm != "tiny"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "libero" if large else "demo", {**FULL, "gradient_checkpointing": True}, device


@contextmanager
def _prefix_not_shared(policy: VLA0Policy) -> Iterator[None]:
    """Compute what all prompts begin with once per row, as transformers' model does."""
    config = policy.vlm.model.model.language_model.config
    own = config._attn_implementation
    config._attn_implementation = base_attention(own)
    try:
        yield
    finally:
        config._attn_implementation = own


def full(figures: Figures, vlm: str, counted: int) -> None:
    """Time steps of the whole model: ours, variants of it, and the step one would first write."""
    figures.plan(["ours", "prefix_not_shared", "no_checkpointing", "four_times_the_batch", "plain"])
    shape, changes, device = _setting(vlm)
    with TemporaryDirectory() as folder:
        policy = make_policy(vlm, shape, Path(folder), device, changes)
    measured = Measured(policy, shape, counted)
    steps = measured.steps
    figures.measure("ours", lambda: measured.time(steps.ours))

    def unshared() -> dict[str, Any]:
        with _prefix_not_shared(policy):
            return measured.time(steps.ours)

    figures.measure("prefix_not_shared", unshared)

    def unchecked() -> dict[str, Any]:
        policy.vlm.model.gradient_checkpointing_disable()
        try:
            return measured.time(steps.ours)
        finally:
            steps.optimizer.zero_grad()
            policy.vlm.model.gradient_checkpointing_enable({"use_reentrant": False})

    figures.measure("no_checkpointing", unchecked)

    def larger() -> dict[str, Any]:
        rows = 4 * measured.rows
        more = Steps(policy, rows)
        more.optimizer = steps.optimizer  # its moments are there already
        return measured.time(more.ours, more, rows)

    figures.measure("four_times_the_batch", larger)

    def plain() -> dict[str, Any]:
        steps.optimizer.state.clear()  # this step's optimizer makes its own
        return measured.time(steps.plain)

    figures.measure("plain", plain)


def compiled(figures: Figures, vlm: str, counted: int) -> None:
    """Time a step with compiled layers, and the first one, which compiles them."""
    figures.plan(["first_step_s", "compiled"])
    shape, changes, device = _setting(vlm)
    with TemporaryDirectory() as folder:
        policy = make_policy(vlm, shape, Path(folder), device, {**changes, "compile_model": True})
    measured = Measured(policy, shape, counted)

    def first() -> float:
        began = time.perf_counter()
        measured.steps.ours()
        synchronise(device)
        return round(time.perf_counter() - began, 1)

    def later() -> dict[str, Any]:
        timed = measured.time(measured.steps.ours)
        return timed if device.type == "cuda" else {**timed, "note": "trial run: not compiled"}

    # A trial run goes the same way, but compiling for a CPU takes minutes and says nothing about a GPU.
    with torch.compiler.set_stance("default" if device.type == "cuda" else "force_eager"):
        figures.measure("first_step_s", first)
        figures.measure("compiled", later)


def one_step(figures: Figures, vlm: str, counted: int, name: str, changes: dict[str, Any]) -> None:
    """Time a step of the whole model with some options.

    Args:
        figures: gets it.
        vlm: the backbone.
        counted: steps that are timed.
        name: of the figure.
        changes: the options.
    """
    shape, common, device = _setting(vlm)

    def timed() -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            measured = Measured(
                make_policy(vlm, shape, Path(folder), device, {**common, **changes}), shape, counted
            )
        return measured.time(measured.steps.ours)

    figures.measure(name, timed)


def lora(figures: Figures, vlm: str, counted: int) -> None:
    """Time steps of an adapter on a backbone held in bfloat16."""
    figures.plan(["lora", "lora_no_checkpointing"])
    shape, changes, device = _setting(vlm)
    with TemporaryDirectory() as folder:
        policy = make_policy(vlm, shape, Path(folder), device, changes)
    adapt(policy)
    measured = Measured(policy, shape, counted, adapter=True)
    figures.measure("lora", lambda: measured.time(measured.steps.ours))
    policy.vlm.model.gradient_checkpointing_disable()
    figures.measure("lora_no_checkpointing", lambda: measured.time(measured.steps.ours))


def adapt(policy: VLA0Policy) -> None:
    """Put adapters into a policy, in place."""
    device = next(policy.parameters()).device
    policy.wrap_with_peft(peft_cli_overrides=dict(LORA))
    policy.to(device)


def qlora(figures: Figures, vlm: str, counted: int) -> None:
    """Time steps of an adapter on a backbone held in four bits."""
    figures.plan(["qlora"])
    shape, changes, device = _setting(vlm)

    def four_bits() -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            save_random_backbone(vlm, Path(folder), device)
            policy = load_backbone(Path(folder), shape, device, {**changes, "quantization": "nf4"})
            adapt(policy)
            measured = Measured(policy, shape, counted, adapter=True)
            timed = measured.time(measured.steps.ours)
        # Weights in four bits are packed: what counts operations by their number would count too few.
        return {
            name: value for name, value in timed.items() if not name.startswith(("mfu", "floor", "tflop"))
        }

    figures.measure("qlora", four_bits)


def save_random_backbone(vlm: str, folder: Path, device: torch.device) -> None:
    """Write a random backbone as the Hub has them: config, weights and tokenizer."""
    built = decode_shapes.build(vlm, device)
    built.model.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)


def load_backbone(folder: Path, shape: str, device: torch.device, changes: dict[str, Any]) -> VLA0Policy:
    """Return a policy on the backbone in a folder."""
    config = make_config(shape, device, changes)
    config.vlm_model_name = str(folder)
    return VLA0Policy(config).to(device)
