"""What 8-bit weights cost and save: time, memory, and which tokens change.

    python benchmarks/quantization.py --policy CHECKPOINT --dataset ROOT [--success NAME=FOLDER ...] [--output FILE]

Answers recorded observations of a data set with one trained policy in several precisions, one after the other at every
observation, so that noise hits all of them, and compares the answers with float32's. Then times passes of a random
model with four layers of the 3B's shapes (a trained one for tests is so small that starting an operation takes longer
than its arithmetic), and loads that model from disk in a process each, for peak memory. ``--success`` adds what
`lerobot-eval` wrote for a precision. Prints tables and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import decode_shapes
import numpy as np
import torch
from decode import request_of
from hardware import copy_bandwidth, hardware, percentiles
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_vla0 import TinyVLMConfig, VLA0Config, VLA0Policy
from lerobot_policy_vla0.backbone.quantization import is_quantized, stored_tensors
from lerobot_policy_vla0.decoding.factory import build_decoder

#: (precision of weights and arithmetic, quantization) by name; the first is what the others are compared with.
PRECISIONS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "int8": ("float32", "int8"),
    "int8_dynamic": ("float32", "int8_dynamic"),
    "int8, bfloat16": ("bfloat16", "int8"),
    "int8_dynamic, bfloat16": ("bfloat16", "int8_dynamic"),
}
#: Four of the 3B's 36 layers: 308 million weights.
SLICE = TinyVLMConfig(
    hidden_size=2048, num_layers=4, num_heads=16, num_kv_heads=2, intermediate_size=11008, vision_layers=1
)
WIDTHS = (1, 8, 16, 64)
#: A child's line with its figures begins with this.
FIGURES = "figures: "


def load(path: Path, name: str, **options: Any) -> VLA0Policy:
    """Load a policy on the CPU in one of the precisions."""
    dtype, quantization = PRECISIONS[name]
    config: Any = PreTrainedConfig.from_pretrained(path)
    options = {"device": "cpu", "dtype": dtype, "param_dtype": dtype, "quantization": quantization, **options}
    return VLA0Policy.from_pretrained(path, config=replace(config, **options))


def megabytes(module: torch.nn.Module) -> float:
    """Return the memory of a module's weights."""
    tensors = [
        tensor
        for weight in module.parameters()
        for tensor in (stored_tensors(weight).values() if is_quantized(weight) else [weight])
    ]
    return round(sum(tensor.nbytes for tensor in tensors) / 1e6, 2)


