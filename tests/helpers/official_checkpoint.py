"""Writes small checkpoints in the paper's and in vla0-trl's layout, as those programs leave them on disk."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.tiny import SMALL
from lerobot_policy_vla0 import TinyVLMConfig
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer, tiny_vlm_config
from lerobot_policy_vla0.tools.commands import main

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TRL_OPTIONS = [
    "--chunk-size=8",
    "--n-bins=1000",
    "--image-size=224",
    "--crop-ratio=0.875",
    "--tile",
    "--camera=image=observation.images.image",
    "--camera=image2=observation.images.image2",
]

LIBERO_MIN = [-0.9375, -0.9375, -0.9375, -0.258214, -0.375, -0.3675, -1.0]
LIBERO_MAX = [0.9375, 0.9375, 0.9375, 0.355714, 0.375, 0.375, 1.0]

PAPER_CONFIG = """\
DATALOADER:
  ROBOVERSE:
    cfg_opts: IMAGE.crop_img:0.875:IMAGE.img_size:{size}:IMAGE.cam_list:{cameras}
  batch_size: 8
EXP:
  MODEL: qwen
MODEL:
  QWEN:
    add_vision_id: true
    history: 1
    horizon: {horizon}
    num_bins_actions: {bins}
    num_cam: {n_cameras}
    original_action_dim: {dim}
    rgb_img_size:
    - {size}
    - {size}
    tiled_rgb_imgs: true
"""


def write_paper_checkpoint(
    root: Path,
    *,
    horizon: int = 8,
    bins: int = 1000,
    size: int = 224,
    cameras: str = "('3p1','3p2')",
    low: list[float] = LIBERO_MIN,
    high: list[float] = LIBERO_MAX,
) -> Path:
    """Write ``config.yaml``, ``dataset_stats.pkl`` and ``model_last/`` in two shards; returns ``root``."""
    write_model(root / "model_last", old_names=True, shards=2)
    (root / "config.yaml").write_text(
        PAPER_CONFIG.format(
            horizon=horizon,
            bins=bins,
            size=size,
            cameras=cameras,
            n_cameras=cameras.count("3p"),
            dim=len(low),
        )
    )
    (root / "dataset_stats.pkl").write_bytes(paper_stats(low, high))
    (root / "model_last.pth").write_bytes(b"15 GB of optimizer state")
    return root


def paper_stats(low: list[float], high: list[float]) -> bytes:
    """Return the statistics as NumPy 1 pickles them with protocol 4."""
    arrays = {"min": low, "max": high, "mean_ema": low, "std_ema": high}
    content = {"out_ori_act": {key: np.array(value, np.float32) for key, value in arrays.items()}}
    raw = pickle.dumps(content, protocol=4)
    # NumPy 2 writes `numpy._core`, one letter more than NumPy 1; the length of the frame goes along.
    old = raw.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    assert len(old) == len(raw) - 1
    frame = int.from_bytes(raw[3:11], "little") - 1
    return old[:3] + frame.to_bytes(8, "little") + old[11:]


def write_trl_checkpoint(root: Path) -> Path:
    """Write vla0-trl's layout: the statistics in ``root``, the model in a folder below; returns that."""
    model = write_model(root / "checkpoint-1000", old_names=False, shards=1)
    stats = {"out_ori_act": {"min": LIBERO_MIN, "max": LIBERO_MAX}}
    (root / "dataset_stats.json").write_text(json.dumps(stats))
    return model


def write_model(folder: Path, *, old_names: bool, shards: int) -> Path:
    """Write a tiny random Qwen2.5-VL in bfloat16 as transformers does; returns ``folder``.

    Args:
        folder: is made.
        old_names: tensor names and flat ``config.json`` of transformers before 4.52, or those of 5.
        shards: files the weights are spread over.
    """
    from transformers import AutoModelForImageTextToText

    folder.mkdir(parents=True)
    tokenizer = build_tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config: Any = tiny_vlm_config(TinyVLMConfig(**SMALL), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        weights: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight":  # tied: stored once
                continue
            # The usual random weights answer every picture alike.
            value = tensor if tensor.ndim == 1 else torch.randn_like(tensor) * 0.15
            weights[old_name(name) if old_names else name] = value.to(torch.bfloat16).contiguous()

    description = config.to_dict()
    if old_names:
        text = description.pop("text_config")
        rope = text.pop("rope_parameters")
        description |= {key: text[key] for key in text if key not in ("model_type", "dtype")}
        description["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        description["rope_theta"] = rope["rope_theta"]
        description["torch_dtype"] = "bfloat16"
        description.pop("dtype", None)
    description["architectures"] = ["Qwen2_5_VLForConditionalGeneration"]
    write_json(folder / "config.json", description)
    end, pad = (tokenizer.encode(t)[0] for t in ("<|im_end|>", "<|endoftext|>"))
    write_json(
        folder / "generation_config.json",
        {
            "do_sample": True,
            "eos_token_id": [end, pad],
            "pad_token_id": pad,
            "repetition_penalty": 1.05,
            "temperature": 1e-6,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "patch_size": 14,
        },
    )
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = sorted(weights)
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    where = {name: files[i * shards // len(names)] for i, name in enumerate(names)}
    for file in files:
        save_file({n: weights[n] for n in names if where[n] == file}, folder / file, {"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    return folder


def old_name(name: str) -> str:
    """Return the name transformers before 4.52 had for a tensor."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file."""
    file.write_text(json.dumps(content, indent=2, default=str))


def refusal(capsys: pytest.CaptureFixture[str], source: Path | str, tmp_path: Path, *options: str) -> str:
    """Import what cannot be imported; returns the one line of the error. Nothing may be left behind."""
    target = tmp_path / "target"
    target.mkdir()
    capsys.readouterr()
    assert main(["import", str(source), "--out", str(target / "policy"), *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vla0 import: error:")]
    assert len(lines) == 1
    assert list(target.iterdir()) == []
    return lines[0]


def pretend_hub(
    monkeypatch: pytest.MonkeyPatch, source: Path, cache: Path
) -> list[tuple[str, str | None, str]]:
    """Let ``vla0 import`` download from a folder instead of the Hub; returns what it fetches: repo, revision, file."""
    from huggingface_hub.utils import filter_repo_objects

    from lerobot_policy_vla0.tools.importing import layout

    fetched: list[tuple[str, str | None, str]] = []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            fetched.append((repo, revision, name))
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, cache / name)
        return str(cache)

    monkeypatch.setattr(layout, "snapshot_download", download)
    return fetched
