"""The phases of runs: which settings had which, over the steps that they reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runner.report.compare.run_set import RunSet
from runner.report.page import phases as page_phases
from runner.report.page.phases import phases_section
from runner.report.page.render import render_page
from runner.runs.read import read_run, run_folders
from tests.report.page.parsing import section_of, text_of
from tests.run_folders import write_run

SWEEP = Path("sweep")
TWO = [
    {"first_step": 1, "last_step": 1, "frozen": 0, "trained": 9},
    {"first_step": 2, "last_step": 4, "frozen": 3, "trained": 6},
]


def with_blocks(phase: dict, *blocks: tuple[str, bool, float | None]) -> dict:
    """A phase with the blocks (name, frozen, change)."""
    records = [{"name": name, "frozen": frozen, "factor": 1.0, "change_rel": change} for name, frozen, change in blocks]
    return {**phase, "blocks": records}


THAWED = [
    with_blocks(TWO[0], ("body", True, 0.0), ("fc", False, 0.5)),
    with_blocks(TWO[1], ("body", False, 0.01), ("fc", False, 0.02)),
]
MOVED = [THAWED[0], with_blocks(TWO[1], ("body", False, 0.03), ("fc", False, 0.04))]
OTHER = [with_blocks(TWO[0], ("body", False, 0.1), ("fc", True, 0.0)), THAWED[1]]


def run_set() -> RunSet:
    """The runs in the sweep's folder."""
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)


def test_settings_with_the_same_phases_are_a_row_with_a_strip_over_the_steps():
    for method in ("zero_lr", "none"):
        for seed in (0, 1):
            write_run(SWEEP, method, f"seed={seed}", phases=TWO)
    write_run(SWEEP, "detach", "seed=0", phases=TWO[1:])
    section = phases_section(run_set())
    ((name, spans),) = section.data["rows"]
    assert name == "none and zero_lr"
    assert [span.text for span in spans] == [
        "step 1: nothing frozen, 9 parameters trained",
        "steps 2 to 4: 3 tensors frozen, 6 parameters trained",
    ]
    assert [(span.width, span.height) for span in spans] == [(25, 0), (75, 33)]
    assert "steps 2 to 4: 3 tensors frozen" in render_page(run_set())


@pytest.mark.parametrize("phases", [[], TWO[:1]])
def test_without_a_run_of_several_phases_there_is_no_section(phases):
    write_run(SWEEP, phases=phases)
    write_run(SWEEP, "none")
    assert phases_section(run_set()) is None


@pytest.mark.parametrize(
    "wrong",
    [
        3,
        [3, None, "a"],
        [{"first_step": 1}],
        [{**TWO[0], "frozen": -1}, {**TWO[1], "last_step": "4"}],
        [{**TWO[0], "trained": 10**400}],
        [{**TWO[0], "frozen": True}, {**TWO[0], "frozen": 0.5}],
    ],
)
def test_phases_of_a_wrong_form_are_left_out(wrong):
    write_run(SWEEP, phases=wrong)
    assert read_run(run_folders(SWEEP)[0]).record["phases"] == []
    assert phases_section(run_set()) is None


def figures() -> list[tuple[str, list[list[str]]]]:
    """(heading, the words of each cell of each row) of each figure of the page."""
    drawn = section_of(run_set(), "phases").findall("figure")
    titles = [
        [[cell.get("title") for cell in row] for row in each.findall(".//span[@class='phases-cells']")] for each in drawn
    ]
    return [(each.findtext("h3"), rows) for each, rows in zip(drawn, titles, strict=True)]


def test_a_run_with_blocks_is_a_figure_of_blocks_over_steps_and_the_others_keep_their_bars():
    write_run(SWEEP, "requires_grad", "schedule=gradual", phases=THAWED)
    write_run(SWEEP, "requires_grad", "schedule=after", phases=TWO)
    ((heading, rows),) = figures()
    assert heading == "requires_grad schedule=gradual"
    assert rows == [
        ["body, step 1: frozen", "body, steps 2 to 4: moved by 1%"],
        ["fc, step 1: moved by 50%", "fc, steps 2 to 4: moved by 2%"],
    ]
    (bars,) = section_of(run_set(), "phases").findall(".//table[@id='phases']/tbody/tr")
    assert bars.findtext("th") == "requires_grad schedule=after"
    assert [item.text for item in bars.iter("li")] == [
        "step 1: nothing frozen, 9 parameters trained",
        "steps 2 to 4: 3 tensors frozen, 6 parameters trained",
    ]


def test_the_table_below_a_figure_says_the_same_as_text():
    write_run(SWEEP, phases=THAWED)
    write_run(SWEEP, "none")
    table = section_of(run_set(), "phases").find(".//table[@class='plain phases-table']")
    assert [[text_of(cell) for cell in row] for row in table.iter("tr")] == [
        ["phase", "body", "fc"],
        ["step 1", "frozen", "moved by 50%"],
        ["steps 2 to 4", "moved by 1%", "moved by 2%"],
    ]


def test_runs_of_a_setting_with_the_same_timetable_are_a_figure_of_their_mean():
    for seed, phases in enumerate((THAWED, MOVED, OTHER)):
        write_run(SWEEP, "zero_lr", f"seed={seed}", phases=phases)
    write_run(SWEEP, "none", phases=[])
    (both, other) = figures()
    assert both[0] == "zero_lr, seeds 0 and 1: mean of 2 runs"
    assert both[1][0] == ["body, step 1: frozen", "body, steps 2 to 4: moved by 2%"]
    assert other[0] == "zero_lr, seed 2"
    assert other[1][1][0] == "fc, step 1: frozen"


