"""LoRA and other PEFT adapters on the backbone: which layers get one, how it is saved, loaded, switched off and merged.

LeRobot trains adapters through ``--peft.*`` and loads one by asking for its base policy first. Here the base may also
be the bare backbone; the policy is then rebuilt from the config beside the adapter. PEFT is optional: it is imported
on use.
"""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lerobot_policy_vla0.backbone.quantization import refuse_training
from lerobot_policy_vla0.checkpoints.weight_stream import TensorSource, shown
from lerobot_policy_vla0.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

#: PEFT's file that makes a folder an adapter.
ADAPTER_CONFIG = "adapter_config.json"

#: The policy's attribute that every adapter saves whole, so that a resumed run draws the same augmentation.
AUGMENTATION = "augmentation"


def is_adapter(folder: Path) -> bool:
    """Return whether a checkpoint holds an adapter instead of all weights."""
    return (folder / ADAPTER_CONFIG).is_file()


# ------------------------------------------------------------------ training


def default_targets(vlm: VLM, *, vision: bool) -> str:
    """Return the regular expression of the layers that get adapters unless the user names others.

    These are all linear layers (attention and MLP) of the language model, and with ``vision`` those of the vision
    tower. The names are read from the model, so other Qwen-VL families need no table.

    Args:
        vlm: the backbone; the expression assumes that the policy holds it as ``vlm``.
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
    """Refuse policy options that have no effect with an adapter; ``overrides`` are the ``--peft.*`` options.

    Raises:
        ConfigError: naming the option.
    """
    refuse_training(config)
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


def finish_peft_config(policy: VLA0Policy, peft_config: Any) -> Any:
    """Return a PEFT config that also saves the augmentation's state and fixes the base's revision."""
    kept = list(getattr(peft_config, "modules_to_save", None) or [])
    peft_config.modules_to_save = [*kept, *({AUGMENTATION} - set(kept))]
    if peft_config.revision is None:
        fresh = policy.config.pretrained_path is None
        peft_config.revision = policy.vlm.revision if fresh else policy.config.pretrained_revision
    return peft_config


def refuse_changed_vocabulary(vlm: VLM, before: tuple[nn.Module, nn.Module]) -> None:
    """Refuse an adapter on the token embeddings or the vocabulary projection.

    Most backbones share one matrix for both, so such an adapter could not be merged. The fast decoders also read
    twelve rows of the projection directly.

    Args:
        vlm: the backbone, with adapters.
        before: its `vocabulary` without adapters.

    Raises:
        ConfigError: naming the layers that have an adapter.
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


def refuse_incomplete_adapter(policy: VLA0Policy, base: str) -> None:
    """Make PEFT raise an error, not only a warning, if the adapter that it loads onto ``policy`` is incomplete.

    ``base`` is the name the policy was loaded by.

    Raises:
        CheckpointError: later, while PEFT loads, naming the tensors that the adapter's file lacks.
    """
    policy.name_or_path = base
    policy.register_load_state_dict_post_hook(_refuse_missing)


_LACKS = (
    "the adapter lacks {count} of its tensors, the first are {first}. Its file is incomplete, or "
    f"{ADAPTER_CONFIG} was changed: download or copy the checkpoint again."
)


def _refuse_missing(_: nn.Module, keys: Any) -> None:
    # PEFT calls the one adapter of a LeRobot policy "default".
    missing = sorted(key for key in keys.missing_keys if re.search(r"\.default(\.|$)", key))
    if missing:
        raise CheckpointError(_LACKS.format(count=len(missing), first=missing[:4]))


def base_of(folder: Path) -> tuple[str, str | None]:
    """Return the name and revision of the model an adapter was trained on.

    Raises:
        CheckpointError: if the adapter names no base, or itself.
        ImportError: if PEFT is not installed.
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


def put_on(policy: VLA0Policy, folder: Path) -> Any:
    """Load an adapter onto its base policy, whose layers are replaced in place; return PEFT's model around it."""
    return _peft().PeftModel.from_pretrained(policy, str(folder))


