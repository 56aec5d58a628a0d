"""Arguments that several subcommands take, written as LeRobot's commands write them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.errors import DatasetError
from lerobot_policy_vla0.tools.loading import DatasetSource


def add_dataset_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--dataset.repo_id``, ``--dataset.root`` and ``--dataset.revision``."""
    add, name = parser.add_argument, "Hub repo, or any name for a local folder"
    add("--dataset.repo_id", dest="repo_id", required=required, metavar="NAME", help=name)
    add("--dataset.root", dest="root", metavar="DIR", help="folder of the dataset (holds meta/)")
    add("--dataset.revision", dest="revision", metavar="REV", help="Hub revision")


def add_rename_map(parser: argparse.ArgumentParser) -> None:
    """Add ``--rename_map``: a dictionary of a policy's keys by a dataset's keys."""
    text = 'keys of the dataset to keys of the policy: \'{"observation.images.a": "observation.images.b"}\''
    parser.add_argument("--rename_map", type=_mapping, default={}, metavar="JSON", help=text)


def dataset_source(arguments: argparse.Namespace) -> DatasetSource:
    """Return the dataset that was asked for. One that is given by its folder only has the folder's name.

    Raises:
        DatasetError: if only a folder is given and it does not exist. LeRobot would create it.
    """
    name = arguments.repo_id
    if name is None:
        folder = Path(arguments.root)
        if not folder.is_dir():
            raise DatasetError(f"--dataset.root={folder} is no folder: give that of a recording.")
        name = folder.name
    return DatasetSource(name, arguments.root, arguments.revision)


def add_policy_options(parser: argparse.ArgumentParser, *, path_required: bool) -> None:
    """Add ``--policy.path`` and, hidden from the help, ``--policy.NAME`` for every option of `VLA0Config`."""
    parser.allow_abbrev = False  # LeRobot's commands take no abbreviations of these either
    add, path = parser.add_argument, "a trained policy: folder or Hub repo"
    add("--policy.path", dest="policy_path", required=path_required, metavar="DIR|REPO", help=path)
    add("--policy.type", dest="policy_type", choices=("vla0",), help=argparse.SUPPRESS)
    options = parser.add_argument_group(
        "options of the policy", "--policy.NAME=VALUE, as for lerobot-train; see VLA0Config"
    )
    for name in (f"policy.{name}" for name in _option_names(VLA0Config)):
        options.add_argument(f"--{name}", dest=name, metavar="VALUE", help=argparse.SUPPRESS)


def policy_overrides(arguments: argparse.Namespace) -> list[str]:
    """Return the given options of the policy as LeRobot passes them on: ``--NAME=VALUE``."""
    return [
        f"--{name.removeprefix('policy.')}={value}"
        for name, value in sorted(vars(arguments).items())
        if name.startswith("policy.") and value is not None
    ]


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--out`` and ``--json``."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the report; must be empty or new")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def camera_pair(text: str) -> tuple[str, str]:
    """Return the two names of ``--camera NAME=KEY``."""
    name, equals, key = text.partition("=")
    if not (name and equals and key):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=KEY, e.g. front=observation.images.image")
    return name, key


def _mapping(text: str) -> dict[str, str]:
    try:
        mapping = json.loads(text)
    except ValueError:
        mapping = None
    if not isinstance(mapping, dict) or not all(isinstance(value, str) for value in mapping.values()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object of texts")
    return mapping


def _option_names(kind: Any, prefix: str = "") -> list[str]:
    names = []
    for item in dataclasses.fields(kind):
        if item.name == "tiny":
            names += _option_names(item.default_factory, "tiny.")
        elif item.name != "pretrained_path":
            names.append(prefix + item.name)
    return names
