"""Writes the model card of an imported checkpoint: where it comes from, its licences, and how to run it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.tools.importing.layout import Layout

#: Of the paper's weights and code.
LICENSE = "cc-by-nc-4.0"

_TEXT = """
# {title}

VLA-0 ([arXiv 2510.13054](https://arxiv.org/abs/2510.13054)): a vision-language model that writes robot actions as
integers in text. These are the weights of `{source}`, imported unchanged from {layout} layout into a
[LeRobot](https://github.com/huggingface/lerobot) policy.

## Licences

- The weights: **CC BY-NC 4.0** (attribution, no commercial use), the licence of the paper's checkpoint and code. If
  these weights were trained by somebody else, their terms apply as well.
- The base model, `{base_model}`: Qwen2.5-VL-3B is under the **Qwen Research License** (research, no commercial use),
  which fine-tuned weights inherit; other sizes have other terms.

## What it answers

| | |
|---|---|
| steps per answer | {config.chunk_size} |
| dimensions of an action | {config.action_dim} |
| integers | 0 to {config.n_bins} |
| cameras, in order | {cameras} |
| pixels per camera | {config.image_size[0]} x {config.image_size[1]}, crop {config.crop_ratio}, {tiling} |
| executed per query | {config.n_action_steps}, averaged over {config.ensemble_n_chunks} chunks (older ones weigh \
{config.ensemble_old_weight}) |
| snapped dimensions | {config.binary_action_indices} |
| repetition penalty | {config.repetition_penalty} |

## Use

```bash
pip install "lerobot_policy_vla0[libero,libero-assets]"
vla0 libero-setup
lerobot-eval --policy.path=THIS_FOLDER --policy.param_dtype=bfloat16 --env.type=libero --env.task=libero_spatial
lerobot-train --policy.path=THIS_FOLDER --policy.push_to_hub=false --dataset.repo_id=YOUR_NAME/YOUR_DATASET
```
"""


def write_card(file: Path, source: str, layout: Layout, config: VLA0Config, base_model: str) -> None:
    """Write ``README.md`` with its metadata. Of a ``source`` that is a folder only the name is shown."""
    name = Path(source).resolve().name if Path(source).is_dir() else source
    data = ModelCardData(
        license=LICENSE,
        base_model=base_model,
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=["lerobot", "robotics", "vla-0", "vla0"],
    )
    text = _TEXT.format(
        title=f"{name}, for LeRobot",
        source=name,
        layout=layout.name,
        base_model=base_model,
        config=config,
        cameras=", ".join(f"`{key}`" for key in config.camera_keys),
        tiling="side by side in one image" if config.tile_images else "one image each",
    )
    ModelCard(f"---\n{data}\n---\n{text}").save(file)
