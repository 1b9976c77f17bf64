"""The pictures, by matplotlib, as SVG and PNG: the same bytes for the same numbers, and every name as plain text."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from runner.report.figures.heatmap import MARKS, Heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "freeze-runner", "font.size": 8, "text.parse_math": False}
QUIET = "#8a8f98"
LOOKS: dict[str, dict[str, Any]] = {  # of each mark; told apart by shape, and seen on white, on black and on any colour
    "leaked": {"marker": "X", "markersize": 5, "markerfacecolor": "#ffffff", "markeredgecolor": "#b3001b"},
    "nan": {"marker": "D", "markersize": 4, "markerfacecolor": "none", "markeredgecolor": "#c2187e"},
    "idle": {"marker": "v", "markersize": 4, "markerfacecolor": "none", "markeredgecolor": "#d97706"},
    "returned": {"marker": "o", "markersize": 3.6, "markerfacecolor": "none", "markeredgecolor": QUIET},
    "started at 0": {"marker": "+", "markersize": 4, "markeredgecolor": QUIET},
    "zero": {"marker": ".", "markersize": 3, "markerfacecolor": QUIET, "markeredgecolor": "none"},
}
RAMP = ["#3d5a98", "#4f9ba8", "#a8c97f", "#f5d547"]
DASHES = ["-", "--", "-.", ":"]
POINTS = 10_000  # of all curves together
LONGEST = 48  # characters of a label
CELL = 0.24, 0.155  # inches


def heatmap(found: Heatmap) -> Figure:
    """Parameters x runs: the colour is log10 of the relative change; what has no colour, and what leaked, has a mark."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows, columns = [_short(name) for name in found.rows], [_short(name) for name in found.columns]
    left, top, right, bottom = _inches(rows), _inches(columns), 0.3, 1.35
    wide, high = CELL[0] * len(columns), CELL[1] * len(rows)
    width, height = max(left + wide + right, 6.8), top + high + bottom
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
        image = axes.imshow(
            [[math.nan if value is None else value for value in line] for line in found.values],
            **_colours([value for line in found.values for value in line if value is not None]),
            aspect="auto",
            interpolation="none",
        )
        _mark(axes, found)
        for x, name in enumerate(columns):  # texts, for ticks take three times as long
            axes.text(x, -0.8, name, rotation=90, ha="center", va="bottom")
        for y, name in enumerate(rows):
            axes.text(-0.8, y, name, ha="right", va="center_baseline")
        axes.set_axis_off()
        strip = figure.add_axes((0.25 / width, 0.95 / height, 2.4 / width, 0.11 / height))
        bar = figure.colorbar(image, strip, orientation="horizontal")
        bar.set_label("log10 of the change relative to the start", loc="left")
        bar.outline.set_visible(False)
        if marks := axes.get_legend_handles_labels()[0]:
            place = 2.9 / width, 0.25 / height
            figure.legend(handles=marks, loc="lower left", bbox_to_anchor=place, ncols=2, frameon=False, columnspacing=1.5)
    return figure


def losses(curves: Mapping[str, Sequence[float]]) -> Figure:
    """The loss after each step, a curve for each that differs by a bit; very long ones are thinned."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    told = len(curves) if 1 < len(curves) <= 8 else 0
    height = 3.2 + 0.17 * told
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, height))
        axes = figure.add_axes((0.07, (0.55 + 0.17 * told) / height, 0.91, 2.5 / height))
        for number, (label, curve) in enumerate(curves.items()):
            every = max(1, math.ceil(len(curve) * len(curves) / POINTS))
            steps, dash = range(1, len(curve) + 1, every), DASHES[number % len(DASHES)]
            line: dict[str, Any] = {"linestyle": dash, "linewidth": 1.3, "marker": "." if len(steps) < 30 else ""}
            axes.plot(steps, curve[::every], label=_short(label, 96), **line)
        finite = [loss for curve in curves.values() for loss in curve if math.isfinite(loss)]
        if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
            axes.set_yscale("log")
        axes.set_facecolor("none")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.locator_params(axis="x", integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(QUIET)
        axes.tick_params(which="both", color=QUIET)
        if told:
            figure.legend(loc="lower left", bbox_to_anchor=(0.06, 0), frameon=False, handlelength=3)
    return figure


def _colours(known: Sequence[float]) -> dict[str, Any]:
    """A ramp that is seen on white and on black, over whole powers of ten."""
    from matplotlib.colors import LinearSegmentedColormap

    low, high = (math.floor(min(known)), math.ceil(max(known))) if known else (-1, 0)
    return {"cmap": LinearSegmentedColormap.from_list("change", RAMP), "vmin": low, "vmax": max(high, low + 1)}


def _mark(axes: Any, found: Heatmap) -> None:
    for mark, words in MARKS.items():
        places = [(x, y) for y, line in enumerate(found.marks) for x, own in enumerate(line) if own == mark]
        if places:
            xs, ys = zip(*places, strict=True)
            axes.plot(xs, ys, linestyle="none", label=words, clip_on=False, **LOOKS[mark])
    if 0 < found.parameters < len(found.rows):
        axes.axhline(found.parameters - 0.5, color=QUIET, linewidth=0.6)


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
        figure.savefig(out, format=kind, dpi=160, facecolor="white", metadata=metadata)


def _short(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2 - 1]}…{text[-longest // 2 :]}"


def _inches(labels: Sequence[str]) -> float:
    """Room for the longest label; measuring each by its glyphs takes longer than all the rest of the drawing."""
    return 0.3 + 0.069 * max(map(len, labels))
