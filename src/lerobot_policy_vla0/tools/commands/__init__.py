"""The ``vla0`` command does what LeRobot's own commands do not do.

Each subcommand is a module with two functions. ``configure(parser)`` adds its arguments. ``run(arguments)`` calls the
code that does the work, and may return an exit status. The module of a subcommand is imported when it is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from lerobot_policy_vla0.errors import Vla0Error

#: Subcommand, the module in this package that does it, and its line in ``vla0 --help``.
COMMANDS: dict[str, tuple[str, str]] = {
    "import": (
        "import_official",
        "turn an export, or the paper's or vla0-trl's checkpoint, into a policy folder",
    ),
    "emulate-so100": ("emulate_so100", "SO-100 arms and a camera that exist in software only"),
    "eval": ("eval", "run lerobot-eval in shards, in processes of their own; resumable"),
    "eval-report": ("eval_report", "success rates with intervals and paired tests, from evaluation folders"),
    "ablate": ("ablate", "train and evaluate variants of one set-up, and compare them"),
    "libero-setup": ("libero_setup", "let LIBERO start without questions, and check its assets"),
    "inspect-dataset": ("inspect_dataset", "what VLA-0 will make of a dataset, before hours of training"),
    "open-loop": ("open_loop", "predicted beside demonstrated actions of a dataset, without a robot"),
    "ask": ("ask", "ask a policy about pictures in words, and measure how much language it kept"),
    "latency": ("latency", "which chunk, control rate and mode a policy's decoding time allows"),
    "merge": ("merge", "turn an adapter and its base into one ordinary policy"),
    "export": ("export", "write a policy for inference engines such as vLLM"),
    "serve": ("serve", "a policy for one robot or many, over LeRobot's, openpi's and vla-eval's protocols"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: the command line without the program's name; None takes the process's.

    Returns:
        The exit status: 0, what the subcommand returns (1: it did its work and the answer is no), or 2 after an error
        the user can mend, which is printed in one line.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    asked = given[0] if given else None
    parser = argparse.ArgumentParser(prog="vla0", description="Tools around the vla0 policy for LeRobot.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, line) in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=line,
            description=f"{line[0].upper()}{line[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == asked:
            command = import_module(f"{__name__}.{module}")
            command.configure(subparser)
    parsed = parser.parse_args(given)
    try:
        status: int | None = command.run(parsed)
    except Vla0Error as error:
        print(f"vla0 {parsed.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return status or 0
