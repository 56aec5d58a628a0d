"""How long a chunk takes, by decoder, along real rollouts.

    python benchmarks/decode.py --policy CHECKPOINT [--task button-press-topdown-v3] [--output FILE]

    python benchmarks/decode.py --vlm qwen2.5-vl-3b-random [--acceptance results/decode_demo_bins1000_bfloat16.json]

Drives the simulator with the policy and keeps what it saw at every query, then answers the very same
observations, in the same order, with plain Hugging Face ``generate``, the reference decoder, the fast one
and the speculative one. With ``--vlm``, times passes of a random model of the 3B's shapes instead. Prints
tables and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")

import decode_shapes
import numpy as np
import torch
from hardware import copy_bandwidth, hardware, percentiles, synchronise
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_vla0 import VLA0Config, VLA0Policy
from lerobot_policy_vla0.decoding.factory import build_decoder
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.observations.batches import read_images, read_prompt
from lerobot_policy_vla0.observations.images import encode_images, grid_size

DECODERS = ("hf_generate", "reference", "fast", "speculative")
#: Decoders without memory of earlier answers are timed on every so manieth observation only.
STRIDE = {"hf_generate": 4, "reference": 4, "fast": 2, "speculative": 1}


@dataclass
class Figures:
    """What was collected about one decoder."""

    chunk_ms: list[float] = field(default_factory=list)
    prefill_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    first_passes: list[int] = field(default_factory=list)
    tokens: int = 0
    forced: int = 0
    drafted: int = 0
    accepted: int = 0
    stops: list[int] = field(default_factory=list)
    answers: dict[tuple[int, int], list[int]] = field(default_factory=dict)


def load(path: Path, n_action_steps: int, dtype: str) -> tuple[VLA0Policy, Any, Any]:
    """Load a policy without ensembling (which does not change what is decoded, only what is executed)."""
    config = PreTrainedConfig.from_pretrained(path)
    assert isinstance(config, VLA0Config)
    config.n_action_steps, config.ensemble_n_chunks = n_action_steps, 1
    config.dtype = dtype
    config.device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = VLA0Policy.from_pretrained(path, config=config)
    pre, post = make_pre_post_processors(config, str(path))
    return policy, pre, post


def roll_out(
    path: Path, task: str, seeds: range, n_action_steps: int, limit: int, dtype: str
) -> list[list[Any]]:
    """Drive the simulator; return per episode the pre-processed batch of every query."""
    from lerobot.envs.metaworld import MetaworldEnv
    from lerobot.envs.utils import preprocess_observation

    policy, pre, post = load(path, n_action_steps, dtype)
    env = MetaworldEnv(task, obs_type="pixels_agent_pos")
    episodes = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        policy.reset()
        queries: list[Any] = []
        for step in range(limit):
            batch = preprocess_observation(
                {
                    "pixels": observation["pixels"][None],
                    "agent_pos": observation["agent_pos"][None],
                }
            )
            batch["task"] = [env.task_description]
            batch = dict(pre(batch))
            if step % n_action_steps == 0:
                queries.append(batch)
            with torch.inference_mode():
                action = post(policy.select_action(batch))[0].numpy()
            observation, _, terminated, _, _ = env.step(action)
            if terminated:
                break
        print(f"  seed {seed}: {'solved' if terminated else 'not solved'} after {step + 1} steps")
        episodes.append(queries)
    env.close()
    return episodes


def request_of(policy: VLA0Policy, batch: dict[str, Any], steps_since: int) -> DecodeRequest:
    """Return what the policy would ask its decoder."""
    device = next(policy.parameters()).device
    prompt, mask = read_prompt(batch, device)
    images = read_images(batch, policy.config, device)
    pixel_values, grid_thw = encode_images(images, policy.image_settings, None)
    size = grid_size(policy.image_settings, len(images))[0]
    return DecodeRequest(prompt, mask, pixel_values, grid_thw, steps_since=steps_since, size=size)


def answer(policy: VLA0Policy, name: str, decoder: Any, request: DecodeRequest) -> Any:
    """Decode one request; return the report, or for plain ``generate`` the number of passes."""
    if name != "hf_generate":
        return decoder.decode(request)
    return decode_shapes.generate(policy.vlm, request, policy.codec.max_answer_length)


def compare(path: Path, episodes: list[list[Any]], n_action_steps: int, dtype: str) -> dict[str, Any]:
    """Answer all observations with every decoder; return the table's rows."""
    policy, _, _ = load(path, n_action_steps, dtype)
    device = next(policy.parameters()).device
    decoders: dict[str, Any] = {"hf_generate": None}
    for name in DECODERS[1:]:
        policy.config.decoder = name
        decoders[name] = build_decoder(policy.config, policy.vlm, device)
    figures = {name: Figures() for name in DECODERS}
    with torch.inference_mode(), policy._autocast():
        requests = [[request_of(policy, batch, n_action_steps) for batch in queries] for queries in episodes]
        for name in DECODERS:  # caches, autotuning
            answer(policy, name, decoders[name], requests[0][0])
        for number, queries in enumerate(requests):
            for decoder in decoders.values():
                if decoder is not None:
                    decoder.reset()
            for index, request in enumerate(queries):
                for name in DECODERS:  # side by side, so that noise hits all of them
                    if index % STRIDE[name]:
                        continue
                    synchronise(device)
                    began = time.perf_counter()
                    ids = answer(policy, name, decoders[name], request)
                    synchronise(device)
                    took = 1e3 * (time.perf_counter() - began)
                    record(figures[name], took, ids, decoders[name], (number, index))
    n = policy.codec.n_numbers
    dims = policy.codec.action_dim
    drafter = decoders["speculative"].drafter
    bins = np.array(
        [
            policy.codec.decode_ids(torch.tensor([a]))[0].tolist()
            for a in figures["speculative"].answers.values()
        ]
    )
    varying = [d for d in range(dims) if len(np.unique(bins[:, :, d])) > 1]
    weights = sum(p.numel() for p in policy.vlm.model.model.language_model.layers.parameters())
    size = weights * (2 if dtype == "bfloat16" else 4)
    floor_ms = 1e3 * size / copy_bandwidth(device)
    table: dict[str, Any] = {}
    for name, f in figures.items():
        p50, p95 = percentiles(f.chunk_ms)
        passes = float(np.mean(f.passes))
        row: dict[str, Any] = {
            "chunks": len(f.chunk_ms),
            "ms_p50": round(p50, 2),
            "ms_p95": round(p95, 2),
            "times_faster_than_hf_generate": round(percentiles(figures["hf_generate"].chunk_ms)[0] / p50, 2),
            "passes": round(passes, 2),
            "passes_per_number": round(passes / n, 3),
            "passes_per_varying_number": round(passes / (n * len(varying) / dims), 3),
            "tokens_per_pass": round(f.tokens / max(sum(f.passes), 1), 2),
            "forced_share": round(f.forced / max(f.tokens, 1), 3),
            "first_call_ms": round(float(np.median(f.first_ms)), 2),
            "first_call_passes": round(float(np.mean(f.first_passes)), 1),
            "floor_ms": round(passes * floor_ms, 2),
        }
        if f.prefill_ms:
            rest = [
                (c - p) / max(k - 1, 1) for c, p, k in zip(f.chunk_ms, f.prefill_ms, f.passes, strict=True)
            ]
            row["prefill_ms"] = round(float(np.median(f.prefill_ms)), 2)
            row["ms_per_pass"] = round(float(np.median(rest)), 2)
        if f.drafted:
            row["accepted_share"] = round(f.accepted / f.drafted, 3)
            row["width"] = drafter.width
        table[name] = row
    stops = [s % dims for s in figures["speculative"].stops if s < n]
    table["passes_ended_in_dimension"] = [round(stops.count(d) / max(len(bins), 1), 2) for d in range(dims)]
    table["varying_dimensions"] = varying
    table["differences_from_reference"] = sum(
        figures["speculative"].answers[key] != ids or figures["fast"].answers.get(key, ids) != ids
        for key, ids in figures["reference"].answers.items()
    )
    return table


