"""LoRA and other PEFT adapters on the backbone: where they go, what is saved with them, and how they are read back.

LeRobot trains adapters through ``--peft.*`` and reloads one by asking for its base policy first. Here the base
may be the bare backbone: an adapter then names the backbone it was trained on, as adapters on the Hub do, and
the policy around it is rebuilt from the config beside the adapter. Knows nothing about actions or images. PEFT is
an optional dependency and imported on use.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lerobot_policy_vla0.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
    from lerobot_policy_vla0.vlm import VLM

#: PEFT's file that makes a folder an adapter.
ADAPTER_CONFIG = "adapter_config.json"

#: Attribute of the policy that is saved whole with every adapter: a resumed run must draw the same augmentation.
AUGMENTATION = "augmentation"


def is_adapter(folder: Path) -> bool:
    """Return whether a checkpoint holds an adapter instead of all weights."""
    return (folder / ADAPTER_CONFIG).is_file()


# ------------------------------------------------------------------ training


def default_targets(vlm: VLM, *, vision: bool) -> str:
    """Return the regular expression of the layers that get adapters unless the user names others.

    All linear layers (attention and MLP) of the language model's decoder layers, and with ``vision`` those of the
    vision tower's blocks. Names are read off the model, so that other Qwen-VL families need no table.

    Args:
        vlm: the backbone; the expression matches names below a policy that holds it as ``vlm``.
        vision: include the vision tower.
    """
    stacks = {"model.model.language_model.layers": vlm.model.model.language_model.layers}
    if vision:
        stacks["model.model.visual.blocks"] = vlm.model.model.visual.blocks
    parts = []
    for path, stack in stacks.items():
        leaves = sorted(
            {name.rsplit(".", 1)[-1] for name, m in stack.named_modules() if isinstance(m, nn.Linear)}
        )
        parts.append(rf"vlm\.{re.escape(path)}\.\d+\..*\.({'|'.join(leaves)})")
    return "|".join(parts)


def check_options(config: VLA0Config, overrides: dict[str, Any]) -> None:
    """Refuse policy options that an adapter makes inert.

    Args:
        config: of the policy.
        overrides: what the command line's ``--peft.*`` says.

    Raises:
        ConfigError: naming the option.
    """
    if config.lora_vision and overrides.get("target_modules") is not None:
        raise ConfigError(
            f"lora_vision=True chooses the default layers, but --peft.target_modules={overrides['target_modules']!r} "
            "names them. Set lora_vision to False and name the vision tower's layers too, or leave "
            "--peft.target_modules unset."
        )
    if config.save_dtype is not None:
        raise ConfigError(
            f"save_dtype={config.save_dtype!r} has no effect on an adapter, which is small and saved in the precision "
            "it is trained in. Leave it unset; `vla0 merge` can write the merged policy in another precision."
        )


def complete(policy: VLA0Policy, peft_config: Any) -> Any:
    """Return a PEFT config that also saves the state of the augmentation, and pins the base's revision."""
    kept = list(getattr(peft_config, "modules_to_save", None) or [])
    peft_config.modules_to_save = [*kept, *({AUGMENTATION} - set(kept))]
    if peft_config.revision is None:
        fresh = policy.config.pretrained_path is None
        peft_config.revision = policy.vlm.revision if fresh else policy.config.pretrained_revision
    return peft_config


def refuse_changed_vocabulary(vlm: VLM, before: tuple[nn.Module, nn.Module]) -> None:
    """Refuse an adapter on the token embeddings or the vocabulary projection.

    Both share one matrix in most backbones, so an adapter on either could not be merged; and the fast decoders
    read twelve rows of the projection directly.

    Args:
        vlm: the backbone, with adapters.
        before: its `vocabulary` without.

    Raises:
        ConfigError: if one is there.
    """
    changed = [
        name
        for name, old, new in zip(("embed_tokens", "lm_head"), before, vlm.vocabulary, strict=True)
        if old is not new
    ]
    if changed:
        raise ConfigError(
            f"the adapter would train {changed}, but embeddings and vocabulary projection stay as they are: they share "
            "one matrix and could not be merged again. Take them out of --peft.target_modules (which must not be "
            "'all-linear') and --peft.full_training_modules."
        )


# ------------------------------------------------------------------ loading


def expect_adapter(policy: VLA0Policy, base: str) -> None:
    """Prepare a base policy for its adapter: an incomplete one is an error, where PEFT itself only warns.

    Args:
        policy: the base.
        base: the name it was loaded by.

    Raises:
        CheckpointError: later, while PEFT loads, naming the tensors the adapter's file lacks.
    """
    policy.name_or_path = base
    policy.register_load_state_dict_post_hook(_refuse_missing)


def _refuse_missing(_: nn.Module, keys: Any) -> None:
    # PEFT calls the one adapter of a LeRobot policy "default".
    missing = sorted(key for key in keys.missing_keys if re.search(r"\.default(\.|$)", key))
    if missing:
        raise CheckpointError(
            f"the adapter lacks {len(missing)} of its tensors, the first are {missing[:4]}. Its file is incomplete, or "
            f"{ADAPTER_CONFIG} was changed: download or copy the checkpoint again."
        )


def base_of(folder: Path) -> tuple[str, str | None]:
    """Return name and revision of the model an adapter was trained on.

    Raises:
        CheckpointError: if the adapter names none, or itself.
        ImportError: without PEFT, saying how to install it.
    """
    peft = _peft()
    config = peft.PeftConfig.from_pretrained(str(folder))
    base = config.base_model_name_or_path
    if not base or Path(base).resolve() == folder.resolve():
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} names {base!r} as base model. Write the backbone or policy that the adapter "
            "was trained on into its base_model_name_or_path."
        )
    return str(base), config.revision


def merge_into(policy: VLA0Policy, folder: Path) -> VLA0Policy:
    """Load an adapter onto its base policy and add it to the weights; returns the policy, without PEFT."""
    peft = _peft()
    wrapped = peft.PeftModel.from_pretrained(policy, str(folder))
    # Checked for NaN before any weight is replaced.
    merged: VLA0Policy = wrapped.merge_and_unload(safe_merge=True)
    merged.config.use_peft = False
    merged.config.pretrained_path = None
    merged.requires_grad_(True)
    if merged.config.freeze_vision_encoder:
        merged.vlm.vision_tower.requires_grad_(False)
    merged.eval()
    return merged


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "this checkpoint is a PEFT adapter, and PEFT is not installed: pip install 'lerobot_policy_vla0[lora]'."
        ) from error
    return peft


# ------------------------------------------------------------------ decoding


def adapter_layers(module: nn.Module) -> list[Any]:
    """Return the layers PEFT put adapters into."""
    return [layer for layer in module.modules() if hasattr(layer, "merged_adapters")]


def adapter_state(layers: list[Any]) -> tuple[Any, ...]:
    """Return what changes an adapted layer's result without touching a parameter's version.

    Switching adapters off, choosing another, rescaling one, and merging (which writes behind autograd's back).
    """
    return tuple(
        (
            layer.disable_adapters,
            tuple(layer.active_adapters),
            tuple(layer.merged_adapters),
            tuple(getattr(layer, "scaling", {}).values()),
        )
        for layer in layers
    )
