"""The figure of blocks over steps: what a cell says, the shades, the labels of the axis, and what is left out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from runner.report.figures.blocks import (
    MAX_BLOCKS,
    MAX_NAME,
    MAX_PHASES,
    BlockCell,
    block_figure,
    mean_phases,
    shades_for,
    timetable,
)


def block(name="layer1", frozen=False, change=0.02, factor=1.0):
    """A block of a phase as `run.json` has it."""
    return {"name": name, "frozen": frozen, "factor": factor, "change_rel": change}


def phase(first, last, *blocks):
    """A phase as `run.json` has it, with blocks; without them it has no key `blocks`."""
    return {"first_step": first, "last_step": last, "frozen": 1, "trained": 1} | ({"blocks": [*blocks]} if blocks else {})


def cell(*blocks, by_design=False) -> BlockCell:
    """The cell of the only row and the only phase of a figure; of several blocks, that of blocks drawn in one row."""
    rest = [block(f"rest.{number}") for number in range((len(blocks) - 1) * MAX_BLOCKS)]
    phases = [phase(1, 4, *blocks, *rest)]
    return block_figure(phases, shades_for([phases]), by_design).rows[0][0]


@pytest.mark.parametrize(
    ("shown", "kind", "text", "words"),
    [
        (block(frozen=True, change=0.0), "frozen", "", "frozen"),
        (block(frozen=True, change=None), "frozen", "?", "frozen; whether it moved is not known"),
        (block(frozen=True, change=0.003), "bad", "✗0.3%", "frozen, but moved by 0.3%"),
        (block(change=0.02346), "h3", "2.3%", "moved by 2.35%"),
        (block(change=0.02, factor=0.25), "h3", "2%", "moved by 2%, at 0.25 times the scheduled rate"),
        (block(change=0.0), "idle", "0", "trained, but did not move"),
        (
            block(change=0.0, factor=0.0),
            "idle",
            "0",
            "trained, but did not move, at 0 times the scheduled rate",
        ),
        (block(change=None), "hx", "?", "trained; by how much is not known"),
    ],
)
def test_a_cell_says_whether_a_block_was_frozen_and_how_far_it_moved(shown, kind, text, words):
    assert cell(shown) == BlockCell(kind, text, words)


def test_under_a_method_that_trains_what_is_declared_frozen_nothing_leaks():
    words = "declared frozen, but trained by the method: moved by 2%"
    assert cell(block(frozen=True), by_design=True) == BlockCell("h3", "2%", words)
    assert cell(block(), by_design=True).words == "moved by 2%"


def test_blocks_that_share_a_row_show_the_largest_change_of_those_that_trained():
    frozen = block("a", frozen=True, change=0.0)
    assert cell(frozen, block("b")) == BlockCell("h3 mixed", "", "1 of 2 frozen, the others moved by 2%")
    both = cell(block("a", change=0.001, factor=0.5), block("b", factor=1.0))
    assert both.words == "moved by 2%, at 0.5 to 1 times the scheduled rate"
    assert cell(frozen, block("b", frozen=True, change=0.0)).words == "frozen"
    assert cell(block("a", frozen=True, change=0.1), block("b")).words == "1 of 2 frozen, but moved by 10%"
    assert cell(block("a", change=None), block("b")).kind == "hx"


def test_rows_go_from_the_input_to_the_head_and_cells_without_a_record_say_so():
    phases = [phase(1, 2, block("a"), block("b")), phase(3, 4), phase(5, 6, block("a"), block("b"), block("c"))]
    figure = block_figure(phases, shades_for([phases]))
    assert [name for _, name in figure.names] == ["a", "b", "c"]
    assert [[cell.kind for cell in row] for row in figure.rows] == [
        ["h3", "unknown", "h3"],
        ["h3", "unknown", "h3"],
        ["unknown", "unknown", "h3"],
    ]
    assert figure.rows[0][1].words == "not recorded"
    assert figure.phases == [(2, "steps 1 to 2"), (2, "steps 3 to 4"), (2, "steps 5 to 6")]
    assert figure.left_out == ""


def test_shades_divide_the_changes_on_a_logarithmic_scale_at_round_numbers():
    shades = shades_for([[phase(1, 2, block(change=0.001), block("b", change=1.0))], [phase(1, 2, block(change=None))]])
    assert shades.bounds == (0.004, 0.02, 0.06, 0.3)
    assert [shades.of(change) for change in (0.001, 0.004, 0.05, 0.06, 5.0)] == ["h1", "h2", "h3", "h4", "h5"]
    assert shades.legend == [
        ("h1", "less than 0.4%"),
        ("h2", "0.4% to 2%"),
        ("h3", "2% to 6%"),
        ("h4", "6% to 30%"),
        ("h5", "30% or more"),
    ]


@pytest.mark.parametrize(
    ("changes", "legend"),
    [
        ([0.02], [("h3", "2%")]),
        ([0.0201, 0.0209], [("h3", "2.01% to 2.09%")]),
        ([0.02, 0.035], [("h2", "less than 3%"), ("h4", "3% or more")]),
        ([0.0, None], []),
        ([1e-320, 1e300], [("h3", "1e-318% to 1e+302%")]),
    ],
)
def test_changes_that_are_near_each_other_have_few_shades(changes, legend):
    assert shades_for([[phase(1, 1, *(block(change=change) for change in changes))]]).legend == legend


def test_a_change_that_is_far_from_all_others_does_not_take_their_shades():
    changes = [0.001, 0.003, 0.01, 1e29]
    shades = shades_for([[phase(1, 1, *(block(change=change) for change in changes))]])
    assert (shades.least, shades.most) == (0.001, 0.01)
    assert len({shades.of(change) for change in changes[:3]}) == 3
    assert shades.of(1e29) == "h5"


def labels(phases, on_a_phone=False) -> list[tuple[float, str]]:
    """The labels of the axis that are shown on a desk, or on a phone."""
    ticks = block_figure(phases, shades_for([phases])).ticks
    return [(tick.place, tick.text) for tick in ticks if tick.has_room or not on_a_phone]


def test_the_axis_is_labelled_where_phases_begin_and_at_its_end():
    phases = [phase(1, 10, block()), phase(11, 20, block()), phase(21, 40, block())]
    assert labels(phases) == labels(phases, on_a_phone=True) == [(0, "1"), (25, "11"), (50, "21"), (100, "40")]


def test_labels_keep_clear_of_each_other():
    phases = [phase(step, step, block()) for step in range(1, 31)]
    for on_a_phone, character in ((False, 1.2), (True, 3.7)):
        found = labels(phases, on_a_phone)
        assert len(found) >= (12, 5)[on_a_phone]
        for (place, text), (next_place, next_text) in pairwise(found):
            room = next_place - place - (character * len(next_text) if next_text == "30" else 0)
            assert room > character * len(text)


def test_many_blocks_are_drawn_in_groups_of_neighbours():
    names = ["embed", *(f"model.layers.{number}" for number in range(2 * MAX_BLOCKS)), "norm..head"]
    phases = [phase(1, 9, *(block(name, change=0.01 * (name == "model.layers.1")) for name in names))] * 2
    figure = block_figure(phases, shades_for([phases]))
    assert [name for _, name in figure.names[:2]] == ["embed to model.layers.1", "model.layers.2 to 4"]
    assert len(figure.names) == len(figure.rows) == math.ceil(len(names) / 3) <= MAX_BLOCKS
    assert [row[0].words for row in figure.rows[:2]] == ["moved by 1%", "trained, but did not move"]
    assert figure.left_out == "A row is 3 neighbours of 82 blocks, with the largest change of those that trained."


def test_of_many_phases_the_first_are_drawn():
    phases = [phase(2 * number + 1, 2 * number + 2, block()) for number in range(300)]
    figure = block_figure(phases, shades_for([phases]))
    assert len(figure.phases) == len(figure.rows[0]) == MAX_PHASES
    assert figure.ticks[-1].text == "120"
    assert figure.left_out == "Drawn are the first 60 of 300 phases, up to step 120 of 600."


def test_of_a_long_name_the_end_is_shown_from_one_of_its_parts_on():
    names = ["vision_tower.encoder.layers.11", "x" * 99 + "1", "model.embed_tokens_of_text", "a.b"]
    figure = block_figure([phase(1, 1, *(block(name) for name in names))], shades_for([]))
    shown = ["…encoder.layers.11", f"…{'x' * (MAX_NAME - 2)}1", "…embed_tokens_of_text", "a.b"]
    assert figure.names == list(zip(shown, names, strict=True))


def test_the_mean_over_runs_is_that_of_each_change_and_unknown_if_one_is():
    runs = [
        [phase(1, 2, block("a", change=0.1), block("b", change=None)), phase(3, 4)],
        [phase(1, 2, block("a", change=0.3), block("b", change=0.5)), phase(3, 4)],
    ]
    (first, second) = mean_phases(runs)
    assert [each["change_rel"] for each in first["blocks"]] == [pytest.approx(0.2), None]
    assert second == phase(3, 4)
    assert runs[0][0]["blocks"][0]["change_rel"] == 0.1
    assert mean_phases([[phase(1, 1, block(change=1.7e308))]] * 3)[0]["blocks"][0]["change_rel"] == pytest.approx(1.7e308)


def test_runs_have_the_same_timetable_if_they_differ_in_the_changes_alone():
    one = [phase(1, 2, block(change=0.1))]
    assert timetable(one) == timetable([phase(1, 2, block(change=None))])
    for other in (phase(1, 3, block()), phase(1, 2, block(frozen=True)), phase(1, 2, block(factor=2.0)), phase(1, 2)):
        assert timetable(one) != timetable([other])


def test_phases_that_make_no_sense_are_drawn_with_a_step():
    phases = [phase(9, 3, block()), phase(0, 2**53 - 1, block()), phase(4, 4, block())]
    assert [steps for steps, _ in block_figure(phases, shades_for([phases])).phases] == [1, 2**53, 1]