def record(f: Figures, took: float, ids: torch.Tensor, decoder: Any, key: tuple[int, int]) -> None:
    """Add one answer to a decoder's figures."""
    f.chunk_ms.append(took)
    passes = ids.shape[1] if decoder is None else decoder.last.passes
    f.passes.append(passes)
    if key[1] == 0:
        f.first_ms.append(took)
        f.first_passes.append(passes)
    if decoder is None:
        f.tokens += ids.shape[1]
        return
    f.answers[key] = ids[0].tolist()
    report = decoder.last
    f.prefill_ms.append(report.prefill_milliseconds)
    f.tokens += report.tokens
    f.forced += report.forced
    f.drafted += report.drafted
    f.accepted += report.accepted
    f.stops += report.stops[0]


def batched(path: Path, episodes: list[list[Any]], dtype: str, rows: int = 10) -> dict[str, float]:
    """Return chunks per second of the speculative decoder at batch 1 and ``rows``."""
    policy, _, _ = load(path, 1, dtype)
    device = next(policy.parameters()).device
    length = min(map(len, episodes)) - rows // len(episodes) * 2
    out = {}
    with torch.inference_mode(), policy._autocast():
        for batch in (1, rows):
            decoder = build_decoder(policy.config, policy.vlm, device)
            streams = [episodes[r % len(episodes)][r // len(episodes) * 2 :] for r in range(batch)]
            requests = []
            for t in range(0, length):
                parts = [stream[t] for stream in streams]
                joined = {
                    k: torch.cat([p[k] for p in parts]) if isinstance(v, torch.Tensor) else v
                    for k, v in parts[0].items()
                }
                requests.append(request_of(policy, joined, 1))
            decoder.decode(requests[0])
            decoder.reset()
            synchronise(device)
            began = time.perf_counter()
            for request in requests:
                decoder.decode(request)
            synchronise(device)
            out[f"chunks_per_s_batch{batch}"] = round(
                batch * len(requests) / (time.perf_counter() - began), 1
            )
    return out


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path("outputs/demo/button-press-topdown-v3/train/checkpoints/last/pretrained_model")
    parser.add_argument("--policy", type=Path, default=default, help="checkpoint")
    parser.add_argument("--task", default="button-press-topdown-v3")
    parser.add_argument("--seed", type=int, default=300_000)
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--limit", type=int, default=150, help="control steps per episode at most")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--n-action-steps", type=int, nargs="+", default=None)
    parser.add_argument("--output", type=Path, help="write the JSON line to this file too")
    parser.add_argument(
        "--vlm", choices=("qwen2.5-vl-3b-random", "tiny"), help="random weights, pass times only"
    )
    parser.add_argument("--acceptance", type=Path, help="with --vlm: JSON of a trained policy's rollouts")
    parser.add_argument("--repeats", type=int, default=20, help="with --vlm")
    arguments = parser.parse_args()
    if arguments.vlm:
        finish(
            decode_shapes.measure(arguments.vlm, arguments.acceptance, arguments.repeats), arguments.output
        )
        return
    if not arguments.policy.is_dir():
        parser.exit(message=f"not measured: {arguments.policy} is missing; run `make demo` first\n")
    chunk = PreTrainedConfig.from_pretrained(arguments.policy).chunk_size  # type: ignore[attr-defined]
    result: dict[str, Any] = {"benchmark": "decode", "task": arguments.task, "dtype": arguments.dtype}
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    for steps in arguments.n_action_steps or sorted({1, 2, 4, chunk}):
        print(f"n_action_steps={steps}")
        episodes = roll_out(arguments.policy, arguments.task, seeds, steps, arguments.limit, arguments.dtype)
        table = compare(arguments.policy, episodes, steps, arguments.dtype)
        result[f"n_action_steps_{steps}"] = table
        for name in DECODERS:
            print(f"  {name:12s}", "  ".join(f"{k} {v}" for k, v in table[name].items()))
        if steps == 1:
            result |= batched(arguments.policy, episodes, arguments.dtype)
            print("  ", {k: v for k, v in result.items() if k.startswith("chunks_per_s")})
    finish(result, arguments.output)


def finish(result: dict[str, Any], output: Path | None) -> None:
    """Add memory and machine, write and print the JSON line."""
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if torch.cuda.is_available():
        result["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    result |= hardware()
    line = json.dumps(result)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
