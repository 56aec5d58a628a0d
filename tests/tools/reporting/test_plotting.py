"""Pictures are the same on every desk, and drawing them changes nothing for anybody else."""

from __future__ import annotations

import matplotlib

from lerobot_policy_vla0.tools.reporting import plots as plotting


def draw() -> bytes:
    with plotting.new_figure(2, 1) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], label="$a$")
        axes.set_title("costs $1 and $2")
        figure.legend(loc="outside upper center")
        return plotting.png(figure)


def test_a_users_settings_do_not_change_the_bytes() -> None:
    plain = draw()
    assert plain.startswith(b"\x89PNG") and plain == draw()
    theirs = {"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 20, "savefig.transparent": True}
    with matplotlib.rc_context(theirs):  # type: ignore[arg-type]
        assert draw() == plain


def test_settings_and_backend_stay_a_users() -> None:
    before = dict(matplotlib.rcParams)
    draw()
    assert dict(matplotlib.rcParams) == before
