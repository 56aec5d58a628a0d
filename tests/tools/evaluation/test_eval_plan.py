"""How an evaluation is split: which tasks, which seeds, and what is refused."""

from __future__ import annotations

import pytest

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation.plan import Shard, parse_arguments, plan_shards

POLICY = "--policy.path=somewhere"


def plan(*arguments: str, episodes_per_shard: int | None = None) -> list[Shard]:
    """Plan an evaluation of a policy with these further arguments."""
    return plan_shards(parse_arguments([POLICY, *arguments]), episodes_per_shard)


def test_libero_is_split_by_suite_and_task() -> None:
    shards = plan("--env.type=libero", "--env.task=libero_goal,libero_10", "--env.hard_reset=false")
    assert len(shards) == 20
    assert [(shard.suite, shard.task_id) for shard in shards[9:11]] == [("libero_goal", 9), ("libero_10", 0)]
    assert shards[13].name == "libero_10_03"
    assert shards[13].arguments == (
        "--env.hard_reset=false",
        "--env.task=libero_10",
        "--env.task_ids=[3]",
        "--env.type=libero",
        "--eval.batch_size=1",
        "--eval.n_episodes=50",
        POLICY,
        "--seed=1000",
    )


def test_chosen_tasks_of_libero_stay_chosen() -> None:
    shards = plan("--env.type", "libero", "--env.task", "libero_90", "--env.task_ids", "[80, 3]")
    assert [shard.task_id for shard in shards] == [80, 3]


def test_metaworld_is_split_by_task_and_keeps_the_groups_name() -> None:
    shards = plan("--env.type=metaworld", "--env.task=reach-v3,very_hard")
    assert [(shard.suite, shard.task_id, shard.task) for shard in shards] == [
        ("reach-v3", 0, "reach-v3"),
        ("very_hard", 0, "shelf-place-v3"),
        ("very_hard", 1, "disassemble-v3"),
        ("very_hard", 2, "stick-pull-v3"),
        ("very_hard", 3, "stick-push-v3"),
        ("very_hard", 4, "pick-place-wall-v3"),
    ]
    assert "--env.task=stick-pull-v3" in shards[3].arguments


def test_episodes_are_split_by_seed_in_whole_batches() -> None:
    shards = plan(
        "--env.type=metaworld",
        "--env.task=reach-v3",
        "--eval.n_episodes=10",
        "--eval.batch_size=2",
        "--seed=70",
        episodes_per_shard=4,
    )
    parts = [(shard.seed, shard.first_episode, shard.n_episodes) for shard in shards]
    assert parts == [
        (70, 0, 4),
        (74, 4, 4),
        (78, 8, 2),
    ]
    assert shards[2].name == "reach-v3_00_episodes0008-0009"
    assert {"--seed=78", "--eval.n_episodes=2", "--eval.batch_size=2"} <= set(shards[2].arguments)


def test_an_environment_nobody_knows_stays_whole() -> None:
    (shard,) = plan("--env.type=pusht", "--env.task=Push it, gently", "--eval.n_episodes=4")
    assert shard.suite is None and "--env.task=Push it, gently" in shard.arguments


META = ("--env.type=metaworld", "--env.task=reach-v3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reach"], "'reach' is not an argument of lerobot-eval"),
        ([POLICY, "--env.type"], "--env.type has no value"),
        ([POLICY, *META, "--seed=1", "--seed=2"], "--seed is given twice: '1' and '2'"),
        ([POLICY, *META, "--output_dir=x"], "--output_dir cannot be passed on to lerobot-eval: say --out"),
        ([POLICY, "--config_path=x"], "--config_path cannot be passed on"),
        ([*META], "--policy.path is missing among the arguments of lerobot-eval"),
        ([POLICY, "--env.task=reach-v3"], "--env.type is missing"),
        ([POLICY, "--env.type=metaworld"], "--env.task is missing .*--env.task=metaworld-reach-v3"),
        ([POLICY, *META, "--env.max_parallel_tasks=4"], "would share one policy between threads"),
        ([POLICY, *META, "--seed=null"], "--seed=null is not a whole number"),
        ([POLICY, *META, "--eval.batch_size=0"], "--eval.batch_size=0: both have to be 1 or more"),
        (
            [POLICY, "--env.type=metaworld", "--env.task=reech-v3"],
            r"'reech-v3' is neither .*did you mean reach-v3",
        ),
        ([POLICY, "--env.type=metaworld", "--env.task=reach-v3,reach-v3"], "names a task twice"),
        ([POLICY, "--env.type=libero", "--env.task=my_suite"], "how many tasks 'my_suite' has is not known"),
        (
            [POLICY, "--env.type=libero", "--env.task=libero_10", "--env.task_ids=3"],
            "is not a list of indices",
        ),
        (
            [POLICY, "--env.type=libero", "--env.task=libero_10", "--env.task_ids=[10]"],
            "libero_10 has 10 tasks",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        plan_shards(parse_arguments(arguments))


def test_splits_that_would_change_what_is_played_are_refused() -> None:
    with pytest.raises(
        EvaluationError, match="libero takes its initial states in the order of a process's resets"
    ):
        plan("--env.type=libero", "--env.task=libero_10", episodes_per_shard=10)
    with pytest.raises(EvaluationError, match=r"--episodes-per-shard=5 .* multiples of --eval.batch_size=2"):
        plan(*META, "--eval.batch_size=2", episodes_per_shard=5)
    with pytest.raises(EvaluationError, match="only whole batches"):
        plan(*META, "--eval.n_episodes=5", "--eval.batch_size=2", episodes_per_shard=2)
    with pytest.raises(EvaluationError, match="--episodes-per-shard=0"):
        plan(*META, episodes_per_shard=0)
