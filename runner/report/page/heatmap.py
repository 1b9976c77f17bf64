"""How far each tensor moved in each run: a heatmap by module that unfolds to tensors."""

from __future__ import annotations

from markupsafe import Markup

from runner.report.compare.run_set import RunSet
from runner.report.figures import draw
from runner.report.figures.heatmap import build_heatmap, heatmap_texts
from runner.report.page.elements import Section


def heatmap_section(run_set: RunSet) -> Section | None:
    """Return the section with the heatmap; None for one run, and where no run has rows."""
    if run_set.single or not (heatmap := build_heatmap(run_set.runs)):
        return None
    svg = draw.as_svg(draw.draw_heatmap(heatmap), *heatmap_texts(heatmap))
    data = {"svg": Markup(draw.svg_for_page(svg, "heatmap")), "caption": heatmap.caption}
    return Section("heatmap", "How far each tensor moved", "picture", data)
