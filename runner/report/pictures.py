"""The pictures, by matplotlib, as SVG and PNG: the same bytes for the same numbers, and every name as plain text."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from runner.report.grid import MARKS, Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "freeze-runner", "font.size": 7, "text.parse_math": False}
LOOKS: dict[str, dict[str, Any]] = {  # of each mark; told apart by shape, and seen on white, on black and on any colour
    "leaked": {"marker": "X", "markersize": 5, "markerfacecolor": "#ffffff", "markeredgecolor": "#b3001b"},
    "nan": {"marker": "D", "markersize": 4, "markerfacecolor": "none", "markeredgecolor": "#c2187e"},
    "idle": {"marker": "v", "markersize": 4, "markerfacecolor": "none", "markeredgecolor": "#d97706"},
    "returned": {"marker": "o", "markersize": 3.6, "markerfacecolor": "none", "markeredgecolor": "#8a8f98"},
    "started at 0": {"marker": "+", "markersize": 4, "markeredgecolor": "#8a8f98"},
    "zero": {"marker": ".", "markersize": 2, "markerfacecolor": "#8a8f98", "markeredgecolor": "none"},
}
POINTS = 10_000  # of all curves together
LONGEST = 48  # characters of a label


def heatmap(grid: Grid) -> Figure:
    """Parameters x runs: the colour is log10 of the relative change; what has no colour, and what leaked, has a mark."""
    from matplotlib import rc_context
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    width, height = len(grid.columns), len(grid.rows)
    inches = 3.2 + 0.2 * width, 1.6 + 0.14 * height
    with rc_context(STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        axes = figure.subplots()
        values = [[math.nan if value is None else value for value in line] for line in grid.values]
        known = [value for line in grid.values for value in line if value is not None]
        low, high = (math.floor(min(known)), math.ceil(max(known))) if known else (-1, 0)
        ramp = LinearSegmentedColormap.from_list("change", ["#3d5a98", "#4f9ba8", "#a8c97f", "#f5d547"])
        image = axes.imshow(values, ramp, aspect="auto", interpolation="none", vmin=low, vmax=max(high, low + 1))
        for mark, words in MARKS.items():
            places = [(x, y) for y, line in enumerate(grid.marks) for x, own in enumerate(line) if own == mark]
            if places:
                xs, ys = zip(*places, strict=True)
                axes.plot(xs, ys, linestyle="none", label=words, clip_on=False, **LOOKS[mark])
        axes.set_xticks(range(width), [_short(name) for name in grid.columns], rotation=90)
        axes.set_yticks(range(height), [_short(name) for name in grid.rows])
        axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, location="bottom", shrink=0.6, aspect=30, label="log10 of the relative change")
        bar.outline.set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def losses(curves: Mapping[str, Sequence[float]]) -> Figure:
    """The loss after each step, a curve for each that differs by a bit; very long ones are thinned."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for label, curve in curves.items():
            every = max(1, math.ceil(len(curve) * len(curves) / POINTS))
            steps = range(1, len(curve) + 1, every)
            axes.plot(steps, curve[::every], label=_short(label), linewidth=1.2, marker="." if len(steps) < 30 else "")
        finite = [loss for curve in curves.values() for loss in curve if math.isfinite(loss)]
        if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#8a8f98")
        axes.tick_params(color="#8a8f98")
        if 1 < len(curves) <= 10:
            figure.legend(loc="outside right upper", frameon=False)
    return figure


def as_svg(figure: Figure, title: str, description: str) -> str:
    """A figure as SVG, with a title, a description and a white ground."""
    out = io.BytesIO()
    _save(figure, out, "svg")
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(out.getvalue())
    for told in root.findall(f"{{{SVG}}}metadata"):
        root.remove(told)
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(f"{{{SVG}}}{tag}")
        element.text = text
        root.insert(0, element)
    root.set("role", "img")
    root.set("data-generator", "freeze-runner")
    return ElementTree.tostring(root, encoding="unicode")


def inline(svg: str, name: str) -> str:
    """The same SVG for a place within a page: no ground, and ids that begin with a name of its own."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.get("id") == "patch_1":
                parent.remove(child)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == f"{{{XLINK}}}href" and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif key == "clip-path":
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    title, description = root.find(f"{{{SVG}}}title"), root.find(f"{{{SVG}}}desc")
    assert title is not None
    assert description is not None
    title.set("id", f"{name}-title")
    description.set("id", f"{name}-desc")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    return ElementTree.tostring(root, encoding="unicode")


def as_png(figure: Figure) -> bytes:
    """A figure as PNG, on white."""
    out = io.BytesIO()
    _save(figure, out, "png")
    return out.getvalue()


def _save(figure: Figure, out: io.BytesIO, kind: str) -> None:
    from matplotlib import rc_context

    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": "freeze-runner"}
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in a script that the font lacks
        figure.savefig(out, format=kind, dpi=200, facecolor="white", metadata=metadata)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 1]}…{text[-LONGEST // 2 :]}"
