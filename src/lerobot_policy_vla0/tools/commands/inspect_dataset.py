"""The arguments of ``vla0 inspect-dataset``, which shows what a policy will make of a dataset."""

from __future__ import annotations

import argparse
import json
import sys

from lerobot_policy_vla0.tools.commands import shared

_EXAMPLES = """\
with the options you are going to train with:
  vla0 inspect-dataset --dataset.repo_id=me/my-data --policy.chunk_size=8 --policy.n_bins=1000 \\
    --policy.crop_box='[0.2, 0.1, 0.8, 0.9]' --out outputs/inspection

Reads all actions and one frame; no video is decoded or downloaded beyond that frame's.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    shared.add_dataset_options(parser)
    shared.add_policy_options(parser, path_required=False)
    add = parser.add_argument
    add("--episode", type=int, default=0, metavar="E", help="episode of the picture (default 0)")
    add("--frame", type=int, default=0, metavar="F", help="frame of that episode (default 0)")
    samples = "samples per GPU, for the estimates (default 8)"
    add("--batch-size", type=int, default=8, metavar="N", help=samples)
    shared.add_report_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Inspect the dataset, print what was found, and write the report."""
    from lerobot_policy_vla0.output_files import refuse_existing
    from lerobot_policy_vla0.tools.inspection import dataset, dataset_report
    from lerobot_policy_vla0.tools.loading import load_config

    if arguments.out is not None:
        refuse_existing(arguments.out)  # before the work, not after it
    inspection = dataset.inspect(
        shared.dataset_source(arguments),
        load_config(arguments.policy_path, shared.policy_overrides(arguments)),
        episode=arguments.episode,
        frame=arguments.frame,
        batch_size=arguments.batch_size,
    )
    print(json.dumps(inspection.numbers) if arguments.json else dataset_report.terminal(inspection.numbers))
    if arguments.out is not None:
        print(f"report: {dataset_report.write(inspection, arguments.out)}", file=sys.stderr)
