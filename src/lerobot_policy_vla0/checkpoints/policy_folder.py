"""Plans which tensors a policy's folder holds, and checks the folder after it is written.

Every tensor is stored once. A tied tensor (the embedding) is stored under the first of its names in the alphabet, as
safetensors does it; only `left_out` decides this.

`check_written` checks the files on disk: it builds a policy without values from the folder's own config, and the
weights' file must hold exactly the tensors of that policy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from torch import Tensor

from lerobot_policy_vla0.backbone.loading import VLM_FOLDER
from lerobot_policy_vla0.checkpoints.files import read_config
from lerobot_policy_vla0.checkpoints.saved_normalizers import check_normalizers, read_normalizers
from lerobot_policy_vla0.checkpoints.weight_stream import ShardReader, TensorSource, shown, storable
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.dataset_stats import check_action_stats, check_relative_stats
from lerobot_policy_vla0.errors import CheckpointError

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy


def build_skeleton(policy_class: type[VLA0Policy], config: Any, stored_vlm: Path | None) -> VLA0Policy:
    """Return a policy on the ``meta`` device: it has names and shapes, but no values.

    Args:
        policy_class: `VLA0Policy`, which this module may not import.
        config: a `VLA0Config`; options of running (attention, compiling, 4 bits) are ignored.
        stored_vlm: folder with the backbone's config and tokenizer; None for the tiny one, which has no files.
    """
    plain = replace(config, attn_implementation="sdpa", compile_model=False, quantization=None, device="cpu")
    with torch.device("meta"):
        return policy_class(plain, stored_vlm=stored_vlm)


# ------------------------------------------------------------------ names


def left_out(policy: VLA0Policy) -> dict[str, str]:
    """Return the names that a policy's file does not have, each with the name its tensor is stored under.

    Tensors are tied if they are one object or if transformers lists them as tied; sharded parameters may no longer be
    one object. The policy's ``state_dict`` is not used: with sharded parameters it waits for all processes, and only
    one of them saves. safetensors' metadata stores tied tensors in the same form.
    """
    groups: dict[int, set[str]] = {}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    together = [group for group in groups.values() if len(group) > 1]
    for pair in policy.vlm.tied_names.items():
        merged = {f"vlm.model.{name}" for name in pair}
        for group in [group for group in together if group & merged]:
            together.remove(group)
            merged |= group
        together.append(merged)
    names = {name: min(group) for group in together for name in group}
    return {name: kept for name, kept in sorted(names.items()) if name != kept}


# ------------------------------------------------------------------ before writing


def plan_tensors(
    policy: VLA0Policy, state_dict: Mapping[str, Tensor] | None, save_dtype: str | None
) -> dict[str, TensorSource]:
    """Return the tensors of a policy's file, each once. Each is converted and copied to the CPU only when it is read.

    Args:
        policy: the policy to save.
        state_dict: its weights, if they were gathered from several processes; a tied tensor may have any of its names.
            None takes the policy's own.
        save_dtype: ``float32``, ``bfloat16``, or None to convert nothing.

    Raises:
        CheckpointError: naming a tensor whose type cannot be saved, such as 4 bits.
    """
    tied = left_out(policy)
    planned: dict[str, TensorSource] = {}
    for name, tensor in (policy.state_dict() if state_dict is None else state_dict).items():
        asked = tensor.dtype if save_dtype is None else getattr(torch, save_dtype)
        dtype = asked if tensor.is_floating_point() else tensor.dtype
        if not storable(dtype):
            raise CheckpointError(
                f"{name} is held as {tensor.dtype}, which is no precision a policy is saved in. With quantization only "
                "the adapter is saved (--peft.method_type=LORA); `vla0 merge` makes a policy of it."
            )

        def read(tensor: Tensor = tensor, dtype: torch.dtype = dtype) -> Tensor:
            return tensor.detach().to(device="cpu", dtype=dtype)

        planned.setdefault(tied.get(name, name), TensorSource(tuple(tensor.shape), dtype, read))
    return planned


def total_bytes(tensors: Mapping[str, TensorSource]) -> int:
    """Return the size of the tensors in a file, in bytes."""
    return sum(source.n_bytes for source in tensors.values())


# ------------------------------------------------------------------ stored tensors


def match_tensors(
    skeleton: VLA0Policy,
    reader: ShardReader,
    folder: Path,
    *,
    rename: Callable[[str], str],
    without: frozenset[str] = frozenset(),
) -> dict[str, TensorSource]:
    """Find each of a policy's tensors among stored ones.

    Args:
        skeleton: the policy.
        reader: the stored tensors.
        folder: their folder, for messages.
        rename: maps a stored name to the policy's.
        without: names that the folder may lack.

    Returns:
        The source of each tensor of the policy's file.

    Raises:
        CheckpointError: naming missing, unexpected and misshapen tensors, or tied tensors that differ.
    """
    tied = left_out(skeleton)
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    stored: dict[str, str] = {}
    for name in reader.tensors:
        twin = stored.setdefault(rename(name), name)
        if twin != name:
            raise CheckpointError(
                f"{folder} holds one tensor under two names: {twin} and {name}. Remove stale files."
            )
    found: dict[str, str] = {}  # name in the new file -> name in the file that is read
    for name in sorted(stored.keys() & expected.keys()):
        first = found.setdefault(tied.get(name, name), stored[name])
        if first != stored[name]:
            _check_equal(reader, first, stored[name], folder)
    missing = [name for name in expected if tied.get(name, name) not in found and name not in without]
    unexpected = [stored[name] for name in stored.keys() - expected.keys()]
    wrong = [
        f"{name} is {reader.tensors[source].shape}, expected {expected[name]}"
        for name, source in found.items()
        if reader.tensors[source].shape != expected[name]
    ]
    if missing or unexpected or wrong:
        raise CheckpointError(
            f"the weights in {folder} do not fit its config.json. Missing tensors: {shown(missing)}. Unexpected "
            f"tensors: {shown(unexpected)}. Wrong shapes: {shown(wrong)}. The download is incomplete, or the files "
            "belong to different models (LoRA adapters must be merged first)."
        )
    return {name: reader.tensors[source] for name, source in found.items()}


def _check_equal(reader: ShardReader, first: str, second: str, folder: Path) -> None:
    if reader.tensors[first].shape != reader.tensors[second].shape or not all(
        torch.equal(a, b) for a, b in zip(reader.rows(first), reader.rows(second), strict=True)
    ):
        raise CheckpointError(
            f"{folder}: {first} and {second} are one tensor according to config.json (tie_word_embeddings), but the "
            "files hold different values. Set tie_word_embeddings in config.json as the weights were trained."
        )


# ------------------------------------------------------------------ after writing


def check_written(
    policy_class: type[VLA0Policy],
    folder: Path,
    planned: Mapping[str, TensorSource],
    *,
    out: Path,
    processors: bool = False,
) -> None:
    """Check a written folder: config, the backbone's description, and the header of the weights' file.

    This is fast for a model of any size, because no weights are read.

    Args:
        policy_class: `VLA0Policy`.
        folder: the folder that was written, before it is moved to ``out``.
        planned: the tensors that were to be written; their precision is compared.
        out: the final place, for messages.
        processors: load the processors too, and check the statistics in them.

    Raises:
        CheckpointError: naming the difference. The caller removes the folder.
    """
    try:
        config = _read_config(folder)
        problem = _unlike(build_skeleton(policy_class, config, folder / VLM_FOLDER), folder, planned)
        if processors and not problem:
            _load_processors(folder, config)
    except Exception as error:  # any error here means that the folder cannot be loaded
        problem = f"{type(error).__name__}: {error}".replace(str(folder), str(out)).rstrip(".")
        raise CheckpointError(_REFUSAL.format(out=out, problem=problem)) from error
    if problem:
        raise CheckpointError(_REFUSAL.format(out=out, problem=problem))


_REFUSAL = (
    "the policy written for {out} does not read back, so nothing was kept of it: {problem}. Check the disk, and what "
    "the policy was made from; if both are sound, report this message."
)


def _read_config(folder: Path) -> VLA0Config:
    """Read the folder's config without LeRobot's warnings about the device, which matter only for running it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        config = read_config(folder)
    finally:
        logging.disable(before)
    assert isinstance(config, VLA0Config)
    return config


