"""Everything in an ablation's plan that is not finished yet: a few trainings, their evaluations, the next few.

::

    OUT/train/NAME/seed0/   one training (see `training`)
    OUT/eval/NAME/seed0/    one evaluation: a folder of ``vla0 eval``

Both are named after what they ran, so a plan can grow, and another one can use them too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Event

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.ablation.plan import Evaluation, Plan, Training
from lerobot_policy_vla0.tools.ablation.training import finished_policy, train
from lerobot_policy_vla0.tools.evaluation.eval_info import FILE_NAME
from lerobot_policy_vla0.tools.evaluation.shards import device_settings, evaluate
from lerobot_policy_vla0.tools.libero.setup import check_before_start

#: Environment variables and ``--policy.device`` of a process.
Place = tuple[dict[str, str], str | None]


def training_folder(out: Path, training: Training) -> Path:
    """Return where a training's runs are."""
    return out / "train" / training.name


def evaluation_folder(out: Path, evaluation: Evaluation) -> Path:
    """Return where an evaluation is."""
    return out / "eval" / evaluation.name


def sweep(
    plan: Plan,
    out: Path,
    *,
    jobs: int = 1,
    devices: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run what is missing: what is trained is evaluated before the next is trained, and one seed before the next.

    Args:
        plan: what to run.
        out: folder of trainings and evaluations.
        jobs: trainings, or parts of an evaluation, at a time.
        devices: spread over them; empty leaves ``policy.device`` as it is.
        say: called with one line per event.

    Returns:
        What failed, in a line each; the rest went on.

    Raises:
        EvaluationError: ``jobs`` or a device makes no sense.
        LiberoError: something that is missing would start LIBERO, and it is not set up; nothing was trained.
    """
    if jobs < 1:
        raise EvaluationError(f"--jobs={jobs}: at least one has to run")
    places: list[Place] = [(device_settings(d), d.partition(":")[0]) for d in devices] or [({}, None)]
    for seed in plan.seeds:
        _check_simulators(plan, seed, out)
    failed: list[str] = []
    for seed in plan.seeds:
        trainings = plan.trainings(seed)
        for first in range(0, len(trainings), jobs):
            some = trainings[first : first + jobs]
            failed += _train_all(some, out, [places[i % len(places)] for i in range(jobs)], say)
            for evaluation in plan.evaluations(seed):
                if evaluation.training in some:
                    failed += _evaluate(evaluation, plan, out, jobs, devices, say)
    return failed


def _check_simulators(plan: Plan, seed: int, out: Path) -> None:
    """Check now what an evaluation would only find out after its training."""
    for training in plan.trainings(seed):
        # LeRobot starts the simulator in training only to evaluate on the way.
        evaluates = training.arguments.get("env_eval_freq") != "0"
        if evaluates and finished_policy(training_folder(out, training)) is None:
            check_before_start(training.arguments)
    for evaluation in plan.evaluations(seed):
        if not (evaluation_folder(out, evaluation) / FILE_NAME).exists():
            check_before_start(evaluation.arguments)


def _evaluate(
    evaluation: Evaluation,
    plan: Plan,
    out: Path,
    jobs: int,
    devices: Sequence[str],
    say: Callable[[str], None],
) -> list[str]:
    """Evaluate a trained policy, if it is there; return what failed."""
    policy = finished_policy(training_folder(out, evaluation.training))
    if policy is None:  # its failure is known already
        return []
    say(f"eval {evaluation.name}")
    arguments = {**evaluation.arguments, "policy.path": str(policy)}
    outcome = evaluate(
        evaluation_folder(out, evaluation),
        [f"--{name}={value}" for name, value in arguments.items()],
        n_workers=jobs,
        devices=devices,
        episodes_per_shard=plan.episodes_per_shard,
        say=lambda line: say(f"  {line}"),
    )
    return [f"eval {evaluation.name}, {name}" for name in outcome.failed]


def _train_all(
    trainings: Sequence[Training], out: Path, places: Sequence[Place], say: Callable[[str], None]
) -> list[str]:
    """Train one per place at a time; return the names of those that failed."""
    free: SimpleQueue[Place] = SimpleQueue()
    for place in places:
        free.put(place)
    stop = Event()
    numbers = count(1)

    def one(training: Training) -> str | None:
        folder = training_folder(out, training)
        known = finished_policy(folder) is not None
        variables, device = place = free.get()
        ending = "was finished" if known else "is finished"
        failure = None
        try:
            train(training, folder, variables, device, stop)
        except EvaluationError as error:
            failure, ending = f"train {training.name}", f"FAILED: {error}"
        finally:
            free.put(place)
        if not stop.is_set():
            say(f"[{next(numbers)}/{len(trainings)}] train {training.name} {ending}")
        return failure

    with ThreadPoolExecutor(len(places)) as pool:
        try:
            return [failure for failure in pool.map(one, trainings) if failure]
        except BaseException:  # Ctrl-C reaches this thread only
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
