"""What moved in a run: the model as a tree of modules with sums, and in each module its parameters and buffers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from runner.display.units import change_text, digits_text
from runner.report.compare.changes import LIVE, SMALLEST, change_words, largest, not_shown
from runner.report.compare.modules import Module, build_tree
from runner.report.compare.run_set import RunSet
from runner.report.page.elements import Section
from runner.runs.tables import TensorRow
from runner.runs.text import counted

MAX_TENSOR_ROWS = 2000
MAX_UNFOLDED = 12  # leaked tensors whose modules are unfolded at first
ORDER = ("leaked", "idle", "held", "returned", "trained", "drifted", "still")  # of tensors and of modules
LEGEND = (0.0001, 0.001, 0.01, 0.1, 1.0)  # the relative changes whose bars explain the others


class TensorLine(NamedTuple):
    """A row of a module's table: a parameter or buffer, what became of it, why, and how far it moved.

    `share`: the length of the bar, from 0 to 1; None for no bar. `norm`: the L2 norm of the change; may be empty.
    """

    name: str
    form: str
    verdict: str
    cause: str
    change: str
    share: float | None
    norm: str


@dataclass
class Sums:
    """What is known of several tensors together; `elements` is None where it is not known of each.

    Attributes:
        tensors, elements: how many there are.
        verdicts: {verdict: number of tensors}.
        change: the largest relative change, without buffers that are not frozen; NaN if one is NaN; None if none is known.
    """

    tensors: int = 0
    elements: int | None = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    change: float | None = None

    def add(self, other: Sums) -> None:
        """Add what is known of other tensors."""
        self.tensors += other.tensors
        self.elements = None if self.elements is None or other.elements is None else self.elements + other.elements
        self.verdicts.update(other.verdicts)
        self.change = largest((self.change, other.change))


@dataclass(frozen=True)
class ModuleLines:
    """A module in the tree.

    Attributes:
        name, label: its dotted name, and what its line shows: its name within the parent.
        has_leak: whether a frozen tensor in it leaked.
        size: how many tensors and elements it has, as text.
        verdicts: (verdict, number of its tensors), the worst first.
        change, share: the largest relative change as text, and the length of its bar; "" and None if there is none.
        parameters, buffers: a line for each of its own.
        buffer_verdicts: what became of its own buffers, such as `3 drifted`.
        left_out: how many of its tensors are not listed, and what became of them, as text; mostly empty.
        modules: the modules in it.
    """

    name: str
    label: str
    has_leak: bool
    size: str
    verdicts: list[tuple[str, int]]
    change: str
    share: float | None
    parameters: list[TensorLine]
    buffers: list[TensorLine]
    buffer_verdicts: str
    left_out: str
    modules: list[ModuleLines]


def moved_section(run_set: RunSet) -> Section | None:
    """Return the section about what moved in the only run of a report; None for several runs."""
    run = run_set.single
    if not run or not run.tensors:
        return None
    shown = sorted(range(len(run.tensors)), key=lambda number: _rank(run.tensors[number].verdict))[:MAX_TENSOR_ROWS]
    whole = _lines_of(build_tree((row.name, (number, row)) for number, row in enumerate(run.tensors)), set(shown))[0]
    few_leaks = sum(row.verdict == "leaked" for row in run.tensors) <= MAX_UNFOLDED
    legend = [(change_text(change), bar_share(change)) for change in LEGEND]
    data = {"whole": whole, "unfold_leaks": few_leaks, "legend": legend, "not_shown": not_shown([run])}
    return Section("moved", "What moved", "moved", data)


def bar_share(change: float | None) -> float | None:
    """Return the length of a relative change's bar, from 0 to 1 on a logarithmic scale; None if there is no change.

    The bar begins at `changes.SMALLEST` and is full from 1 (100%) on.
    """
    if change is None or math.isnan(change) or change <= 0:
        return None
    return min(1.0, max(0.02, 1 - math.log10(change) / math.log10(SMALLEST))) if change < 1 else 1.0


def tensor_line(name: str, row: TensorRow) -> TensorLine:
    """Return the line of a tensor; `name` is the last part of its name."""
    norm = row.change_l2
    return TensorLine(
        name=name,
        form=" ".join(filter(None, (row.shape or "scalar", row.dtype if row.dtype != "float32" else ""))),
        verdict=row.verdict,
        cause=row.cause.replace("|", " with "),
        change=change_words([row]),
        share=bar_share(row.change_rel),
        norm=digits_text(norm) if norm and math.isfinite(norm) else "",
    )


def _lines_of(module: Module[tuple[int, TensorRow]], shown: set[int], parent: str = "") -> tuple[ModuleLines, Sums]:
    """Return a module's lines, and the sums over its tensors.

    `shown`: the numbers of the tensors that are listed; a module without any is left out. `parent`: the name of the module
    that it stands in.
    """
    while len(module.modules) == 1 and not module.tensors and module.name:  # a chain of only children is one line
        (module,) = module.modules.values()
    inner = [_lines_of(child, shown, module.name) for child in module.modules.values()]
    sums, hidden = Sums(), Sums()
    listed = sorted(module.tensors, key=lambda item: _rank(item[1][1].verdict))
    for _, (number, row) in module.tensors:
        own = _sums_of(row)
        sums.add(own)
        if number not in shown:
            hidden.add(own)
    kept: list[tuple[int, ModuleLines]] = []
    for lines, below in inner:
        sums.add(below)
        if lines.modules or lines.parameters or lines.buffers:
            kept.append((min(map(_rank, below.verdicts), default=len(ORDER)), lines))
        else:
            hidden.add(below)
    parameters, buffers = (
        [tensor_line(name, row) for name, (number, row) in listed if number in shown and (row.kind == "buffer") is is_buffer]
        for is_buffer in (False, True)
    )
    own_buffers = Counter(row.verdict for _, (_, row) in module.tensors if row.kind == "buffer")
    elements = "" if sums.elements is None else f", {counted(sums.elements, 'element')}"
    lines = ModuleLines(
        name=module.name,
        label=module.name.removeprefix(f"{parent}.") if parent else module.name,
        has_leak=bool(sums.verdicts["leaked"]),
        size=counted(sums.tensors, "tensor") + elements,
        verdicts=_ordered(sums.verdicts),
        change=("NaN" if sums.change and math.isnan(sums.change) else change_text(sums.change)),
        share=bar_share(sums.change),
        parameters=parameters,
        buffers=buffers,
        buffer_verdicts=_verdicts_text(own_buffers),
        left_out=f"{counted(hidden.tensors, 'more tensor')}: {_verdicts_text(hidden.verdicts)}" if hidden.tensors else "",
        modules=[lines for _, lines in sorted(kept, key=lambda item: item[0])],
    )
    return lines, sums


def _sums_of(row: TensorRow) -> Sums:
    """Return the sums over a single tensor."""
    change = None if row.verdict in LIVE else row.change_rel
    return Sums(1, row.numel, Counter([row.verdict]), change)


def _rank(verdict: str) -> int:
    """Return the place of a verdict in ORDER; unknown verdicts come last."""
    return ORDER.index(verdict) if verdict in ORDER else len(ORDER)


def _ordered(verdicts: Counter[str]) -> list[tuple[str, int]]:
    """Return (verdict, number), the worst verdict first."""
    return sorted(verdicts.items(), key=lambda item: _rank(item[0]))


def _verdicts_text(verdicts: Counter[str]) -> str:
    """Return how many tensors have each verdict, such as `2 leaked, 3 held`."""
    return ", ".join(f"{number:,} {verdict}" for verdict, number in _ordered(verdicts))
