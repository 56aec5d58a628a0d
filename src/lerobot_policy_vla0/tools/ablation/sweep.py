"""Runs everything in an ablation's plan that is not finished yet: a few trainings, their evaluations, the next few.

::

    OUT/train/NAME/seed0/   one training (see `training`)
    OUT/eval/NAME/seed0/    one evaluation: a folder of ``vla0 eval``

Both are named after what they ran, so a plan can grow, and another plan can use their results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from threading import Event

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.ablation.plan import Evaluation, Plan, Training
from lerobot_policy_vla0.tools.ablation.training import finished_policy, train
from lerobot_policy_vla0.tools.evaluation.runs import Run, read_run
from lerobot_policy_vla0.tools.evaluation.shards import device_settings, evaluate
from lerobot_policy_vla0.tools.libero.setup import check_before_start
from lerobot_policy_vla0.tools.workers import run_in_places

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
    """Run what is missing. Trained policies are evaluated before the next training, and one seed before the next.

    A training whose evaluations are all finished is not needed, so their folders are enough to go on elsewhere.

    Args:
        plan: what to run.
        out: folder of trainings and evaluations.
        jobs: trainings, or parts of an evaluation, at a time.
        devices: jobs are spread over them; empty leaves ``policy.device`` as it is.
        say: called with one line per event.

    Returns:
        What failed, in a line each; the rest went on.

    Raises:
        EvaluationError: ``jobs`` or a device makes no sense.
        LiberoError: something that is missing would start LIBERO, and it is not set up; nothing was trained.
    """
    if jobs < 1:
        raise EvaluationError(f"--jobs={jobs}: at least one has to run")
    known: list[Place] = [(device_settings(d), d.partition(":")[0]) for d in devices] or [({}, None)]
    places = [known[i % len(known)] for i in range(jobs)]
    for seed in plan.seeds:
        _check_simulators(plan, seed, out)
    failed: list[str] = []
    for seed in plan.seeds:
        trainings = needed_trainings(plan, seed, out)
        for training in plan.trainings(seed):
            if training not in trainings:
                say(f"train {training.name} is not needed: all its evaluations are finished")
        for first in range(0, len(trainings), jobs):
            batch = trainings[first : first + jobs]
            failed += _train_all(batch, out, places, say)
            for evaluation in plan.evaluations(seed):
                policy = finished_policy(training_folder(out, evaluation.training))
                if (
                    evaluation.training not in batch or policy is None
                ):  # a failed training is in `failed` already
                    continue
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
                failed += [f"eval {evaluation.name}, {shard}" for shard in outcome.failed]
    return failed


def _check_simulators(plan: Plan, seed: int, out: Path) -> None:
    """Check now that simulators can start; an evaluation would fail only after its training."""
    for training in needed_trainings(plan, seed, out):
        # LeRobot starts the simulator in training only to evaluate on the way.
        evaluates = training.arguments.get("env_eval_freq") != "0"
        if evaluates and finished_policy(training_folder(out, training)) is None:
            check_before_start(training.arguments)
    for evaluation in plan.evaluations(seed):
        if finished_run(evaluation, out) is None:
            check_before_start(evaluation.arguments)


def finished_run(evaluation: Evaluation, out: Path) -> Run | None:
    """Return what an evaluation found; None unless all of its episodes can be read."""
    try:
        run = read_run(evaluation.name, [evaluation_folder(out, evaluation)])
    except EvaluationError:  # there is nothing, or nothing whole
        return None
    return None if run.skipped else run


def needed_trainings(plan: Plan, seed: int, out: Path) -> list[Training]:
    """Return a seed's trainings that have an evaluation to come."""
    unfinished = [one.training for one in plan.evaluations(seed) if finished_run(one, out) is None]
    return [training for training in plan.trainings(seed) if training in unfinished]


def _train_all(
    trainings: Sequence[Training], out: Path, places: Sequence[Place], say: Callable[[str], None]
) -> list[str]:
    """Run trainings, one per place at a time; return those that failed."""
    numbers, stop = count(1), Event()

    def run(training: Training, place: Place) -> bool:
        folder = training_folder(out, training)
        ending = "was finished" if finished_policy(folder) is not None else "is finished"
        succeeded = True
        try:
            train(training, folder, *place, stop)
        except EvaluationError as error:
            succeeded, ending = False, f"FAILED: {error}"
        if not stop.is_set():
            say(f"[{next(numbers)}/{len(trainings)}] train {training.name} {ending}")
        return succeeded

    results = run_in_places(run, trainings, places, stop)
    return [f"train {one.name}" for one, succeeded in zip(trainings, results, strict=True) if not succeeded]
