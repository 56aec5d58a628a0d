"""A backbone whose weights are in an engine: a policy that asks one needs the tokenizer and a few sizes only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from lerobot_policy_vla0.backbone.loading import load_description
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.errors import EngineError
from lerobot_policy_vla0.text.codec import ActionTokens
from lerobot_policy_vla0.text.prompt import IMAGE_TOKEN

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config


class DescribedVLM(VLM):
    """A `VLM` without weights.

    Whatever needs them raises an `EngineError`.
    """

    def __init__(self, vlm_config: Any, tokenizer: Any, engine: str) -> None:
        nn.Module.__init__(self)
        self.tokenizer = tokenizer
        self.tokens = ActionTokens.from_tokenizer(tokenizer)
        self.image_token_id = int(tokenizer.encode(IMAGE_TOKEN, add_special_tokens=False)[0])
        self._sizes = vlm_config.vision_config
        self._engine = engine

    @classmethod
    def from_config(cls, config: VLA0Config, stored: Path | None = None, revision: str | None = None) -> VLM:
        """Read the backbone's description; for arguments and errors see `VLM.from_config`."""
        assert config.engine is not None
        return cls(*load_description(config, stored, revision), config.engine)

    @property
    def model(self) -> NoReturn:
        """Raise an `EngineError`, because the model is elsewhere."""
        raise EngineError(
            f"the policy's weights are in the engine at {self._engine}, so it can act, and neither train, save, answer "
            "questions nor be merged here. Load it without --policy.engine for that."
        )

    @property
    def patch_size(self) -> int:
        """Side of one patch in pixels."""
        return int(self._sizes.patch_size)

    @property
    def merge_size(self) -> int:
        """Patches along each side that are merged into one image token."""
        return int(self._sizes.spatial_merge_size)

    @property
    def layer_classes(self) -> tuple[str, str]:
        """Names of layers that could be sharded, as Qwen2.5-VL has them; there are none here."""
        return ("Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock")
