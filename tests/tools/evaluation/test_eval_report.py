"""`vla0 eval-report`: what is read, what is left out and named, and that the page says what the statistics say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from helpers.browser import open_page
from helpers.evaluations import eval_info, write_evaluation
from helpers.made_up_data import Page

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.evaluation.compare import compare, success_lines
from lerobot_policy_vla0.tools.evaluation.eval_info import read_eval_info
from lerobot_policy_vla0.tools.evaluation.report import build_report, seeds_text
from lerobot_policy_vla0.tools.evaluation.runs import parse_run_arguments, read_run
from lerobot_policy_vla0.tools.evaluation.statistics import mcnemar_exact, pairs_to_separate, wilson_interval

A, B, C = ("libero_goal", 0), ("libero_goal", 3), ("libero_10", 1)


def write_two_policies(root: Path) -> tuple[Path, Path]:
    """Write two policies on the same starts: `ours` solves 17 of 20, `theirs` 9, in three tasks of two suites."""
    ours = {A: [True] * 8, B: [True] * 5 + [False], C: [True, True, True, True, False, False]}
    theirs = {A: [True] * 5 + [False] * 3, B: [True] * 4 + [False] * 2, C: [False] * 6}
    write_evaluation(root / "ours" / "eval_seed7", ours, n_videos=2)
    write_evaluation(root / "theirs" / "eval_seed7", theirs, seconds=40.0)
    return root / "ours", root / "theirs"


# ---- reading ---------------------------------------------------------------------------------------------------


def test_rates_are_those_of_the_files(tmp_path: Path) -> None:
    ours, _ = write_two_policies(tmp_path)
    run = read_run("ours", [ours])
    lines = success_lines([run])
    assert [(line.kind, line.name) for line in lines] == [
        ("task", "libero_10"),
        ("task", "libero_goal, task 0"),
        ("task", "libero_goal, task 3"),
        ("suite", "libero_goal, all 2"),
        ("all", "all 3 tasks"),
    ]
    counts = [(rate.n_success, rate.n_episodes) for line in lines if (rate := line.rates["ours"])]
    assert counts == [(4, 6), (8, 8), (5, 6), (13, 14), (17, 20)]
    assert lines[1].rates["ours"].interval == pytest.approx((0.675592, 1.0), abs=2e-6)  # type: ignore[union-attr]
    assert [episode.seed for episode in run.episodes if episode.task == A] == list(range(7, 15))
    assert run.episodes[0].video == ours / "eval_seed7/videos/libero_10_1/eval_episode_0.mp4"


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _change(**overall: Any) -> Any:
    def change(text: str) -> str:
        info = json.loads(text)
        info["overall"] |= overall
        return json.dumps(info)

    return change


def _drop_a_reward(text: str) -> str:
    info = json.loads(text)
    info["per_task"][0]["metrics"]["sum_rewards"].pop()
    return json.dumps(info)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut, r"cannot be read \(.*\): was the evaluation killed\?"),
        (lambda text: "", r"cannot be read"),
        (lambda text: "[]", r"is not what lerobot-eval writes"),
        (lambda text: "{}", r"has no field 'per_task'"),
        (lambda text: text.replace("true", "1"), r"successes of libero_goal task 0 are not true or false"),
        (_drop_a_reward, r"8 successes and 7 sum_rewards"),
        (
            lambda text: text.replace("0.25", "NaN", 1),
            r"sum_rewards of libero_goal task 0 are not all numbers",
        ),
        (_change(n_episodes=9), r"says 9 episodes and lists 8"),
        (_change(pc_success=50.0), r"says 50 % success and lists 8 of 8"),
        (lambda text: json.dumps(eval_info({A: []})), r"holds no episode"),
    ],
)
def test_a_damaged_evaluation_is_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, reason: str
) -> None:
    good = write_evaluation(tmp_path / "run" / "eval_seed0", {A: [True, False]})
    bad = write_evaluation(tmp_path / "run" / "eval_seed100", {A: [True] * 8}) / "eval_info.json"
    bad.write_text(damage(bad.read_text()))
    with pytest.raises(EvaluationError, match=reason) as error:
        read_eval_info(bad)
    assert str(bad) in str(error.value)

    assert main(["eval-report", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr()
    assert "**1 evaluation was left out; the numbers below do not include them.**" in printed.out
    assert "1 of 2 = 50.0 %" in printed.out
    assert str(good) not in printed.err
    assert f"warning: left out {bad.parent}: {bad}" in printed.err


def test_an_evaluation_that_never_finished_is_named(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "eval_seed0", {A: [True]})
    (tmp_path / "eval_seed5" / "videos" / "libero_goal_0").mkdir(parents=True)
    (tmp_path / "dataset" / "videos").mkdir(parents=True)  # datasets have a folder of that name as well
    (tmp_path / "dataset" / "meta").mkdir()
    skipped = read_run("a", [tmp_path]).skipped
    assert [
        (one.path.name, "is missing: the evaluation did not finish" in one.reason) for one in skipped
    ] == [("eval_seed5", True)]


def test_nothing_to_report_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval-report", str(tmp_path)]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
    (tmp_path / "eval_info.json").write_text("{")
    assert main(["eval-report", str(tmp_path)]) == 2
    assert "nothing of" in capsys.readouterr().err


def test_episodes_are_never_counted_twice(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a_seed0", {A: [True, True]})
    write_evaluation(tmp_path / "b_seed1", {A: [True, True]})
    with pytest.raises(
        EvaluationError, match=r"task 0 with seed 1 twice, in .*_seed\d/.* and .*_seed\d/.*: leave one out"
    ):
        read_run("ours", [tmp_path])
    (tmp_path / "a_seed0").rename(tmp_path / "a")
    (tmp_path / "b_seed1").rename(tmp_path / "b")
    with pytest.raises(EvaluationError, match="neither says its seeds"):
        read_run("ours", [tmp_path])


def test_runs_are_named_by_their_folder_or_as_asked(tmp_path: Path) -> None:
    assert parse_run_arguments([str(tmp_path), "b=x", "b=y"]) == {
        tmp_path.name: [tmp_path],
        "b": [Path("x"), Path("y")],
    }
    with pytest.raises(EvaluationError, match=r"would both be called 'eval'.*NAME=FOLDER"):
        parse_run_arguments(["a/eval", "b/eval"])


def test_seeds_are_told_in_short() -> None:
    class Fake:
        def __init__(self, seed: int | None) -> None:
            self.seed = seed

    assert seeds_text([Fake(i) for i in (0, 1, 2, 9, 11, 12)]) == "0-2, 9, 11-12"  # type: ignore[misc]
    assert seeds_text([Fake(0), Fake(None)]) == "not known"  # type: ignore[list-item]


# ---- comparing -------------------------------------------------------------------------------------------------


def test_policies_are_compared_on_the_starts_both_played(tmp_path: Path) -> None:
    ours, theirs = write_two_policies(tmp_path)
    write_evaluation(ours / "more_seed500", {A: [True, False, True]})
    everything, long, goal = compare(read_run("ours", [ours]), read_run("theirs", [theirs]))
    assert (everything.scope, long.scope, goal.scope) == ("all tasks", "libero_10", "libero_goal")
    assert (everything.both, everything.only_first, everything.only_second, everything.neither) == (
        9,
        8,
        0,
        3,
    )
    assert everything.unpaired == goal.unpaired == (3, 0)
    assert long.unpaired == (0, 0)
    assert everything.p_value == 2 / 256
    assert everything.difference == pytest.approx(0.4)
    assert everything.episodes_needed == pairs_to_separate(8, 0, 20)
    assert (goal.both, goal.only_first, goal.only_second, goal.neither) == (9, 4, 0, 1)
    assert goal.p_value == mcnemar_exact(4, 0) == 0.125


def test_what_cannot_be_compared_is_an_error(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "first", {A: [True, False]})
    second = write_evaluation(tmp_path / "second_seed9", {A: [True, False]})
    runs = [read_run("first", [first]), read_run("second", [second])]
    with pytest.raises(EvaluationError, match=r"'first' cannot be compared.*--first-seed"):
        build_report(runs, [("first", "second")])
    with pytest.raises(EvaluationError, match=r"seeds 0 to 1 and libero_goal with seeds 9 to 10"):
        build_report([read_run("first", [first], 0), runs[1]], [("first", "second")])
    with pytest.raises(EvaluationError, match=r"there is no policy 'thrid'; there are first, second"):
        build_report(runs, [("first", "thrid")])
    (comparison,) = build_report([read_run("first", [first], 9), runs[1]], [("first", "second")]).comparisons[
        0
    ]
    assert comparison.n == 2 and comparison.episodes_needed is None


# ---- the page --------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report of two policies, one evaluation of which is broken."""
    ours, theirs = write_two_policies(tmp_path)
    (theirs / "eval_seed90").mkdir()
    (theirs / "eval_seed90" / "eval_info.json").write_text("{")
    out = tmp_path / "report"
    assert main(["eval-report", f"ours={ours}", f"<b>theirs={theirs}", "--out", str(out)]) == 1
    return out / "index.html"


