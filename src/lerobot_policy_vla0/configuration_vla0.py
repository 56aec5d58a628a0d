"""`VLA0Config`: every option of the policy, with its description, its default and its checks.

Importing this module registers the policy type ``vla0`` with LeRobot and imports no model code. ``docs/options.md`` is
generated from the docstrings of the two classes (``scripts/options_doc.py``).
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode, PolicyFeature
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import (
    ConstantWithWarmupSchedulerConfig,
    CosineAnnealingWithWarmupSchedulerConfig,
    LRSchedulerConfig,
)
from lerobot.processor import RelativeActionsProcessorStep

from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.licenses import UNKNOWN_LICENSE, backbone_license
from lerobot_policy_vla0.observations.images import ImageSettings, grid_size
from lerobot_policy_vla0.optimizers import AdamW8bitConfig, FusedAdamWConfig
from lerobot_policy_vla0.text.codec import ActionCodec, ActionTokens
from lerobot_policy_vla0.text.prompt import SYSTEM_PROMPT, PromptSettings, format_system_prompt

_BOUNDED_MODES = (NormalizationMode.MIN_MAX, NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10)
#: The backbone of this name is random and small; the others are Hub repos or folders.
TINY = "tiny"
#: Tags of every policy on the Hub.
HUB_TAGS = ("robotics", "lerobot", "vla0", "vision-language-action")
#: LeRobot's default of what relative actions leave absolute.
_EXCLUDED_JOINTS = ("gripper",)
_STEP_UNITS = ("range", "robot")
_DECODERS = ("auto", "reference", "fast", "speculative")
#: Default of ``engine_timeout_s``.
ENGINE_TIMEOUT_S = 10.0
_DTYPES = ("float32", "bfloat16", "float16", "autocast_bfloat16")
#: Of a trained policy, after its weights are loaded (torchao); ``nf4`` is the one for training.
INFERENCE_QUANTIZATIONS = ("int8", "int8_dynamic", "int4", "fp8")
_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
_SCHEDULERS: dict[str, Any] = {
    "constant": ConstantWithWarmupSchedulerConfig,
    "cosine": CosineAnnealingWithWarmupSchedulerConfig,
}


def _shapes(features: dict[str, PolicyFeature] | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of each feature, for messages."""
    return {key: tuple(feature.shape) for key, feature in (features or {}).items()}


@dataclass
class TinyVLMConfig:
    """Sizes of the random Qwen2.5-VL that ``vlm_model_name=tiny`` builds (2.4 million parameters by default).

    Sizes of the tiny backbone:
        hidden_size: The language model has this width.
        num_layers: The language model has this many decoder layers.
        num_heads: The language model has this many attention heads; the width of one head must be a multiple of 4.
        num_kv_heads: The language model has this many key/value heads; the number must divide ``num_heads``.
        intermediate_size: The MLPs of the language model have this width.
        vision_hidden_size: The vision tower has this width.
        vision_layers: The vision tower has this many blocks.
        vision_heads: The vision tower has this many attention heads; the width of one head must be a multiple of 4.
        vision_intermediate_size: The MLPs of the vision tower have this width.
        seed: The random weights are drawn from this seed.
    """

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    intermediate_size: int = 512
    vision_hidden_size: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    vision_intermediate_size: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name != "seed" and value < 1:
                raise ConfigError(f"tiny.{item.name}={value} must be at least 1.")
        for width, heads, prefix, heads_name in (
            (self.hidden_size, self.num_heads, "", "num_heads"),
            (self.vision_hidden_size, self.vision_heads, "vision_", "vision_heads"),
        ):
            if width % (4 * heads):
                raise ConfigError(
                    f"tiny.{prefix}hidden_size={width} must be a multiple of 4 * tiny.{heads_name}={heads} "
                    "(rotary positions split each head)."
                )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"tiny.num_kv_heads={self.num_kv_heads} must divide tiny.num_heads={self.num_heads}."
            )


