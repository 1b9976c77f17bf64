"""The curves of losses, accuracy and learning rates: one a setting, with its band, its mark for NaN, and its legend."""

from __future__ import annotations

import math
import re
from itertools import combinations
from pathlib import Path

import pytest

from runner.report.compare.run_set import RunSet
from runner.report.figures.axis import axis_for
from runner.report.figures.palette import COLOURS, MARKERS, method_colours, method_markers
from runner.report.page.losses import losses_section
from runner.report.page.render import render_page
from runner.runs.read import read_run, run_folders
from tests.report.page.test_styles import contrast, themes
from tests.run_folders import write_run

SWEEP = Path("sweep")


def run_set() -> RunSet:
    """The runs in the sweep's folder."""
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP)


def figures() -> dict:
    """{name: figure} of the section."""
    section = losses_section(run_set())
    return {figure.name: figure for figure in section.data["figures"]} if section else {}


def curves(name: str = "Training loss") -> dict:
    """{curve name: curve} of a figure."""
    return {drawn.curve.name: drawn.curve for drawn in figures()[name].chart.curves}


def test_a_curve_is_the_mean_of_a_settings_runs_and_its_band_their_range():
    for seed, losses in enumerate(((4.0, 1.0), (2.0, 3.0))):
        write_run(SWEEP, "zero_lr", f"seed={seed}", losses=losses)
    (curve,) = curves().values()
    assert curve.name == "zero_lr (2 runs)"
    assert curve.points == [(1, 3, 2, 4), (2, 2, 1, 3)]
    assert "A line is the mean over the runs of a setting" in figures()["Training loss"].caption


def test_one_run_has_a_line_without_a_band_and_nothing_is_said_about_means():
    write_run(SWEEP)
    (drawn,) = figures()["Training loss"].chart.curves
    assert drawn.curve.name.endswith("(1 run)")
    assert drawn.line
    assert not drawn.band
    assert "mean" not in figures()["Training loss"].caption


def test_a_mean_is_only_over_steps_that_every_finished_run_has():
    write_run(SWEEP, "zero_lr", "seed=0", losses=(4.0, 1.0, 9.0))
    write_run(SWEEP, "zero_lr", "seed=1", losses=(2.0, 3.0))
    write_run(SWEEP, "zero_lr", "seed=2", losses=(1e6,), status="interrupted")
    (curve,) = curves().values()
    assert curve.points == [(1, 3, 2, 4), (2, 2, 1, 3)]


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_where_a_loss_became_nan_or_infinite_is_marked_and_said_with_the_step(lost):
    write_run(SWEEP, "zero_lr", "seed=0", losses=(4.0, 3.0, lost, 1.0))
    write_run(SWEEP, "zero_lr", "seed=1", losses=(4.0, 3.0, 2.0, 1.0))
    (drawn,) = figures()["Training loss"].chart.curves
    assert drawn.curve.lost == 3
    assert drawn.lost
    assert [point[1] for point in drawn.curve.points] == [4, 3, None, 1]
    assert drawn.line.count("M") == 2  # there is a gap
    assert "NaN or infinite (marked by a cross): zero_lr from step 3 on." in figures()["Training loss"].caption


def test_a_loss_that_is_nan_from_the_first_step_is_marked_too():
    write_run(SWEEP, losses=(math.nan, math.nan))
    (drawn,) = figures()["Training loss"].chart.curves
    assert (drawn.line, drawn.curve.lost) == ("", 1)
    assert drawn.lost


def test_settings_with_the_same_bits_share_a_curve_that_names_them_and_one_bit_parts_them():
    write_run(SWEEP, "requires_grad", losses=(2.0, 0.1, math.nan))
    write_run(SWEEP, "zero_lr", losses=(2.0, 0.1, math.nan))
    assert list(curves()) == ["requires_grad and zero_lr with the same bits (1 run)"]
    assert "Settings with the same values, bit by bit, share a curve" in figures()["Training loss"].caption
    write_run(SWEEP, "exclude", losses=(2.0, math.nextafter(0.1, 1), math.nan))
    assert len(curves()) == 2


