"""The steps of `VLA0Policy.from_pretrained` and `save_pretrained`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import init_empty_weights
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from torch import Tensor

from lerobot_policy_vla0.backbone.loading import VLM_FOLDER
from lerobot_policy_vla0.backbone.quantization import check_inference_quantization, quantizes_for_inference
from lerobot_policy_vla0.checkpoints import adapters
from lerobot_policy_vla0.checkpoints.files import (
    check_fixed_options,
    load_weights,
    read_config,
    resolve_checkpoint,
)
from lerobot_policy_vla0.checkpoints.lerobot_api import (
    CARD_FILE,
    CARD_IS_LEROBOTS,
    is_writer,
    weights_to_save,
)
from lerobot_policy_vla0.checkpoints.model_card import build_model_card
from lerobot_policy_vla0.checkpoints.policy_folder import (
    check_written,
    left_out,
    plan_tensors,
    total_bytes,
)
from lerobot_policy_vla0.checkpoints.weight_stream import write_stream
from lerobot_policy_vla0.errors import CheckpointError, ConfigError
from lerobot_policy_vla0.output_files import new_files, require_space

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------ loading


class Kind(Enum):
    """What a name or path refers to."""

    POLICY = "a folder with all weights"
    ADAPTER = "a folder with a PEFT adapter, which names its base"
    BACKBONE = "a vision-language model without a policy around it, the base of an adapter"


@dataclass(frozen=True)
class Source:
    """A policy to be loaded.

    Attributes:
        kind: what ``name`` refers to.
        name: a folder or Hub repo, as given.
        folder: its local folder; None for a backbone, which transformers finds by itself.
        config: the options of the policy to build.
        adapter: the folder of an adapter that the caller will load afterwards, or None. LeRobot asks for an adapter's
            base this way: with the base's name, and the adapter's path in the config.
    """

    kind: Kind
    name: str
    folder: Path | None
    config: Any
    adapter: Path | None


def classify(name: str, config: Any, revision: str | None, download: dict[str, Any]) -> Source:
    """Find what a name refers to, and check that the options fit it; for the arguments see `load_policy`.

    Raises:
        CheckpointError: if there is no such checkpoint, or an option contradicts it.
    """
    adapter: Path | None = None
    if (
        config is not None
        and config.use_peft
        and config.pretrained_path
        and name != str(config.pretrained_path)
    ):
        adapter = resolve_checkpoint(config.pretrained_path, revision=config.pretrained_revision, **download)
        stored: Any = read_config(adapter)
        check_fixed_options(stored, config)
        if name == stored.vlm_model_name:
            return Source(Kind.BACKBONE, name, None, config, adapter)
    engine = None if config is None else config.engine
    folder = resolve_checkpoint(name, weights=engine is None, revision=revision, **download)
    stored = read_config(folder)
    config = stored if config is None else config
    check_fixed_options(stored, config)
    kind = Kind.ADAPTER if adapters.is_adapter(folder) else Kind.POLICY
    if engine is not None and kind is Kind.ADAPTER:
        raise CheckpointError(
            f"{name} is an adapter, whose backbone is described elsewhere, and engine={engine!r} needs the "
            "description. Give --policy.path the folder robot/ of what `vla0 export` wrote."
        )
    return Source(kind, name, folder, config, adapter)


def load_policy(
    policy_class: type[VLA0Policy],
    name: str,
    *,
    config: Any,
    revision: str | None,
    strict: bool,
    download: dict[str, Any],
    merge: bool = True,
    **options: Any,
) -> VLA0Policy:
    """Load a policy in evaluation mode; see `VLA0Policy.from_pretrained`.

    Args:
        policy_class: the class to build.
        name: a folder or Hub repo.
        config: the options to load it with; None takes the checkpoint's.
        revision: of the repo.
        strict: refuse missing and unexpected tensors; False only logs them.
        download: options of ``snapshot_download``.
        merge: merge an adapter into the weights; False leaves it beside them.
        **options: passed to the constructor.
    """
    # 1. Find out what the name refers to.
    source = classify(name, config, revision, download)
    if quantizes_for_inference(source.config) and (
        source.adapter or (source.kind is Kind.ADAPTER and not merge)
    ):
        raise ConfigError(
            f"quantization={source.config.quantization!r} needs merged weights, but the adapter "
            f"{source.adapter or source.folder} stays beside its base here. Merge it (vla0 merge ADAPTER --out DIR) "
            "and load DIR, or leave quantization unset."
        )

    # 2. Build the policy.
    if source.kind is Kind.BACKBONE:
        policy = _on_backbone(policy_class, source, vlm_revision=revision, **options)
    elif source.kind is Kind.ADAPTER:
        policy = _with_adapter(policy_class, source, strict=strict, download=download, merge=merge, **options)
        policy.config = source.config if source.adapter else policy.config
    else:
        policy = _from_weights(policy_class, source, strict=strict, **options)

    # 3. Make it ready to act. For a merged adapter, loading its base has already read the adapter's statistics.
    policy.to(policy.config.device)
    if quantizes_for_inference(policy.config):
        policy.vlm.quantize(policy.config)
    policy.eval()
    processors = source.adapter or (source.folder if source.kind is Kind.POLICY else None)
    if processors is not None:
        policy.use_checkpoint(processors)
    if source.adapter is not None:
        adapters.refuse_incomplete_adapter(policy, name)
    return policy


def _from_weights(
    policy_class: type[VLA0Policy], source: Source, *, strict: bool, **options: Any
) -> VLA0Policy:
    """Build the policy of a folder that holds all weights, and load them."""
    assert source.folder is not None
    description = source.folder / VLM_FOLDER
    if source.config.engine is not None:  # which has the weights
        return policy_class(source.config, stored_vlm=description, **options)
    if strict:  # every weight is in the folder, so memory is allocated only when it is read
        with init_empty_weights(include_buffers=False):
            policy = policy_class(source.config, stored_vlm=description, **options)
        policy.vlm.model.tie_weights()  # building without memory untied the weights
    else:  # weights that the folder lacks stay as they were initialised
        policy = policy_class(source.config, stored_vlm=description, **options)
    load_weights(policy, source.folder, strict=strict, device=policy.config.device)
    return policy


def _on_backbone(policy_class: type[VLA0Policy], source: Source, **options: Any) -> VLA0Policy:
    """Build the base policy of an adapter that was trained on the bare backbone."""
    try:
        return policy_class(source.config, **options)
    except OSError as error:
        raise CheckpointError(
            f"the adapter was trained on the backbone {source.name!r}, and {source.config.vlm_model_name!r} could not "
            f"be loaded ({error}). Say where it is now with --policy.vlm_model_name=..., or check the network and "
            "HF_HUB_OFFLINE."
        ) from error


def _with_adapter(
    policy_class: type[VLA0Policy],
    source: Source,
    *,
    strict: bool,
    download: dict[str, Any],
    merge: bool,
    **options: Any,
) -> VLA0Policy:
    """Load an adapter's base, and merge the adapter into it or put it on."""
    assert source.folder is not None
    base, revision = adapters.base_of(source.folder)
    # LeRobot asks for a base in the same way: with the adapter's path in the config.
    config = replace(source.config, use_peft=True, pretrained_path=source.folder)
    after = config.quantization if quantizes_for_inference(config) else None
    if merge:
        if after is not None:
            check_inference_quantization(config)  # before the work of merging
        elif config.quantization is not None:
            logger.info(
                "quantization=%s is dropped: an adapter is merged in full precision", config.quantization
            )
        config = replace(config, quantization=None, lora_vision=False)
    policy = load_policy(
        policy_class, base, config=config, revision=revision, strict=strict, download=download, **options
    )
    if merge:
        merged = adapters.merge_into(policy, source.folder)
        merged.config.quantization = after  # `load_policy` applies it
        return merged
    adapters.put_on(policy, source.folder)
    return policy


