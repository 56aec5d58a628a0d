"""Opens what a command works on: a LeRobot dataset, the options of a policy, a trained policy with its processors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draccus
from draccus.utils import DraccusException
from huggingface_hub.errors import HfHubHTTPError
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType
from lerobot.utils.constants import ACTION, DEFAULT_FEATURES
from lerobot.utils.feature_utils import dataset_to_policy_features

from lerobot_policy_vla0.checkpoints.files import causes, read_config, resolve_checkpoint
from lerobot_policy_vla0.checkpoints.fine_tuning import check_dataset
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.errors import (
    ActionError,
    CameraError,
    CheckpointError,
    ConfigError,
    DatasetError,
    Vla0Error,
)
from lerobot_policy_vla0.observations.batches import rename_option

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy


@dataclass(frozen=True)
class DatasetSource:
    """Which dataset, in LeRobot's terms. Without a ``root`` it is in LeRobot's cache or on the Hub."""

    repo_id: str
    root: str | None = None
    revision: str | None = None

    def metadata(self) -> Any:
        """Return LeRobot's ``LeRobotDatasetMetadata``, downloaded if the dataset is only on the Hub."""
        from lerobot.datasets import LeRobotDatasetMetadata

        with _reading(self):
            meta = LeRobotDatasetMetadata(self.repo_id, root=self.root, revision=self.revision)
        if ACTION not in meta.features:
            raise DatasetError(
                f"{self} has no {ACTION!r}, only {sorted(meta.features.keys() - DEFAULT_FEATURES.keys())}. LeRobot "
                "knows actions by this name: rename the feature in the data set."
            )
        shape = meta.features[ACTION].get("shape", ())
        if meta.total_episodes < 1 or len(shape) != 1:
            raise DatasetError(
                f"{self} has {meta.total_episodes} episode(s) and an action of shape {tuple(shape)}, expected at "
                "least one episode and an action of shape (action_dim,)."
            )
        return meta

    def open(self, **options: Any) -> Any:
        """Return LeRobot's ``LeRobotDataset`` with the given options; raises `DatasetError`."""
        from lerobot.datasets import LeRobotDataset

        with _reading(self):
            return LeRobotDataset(self.repo_id, root=self.root, revision=self.revision, **options)

    def __str__(self) -> str:
        return f"the dataset {self.repo_id!r}" + (f" in {self.root}" if self.root else "")


@contextmanager
def _reading(source: DatasetSource) -> Iterator[None]:
    """Turn the various errors of a dataset that cannot be read into a `DatasetError`."""
    from lerobot.datasets.utils import CompatibilityError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, HfHubHTTPError, CompatibilityError) as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise DatasetError(
            f"{source} cannot be read ({type(error).__name__}: {lines[0]}). Expected a LeRobot v3 dataset: check "
            "--dataset.repo_id, and --dataset.root, the folder that holds meta/."
        ) from error


def check_frame(meta: Any, episode: int, frame: int) -> None:
    """Refuse a frame that a dataset does not have. Episodes and their frames count from 0.

    Raises:
        DatasetError: naming the episodes and frames that there are.
    """
    lengths = [int(meta.episodes[index]["length"]) for index in range(meta.total_episodes)]
    if not 0 <= episode < len(lengths) or not 0 <= frame < lengths[episode]:
        last = lengths[episode] - 1 if 0 <= episode < len(lengths) else None
        raise DatasetError(
            f"there is no frame {frame} of episode {episode}: the dataset has the episodes 0 to {len(lengths) - 1}"
            + (f", and this one the frames 0 to {last}." if last is not None else ".")
        )


def read_frame(source: DatasetSource, meta: Any, episode: int, frame: int) -> dict[str, Any]:
    """Return one frame of a dataset as LeRobot gives it; pictures are ``(3, H, W)`` float32 in ``[0, 1]``.

    Raises:
        DatasetError: if there is no such frame, or the dataset cannot be read.
    """
    check_frame(meta, episode, frame)
    dataset = source.open(episodes=[episode])
    index = int(meta.episodes[episode]["dataset_from_index"]) + frame
    item: dict[str, Any] = dataset[(dataset.absolute_to_relative_idx or {}).get(index, index)]
    return item


def load_config(path: str | Path | None, overrides: Sequence[str]) -> VLA0Config:
    """Return the config of a policy: a checkpoint's or, without a ``path``, the default one, with options changed.

    Args:
        path: a checkpoint's folder or Hub repo.
        overrides: options as LeRobot writes them without ``policy.``, such as ``--chunk_size=8``.

    Raises:
        ConfigError: naming an option that is out of range or contradicts another one.
        CheckpointError: if the checkpoint has no readable config, or is another policy's.
    """
    config: PreTrainedConfig
    try:
        if path is None:
            # Nothing will run on the device. LeRobot warns if it has to choose one.
            device = [] if any(option.startswith("--device=") for option in overrides) else ["--device=cpu"]
            config = draccus.parse(VLA0Config, args=[*device, *overrides])
        else:
            folder = resolve_checkpoint(path, weights=False)
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


