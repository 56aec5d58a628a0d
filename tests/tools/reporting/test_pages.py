"""Pages hold everything they show, and text cannot become markup."""

from __future__ import annotations

from pathlib import Path

from helpers.made_up_data import Page

from lerobot_policy_vla0.tools.reporting import pages
from lerobot_policy_vla0.tools.reporting.pages import Table

PNG = b"\x89PNG and so on"


def test_a_page_is_read_back_as_it_was_meant(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script> & "quotes"'
    file = tmp_path / "page.html"
    table = Table(["", "a", "b"], [[evil, "1", "<b>2</b>"]])
    file.write_text(
        pages.page(
            evil,
            evil,
            [
                (evil, pages.html_table(table, evil, markup=(2,))),
                ("list", pages.html_list([evil], warnings=True) + pages.html_text(evil, name="note")),
                ("picture", pages.html_image(PNG, evil)),
            ],
        )
    )
    page = Page(file)
    assert page.tables == {evil: [["", "a", "b"], [evil, "1", "2"]]}
    assert page.pictures == [PNG]
    assert page.links == []
    assert page.text.count(evil) == 8  # title twice, lead, heading, cell, item, paragraph, caption


def test_numbers_line_up_on_the_right_and_text_on_the_left() -> None:
    table = Table(["a", "b", "c"], [["x|y", "1", "one"]], text=(2,))
    assert pages.markdown_table(table).splitlines() == [
        "| a    |   b | c   |",
        "| ---- | --: | --- |",
        "| x\\|y |   1 | one |",
    ]
    assert pages.text_table(table).splitlines() == ["a    | b  c", "x|y  | 1  one"]
    assert "<th>b</th><th class=text>c</th>" in pages.html_table(table)
    assert "<td>1</td><td class=text>one</td>" in pages.html_table(table)