def alternately(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time several calls in turns after one warm-up each; return milliseconds by name."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


# ------------------------------------------------------------------ a trained policy


def observations(path: Path, root: Path, count: int) -> list[tuple[bool, dict[str, Any]]]:
    """Return pre-processed frames as the policy would query them along episodes; true where an episode begins."""
    config: Any = PreTrainedConfig.from_pretrained(path)
    pre, _ = make_pre_post_processors(
        config, str(path), preprocessor_overrides={"device_processor": {"device": "cpu"}}
    )
    dataset = LeRobotDataset("local/benchmark", root=root)
    found: list[tuple[bool, dict[str, Any]]] = []
    for index in range(len(dataset)):
        frame = dataset[index]
        if int(frame["frame_index"]) % config.n_action_steps == 0:
            batch = dict(pre(torch.utils.data.default_collate([frame])))
            found.append((int(frame["frame_index"]) == 0, batch))
            if len(found) == count:
                break
    return found


def trained(path: Path, root: Path, count: int, width: int) -> dict[str, Any]:
    """Answer observations in every precision; return what each takes, and what differs from float32."""
    policies = {name: load(path, name, draft_width=width, decoder="speculative") for name in PRECISIONS}
    decoders = {name: build_decoder(p.config, p.vlm, torch.device("cpu")) for name, p in policies.items()}
    frames = observations(path, root, count)
    times: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    passes: dict[str, list[int]] = {name: [] for name in PRECISIONS}
    answers: dict[str, list[Any]] = {name: [] for name in PRECISIONS}
    traces: dict[str, list[Any]] = {name: [] for name in PRECISIONS}
    for index, (begins, batch) in enumerate([frames[0], *frames]):  # the first one warms up
        for name, policy in policies.items():
            if begins:
                decoders[name].reset()
            with torch.inference_mode(), policy._autocast():
                request = request_of(policy, batch, policy.config.n_action_steps)
                began = time.perf_counter()
                ids = decoders[name].decode(request)
                took = 1e3 * (time.perf_counter() - began)
            if index:
                times[name].append(took)
                passes[name].append(decoders[name].last.passes)
                answers[name].append(policy.codec.decode_ids(ids)[0].numpy())
                traces[name].append(decoders[name].last.traces[0])
    table: dict[str, Any] = {"observations": len(frames), "draft_width": width}
    base = np.array(answers["float32"])
    for name, policy in policies.items():
        difference = np.abs(np.array(answers[name]) - base)
        margins = [margin(a, b) for a, b in zip(traces["float32"], traces[name], strict=True)]
        changed = sorted(m for m in margins if m is not None)
        table[name] = {
            "ms_p50": round(percentiles(times[name])[0], 2),
            "times_float32": ratio(times[name], times["float32"]),
            "passes": round(float(np.mean(passes[name])), 2),
            "layers_mb": megabytes(policy.vlm.model.model.language_model.layers),
            "all_mb": megabytes(policy),
            "answers_changed": round(float((difference > 0).any((1, 2)).mean()), 3),
            "numbers_changed": round(float((difference > 0).mean()), 4),
            "bins_mean": round(float(difference.mean()), 3),
            "bins_max": int(difference.max()),
            # By how much float32 preferred its own symbol where the answers part: small is a near-tie.
            "margin_p50": round(percentiles(changed)[0], 3) if changed else None,
            "margin_max": round(changed[-1], 3) if changed else None,
        }
    return table


def margin(right: Any, other: Any) -> float | None:
    """Return how much higher the first answer scored its own symbol than the other's where they part; None if equal."""
    for a, b, scores in zip(right.symbols, other.symbols, right.scores, strict=False):
        if a != b:
            return float(scores[a] - scores[b])
    return None


def ratio(times: list[float], base: list[float]) -> float:
    """Return the median ratio of times that were taken in turns."""
    return round(float(np.median(np.array(times) / np.array(base))), 3)


# ------------------------------------------------------------------ four layers of real shapes


def save_slice(folder: Path) -> None:
    """Write a random policy with layers of the 3B's shapes."""
    config = VLA0Config(vlm_model_name="tiny", tiny=SLICE, device="cpu", push_to_hub=False)
    config.input_features = {"observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 224, 224))}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    VLA0Policy(config).save_pretrained(folder)


def sliced(folder: Path, repeats: int) -> dict[str, Any]:
    """Time prefill and passes of a random model in every precision."""
    device = torch.device("cpu")
    bandwidth = copy_bandwidth(device)
    policies = {name: load(folder, name) for name in PRECISIONS}
    passes = {name: decode_shapes.Passes(p.vlm, 1, device, max(WIDTHS)) for name, p in policies.items()}
    layers = {name: p.vlm.model.model.language_model.layers for name, p in policies.items()}
    table: dict[str, Any] = {
        name: {
            "layers_mb": megabytes(layers[name]),
            "all_mb": megabytes(policy),
            "floor_ms_per_pass": round(1e9 * megabytes(layers[name]) / bandwidth, 2),
        }
        for name, policy in policies.items()
    }
    runs: dict[str, dict[str, Callable[[], Any]]] = {"prefill": {n: p.prefill for n, p in passes.items()}}
    for width in WIDTHS:
        runs[f"width{width}"] = {n: lambda p=p, w=width: p.score(w) for n, p in passes.items()}
    for what, by_name in runs.items():
        with torch.inference_mode():
            times = alternately(by_name, repeats)
        for name in PRECISIONS:
            table[name][f"{what}_ms"] = round(percentiles(times[name])[0], 1)
            table[name][f"{what}_times_float32"] = ratio(times[name], times["float32"])
    return table


def loading(folder: Path) -> dict[str, Any]:
    """Load a policy in a process of its own for each precision; return peak memory and what stays."""
    found: dict[str, Any] = {}
    for name in PRECISIONS:
        child = [sys.executable, __file__, "--policy", str(folder), "--load-only", name]
        finished = subprocess.run(child, capture_output=True, text=True, check=True)
        line = next(line for line in finished.stdout.splitlines() if line.startswith(FIGURES))
        found[name] = json.loads(line.removeprefix(FIGURES))
    return found


def load_only(path: Path, name: str) -> None:
    """Print the memory that loading a policy adds to this process, in megabytes: at its peak, and afterwards."""
    if PRECISIONS[name][1]:
        import torchao.quantization  # noqa: F401 - its code is no part of the policy
    before = memory("VmRSS")
    policy = load(path, name)
    # `getrusage` would give the peak of the process that started this one, if that was higher.
    figures = {"peak_mb": round(memory("VmHWM") - before), "resident_mb": round(memory("VmRSS") - before)}
    print(FIGURES + json.dumps(figures | {"weights_mb": megabytes(policy)}))


def memory(what: str) -> float:
    """Return this process's resident memory (``VmRSS``) or its peak (``VmHWM``), in megabytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1.024 * int(line.split()[1]) for line in status if line.startswith(what)) / 1e3


# ------------------------------------------------------------------


def show(title: str, rows: dict[str, Any]) -> None:
    """Print a table with a line per precision."""
    print(title)
    for name in PRECISIONS:
        print(f"  {name:<24}", "  ".join(f"{key} {value}" for key, value in rows[name].items()))


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, required=True, help="checkpoint")
    parser.add_argument("--dataset", type=Path, help="folder of a LeRobotDataset with its observations")
    parser.add_argument("--observations", type=int, default=300)
    parser.add_argument(
        "--draft-width", type=int, default=16, help="the same for all, so that passes compare"
    )
    parser.add_argument("--repeats", type=int, default=15, help="of every pass of the random model")
    parser.add_argument("--success", nargs="*", default=[], metavar="NAME=FOLDER", help="of lerobot-eval")
    parser.add_argument("--output", type=Path, help="write the JSON line to this file too")
    parser.add_argument("--load-only", choices=list(PRECISIONS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load_only:
        load_only(arguments.policy, arguments.load_only)
        return
    result: dict[str, Any] = {"benchmark": "quantization", "threads": torch.get_num_threads()}
    if arguments.dataset is None:
        print("not measured: a trained policy, without --dataset")
    else:
        result["trained"] = trained(
            arguments.policy, arguments.dataset, arguments.observations, arguments.draft_width
        )
        show(f"trained policy, {result['trained']['observations']} observations", result["trained"])
    for name, folder in (pair.split("=", 1) for pair in arguments.success):
        overall = json.loads((Path(folder) / "eval_info.json").read_text())["overall"]
        result.setdefault("success_percent", {})[name] = {
            "percent": overall["pc_success"],
            "starts": overall["n_episodes"],
        }
    print("success:", result.get("success_percent", "not measured"))
    with TemporaryDirectory() as folder:
        save_slice(Path(folder))
        result["loading"] = loading(Path(folder))
        result["random"] = sliced(Path(folder), arguments.repeats)
    show("loading, random model", result["loading"])
    show("passes, random model", result["random"])
    line = json.dumps(result | hardware())
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
