"""What LeRobot asks of a policy besides computing: saving, loading, adapters, publishing.

The files are `checkpoint`'s, LoRA is `adapters`', the model card `publishing`'s; here they meet LeRobot's hooks.
`acting` adds what the policy does with observations, `modeling_vla0` what it learns from data.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from accelerate import init_empty_weights
from huggingface_hub import ModelCard
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_vla0 import adapters
from lerobot_policy_vla0.backbones import VLM_FOLDER
from lerobot_policy_vla0.checkpoint import (
    check_same_answer,
    load_weights,
    read_config,
    resolve_checkpoint,
    weights_to_save,
)
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.errors import CheckpointError
from lerobot_policy_vla0.publishing import build_model_card
from lerobot_policy_vla0.vlm import VLM

logger = logging.getLogger(__name__)


class SavedPolicy(PreTrainedPolicy):
    """The half of `VLA0Policy` that reads and writes checkpoints."""

    config_class = VLA0Config
    name = "vla0"
    config: VLA0Config
    vlm: VLM

    def loaded(self, folder: Path) -> None:
        """Take note that the weights have just been read from a checkpoint, whose processors are in ``folder``."""
        raise NotImplementedError

    # ------------------------------------------------------------------ adapters

    def wrap_with_peft(
        self, peft_config: Any = None, peft_cli_overrides: dict[str, Any] | None = None
    ) -> Any:
        """Freeze the policy and put adapters into it; LeRobot calls this for ``--peft.*``.

        Works from the bare backbone too: the adapter then names ``vlm_model_name`` as its base.

        Args:
            peft_config: PEFT's config, or None for one of LeRobot's overrides over this policy's defaults.
            peft_cli_overrides: LeRobot's ``--peft.*``.

        Returns:
            The ``PeftModel``.

        Raises:
            ConfigError: for options an adapter makes inert, or adapters on the vocabulary.
        """
        overrides = peft_cli_overrides or {}
        adapters.check_options(self.config, overrides)
        if peft_config is None:
            peft_config = self._build_peft_config(overrides)
        elif overrides:
            peft_config = self._apply_peft_cli_overrides(peft_config, overrides)
        before = self.vlm.vocabulary
        self.name_or_path = (
            self.config.vlm_model_name
        )  # LeRobot puts the trained policy's here, if there is one
        wrapped = super().wrap_with_peft(adapters.complete(self, peft_config))
        adapters.refuse_changed_vocabulary(self.vlm, before)
        return wrapped

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """Return PEFT options used unless ``--peft.*`` says otherwise."""
        return {"target_modules": adapters.default_targets(self.vlm, vision=self.config.lora_vision)}

    def _validate_peft_config(self, peft_config: Any) -> None:
        """Allow training from the backbone: unlike most policies, this one has no random weights there."""

    # ------------------------------------------------------------------ saving and loading

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write config, weights, and the backbone's description: nothing else is needed to load.

        Args:
            save_directory: the checkpoint's folder.
            state_dict: weights gathered from several processes (FSDP); None writes this object's own.
        """
        if state_dict is not None:
            # Gathering copies a tied weight under each of its names; a checkpoint has it once. transformers says
            # which are tied, not their identity (`checkpoint.tied_names`): sharding may give each name its own object.
            again = {f"vlm.model.{name}" for name in self.vlm.tied_names}
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in again}
        super()._save_pretrained(save_directory, weights_to_save(self, state_dict, self.config.save_dtype))
        self.vlm.save_description(save_directory / VLM_FOLDER)

    def generate_model_card(
        self,
        dataset_repo_id: str | None = None,
        model_type: str | None = None,
        license: str | None = None,
        tags: list[str] | None = None,
        cfg: Any = None,
        dataset_meta: Any = None,
    ) -> ModelCard:
        """Return the README of a published policy; LeRobot calls this on ``--policy.push_to_hub=true``."""
        del model_type  # always this one
        return build_model_card(
            self.config,
            dataset=dataset_repo_id,
            license=license,
            tags=tags,
            training=cfg,
            dataset_meta=dataset_meta,
            adapter_base=getattr(self, "name_or_path", None),
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        strict: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a trained policy from a folder or the Hub, in evaluation mode.

        All weights come from the checkpoint: the base model is neither needed nor looked for. An adapter (LoRA) is
        loaded with its base and merged into it, in full precision even if it was trained on a 4-bit base; LeRobot's
        commands instead ask for the base alone, with the adapter's config, and put the adapter on top.

        Args:
            pretrained_name_or_path: a folder written by LeRobot, or a Hub repo id.
            config: used instead of the checkpoint's own; what the weights and the saved prompt were made
                for (``chunk_size``, ``n_bins``, cameras, ...) must agree with it.
            revision: Hub revision.
            local_files_only: do not ask the Hub.
            cache_dir: Hub cache folder.
            token: Hub token.
            force_download: ignore the cache.
            strict: refuse missing and unexpected tensors (default). False only logs them.
            **kwargs: passed to the constructor (``dataset_stats``, ``dataset_meta``).

        Raises:
            CheckpointError: naming missing files, missing, unexpected or misshapen tensors.
        """
        download: dict[str, Any] = {
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
            "token": token,
            "force_download": force_download,
        }
        for unused in ("resume_download", "proxies"):
            kwargs.pop(unused, None)
        name = str(pretrained_name_or_path)
        on_top: PreTrainedConfig | None = None  # config of the adapter that LeRobot will put on this policy
        processors: Path | None = None  # its folder
        if (
            config is not None
            and config.use_peft
            and config.pretrained_path
            and name != str(config.pretrained_path)
        ):
            processors = resolve_checkpoint(
                config.pretrained_path, revision=config.pretrained_revision, **download
            )
            on_top = read_config(processors)
            check_same_answer(on_top, config)
        if config is not None and on_top is not None and name == getattr(on_top, "vlm_model_name", None):
            policy = cls._from_backbone(name, config, vlm_revision=revision, **kwargs)
        else:
            folder = resolve_checkpoint(name, revision=revision, **download)
            stored = read_config(folder)
            config = stored if config is None else config
            check_same_answer(stored, config)
            if adapters.is_adapter(folder):
                policy = cls._from_adapter(folder, config, strict=strict, **download, **kwargs)
                if on_top is None:
                    return policy
                policy.config = config
            else:
                policy = cls._from_weights(folder, config, strict=strict, **kwargs)
        policy.to(policy.config.device)
        policy.eval()
        policy.loaded(processors or folder)
        if on_top is not None:
            adapters.expect_adapter(policy, name)
        return policy

    @classmethod
    def from_official(cls, source: str | Path, *, out: str | Path | None = None, **options: Any) -> Self:
        """Load a checkpoint of the paper's or vla0-trl's layout, as ``vla0 import`` and `from_pretrained` do.

        Args:
            source: a folder or Hub repo id, such as ``ankgoyal/vla0-libero``.
            out: the policy folder to make and keep; its processors are loaded from there. None imports to a
                temporary folder, which needs the weights' size in disk space for a while.
            **options: the fields of `lerobot_policy_vla0.official.ImportOptions`.

        Raises:
            OutputError: if ``out`` is taken.
            CheckpointError: naming what the checkpoint lacks.
        """
        from lerobot_policy_vla0.official import ImportOptions, import_checkpoint

        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "policy" if out is None else Path(out)
            import_checkpoint(source, folder, ImportOptions(**options))
            return cls.from_pretrained(folder)

    @classmethod
    def _from_weights(cls, folder: Path, config: Any, *, strict: bool, **kwargs: Any) -> Self:
        """Build the policy of a folder that holds all weights, and read them into their place."""
        if strict:  # every weight is in the folder: until it is read it takes no memory
            with init_empty_weights(include_buffers=False):
                policy = cls(config, stored_vlm=folder / VLM_FOLDER, **kwargs)
            policy.vlm.model.tie_weights()  # building without memory gave each name its own
        else:  # what the folder lacks stays as it was initialised
            policy = cls(config, stored_vlm=folder / VLM_FOLDER, **kwargs)
        load_weights(policy, folder, strict=strict, device=policy.config.device)
        return policy

    @classmethod
    def _from_backbone(cls, name: str, config: VLA0Config, **kwargs: Any) -> Self:
        """Build the policy an adapter was trained on when that was the bare backbone ``name``."""
        try:
            return cls(config, **kwargs)
        except OSError as error:
            raise CheckpointError(
                f"the adapter was trained on the backbone {name!r}, and {config.vlm_model_name!r} could not be loaded "
                f"({error}). Say where it is now with --policy.vlm_model_name=..., or check the network and "
                "HF_HUB_OFFLINE."
            ) from error

    @classmethod
    def _from_adapter(cls, folder: Path, config: Any, **kwargs: Any) -> Self:
        """Load an adapter's base, put the adapter on it, and merge the two."""
        base, revision = adapters.base_of(folder)
        if config.quantization is not None:
            logger.info(
                "quantization=%s is dropped: an adapter is merged in full precision", config.quantization
            )
        # As LeRobot does it: the base is asked for with the adapter's path in the config.
        config = replace(config, use_peft=True, pretrained_path=folder, quantization=None, lora_vision=False)
        policy = cls.from_pretrained(base, config=config, revision=revision, **kwargs)
        return adapters.merge_into(policy, folder)