def test_a_method_has_the_colour_and_the_marker_of_the_other_figures_and_its_settings_differ_in_dashes():
    passes = {"before": {"accuracy": 0.1}, "passes": [{"accuracy": 0.5}], "after": {"accuracy": 0.5}}
    for number, (method, freeze) in enumerate([("zero_lr", "fc"), ("zero_lr", "head"), ("exclude", "fc")]):
        write_run(SWEEP, method, f"freeze={freeze}", losses=(2.0, number), evaluation=passes)
    one, other, exclude = sorted(curves().values(), key=lambda curve: (curve.name.startswith("exclude"), curve.name))
    assert (one.colour, one.marker) == (other.colour, other.marker) == (COLOURS["zero_lr"], one.marker)
    assert one.dash != other.dash
    assert one.colour != exclude.colour
    assert one.marker != exclude.marker
    (shared,) = curves("Held-out accuracy").values()
    assert shared.colour in (one.colour, exclude.colour)


def test_accuracy_is_drawn_over_the_passes_from_before_the_training_on():
    passes = {"before": {"accuracy": 0.1}, "passes": [{"accuracy": 0.5}, {"accuracy": None}], "after": {"accuracy": None}}
    write_run(SWEEP, evaluation=passes)
    (curve,) = curves("Held-out accuracy").values()
    assert [point[:2] for point in curve.points] == [(0, 0.1), (1, 0.5), (2, None)]
    assert losses_section(run_set()).heading == "Losses and accuracy"


def test_without_an_accuracy_the_loss_on_held_out_data_is_drawn():
    write_run(SWEEP, evaluation={"before": {"loss": 2.0}, "passes": [{"loss": 1.0}], "after": {"loss": 1.0}})
    assert "Held-out loss" in figures()
    assert losses_section(run_set()).heading == "Losses"


def test_a_sweep_over_a_learning_rate_has_a_curve_for_each_method():
    for method in ("zero_lr", "exclude"):
        for rate in ("0.001", "0.01", "1e-1"):
            for seed in (0, 1):
                write_run(SWEEP, method, f"optimizer.lr={rate}", f"seed={seed}", losses=(2.0, float(rate) + seed))
    figure = figures()["Last training loss by optimizer.lr"]
    assert [drawn.curve.name for drawn in figure.chart.curves] == ["exclude and zero_lr with the same bits (2 runs)"]
    (drawn,) = figure.chart.curves
    assert [x for x, *_ in drawn.curve.points] == [0.001, 0.01, 0.1]
    assert drawn.curve.points[0][2:] == (0.001, 1.001)
    assert "logarithmic" in figure.caption


def test_a_rate_at_which_a_run_became_nan_is_not_drawn_and_named():
    for rate, loss in (("0.1", 1.0), ("1", 2.0), ("10", math.nan)):
        last = None if math.isnan(loss) else loss
        write_run(SWEEP, "zero_lr", f"optimizer.lr={rate}", losses=(2.0, loss), loss_last=last)
    figure = figures()["Last training loss by optimizer.lr"]
    assert [point[1] for point in figure.chart.curves[0].curve.points] == [1.0, 2.0, None]
    assert "Not drawn, because a run has no finite value there: zero_lr at 10." in figure.caption


@pytest.mark.parametrize("rates", [("0.1", "1"), ("a", "b", "c"), ("nan", "1", "2")])
def test_fewer_than_three_numbers_are_no_sweep_over_a_learning_rate(rates):
    for number, rate in enumerate(rates):
        write_run(SWEEP, "zero_lr", f"optimizer.lr={rate}", losses=(2.0, number))
    assert list(figures()) == ["Training loss"]


def test_a_rate_of_zero_has_a_place_on_a_linear_scale():
    for rate in ("0", "1", "2"):
        write_run(SWEEP, "zero_lr", f"++optimizer.lr={rate}", losses=(2.0, float(rate)))
    assert "logarithmic" not in figures()["Last training loss by optimizer.lr"].caption


def test_runs_without_losses_have_no_section():
    write_run(SWEEP, status="failed", rows=(), losses=())
    assert losses_section(run_set()) is None


