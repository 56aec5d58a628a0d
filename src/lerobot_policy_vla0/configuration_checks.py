"""Cross-checks of `VLA0Config`: an option out of range, contradicting another one, or without effect is refused.

Knows the options only, neither data set nor backbone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lerobot.configs.types import NormalizationMode

from lerobot_policy_vla0.action_limit import check_max_step
from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.prompt import format_system_prompt

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

_BOUNDED_MODES = (NormalizationMode.MIN_MAX, NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10)
#: LeRobot's default of what relative actions leave absolute.
DEFAULT_EXCLUDED = ("gripper",)
DECODERS = ("auto", "reference", "fast", "speculative")
_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
_DTYPES = ("float32", "bfloat16", "float16", "autocast_bfloat16")


def check_chunking(config: VLA0Config) -> None:
    """Check how many steps are predicted, executed and averaged."""
    if config.n_obs_steps != 1:
        raise ConfigError(f"n_obs_steps={config.n_obs_steps}, but VLA-0 sees one observation. Set it to 1.")
    if config.chunk_size < 1:
        raise ConfigError(f"chunk_size={config.chunk_size} must be at least 1 (the paper uses 8).")
    if not isinstance(config.n_bins, int) or not 1 <= config.n_bins <= 99_999:
        raise ConfigError(f"n_bins={config.n_bins} must be an integer in [1, 99999] (the paper uses 1000).")
    if not 1 <= config.n_action_steps <= config.chunk_size:
        raise ConfigError(
            f"n_action_steps={config.n_action_steps} must lie in [1, chunk_size={config.chunk_size}]: only "
            f"predicted steps can be executed. Lower n_action_steps or raise chunk_size."
        )
    if config.ensemble_n_chunks < 1:
        raise ConfigError(f"ensemble_n_chunks={config.ensemble_n_chunks} must be at least 1 (1 is off).")
    if not 0 < config.ensemble_old_weight <= 1:
        raise ConfigError(f"ensemble_old_weight={config.ensemble_old_weight} must lie in (0, 1].")
    # Chunk i overlaps the newest one only while i * n_action_steps < chunk_size.
    useful = math.ceil(config.chunk_size / config.n_action_steps)
    if config.ensemble_n_chunks > useful:
        raise ConfigError(
            f"ensemble_n_chunks={config.ensemble_n_chunks} would silently do less than it says: with "
            f"chunk_size={config.chunk_size} and n_action_steps={config.n_action_steps} only {useful} chunk(s) "
            f"overlap. Set ensemble_n_chunks to at most {useful}, or lower n_action_steps "
            "(the paper's simulation: n_action_steps=1, ensemble_n_chunks=8)."
        )
    if config.ensemble_n_chunks == 1 and config.ensemble_old_weight != 1.0:
        raise ConfigError(
            f"ensemble_old_weight={config.ensemble_old_weight} has no effect with ensemble_n_chunks=1. "
            "Raise ensemble_n_chunks or leave ensemble_old_weight at 1.0."
        )
    check_max_step(config.max_action_step, config.max_action_step_unit)


def check_text(config: VLA0Config) -> None:
    """Check prompt, decoding and cameras."""
    format_system_prompt(
        config.system_prompt, chunk_size=config.chunk_size, action_dim=1, n_bins=config.n_bins
    )
    if config.max_prompt_length < 1:
        raise ConfigError(f"max_prompt_length={config.max_prompt_length} must be at least 1.")
    if not 0 <= config.temperature < math.inf:  # false for NaN
        raise ConfigError(f"temperature={config.temperature} must be finite and at least 0 (0 is greedy).")
    if not 0 < config.repetition_penalty < math.inf:
        raise ConfigError(
            f"repetition_penalty={config.repetition_penalty} must be finite and positive (1.0 is none)."
        )
    if config.decoder not in DECODERS:
        raise ConfigError(f"decoder={config.decoder!r} must be one of {DECODERS}.")
    if config.decoder == "speculative" and config.temperature > 0:
        raise ConfigError(
            f"decoder='speculative' checks drafts against the greedy choice, but temperature={config.temperature} "
            "samples. Set temperature to 0, or decoder to 'auto' or 'fast'."
        )
    if config.draft_width is not None:
        if config.draft_width < 1:
            raise ConfigError(f"draft_width={config.draft_width} must be at least 1, or None to measure it.")
        if config.decoder in ("reference", "fast") or config.temperature > 0:
            raise ConfigError(
                f"draft_width={config.draft_width} has no effect with decoder={config.decoder!r} and "
                f"temperature={config.temperature}: only the greedy speculative decoder drafts. Leave it unset."
            )
    if config.cameras is not None and (not config.cameras or len(set(config.cameras)) != len(config.cameras)):
        raise CameraError(
            f"cameras={config.cameras} must list at least one image key and no key twice; leave it unset to "
            "use the dataset's cameras in the dataset's order."
        )


def check_training(config: VLA0Config) -> None:
    """Check augmentation, normalisation, precisions, adapters and optimizer."""
    for name in ("action_mask_max_ratio", "action_mask_skip_prob"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name}={getattr(config, name)} must lie in [0, 1].")
    if config.action_mask_unit not in ("char", "number"):
        raise ConfigError(f"action_mask_unit={config.action_mask_unit!r} must be 'char' or 'number'.")
    mode = config.normalization_mapping.get("ACTION")
    if mode not in _BOUNDED_MODES:
        raise ConfigError(
            f"normalization_mapping['ACTION'] is {mode.value if mode else None}, but integers need actions in "
            f"a bounded range. Use one of {[m.value for m in _BOUNDED_MODES]} (the paper: MIN_MAX)."
        )
    visual = config.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY)
    if visual is not NormalizationMode.IDENTITY:
        raise ConfigError(
            f"normalization_mapping['VISUAL'] is {visual.value}, but the backbone normalises pixels itself. "
            "Use IDENTITY."
        )
    if config.dtype not in _DTYPES:
        raise ConfigError(f"dtype={config.dtype!r} must be one of {_DTYPES}.")
    if config.param_dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"param_dtype={config.param_dtype!r} must be 'float32' or 'bfloat16'.")
    if config.param_dtype == "bfloat16" and not config.dtype.endswith("bfloat16"):
        raise ConfigError(
            f"param_dtype='bfloat16' computes in bfloat16, but dtype={config.dtype!r}. Set both to bfloat16, or "
            "param_dtype to float32."
        )
    if config.save_dtype not in (None, "float32", "bfloat16"):
        raise ConfigError(f"save_dtype={config.save_dtype!r} must be None, 'float32' or 'bfloat16'.")
    if config.quantization not in (None, "nf4"):
        raise ConfigError(f"quantization={config.quantization!r} must be None or 'nf4'.")
    if config.compile_model and config.quantization:
        raise ConfigError(
            f"compile_model=True cannot compile 4-bit layers (quantization={config.quantization!r}). Set one of "
            "them to its default."
        )
    if config.lora_vision and config.freeze_vision_encoder:
        raise ConfigError(
            "lora_vision=True trains adapters in the vision tower, but freeze_vision_encoder=True says not to "
            "train it. Set one of them to False."
        )
    if config.attn_implementation not in _ATTENTION:
        raise ConfigError(f"attn_implementation={config.attn_implementation!r} must be one of {_ATTENTION}.")
    for name in (
        "optimizer_lr",
        "optimizer_weight_decay",
        "optimizer_grad_clip_norm",
        "scheduler_warmup_steps",
    ):
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"{name}={getattr(config, name)} must be finite and at least 0.")
    if config.scheduler_name not in ("constant", "cosine"):
        raise ConfigError(f"scheduler_name={config.scheduler_name!r} must be 'constant' or 'cosine'.")


def check_state(config: VLA0Config) -> None:
    """Check how the robot's state is used, as far as that can be told without a data set."""
    mode = config.normalization_mapping.get("STATE")
    if config.state_in_prompt and mode not in _BOUNDED_MODES:
        raise ConfigError(
            f"normalization_mapping['STATE'] is {mode.value if mode else None}, but state_in_prompt=True writes the "
            f"state as integers, which needs a bounded range. Use one of {[m.value for m in _BOUNDED_MODES]}."
        )
    excluded = tuple(config.relative_exclude_joints)
    if not config.use_relative_actions and excluded != DEFAULT_EXCLUDED:
        raise ConfigError(
            f"relative_exclude_joints={list(excluded)} has no effect with use_relative_actions=False. Set "
            "use_relative_actions to True, or leave relative_exclude_joints unset."
        )


