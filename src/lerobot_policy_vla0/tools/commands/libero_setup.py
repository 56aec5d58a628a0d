"""The arguments of ``vla0 libero-setup``, which configures LIBERO and checks its assets."""

from __future__ import annotations

import argparse
from pathlib import Path

from lerobot_policy_vla0.errors import LiberoError
from lerobot_policy_vla0.tools.libero.assets import SUITES

_EXAMPLES = """\
write the configuration, link the assets of the extra libero-assets, and see whether everything is there:
  vla0 libero-setup

other assets, in a folder of yours:
  vla0 libero-setup --assets /data/libero/assets --link
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EXAMPLES
    add = parser.add_argument
    add("--assets", type=Path, metavar="DIR", help="folder with LIBERO's assets (default: found)")
    link = "link ~/.cache/libero/assets, where LIBERO looks, to --assets; never replaces anything"
    add("--link", action="store_true", help=link)
    folder = "folder for config.yaml (default: $LIBERO_CONFIG_PATH, or ~/.libero)"
    add("--config-dir", type=Path, metavar="DIR", help=folder)
    checked = "check this suite's assets only; repeat it (default: all five)"
    add("--suite", action="append", choices=SUITES, help=checked)


def run(arguments: argparse.Namespace) -> None:
    """Set LIBERO up and print what was found.

    Raises:
        LiberoError: if LIBERO cannot be set up, a suite lacks files, or LIBERO would not load the given assets.
    """
    from lerobot_policy_vla0.tools.libero import setup as libero

    suites = tuple(dict.fromkeys(arguments.suite or SUITES))
    setup = libero.set_up(arguments.assets, arguments.config_dir, suites, arguments.link)
    print(f"configuration  {setup.config_file} ({'written' if setup.config_written else 'was there'})")
    if setup.linked is not None:
        print(f"linked         {setup.linked} -> {setup.linked.resolve()}")
    if setup.on_hub:
        cache = libero.cache_folder()
        print(f"assets         on the Hub ({libero.HUB_REPO}): LIBERO fetches them to {cache} on first use")
    else:
        print(f"assets         {arguments.assets or setup.assets}")
    for suite, files in setup.missing.items():
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        print(f"  {suite:<14} {f'lacks {", ".join(files[:3])}{more}' if files else 'complete'}")
    print("before lerobot-eval and lerobot-train:")
    if setup.config_file.parent != libero.config_folder():
        print(f"  export {libero.CONFIG_VARIABLE}={setup.config_file.parent.resolve()}")
    print("  export MUJOCO_GL=egl")
    if setup.notes:
        raise LiberoError(" ".join(setup.notes))
    if setup.incomplete:
        raise LiberoError(
            f"{', '.join(setup.incomplete)} cannot run: files are missing, see above. "
            f"{libero.how_to_complete(setup.assets)}, or check other suites only (--suite)."
        )