def test_the_page_is_one_file_and_its_numbers_are_the_statistics(page: Path) -> None:
    found = Page(page)
    assert len(found.pictures) == 2 and all(data.startswith(b"\x89PNG") for data in found.pictures)
    # Two videos of each of three tasks; no script, no style sheet, no font from anywhere.
    assert len(found.links) == 6
    assert all((page.parent / unquote(link)).is_file() for link in found.links)

    header, *rows = found.tables["success"]
    assert header == ["", "ours", "<b>theirs"]
    expected = {
        "libero_10": (4, 6),
        "libero_goal, task 0": (8, 8),
        "libero_goal, all 2": (13, 14),
        "all 3 tasks": (17, 20),
    }
    shown = {row[0]: row[1] for row in rows}
    for name, (k, n) in expected.items():
        low, high = wilson_interval(k, n)
        assert shown[name] == f"{k} of {n} = {100 * k / n:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"
    assert found.tables["comparison"][1][:6] == ["all tasks", "20", "9", "8", "0", "3"]
    assert found.tables["comparison"][1][6] == "+40.0 %" and found.tables["comparison"][1][8] == "0.00781"
    assert found.tables["episodes"][1][3].replace(" ", "") == "++++--"
    assert found.tables["skipped"][1][0] == "<b>theirs"
    assert [row[1] for row in found.tables["time"][1:]] == ["0.5 s", "2.0 s"]
    text = page.read_text()
    assert "ours is better at the 0.05 level" in text
    assert f"it takes {pairs_to_separate(8, 0, 20)} paired episodes" in text and "power 0.8" in text
    assert "1 evaluation was left out" in text

    numbers = json.loads((page.parent / "report.json").read_text())
    overall = next(line for line in numbers["success"] if line["kind"] == "all")
    assert overall["rates"]["ours"] == {
        "n_success": 17,
        "n_episodes": 20,
        "rate": 0.85,
        "wilson_95": list(wilson_interval(17, 20)),
    }
    assert numbers["comparisons"][0]["p_mcnemar_exact"] == 2 / 256
    assert len(numbers["skipped"]) == 1


def test_the_same_input_gives_the_same_bytes(page: Path) -> None:
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    assert sorted(before) == ["index.html", "report.json", "report.md"]
    root = page.parents[1]
    arguments = [
        "eval-report",
        f"ours={root / 'ours'}",
        f"<b>theirs={root / 'theirs'}",
        "--out",
        str(page.parent),
    ]
    assert main(arguments) == 1
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == before


def test_a_file_of_somebody_else_is_not_overwritten(
    page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "site"
    other.mkdir()
    (other / "index.html").write_text("mine")
    assert main(["eval-report", str(tmp_path / "ours"), "--out", str(other)]) == 2
    assert "exists and is no report of vla0 eval-report" in capsys.readouterr().err
    assert (other / "index.html").read_text() == "mine"


def test_a_browser_shows_the_page(page: Path, tmp_path: Path) -> None:
    assert "17 of 20 = 85.0 %" in open_page(page, tmp_path)
