"""Losses and accuracy: the mean and the band over the runs of each setting, coloured by method."""

from __future__ import annotations

from runner.report.compare.run_set import RunSet
from runner.report.figures.curves import accuracy_figure, loss_figure
from runner.report.figures.rates import rate_figures
from runner.report.page.elements import Section


def losses_section(run_set: RunSet) -> Section | None:
    """Return the section with the curves of losses, accuracy and learning rates; None if there are none."""
    figures = [*rate_figures(run_set), *filter(None, (accuracy_figure(run_set), loss_figure(run_set)))]
    if not figures:
        return None
    has_accuracy = any("accuracy" in figure.name.lower() for figure in figures)
    heading = "Losses and accuracy" if has_accuracy else "Losses"
    return Section("losses", heading, "losses", {"figures": figures})
