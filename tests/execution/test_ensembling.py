"""ensembling.py against an oracle that keeps every prediction of every moment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lerobot_policy_vla0.errors import ActionError
from lerobot_policy_vla0.execution.ensembling import TemporalEnsembler, snap_binary


class Oracle:
    """Averages, for each moment in time, all predictions that the last ``n`` chunks made of it."""

    def __init__(self, n_chunks: int, n_action_steps: int, old_weight: float) -> None:
        self.n_chunks, self.n_action_steps, self.old_weight = n_chunks, n_action_steps, old_weight
        self.reset()

    def reset(self) -> None:
        self.now = 0  # the moment the next chunk begins at
        self.chunks: list[tuple[int, list[list[list[float]]]]] = []  # (first moment, (B, T, D))

    def update(self, chunk: list[list[list[float]]]) -> list[list[list[float]]]:
        self.chunks.append((self.now, chunk))
        recent = self.chunks[-self.n_chunks :]
        out = []
        for row in range(len(chunk)):
            steps = []
            for moment in range(self.now, self.now + self.n_action_steps):
                predictions = [
                    (1.0 if first == self.now else self.old_weight, values[row][moment - first])
                    for first, values in recent
                    if moment - first < len(values[row])
                ]
                total = sum(weight for weight, _ in predictions)
                steps.append(
                    [
                        sum(weight * action[d] for weight, action in predictions) / total
                        for d in range(len(chunk[row][0]))
                    ]
                )
            out.append(steps)
        self.now += self.n_action_steps
        return out


@given(
    n_chunks=st.integers(1, 6),
    chunk_size=st.integers(1, 7),
    n_action_steps=st.integers(1, 7),
    old_weight=st.sampled_from((1.0, 0.5, 0.1)),
    batch=st.integers(1, 3),
    action_dim=st.integers(1, 3),
    resets=st.lists(st.booleans(), min_size=1, max_size=9),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_each_step_is_the_weighted_mean_of_everything_said_about_its_moment(
    n_chunks: int,
    chunk_size: int,
    n_action_steps: int,
    old_weight: float,
    batch: int,
    action_dim: int,
    resets: list[bool],
    seed: int,
) -> None:
    n_action_steps = min(n_action_steps, chunk_size)
    ensembler = TemporalEnsembler(n_chunks=n_chunks, n_action_steps=n_action_steps, old_weight=old_weight)
    oracle = Oracle(n_chunks, n_action_steps, old_weight)
    source = torch.Generator().manual_seed(seed)
    for reset in resets:
        if reset:
            ensembler.reset()
            oracle.reset()
        chunk = torch.rand(batch, chunk_size, action_dim, generator=source) * 2 - 1
        expected = torch.tensor(oracle.update(chunk.double().tolist()))
        torch.testing.assert_close(ensembler.update(chunk).double(), expected.double(), atol=1e-6, rtol=0)


def column(*values: float) -> Tensor:
    """One row, one dimension."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def test_the_papers_mean_and_the_papers_code_differ_as_worked_out_by_hand() -> None:
    for old_weight, expected in (
        (1.0, (0.0, (2 + 4) / 2, (1 + 5 + 6) / 3)),
        (0.5, (0.0, (1 + 4) / 1.5, (0.5 + 2.5 + 6) / 2)),
    ):
        ensembler = TemporalEnsembler(n_chunks=3, n_action_steps=1, old_weight=old_weight)
        got = [
            ensembler.update(chunk).item() for chunk in (column(0, 2, 1), column(4, 5, 0), column(6, 0, 0))
        ]
        assert got == pytest.approx(expected)


def test_two_steps_per_query_reach_two_steps_back() -> None:
    ensembler = TemporalEnsembler(n_chunks=2, n_action_steps=2)
    assert ensembler.update(column(1, 2, 3)).flatten().tolist() == [1, 2]
    # Moment 2 was predicted as 3 before; moment 3 lay past the first chunk's end.
    assert ensembler.update(column(5, 6, 7)).flatten().tolist() == [4, 6]


def test_one_chunk_is_executed_as_predicted() -> None:
    ensembler = TemporalEnsembler(n_chunks=1, n_action_steps=3)
    source = torch.Generator().manual_seed(0)
    for _ in range(4):
        chunk = torch.rand(2, 5, 3, generator=source)
        assert torch.equal(ensembler.update(chunk), chunk[:, :3])


def test_after_a_reset_nothing_earlier_counts() -> None:
    ensembler = TemporalEnsembler(n_chunks=8, n_action_steps=1)
    ensembler.update(torch.ones(1, 8, 2))
    ensembler.reset()
    assert ensembler.update(torch.zeros(1, 8, 2)).tolist() == [[[0.0, 0.0]]]


def test_the_prediction_is_neither_changed_nor_shared() -> None:
    ensembler = TemporalEnsembler(n_chunks=2, n_action_steps=2)
    chunk = torch.ones(1, 4, 1)
    ensembler.update(chunk).zero_()
    ensembler.update(torch.zeros(1, 4, 1)).zero_()
    assert chunk.eq(1).all()


@pytest.mark.parametrize("shape", [(4, 3, 2), (1, 2, 2), (1, 3, 1)], ids=str)
def test_a_chunk_of_another_shape_within_an_episode_is_refused_not_broadcast(shape: tuple[int, ...]) -> None:
    ensembler = TemporalEnsembler(n_chunks=2, n_action_steps=1)
    ensembler.update(torch.zeros(1, 3, 2))
    with pytest.raises(ActionError) as error:
        ensembler.update(torch.zeros(shape))
    assert str(error.value) == (
        f"a chunk of shape {shape} follows chunks of shape (1, 3, 2) in one episode. Call policy.reset() when the "
        "number of environments changes."
    )
    ensembler.reset()
    assert ensembler.update(torch.ones(shape)).eq(1).all()


def test_binary_dimensions_snap_to_their_sign() -> None:
    actions = torch.tensor([[[0.3, -0.2, 0.9], [0.0, 0.0, -0.0]], [[-1.0, 1.0, 1e-9], [0.5, -1e-9, -0.4]]])
    before = actions.clone()
    snapped = snap_binary(actions, [1, 2])
    assert snapped[..., 1:].tolist() == [[[-1.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [-1.0, -1.0]]]
    assert torch.equal(snapped[..., 0], actions[..., 0])
    assert snapped.dtype == actions.dtype
    assert torch.equal(actions, before)


@pytest.mark.parametrize("indices", [[], ()], ids=str)
def test_without_binary_dimensions_nothing_is_snapped(indices: list[int]) -> None:
    actions = torch.tensor([[0.3, -0.2]])
    assert torch.equal(snap_binary(actions, indices), actions)
