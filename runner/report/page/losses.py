"""Losses and accuracy: the mean and the band over the seeds, coloured by method."""

from __future__ import annotations

from markupsafe import Markup

from runner.report.compare.run_set import RunSet
from runner.report.figures import draw
from runner.report.figures.curves import loss_curves
from runner.report.page.elements import Section


def losses_section(run_set: RunSet) -> Section | None:
    """Return the section with the loss curves; None if there are none."""
    curves, caption = loss_curves(run_set.runs)
    if not curves:
        return None
    svg = draw.as_svg(draw.draw_losses(curves), "Losses", f"The loss after each step. {caption}")
    return Section("losses", "Losses", "picture", {"svg": Markup(draw.svg_for_page(svg, "losses")), "caption": caption})
