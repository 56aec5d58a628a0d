"""Finds the files of a VLA-0 checkpoint that LeRobot did not write, on disk or on the Hub.

Two layouts are known:

- the paper's: ``config.yaml`` (a yacs dump), ``dataset_stats.pkl``, and a Hugging Face model in ``model_last/``;
- vla0-trl's: a Hugging Face model, and ``dataset_stats.json`` in the folder above it; the prompt's numbers and
  the image settings are not stored.

Knows the files' places; `official_settings` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from lerobot_policy_vla0.errors import CheckpointError

PAPER_CONFIG = "config.yaml"
PAPER_STATS = "dataset_stats.pkl"
PAPER_MODEL = "model_last"
TRL_STATS = "dataset_stats.json"

# What is fetched from the Hub. `model_last.pth`, beside `model_last/`, is 15 GB of optimizer state.
_DESCRIPTION_FILES = ["*.json", "*.txt", "*.jinja", PAPER_CONFIG, PAPER_STATS]


@dataclass(frozen=True)
class Layout:
    """Where the parts of a checkpoint are.

    Attributes:
        model: the Hugging Face model folder.
        stats: the file with the action range.
        config: the paper's ``config.yaml``; None in vla0-trl's layout.
    """

    model: Path
    stats: Path
    config: Path | None

    @property
    def name(self) -> str:
        """What to call the layout in messages."""
        return "vla0-trl's" if self.config is None else "the paper's"


def locate(source: str | Path, *, subfolder: str | None = None, revision: str | None = None) -> Layout:
    """Find the parts of a checkpoint, downloading it if ``source`` is a Hub repo id.

    Only descriptions and safetensors files are downloaded, the weights of one model folder only.

    Args:
        source: a folder (the checkpoint's, or the model folder in it) or a Hub repo id.
        subfolder: the model folder inside it; None looks for ``model_last``, or the only one there is.
        revision: Hub revision.

    Raises:
        CheckpointError: if there is no such folder or repo, it has neither layout, or several models.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{folder} is a local folder, which has no revision {revision!r}. Leave it out."
            )
        return find_layout(folder, subfolder)
    try:
        root = Path(snapshot_download(str(source), revision=revision, allow_patterns=_DESCRIPTION_FILES))
        layout = find_layout(root, subfolder)
        inside = layout.model.relative_to(root).as_posix()
        weights = "*.safetensors" if inside == "." else f"{inside}/*.safetensors"
        snapshot_download(str(source), revision=revision, allow_patterns=[weights])
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"no checkpoint at {str(source)!r}: it is neither a local folder nor a Hub repo that could be downloaded "
            f"({type(error).__name__}: {error}). Check the path, the network, or HF_HUB_OFFLINE."
        ) from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"no checkpoint at {str(source)!r}: there is no such folder, and it is no Hub repo id ({error})."
        ) from error
    return layout


def find_layout(folder: Path, subfolder: str | None = None) -> Layout:
    """Recognise the layout of a local folder; see `locate`."""
    if (folder / "config.json").is_file() and subfolder is None:  # the model folder itself
        beside = any((folder / name).is_file() for name in (PAPER_CONFIG, PAPER_STATS, TRL_STATS))
        root, model = (folder if beside else folder.parent), folder
    else:
        root, model = folder, _model_folder(folder, subfolder)
    config, stats = root / PAPER_CONFIG, root / PAPER_STATS
    if config.is_file() or stats.is_file():
        absent = [file.name for file in (config, stats) if not file.is_file()]
        if absent:
            raise CheckpointError(
                f"{root} lacks {absent}, which the paper's layout needs beside {model.name}/; it holds "
                f"{_names(root)}. Download it."
            )
        return Layout(model, stats, config)
    if (root / TRL_STATS).is_file():
        return Layout(model, root / TRL_STATS, None)
    raise CheckpointError(
        f"{root} has the model {model.name}/ and neither {PAPER_CONFIG} with {PAPER_STATS} (the paper's layout) nor "
        f"{TRL_STATS} (vla0-trl's); it holds {_names(root)}. Without the range of the actions the numbers that the "
        "model writes have no unit: add the file."
    )


def _model_folder(root: Path, subfolder: str | None) -> Path:
    """Return the Hugging Face model folder inside a checkpoint."""
    if subfolder is not None:
        if not (root / subfolder / "config.json").is_file():
            raise CheckpointError(
                f"{root / subfolder} has no config.json, so it is no model. {root} has {_names(root)}."
            )
        return root / subfolder
    if (root / PAPER_MODEL).is_dir():
        return root / PAPER_MODEL
    models = sorted(path.parent for path in root.glob("*/config.json"))
    if len(models) == 1:
        return models[0]
    if models:
        raise CheckpointError(
            f"{root} has several models: {[path.name for path in models]}. Choose one with --subfolder."
        )
    raise CheckpointError(
        f"{root} is no VLA-0 checkpoint: no {PAPER_MODEL}/ (the paper's layout) and no other folder with a config.json "
        f"(vla0-trl's). It holds {_names(root)}. For a policy folder written by LeRobot no import is needed: "
        "use --policy.path."
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
