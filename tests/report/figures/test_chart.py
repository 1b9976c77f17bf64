"""The layout of a chart whose values lie far apart: all else is legible, and what lies at the edge is named."""

from __future__ import annotations

from pathlib import Path

from runner.report.page.losses import losses_section
from runner.report.page.render import render_page
from tests.report.page.reports import SWEEP, read_sweep
from tests.run_folders import write_run


def write(rate: str, *losses: float, method: str = "zero_lr") -> Path:
    return write_run(SWEEP, method, f"optimizer.lr={rate}", losses=losses)


def figures() -> dict:
    return {figure.name: figure for figure in losses_section(read_sweep()).data["figures"]}


def test_a_rate_of_1e30_and_its_loss_lie_at_the_edge_and_the_caption_names_them():
    for rate, loss in (("1e-3", 2.2), ("1e-2", 1.5), ("1e-1", 1.9), ("1e30", 3e29)):
        write(rate, 2.3, loss)
    chart = figures()["Last training loss by optimizer.lr"].chart
    (drawn,) = chart.curves
    xs, ys = zip(*(map(float, point.split(",")) for point in drawn.line[1:].split("L")), strict=True)
    assert (xs[3], ys[3]) == (chart.right, chart.top)
    assert xs[2] - xs[0] > 0.9 * (chart.right - chart.left)
    assert max(ys) - min(ys[:3]) > 0.9 * (chart.bottom - chart.top)
    caption = figures()["Last training loss by optimizer.lr"].caption
    assert caption.endswith(
        " At the edge, since it lies far beyond the scale: optimizer.lr=1e+30 and zero_lr, last training loss up to 3e+29."
    )
    assert (chart.right, "1e+30") in chart.x_ticks
    assert (chart.top, "3e+29") in chart.y_ticks
    assert (len(chart.x_cuts), len(chart.y_cuts)) == (1, 1)
    assert "zero_lr optimizer.lr=1e30, loss up to 3e+29" in figures()["Training loss"].caption
    assert render_page(read_sweep()).count('class="losses-cut"') == 3


def test_a_chart_without_far_values_has_no_edge_and_no_word_of_it():
    for rate, loss in (("1e-3", 2.2), ("1e-2", 1.5), ("1e-1", 90.0)):
        write(rate, 2.3, loss)
    for figure in figures().values():
        assert "At the edge" not in figure.caption
        assert [*figure.chart.x_cuts, *figure.chart.y_cuts] == []
    assert 'class="losses-cut"' not in render_page(read_sweep())


def test_a_rate_of_0_lies_at_the_edge_where_the_others_span_decades():
    for rate in ("0", "1e-4", "1e-3", "1e-1"):
        write(rate, 2.3, 1.0)
    figure = figures()["Last training loss by optimizer.lr"]
    assert "on a logarithmic scale" in figure.caption
    assert figure.caption.endswith("At the edge, since it lies far beyond the scale: optimizer.lr=0.")
    assert (figure.chart.left, "0") in figure.chart.x_ticks


def test_settings_with_the_same_bits_are_all_named_and_what_they_have_in_common_once():
    for method in ("requires_grad", "exclude", "restore", "zero_lr"):
        for rate in ("0.1", "0.2"):
            write(rate, 2.0, 10 * float(rate), method=method)
    names = {drawn.curve.name for drawn in figures()["Training loss"].chart.curves}
    every = "exclude, requires_grad, restore and zero_lr with the same bits (1 run)"
    assert names == {f"optimizer.lr=0.1: {every}", f"optimizer.lr=0.2: {every}"}
