"""The matrix of methods by what is frozen: a cell is the runs that differ only in the seed."""

from __future__ import annotations

from pathlib import Path

from runner.report.compare.run_set import RunSet
from runner.report.page.matrix import matrix_section
from runner.report.terminal import verdict_text
from runner.runs.read import read_run, run_folders
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, write_run

SWEEP = Path("sweep")


def matrix() -> dict:
    """Return the data of the matrix of the runs in SWEEP."""
    section = matrix_section(RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP))
    assert section is not None
    return section.data


def cells() -> dict[tuple[str, str], tuple]:
    """Return {(method, what is frozen): (verdict, value, cost)} of the cells that were run."""
    data = matrix()
    return {
        (name, column): (f"{cell.sign} {cell.verdict}", cell.value, cell.cost)
        for name, row in data["rows"]
        for column, cell in zip(data["columns"], row, strict=True)
        if cell
    }


def test_a_cell_has_the_verdict_of_all_seeds_the_mean_loss_with_its_spread_and_the_cost():
    cost = {"flops_share": 0.341}
    for seed, loss in enumerate((1.0, 2.0, 3.0)):
        write_run(SWEEP, "requires_grad", "freeze=backbone", f"seed={seed}", losses=(9.0, loss), cost=cost)
        write_run(SWEEP, "none", "freeze=fc", f"seed={seed}", losses=(9.0, 4.0), rows=LEAKED_ROWS if seed else HELD_ROWS)
    assert cells() == {
        ("requires_grad", "backbone"): ("✓ held in 3 of 3", "loss 2 ± 1", "34%"),
        ("none", "fc"): ("· baseline", "loss 4 ± 0", ""),
    }


def test_a_cell_without_several_seeds_has_no_spread_and_one_of_a_failed_run_no_value():
    write_run(SWEEP, "zero_lr", "freeze=fc", losses=(2.0, 1.5))
    write_run(SWEEP, "detach", "freeze=fc", status="failed", reason="x", verdict=None, rows=(), losses=())
    write_run(SWEEP, "restore", "freeze=fc", loss_last=None, loss_not_finite_at=2)
    assert cells() == {
        ("zero_lr", "fc"): ("✓ held", "loss 1.5", ""),
        ("detach", "fc"): ("– failed", "", ""),
        ("restore", "fc"): ("! loss not finite", "", ""),
    }


def test_a_run_in_progress_is_running_and_not_failed():
    for seed in (0, 1):
        write_run(SWEEP, "zero_lr", "freeze=fc", f"seed={seed}")
        folder = write_run(SWEEP, "exclude", "freeze=fc", f"seed={seed}")
        (folder / "run.json").rename(folder / ".running")
    assert {place: verdict for place, (verdict, _, _) in cells().items()} == {
        ("zero_lr", "fc"): "✓ held in 2 of 2",
        ("exclude", "fc"): "… running in 2 of 2",
    }
    (row,) = (row for row in matrix()["rows"] if row[0] == "exclude")
    assert row[1][0].kind == "running"


def test_where_accuracies_can_be_compared_they_stand_in_place_of_losses_and_a_ranking_follows():
    for seed, accuracy in enumerate((0.5, 0.7)):
        evaluation = {"after": {"accuracy": accuracy}}
        write_run(SWEEP, "zero_lr", "freeze=fc", f"seed={seed}", evaluation=evaluation)
        write_run(SWEEP, "zero_lr", "freeze=backbone", f"seed={seed}", evaluation=evaluation)
    assert {value for _, value, _ in cells().values()} == {"0.6 ± 0.14"}
    assert len(matrix()["ranking"].rows) == 2


def test_what_else_differs_stands_beside_the_method_so_that_a_cell_differs_in_the_seed_alone():
    for lr in ("0.1", "0.2"):
        for seed in (0, 1):
            write_run(SWEEP, "zero_lr", "freeze=fc", f"optimizer.lr={lr}", f"seed={seed}")
    assert set(cells()) == {("zero_lr optimizer.lr=0.1", "fc"), ("zero_lr optimizer.lr=0.2", "fc")}
    assert {verdict for verdict, _, _ in cells().values()} == {"✓ held in 2 of 2"}


def test_patterns_from_the_command_line_or_the_config_name_what_is_frozen_where_no_file_does():
    write_run(SWEEP, "zero_lr", 'freeze.patterns=["layer1"]')
    folder = write_run(SWEEP, "exclude")
    (folder / ".hydra" / "config.yaml").write_text("freeze:\n  patterns: ['**']\n  keep: ['@head']\n")
    write_run(SWEEP, "detach", "freeze=fc", "freeze.buffers=frozen")
    assert {column for _, column in cells()} == {'"layer1"', "** without @head", "fc buffers=frozen"}


def test_each_cell_links_to_the_first_run_of_its_setting():
    from runner.report.page.runs import runs_table

    for method in ("zero_lr", "exclude"):
        for seed in (0, 1):
            write_run(SWEEP, method, "freeze=fc", f"seed={seed}")
    run_set = RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)
    table = runs_table(run_set)
    first = {row_id: row[0].text for row_id, row in zip(table.ids, table.rows, strict=True) if row_id}
    for name, (cell,) in matrix()["rows"]:
        assert first[cell.link.removeprefix("#")].startswith(f"{name}__backbone__s0")


def test_a_run_links_to_its_folder_relative_to_the_page_and_a_name_is_quoted_for_an_address():
    write_run(SWEEP, "zero_lr", name="50% #1?")
    write_run(SWEEP, "exclude")
    run_set = RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)
    links = {run.label: run_set.link(run) for run in run_set.runs}
    assert links["50% #1?"] == "50%25%20%231%3F/"
    assert run_set.link(run_set.runs[0], "runner.log").endswith("/runner.log")


def test_where_nothing_or_everything_is_frozen_a_cell_says_so_and_is_no_green_held():
    rows = {
        "none": [change_row("body.weight", "trained", 0.5)],
        "all": [change_row("body.weight", "held")],
        "fc": HELD_ROWS,
    }
    for freeze, its in rows.items():
        write_run(SWEEP, "requires_grad", f"freeze={freeze}", rows=its)
    assert {column: cell[0] for (_, column), cell in cells().items()} == {
        "none": "· nothing frozen",
        "all": "· all frozen",
        "fc": "✓ held",
    }
    settings = RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP).settings
    assert {verdict_text(each) for each in settings} == {"nothing frozen", "all frozen", "held"}


def test_a_setting_whose_loss_rose_is_marked_and_stays_held():
    for seed, loss in enumerate((3.0, 1.0, 4.0)):
        write_run(SWEEP, "zero_lr", f"seed={seed}", losses=(2.0, loss))
    write_run(SWEEP, "exclude", losses=(2.0, 1.0))
    found = {name: (cell.kind, cell.rose) for name, (cell,) in matrix()["rows"]}
    assert found == {"zero_lr": ("held", "↑ loss rose in 2 of 3"), "exclude": ("held", "")}


def test_where_no_setting_beats_guessing_a_quiet_line_says_so():
    config = "model: {build: {classes: '${model.classes}'}, classes: 4}\n"
    for method, accuracy in (("zero_lr", 0.25), ("exclude", 0.1)):
        folder = write_run(SWEEP, method, evaluation={"after": {"accuracy": accuracy}})
        (folder / ".hydra" / "config.yaml").write_text(config)
    assert matrix()["chance"] == "No run is better than guessing among 4 classes: an accuracy of 0.25."
    write_run(SWEEP, "none", evaluation={"after": {"accuracy": 0.3}})
    assert matrix()["chance"] == ""
