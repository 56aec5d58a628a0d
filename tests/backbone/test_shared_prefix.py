"""Computing the prompts' common beginning once changes no loss and no gradient."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.tiny import CAMERA, make_config, make_raw_batch, make_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.backbone.shared_prefix import (
    base_attention,
    can_share_prefix,
    common_prefix,
    pack,
    use_own_attention,
)

PAD, STOP = 0, 9
TASKS = ["push", "pull the lever", "push", "open"]


def padded(rows: list[list[int]], left: list[int]) -> tuple[Tensor, Tensor]:
    """Return ids and mask of rows that begin at the given columns, padded right to one length."""
    length = max(n + len(row) for n, row in zip(left, rows, strict=True))
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, (n, row) in enumerate(zip(left, rows, strict=True)):
        ids[i, n : n + len(row)] = torch.tensor(row)
        mask[i, n : n + len(row)] = True
    return ids, mask


@given(
    shared=st.lists(st.integers(1, 8), max_size=4),
    rests=st.lists(st.lists(st.integers(1, STOP), max_size=4), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_packed_batch_says_of_every_token_what_the_batch_said(
    shared: list[int], rests: list[list[int]], seed: int
) -> None:
    rows = [[*shared, *rest, STOP, 1] for rest in rests]
    source = torch.Generator().manual_seed(seed)
    left = torch.randint(0, 4, (len(rows),), generator=source).tolist()
    ids, mask = padded(rows, left)
    expected = 0
    while len({row[expected] for row in rows}) == 1 and rows[0][expected] != STOP:
        expected += 1
    assert common_prefix(ids, mask, stop=STOP) == expected

    place = (torch.arange(ids.shape[1]) - torch.tensor(left)[:, None]).expand(3, -1, -1)
    packed = pack(ids, mask, place, stop=STOP)
    if expected == 0:
        assert packed is None
        return
    assert packed is not None
    own = packed.ids[0, expected:].view(len(rows), -1)
    places = packed.positions[0, 0, expected:].view(len(rows), -1)
    assert packed.ids[0, :expected].tolist() == rows[0][:expected]
    assert packed.positions[0, 0, :expected].tolist() == list(range(expected))
    for i, row in enumerate(rows):
        size = len(row) - expected
        assert own[i, :size].tolist() == row[expected:]
        assert places[i, :size].tolist() == list(range(expected, len(row)))
        columns = torch.arange(ids.shape[1] - left[i] - expected, own.shape[1])
        assert STOP not in own[i, columns]  # filler

    first = max(left) + expected
    assert packed.has_columns(first)
    assert not packed.has_columns(first - 1)
    states = torch.stack([packed.ids[0], packed.positions[0, 0]], dim=1)
    back = packed.columns(states, first, ids.shape[1])
    real = mask[:, first:]
    assert torch.equal(back[..., 0][real], ids[:, first:][real])
    assert torch.equal(back[..., 1][real], place[0][:, first:][real])


def test_a_single_row_is_not_packed() -> None:
    ids, mask = padded([[1, 2, STOP]], [0])
    assert pack(ids, mask, ids.expand(3, -1, -1), stop=STOP) is None


# ---------------------------------------------------------------- through the model


@contextmanager
def tokens_seen(policy: VLA0Policy) -> Iterator[list[int]]:
    """Collect how many tokens the first decoder layer computes in each pass, recomputed ones included."""
    seen: list[int] = []
    layer = policy.vlm.model.model.language_model.layers[0].mlp
    hook = layer.register_forward_hook(lambda _module, _inputs, out: seen.append(out[..., 0].numel()))
    yield seen
    hook.remove()


def use_stock_attention(policy: VLA0Policy) -> None:
    """Put transformers' own attention back, with which every row is computed whole."""
    config = policy.vlm.model.model.language_model.config
    config._attn_implementation = base_attention(config._attn_implementation)
    assert not can_share_prefix(config)


def prepared(policy: VLA0Policy, tasks: list[str]) -> dict[str, Any]:
    config = policy.config
    preprocess, _ = make_vla0_pre_post_processors(config, make_stats(config.action_dim))
    raw = make_raw_batch(config, len(tasks))
    return dict(preprocess({**raw, "task": tasks}))


def compare(policy: VLA0Policy, tasks: list[str]) -> tuple[int, int]:
    """Compare a training step with that of a copy on the plain path; return the tokens computed in each."""
    plain = copy.deepcopy(policy)
    use_stock_attention(plain)
    batch = prepared(policy, tasks)
    counts = []
    results = []
    for one in (policy, plain):
        with tokens_seen(one) as seen:
            losses, metrics = one.train()(batch, reduction="none")
            losses.mean().backward()
        counts.append(max(seen))
        results.append((losses.detach(), metrics))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    compared = 0
    for (name, ours), theirs in zip(policy.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
            continue
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=2e-6, msg=name)
        compared += bool(theirs.grad.any())
    assert compared > 20
    return counts[0], counts[1]


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ({}, ["push"] * 3),
        ({}, TASKS),
        ({"attn_implementation": "eager"}, TASKS),
        ({"gradient_checkpointing": True}, TASKS),
        ({"gradient_checkpointing": True, "attn_implementation": "eager"}, ["push"] * 2),
        ({"cameras": (CAMERA, "observation.images.wrist"), "image_size": (84, 140)}, TASKS),
        ({"image_size": (112, 112)}, TASKS[:2]),
        ({"freeze_vision_encoder": True}, TASKS[:2]),
    ],
    ids=[
        "one task",
        "tasks",
        "eager",
        "checkpointing",
        "eager checkpointing",
        "two cameras",
        "larger",
        "frozen",
    ],
)
def test_losses_and_gradients_are_those_of_the_plain_path(options: dict[str, Any], tasks: list[str]) -> None:
    torch.manual_seed(0)
    policy = VLA0Policy(make_config(**options))
    ours, plain = compare(policy, tasks)
    ids, mask = (
        prepared(policy, tasks)[key]
        for key in ("observation.language.tokens", "observation.language.attention_mask")
    )
    prefix = int(common_prefix(ids, mask, stop=policy.vlm.image_token_id))
    assert prefix > 20
    assert ours == plain - (len(tasks) - 1) * prefix


def test_one_row_takes_the_plain_path() -> None:
    torch.manual_seed(0)
    ours, plain = compare(VLA0Policy(make_config()), ["push"])
    assert ours == plain


def test_states_of_the_prefix_itself_come_from_the_plain_path() -> None:
    torch.manual_seed(0)
    vlm = VLA0Policy(make_config()).eval().vlm
    ids = torch.tensor([[5, 6, 7, vlm.image_token_id, 8], [5, 6, 7, vlm.image_token_id, 9]])
    pixels, grid = torch.randn(8, 1176), torch.tensor([[1, 2, 2]] * 2)
    with torch.no_grad():
        whole = vlm.hidden_states(ids, torch.ones_like(ids).bool(), pixels, grid)
        part = vlm.hidden_states(ids, torch.ones_like(ids).bool(), pixels, grid, first=3)
    assert whole.shape[:2] == (2, 5)
    torch.testing.assert_close(part, whole[:, 3:])


def test_flash_attention_is_left_alone() -> None:
    text = VLA0Policy(make_config()).vlm.model.model.language_model.config
    assert can_share_prefix(text)
    text._attn_implementation = "flash_attention_2"
    use_own_attention(text)
    assert text._attn_implementation == "flash_attention_2"
    assert not can_share_prefix(text)
