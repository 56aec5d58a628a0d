"""A query leaves nothing behind that a later one cannot use, whatever grad mode either of them was made in.

Tensors made under `torch.inference_mode` cannot be written to outside it, and what the policy keeps (caches, buffers,
chunks, the last action) outlives a query.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import pytest
import torch
from helpers.decoding_cases import Problem, fast, make_request, reference, speculative
from helpers.tiny import make_batch, make_config, make_restless
from torch import Tensor

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.decoding.factory import build_distributions
from lerobot_policy_vla0.decoding.report import DecodeReport
from lerobot_policy_vla0.execution.relative import ORIGIN

Mode = Callable[[], AbstractContextManager[Any]]

ORDERS: dict[str, list[Mode]] = {
    "inference mode first": [torch.inference_mode, torch.no_grad],
    "inference mode second": [torch.enable_grad, torch.inference_mode],
}


def observe(policy: VLA0Policy, seed: int, rows: int) -> dict[str, Any]:
    """Return an observation of its own memory, made in the present mode."""
    made = {**ordinary_batch(rows, seed), ORIGIN: torch.full((rows, policy.config.action_dim), 0.1 * seed)}
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in made.items()}


@cache
@torch.inference_mode(False)
def ordinary_batch(rows: int, seed: int) -> dict[str, Any]:
    return make_batch(make_config(), rows, seed)


def drive(policy: VLA0Policy, modes: list[Mode], *, static: bool = False) -> list[list[float]]:
    """Call a policy as LeRobot's commands do, each call in the next of the modes; return all it answered."""
    answers: list[list[float]] = []
    calls = 0

    def call(ask: Callable[[], Tensor | None]) -> None:
        nonlocal calls
        with modes[calls % len(modes)]():
            answer = ask()
        calls += 1
        if answer is not None:
            answers.append(answer.flatten().tolist())

    def chunk(seed: int, rows: int, delay: int | None = None) -> None:
        def ask() -> Tensor:
            if static and hasattr(policy.decoder, "runner"):
                policy.decoder.runner.static = True
            # Steps that continue what was executed, so that max_action_step limits what follows them.
            left = None if delay is None else torch.tensor([[0.5, 0.25]] * 3)
            return policy.predict_action_chunk(
                observe(policy, seed, rows), inference_delay=delay, prev_chunk_left_over=left
            )

        call(ask)

    def measure() -> Tensor:
        report = policy.last_decode
        assert report is not None
        beliefs = policy.number_distributions(
            observe(policy, 2, len(report.traces)), [trace.symbols for trace in report.traces]
        )
        return torch.tensor([belief.max() for belief in beliefs])

    for rows in (1, 2, 1):
        chunk(1, rows)
        chunk(2, rows, delay=2)
        call(measure)
        call(policy.reset)
        for seed in range(3):
            call(lambda seed=seed, rows=rows: policy.select_action(observe(policy, seed, rows)))  # type: ignore[misc]
        call(policy.reset)
    return answers


@pytest.mark.parametrize("decoder", ["reference", "fast", "speculative"])
@pytest.mark.parametrize(
    "options",
    [
        {"n_action_steps": 1, "ensemble_n_chunks": 3},
        {"n_action_steps": 2, "max_action_step": 0.05},
        {
            "n_action_steps": 1,
            "ensemble_n_chunks": 2,
            "max_action_step": 0.05,
            "use_relative_actions": True,
            "action_feature_names": ["joint.pos", "gripper.pos"],
        },
    ],
    ids=["ensembling", "limited", "relative"],
)
def test_queries_in_any_mode_answer_as_all_do_without_gradients(
    decoder: str, options: dict[str, Any]
) -> None:
    def build() -> VLA0Policy:
        return make_restless(VLA0Policy(make_config(decoder=decoder, repetition_penalty=1.05, **options)))

    expected = drive(build(), [torch.no_grad])
    assert len({tuple(answer) for answer in expected}) > 8, "the answers hardly vary: nothing is compared"
    for order, modes in ORDERS.items():
        assert drive(build(), modes) == expected, order