def test_what_a_frozen_block_moved_is_a_leak_but_under_the_baseline():
    leak = [with_blocks(TWO[0], ("body", True, 0.1), ("fc", False, 0.5)), THAWED[1]]
    for method in ("zero_grad", "none"):
        write_run(SWEEP, method, phases=leak)
    first = {heading: rows[0][0] for heading, rows in figures()}
    assert first == {
        "zero_grad": "body, step 1: frozen, but moved by 10%",
        "none": "body, step 1: declared frozen, but trained by the method: moved by 10%",
    }


def legend() -> list[str]:
    """The texts of the legend."""
    return [
        text_of(item) for item in section_of(run_set(), "phases").findall("ul[@class='heatmap-legend phases-legend']/li")
    ]


def test_the_legend_has_the_kinds_of_cells_that_are_there_and_the_changes_of_each_shade():
    write_run(SWEEP, phases=THAWED)
    assert legend() == ["frozen", "moved by less than 2%", "2% to 5%", "20% or more"]
    unusual = [
        with_blocks(TWO[0], ("body", True, 0.1), ("fc", False, 0.0)),
        with_blocks(TWO[1], ("body", False, None)),
        TWO[1],
    ]
    write_run(SWEEP, "zero_grad", phases=unusual)
    assert legend() == [
        *("frozen", "moved by less than 2%", "2% to 5%", "20% or more"),
        *("✗frozen, but moved", "0trained, but did not move", "?trained; by how much is not known", "not recorded"),
    ]


def test_on_the_page_of_one_run_the_figure_needs_no_heading_but_has_a_name():
    write_run(SWEEP, phases=THAWED)
    section = section_of(run_set(), "phases")
    assert section.find(".//h3") is None
    (drawn,) = section.findall(".//div[@role='img']")
    assert drawn.get("aria-label").startswith("Blocks, over 2 phases: ")


def test_of_many_figures_those_of_the_settings_that_rank_first_are_drawn(monkeypatch):
    for number in range(15):
        write_run(SWEEP, "zero_lr", f"optimizer.lr={number}", phases=THAWED)
    assert len(figures()) == 12
    assert "Drawn are 12 of 15 figures" in text_of(section_of(run_set(), "phases"))
    monkeypatch.setattr(page_phases, "MAX_CELLS", 11)
    assert len(figures()) == 2


def test_blocks_of_later_phases_alone_are_no_figure():
    phases = [{**TWO[0], "first_step": step, "last_step": step} for step in range(1, 99)]
    write_run(SWEEP, phases=[*phases, with_blocks({**TWO[0], "first_step": 99, "last_step": 99}, ("body", True, 0.0))])
    assert phases_section(run_set()).data["figures"] == []
    assert len(phases_section(run_set()).data["rows"]) == 1


@pytest.mark.parametrize("wrong", [3, [{}], [{"name": "body"}], [{"name": 3, "frozen": "yes", "factor": None}]])
def test_damaged_blocks_leave_the_bars(wrong):
    write_run(SWEEP, phases=[{**phase, "blocks": wrong} for phase in TWO])
    data = phases_section(run_set()).data
    assert data["figures"] == []
    assert data["rows"][0][1][0].text == "step 1: nothing frozen, 9 parameters trained"
    render_page(run_set())


def test_a_run_records_the_phases_that_it_reached(cli):
    config = ("model=mlp", "schedule=after", "schedule.step=3", "freeze=head")
    assert cli(*config, "batches=4", "hydra.run.dir=run")[0] == 0
    assert json.loads(Path("run/run.json").read_text())["phases"] == [
        {"first_step": 1, "last_step": 2, "frozen": 0, "trained": 9},
        {"first_step": 3, "last_step": 4, "frozen": 2, "trained": 7},
    ]
    assert cli("model=mlp", "freeze=head", "freeze.buffers=frozen", "batches=1", "hydra.run.dir=one")[0] == 0
    assert json.loads(Path("one/run.json").read_text())["phases"] == [
        {"first_step": 1, "last_step": 1, "frozen": 2, "trained": 7}
    ]


def test_the_page_of_a_real_run_shows_its_blocks_and_the_terminal_too(cli):
    status, printed, _ = cli("model=mlp", "freeze=all", "schedule=gradual", "batches=6", "cost=off", "hydra.run.dir=run")
    assert status == 0
    phases = json.loads(Path("run/run.json").read_text())["phases"]
    names = [block["name"] for block in phases[0]["blocks"]]
    assert len(phases) == len(names) > 2
    assert read_run(Path("run")).record["phases"] == phases
    page = Path("run/report.html").read_text()
    for number, phase in enumerate(phases, 1):
        assert [block["frozen"] for block in phase["blocks"]] == [True] * (len(names) - number) + [False] * number
        assert all((block["change_rel"] == 0) is block["frozen"] for block in phase["blocks"])
    assert f'title="{names[0]}, steps 1 to 2: frozen"' in page
    signs = [line.split()[-1] for line in printed.splitlines() if line.strip().startswith(tuple(names))]
    assert signs == ["..#", ".##", "###"]
