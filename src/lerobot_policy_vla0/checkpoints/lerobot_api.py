"""What LeRobot 0.6.1 and 0.6.2 do differently when a policy is saved or resumed, in one place.

=========================  ===================================  ==============================================
what                       0.6.1                                0.6.2
=========================  ===================================  ==============================================
who saves                  the first process                    every process calls; the first one writes
sharded weights            LeRobot gathers them and passes      the policy gathers them; all processes take part
                           ``state_dict``
the model card             `VLA0Policy.generate_model_card`     LeRobot's own, from licence and tags in the config
classes that are sharded   read from the policy                 read from its class
resuming sharded weights   `VLA0Policy.from_pretrained`         the constructor, then weights of each process
=========================  ===================================  ==============================================

The two saving protocols can be told apart by the call alone, so that nothing here asks for a version.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from lerobot_policy_vla0.backbone.loading import VLM_FOLDER

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

#: Whether LeRobot writes the README of a published policy itself. Our card then goes beside it, as `CARD_FILE`.
CARD_IS_LEROBOTS = not hasattr(PreTrainedPolicy, "generate_model_card")

CARD_FILE = "VLA0.md"


def is_writer() -> bool:
    """Return whether this process writes files: the first of those that train together, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def weights_to_save(policy: VLA0Policy, given: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Return the weights to save, gathered if they are sharded; None for the policy's own.

    With sharded weights all processes must call this; only the first one gets the weights, on the CPU.

    Args:
        policy: the policy to save.
        given: the weights, if LeRobot has gathered them.
    """
    if given is not None or not isinstance(policy, FSDPModule):
        return given
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, Tensor], get_model_state_dict(policy, options=options))


def declare_layer_classes(policy: VLA0Policy, names: tuple[str, ...]) -> None:
    """Name the classes that FSDP shards one by one, where LeRobot and accelerate look for them.

    The backbone's family decides the names, and a training process has one policy, so its class can hold them.
    """
    policy._fsdp_wrap_modules = policy._no_split_modules = names
    type(policy)._fsdp_wrap_modules = names


def resumed_description(config: VLA0Config) -> Path | None:
    """Return the ``vlm/`` folder of the checkpoint that a policy is built for without its weights; None for others.

    LeRobot 0.6.2 resumes sharded weights this way: it builds the policy from the config and then lets every process
    read its own share. `VLA0Policy.from_pretrained` passes the folder itself.
    """
    if config.pretrained_path is None or config.use_peft:
        return None
    folder = Path(config.pretrained_path) / VLM_FOLDER
    return folder if folder.is_dir() else None


def forget_weights(policy: VLA0Policy) -> None:
    """Fill a policy whose weights come later with NaN: if they never come, it fails instead of acting at random."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(torch.nan)