def merge_into(policy: VLA0Policy, folder: Path) -> VLA0Policy:
    """Load an adapter onto its base policy and merge it into the weights; the returned policy does not need PEFT."""
    # `safe_merge` checks for NaN before any weight is replaced.
    merged: VLA0Policy = put_on(policy, folder).merge_and_unload(safe_merge=True)
    merged.config.use_peft = False
    merged.config.pretrained_path = None
    merged.requires_grad_(True)
    if merged.config.freeze_vision_encoder:
        merged.vlm.vision_tower.requires_grad_(False)
    merged.eval()
    return merged


# ------------------------------------------------------------------ switching off


@contextmanager
def switched_off(model: nn.Module) -> Iterator[bool]:
    """Leave a model's adapters out for a while.

    Layers that the adapter trains whole (PEFT's ``modules_to_save``) go back to the base's, too. PEFT switches
    gradients along with adapters; those are restored.

    Args:
        model: with or without adapters.

    Yields:
        Whether there was something to switch off, see `can_switch_off`.
    """
    if not can_switch_off(model):
        yield False
        return
    layers = _adapter_layers(model)
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    on = [layer for layer in layers if not layer.disable_adapters]
    try:
        for layer in on:
            layer.enable_adapters(False)
        yield True
    finally:
        for layer in on:
            layer.enable_adapters(True)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)


def can_switch_off(model: nn.Module) -> bool:
    """Return whether a model has an adapter that can be left out.

    One that is merged into the weights cannot: PEFT could only subtract it again, with rounding errors.
    """
    layers = _adapter_layers(model)
    # Modules that are trained whole have no merged state; looking for one would reach into the module.
    return bool(layers) and not any(layer.merged for layer in layers if hasattr(type(layer), "merged"))


def _adapter_layers(model: nn.Module) -> list[Any]:
    """Return PEFT's layers in a model."""
    if "peft" not in sys.modules:  # whoever put an adapter on has imported it
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]


# ------------------------------------------------------------------ merging without holding the model


def merged_tensors(
    skeleton: VLA0Policy, base: Mapping[str, TensorSource], folder: Path
) -> dict[str, TensorSource]:
    """Return the tensors of a base policy with an adapter merged, each computed only when it is read.

    The result is that of `merge_into`, but only one layer is in memory at a time: PEFT merges a model of that one
    layer in float32. This works for every kind of adapter that PEFT can merge and that shares nothing between layers.

    Args:
        skeleton: the base policy on the ``meta`` device; it gets adapters and cannot be used afterwards.
        base: the tensors of the base policy's file.
        folder: the adapter's folder.

    Raises:
        CheckpointError: naming tensors that are missing, unexpected or of another shape, or the kind of adapter that
            cannot be merged. The latter may come only when a tensor is read.
    """
    config = _peft().PeftConfig.from_pretrained(str(folder))
    tensors = adapter_tensors(folder)
    layers, expected = _place(skeleton, config)
    _check_adapter(folder, tensors, expected)

    parts: dict[str, dict[str, Tensor]] = {layer: {} for layer in layers}
    replaced: dict[str, TensorSource] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PEFT_PREFIX)
        layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if layer is not None:
            parts[layer][key] = tensor
        elif name in base:  # the adapter holds the trained tensor itself
            source = base[name]
            replaced[name] = TensorSource(source.shape, source.dtype, partial(tensor.to, source.dtype))
        else:
            raise CheckpointError(
                f"{folder} is an adapter of type {config.peft_type.value}, whose tensor {key} belongs to no single "
                "layer: adapters are merged layer by layer, and this type cannot be. Run it unmerged, or train a LoRA "
                "adapter."
            )
    merged = {**base, **replaced}
    for layer, module in layers.items():
        own = {name: base[f"{layer}.{name}"] for name, _ in module.named_parameters()}
        for name, source in own.items():
            read = partial(_merge_layer, config, layer, module, own, parts[layer], name)
            merged[f"{layer}.{name}"] = TensorSource(source.shape, torch.float32, read)
    return merged


