"""`VLA0Config`: every option of the policy, documented and cross-checked at construction.

Importing this module registers the policy type ``vla0`` with LeRobot. It imports no model code.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import (
    ConstantWithWarmupSchedulerConfig,
    CosineAnnealingWithWarmupSchedulerConfig,
    LRSchedulerConfig,
)

from lerobot_policy_vla0.action_limit import check_max_step, limit_of_each_dimension
from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.images import ImageSettings, grid_size
from lerobot_policy_vla0.prompt import SYSTEM_PROMPT, format_system_prompt

logger = logging.getLogger(__name__)

_BOUNDED_MODES = (NormalizationMode.MIN_MAX, NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10)
_EXAMPLES = {"image_size": "(224, 224)", "crop_box": "(0.2, 0.1, 0.8, 0.9)"}
DECODERS = ("auto", "reference", "fast", "speculative")
_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
_DTYPES = ("float32", "bfloat16", "float16", "autocast_bfloat16")


@dataclass
class TinyVLMConfig:
    """Sizes of the random Qwen2.5-VL that ``vlm_model_name=tiny`` builds (2.4 M parameters as given).

    Attributes:
        hidden_size: width of the language model.
        num_layers: decoder layers of the language model.
        num_heads: attention heads of the language model; the width of one head must be a multiple of 4.
        num_kv_heads: key/value heads, a divisor of ``num_heads``.
        intermediate_size: width of the language model's MLPs.
        vision_hidden_size: width of the vision tower.
        vision_layers: blocks of the vision tower.
        vision_heads: attention heads of the vision tower.
        vision_intermediate_size: width of the vision tower's MLPs.
        seed: seed of the random weights.
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

    - ``n_action_steps=8`` with ``ensemble_n_chunks=1``, a whole chunk per query as on the paper's real robot;
      its simulation results use 1 and 8;
    - ``optimizer_grad_clip_norm=1.0``; the paper's code does not clip (0 here), a re-implementation found that
      clipping helps.

    Attributes:
        vlm_model_name: backbone: a Hub repo id or local folder of a Qwen2.5-VL or Qwen2-VL of any size, or ``tiny``
            for a random Qwen2.5-VL that needs no download (see ``tiny``).
        tiny: sizes used when ``vlm_model_name`` is ``tiny``.
        chunk_size: steps predicted per query, the paper's horizon ``H`` (>= 1).
        n_action_steps: steps executed per query, in ``[1, chunk_size]``.
        n_bins: top integer ``B``; an action is one of ``B + 1`` levels (1 to 99,999).
        cameras: image keys in the order the model sees them; None takes the dataset's order. Cameras
            of the dataset that are not listed are ignored.
        crop_box: ``(x0, y0, x1, y1)`` in fractions of the image: look at this region only, in training
            and evaluation; None looks at the whole image.
        crop_ratio: side of the random crop in training and the centre crop in evaluation, as a
            fraction in ``(0, 1]``; 1 turns cropping off.
        image_size: (height, width) in pixels each camera is resized to; multiples of 28.
        antialias: low-pass filter before shrinking. Off in the protocol; turn it on when cameras
            are much larger than ``image_size`` or differ in size between training and evaluation.
        brightness, contrast, saturation, hue: colour jitter in training.
        tile_images: cameras side by side in one image (True) or one image per camera (False).
        system_prompt: the system message; ``{H}``, ``{D}``, ``{N}``, ``{B}`` stand for chunk_size,
            action_dim, their product, and n_bins.
        add_vision_id: write ``Picture k: `` before each image. The paper's weights were trained without.
        max_prompt_length: longest prompt accepted, in tokens; a longer one is an error, never truncated.
        action_mask_max_ratio: masked action augmentation hides up to this share of an answer, in
            ``[0, 1]``; 0 turns it off.
        action_mask_skip_prob: share of samples left unmasked, in ``[0, 1]``.
        action_mask_unit: ``char`` hides single characters (the paper), ``number`` whole integers.
        loss_on_padding: train on the repeated last action after an episode's end, as the paper does.
        ensemble_n_chunks: average the overlapping predictions of the last n chunks; 1 turns it off. Real
            robots: 1. The paper's simulation: 8 with ``n_action_steps=1``.
        ensemble_old_weight: weight of older chunks against 1.0 for the newest; 1.0 is the paper's mean,
            0.5 the paper's code.
        binary_action_indices: action dimensions snapped to their range's ends after ensembling
            (LIBERO's gripper: ``[6]``).
        max_action_step: most an action may differ from the one executed before it, per dimension: one positive number
            for all dimensions but the binary ones, or a list with one per dimension, None leaving it free. None
            turns it off. The first action after a reset has no predecessor (docs/so100.md).
        max_action_step_unit: ``range``: ``max_action_step`` in fractions of the dimension's range in the training
            data, below 1; ``robot``: in the robot's units (SO-100: degrees, percent for the gripper).
        temperature: 0 decodes greedily; above 0 samples.
        repetition_penalty: transformers' penalty on tokens already seen, 1.0 is none. The official
            checkpoint was evaluated with its backbone's value (about 1.05).
        decoder: ``reference`` (Hugging Face ``generate``), ``fast`` (static cache, forced tokens ride along),
            ``speculative`` (fast, with drafts checked many tokens at a time); all return the same tokens.
            ``auto`` is speculative, or fast when sampling.
        draft_width: most tokens a speculative pass checks; None measures what pays on this device.
        normalization_mapping: actions must map to a bounded mode: MIN_MAX (the paper), QUANTILES or
            QUANTILE10; images stay IDENTITY, the state is not read.
        dtype: compute precision: ``float32``, ``bfloat16`` or ``float16``. LeRobot's training autocasts to it, and
            so does inference. ``autocast_bfloat16`` leaves the training's autocast to the policy alone; needed with
            FSDP, where accelerate would round actions and rotary tables too.
        param_dtype: precision the weights are held in; float32 keeps master weights.
        attn_implementation: transformers' attention: ``sdpa``, ``eager``, ``flash_attention_2`` or ``_3`` (to be
            installed; used in training and on prompts by the reference decoder, faster decoders use sdpa).
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        freeze_vision_encoder: do not train the vision tower.
        lora_vision: with ``--peft.method_type=LORA``, put adapters into the vision tower as well as into the
            language model.
        quantization: ``nf4`` holds the backbone's linear layers in 4 bits (bitsandbytes; CUDA only) under an adapter
            in full precision (QLoRA); None does not.
        save_dtype: precision of the weights a checkpoint is written in, ``float32`` or ``bfloat16``; None keeps
            ``param_dtype``. Loading converts to ``param_dtype``; a run resumed from rounded weights is not exact.
        optimizer_lr: peak learning rate (the paper: 5e-6 per GPU of batch 8, 4e-5 at batch 64).
        optimizer_betas: AdamW's betas.
        optimizer_eps: AdamW's epsilon.
        optimizer_weight_decay: AdamW's decoupled weight decay.
        optimizer_grad_clip_norm: gradient norm is clipped to this; 0 turns clipping off.
        scheduler_name: ``constant`` (the paper) or ``cosine`` (to zero), both after the warm-up.
        scheduler_warmup_steps: linear warm-up, in steps.
    """

    vlm_model_name: str = "Qwen/Qwen2.5-VL-3B-Instruct"
    tiny: TinyVLMConfig = field(default_factory=TinyVLMConfig)

    chunk_size: int = 8
    n_action_steps: int = 8
    n_bins: int = 1000

    cameras: list[str] | None = None
    crop_box: tuple[float, float, float, float] | None = None
    crop_ratio: float = 0.875
    image_size: tuple[int, int] = (224, 224)
    antialias: bool = False
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    tile_images: bool = True

    system_prompt: str = SYSTEM_PROMPT
    add_vision_id: bool = False
    max_prompt_length: int = 4096

    action_mask_max_ratio: float = 0.4
    action_mask_skip_prob: float = 0.1
    action_mask_unit: str = "char"
    loss_on_padding: bool = True

    ensemble_n_chunks: int = 1
    ensemble_old_weight: float = 1.0
    binary_action_indices: list[int] = field(default_factory=list)
    max_action_step: float | list[float | None] | None = None
    max_action_step_unit: str = "range"
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    decoder: str = "auto"
    draft_width: int | None = None

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.IDENTITY,  # not read: VLA-0 acts on images and text
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )

    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    freeze_vision_encoder: bool = False
    lora_vision: bool = False
    quantization: str | None = None
    save_dtype: str | None = None

    optimizer_lr: float = 4e-5
    optimizer_betas: tuple[float, float] = (0.9, 0.999)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-10
    optimizer_grad_clip_norm: float = 1.0
    scheduler_name: str = "constant"
    scheduler_warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._normalise_types()
        self._validate_chunking()
        self._validate_text()
        self._validate_training()
        # Image options are checked without patch sizes, which belong to the backbone: `VLA0Policy` and
        # the processors check image_size against them.
        self.image_settings(patch_size=1, merge_size=1)

    # ------------------------------------------------------------------ validation

    def _normalise_types(self) -> None:
        """Accept what Python users and YAML write: lists for tuples, names for normalisation modes."""
        for name, length in (("image_size", 2), ("crop_box", 4)):
            value = getattr(self, name)
            if value is None and name == "crop_box":
                continue
            if not isinstance(value, list | tuple) or len(value) != length:
                raise ConfigError(f"{name}={value!r} must be {length} numbers, e.g. {_EXAMPLES[name]}.")
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

    def _validate_chunking(self) -> None:
        if self.n_obs_steps != 1:
            raise ConfigError(f"n_obs_steps={self.n_obs_steps}, but VLA-0 sees one observation. Set it to 1.")
        if self.chunk_size < 1:
            raise ConfigError(f"chunk_size={self.chunk_size} must be at least 1 (the paper uses 8).")
        if not isinstance(self.n_bins, int) or not 1 <= self.n_bins <= 99_999:
            raise ConfigError(f"n_bins={self.n_bins} must be an integer in [1, 99999] (the paper uses 1000).")
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
        check_max_step(self.max_action_step, self.max_action_step_unit)

    def _validate_text(self) -> None:
        format_system_prompt(self.system_prompt, chunk_size=self.chunk_size, action_dim=1, n_bins=self.n_bins)
        if self.max_prompt_length < 1:
            raise ConfigError(f"max_prompt_length={self.max_prompt_length} must be at least 1.")
        if not 0 <= self.temperature < math.inf:  # false for NaN
            raise ConfigError(f"temperature={self.temperature} must be finite and at least 0 (0 is greedy).")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(
                f"repetition_penalty={self.repetition_penalty} must be finite and positive (1.0 is none)."
            )
        if self.decoder not in DECODERS:
            raise ConfigError(f"decoder={self.decoder!r} must be one of {DECODERS}.")
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
        if self.cameras is not None and (not self.cameras or len(set(self.cameras)) != len(self.cameras)):
            raise CameraError(
                f"cameras={self.cameras} must list at least one image key and no key twice; leave it unset to "
                "use the dataset's cameras in the dataset's order."
            )

    def _validate_training(self) -> None:
        for name in ("action_mask_max_ratio", "action_mask_skip_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        if self.action_mask_unit not in ("char", "number"):
            raise ConfigError(f"action_mask_unit={self.action_mask_unit!r} must be 'char' or 'number'.")
        mode = self.normalization_mapping.get("ACTION")
        if mode not in _BOUNDED_MODES:
            raise ConfigError(
                f"normalization_mapping['ACTION'] is {mode.value if mode else None}, but integers need actions in "
                f"a bounded range. Use one of {[m.value for m in _BOUNDED_MODES]} (the paper: MIN_MAX)."
            )
        visual = self.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY)
        if visual is not NormalizationMode.IDENTITY:
            raise ConfigError(
                f"normalization_mapping['VISUAL'] is {visual.value}, but the backbone normalises pixels itself. "
                "Use IDENTITY."
            )
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
        if self.quantization not in (None, "nf4"):
            raise ConfigError(f"quantization={self.quantization!r} must be None or 'nf4'.")
        if self.lora_vision and self.freeze_vision_encoder:
            raise ConfigError(
                "lora_vision=True trains adapters in the vision tower, but freeze_vision_encoder=True says not to "
                "train it. Set one of them to False."
            )
        if self.attn_implementation not in _ATTENTION:
            raise ConfigError(
                f"attn_implementation={self.attn_implementation!r} must be one of {_ATTENTION}."
            )
        for name in (
            "optimizer_lr",
            "optimizer_weight_decay",
            "optimizer_grad_clip_norm",
            "scheduler_warmup_steps",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and at least 0.")
        if self.scheduler_name not in ("constant", "cosine"):
            raise ConfigError(f"scheduler_name={self.scheduler_name!r} must be 'constant' or 'cosine'.")

    def validate_features(self) -> None:
        """Check that the dataset or environment has what the policy needs; LeRobot fills the features in.

        Raises:
            ConfigError: without an action feature, or with ``binary_action_indices`` or ``max_action_step`` that do
                not fit it.
            CameraError: without cameras, or if ``cameras`` names one that does not exist.
        """
        action = self.action_feature
        if action is None or len(action.shape) != 1 or action.shape[0] < 1:
            raise ConfigError(
                f"the policy needs one 'action' feature of shape (action_dim,); the dataset or environment has "
                f"{dict(self.output_features or {})}."
            )
        outside = [i for i in self.binary_action_indices if not 0 <= i < action.shape[0]]
        if outside or len(set(self.binary_action_indices)) != len(self.binary_action_indices):
            raise ConfigError(
                f"binary_action_indices={self.binary_action_indices} must be distinct dimensions in "
                f"[0, {action.shape[0]}) of the action."
            )
        self._limits(action.shape[0])
        self.camera_keys  # noqa: B018 - raises when the cameras do not fit

    # ------------------------------------------------------------------ derived values

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
                f"cameras={self.cameras} names {missing}, but the dataset or environment has {known}. Fix "
                "policy.cameras, or rename the features with --rename_map."
            )
        return list(self.cameras)

    def _limits(self, action_dim: int) -> list[float | None] | None:
        if self.max_action_step is None:
            return None
        return limit_of_each_dimension(self.max_action_step, action_dim, self.binary_action_indices)

    @property
    def step_limits(self) -> list[float | None] | None:
        """``max_action_step`` of each dimension, in ``max_action_step_unit``; None if nothing is limited."""
        return self._limits(self.action_dim)

    @property
    def action_dim(self) -> int:
        """Dimensions of one action."""
        self.validate_features()
        assert self.action_feature is not None
        return int(self.action_feature.shape[0])

    @property
    def filled_system_prompt(self) -> str:
        """The system message with this policy's numbers in it."""
        return format_system_prompt(
            self.system_prompt, chunk_size=self.chunk_size, action_dim=self.action_dim, n_bins=self.n_bins
        )

    def image_tokens(self, patch_size: int, merge_size: int) -> list[int]:
        """Return the image tokens of each image, in the order the model sees the images."""
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
        """One observation, without a time axis."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The chunk: the current step and the ``chunk_size - 1`` that follow."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards are used."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return the optimizer `lerobot-train` builds."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> LRSchedulerConfig:
        """Return the learning-rate schedule `lerobot-train` builds."""
        kind: Any = {
            "constant": ConstantWithWarmupSchedulerConfig,
            "cosine": CosineAnnealingWithWarmupSchedulerConfig,
        }[self.scheduler_name]
        schedule: LRSchedulerConfig = kind(num_warmup_steps=self.scheduler_warmup_steps)
        return schedule
