"""Random decoding problems, and drafts made to be bad: what the decoders are compared on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.tiny import make_batch, make_config
from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.decoding.drafts import ROOT, Chain, Draft
from lerobot_policy_vla0.decoding.fast import FastDecoder, Row
from lerobot_policy_vla0.decoding.reference import ReferenceDecoder
from lerobot_policy_vla0.decoding.report import DecodeReport
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.decoding.speculative import PreviousChunkDrafter
from lerobot_policy_vla0.observations.images import encode_images
from lerobot_policy_vla0.text.grammar import END, AnswerGrammar
from lerobot_policy_vla0.text.prompt import PromptEncoder, PromptSettings

TASKS = ("push", "push the red button", "open the drawer on the left-hand side, then let go", "")
N_BINS = (1, 9, 10, 99, 100, 250, 1000, 4000)


def trained_policy(steps: int = 40) -> VLA0Policy:
    """Return a small policy trained a little: its answers depend on the picture and are not constant."""
    torch.manual_seed(0)
    config = make_config(chunk_size=4, n_action_steps=4, action_dim=3, n_bins=1000, crop_ratio=1.0, hue=0.0)
    policy = VLA0Policy(config)
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    batch = make_batch(config, batch=16)
    for _ in range(steps):
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval()


@dataclass(frozen=True)
class Problem:
    """A request and the grammar its answer obeys."""

    request: DecodeRequest
    shape: tuple[int, int]
    n_bins: int
    penalty: float

    def options(self) -> dict[str, Any]:
        """Return what every decoder takes."""
        return {"shape": self.shape, "repetition_penalty": self.penalty}

    def grammar(self, vlm: VLM) -> AnswerGrammar:
        """Return the grammar, on the backbone's device."""
        return AnswerGrammar(
            n_bins=self.n_bins,
            n_numbers=self.shape[0] * self.shape[1],
            tokens=vlm.tokens,
            device=next(vlm.parameters()).device,
        )

    def to(self, device: str) -> Problem:
        """Return the problem on another device."""
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in vars(self.request).items()
        }
        return dataclasses.replace(self, request=DecodeRequest(**moved))


def make_request(
    policy: VLA0Policy, seed: int, batch: int, committed: Tensor | None = None, same_task: bool = False
) -> DecodeRequest:
    """Return random pictures under tasks of different length."""
    source = torch.Generator().manual_seed(seed)
    config = policy.config
    encoder = PromptEncoder(
        policy.vlm.tokenizer.backend_tokenizer,  # type: ignore[attr-defined]
        PromptSettings(
            system_prompt="answer in numbers",
            image_tokens=tuple(config.image_tokens(policy.vlm.patch_size, policy.vlm.merge_size)),
            pad_token_id=policy.vlm.tokens.pad,
        ),
    )
    picks = torch.randint(len(TASKS), (batch,), generator=source).tolist()
    ids, mask = encoder.encode_batch([TASKS[0] if same_task else TASKS[pick] for pick in picks])
    # Uniform noise looks the same to a small model everywhere: give each picture a brightness of its own.
    level = torch.rand(batch, 3, 1, 1, generator=source)
    pictures = (level + 0.3 * torch.rand(batch, 3, 64, 64, generator=source)).clamp(0, 1)
    pixel_values, grid_thw = encode_images([pictures], policy.image_settings, None)
    return DecodeRequest(ids, mask, pixel_values, grid_thw, committed)


