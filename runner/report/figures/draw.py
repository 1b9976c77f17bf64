"""Draw the figures with matplotlib, as SVG and PNG. The same data give the same bytes; names are never parsed as markup."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from runner.report.figures.heatmap import MARKS, Heatmap
from runner.runs.text import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
RC_PARAMS: Any = {"svg.fonttype": "none", "svg.hashsalt": "freeze-runner", "font.size": 8, "text.parse_math": False}
GREY = "#8a8f98"
MARK_STYLES: dict[str, dict[str, Any]] = {  # marks differ in shape, and are visible on white, on black and on any colour
    "leaked": {"marker": "X", "markersize": 5, "markerfacecolor": "#ffffff", "markeredgecolor": "#b3001b"},
    "nan": {"marker": "D", "markersize": 4, "markerfacecolor": "none", "markeredgecolor": "#c2187e"},
    "idle": {"marker": "v", "markersize": 4, "markerfacecolor": "none", "markeredgecolor": "#d97706"},
    "returned": {"marker": "o", "markersize": 3.6, "markerfacecolor": "none", "markeredgecolor": GREY},
    "started at 0": {"marker": "P", "markersize": 5, "markerfacecolor": "#8250c4", "markeredgecolor": "none"},
    "zero": {"marker": ".", "markersize": 3, "markerfacecolor": GREY, "markeredgecolor": "none"},
}
COLOUR_STOPS = ["#3d5a98", "#4f9ba8", "#a8c97f", "#f5d547"]
MAX_LABEL = 48  # characters
CELL_INCHES = 0.24, 0.155  # width, height


def draw_heatmap(heatmap: Heatmap) -> Figure:
    """Draw the heatmap and return it as a matplotlib figure.

    The colour of a cell shows log10 of the tensor's change relative to its norm at the start. A symbol on a cell flags a
    special case, such as a leak (MARKS lists these).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows, columns = ([shortened(name, MAX_LABEL) for name in names] for names in (heatmap.rows, heatmap.columns))
    left, top, right, bottom = _label_inches(rows), _label_inches(columns), 0.3, 1.35
    plot_width, plot_height = CELL_INCHES[0] * len(columns), CELL_INCHES[1] * len(rows)
    width, height = max(left + plot_width + right, 6.8), top + plot_height + bottom
    with rc_context(RC_PARAMS):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((left / width, bottom / height, plot_width / width, plot_height / height))
        image = axes.imshow(
            [[math.nan if value is None else value for value in line] for line in heatmap.values],
            **_colour_scale([value for line in heatmap.values for value in line if value is not None]),
            aspect="auto",
            interpolation="none",
        )
        _draw_marks(axes, heatmap)
        for x, name in enumerate(columns):  # axes.text, because tick labels take three times as long
            axes.text(x, -0.8, name, rotation=90, ha="center", va="bottom")
        for y, name in enumerate(rows):
            axes.text(-0.8, y, name, ha="right", va="center_baseline")
        axes.set_axis_off()
        bar_axes = figure.add_axes((0.25 / width, 0.95 / height, 2.4 / width, 0.11 / height))
        bar = figure.colorbar(image, bar_axes, orientation="horizontal")
        bar.set_label("log10 of the change relative to the start", loc="left")
        bar.outline.set_visible(False)
        if handles := axes.get_legend_handles_labels()[0]:
            corner = 2.9 / width, 0.25 / height
            figure.legend(
                handles=handles, loc="lower left", bbox_to_anchor=corner, ncols=2, frameon=False, columnspacing=1.5
            )
    return figure


def _colour_scale(values: Sequence[float]) -> dict[str, Any]:
    """Return the colour scale as arguments of `imshow`: `cmap`, `vmin` and `vmax`.

    `cmap` is visible on white and on black. `vmin` and `vmax` are whole numbers, so that the scale spans whole powers of
    ten. `values`: log10 of the changes to show.
    """
    from matplotlib.colors import LinearSegmentedColormap

    low, high = (math.floor(min(values)), math.ceil(max(values))) if values else (-1, 0)
    return {"cmap": LinearSegmentedColormap.from_list("change", COLOUR_STOPS), "vmin": low, "vmax": max(high, low + 1)}


def _draw_marks(axes: Any, heatmap: Heatmap) -> None:
    """Draw a symbol on each marked cell of the heatmap, and a line between parameters (above) and buffers (below).

    `axes`: the matplotlib axes to draw on.
    """
    for mark, label in MARKS.items():
        cells = [(x, y) for y, line in enumerate(heatmap.marks) for x, cell_mark in enumerate(line) if cell_mark == mark]
        if cells:
            xs, ys = zip(*cells, strict=True)
            axes.plot(xs, ys, linestyle="none", label=label, clip_on=False, **MARK_STYLES[mark])
    if 0 < heatmap.parameter_rows < len(heatmap.rows):
        axes.axhline(heatmap.parameter_rows - 0.5, color=GREY, linewidth=0.6)


def as_svg(figure: Figure, title: str, description: str) -> str:
    """Return a figure as the text of an SVG file on a white background.

    The SVG contains `title` and `description`, which screen readers read out.
    """
    out = io.BytesIO()
    _save(figure, out, "svg")
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(out.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(f"{{{SVG}}}{tag}")
        element.text = text
        root.insert(0, element)
    root.set("role", "img")
    root.set("data-generator", "freeze-runner")
    return ElementTree.tostring(root, encoding="unicode")


def as_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file, on a white background."""
    out = io.BytesIO()
    _save(figure, out, "png")
    return out.getvalue()


def _save(figure: Figure, out: io.BytesIO, kind: str) -> None:
    """Write a figure into `out` in the format `kind`, which is `svg` or `png`.

    No date is written, so that the same figure gives the same bytes.
    """
    from matplotlib import rc_context

    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": "freeze-runner"}
    with rc_context(RC_PARAMS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters that the font does not have
        figure.savefig(out, format=kind, dpi=160, facecolor="white", metadata=metadata)


def _label_inches(labels: Sequence[str]) -> float:
    """Return an estimate, in inches, of the space that the longest label takes.

    The estimate counts characters, because measuring rendered text would take longer than the whole drawing.
    """
    return 0.3 + 0.069 * max(map(len, labels))