@PreTrainedConfig.register_subclass("vla0")
@dataclass
class VLA0Config(PreTrainedConfig):
    """Options of the VLA-0 policy.

    Defaults are the paper's LIBERO protocol (arXiv 2510.13054), except:

    - ``n_action_steps=8`` with ``ensemble_n_chunks=1`` executes a whole chunk per query, as on the paper's real robot;
      the paper's simulation results use 1 and 8;
    - ``optimizer_grad_clip_norm=1.0`` clips gradients; the paper's code does not (0 here), a re-implementation found
      that clipping helps.

    Backbone:
        vlm_model_name: The policy is built on this model: a Hub repo id or a local folder of a Qwen2.5-VL or Qwen2-VL
            of any size, or ``tiny`` for a small random Qwen2.5-VL that needs no download.
        tiny: The model has these sizes if ``vlm_model_name`` is ``tiny``.
        freeze_vision_encoder: If true, the vision tower is not trained.
        lora_vision: If true and ``--peft.method_type=LORA`` is given, the vision tower gets adapters as well as the
            language model.

    Chunk and text:
        chunk_size: The model predicts this many steps per query, the paper's horizon ``H`` (at least 1).
        n_bins: An action is written as an integer from 0 to this number ``B``, so it has ``B + 1`` levels (1 to
            99,999).
        normalization_mapping: LeRobot normalises each kind of feature in this way. Actions need a bounded mode:
            MIN_MAX (the paper), QUANTILES or QUANTILE10. Images stay IDENTITY. With ``state_in_prompt`` the state needs
            a bounded mode too, and takes that of the actions if it is left at IDENTITY; without ``state_in_prompt``
            the state's mode changes nothing.
        system_prompt: The prompt begins with this system message. ``{H}``, ``{D}``, ``{N}`` and ``{B}`` stand for
            ``chunk_size``, the dimensions of an action, the product of the two, and ``n_bins``.
        add_vision_id: If true, the prompt says ``Picture k: `` before each image. The paper's weights were trained
            without it.
        max_prompt_length: A prompt of more tokens than this is an error (at least 1); prompts are never truncated.
        state_in_prompt: If true, the prompt has the robot's state before the instruction, normalised by its own
            statistics, as integers from 0 to ``n_bins``. Values outside the statistics are clamped. The paper's prompt
            has no state.
        use_relative_actions: If true, the policy learns actions as offsets from the state at the query, through
            LeRobot's own processor steps. This needs statistics of relative actions (``docs/state.md``).
        relative_exclude_joints: With ``use_relative_actions``, dimensions whose name contains one of these words stay
            absolute, as in LeRobot; ``[]`` excludes none.
        action_feature_names: The dimensions of an action have these names. LeRobot fills them in from the data set.

    Images:
        cameras: The model sees the images of these keys, in this order, and ignores other cameras of the data set or
            robot. None takes all cameras in the data set's order.
        crop_box: The model looks only at this region ``(x0, y0, x1, y1)``, in training and evaluation, in fractions of
            the image's width and height (0 to 1). None looks at the whole image.
        crop_ratio: The random crop in training and the centre crop in evaluation keep this fraction of each side (above
            0, at most 1); 1 turns cropping off.
        image_size: The image of each camera is resized to this (height, width) in pixels; both are multiples of 28.
        antialias: If true, a low-pass filter runs before an image is shrunk. The paper uses none; turn it on if cameras
            are much larger than ``image_size``, or differ in size between training and evaluation.
        tile_images: If true, the cameras are put side by side in one image; if false, each camera is an image of its
            own.

    Training augmentation:
        brightness: In training, the brightness is multiplied by a random factor that differs from 1 by up to this (at
            least 0; 0 turns it off).
        contrast: In training, the contrast is multiplied by a random factor that differs from 1 by up to this (at least
            0; 0 turns it off).
        saturation: In training, the saturation is multiplied by a random factor that differs from 1 by up to this (at
            least 0; 0 turns it off).
        hue: In training, the hue is shifted at random by up to this share of the colour circle (0 to 0.5; 0 turns it
            off).
        action_mask_max_ratio: Masked action augmentation hides up to this share of an answer (0 to 1; 0 turns it off).
        action_mask_skip_prob: This share of the samples is left unmasked (0 to 1).
        action_mask_unit: ``char`` hides single characters (the paper), ``number`` hides whole integers.
        loss_on_padding: If true, the loss counts the repetitions of the last action after an episode's end, as in the
            paper.

    Execution:
        n_action_steps: This many steps of a chunk are executed before the next query (1 to ``chunk_size``).
        ensemble_n_chunks: The overlapping predictions of this many chunks, the latest ones, are averaged; 1 turns
            averaging off. Real robots use 1, the paper's simulation 8 with ``n_action_steps=1``.
        ensemble_old_weight: Older chunks have this weight in the average, the newest has 1.0 (above 0, at most 1). 1.0
            is the paper's mean, 0.5 the paper's code.
        binary_action_indices: These dimensions of an action are snapped to the ends of their range after averaging
            (LIBERO's gripper: ``[6]``).
        max_action_step: A dimension of an action may differ by at most this from the action executed before it. One
            positive number is for all dimensions but the binary ones; a list has one number per dimension, and None in
            it leaves a dimension free. None turns the limit off. The first action after a reset has no predecessor and
            is not limited (``docs/so100.md``).
        max_action_step_unit: With ``range``, ``max_action_step`` is in fractions of the dimension's range in the
            training data, below 1; with ``robot``, it is in the robot's units (SO-100: degrees, percent for the
            gripper).
        min_gripper_height: The point between the fingertips of an SO-101 is sent to no place lower than this, metres
            above the table that the arm stands on. It needs ``max_action_step``, so that the way between two goals is
            short, absolute actions in degrees, and the extra ``so101``. None turns it off. The way to the first goal
            after a reset is not limited.
        min_query_ms: A query takes at least this many milliseconds; what is left of them is slept. This shows on any
            machine what a robot would do with a slower one (``vla0 latency``). 0 adds nothing.

    Decoding:
        decoder: ``reference`` is Hugging Face's ``generate``. ``fast`` uses a static cache and reads tokens that the
            grammar forces together with the next choice. ``speculative`` is fast, and lets one pass check many guessed
            tokens. All return the same tokens. ``auto`` is speculative, or fast when sampling.
        draft_width: A speculative pass checks at most this many tokens (at least 1). None measures which width is
            fastest on this device.
        temperature: 0 decodes greedily; a value above 0 samples.
        repetition_penalty: transformers' penalty on tokens already seen has this value (above 0); 1.0 is none. The
            official checkpoint was evaluated with its backbone's value (about 1.05).

    Engine:
        engine: An inference server at this address (``http://host:port/v1``) writes the answers, and no weights are
            loaded here: vLLM, SGLang, llama.cpp, or another one with OpenAI's protocol, which serves what ``vla0
            export`` wrote (``docs/serving.md``). None loads the weights.
        engine_model: The server's model has this name. None takes its only one.
        engine_timeout_s: An answer of the engine may take this many seconds (above 0), as may connecting to it.

    Precision and memory:
        dtype: The model computes in this precision: ``float32``, ``bfloat16`` or ``float16``. LeRobot's training
            autocasts to it, and so does inference. ``autocast_bfloat16`` leaves the training's autocast to the policy
            alone; FSDP needs it, because accelerate would otherwise round actions and rotary tables too.
        param_dtype: The weights are held in this precision, ``float32`` or ``bfloat16``; float32 keeps master weights.
        save_dtype: Checkpoints are written in this precision, ``float32`` or ``bfloat16``; None keeps ``param_dtype``.
            Loading converts to ``param_dtype``. A run resumed from rounded weights is not exact.
        quantization: The language model's linear layers are held in this format; None keeps ``param_dtype``. ``nf4`` is
            for training: 4 bits under an adapter in full precision (QLoRA; bitsandbytes, CUDA only). The others are for
            the inference of a trained policy, which is quantised when it is loaded (extra ``quantize``; torchao).
            ``int8`` holds weights in 8 bits, ``int8_dynamic`` also multiplies in 8 bits, ``int4`` holds weights in 4
            bits (CUDA only) and ``fp8`` multiplies in 8-bit floats (CUDA from compute capability 8.9).
        attn_implementation: transformers uses this attention: ``sdpa``, ``eager``, ``flash_attention_2`` or
            ``flash_attention_3``. The last two have to be installed and serve in training and on prompts of the
            reference decoder; the faster decoders use sdpa.
        gradient_checkpointing: If true, activations are recomputed in the backward pass, which saves memory.
        compile_model: If true, ``torch.compile`` compiles the layers for training: steps are faster after a minute or
            two of compiling. Decoding does not change.

    Optimizer:
        optimizer_lr: The learning rate has this peak (at least 0). The paper uses 5e-6 per GPU of batch 8, which is
            4e-5 at batch 64.
        optimizer_betas: AdamW has these two betas.
        optimizer_eps: AdamW has this epsilon.
        optimizer_weight_decay: AdamW has this decoupled weight decay (at least 0).
        optimizer_grad_clip_norm: The norm of the gradient is clipped to this (at least 0); 0 turns clipping off.
        optimizer_8bit: If true, AdamW's moments are held in 8 bits (bitsandbytes; CUDA only).
        scheduler_name: After the warm-up the learning rate is ``constant`` (the paper), or falls to zero on a
            ``cosine``.
        scheduler_warmup_steps: The learning rate rises linearly for this many steps (at least 0).
    """

    vlm_model_name: str = "Qwen/Qwen2.5-VL-3B-Instruct"
    tiny: TinyVLMConfig = field(default_factory=TinyVLMConfig)
    freeze_vision_encoder: bool = False
    lora_vision: bool = False

    chunk_size: int = 8
    n_bins: int = 1000
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.IDENTITY,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )
    system_prompt: str = SYSTEM_PROMPT
    add_vision_id: bool = False
    max_prompt_length: int = 4096
    state_in_prompt: bool = False
    use_relative_actions: bool = False
    relative_exclude_joints: list[str] = field(default_factory=lambda: list(_EXCLUDED_JOINTS))
    action_feature_names: list[str] | None = None

    cameras: list[str] | None = None
    crop_box: tuple[float, float, float, float] | None = None
    crop_ratio: float = 0.875
    image_size: tuple[int, int] = (224, 224)
    antialias: bool = False
    tile_images: bool = True

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    action_mask_max_ratio: float = 0.4
    action_mask_skip_prob: float = 0.1
    action_mask_unit: str = "char"
    loss_on_padding: bool = True

    n_action_steps: int = 8
    ensemble_n_chunks: int = 1
    ensemble_old_weight: float = 1.0
    binary_action_indices: list[int] = field(default_factory=list)
    max_action_step: float | list[float | None] | None = None
    max_action_step_unit: str = "range"
    min_gripper_height: float | None = None
    min_query_ms: float = 0.0

    decoder: str = "auto"
    draft_width: int | None = None
    temperature: float = 0.0
    repetition_penalty: float = 1.0

    engine: str | None = None
    engine_model: str | None = None
    engine_timeout_s: float = ENGINE_TIMEOUT_S

    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    save_dtype: str | None = None
    quantization: str | None = None
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    compile_model: bool = False

    optimizer_lr: float = 4e-5
    optimizer_betas: tuple[float, float] = (0.9, 0.999)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-10
    optimizer_grad_clip_norm: float = 1.0
    optimizer_8bit: bool = False
    scheduler_name: str = "constant"
    scheduler_warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._normalise_types()
        self._check_backbone()
        self._check_chunk_and_text()
        self._check_images()
        self._check_augmentation()
        self._check_execution()
        self._check_decoding()
        self._check_engine()
        self._check_precision()
        self._check_optimizer()
        self._describe_for_hub()

    def _describe_for_hub(self) -> None:
        """Complete licence and tags, from which LeRobot 0.6.2 writes a model card without asking the policy.

        It would write apache-2.0 where a licence is missing.
        """
        fields: Any = self  # these are fields of LeRobot's class
        tags = {*HUB_TAGS, *(fields.tags or [])}
        if self.vlm_model_name != TINY:
            if not Path(self.vlm_model_name).is_dir():
                tags.add(f"base_model:{self.vlm_model_name}")
            inherited = backbone_license(self.vlm_model_name)
            fields.license = fields.license or (inherited.id if inherited else UNKNOWN_LICENSE)
        fields.tags = sorted(tags)

    # ------------------------------------------------------------------ checks of the options alone

    def _normalise_types(self) -> None:
        """Convert lists to tuples and names to normalisation modes, as YAML and users write them."""
        for name, length, example in (
            ("image_size", 2, "(224, 224)"),
            ("crop_box", 4, "(0.2, 0.1, 0.8, 0.9)"),
        ):
            value = getattr(self, name)
            if value is None and name == "crop_box":
                continue
            if not isinstance(value, list | tuple) or len(value) != length:
                raise ConfigError(f"{name}={value!r} must be {length} numbers, e.g. {example}.")
            setattr(self, name, tuple(value))
        try:
            self.normalization_mapping = {
                key: NormalizationMode(mode) for key, mode in self.normalization_mapping.items()
            }
        except ValueError as error:
            raise ConfigError(
                f"normalization_mapping={self.normalization_mapping} has an unknown mode ({error}); known: "
                f"{[mode.value for mode in NormalizationMode]}."
            ) from None
        state = self.normalization_mapping.get("STATE", NormalizationMode.IDENTITY)
        if (
            self.state_in_prompt
            and state is NormalizationMode.IDENTITY
            and "ACTION" in self.normalization_mapping
        ):
            self.normalization_mapping["STATE"] = self.normalization_mapping["ACTION"]

    def _check_backbone(self) -> None:
        if self.lora_vision and self.freeze_vision_encoder:
            raise ConfigError(
                "lora_vision=True trains adapters in the vision tower, but freeze_vision_encoder=True says not to "
                "train it. Set one of them to False."
            )

    def _check_chunk_and_text(self) -> None:
        if self.n_obs_steps != 1:
            raise ConfigError(f"n_obs_steps={self.n_obs_steps}, but VLA-0 sees one observation. Set it to 1.")
        if self.chunk_size < 1:
            raise ConfigError(f"chunk_size={self.chunk_size} must be at least 1 (the paper uses 8).")
        if not isinstance(self.n_bins, int) or not 1 <= self.n_bins <= 99_999:
            raise ConfigError(f"n_bins={self.n_bins} must be an integer in [1, 99999] (the paper uses 1000).")
        modes = self.normalization_mapping
        action, state = modes.get("ACTION"), modes.get("STATE")
        bounded = [mode.value for mode in _BOUNDED_MODES]
        if action not in _BOUNDED_MODES:
            raise ConfigError(
                f"normalization_mapping['ACTION'] is {action.value if action else None}, but integers need actions in "
                f"a bounded range. Use one of {bounded} (the paper: MIN_MAX)."
            )
        visual = modes.get("VISUAL", NormalizationMode.IDENTITY)
        if visual is not NormalizationMode.IDENTITY:
            raise ConfigError(
                f"normalization_mapping['VISUAL'] is {visual.value}, but the backbone normalises pixels itself. "
                "Use IDENTITY."
            )
        format_system_prompt(self.system_prompt, chunk_size=self.chunk_size, action_dim=1, n_bins=self.n_bins)
        if self.max_prompt_length < 1:
            raise ConfigError(f"max_prompt_length={self.max_prompt_length} must be at least 1.")
        if self.state_in_prompt and state not in _BOUNDED_MODES:
            raise ConfigError(
                f"normalization_mapping['STATE'] is {state.value if state else None}, but state_in_prompt=True writes "
                f"the state as integers, which needs a bounded range. Use one of {bounded}."
            )
        excluded = tuple(self.relative_exclude_joints)
        if not self.use_relative_actions and excluded != _EXCLUDED_JOINTS:
            raise ConfigError(
                f"relative_exclude_joints={list(excluded)} has no effect with use_relative_actions=False. Set "
                "use_relative_actions to True, or leave relative_exclude_joints unset."
            )

    def _check_images(self) -> None:
        if self.cameras is not None and (not self.cameras or len(set(self.cameras)) != len(self.cameras)):
            raise CameraError(
                f"cameras={self.cameras} must list at least one image key and no key twice; leave it unset to "
                "use the dataset's cameras in the dataset's order."
            )
        # `ImageSettings` checks the rest. The patch sizes belong to the backbone; `VLA0Policy` and the processors
        # check image_size against them.
        self.image_settings(patch_size=1, merge_size=1)

    def _check_augmentation(self) -> None:
        for name in ("action_mask_max_ratio", "action_mask_skip_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        if self.action_mask_unit not in ("char", "number"):
            raise ConfigError(f"action_mask_unit={self.action_mask_unit!r} must be 'char' or 'number'.")

    def _check_execution(self) -> None:
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ConfigError(
                f"n_action_steps={self.n_action_steps} must lie in [1, chunk_size={self.chunk_size}]: only "
                f"predicted steps can be executed. Lower n_action_steps or raise chunk_size."
            )
        if self.ensemble_n_chunks < 1:
            raise ConfigError(f"ensemble_n_chunks={self.ensemble_n_chunks} must be at least 1 (1 is off).")
        if not 0 < self.ensemble_old_weight <= 1:
            raise ConfigError(f"ensemble_old_weight={self.ensemble_old_weight} must lie in (0, 1].")
        # Chunk i overlaps the newest one only while i * n_action_steps < chunk_size.
        useful = math.ceil(self.chunk_size / self.n_action_steps)
        if self.ensemble_n_chunks > useful:
            raise ConfigError(
                f"ensemble_n_chunks={self.ensemble_n_chunks} would silently do less than it says: with "
                f"chunk_size={self.chunk_size} and n_action_steps={self.n_action_steps} only {useful} chunk(s) "
                f"overlap. Set ensemble_n_chunks to at most {useful}, or lower n_action_steps "
                "(the paper's simulation: n_action_steps=1, ensemble_n_chunks=8)."
            )
        if self.ensemble_n_chunks == 1 and self.ensemble_old_weight != 1.0:
            raise ConfigError(
                f"ensemble_old_weight={self.ensemble_old_weight} has no effect with ensemble_n_chunks=1. "
                "Raise ensemble_n_chunks or leave ensemble_old_weight at 1.0."
            )
        if not 0 <= self.min_query_ms < math.inf:
            raise ConfigError(f"min_query_ms={self.min_query_ms} must be finite and at least 0 milliseconds.")
        self._check_max_action_step()
        self._check_min_gripper_height()

    def _check_min_gripper_height(self) -> None:
        height = self.min_gripper_height
        if height is None:
            return
        if not math.isfinite(height):
            raise ConfigError(f"min_gripper_height={height} must be a number of metres, or None.")
        if self.max_action_step is None or self.use_relative_actions:
            raise ConfigError(
                f"min_gripper_height={height} needs max_action_step (without it the arm may go lower on its way to a "
                "goal that is far away) and use_relative_actions=False. Set max_action_step, or min_gripper_height to "
                "None."
            )

    def _check_max_action_step(self) -> None:
        value, unit = self.max_action_step, self.max_action_step_unit
        if unit not in _STEP_UNITS:
            raise ConfigError(f"max_action_step_unit={unit!r} must be one of {_STEP_UNITS}.")
        if value is None:
            if unit != "range":
                raise ConfigError(
                    f"max_action_step_unit={unit!r} has no effect without max_action_step. Set max_action_step, or "
                    "leave the unit out."
                )
            return
        limits = [
            step for step in (value if isinstance(value, list | tuple) else [value]) if step is not None
        ]
        if not limits:
            raise ConfigError(
                f"max_action_step={value} limits no dimension. Give at least one a number, or set it to None."
            )
        bad = [limit for limit in limits if not (isinstance(limit, float | int) and 0 < limit < math.inf)]
        if bad:
            raise ConfigError(
                f"max_action_step={value}: {bad} must be positive and finite (per control step). None leaves a "
                "dimension free."
            )
        if unit == "range" and max(limits) >= 1:
            raise ConfigError(
                f"max_action_step={value} is at least the whole range of the action and would never limit anything. "
                "With max_action_step_unit='range' give fractions below 1 (0.05 is a twentieth of the range per "
                "control step), or set max_action_step_unit='robot' if these are the robot's units."
            )

    def _check_decoding(self) -> None:
        if self.decoder not in _DECODERS:
            raise ConfigError(f"decoder={self.decoder!r} must be one of {_DECODERS}.")
        if not 0 <= self.temperature < math.inf:  # false for NaN
            raise ConfigError(f"temperature={self.temperature} must be finite and at least 0 (0 is greedy).")
        if self.decoder == "speculative" and self.temperature > 0:
            raise ConfigError(
                f"decoder='speculative' checks drafts against the greedy choice, but temperature={self.temperature} "
                "samples. Set temperature to 0, or decoder to 'auto' or 'fast'."
            )
        if self.draft_width is not None:
            if self.draft_width < 1:
                raise ConfigError(
                    f"draft_width={self.draft_width} must be at least 1, or None to measure it."
                )
            if self.decoder in ("reference", "fast") or self.temperature > 0:
                raise ConfigError(
                    f"draft_width={self.draft_width} has no effect with decoder={self.decoder!r} and "
                    f"temperature={self.temperature}: only the greedy speculative decoder drafts. Leave it unset."
                )
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"repetition_penalty={self.repetition_penalty} must be finite and positive (1.0 is none)."
            )

    def _check_engine(self) -> None:
        if not 0 < self.engine_timeout_s < math.inf:
            raise ConfigError(f"engine_timeout_s={self.engine_timeout_s} must be finite and above 0 seconds.")
        if self.engine is None:
            for name, default in (("engine_model", None), ("engine_timeout_s", ENGINE_TIMEOUT_S)):
                if (value := getattr(self, name)) != default:
                    raise ConfigError(
                        f"{name}={value!r} has no effect without engine. Give --policy.engine=http://..., or leave it "
                        "out."
                    )
            return
        address = urlsplit(self.engine)
        if address.scheme not in ("http", "https") or not address.hostname or address.username is not None:
            raise ConfigError(
                f"engine={self.engine!r} must be an address such as http://localhost:8000/v1, without a user's name. A "
                "key for the server goes into the environment variable VLA0_ENGINE_API_KEY."
            )
        without_effect = {
            name: value
            for name, value, default in (
                ("decoder", self.decoder, "auto"),
                ("draft_width", self.draft_width, None),
                ("quantization", self.quantization, None),
            )
            if value != default
        }
        if without_effect:
            raise ConfigError(
                f"{without_effect} has no effect with engine={self.engine!r}: the server decodes, with weights of its "
                "own. Leave it out."
            )

    def _check_precision(self) -> None:
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} must be one of {_DTYPES}.")
        if self.param_dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"param_dtype={self.param_dtype!r} must be 'float32' or 'bfloat16'.")
        if self.param_dtype == "bfloat16" and not self.dtype.endswith("bfloat16"):
            raise ConfigError(
                f"param_dtype='bfloat16' computes in bfloat16, but dtype={self.dtype!r}. Set both to bfloat16, or "
                "param_dtype to float32."
            )
        if self.save_dtype not in (None, "float32", "bfloat16"):
            raise ConfigError(f"save_dtype={self.save_dtype!r} must be None, 'float32' or 'bfloat16'.")
        if self.quantization not in (None, "nf4", *INFERENCE_QUANTIZATIONS):
            raise ConfigError(
                f"quantization={self.quantization!r} must be None, 'nf4' (training an adapter) or one of "
                f"{INFERENCE_QUANTIZATIONS} (inference)."
            )
        if self.compile_model and self.quantization:
            raise ConfigError(
                f"compile_model=True cannot compile quantised layers (quantization={self.quantization!r}). Set one of "
                "them to its default."
            )
        if self.quantization in ("int4", "fp8") and self.param_dtype != "bfloat16":
            raise ConfigError(
                f"quantization={self.quantization!r} computes in bfloat16, but param_dtype={self.param_dtype!r}. Set "
                "dtype and param_dtype to bfloat16, or use quantization='int8_dynamic'."
            )
        if self.attn_implementation not in _ATTENTION:
            raise ConfigError(
                f"attn_implementation={self.attn_implementation!r} must be one of {_ATTENTION}."
            )

    def _check_optimizer(self) -> None:
        for name in (
            "optimizer_lr",
            "optimizer_weight_decay",
            "optimizer_grad_clip_norm",
            "scheduler_warmup_steps",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and at least 0.")
        if self.scheduler_name not in _SCHEDULERS:
            raise ConfigError(f"scheduler_name={self.scheduler_name!r} must be 'constant' or 'cosine'.")

    # ------------------------------------------------------------------ checks against the features

    def validate_features(self) -> None:
        """Check the options against the features of the dataset or environment, which LeRobot fills in.

        Raises:
            ConfigError: if there is no action, if ``binary_action_indices`` or ``max_action_step`` does not fit it, or
                if an option needs a state that is missing or does not fit.
            CameraError: if there is no camera, or if ``cameras`` names an unknown one.
        """
        outside = [i for i in self.binary_action_indices if not 0 <= i < self.action_dim]
        if outside or len(set(self.binary_action_indices)) != len(self.binary_action_indices):
            raise ConfigError(
                f"binary_action_indices={self.binary_action_indices} must be distinct dimensions in "
                f"[0, {self.action_dim}) of the action."
            )
        # Each property raises if its option does not fit the features.
        _ = self.step_limits, self.camera_keys, self.prompt_state_dim
        if self.use_relative_actions:
            self._check_relative_actions()

    def _state_dim(self, option: str) -> int:
        """Return the number of values of the state, which ``option`` needs."""
        state = self.robot_state_feature
        if state is None or len(state.shape) != 1 or state.shape[0] < 1:
            raise ConfigError(
                f"{option}=True needs an 'observation.state' of shape (state_dim,); the dataset or environment has "
                f"{_shapes(self.input_features)}. Set {option} to False, or use data with a state; one of another name "
                "has to be renamed in the data set."
            )
        return int(state.shape[0])

    def _check_relative_actions(self) -> None:
        state_dim = self._state_dim("use_relative_actions")
        if state_dim < self.action_dim:
            raise ConfigError(
                f"use_relative_actions=True subtracts the state from the action, dimension by dimension, but the state "
                f"has {state_dim} dimensions and the action {self.action_dim}. Set use_relative_actions to False."
            )
        absolute = self.absolute_dimensions
        if self.relative_exclude_joints and not absolute:
            raise ConfigError(
                f"relative_exclude_joints={self.relative_exclude_joints} matches none of the action's dimensions "
                f"{self.action_feature_names}: all of them would become relative. Set relative_exclude_joints to names "
                "of dimensions that stay absolute, or to [] if there are none."
            )
        relative = [i for i in self.binary_action_indices if i not in absolute]
        if relative:
            raise ConfigError(
                f"binary_action_indices={self.binary_action_indices} snaps dimension(s) {relative} to the ends of "
                f"their range, but use_relative_actions=True with relative_exclude_joints="
                f"{self.relative_exclude_joints} makes them offsets. Exclude them by name, or take them out of "
                "binary_action_indices."
            )

    # ------------------------------------------------------------------ derived values

    @property
    def action_dim(self) -> int:
        """Dimensions of one action."""
        action = self.action_feature
        if action is None or len(action.shape) != 1 or action.shape[0] < 1:
            rename = (
                " --rename_map does not rename actions (LeRobot 0.6.1): rename this one in the data set."
                if action is None and len(self.output_features or {}) == 1
                else ""
            )
            raise ConfigError(
                "the policy needs one 'action' feature of shape (action_dim,); the dataset or environment has "
                f"{_shapes(self.output_features)}.{rename}"
            )
        return int(action.shape[0])

    @property
    def prompt_state_dim(self) -> int:
        """Number of the state's integers in the prompt; 0 without state."""
        return self._state_dim("state_in_prompt") if self.state_in_prompt else 0

    @property
    def camera_keys(self) -> list[str]:
        """Image keys in the order the model sees them."""
        known = list(self.image_features)
        if not known:
            raise CameraError(
                "the dataset or environment has no camera: VLA-0 acts on images. Expected at least one "
                f"'observation.image...' feature, got {sorted(self.input_features or {})}."
            )
        if self.cameras is None:
            return known
        missing = [key for key in self.cameras if key not in known]
        if missing:
            raise CameraError(
                f"cameras={self.cameras} names {missing}, but the dataset, environment or checkpoint has {known}. Give "
                f"some of these, such as --policy.cameras='{json.dumps(known)}' for all, or leave the option out."
            )
        return list(self.cameras)

    @property
    def step_limits(self) -> list[float | None] | None:
        """``max_action_step`` of each dimension, in ``max_action_step_unit``; None if nothing is limited."""
        value, binary, action_dim = self.max_action_step, self.binary_action_indices, self.action_dim
        if value is None:
            return None
        if isinstance(value, float | int):
            spread = [None if index in binary else float(value) for index in range(action_dim)]
            if binary and not any(limit is not None for limit in spread):
                raise ConfigError(
                    f"max_action_step={value} limits every dimension but the binary ones, and binary_action_indices="
                    f"{list(binary)} are all {action_dim}. Set max_action_step to None."
                )
            return spread
        if len(value) != action_dim:
            raise ConfigError(
                f"max_action_step={list(value)} has {len(value)} values, but the action has {action_dim} dimensions. "
                "Give one per dimension (null leaves one free), or a single number for all."
            )
        both = [index for index in binary if value[index] is not None]
        if both:
            raise ConfigError(
                f"max_action_step={list(value)} limits dimension(s) {both}, which binary_action_indices={list(binary)} "
                "snaps to the ends of their range: limited, they would pass through values that are neither. Set null "
                "there, or take them out of binary_action_indices."
            )
        return list(value)

    @property
    def absolute_dimensions(self) -> list[int]:
        """Dimensions that LeRobot's step for relative actions leaves absolute."""
        step = RelativeActionsProcessorStep(
            exclude_joints=self.relative_exclude_joints, action_names=self.action_feature_names
        )
        return [i for i, relative in enumerate(step._build_mask(self.action_dim)) if not relative]

    @property
    def filled_system_prompt(self) -> str:
        """The system prompt with this policy's numbers filled in."""
        return format_system_prompt(
            self.system_prompt, chunk_size=self.chunk_size, action_dim=self.action_dim, n_bins=self.n_bins
        )

    def codec(self, tokens: ActionTokens) -> ActionCodec:
        """Return the codec of this policy's actions for a backbone's tokens."""
        return ActionCodec(tokens, n_bins=self.n_bins, chunk_size=self.chunk_size, action_dim=self.action_dim)

    def prompt_settings(self, patch_size: int, merge_size: int, pad_token_id: int) -> PromptSettings:
        """Return the prompt settings for a backbone's patch sizes and padding id."""
        return PromptSettings(
            system_prompt=self.filled_system_prompt,
            image_tokens=tuple(self.image_tokens(patch_size, merge_size)),
            pad_token_id=pad_token_id,
            add_vision_id=self.add_vision_id,
            max_length=self.max_prompt_length,
            state_dim=self.prompt_state_dim,
            n_bins=self.n_bins,
        )

    def image_tokens(self, patch_size: int, merge_size: int) -> list[int]:
        """Return the number of tokens of each image, in the model's order."""
        grids = grid_size(self.image_settings(patch_size, merge_size), len(self.camera_keys))
        return [frames * rows * columns // merge_size**2 for frames, rows, columns in grids]

    def image_settings(self, patch_size: int = 14, merge_size: int = 2) -> ImageSettings:
        """Return the image pipeline's settings for a backbone's patch sizes."""
        return ImageSettings(
            image_size=self.image_size,
            crop_box=self.crop_box,
            crop_ratio=self.crop_ratio,
            antialias=self.antialias,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            tile=self.tile_images,
            patch_size=patch_size,
            merge_size=merge_size,
        )

    # ------------------------------------------------------------------ LeRobot's contract

    @property
    def observation_delta_indices(self) -> None:
        """None: the policy reads one observation, without a time axis."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The steps of a chunk: the current one and the next ``chunk_size - 1``."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """None: the policy uses no rewards."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return the optimizer for `lerobot-train`."""
        kind = AdamW8bitConfig if self.optimizer_8bit else FusedAdamWConfig
        return kind(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> LRSchedulerConfig:
        """Return the learning-rate schedule for `lerobot-train`."""
        kind = _SCHEDULERS[self.scheduler_name]
        schedule: LRSchedulerConfig = kind(num_warmup_steps=self.scheduler_warmup_steps)
        return schedule