def random_problem(policy: VLA0Policy, seed: int) -> Problem:
    """Return the problem of a seed: batch, shape, bins, penalty and committed steps all vary."""
    rng = np.random.default_rng(seed)
    n_bins = int(rng.choice(N_BINS))
    batch = int(rng.choice([1, 1, 1, 3, 8]))
    limit = 60 if batch == 1 else 30  # numbers; the reference needs a pass per token
    dims = int(rng.integers(1, 15))
    steps = int(rng.integers(1, max(2, min(17, limit // dims + 1))))
    committed = None
    if rng.random() < 0.4:
        given = int(rng.integers(0, steps + 1))
        committed = torch.from_numpy(rng.integers(0, n_bins + 1, (batch, given, dims)))
    return Problem(
        make_request(policy, seed, batch, committed), (steps, dims), n_bins, float(rng.choice([1.0, 1.05]))
    )


class ScriptedDrafter(PreviousChunkDrafter):
    """Guesses what it is told to: right answers, wrong ones, numbers of other lengths."""

    script: np.ndarray  # (B, N) guesses

    def draft(self, runner: Any) -> list[Chain | Draft]:
        self._guess = self.script.tolist()
        return super().draft(runner)


class BushyDrafter(ScriptedDrafter):
    """Grows branches at random; the script is one branch of many, and seldom the first."""

    rng: np.random.Generator

    def _draft_row(self, index: int, row: Row, room: int) -> Draft:
        draft = Draft()
        right = list(self._chain(index, row, room).symbols)
        self._last_chain[index] = (0, 0, [])  # what the model says is about another tree
        splits = sorted(int(k) for k in self.rng.integers(0, len(right) + 1, 2))
        node, done = ROOT, 0
        for split in splits:  # before the script goes on, a wrong branch of legal symbols
            node = draft.extend(right[done:split], node, room)
            done = split
            state = row.state
            for symbol in right[:split]:
                state = self.tables.advance(state, symbol)
            branch = node
            for _ in range(3):
                legal = np.flatnonzero(self.tables.legal_rows[self.tables.legal_row(state)])
                symbol = int(self.rng.choice(legal))
                if symbol == END or len(draft) >= room:
                    break
                branch = draft.add(symbol, branch)
                state = self.tables.advance(state, symbol)
        draft.extend(right[done:], node, room)
        return draft


def bushy(policy: VLA0Policy, problem: Problem, script: np.ndarray, seed: int) -> FastDecoder:
    """Return a decoder whose drafts are trees with the script ``(B, N)`` among their branches."""
    drafter = BushyDrafter(problem.grammar(policy.vlm), shape=problem.shape, draft_width=32)
    drafter.script = script
    drafter.rng = np.random.default_rng(seed)
    return with_drafter(policy, problem, drafter)


def reference(policy: VLA0Policy, problem: Problem) -> tuple[Tensor, DecodeReport]:
    """Return the oracle's answer and report."""
    decoder = ReferenceDecoder(policy.vlm, problem.grammar(policy.vlm), **problem.options())
    ids = decoder.decode(problem.request)
    assert decoder.last is not None
    return ids, decoder.last


def fast(policy: VLA0Policy, problem: Problem) -> FastDecoder:
    """Return the fast decoder of a problem."""
    return FastDecoder(policy.vlm, problem.grammar(policy.vlm), **problem.options())


def with_drafter(policy: VLA0Policy, problem: Problem, drafter: PreviousChunkDrafter) -> FastDecoder:
    """Return the decoder of a problem that checks a drafter's guesses."""
    return FastDecoder(policy.vlm, problem.grammar(policy.vlm), drafter=drafter, **problem.options())


def speculative(policy: VLA0Policy, problem: Problem, width: int | None = 16) -> FastDecoder:
    """Return the speculative decoder of a problem."""
    grammar = problem.grammar(policy.vlm)
    return with_drafter(
        policy, problem, PreviousChunkDrafter(grammar, shape=problem.shape, draft_width=width)
    )


def scripted(policy: VLA0Policy, problem: Problem, script: np.ndarray, width: int = 16) -> FastDecoder:
    """Return a speculative decoder with the given guesses ``(B, N)``."""
    drafter = ScriptedDrafter(problem.grammar(policy.vlm), shape=problem.shape, draft_width=width)
    drafter.script = script
    return with_drafter(policy, problem, drafter)


def near_ties(expected: DecodeReport, got: DecodeReport, tolerance: float = 1e-4) -> int:
    """Count rows that differ, after checking that each first differs where the oracle itself was undecided.

    Raises:
        AssertionError: if a row differs at a choice the oracle's two best scores did not tie on.
    """
    flips = 0
    for index, (right, row) in enumerate(zip(expected.traces, got.traces, strict=True)):
        if right.symbols == row.symbols:
            continue
        place = next(k for k, (a, b) in enumerate(zip(right.symbols, row.symbols, strict=False)) if a != b)
        scores = right.scores[place]
        assert scores is not None, f"row {index} differs at symbol {place}, which was given"
        best, second = np.sort(scores)[::-1][:2]
        assert best - second <= tolerance, (
            f"row {index} differs at symbol {place}: wrote {row.symbols[place]}, the oracle {right.symbols[place]} "
            f"by a margin of {best - second:.2g}"
        )
        flips += 1
    return flips