def check_state_feature(config: VLA0Config, action_dim: int) -> None:
    """Check that there is a state that fits the options which need one."""
    needing = [name for name in ("state_in_prompt", "use_relative_actions") if getattr(config, name)]
    if not needing:
        return
    state = config.robot_state_feature
    if state is None or len(state.shape) != 1 or state.shape[0] < 1:
        raise ConfigError(
            f"{needing[0]}=True needs an 'observation.state' of shape (state_dim,); the dataset or environment has "
            f"{dict(config.input_features or {})}. Set {needing[0]} to False, or use data with a state."
        )
    if config.use_relative_actions:
        _check_relative_actions(config, action_dim, int(state.shape[0]))


def _check_relative_actions(config: VLA0Config, action_dim: int, state_dim: int) -> None:
    if state_dim < action_dim:
        raise ConfigError(
            f"use_relative_actions=True subtracts the state from the action, dimension by dimension, but the state has "
            f"{state_dim} dimensions and the action {action_dim}. Set use_relative_actions to False."
        )
    absolute = absolute_dimensions(config, action_dim)
    if config.relative_exclude_joints and not absolute:
        raise ConfigError(
            f"relative_exclude_joints={config.relative_exclude_joints} matches none of the action's dimensions "
            f"{config.action_feature_names}: all of them would become relative. Set relative_exclude_joints to names "
            "of dimensions that stay absolute, or to [] if there are none."
        )
    relative = [i for i in config.binary_action_indices if i not in absolute]
    if relative:
        raise ConfigError(
            f"binary_action_indices={config.binary_action_indices} snaps dimension(s) {relative} to the ends of their "
            f"range, but use_relative_actions=True with relative_exclude_joints={config.relative_exclude_joints} makes "
            "them offsets. Exclude them by name, or take them out of binary_action_indices."
        )


def absolute_dimensions(config: VLA0Config, action_dim: int) -> list[int]:
    """Return the dimensions that relative actions leave absolute, chosen by LeRobot's own step."""
    from lerobot.processor import RelativeActionsProcessorStep

    step = RelativeActionsProcessorStep(
        exclude_joints=config.relative_exclude_joints, action_names=config.action_feature_names
    )
    return [i for i, relative in enumerate(step._build_mask(action_dim)) if not relative]