def test_passes_over_fixed_memory_may_begin_in_any_mode() -> None:
    def build() -> VLA0Policy:
        # Of a given width: another sum in bfloat16 could choose another number.
        return make_restless(
            VLA0Policy(make_config(dtype="autocast_bfloat16", n_action_steps=1, draft_width=8))
        )

    expected = drive(build(), [torch.no_grad], static=True)
    for order, modes in ORDERS.items():
        assert drive(build(), modes, static=True) == expected, order


def test_a_policy_loaded_and_warmed_up_in_inference_mode_acts_outside_it(tmp_path: Any) -> None:
    policy = make_restless(VLA0Policy(make_config(max_action_step=0.05)))
    policy.save_pretrained(tmp_path)
    with torch.inference_mode():
        loaded = VLA0Policy.from_pretrained(tmp_path)
        loaded.reset()
    assert loaded.last_decode is not None, "the first reset warms up"
    assert drive(loaded, [torch.no_grad]) == drive(policy, [torch.no_grad])


@pytest.mark.parametrize("decoder", ["reference", "fast"])
def test_training_goes_on_after_a_query_in_inference_mode(decoder: str) -> None:
    config = make_config(dtype="autocast_bfloat16", decoder=decoder, hue=0.0, crop_ratio=1.0)
    policies = [VLA0Policy(config).train() for _ in range(2)]
    with torch.inference_mode():
        policies[0].predict_action_chunk(observe(policies[0], 0, 2))
    losses = [policy.forward(make_batch(config))[0] for policy in policies]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == losses[1].item()
    for asked, other in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        assert asked.grad is not None and other.grad is not None and torch.equal(asked.grad, other.grad)


def test_an_adapter_may_be_asked_first_in_inference_mode() -> None:
    pytest.importorskip("peft", reason="adapters need the [lora] extra")

    def build() -> VLA0Policy:
        torch.manual_seed(0)
        policy = make_restless(VLA0Policy(make_config(n_action_steps=1, ensemble_n_chunks=3)))
        wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        return wrapped.eval()  # type: ignore[no-any-return]

    expected = drive(build(), [torch.no_grad])
    assert drive(build(), ORDERS["inference mode first"]) == expected


@pytest.fixture(scope="module")
def restless() -> VLA0Policy:
    return make_restless(VLA0Policy(make_config(crop_ratio=1.0)))


@pytest.mark.parametrize("order", ["inference mode first", "inference mode second"])
def test_decoders_used_on_their_own_may_be_built_and_asked_in_any_mode(
    restless: VLA0Policy, order: str
) -> None:
    modes = ORDERS[order]
    for build in (fast, speculative):
        for static in (False, True):
            with modes[0]():
                problem = Problem(make_request(restless, 11, 1), (2, 3), 100, 1.0)
                decoder = build(restless, problem)
                decoder.runner.static = static
            other = Problem(make_request(restless, 12, 2), (2, 3), 100, 1.0)
            for k, asked in enumerate((problem, other, problem, problem)):
                with modes[k % 2]():
                    ids = decoder.decode(asked.request)
                assert torch.equal(ids, reference(restless, asked)[0])


def test_weights_loaded_in_inference_mode_are_noticed(restless: VLA0Policy) -> None:
    policy = VLA0Policy(make_config(crop_ratio=1.0)).eval()
    problem = Problem(make_request(policy, 7, 2), (4, 3), 100, 1.0)
    decoder = speculative(policy, problem)
    before = decoder.decode(problem.request)
    with torch.inference_mode():
        policy.load_state_dict(restless.state_dict())
        after = decoder.decode(problem.request)
    assert torch.equal(after, reference(policy, problem)[0])
    assert before.tolist() != after.tolist()


def test_number_distributions_may_be_built_in_one_mode_and_asked_in_another(restless: VLA0Policy) -> None:
    request = make_request(restless, 3, 2)
    report = _decoded(restless)
    answers = [trace.symbols for trace in report.traces]
    with torch.inference_mode():
        reader = build_distributions(restless.config, restless.vlm, torch.device("cpu"), min_mass=1e-3)
        first = reader.measure(request, answers)
    second = reader.measure(make_request(restless, 3, 2), answers)
    for one, other in zip(first, second, strict=True):
        assert one.tolist() == other.tolist()


def _decoded(policy: VLA0Policy) -> DecodeReport:
    policy.predict_action_chunk(make_batch(policy.config, 2, 3))
    report = policy.last_decode
    assert report is not None
    return report
