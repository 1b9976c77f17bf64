"""A table fits any width: columns go by rank, texts are folded, and no number is cut."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from rich.text import Text

from runner.display.table import Column, folded, number, table_lines

COLUMNS = [
    *(Column("setting", least=16), Column("verdict")),
    *(number("accuracy"), number("a step", 1), Column("cause", 2, least=9)),
]
ROWS = [
    ["requires_grad backbone", Text("held", style="green"), "0.91 ± 0.02", "2.295 GFLOP", ""],
    ["zero_lr layer4.0.downsample.1.num_batches_tracked", "leaked", "0.5", "1.3 MFLOP", "weight_decay|optimizer_state"],
]


def texts(width: int, rows=ROWS) -> list[str]:
    return [line.plain for line in table_lines(COLUMNS, rows, width)]


def test_at_120_columns_all_is_shown_on_one_line_each():
    assert texts(130) == [
        "setting                                            verdict     accuracy       a step  cause",
        "requires_grad backbone                             held     0.91 ± 0.02  2.295 GFLOP",
        "zero_lr layer4.0.downsample.1.num_batches_tracked  leaked           0.5    1.3 MFLOP  weight_decay|optimizer_state",
    ]


def test_at_60_columns_texts_are_folded_and_the_column_of_the_highest_rank_is_dropped():
    assert texts(60) == [
        "setting                    verdict     accuracy       a step",
        "requires_grad backbone     held     0.91 ± 0.02  2.295 GFLOP",
        "zero_lr layer4.0.          leaked           0.5    1.3 MFLOP",
        "downsample.1.num_batches_",
        "tracked",
    ]


@pytest.mark.parametrize("width", range(38, 140, 3))
def test_no_line_is_wider_than_the_table_may_be_and_no_number_is_cut(width):
    lines = texts(
        width, [*ROWS, ["x" * 300, "held", "0.123456", "999.9 GFLOP", "y " * 90], ["数" * 200, "held", "", "", ""]]
    )
    assert max(map(cell_len, lines)) <= width
    assert all(any(value in line for line in lines) for value in ("0.91 ± 0.02", "0.5", "0.123456", "leaked"))
    assert ("a step" in lines[0]) == any("999.9 GFLOP" in line for line in lines)


def test_a_column_that_is_empty_in_all_rows_is_not_shown():
    assert texts(120, ROWS[:1])[0].split() == ["setting", "verdict", "accuracy", "a", "step"]
    assert texts(120, []) == [""] or not "".join(texts(120, []))


def test_a_colour_stays_with_its_cell():
    line = table_lines(COLUMNS, ROWS, 120)[1]
    assert [(line.plain[span.start : span.end], span.style) for span in line.spans] == [("held", "green")]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("one two three", 8, ["one two", "three"]),
        ("layer4.0.downsample.1.bias", 12, ["layer4.0.", "downsample.", "1.bias"]),
        ("lr=0.125 and 1e-05", 9, ["lr=0.125", "and 1e-05"]),
        ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
        ("a" * 12 + "b" * 12, 10, ["a" * 10, "aa" + "b" * 8, "bbbb"]),
        ("weight_decay|optimizer_state", 16, ["weight_decay|", "optimizer_state"]),
        ("", 5, [""]),
    ],
)
def test_a_text_is_broken_at_spaces_else_after_a_sign_else_anywhere(text, width, lines):
    assert folded(text, width) == lines


def test_only_a_text_of_more_than_200_characters_loses_its_middle():
    assert "".join(folded("ab.c" * 50, 10)) == "ab.c" * 50
    assert "".join(folded("a" * 300 + "b" * 300, 10)) == "a" * 99 + "…" + "b" * 100


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (26, ["freeze       verdict  cost", "@embeddings  held      34%", "a:layer.     leaked   100%", "bias"]),
        (24, ["freeze        verdict", "@embeddings   held", "a:layer.bias  leaked"]),
        (19, ["freeze      verdict", "@embedding  held", "s", "a:layer.    leaked", "bias"]),
    ],
)
def test_columns_of_a_higher_rank_are_dropped_before_a_word_is_broken(width, lines):
    columns = [Column("freeze", least=8), Column("verdict"), number("cost", 1)]
    rows = [["@embeddings", "held", "34%"], ["a:layer.bias", "leaked", "100%"]]
    assert [line.plain for line in table_lines(columns, rows, width)] == lines
