"""`compile_model` changes how fast a training step is, nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.tiny import make_batch, make_config, make_raw_batch, make_stats

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import ConfigError


def steps(policy: VLA0Policy, batches: list[dict[str, Any]]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Take a training step per batch; return the losses and the gradients, summed."""
    policy.train()
    losses = []
    for batch in batches:
        loss, _ = policy(batch)
        loss.backward()
        losses.append(float(loss.detach()))
    return losses, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_compiled_layers_train_and_answer_as_they_are() -> None:
    torch._dynamo.reset()
    config = make_config(compile_model=True, action_mask_max_ratio=0.0)
    compiled = VLA0Policy(config)
    names = list(compiled.state_dict())
    plain_config = copy.deepcopy(config)
    plain_config.compile_model = False
    plain = VLA0Policy(plain_config)
    assert list(plain.state_dict()) == names

    preprocess, _ = make_vla0_pre_post_processors(config, make_stats(2))
    raw = make_raw_batch(config, 3)
    batches = [
        dict(preprocess({**raw, "task": tasks}))
        for tasks in (["push", "pull the lever", "push"], ["open the door"] * 3, ["a", "b", "c"])
    ]
    got, gradients = steps(compiled, batches)
    want, expected = steps(plain, batches)
    assert got == pytest.approx(want, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0

    graphs = counters["stats"]["unique_graphs"]
    observation = {key: value for key, value in make_batch(config, 1).items() if key != "action"}
    for policy in (compiled, plain):
        policy.eval()
        policy.reset()
    assert torch.equal(compiled.select_action(observation), plain.select_action(observation))
    assert counters["stats"]["unique_graphs"] == graphs  # decoding compiles nothing


def test_compiling_four_bit_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="compile_model"):
        make_config(compile_model=True, quantization="nf4", device="cuda")
