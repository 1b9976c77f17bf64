"""A Markdown table shows what its cells are, whatever is in a name; read back by a parser of GitHub's Markdown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.text import Text

from runner.display.markdown import as_text, markdown_table, print_markdown
from runner.display.table import Column, number

COLUMNS = [Column("name"), Column("verdict"), Column("cause"), number("moved")]
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
SHOWN = {"text", "code_inline", "softbreak", "html_inline"}
NAMES = [
    *("layer1.0.bn1.weight", "a|b", "re:(layer1|fc)\\..*", "re:a\\|b", "**.bias", "layer*.*.bn?", "type:BatchNorm2d"),
    *("__init__", "_x_", "zero_lr", "a__b", "a `quoted` name", "``", "<b>bold</b>", "<!-- gone -->", "&amp;", "&#124;"),
    *("[link](http://x)", "![picture](x)", "~~gone~~", "$x$", "two\nlines", "a\r\nb", "tab\tbed", "@head", "#12", ":x:"),
    *("ends with \\", "\\", "|", "||", "a\\\\|b", "`|`", "ünï", "数", "34%", "<0.1%", ">99.9%", "1.5 ± 0.71", "- x", "!7"),
]


def shown(token: Token) -> str:
    """Return what a reader sees of a piece of text; of HTML in it there may be no tag but that of code."""
    children = token.children or []
    assert {child.type for child in children} <= SHOWN, [child.type for child in children]
    assert {child.content for child in children if child.type == "html_inline"} <= {"<code>", "</code>"}
    return "".join(child.content for child in children if child.type != "html_inline")


def cells_of(markdown: str) -> list[list[str]]:
    """Return the cells of a table, row by row; there may be nothing else."""
    tokens = PARSER.parse(markdown)
    assert [token.type for token in tokens if token.level == 0] == ["table_open", "table_close"]
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            rows[-1].append(shown(token))
    return rows


def test_a_table_has_a_line_of_headings_one_of_sides_and_one_for_each_row():
    rows = [["fc.weight", Text("leaked", style="red"), "weight_decay|optimizer_state", "25%"], ["a.*", "held", "", "0%"]]
    assert markdown_table(COLUMNS, rows).splitlines() == [
        "| name | verdict | cause | moved |",
        "| --- | --- | --- | ---: |",
        "| fc.weight | leaked | <code>weight&#95;decay&#124;optimizer&#95;state</code> | 25% |",
        "| `a.*` | held |  | 0% |",
    ]


def test_what_is_empty_in_all_rows_is_no_column_and_no_rows_are_no_table():
    assert markdown_table(COLUMNS, [["fc", "held", "", ""]]).splitlines()[0] == "| name | verdict |"
    assert markdown_table(COLUMNS, []) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reads_as_it_is_and_stays_in_its_cell(name):
    assert cells_of(markdown_table(COLUMNS, [[name, "held", "x", "1"]]))[1:] == [[" ".join(name.split()), "held", "x", "1"]]


@given(st.text(min_size=1).filter(lambda text: text.split() and text.isprintable()))
def test_any_printable_text_reads_as_it_is(text):
    assert cells_of(markdown_table(COLUMNS[:2], [["first", text]]))[1:] == [["first", " ".join(text.split())]]


@pytest.mark.parametrize(
    "text", ["@head", "freeze=@head,fc", "see #12", "@someone/team", "owner/name#3", "!7", "~label", "%2"]
)
def test_what_would_notify_people_or_refer_to_an_issue_is_code(text):
    (inline,) = (token for token in PARSER.parse(f"It says {as_text(text)}.") if token.type == "inline")
    plain = "".join(child.content for child in inline.children or [] if child.type == "text")
    assert not set("@#!~%") & set(plain)


@pytest.mark.parametrize(
    "text", ["Use zero_lr. It costs 34% (<0.1% of a step), with clip=1.0: KeyError: 'x'", "1.5 ± 0.7 ↑2/3"]
)
def test_plain_words_stay_as_they_are(text):
    assert as_text(text) == text


def test_what_is_printed_is_utf_8_also_a_name_of_other_bytes(capfdbinary):
    print_markdown("± \udcff")
    assert capfdbinary.readouterr().out == "± ?\n".encode()
