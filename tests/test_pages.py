"""Pages hold everything they show, and text cannot become markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_data import Page

from lerobot_policy_vla0 import pages
from lerobot_policy_vla0.errors import ConfigError


def test_a_page_is_read_back_as_it_was_meant(tmp_path: Path) -> None:
    with pages.drawing() as plt:
        figure, axis = plt.subplots()
        axis.plot([0, 1])
        png = pages.figure_png(figure)
        assert png == pages.figure_png(figure)
    evil = '<script>alert("x")</script> & "quotes"'
    file = tmp_path / "page.html"
    file.write_text(
        pages.page(
            evil,
            evil,
            [
                (evil, pages.html_table(["", "a"], [[evil, "1"]])),
                ("list", pages.html_list([evil], warnings=True) + pages.html_text(evil)),
                ("picture", pages.html_image(png, evil)),
            ],
        )
    )
    page = Page(file)
    assert page.cells == ["", "a", evil, "1"]
    assert page.pictures == [png]
    assert page.links == []
    assert page.text.count(evil) == 8  # title twice, lead, heading, cell, item, paragraph, caption


def test_markdown_tables_keep_their_columns() -> None:
    assert pages.markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_a_report_overwrites_nothing(tmp_path: Path) -> None:
    assert pages.empty_folder(tmp_path / "new" / "deep").is_dir()
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="exists already and is not empty"):
        pages.empty_folder(file)
    with pytest.raises(ConfigError, match="Name another folder"):
        pages.empty_folder(tmp_path)
    assert file.read_text() == "mine"
