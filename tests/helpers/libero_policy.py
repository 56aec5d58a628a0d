"""LIBERO's dataset layout on disk, and policies of the protocol built as LeRobot's commands build them.

Only the backbone is small: random weights under the real tokenizer's 151,936 ids.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_pre_post_processors
from torch.utils.data import default_collate

from helpers.backbones import save_backbone
from helpers.libero_protocol import (
    ACTION_MAX,
    ACTION_MIN,
    IMAGE,
    STEPS,
    TASK,
    WRIST,
    qwen_processor,
    third_person,
    wrist,
)
from lerobot_policy_vla0 import VLA0Config
from lerobot_policy_vla0.backbone import loading as backbones

FPS = 10
REPO_ID = "local/libero"


def write_dataset(root: Path) -> None:
    """Write two 256 x 256 cameras, a state of 8 and the eight actions of the protocol's example."""
    picture = {"dtype": "image", "shape": (256, 256, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        repo_id=REPO_ID,
        root=root,
        fps=FPS,
        use_videos=False,
        features={
            IMAGE: picture,
            WRIST: picture,
            "observation.state": {"dtype": "float32", "shape": (8,), "names": [f"s{i}" for i in range(8)]},
            "action": {"dtype": "float32", "shape": (7,), "names": [f"a{i}" for i in range(7)]},
        },
    )
    for action, _, _ in STEPS:
        dataset.add_frame(
            {
                IMAGE: third_person(),
                WRIST: wrist(),
                "observation.state": np.zeros(8, np.float32),
                "action": np.array(action, np.float32),
                "task": TASK,
            }
        )
    dataset.save_episode()
    dataset.finalize()


_load_description = backbones.load_description


class Libero:
    """The dataset, transformers' processor, and policies by their options (each built once).

    Attributes:
        tokenizer: the real one.
        processor: transformers' ``Qwen2_5_VLProcessor``.
    """

    def __init__(self, folder: Path, qwen_folder: Path, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.processor = qwen_processor(qwen_folder, tokenizer)
        self._base = save_backbone(folder / "base", tokenizer, 151_936)
        self._root = folder / "data"
        write_dataset(self._root)
        self._description: Any = None
        self._built: dict[str, tuple[Any, Any, Any]] = {}

    def build(self, **options: Any) -> tuple[Any, Any, Any]:
        """Return policy (in evaluation mode), pre- and post-processor, with the protocol's options but those given."""
        if repr(options) not in self._built:
            config = VLA0Config(
                vlm_model_name=str(self._base), device="cpu", dtype="float32", push_to_hub=False, **options
            )
            statistics = {"action": {"min": torch.tensor(ACTION_MIN), "max": torch.tensor(ACTION_MAX)}}
            with mock.patch.object(backbones, "load_description", self._load_once):
                policy: Any = make_policy(config, ds_meta=LeRobotDatasetMetadata(REPO_ID, root=self._root))
                pre, post = make_pre_post_processors(config, dataset_stats=statistics)
            self._built[repr(options)] = (policy, pre, post)
        policy, pre, post = self._built[repr(options)]
        policy.eval()
        policy.reset()
        return policy, pre, post

    def _load_once(self, *arguments: Any) -> Any:
        """Read the real tokenizer once: it takes seconds, and every policy here has the same."""
        self._description = self._description or _load_description(*arguments)
        return self._description

    def batch(self, pre: Any, *frames: int) -> dict[str, Any]:
        """Return the pre-processed samples of some frames, as LeRobot's loader hands them over."""
        steps = {"action": [step / FPS for step in range(8)]}
        dataset = LeRobotDataset(REPO_ID, root=self._root, delta_timestamps=steps)
        return dict(pre(default_collate([dataset[frame] for frame in frames])))


class Scribe:
    """A decoder that writes given texts, one per query, and keeps the requests it answers.

    The ids are the tokenizer's own of the text, not the package's.
    """

    name = "scribe"
    last = None

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.tokenizer = tokenizer
        self.texts = list(texts)
        self.requests: list[Any] = []

    def decode(self, request: Any) -> torch.Tensor:
        """Return the ids of the next text."""
        self.requests.append(request)
        return torch.tensor([self.tokenizer.encode(self.texts.pop(0) + "<|im_end|>")])

    def reset(self) -> None:
        """Do nothing."""


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # kept until the process ends


@functools.cache
def libero(qwen_folder: Path, tokenizer: Any) -> Libero:
    """Return the one `Libero` of this process: both test modules share its policies."""
    _FOLDERS.append(tempfile.TemporaryDirectory(prefix="libero"))
    return Libero(Path(_FOLDERS[0].name), qwen_folder, tokenizer)
