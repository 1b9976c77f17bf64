"""The page about two checkpoints: whether what was declared frozen held, how much of each layer moved, and each tensor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from runner import __version__
from runner.contract import CHANGES, PAGE, RECORD
from runner.errors import ConfigError
from runner.report.answer.answer import Answer
from runner.report.compare.run_set import RunSet
from runner.report.ownership import GENERATOR_TAG, may_overwrite
from runner.report.page.elements import Column, PageTable, Section, TableCell, table_section
from runner.report.page.moved import moved_section
from runner.report.page.render import environment, styles
from runner.runs.folder import write_text
from runner.runs.read import read_run
from runner.runs.text import counted, printable

MAX_LAYERS = 1000


def write_difference_page(folder: Path, layers: Sequence[Sequence[TableCell]]) -> None:
    """Write the page of a folder in which `runner.diff` has written its other files.

    `layers`: the cells of the rows of the table of layers, as LAYER_COLUMNS. Raises ConfigError if a page is there that
    freeze-runner did not write, and OSError if it cannot be written.
    """
    page = folder / PAGE
    if not may_overwrite(page, PAGE):
        raise ConfigError(f"{page} was not written by freeze-runner, and is left as it is; give -o another folder")
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    run = read_run(folder)
    title = printable(f"{Path(record['before']).name} and {Path(record['after']).name}")
    sections = [_layers(layers), moved_section(RunSet.of([run], title, folder))]
    context: dict[str, Any] = {
        "generator": Markup(f'{GENERATOR_TAG}{__version__}">'),
        "title": title,
        "subtitle": f"two checkpoints, {counted(len(run.tensors), 'tensor')} in {CHANGES}",
        "answer": _answer(record),
        "to_go_on": [],
        "sections": [each for each in sections if each],
        "styles": Markup(styles()),
        "reload_seconds": None,
        "comparison": Markup("{}"),
    }
    write_text(page, environment().get_template("page.html.jinja").render(context))


def _answer(record: dict[str, Any]) -> Answer:
    """Return what the page says first."""
    counts = record["counts"]
    frozen = sum(counts[word] for word in ("held", "leaked"))
    patterns = ", ".join(map(printable, record["frozen"]))
    kept = f", but for {', '.join(map(printable, record['keep']))}" if record["keep"] else ""
    if not frozen:
        headline = f"{counted(counts['trained'], 'parameter')} changed"
        sentence = "Nothing that was declared frozen was compared." if record["frozen"] else "Nothing was declared frozen."
    elif counts["leaked"]:
        headline = f"Leaked: {counted(counts['leaked'], 'frozen tensor')} changed"
        sentence = f"Declared frozen was {patterns}{kept}: {counts['held']:,} of {frozen:,} tensors have the same bits."
    else:
        headline = f"Held: {counted(frozen, 'frozen tensor')} have the same bits"
        sentence = f"Declared frozen was {patterns}{kept}."
    words = {"Trained": "trained", "Idle": "idle", "Drifted": "drifted"}
    findings = [(heading, [counted(counts[word], "tensor")]) for heading, word in words.items() if counts[word]]
    findings += [("Before", [printable(record["before"])]), ("After", [printable(record["after"])])]
    findings += [("Notes", [printable(note) for note in record["notes"]])] if record["notes"] else []
    return Answer(headline, sentence, findings=findings, is_bad=bool(counts["leaked"]))


LAYER_COLUMNS = (
    *(Column(name) for name in ("layer", "kind", "verdict")),
    *(Column(name, number=True) for name in ("tensors", "elements", "moved", "largest change")),
)


def _layers(rows: Sequence[Sequence[TableCell]]) -> Section | None:
    """Return the section with the picture of the layers: a bar for the share of the elements of each that differ."""
    caption = "bars: the share of the elements that differ by a bit; the change is relative to the tensor's norm before"
    return table_section(
        "By layer", PageTable("layers", caption, list(LAYER_COLUMNS), [list(row) for row in rows[:MAX_LAYERS]])
    )
