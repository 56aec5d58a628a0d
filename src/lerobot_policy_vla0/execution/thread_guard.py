"""Detects one policy object used by several threads.

A policy's action queue and ensembler belong to one rollout. LeRobot's ``--env.max_parallel_tasks>1`` runs several
rollouts on one policy in threads, which mixes up their actions and scores 0 without a message; here it is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lerobot_policy_vla0.errors import SharedPolicyError


class ThreadGuard:
    """Lets one thread at a time in, and only one thread per episode take actions.

    `release` (a new episode) clears the owner, and the next thread in `owned` becomes it. So one thread may reset and
    another act, but interleaved episodes are refused.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def release(self) -> None:
        """Clear the owner for a new episode."""
        self._owner = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Refuse to enter while another thread is inside.

        Raises:
            SharedPolicyError: if another thread is inside.
        """
        if not self._lock.acquire(blocking=False):
            raise SharedPolicyError(_message("two threads called this policy at the same time"))
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Refuse to enter while another thread is inside, or if another took actions in this episode."""
        with self.exclusive():
            me = threading.get_ident()
            if self._owner is not None and self._owner != me:
                raise SharedPolicyError(_message("two threads take actions from this policy in one episode"))
            self._owner = me
            yield

    def __reduce__(self) -> tuple[type[ThreadGuard], tuple[()]]:
        """Copy and pickle as a new guard: a copied policy has its own episode, and locks cannot be pickled."""
        return ThreadGuard, ()


def _message(what: str) -> str:
    return (
        f"{what}; its action queue and ensembler belong to one rollout, so their actions would be mixed up. "
        "Run lerobot-eval with --env.max_parallel_tasks=1 (use --eval.batch_size for speed), or give each "
        "thread its own policy."
    )
