"""What a training step costs, against the step one would first write (`plain_step.py`).

    python benchmarks/train_step.py [--vlm tiny | qwen2.5-vl-3b-random] [--shape demo | libero] [--output FILE]

Both steps train the same model, a few steps each in turns, on the same batch of made-up observations in the shape of
LIBERO (two cameras, 8 x 7 numbers up to 1000) or of the demo (one camera, 5 x 4 numbers up to 100). Prints the floor, a
table, a computed memory table for the 3B model and, last, one line of JSON. LeRobot's data loader is part of
neither step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hardware import hardware, synchronise
from lerobot.configs.types import FeatureType, PolicyFeature
from memory import peak_mb, reset_peak
from plain_step import PlainStep

from lerobot_policy_vla0 import VLA0Config, VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.backbone.shared_prefix import common_prefix
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.observations.batches import image_problems, read_images
from lerobot_policy_vla0.observations.images import encode_images
from lerobot_policy_vla0.tools.inspection.cost import memory_table, vlm_config_3b
from lerobot_policy_vla0.training.masking import apply_mask, draw_mask

#: Cameras, their side in pixels, dimensions of an action, batch size; and the policy's options.
SHAPES: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "libero": (2, 256, 7, 8, {"system_prompt": "Predict {H} actions of {D} numbers: {N} integers 0-{B}"}),
    # configs/metaworld_tiny.yaml without its crop box.
    "demo": (
        1,
        240,
        4,
        16,
        {
            "system_prompt": "{N} integers 0-{B}",
            "chunk_size": 5,
            "n_action_steps": 1,
            "n_bins": 100,
            "image_size": (112, 112),
            "antialias": True,
            "crop_ratio": 1.0,
            "brightness": 0.0,
            "contrast": 0.0,
            "saturation": 0.0,
            "hue": 0.0,
        },
    ),
}
#: Counted steps of one kind in a row. Training takes no other steps in between, so neither may the benchmark.
_BLOCK = 3
#: bfloat16 matrix products, dense, per second, from the makers' data sheets.
DATASHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def make_config(shape: str, device: torch.device, changes: dict[str, Any]) -> VLA0Config:
    """Return the options of a policy for observations of a shape."""
    # The byte-level tokenizer writes the protocol's prompt letter by letter; the shapes' own are as short as it is with
    # Qwen's tokenizer.
    cameras, side, action_dim, _, options = SHAPES[shape]
    config = VLA0Config(
        **{"device": device.type, "push_to_hub": False, "optimizer_lr": 1e-5, **options, **changes}
    )
    config.input_features = {
        f"observation.images.{k}": PolicyFeature(FeatureType.VISUAL, (3, side, side)) for k in range(cameras)
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))}
    return config


def make_policy(
    vlm: str, shape: str, folder: Path, device: torch.device, changes: dict[str, Any]
) -> VLA0Policy:
    """Return a policy with random weights; the 3B one is built on the device, without a file of weights."""
    config = make_config(shape, device, changes)
    if vlm == "tiny":
        config.vlm_model_name = "tiny"
        return VLA0Policy(config).to(device)
    tokenizer = build_tiny_tokenizer()
    vlm_config_3b(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config.vlm_model_name = str(folder)
    with device:
        policy = VLA0Policy(config, stored_vlm=folder)
    return policy.to(device)


def make_batch(config: VLA0Config, rows: int) -> dict[str, Any]:
    """Return a batch as LeRobot's loader gives it: smooth pictures, actions in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    images = {}
    for key, feature in config.image_features.items():
        coarse = torch.rand(rows, 3, 8, 8, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, feature.shape[1:], mode="bilinear")
        images[key] = smooth.mul(255).round() / 255
    actions = torch.rand(rows, config.chunk_size, config.action_dim, generator=generator) * 2 - 1
    tasks = ["pick up the black bowl and place it on the plate", "open the middle drawer of the cabinet"]
    return {
        **images,
        "action": actions,
        "action_is_pad": torch.zeros(rows, config.chunk_size, dtype=torch.bool),
        "task": [tasks[row % 2] for row in range(rows)],
    }


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating-point operations per second of a large matrix product: the ceiling of any step."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        synchronise(device)
        began = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def model_flops(policy: VLA0Policy, batch: dict[str, Any], labelled: int, *, adapter: bool = False) -> float:
    """Return the operations a step cannot do without: forward and backward of every product with a weight.

    Six per weight and token (two forward, four backward), and attention's two products, counted without regard to
    the causal mask, as is usual. The vocabulary projection counts at labelled positions only, what all rows begin with
    once, recomputation not at all. Under an adapter on the language model, weights need no gradient of their own (four
    per weight) and the vision tower no backward pass (two); the adapter's own products are left out.
    """
    rows, prompt = batch["observation.language.tokens"].shape
    model = policy.vlm.model
    text, vision = model.config.get_text_config(), model.config.vision_config
    length = prompt + labelled / rows
    ids, mask = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    shared = int(common_prefix(ids, mask, stop=policy.vlm.image_token_id))
    computed = shared + rows * (length - shared)
    patches = (
        sum(policy.config.image_tokens(policy.vlm.patch_size, policy.vlm.merge_size))
        * policy.vlm.merge_size**2
    )
    layers = sum(
        p.numel() for n, p in model.model.language_model.layers.named_parameters() if "lora_" not in n
    )
    tower = sum(p.numel() for p in policy.vlm.vision_tower.parameters())
    language = layers * computed + text.vocab_size * text.hidden_size * labelled
    attention = 2 * text.num_hidden_layers * text.hidden_size * length * computed
    window = (vision.window_size // vision.patch_size) ** 2
    full = len(vision.fullatt_block_indexes)
    pictures = tower * rows * patches
    pictures += 2 * rows * vision.hidden_size * patches * (full * patches + (vision.depth - full) * window)
    if adapter:
        return 4.0 * language + 6.0 * attention + 2.0 * pictures
    return 6.0 * (language + attention + pictures)


class Steps:
    """The steps that are compared, and our part outside the model alone."""

    def __init__(self, policy: VLA0Policy, rows: int) -> None:
        self.policy, self.config = policy, policy.config
        self.device = next(policy.parameters()).device
        bound = torch.ones(self.config.action_dim)
        stats = {"action": {"min": -bound, "max": bound}}
        self.preprocess, _ = make_vla0_pre_post_processors(self.config, stats)
        self.plain_step = PlainStep(policy, -bound, bound)
        self.raw = make_batch(self.config, rows)
        self.batch = dict(self.preprocess(dict(self.raw)))
        self.optimizer = self.config.get_optimizer_preset().build(policy.get_optim_params())
        self.plain_optimizer = torch.optim.AdamW(policy.parameters(), lr=self.config.optimizer_lr)
        chunk = policy.codec.encode_bins(policy.codec.actions_to_bins(self.batch["action"])[0])
        self.answer_tokens = int(chunk.is_token.sum())

    def _update(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.optimizer_grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    def ours(self) -> None:
        """Take a training step as LeRobot's script does."""
        with self.policy._autocast():
            loss, _ = self.policy(dict(self.preprocess(dict(self.raw))))
        self._update(loss, self.optimizer)

    def plain(self) -> None:
        """Take the step one would first write."""
        with self.plain_step.stock_model():
            with self.policy._autocast():
                loss = self.plain_step.loss(self.raw)
            self._update(loss, self.plain_optimizer)

    def outside(self) -> None:
        """Do what our step does outside the model: prompt, normaliser, checks, images, ids, masking."""
        batch = dict(self.preprocess(dict(self.raw)))
        generator = torch.Generator().manual_seed(0)
        images = read_images(batch, self.config, self.device)
        image_problems(images)
        encode_images(images, self.policy.image_settings, generator)
        chunk = self.policy.codec.encode_bins(self.policy.codec.actions_to_bins(batch["action"])[0])
        hide = draw_mask(
            chunk,
            max_ratio=self.config.action_mask_max_ratio,
            skip_prob=self.config.action_mask_skip_prob,
            unit=self.config.action_mask_unit,
            generator=generator,
        )
        apply_mask(chunk.ids, chunk.ids, hide, self.policy.vlm.tokens.mask)

    def difference(self) -> float:
        """Return how far the two losses of the batch are apart without augmentation, as a share."""
        self.policy.eval()
        with torch.no_grad(), self.policy._autocast():
            ours, _ = self.policy(self.batch)
            with self.plain_step.stock_model():
                plain = self.plain_step.loss(self.raw, augment=False)
        self.policy.train()
        return abs(float(ours) - float(plain)) / float(plain)


def data_sheet_rate(device: torch.device) -> float | None:
    """Return the device's floating-point operations per second as its maker gives them, None if unknown."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return next((rate for key, rate in DATASHEET.items() if key in name), None)


def rates(
    seconds: float, rows: int, flops: float, measured: float, data_sheet: float | None
) -> dict[str, float]:
    """Return what the time of a step means.

    Args:
        seconds: of a step.
        rows: samples per step.
        flops: see `model_flops`.
        measured: see `matmul_rate`.
        data_sheet: see `data_sheet_rate`.
    """
    figures = {
        "ms": round(1e3 * seconds, 1),
        "samples_per_s": round(rows / seconds, 2),
        "mfu_of_matmul_rate": round(flops / seconds / measured, 3),
    }
    if data_sheet is not None:
        figures["mfu_of_data_sheet"] = round(flops / seconds / data_sheet, 3)
    return figures


def time_step(step: Callable[[], None], device: torch.device, counted: int) -> list[float]:
    """Return the seconds of each counted step; one before them is not counted.

    It finds caches and free memory as another kind of step left them.
    """
    step()
    times = []
    for _ in range(counted):
        synchronise(device)
        began = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return times


def measure(policy: VLA0Policy, rows: int, repeats: int, peak: float | None) -> dict[str, Any]:
    """Take both steps in turns; return the figures."""
    policy.train()
    steps = Steps(policy, rows)
    device = steps.device
    dtype = torch.float32 if policy.config.dtype == "float32" else torch.bfloat16
    rate_before = matmul_rate(device, dtype)
    peak = peak or data_sheet_rate(device)
    flops = model_flops(policy, steps.batch, steps.answer_tokens)
    result: dict[str, Any] = {
        "batch_size": rows,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "prompt_tokens": int(steps.batch["observation.language.tokens"].shape[1]),
        "answer_tokens": round(steps.answer_tokens / rows, 1),
        "tflop_per_step": round(flops / 1e12, 4),
        "loss_difference_without_augmentation": round(steps.difference(), 6),
    }
    kinds: dict[str, Callable[[], None]] = {
        "ours": steps.ours,
        "plain": steps.plain,
        "outside": steps.outside,
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind, step in kinds.items():  # warm-up, and the peak of each
        reset_peak(device)
        step()
        if kind != "outside":
            result[f"{kind}_peak_mb"] = peak_mb(device)
    for _ in range(repeats):
        for kind, step in kinds.items():  # in turns, so that noise hits all of them
            times[kind] += time_step(step, device, _BLOCK)
    ours, plain, outside = (statistics.median(times[kind]) for kind in kinds)
    # Before and after, for a floor no neighbour has raised.
    measured = max(rate_before, matmul_rate(device, dtype))
    result["matmul_tflops_measured"] = round(measured / 1e12, 3)
    result["floor_ms"] = round(flops / measured * 1e3, 2)
    print(
        f"floor: {flops / 1e12:.3f} TFLOP per step, {flops / measured * 1e3:.1f} ms at the rate of a matrix product"
    )
    for kind, seconds in (("ours", ours), ("plain", plain)):
        result |= {
            f"{kind}_{name}": value for name, value in rates(seconds, rows, flops, measured, peak).items()
        }
    result["outside_ms"] = round(1e3 * outside, 1)
    result["own_share_outside_the_model"] = round(outside / ours, 4)
    result["times_the_plain_samples_per_s"] = round(
        statistics.median(p / o for p, o in zip(times["plain"], times["ours"], strict=True)), 2
    )
    return result


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vlm", default="tiny", choices=("tiny", "qwen2.5-vl-3b-random"))
    parser.add_argument(
        "--shape", choices=tuple(SHAPES), help="default: demo for the tiny model, else libero"
    )
    parser.add_argument("--batch-size", type=int, help="default: 16 for the demo, 8 for LIBERO")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dtype", help="default: float32 for the tiny model, bfloat16 for the 3B one")
    parser.add_argument("--param-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--compile", action="store_true", help="our step with compile_model=true")
    parser.add_argument("--no-checkpointing", action="store_true", help="3B: keep all activations")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the data sheet, for MFU; known for H100, H200, A100"
    )
    parser.add_argument("--output", type=Path, help="write the JSON line to this file too")
    arguments = parser.parse_args()
    large = arguments.vlm != "tiny"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if large and device.type != "cuda":
        parser.exit(message="not measured: the 3B model needs an accelerator\n")
    changes = {
        "dtype": arguments.dtype or ("bfloat16" if large else "float32"),
        "param_dtype": arguments.param_dtype,
        "attn_implementation": arguments.attention,
        "gradient_checkpointing": large and not arguments.no_checkpointing,
        "compile_model": arguments.compile,
    }
    shape = arguments.shape or ("libero" if large else "demo")
    rows = arguments.batch_size or SHAPES[shape][3]
    result: dict[str, Any] = {"benchmark": "train_step", "vlm": arguments.vlm, "shape": shape, **changes}
    with TemporaryDirectory() as folder:
        policy = make_policy(arguments.vlm, shape, Path(folder), device, changes)
        peak = arguments.peak_tflops * 1e12 if arguments.peak_tflops else None
        result |= measure(policy, rows, arguments.repeats, peak)
    for key, value in result.items():
        print(f"{key:<40}{value}")
    result["memory_3b_gb_computed"] = memory_table(batch=8)
    print("Qwen2.5-VL-3B, one GPU, batch 8, checkpointing: computed, GB")
    for name, row in result["memory_3b_gb_computed"].items():
        print(f"  {name:<22}", "  ".join(f"{part} {value}" for part, value in row.items()))
    line = json.dumps({**result, **hardware()})
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