def set_features(config: VLA0Config, meta: Any) -> None:
    """Set a config's features to a dataset's and check them, as LeRobot's ``make_policy`` does before training.

    The dataset has to fit the features of a checkpoint, if the config is of one; see `check_dataset`.
    """
    if config.input_features:
        check_dataset(config, meta.stats, meta)
        _check_action_dim(config, meta)
    features = dataset_to_policy_features(meta.features)
    config.output_features = {key: item for key, item in features.items() if item.type is FeatureType.ACTION}
    config.input_features = {key: item for key, item in features.items() if key not in config.output_features}
    config.validate_features()


def action_names(meta: Any) -> list[str]:
    """Return the names of the action's dimensions, or their numbers if the dataset does not name each."""
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
    """Return the episodes of a list such as ``3,5-7``, ascending and each once, of a dataset of ``total`` episodes.

    Raises:
        DatasetError: if the text is no such list, or names an episode that does not exist.

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
    """A policy in evaluation mode, with its saved pre- and post-processor.

    Attributes:
        name: folder or repo, as given.
        training: the ``dataset`` part of its ``train_config.json``; empty if there is none.
        cameras: the dataset's key for each camera key of the policy.
    """

    name: str
    policy: VLA0Policy
    preprocess: Any
    postprocess: Any
    training: dict[str, Any]
    cameras: dict[str, str]


def load_policy(path: str, overrides: list[str], meta: Any, rename_map: dict[str, str]) -> TrainedPolicy:
    """Load a trained policy, after checking that it fits a dataset; see `load_config` and `match_robot`."""
    config = load_config(path, overrides)
    if config.decoder == "auto" and config.draft_width is None and config.engine is None:
        # The speculative decoder chooses its width by timing, and in bfloat16 another width can decide near-ties
        # differently. The fast decoder takes the same passes every time, so that a run can be repeated.
        config.decoder = "fast"
    cameras = match_robot(config, meta, rename_map)
    policy, preprocess, postprocess = load_with_processors(path, config, rename_map)
    file = resolve_checkpoint(path, weights=False) / "train_config.json"
    training = json.loads(file.read_text()).get("dataset", {}) if file.is_file() else {}
    return TrainedPolicy(path, policy, preprocess, postprocess, training, cameras)


def load_with_processors(
    path: str | Path, config: VLA0Config, rename_map: dict[str, str] | None = None
) -> tuple[VLA0Policy, Any, Any]:
    """Return a trained policy with a config of `load_config`, its pre-processor and its post-processor.

    The pre-processor first renames observations by ``rename_map``.
    """
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy  # imports transformers

    folder = resolve_checkpoint(path, weights=config.engine is None)
    policy = VLA0Policy.from_pretrained(folder, config=config)
    return policy, *load_processors(path, policy.config, rename_map)


def load_processors(
    path: str | Path, config: VLA0Config, rename_map: dict[str, str] | None = None
) -> tuple[Any, Any]:
    """Return the pre- and the post-processor of a trained policy; see `load_with_processors`."""
    from lerobot.policies import make_pre_post_processors

    pipelines: tuple[Any, Any] = make_pre_post_processors(
        policy_cfg=config,
        pretrained_path=str(resolve_checkpoint(path, weights=False)),
        preprocessor_overrides={
            "device_processor": {"device": str(config.device)},
            "rename_observations_processor": {"rename_map": rename_map or {}},
        },
    )
    return pipelines


def match_robot(config: VLA0Config, meta: Any, rename_map: dict[str, str]) -> dict[str, str]:
    """Return `match_cameras`, after refusing a dataset whose actions have another size than the policy's."""
    cameras = match_cameras(config, meta, rename_map)
    _check_action_dim(config, meta)
    return cameras


def match_cameras(config: VLA0Config, meta: Any, rename_map: dict[str, str]) -> dict[str, str]:
    """Return the dataset's key for each camera of a trained policy.

    ``rename_map`` has keys of the policy for keys of the dataset. A dataset that lacks a camera is refused.
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
        free = [key for name, key in by_policy.items() if name not in config.camera_keys]
        rename = f", or name its cameras alike: {rename_option(missing, free)}" if free else ""
        raise CameraError(
            f"the policy reads the cameras {config.camera_keys}, and the dataset has {there} (missing: {missing}). "
            f"Use a dataset with all cameras of the training{rename}."
        )
    return {key: by_policy[key] for key in config.camera_keys}


def _check_action_dim(config: VLA0Config, meta: Any) -> None:
    dims = int(meta.features[ACTION]["shape"][0])
    if dims != config.action_dim:
        raise ActionError(
            f"the policy's actions have {config.action_dim} dimensions, the dataset's {dims} {action_names(meta)}. "
            "They belong to different robots: use a dataset of the robot the policy was trained for."
        )


def held_out_episodes(meta: Any, source: DatasetSource, training: dict[str, Any]) -> list[int] | None:
    """Return the episodes of a dataset that a training run never saw, ascending.

    LeRobot holds out the last ``ceil(n * eval_split)`` of the ``n`` episodes of each task; an episode belongs to its
    first task. The result is None if the run's ``train_config.json``, of which ``training`` is the ``dataset`` part,
    names no dataset or another one.
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


def last_episode_of_each_task(meta: Any) -> list[int]:
    """Return the last episode of each task, ascending. An episode belongs to its first task."""
    last = {next(iter(episode_tasks(meta, index)), ""): index for index in range(meta.total_episodes)}
    return sorted(last.values())


def episode_tasks(meta: Any, index: int) -> list[str]:
    """Return the task texts of an episode."""
    return [str(task) for task in meta.episodes[index]["tasks"]]