# ------------------------------------------------------------------ saving


def save_policy(policy: VLA0Policy, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
    """Write config, weights, and the backbone's description. The new files are checked before they replace old ones.

    Args:
        policy: the policy to save.
        folder: the checkpoint's folder, which exists.
        state_dict: weights that LeRobot has gathered from several processes; None writes the policy's own. Then all
            processes must call this if they hold shares of the weights (see `lerobot_api`).

    Raises:
        OutputError: if the disk is full or not writable.
        CheckpointError: if the written folder cannot be loaded (see `policy_folder.check_written`), or the weights are
            quantised for inference.
    """
    if quantizes_for_inference(policy.config):
        raise CheckpointError(
            f"quantization={policy.config.quantization!r} replaced this policy's full weights at loading, so it "
            f"cannot be saved to {folder}. Load it without quantization to save it; the checkpoint it came from is "
            "unchanged."
        )
    weights = weights_to_save(policy, state_dict)
    if not is_writer():
        return
    tensors = plan_tensors(policy, weights, policy.config.save_dtype)
    require_space(folder, total_bytes(tensors))
    with new_files(folder) as partial:
        policy.config._save_pretrained(partial)
        policy.vlm.save_description(partial / VLM_FOLDER)
        if CARD_IS_LEROBOTS:
            card = build_model_card(policy.config, license=policy.config.license, tags=policy.config.tags)
            card.save(partial / CARD_FILE)
        write_stream(partial / SAFETENSORS_SINGLE_FILE, tensors, left_out(policy))
        check_written(type(policy), partial, tensors, out=folder)