_PEFT_PREFIX = "base_model.model."


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter's file.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    _peft()
    from peft.utils import load_peft_weights

    try:
        tensors: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"the adapter's weights in {folder} cannot be read ({error}). Download or copy the checkpoint again."
        ) from error
    return tensors


def _place(skeleton: VLA0Policy, config: Any) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """Put an adapter into a skeleton, without values.

    Returns:
        The layers that got an adapter, as they were before, by name; and all tensors that the adapter's file must hold.
    """
    peft = _peft()
    before = dict(skeleton.named_modules())
    described = copy.deepcopy(config)
    # Some initialisations are computed from the base's weights, which have no values here.
    for start in ("init_lora_weights", "init_weights"):
        if isinstance(getattr(described, start, None), str):
            setattr(described, start, True)
    described.inference_mode = True
    with torch.device("meta"):
        wrapped = peft.PeftModel(skeleton, described)
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {
        name.removeprefix(_PEFT_PREFIX): layer
        for name, layer in wrapped.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    expected: dict[str, Tensor] = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return {name: before[name] for name in layers}, expected


def _check_adapter(folder: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse an adapter's file whose tensors are not the ``expected`` ones."""
    missing = expected.keys() - tensors.keys()
    if missing:
        raise CheckpointError(_LACKS.format(count=len(missing), first=sorted(missing)[:4]))
    wrong = [
        f"{key} is {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}"
        for key, tensor in tensors.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    unexpected = tensors.keys() - expected.keys()
    if wrong or unexpected:
        raise CheckpointError(
            f"the adapter in {folder} does not fit its base. Unexpected tensors: {shown(unexpected)}. Wrong shapes: "
            f"{shown(wrong)}. {ADAPTER_CONFIG} was changed, or names another base: download or copy the checkpoint "
            "again."
        )


def _merge_layer(
    config: Any,
    layer: str,
    module: nn.Module,
    base: Mapping[str, TensorSource],
    adapter: Mapping[str, Tensor],
    wanted: str,
) -> Tensor:
    """Return one parameter of a layer with its adapter merged, in float32.

    Args:
        config: PEFT's, of the whole adapter.
        layer: the layer's name in the policy.
        module: the layer, without values.
        base: the layer's parameters.
        adapter: the layer's tensors in the adapter's file.
        wanted: the name of the parameter to return.
    """
    peft = _peft()
    alone = copy.deepcopy(module)
    for name, source in base.items():
        owner, _, leaf = name.rpartition(".")
        weight = nn.Parameter(source.read().float(), requires_grad=False)
        setattr(alone.get_submodule(owner), leaf, weight)
    own = copy.deepcopy(config)
    own.modules_to_save = None
    own.inference_mode = True
    model = nn.Module()
    place = model
    # The layer keeps its whole name, because PEFT chooses target, rank and alpha by it.
    *way, last = layer.split(".")
    for name in way:
        place.add_module(name, nn.Module())
        place = place.get_submodule(name)
    place.add_module(last, alone)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT warns about rank patterns that match no layer here; they are meant for other layers.
            warnings.simplefilter("ignore", RuntimeWarning)
            wrapped = peft.PeftModel(model, own)
        peft.set_peft_model_state_dict(wrapped, dict(adapter))
        merged = wrapped.merge_and_unload(safe_merge=True).get_submodule(layer)
    except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise CheckpointError(
            f"the adapter ({config.peft_type.value}) on {layer} cannot be merged: {error}. Train it again, or run it "
            "unmerged."
        ) from error
    result: Tensor = merged.get_parameter(wanted).detach()
    return result


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "this checkpoint is a PEFT adapter, and PEFT is not installed: pip install 'lerobot_policy_vla0[lora]'."
        ) from error
    return peft
