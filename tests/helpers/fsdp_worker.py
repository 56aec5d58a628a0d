"""One of two processes that train a tiny policy sharded, on CPUs; started by test_scale.py through torchrun.

Takes a few steps, gathers the weights, and writes a checkpoint and its losses. LeRobot gathers with
`offload_to_cpu`, which crashes torch where the weights are on the CPU already.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

from helpers.tiny import make_batch, make_config
from lerobot_policy_vla0 import VLA0Config, VLA0Policy

ROWS, STEPS = 4, 3


def train_on_share(model: torch.nn.Module, config: VLA0Config) -> list[float]:
    """Take a few steps on this process's share of a batch; return the loss of all shares in each."""
    rank, world = dist.get_rank(), dist.get_world_size()
    whole = make_batch(config, batch=ROWS)
    share = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    batch = {k: v[share] if isinstance(v, torch.Tensor | list) else v for k, v in whole.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    model.train()
    for _ in range(STEPS):
        loss, _ = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / world
        dist.all_reduce(mean)
        losses.append(mean.item())
    return losses


def main(folder: Path) -> None:
    """Train on this process's half of the batch."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    policy = VLA0Policy(
        make_config(n_bins=9, crop_ratio=1.0, action_mask_max_ratio=0.0, hue=0.0, **NO_JITTER)
    )
    plugin = FullyShardedDataParallelPlugin()  # from the environment accelerate's launcher makes of the YAML
    plugin.set_auto_wrap_policy(policy)
    sharded = FullyShardedDataParallel(
        policy,
        sharding_strategy=plugin.sharding_strategy,
        auto_wrap_policy=plugin.auto_wrap_policy,
        use_orig_params=plugin.use_orig_params,
        device_id=torch.device("cpu"),
    )
    losses = train_on_share(sharded, policy.config)
    settings = FullStateDictConfig(offload_to_cpu=False, rank0_only=False)
    with FullyShardedDataParallel.state_dict_type(sharded, StateDictType.FULL_STATE_DICT, settings):
        weights = sharded.state_dict()
    if rank == 0:
        policy.save_pretrained(folder, state_dict=weights)
        units = sorted({type(m.module).__name__ for m in FullyShardedDataParallel.fsdp_modules(sharded)})
        (folder / "result.json").write_text(json.dumps({"losses": losses, "units": units}))
    end()


def end() -> NoReturn:
    """Wait until all processes have done their work, and end this one without taking the group down.

    A process that takes gloo's group down may abort ("terminate called without an active exception") or wait for ever,
    and torchrun then stops the other one, which may still be writing.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


NO_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
