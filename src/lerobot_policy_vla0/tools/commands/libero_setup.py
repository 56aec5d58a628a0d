"""``vla0 libero-setup``: LIBERO without its questions, and a look at its assets. Arguments only."""

from __future__ import annotations

import argparse
from pathlib import Path

from lerobot_policy_vla0.tools.libero.assets import SUITES

_EXAMPLES = """\
write the configuration and see whether everything is there:
  vla0 libero-setup

a machine without network, with the assets in a folder:
  vla0 libero-setup --assets /data/libero/assets --link
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--assets", type=Path, metavar="DIR", help="folder with LIBERO's assets")
    parser.add_argument(
        "--link",
        action="store_true",
        help="link ~/.cache/libero/assets, where LIBERO looks, to --assets; never replaces anything",
    )
    parser.add_argument(
        "--config-dir",
        type=Path,
        metavar="DIR",
        help="folder for config.yaml (default: $LIBERO_CONFIG_PATH, or ~/.libero)",
    )
    parser.add_argument(
        "--suite",
        action="append",
        choices=SUITES,
        help="check this suite's assets only; repeat it (default: all four)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Set up, print what was found, and fail if a suite asked for cannot run.

    Raises:
        LiberoError: see `lerobot_policy_vla0.tools.libero.setup.set_up`; or suites lack files, or assets would not be loaded.
    """
    from lerobot_policy_vla0.errors import LiberoError
    from lerobot_policy_vla0.tools.libero.setup import (
        CONFIG_VARIABLE,
        HUB_REPO,
        cache_folder,
        config_folder,
        set_up,
    )

    suites = tuple(dict.fromkeys(arguments.suite or SUITES))
    setup = set_up(arguments.assets, arguments.config_dir, suites, arguments.link)
    print(f"configuration  {setup.config_file} ({'written' if setup.config_written else 'was there'})")
    if setup.linked is not None:
        print(f"linked         {setup.linked} -> {setup.linked.resolve()}")
    if setup.on_hub:
        print(f"assets         on the Hub ({HUB_REPO}): LIBERO fetches them to {cache_folder()} on first use")
    else:
        print(f"assets         {arguments.assets or setup.assets}")
    for suite, files in setup.missing.items():
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        print(f"  {suite:<14} {f'lacks {", ".join(files[:3])}{more}' if files else 'complete'}")
    print("before lerobot-eval and lerobot-train:")
    if setup.config_file.parent != config_folder():
        print(f"  export {CONFIG_VARIABLE}={setup.config_file.parent.resolve()}")
    print("  export MUJOCO_GL=egl")
    if setup.notes:
        raise LiberoError(" ".join(setup.notes))
    if setup.incomplete:
        raise LiberoError(
            f"{', '.join(setup.incomplete)} cannot run: files are missing, see above. Fetch them with "
            f"`hf download {HUB_REPO} --repo-type dataset --local-dir DIR` and run `vla0 libero-setup --assets DIR "
            "--link`, or check other suites only (--suite)."
        )
