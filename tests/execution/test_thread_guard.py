"""thread_guard.py with real threads."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from lerobot_policy_vla0.errors import SharedPolicyError
from lerobot_policy_vla0.execution.thread_guard import ThreadGuard

ADVICE = (
    "; its action queue and ensembler belong to one rollout, so their actions would be mixed up. Run lerobot-eval "
    "with --env.max_parallel_tasks=1 (use --eval.batch_size for speed), or give each thread its own policy."
)


class Worker:
    """A thread that stays alive and does one thing at a time when told to."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1)

    def do(self, action: Callable[[], object]) -> object:
        return self.pool.submit(action).result(timeout=30)


@pytest.fixture
def workers() -> Iterator[tuple[Worker, Worker]]:
    both = (Worker(), Worker())
    yield both
    for worker in both:
        worker.pool.shutdown()


def act(guard: ThreadGuard) -> Callable[[], None]:
    def enter() -> None:
        with guard.owned():
            pass

    return enter


def test_two_threads_that_take_turns_in_one_episode_are_refused(workers: tuple[Worker, Worker]) -> None:
    guard = ThreadGuard()
    first, second = workers
    first.do(act(guard))
    first.do(act(guard))
    with pytest.raises(SharedPolicyError) as error:
        second.do(act(guard))
    assert str(error.value) == "two threads take actions from this policy in one episode" + ADVICE
    first.do(act(guard))  # the refusal did not take the ownership away


def test_interleaved_episodes_are_noticed_although_each_begins_with_a_reset(
    workers: tuple[Worker, Worker],
) -> None:
    """What lerobot-eval does with several tasks in parallel."""
    guard = ThreadGuard()
    first, second = workers
    first.do(guard.release)
    first.do(act(guard))
    second.do(guard.release)
    second.do(act(guard))
    with pytest.raises(SharedPolicyError, match="two threads take actions"):
        first.do(act(guard))


def test_resetting_in_one_thread_and_acting_in_another_is_fine(workers: tuple[Worker, Worker]) -> None:
    guard = ThreadGuard()
    first, second = workers
    for _ in range(3):
        guard.release()
        first.do(act(guard))
        first.do(act(guard))
        second.do(guard.release)
        second.do(act(guard))


@pytest.mark.parametrize("section", ["exclusive", "owned"])
@pytest.mark.parametrize("inside", ["exclusive", "owned"])
def test_entering_while_another_thread_is_inside_is_refused(section: str, inside: str) -> None:
    guard = ThreadGuard()
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        occupied: AbstractContextManager[None] = getattr(guard, inside)()
        with occupied:
            entered.set()
            assert leave.wait(30)

    with ThreadPoolExecutor(max_workers=1) as pool:
        busy = pool.submit(stay)
        assert entered.wait(30)
        try:
            with pytest.raises(SharedPolicyError) as error, getattr(guard, section)():
                pytest.fail("two threads are inside")
            assert str(error.value) == "two threads called this policy at the same time" + ADVICE
            guard.release()  # a reset does not open the door either
            with pytest.raises(SharedPolicyError, match="at the same time"), getattr(guard, section)():
                pytest.fail("two threads are inside")
        finally:
            leave.set()
        busy.result(timeout=30)
    guard.release()
    with getattr(guard, section)():  # free again
        pass


def test_exclusive_sections_in_turn_belong_to_no_thread(workers: tuple[Worker, Worker]) -> None:
    guard = ThreadGuard()

    def predict() -> None:
        with guard.exclusive():
            pass

    first, second = workers
    first.do(predict)
    second.do(predict)
    first.do(act(guard))
    second.do(predict)


@pytest.mark.parametrize("section", ["exclusive", "owned"])
def test_an_error_inside_opens_the_door_again(section: str) -> None:
    guard = ThreadGuard()
    with pytest.raises(RuntimeError, match="boom"), getattr(guard, section)():
        raise RuntimeError("boom")
    with getattr(guard, section)():
        pass


def copies(guard: ThreadGuard) -> list[ThreadGuard]:
    pickled = [pickle.loads(pickle.dumps(guard, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    return [copy.copy(guard), copy.deepcopy(guard), *pickled]


def test_copies_made_inside_a_section_are_guards_of_their_own(workers: tuple[Worker, Worker]) -> None:
    guard = ThreadGuard()
    with guard.owned():
        made = copies(guard)
    for other in made:
        workers[0].do(act(other))  # neither locked nor owned by this thread
    with pytest.raises(SharedPolicyError):
        workers[0].do(act(guard))
    for other in made:
        with pytest.raises(SharedPolicyError):
            act(other)()
