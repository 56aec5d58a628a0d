"""Detects one policy object driven by several threads.

A policy's action queue and ensembler belong to one rollout. LeRobot's ``--env.max_parallel_tasks>1``
runs several rollouts on one policy in threads, which mixes their actions up and scores 0 without a word;
here it is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lerobot_policy_vla0.errors import SharedPolicyError


class ThreadGuard:
    """Lets one thread at a time in, and one thread per episode drive the queue.

    `release` (an episode starts) frees the ownership; the first `owned` section after it takes it. So
    resetting in one thread and acting in another is fine, and interleaved episodes are not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    def release(self) -> None:
        """Forget the owner: a new episode starts."""
        self._owner = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Refuse to enter while another thread is inside.

        Raises:
            SharedPolicyError: if one is.
        """
        if not self._lock.acquire(blocking=False):
            raise SharedPolicyError(_message("two threads called this policy at the same time"))
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Like `exclusive`, and refuse a second thread within one episode."""
        with self.exclusive():
            me = threading.get_ident()
            if self._owner is not None and self._owner != me:
                raise SharedPolicyError(_message("two threads take actions from this policy in one episode"))
            self._owner = me
            yield

    def __reduce__(self) -> tuple[type[ThreadGuard], tuple[()]]:
        """Copy and pickle as a fresh guard: a copied policy is a policy of its own, and locks do not travel."""
        return ThreadGuard, ()


def _message(what: str) -> str:
    return (
        f"{what}; its action queue and ensembler belong to one rollout, so their actions would be mixed up. "
        "Run lerobot-eval with --env.max_parallel_tasks=1 (use --eval.batch_size for speed), or give each "
        "thread its own policy."
    )
