"""The end of a sweep in the terminal: a ranking of settings, the page's answer, the page's path, and what is left."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from runner.report.answer.answer import answer
from runner.report.compare.run_set import RunSet
from runner.report.terminal import MAX_ROWS, print_left, print_report
from runner.runs.read import read_run, run_folders
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, write_run

SWEEP = Path("sweep")
COST = {"flops_forward": 10**9, "flops_backward": 1.3e9, "flops_share": 0.34, "saved_bytes": 64_980}
FAILED = {"status": "failed", "reason": "KeyError: 'x'", "verdict": None, "rows": (), "losses": ()}
NOT_FINITE = {"loss_not_finite_at": 2, "losses": (2.0, float("nan")), "loss_last": None}


def write(method: str, *overrides: str, accuracy: float | None = None, **record) -> None:
    """Write a run with a cost, and with this accuracy on held-out data."""
    evaluation = {} if accuracy is None else {"after": {"accuracy": accuracy, "loss": 1.0}}
    write_run(SWEEP, method, *overrides, **{"evaluation": evaluation, "cost": COST, **record})


def run_set() -> RunSet:
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)


def printed(width: int = 200, problems: Sequence[str] = ()) -> list[str]:
    """Return the lines that are printed of the runs in SWEEP."""
    out = io.StringIO()
    print_report(run_set(), SWEEP / "report.html", Console(file=out, width=width, highlight=False), problems)
    return out.getvalue().splitlines()


def test_without_accuracies_settings_are_ranked_by_what_held_and_what_it_cost():
    for seed in ("seed=0", "seed=1"):
        write("zero_lr", seed, losses=(2.0, 1.0 + int(seed[-1])))
        write("requires_grad", seed, cost=COST | {"flops_backward": 10**9, "flops_share": 0.3})
        write("zero_grad", seed, rows=LEAKED_ROWS if seed == "seed=1" else HELD_ROWS)
    lines = printed()
    assert lines[:5] == [
        "method         verdict     runs   last loss  cost      FLOPs      saved",
        "requires_grad  held           2     1.5 ± 0   30%    2 GFLOP  63.46 KiB",
        "zero_lr        held           2  1.5 ± 0.71   34%  2.3 GFLOP  63.46 KiB",
        "zero_grad      leaked 1/2     2     1.5 ± 0   34%  2.3 GFLOP  63.46 KiB",
        "last training loss, mean ± standard deviation over the seeds; cost: the FLOPs of a step, of those of training "
        "everything",
    ]
    found = answer(run_set())
    assert lines[5] == "leaked: zero_grad: in 1 of 2 runs, cause: gradient"
    assert lines[6] == f"{found.headline}. {found.sentence}"
    assert found.headline == "Use requires_grad"
    assert lines[7:] == [f"page: {Path('sweep/report.html').absolute()}"]


def test_with_accuracies_the_most_accurate_setting_is_first_with_its_spread():
    for seed, less in (("seed=0", 0.0), ("seed=1", 0.01), ("seed=2", 0.02)):
        for freeze, accuracy in (("fc", 0.8), ("backbone", 0.9)):
            write("zero_lr", f"freeze={freeze}", seed, accuracy=accuracy - less)
    lines = printed()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["zero_lr", "zero_lr"]
    assert [line.split()[1:6] for line in lines[:3]] == [
        ["freeze", "verdict", "runs", "accuracy", "cost"],
        ["backbone", "held", "3", "0.89", "±"],
        ["fc", "held", "3", "0.79", "±"],
    ]
    assert lines[4].startswith("Use zero_lr backbone. ")


def test_a_run_that_is_no_evidence_never_looks_fine():
    write("zero_lr", "freeze=fc", **NOT_FINITE)
    write("zero_lr", "freeze=head", **FAILED)
    write("zero_lr", "freeze=all", status="interrupted", reason="interrupted after step 2 of 9")
    lines = printed()
    cells = [line.split() for line in lines[1:4]]
    assert sorted(cells) == [
        ["zero_lr", "all", "interrupted", "1"],
        ["zero_lr", "fc", "loss", "not", "finite", "1", "34%", "2.3", "GFLOP", "63.46", "KiB"],
        ["zero_lr", "head", "failed", "1"],
    ]
    assert "nan" not in " ".join(lines).replace("NaN or infinite", "").lower()
    assert sum(line.startswith("interrupted: after step 2 of 9 (") for line in lines) == 1
    assert sum(line.startswith("failed: KeyError: 'x' (") for line in lines) == 1


def test_equal_reasons_are_one_line_with_the_number_of_runs():
    for seed in range(5):
        write("zero_lr", f"seed={seed}", **FAILED)
    (line,) = [line for line in printed() if line.startswith("failed:")]
    assert line.startswith("failed: KeyError: 'x' (5 runs: ")
    assert line.endswith(" and 4 more)")


@pytest.mark.parametrize("runs", [1, 3])
def test_a_long_reason_takes_a_few_lines(runs):
    for seed in range(runs):
        write("zero_lr", f"seed={seed}", **FAILED | {"reason": "ValueError: " + "x" * 900 + " at the end"})
    text = " ".join(printed(100))
    assert "ValueError:" in text
    assert "at the end" in text
    assert text.count("x") < 450


def test_of_many_settings_the_first_are_shown_and_those_that_leaked():
    for lr in range(100):
        write("zero_lr", f"optimizer.lr={lr}", rows=LEAKED_ROWS if lr % 20 == 7 else HELD_ROWS)
    lines = printed()
    explained = next(number for number, line in enumerate(lines) if line.startswith("last training loss"))
    assert explained == 25 <= MAX_ROWS  # the headings, 20 settings of which one leaked, and the other four that leaked
    assert sum(" leaked " in line for line in lines[:explained][1:]) == 5
    assert "24 of 100 settings: the first 20 and 4 that leaked or did not finish; the page has all" in lines[explained]


def test_a_setting_whose_loss_rose_is_marked_with_the_number_of_its_runs_and_the_sign_is_explained():
    for seed, loss in enumerate((3.0, 1.0, 5.0)):
        write("zero_lr", f"seed={seed}", losses=(2.0, loss))
    write("exclude", losses=(2.0, 2.5))
    write("restore", losses=(2.0, 1.0))
    lines = printed()
    assert any("3 ± 2 ↑2/3 " in line for line in lines)
    assert any(" 2.5 ↑ " in line for line in lines)
    assert sum("↑" in line for line in lines[1:4]) == 2
    assert lines[4].endswith("; ↑: the loss rose, in how many runs")


def test_the_sign_of_settings_whose_loss_rose_in_each_run_needs_no_number():
    for seed in (0, 1):
        write("exclude", f"seed={seed}", losses=(2.0, 2.5))
        write("restore", f"seed={seed}", losses=(2.0, 1.0))
    assert printed()[3].endswith("; ↑: the loss rose")


def test_that_no_setting_beats_guessing_is_a_line_of_its_own():
    for method in ("zero_lr", "exclude"):
        write(method, accuracy=0.5)
    for config in SWEEP.glob("*/.hydra/config.yaml"):
        config.write_text("model: {build: {classes: '${model.classes}'}, classes: 2}")
    assert "No run is better than guessing among 2 classes: an accuracy of 0.5." in printed()


TEN = ("requires_grad", "zero_lr", "zero_grad", "none", "exclude", "restore", "detach", "to_buffer", "grad_none")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal_but_the_path_and_no_number_is_cut(width):
    for method in (*TEN, "cached_prefix"):
        for freeze in ("fc", "backbone"):
            for seed in (0, 1):
                rows = LEAKED_ROWS if (method, seed) == ("zero_grad", 1) else HELD_ROWS
                write(method, f"freeze={freeze}", f"seed={seed}", accuracy=0.875 + seed / 100, rows=rows)
    lines = printed(width)
    assert len(lines[1].split()) >= 6
    assert sum("0.88 ± 0.0071" in line and line.endswith(("34%", "KiB", "GFLOP")) for line in lines) == 20
    assert max(len(line) for line in lines if not line.startswith("page: ")) <= width


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_of_300_characters_are_folded_and_one_run_or_one_method_is_shown_too(width):
    write("zero_lr", "freeze.patterns=[fc]", name="one", accuracy=0.5)
    assert max(len(line) for line in printed(width) if not line.startswith("page: ")) <= width
    write("zero_lr", f"freeze.patterns=[{'encoder.layers.' * 20}]", name="b" * 200, accuracy=0.75)
    write("m" * 150, "freeze.patterns=[fc]", name="c" * 200, **FAILED)
    lines = printed(width, problems=["a: " + "x" * 300])
    assert max(len(line) for line in lines if not line.startswith("page: ")) <= width
    assert [number for number in ("0.5", "0.75") if not any(number in line.split() for line in lines)] == []


@pytest.mark.parametrize("width", [60, 80, 120])
def test_settings_that_differ_in_more_than_the_method_and_the_frozen_set_fit_too(width):
    for freeze in ("fc", "backbone"):
        for lr in (0.1, 0.01):
            for seed in (0, 1, 2):
                bad = NOT_FINITE if (lr, seed) == (0.1, 2) else {}
                overrides = (f"freeze={freeze}", f"optimizer.lr={lr}", f"seed={seed}")
                write("requires_grad", *overrides, accuracy=0.817 + seed / 1000, **bad)
    lines = printed(width)
    assert max(len(line) for line in lines if not line.startswith("page: ")) <= width
    assert sum("loss not finite 1/3" in line for line in lines) == 2
    assert sum("0.818 ± 0.001" in line for line in lines) == 4
    assert ("method" in lines[0], "setting" in lines[0]) == (width == 120, True)


@pytest.mark.parametrize("width", [61, 80, 99, 100, 120])
def test_no_word_of_a_setting_is_broken_and_no_character_is_lost(width):
    patterns = "layer1.0.conv1.weight,type:BatchNorm2d,@embeddings"
    for method in ("requires_grad", "cached_prefix"):
        for decay in ("0.0001", "0.01"):
            write_run(SWEEP, method, f"freeze.patterns=[{patterns}]", f"optimizer.weight_decay={decay}")
            write_run(SWEEP, method, "freeze=backbone", f"optimizer.weight_decay={decay}", rows=LEAKED_ROWS)

    def words_at(columns: int) -> set[str]:
        """The words of the table."""
        lines = printed(columns)
        table = lines[1 : next(number for number, line in enumerate(lines) if line.startswith("last training loss"))]
        return set(re.findall(r"[^\s.,=:_]+", " ".join(table)))

    assert words_at(width) == words_at(300)


def test_what_is_left_is_counted_and_the_command_is_one_unbroken_line():
    out = io.StringIO()
    command = f"python -m runner -m method=zero_lr 'hydra.sweep.dir=it is [red]{'x' * 90}'"
    print_left(3, 24, command, Console(file=out, width=60))
    print_left(1, 24, command, Console(file=out, width=60))
    assert out.getvalue().splitlines() == [
        *("3 of 24 are not done; go on with:", command),
        *("1 of 24 is not done; go on with:", command),
    ]
