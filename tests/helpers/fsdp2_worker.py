"""One of two processes that train, save and resume a tiny policy under FSDP2, on CPUs; started by test_scale.py.

LeRobot 0.6.2 shards with FSDP2, but accelerate does that on GPUs only. What LeRobot asks of the policy is done here
with torch itself: the classes to shard come from the policy's class, every process calls `save_pretrained`, and
resuming builds the policy by its constructor and lets every process read its share.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard

from helpers.fsdp_worker import NO_JITTER, end, train_on_share
from helpers.tiny import make_config
from lerobot_policy_vla0 import VLA0Policy


def shard(policy: VLA0Policy) -> list[str]:
    """Shard a policy in place as accelerate does; return the class of each part."""
    names = type(policy)._fsdp_wrap_modules
    parts = [module for module in policy.modules() if type(module).__name__ in names]
    for module in (*parts, policy):
        fully_shard(module)
    return sorted({type(part).__name__.removeprefix("FSDP") for part in (*parts, policy)})


def main(folder: Path) -> None:
    """Take a few steps, save, and go on in a policy that was resumed."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    options = {"n_bins": 9, "crop_ratio": 1.0, "action_mask_max_ratio": 0.0, "hue": 0.0, **NO_JITTER}
    policy = VLA0Policy(make_config(**options))
    units = shard(policy)
    losses = train_on_share(policy, policy.config)
    saved = folder / "saved"
    policy.save_pretrained(saved)  # all processes gather, the first one writes
    dcp.save(get_model_state_dict(policy), checkpoint_id=str(folder / "shards"))
    dist.barrier()

    resumed = VLA0Policy(replace(policy.config, pretrained_path=saved))
    without = all(bool(parameter.isnan().all()) for parameter in resumed.parameters())
    shard(resumed)
    weights = get_model_state_dict(resumed)
    dcp.load(weights, checkpoint_id=str(folder / "shards"))
    set_model_state_dict(resumed, weights)
    losses += train_on_share(resumed, resumed.config)
    resumed.save_pretrained(folder / "resumed")
    if dist.get_rank() == 0:
        result = {"losses": losses, "units": units, "without_weights_at_first": without}
        (folder / "result.json").write_text(json.dumps(result))
    end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
