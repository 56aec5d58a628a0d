"""The arguments of ``vla0 eval-report``, which shows the results of evaluations with intervals and paired tests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_EXAMPLES = """\
  vla0 eval-report outputs/eval/reach --out outputs/report
  vla0 eval-report ours=runs/a_seed1000 ours=runs/a_seed2000 smaller=runs/b --compare ours smaller

Exit status: 0; 1 if evaluations were left out (they are named); 2 if there is nothing to report or the runs contradict
each other.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``vla0 eval-report``."""
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    runs = "folder of lerobot-eval or vla0 eval, or with such folders below; the same NAME joins several"
    add("runs", nargs="+", metavar="[NAME=]RUN", help=runs)
    add("--out", type=Path, metavar="DIR", help="write report.md, report.json and index.html there")
    pairs = (
        "compare two policies episode by episode; repeat it. Default: the two there are, if they share seeds"
    )
    add("--compare", nargs=2, action="append", metavar=("A", "B"), help=pairs)
    seed = "--seed of runs that do not say it (lerobot-eval writes none)"
    add("--first-seed", type=int, metavar="S", help=seed)


def run(arguments: argparse.Namespace) -> int:
    """Read the runs, print the report, and write it if asked to."""
    from lerobot_policy_vla0.tools.evaluation.report import as_markdown, build_report, write_report
    from lerobot_policy_vla0.tools.evaluation.runs import parse_run_arguments, read_run

    folders = parse_run_arguments(arguments.runs)
    runs = [read_run(name, paths, arguments.first_seed) for name, paths in folders.items()]
    pairs = [(first, second) for first, second in arguments.compare or ()]
    seeds_known = all(episode.seed is not None for run in runs for episode in run.episodes)
    if arguments.compare is None and len(runs) == 2 and seeds_known:
        pairs = [(runs[0].name, runs[1].name)]
    report = build_report(runs, pairs)
    print(as_markdown(report), end="")
    if arguments.out is not None:
        print(f"\n{write_report(report, arguments.out).resolve()}")
    for skipped in report.skipped:
        print(f"vla0 eval-report: warning: left out {skipped.path}: {skipped.reason}", file=sys.stderr)
    return 1 if report.skipped else 0