@pytest.mark.parametrize(
    "losses",
    [
        (1.0,),
        (1e308, -1e308, 5e-324),
        (5e-324, 1e99),
        (0.0, 0.0),
        (-3.0, 2.0),
        (1e-30, 1e-31),
        (math.nan,),
        (123456.0, 123457.0),
        (1e20, 1e20 + 1),
    ],
)
def test_whatever_the_losses_every_pixel_is_a_number_within_the_picture(losses):
    write_run(SWEEP, losses=losses)
    html = render_page(run_set())
    assert "nan" not in re.sub(r"<desc.*?</desc>", "", html[html.index("losses-chart") : html.index("losses-legend")])
    chart = figures()["Training loss"].chart
    (drawn,) = chart.curves
    for x, y in re.findall(r"[ML](-?[\d.e+-]+),(-?[\d.e+-]+)", drawn.line):
        assert chart.left <= float(x) <= chart.right
        assert chart.top <= float(y) <= chart.bottom
    for place, text in [*chart.x_ticks, *chart.y_ticks]:
        assert 0 <= place <= chart.width
        assert text


@pytest.mark.parametrize(
    ("low", "high", "log", "texts"),
    [
        (0, 10, False, ["0", "2", "4", "6", "8", "10"]),
        (1, 3, False, ["1", "2", "3"]),
        (0.001, 10, True, ["0.001", "0.01", "0.1", "1", "10"]),
        (1, 30, True, ["1", "2", "5", "10", "20"]),
        (3.1, 3.2, True, ["3.1", "3.2"]),
        (1000, 5000, False, ["1,000", "2,000", "3,000", "4,000", "5,000"]),
    ],
)
def test_ticks_are_round_numbers(low, high, log, texts):
    assert [text for _, text in axis_for([low, high], log=log, whole=not log).ticks] == texts


def test_long_curves_are_thinned_and_keep_their_last_step():
    for seed in range(3):
        write_run(SWEEP, "zero_lr", f"optimizer={seed}", losses=[float(step % (7 + seed)) for step in range(9000)])
    assert sum(len(curve.points) for curve in curves().values()) <= 6010
    assert all(curve.points[-1][0] == 9000 for curve in curves().values())
    assert "Drawn is one step of 5." in figures()["Training loss"].caption


def test_of_many_settings_the_best_are_drawn_and_the_number_is_said():
    for number in range(60):
        write_run(
            SWEEP, "zero_lr", f"tag={number}", losses=(2.0, number), cost={"flops_forward": number, "flops_backward": 1}
        )
    assert len(curves()) == 40
    assert "zero_lr tag=0 (1 run)" in curves()
    assert "Shown are the first 40 of 60 settings in the ranking." in figures()["Training loss"].caption


def test_thirty_methods_with_long_names_are_all_in_the_legend():
    names = [f"m{number}_{'n' * 290}" for number in range(30)]
    for number, name in enumerate(names):
        record = {"method": {"_target_": f"runner.methods.{name}.M"}}
        write_run(SWEEP, f"m{number}", losses=(2.0, number), name=f"run{number}", **record)
    html = render_page(run_set())
    legend = html[html.index('class="losses-legend"') :].split("</ul>")[0]
    assert legend.count("<li>") == 30
    assert all(name[:100] in legend for name in names)


def test_every_colour_stands_out_from_each_ground_of_the_page_and_from_the_others():
    for theme in ("light", "dark", "print"):
        assert all(contrast(colour, themes()[theme]["ground"]) >= 3 for colour in COLOURS.values()), theme
    assert len(COLOURS) >= 10
    assert all(difference(one, other) > 0.08 for one, other in combinations(COLOURS.values(), 2))


def difference(one: str, other: str) -> float:
    """The distance of two colours in OKLab, in which black and white are 1 apart."""
    return math.dist(oklab(one), oklab(other))


def oklab(colour: str) -> tuple[float, float, float]:
    """A hexadecimal colour in OKLab, as Björn Ottosson defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    medium = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def test_each_method_of_ours_keeps_its_colour_whatever_the_others_are():
    ours = [name for name in COLOURS if name.strip()]
    for name in ours:
        assert method_colours(["a", "b", name, "zero_lr guard=true"])[name] == COLOURS[name]
    assert set(ours) == {path.stem for path in (Path(__file__).parents[3] / "conf" / "method").glob("*.yaml")}


def test_no_colour_is_used_twice_before_all_are_used():
    for names in (
        ["a", "b", "zero_lr"],
        [f"m{number}" for number in range(12)],
        ["zero_lr guard=true", "zero_lr guard=false"],
    ):
        assert len(set(method_colours(names).values())) == len(names)
    assert len(method_colours([f"m{number}" for number in range(30)])) == 30
    assert set(method_markers(["a", "b"]).values()) <= set(MARKERS)
