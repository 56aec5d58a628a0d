"""Weights in 8 bits: the fast decoders multiply by the weights of the reference decoder, joined without a change."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers.decoding_cases import (
    Problem,
    fast,
    make_request,
    near_ties,
    random_problem,
    reference,
    speculative,
    trained_policy,
)
from torch import nn

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.backbone.quantization import is_quantized, stored_tensors
from lerobot_policy_vla0.decoding.weights import Projection

pytest.importorskip("torchao", reason="weights in 8 bits need the [quantize] extra")

#: Scores this close are a near-tie. Where activations are rounded to 8 bits too, a sum in another order, 1e-7 away, may
#: round to the next integer: scores were seen to move by 0.026.
TIE = {"int8": 1e-5, "int8_dynamic": 0.06}


def quantized(policy: VLA0Policy, kind: str) -> VLA0Policy:
    """Return a copy of a policy with quantised weights."""
    policy = copy.deepcopy(policy)
    policy.vlm.quantize(dataclasses.replace(policy.config, quantization=kind))
    return policy


@pytest.fixture(scope="module")
def full() -> VLA0Policy:
    return trained_policy()


@pytest.fixture(scope="module", params=list(TIE))
def policy(request: pytest.FixtureRequest, full: VLA0Policy) -> VLA0Policy:
    policy = quantized(full, request.param)
    policy.config.quantization = request.param
    return policy


def test_fast_and_speculative_write_the_quantised_reference_tokens(
    policy: VLA0Policy, full: VLA0Policy
) -> None:
    tie = TIE[str(policy.config.quantization)]
    batches, rows, tied, moved = set(), 0, 0, 0.0
    for seed in range(8):
        problem = random_problem(policy, seed)
        batches.add(len(problem.request.ids))
        oracle = reference(policy, problem)
        rows += len(oracle[1].traces)
        scores = oracle[1].traces[0].scores[0]
        if scores is not None:
            legal, unquantized = np.isfinite(scores), reference(full, problem)[1].traces[0].scores[0]
            moved = max(moved, float(np.abs(scores[legal] - unquantized[legal]).max()))
        for decoder in (fast(policy, problem), speculative(policy, problem, width=[1, 3, 16, 64][seed % 4])):
            decoder.decode(problem.request)
            assert decoder.last is not None
            tied += near_ties(oracle[1], decoder.last, tolerance=tie)
    assert batches == {1, 3, 8}
    assert moved > 1e-3, "the reference decoder's scores are those of the full weights"
    assert tied <= rows // 4, f"{tied} of {2 * rows} answers differ at a near-tie"


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_are_the_layers_quantised_one_by_one(bias: bool) -> None:
    """And the layers quantised after they were joined in full precision: each row has a scale of its own."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    inputs = torch.randn(7, 64)
    for how in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
        layers = [nn.Linear(64, rows, bias=bias) for rows in (96, 32, 32)]
        whole = nn.Linear(64, 160, bias=False)
        whole.weight.data = torch.cat([layer.weight.data for layer in layers])
        for layer in (whole, *layers):
            quantize_(layer, how)
        expected = torch.cat([layer(inputs) for layer in layers], 1)
        joined = Projection(*layers, dtype=torch.float32)
        assert joined.quantized is not None
        for name, tensor in stored_tensors(joined.quantized).items():
            assert torch.equal(tensor, stored_tensors(whole.weight)[name]), name
        # The same sums, in a matrix product of another width.
        torch.testing.assert_close(joined(inputs), expected, rtol=1e-6, atol=1e-6)
        # The layers read the joined memory, also after a second decoder has joined them.
        again = Projection(*layers, dtype=torch.float32)
        assert again.quantized is not None
        place = stored_tensors(joined.quantized)["qdata"].data_ptr()
        assert stored_tensors(again.quantized)["qdata"].data_ptr() == place
        assert stored_tensors(layers[1].weight)["qdata"].data_ptr() == place + 96 * 64
        torch.testing.assert_close(torch.cat([layer(inputs) for layer in layers], 1), expected)


def test_the_language_model_takes_a_quarter_of_the_memory_and_nothing_else_changes(
    policy: VLA0Policy, full: VLA0Policy
) -> None:
    before = dict(full.named_parameters())
    large = small = 0
    for name, parameter in policy.named_parameters():
        if "language_model.layers" in name and name.endswith("proj.weight"):
            assert is_quantized(parameter), name
            large += before[name].nbytes
            small += sum(tensor.nbytes for tensor in stored_tensors(parameter).values())
        else:
            assert not is_quantized(parameter), name
            assert torch.equal(parameter, before[name]), name
    assert large > 1e5
    assert 0.25 <= small / large < 0.28  # and 5 bytes a row: its scale and zero point


def test_inference_mode_changes_no_answer(policy: VLA0Policy, full: VLA0Policy) -> None:
    problem = Problem(make_request(policy, seed=3, batch=1), (4, 3), 1000, 1.0)
    expected = fast(policy, problem).decode(problem.request)
    with torch.inference_mode():
        assert torch.equal(fast(copy.deepcopy(policy), problem).decode(problem.request), expected)
        made_here = quantized(full, str(policy.config.quantization))
        assert torch.equal(fast(made_here, problem).decode(problem.request), expected)
    assert torch.equal(fast(made_here, problem).decode(problem.request), expected)


def test_a_changed_weight_is_noticed(policy: VLA0Policy) -> None:
    policy = copy.deepcopy(policy)
    problem = Problem(make_request(policy, seed=3, batch=1), (4, 3), 1000, 1.0)
    decoder = fast(policy, problem)
    before = decoder.decode(problem.request)
    weight: Any = policy.vlm.model.model.language_model.layers[0].mlp.down_proj.weight
    weight.qdata.neg_()
    after = decoder.decode(problem.request)
    assert not torch.equal(before, after)
    assert torch.equal(after, fast(policy, problem).decode(problem.request))
