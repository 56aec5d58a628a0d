"""Opens what a command works on: a LeRobot dataset, the options of a policy, a trained policy with its processors.

Says in plain words what is missing or does not fit. Knows LeRobot's readers; computes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draccus
from draccus.utils import DraccusException
from huggingface_hub.errors import HfHubHTTPError
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType
from lerobot.utils.constants import ACTION
from lerobot.utils.feature_utils import dataset_to_policy_features

from lerobot_policy_vla0.checkpoints.files import causes, read_config, resolve_checkpoint
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.errors import (
    ActionError,
    CameraError,
    CheckpointError,
    ConfigError,
    DatasetError,
    Vla0Error,
)

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy


@dataclass(frozen=True)
class DatasetSource:
    """Which dataset, in LeRobot's terms.

    Attributes:
        repo_id: name on the Hub, or any name for a local folder.
        root: the dataset's folder; None for LeRobot's cache.
        revision: Hub revision.
    """

    repo_id: str
    root: str | None = None
    revision: str | None = None

    def metadata(self) -> Any:
        """Return LeRobot's ``LeRobotDatasetMetadata``; downloads it if the dataset is on the Hub only.

        Raises:
            DatasetError: if there is no such dataset, or it has no episodes or no usable action.
        """
        from lerobot.datasets import LeRobotDatasetMetadata

        with _reading(self):
            meta = LeRobotDatasetMetadata(self.repo_id, root=self.root, revision=self.revision)
        shape = meta.features.get(ACTION, {}).get("shape", ())
        if meta.total_episodes < 1 or len(shape) != 1:
            raise DatasetError(
                f"{self} has {meta.total_episodes} episode(s) and an action of shape {tuple(shape)}, expected at "
                "least one episode and an action of shape (action_dim,)."
            )
        return meta

    def open(self, **options: Any) -> Any:
        """Return LeRobot's ``LeRobotDataset`` with the given options.

        Raises:
            DatasetError: if it cannot be read.
        """
        from lerobot.datasets import LeRobotDataset

        with _reading(self):
            return LeRobotDataset(self.repo_id, root=self.root, revision=self.revision, **options)

    def __str__(self) -> str:
        return f"the dataset {self.repo_id!r}" + (f" in {self.root}" if self.root else "")


@contextmanager
def _reading(source: DatasetSource) -> Iterator[None]:
    """Turn the many errors of a dataset that is not there into one that says so."""
    from lerobot.datasets.utils import CompatibilityError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, HfHubHTTPError, CompatibilityError) as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise DatasetError(
            f"{source} cannot be read ({type(error).__name__}: {lines[0]}). Expected a LeRobot v3 dataset: check "
            "--dataset.repo_id, and --dataset.root, the folder that holds meta/."
        ) from error


def policy_config(path: str | Path | None, overrides: Sequence[str]) -> VLA0Config:
    """Return the config of a policy: a checkpoint's, or the defaults, with options changed.

    Args:
        path: a checkpoint's folder or Hub repo; None starts from the defaults.
        overrides: LeRobot's way to write options, without ``policy.``: ``--chunk_size=8``.

    Raises:
        ConfigError: naming an option that is out of range or contradicts another one.
        CheckpointError: if the checkpoint has no readable config, or is another policy's.
    """
    config: PreTrainedConfig
    try:
        if path is None:
            # Nothing will run on the device; naming one keeps LeRobot from warning about the choice.
            device = [] if any(option.startswith("--device=") for option in overrides) else ["--device=cpu"]
            config = draccus.parse(VLA0Config, args=[*device, *overrides])
        else:
            folder = resolve_checkpoint(path)
            stored = read_config(folder)  # its errors name the option
            if stored.type != "vla0":
                raise CheckpointError(f"{path} is a {stored.type!r} policy, expected 'vla0'.")
            config = PreTrainedConfig.from_pretrained(folder, cli_overrides=list(overrides))
    except (DraccusException, ValueError) as error:
        chain = causes(error)
        for cause in chain:
            if isinstance(cause, Vla0Error):
                raise cause from None
        given = " ".join(option.replace("--", "--policy.", 1) for option in overrides)
        reasons = " <- ".join(str(cause).strip() for cause in chain)
        raise ConfigError(f"the options {given} cannot be read: {reasons}") from error
    assert isinstance(config, VLA0Config)
    return config


def fill_features(config: VLA0Config, meta: Any) -> None:
    """Put a dataset's features into the config of a policy to be trained on it, as LeRobot's ``make_policy`` does.

    Raises:
        CameraError, ConfigError: if the policy cannot be trained on them.
    """
    features = dataset_to_policy_features(meta.features)
    config.output_features = {key: item for key, item in features.items() if item.type is FeatureType.ACTION}
    config.input_features = {key: item for key, item in features.items() if key not in config.output_features}
    config.validate_features()


def action_names(meta: Any) -> list[str]:
    """Return a name for each action dimension; their numbers if the dataset has none."""
    count = int(meta.features[ACTION]["shape"][0])
    names = meta.features[ACTION].get("names")
    if isinstance(names, dict):  # {"motors": [...]}, of older recordings
        names = (
            [name for group in names.values() for name in group]
            if all(isinstance(group, list) for group in names.values())
            else list(names)
        )
    return [str(name) for name in names] if names and len(names) == count else [str(i) for i in range(count)]


def parse_episodes(text: str, total: int) -> list[int]:
    """Read a list of episodes such as ``3,5-7``.

    Args:
        text: numbers and ranges, both ends included.
        total: episodes of the dataset.

    Returns:
        The episodes, ascending, each once.

    Raises:
        DatasetError: if it names no episode, one that does not exist, or is not such a list.

    >>> parse_episodes("3,5-7", 10)
    [3, 5, 6, 7]
    """
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise DatasetError(
                f"--episodes={text!r}: {part.strip()!r} is neither an episode nor a range such as 5-7. Write e.g. "
                "--episodes 3,5-7."
            )
        chosen.update(range(int(first), int(last or first) + 1))
    missing = sorted(chosen - set(range(total)))
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DatasetError(
            f"--episodes={text!r}: the dataset has no episode {shown}; it has {total}, 0 to {total - 1}."
        )
    return sorted(chosen)


# ---------------------------------------------------------------------- trained policies


@dataclass
class TrainedPolicy:
    """A policy with its processors, and what its training saw.

    Attributes:
        name: folder or repo, as given.
        policy: in evaluation mode.
        preprocess: the saved pre-processor.
        postprocess: the saved post-processor.
        training: the ``dataset`` part of its ``train_config.json``; empty if there is none.
        cameras: keys of the dataset's cameras that the policy reads, by the policy's names.
    """

    name: str
    policy: VLA0Policy
    preprocess: Any
    postprocess: Any
    training: dict[str, Any]
    cameras: dict[str, str] = field(default_factory=dict)


def load_policy(path: str, overrides: list[str], meta: Any, rename_map: dict[str, str]) -> TrainedPolicy:
    """Load a trained policy for a dataset, after checking that they fit.

    The decoder is the one that takes the same passes every time (``fast``) where the config leaves it open: in
    bfloat16 a near-tie could fall otherwise with another width of pass, which the speculative decoder measures by the
    clock.

    Args:
        path: a checkpoint's folder or Hub repo.
        overrides: options to change, see `policy_config`.
        meta: of the dataset.
        rename_map: keys of the dataset to keys of the policy.

    Raises:
        CameraError: if the dataset lacks a camera.
        ActionError: if the action has another number of dimensions.
        CheckpointError, ConfigError: if the policy cannot be loaded.
    """
    config = policy_config(path, overrides)
    if config.decoder == "auto" and config.draft_width is None:
        config.decoder = "fast"
    cameras = check_fit(config, meta, rename_map)

    policy, preprocess, postprocess = load_with_processors(path, config, rename_map)
    file = resolve_checkpoint(path) / "train_config.json"
    training = json.loads(file.read_text()).get("dataset", {}) if file.is_file() else {}
    return TrainedPolicy(path, policy, preprocess, postprocess, training, cameras)


def load_with_processors(
    path: str | Path, config: VLA0Config, rename_map: dict[str, str] | None = None
) -> tuple[VLA0Policy, Any, Any]:
    """Return a trained policy, its pre-processor and its post-processor.

    Args:
        path: a checkpoint's folder or Hub repo.
        config: from `policy_config`.
        rename_map: names that the pre-processor gives to observations first.

    Raises:
        CheckpointError: if the checkpoint does not load.
    """
    from lerobot.policies import make_pre_post_processors

    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy  # transformers: only when a policy is loaded

    folder = resolve_checkpoint(path)
    policy = VLA0Policy.from_pretrained(folder, config=config)
    preprocess, postprocess = make_pre_post_processors(
        policy_cfg=policy.config,
        pretrained_path=str(folder),
        preprocessor_overrides={
            "device_processor": {"device": str(policy.config.device)},
            "rename_observations_processor": {"rename_map": rename_map or {}},
        },
    )
    return policy, preprocess, postprocess


def check_fit(config: VLA0Config, meta: Any, rename_map: dict[str, str]) -> dict[str, str]:
    """Check that a dataset has what a trained policy reads and writes.

    Returns:
        The policy's cameras and the dataset's keys for them.

    Raises:
        CameraError: naming both sets and the fix.
        ActionError: naming both numbers of dimensions.
    """
    there = [key for key in meta.camera_keys if key not in meta.depth_keys]
    unknown = sorted(set(rename_map) - set(meta.features))
    if unknown:
        raise CameraError(
            f"--rename_map renames {unknown}, which the dataset does not have; its cameras: {there}."
        )
    by_policy = {rename_map.get(key, key): key for key in there}
    missing = [key for key in config.camera_keys if key not in by_policy]
    if missing:
        raise CameraError(
            f"the policy reads the cameras {config.camera_keys}, and the dataset has {there} (missing: {missing}). "
            "Use the dataset the policy was trained for, or name its cameras alike: "
            '--rename_map=\'{"<key in the dataset>": "<key of the policy>"}\'.'
        )
    dims = int(meta.features[ACTION]["shape"][0])
    if dims != config.action_dim:
        raise ActionError(
            f"the policy's actions have {config.action_dim} dimensions, the dataset's {dims} {action_names(meta)}. "
            "They belong to different robots: use a dataset of the robot the policy was trained for."
        )
    return {key: by_policy[key] for key in config.camera_keys}


def held_out_episodes(meta: Any, source: DatasetSource, training: dict[str, Any]) -> list[int] | None:
    """Return the episodes of a dataset that a training run never saw.

    LeRobot's rule: of each task's episodes (by the episode's first task) the last ``ceil(n * eval_split)``.

    Args:
        meta: of the dataset.
        source: which dataset it is.
        training: the ``dataset`` part of the run's ``train_config.json``.

    Returns:
        Episodes, ascending; None if the run does not say, or was trained on a dataset of another name.
    """
    if not training or training.get("repo_id") != source.repo_id:
        return None
    every = range(meta.total_episodes)
    used = training.get("episodes")
    base = list(every) if used is None else [int(index) for index in used]
    groups: dict[str, list[int]] = {}
    for index in base:
        tasks = meta.episodes[index]["tasks"] if index < meta.total_episodes else []
        groups.setdefault(tasks[0] if tasks else "", []).append(index)
    split = float(training.get("eval_split") or 0.0)
    trained: set[int] = set()
    for group in groups.values():
        trained.update(group[: len(group) - math.ceil(len(group) * split)])
    return [index for index in every if index not in trained]


def last_of_each_task(meta: Any) -> list[int]:
    """Return the last episode of each task (by the episode's first task), ascending."""
    last = {next(iter(episode_tasks(meta, index)), ""): index for index in range(meta.total_episodes)}
    return sorted(last.values())


def episode_tasks(meta: Any, index: int) -> list[str]:
    """Return the task texts of an episode."""
    return [str(task) for task in meta.episodes[index]["tasks"]]