def _unlike(skeleton: VLA0Policy, folder: Path, planned: Mapping[str, TensorSource]) -> str:
    """Return how the weights' file differs from the folder's config and ``planned``; empty if it does not."""
    tied = left_out(skeleton)
    implied = {
        name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items() if name not in tied
    }
    with ShardReader([folder / SAFETENSORS_SINGLE_FILE]) as reader:
        there = reader.tensors
    both = there.keys() & implied.keys()
    shapes = [
        f"{name} is {there[name].shape}, expected {implied[name]}"
        for name in both
        if there[name].shape != implied[name]
    ]
    precisions = [
        f"{name} is {there[name].dtype}, expected {planned[name].dtype}"
        for name in both & planned.keys()
        if there[name].dtype != planned[name].dtype
    ]
    found = {
        "Missing tensors": implied.keys() - there.keys(),
        "Unexpected tensors": there.keys() - implied.keys(),
        "Wrong shapes": shapes,
        "Wrong precision": precisions,
    }
    return ". ".join(f"{what}: {shown(which)}" for what, which in found.items() if which)


def _load_processors(folder: Path, config: VLA0Config) -> None:
    """Load both processors as LeRobot's commands do, and check their statistics."""
    from lerobot.policies import make_pre_post_processors

    try:
        make_pre_post_processors(
            policy_cfg=config,
            pretrained_path=str(folder),
            preprocessor_overrides={"device_processor": {"device": "cpu"}},
        )
    except Exception as error:  # LeRobot raises many kinds, and they do not name the processors
        raise CheckpointError(f"the processors do not load ({type(error).__name__}: {error})") from error
    before, after = read_normalizers(folder)
    check_normalizers(config, before, after)
    assert before is not None  # LeRobot has loaded it
    check_action_stats(config, before.stats, before.file)
    check_relative_stats(config, before.stats)
