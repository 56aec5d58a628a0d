"""`VLA0Config`: every option of the policy, documented and cross-checked at construction.

Importing this module registers the policy type ``vla0`` with LeRobot. It imports no model code.
"""

from __future__ import annotations

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

from lerobot_policy_vla0.action_limit import limit_of_each_dimension
from lerobot_policy_vla0.configuration_checks import (
    DEFAULT_EXCLUDED,
    check_chunking,
    check_state,
    check_state_feature,
    check_text,
    check_training,
)
from lerobot_policy_vla0.configuration_tiny import TinyVLMConfig
from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.images import ImageSettings, grid_size
from lerobot_policy_vla0.optimizers import AdamW8bitConfig, FusedAdamWConfig
from lerobot_policy_vla0.prompt import SYSTEM_PROMPT, format_system_prompt

_EXAMPLES = {"image_size": "(224, 224)", "crop_box": "(0.2, 0.1, 0.8, 0.9)"}


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
        state_in_prompt: write the robot's state before the instruction, normalised by its own statistics, as integers
            in ``[0, n_bins]``; values outside the statistics are clamped. Off in the paper.
        use_relative_actions: learn actions as offsets from the state at the query, through LeRobot's own steps; needs
            statistics of relative actions (``docs/state.md``).
        relative_exclude_joints: with relative actions, dimensions whose name contains one of these stay absolute, as
            in LeRobot; ``[]`` excludes none.
        action_feature_names: names of the action's dimensions; LeRobot fills them in from the data set.
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
            QUANTILE10; images stay IDENTITY. With ``state_in_prompt`` the state needs a bounded mode too, and takes
            the actions' if it is left at IDENTITY; without, its mode changes nothing.
        dtype: compute precision: ``float32``, ``bfloat16`` or ``float16``. LeRobot's training autocasts to it, and
            so does inference. ``autocast_bfloat16`` leaves the training's autocast to the policy alone; needed with
            FSDP, where accelerate would round actions and rotary tables too.
        param_dtype: precision the weights are held in; float32 keeps master weights.
        attn_implementation: transformers' attention: ``sdpa``, ``eager``, ``flash_attention_2`` or ``_3`` (to be
            installed; used in training and on prompts by the reference decoder, faster decoders use sdpa).
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        compile_model: compile the layers with ``torch.compile`` for training: faster steps after a minute or two of
            compiling. Decoding is not touched by it.
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
        optimizer_8bit: hold AdamW's moments in 8 bits (bitsandbytes; CUDA only).
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

    state_in_prompt: bool = False
    use_relative_actions: bool = False
    relative_exclude_joints: list[str] = field(default_factory=lambda: list(DEFAULT_EXCLUDED))
    action_feature_names: list[str] | None = None

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
            "STATE": NormalizationMode.IDENTITY,  # not read unless `state_in_prompt`
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )

    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    attn_implementation: str = "sdpa"
    gradient_checkpointing: bool = False
    compile_model: bool = False
    freeze_vision_encoder: bool = False
    lora_vision: bool = False
    quantization: str | None = None
    save_dtype: str | None = None

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
        check_chunking(self)
        check_text(self)
        check_training(self)
        check_state(self)
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
        state = self.normalization_mapping.get("STATE", NormalizationMode.IDENTITY)
        if (
            self.state_in_prompt
            and state is NormalizationMode.IDENTITY
            and "ACTION" in self.normalization_mapping
        ):
            self.normalization_mapping["STATE"] = self.normalization_mapping["ACTION"]

    def validate_features(self) -> None:
        """Check that the dataset or environment has what the policy needs; LeRobot fills the features in.

        Raises:
            ConfigError: without an action feature, or with ``binary_action_indices`` or ``max_action_step`` that do
                not fit it; without a state that an option needs, or one that does not fit.
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
        check_state_feature(self, int(action.shape[0]))

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
    def prompt_state_dim(self) -> int:
        """Integers of the state in the prompt, 0 without."""
        if not self.state_in_prompt:
            return 0
        self.validate_features()
        assert self.robot_state_feature is not None
        return int(self.robot_state_feature.shape[0])

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
        kind = AdamW8bitConfig if self.optimizer_8bit else FusedAdamWConfig
        return kind(
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
