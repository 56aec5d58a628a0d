"""What one trained policy costs: tokens and milliseconds per chunk, training samples per second.

    python benchmarks/policy.py --policy CHECKPOINT --dataset ROOT [--output FILE]

Decodes real frames of a dataset with the reference decoder, at batch 1 and 10, and times training steps
with and without our own share (images, token ids, masking). Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from hardware import hardware
from lerobot.configs.policies import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_vla0 import VLA0Config, VLA0Policy
from lerobot_policy_vla0.observations.batches import select_cameras
from lerobot_policy_vla0.observations.images import encode_images
from lerobot_policy_vla0.training.masking import draw_mask


def milliseconds(function: Any, repeats: int) -> list[float]:
    """Time a call ``repeats`` times after one warm-up, sorted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)


def measure(policy_path: Path, dataset_root: Path, *, repeats: int, batch_size: int) -> dict[str, Any]:
    """Return all figures of one policy on one dataset."""
    config = PreTrainedConfig.from_pretrained(policy_path)
    assert isinstance(config, VLA0Config)
    config.decoder = "reference"  # decode.py compares the decoders
    config.device = "cpu" if not torch.cuda.is_available() else "cuda"
    policy = VLA0Policy.from_pretrained(policy_path, config=config)
    preprocess, _ = make_pre_post_processors(config, str(policy_path))
    fps = LeRobotDataset("local/benchmark", root=dataset_root).fps
    dataset = LeRobotDataset(
        "local/benchmark",
        root=dataset_root,
        delta_timestamps={"action": [i / fps for i in config.action_delta_indices]},
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    iterator = iter(loader)
    raw = next(iterator)
    load = milliseconds(lambda: next(iterator), repeats=5)
    batch = dict(preprocess(raw))

    def rows(n: int) -> dict[str, Any]:
        return {k: v[:n] if isinstance(v, torch.Tensor | list) else v for k, v in batch.items()}

    result: dict[str, Any] = {"prompt_tokens": int(batch["observation.language.tokens"].shape[1])}
    bins, _ = policy.codec.actions_to_bins(batch["action"])
    lengths = [len(text) + 1 for text in policy.codec.bins_to_text(bins)]  # the end token included
    result["tokens_per_chunk"] = round(statistics.mean(lengths), 1)
    result["tokens_per_number"] = round(statistics.mean(lengths) / policy.codec.n_numbers, 2)
    for n in (1, min(10, batch_size)):
        part = rows(n)
        times = milliseconds(lambda part=part: policy.predict_action_chunk(part), repeats)
        result[f"decode_ms_batch{n}_p50"] = round(statistics.median(times), 1)
        result[f"decode_ms_batch{n}_p95"] = round(times[int(0.95 * (len(times) - 1))], 1)

    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-5)
    policy.train()

    def step() -> None:
        loss, _ = policy(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def ours() -> None:
        generator = torch.Generator().manual_seed(0)
        images = select_cameras(batch, config.camera_keys, config.image_features)
        encode_images(images, policy.image_settings, generator)
        chunk = policy.codec.encode_bins(policy.codec.actions_to_bins(batch["action"])[0])
        draw_mask(chunk, max_ratio=0.4, skip_prob=0.1, unit="char", generator=generator)
        preprocess({**raw})

    step_ms = statistics.median(milliseconds(step, repeats))
    ours_ms = statistics.median(milliseconds(ours, repeats))
    result |= {
        "batch_size": batch_size,
        "train_step_ms": round(step_ms, 1),
        "train_samples_per_s": round(1e3 * batch_size / step_ms, 1),
        "own_share_of_step": round(ours_ms / step_ms, 4),
        "loader_ms_per_batch_one_process": round(statistics.median(load), 1),
    }
    return result


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    demo = Path("outputs/demo/button-press-topdown-v3")
    parser.add_argument(
        "--policy", type=Path, default=demo / "train/checkpoints/last/pretrained_model", help="checkpoint"
    )
    parser.add_argument("--dataset", type=Path, default=demo / "dataset", help="folder of a LeRobotDataset")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, help="write the JSON line to this file too")
    arguments = parser.parse_args()
    if not arguments.policy.is_dir() or not arguments.dataset.is_dir():
        parser.exit(
            message=f"not measured: {arguments.policy} or {arguments.dataset} is missing; run `make demo` first\n"
        )
    result = measure(
        arguments.policy, arguments.dataset, repeats=arguments.repeats, batch_size=arguments.batch_size
    )
    for key, value in result.items():
        print(f"{key:<34}{value}")
    line = json.dumps({"benchmark": "policy", **hardware(), **result})
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
