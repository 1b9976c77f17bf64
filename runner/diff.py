"""`python -m runner.diff BEFORE AFTER ['PATTERN' ...]`: did a fine-tune touch what it should not? Two checkpoints in."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from runner.contract import (
    CHANGE_COLUMNS,
    CHANGES,
    EXIT_DONE,
    EXIT_STRICT,
    PAGE,
    RECORD,
)
from runner.display.console import create_console, hanging
from runner.display.markdown import as_text, markdown_table, print_markdown
from runner.display.table import Column, number, table_lines
from runner.display.units import change_text, percent_text
from runner.errors import ConfigError
from runner.report.command import Parser, exit_code
from runner.runs.folder import csv_text, write_text
from runner.runs.text import counted, error_line

if TYPE_CHECKING:
    from runner.proof.checkpoints.difference import Difference

USAGE = (
    "python -m runner.diff BEFORE AFTER ['PATTERN' ...] [--keep PATTERN ...] [-o DIR] [--strict] [--markdown] [--key NAME]"
)
COLUMNS = (
    Column("layer", least=12),
    Column("kind", rank=3),
    Column("verdict"),
    number("tensors"),
    number("elements", rank=2),
    number("moved"),
    number("change", rank=1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two checkpoints, print what differs, and return the exit code.

    3: with `--strict`, a tensor that was declared frozen has leaked. For the others see `exit_code`. `arguments`: those of
    the command line without the program's name; None stands for those of this process.
    """
    return exit_code(lambda: _compare_and_print(parse_arguments(arguments)))


def _compare_and_print(parsed: argparse.Namespace) -> int:
    """Print how two checkpoints differ, write the folder if one is asked for, and return the exit code."""
    from runner.proof.checkpoints.difference import diff  # imports torch, and an error should not wait for it

    found = diff(parsed.before, parsed.after, parsed.patterns or None, parsed.keep, key=parsed.key)
    if parsed.markdown:
        print_markdown(markdown_of(found))
    else:
        print_difference(found)
    if parsed.out:
        write_folder(found, parsed, Path(parsed.out))
    if parsed.strict and found.leaks:
        print(error_line(f"strict: {counted(len(found.leaks), 'frozen tensor')} leaked"), file=sys.stderr)
        return EXIT_STRICT
    return EXIT_DONE


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments. Raises ConfigError if one is wrong."""
    parser = Parser(prog="python -m runner.diff", usage=USAGE, description=__doc__)
    parser.add_argument("before", metavar="BEFORE", help="a safetensors file, a file of torch.save, or a folder of them")
    parser.add_argument("after", metavar="AFTER", help="the same after the training; or the folder of a peft adapter")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="what was declared frozen, such as backbone")
    parser.add_argument("--keep", nargs="+", default=[], metavar="PATTERN", help="exceptions from the patterns")
    parser.add_argument("-o", "--out", metavar="DIR", help="write the rows, the record and the page into this folder")
    parser.add_argument("--strict", action="store_true", help="exit with 3 if a tensor that was declared frozen has leaked")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request")
    parser.add_argument("--key", metavar="NAME", help="the name of the state dict in a file of torch.save that has several")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.strict and not parsed.patterns:
        raise ConfigError("--strict needs patterns: without them nothing is declared frozen, so nothing can leak")
    return parsed


def layer_rows(found: Difference) -> list[tuple[str, ...]]:
    """Return the rows of the table: one for each layer, kind and verdict."""
    from runner.proof.checkpoints.layers import layers_of

    return [
        (
            each.name,
            each.kind,
            each.verdict,
            f"{each.tensors:,}",
            f"{each.elements:,}",
            "" if each.share is None else percent_text(each.share),
            change_text(each.change_rel),
        )
        for each in layers_of(found.rows)
    ]


def print_difference(found: Difference) -> None:
    """Print the table of layers, and what a person should read beneath."""
    console = create_console()
    for line in table_lines(COLUMNS, layer_rows(found), console.width):
        console.print(line)
    for text in str(found).splitlines():
        for part in hanging(Text(text), console):
            console.print(part)


def markdown_of(found: Difference) -> str:
    """Return the same as Markdown."""
    first, *rest = str(found).splitlines()
    table = markdown_table(COLUMNS, layer_rows(found))
    notes = "\n".join(f"- {as_text(text)}" for text in rest)
    return "\n\n".join(filter(None, (f"**{as_text(first)}**", table, notes)))


def record_of(found: Difference, parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the content of `run.json`: what was compared, and what came of it."""
    from runner.proof.verdict import count_verdicts, run_verdict
    from runner.runs.record import library_versions

    return {
        "status": "finished",
        "reason": "",
        "verdict": run_verdict(found.rows) if any(row["frozen"] for row in found.rows) else None,
        "counts": count_verdicts(found.rows),
        "before": found.before,
        "after": found.after,
        "frozen": parsed.patterns,
        "keep": parsed.keep,
        "in_common": found.in_common,
        "only_before": found.only_before,
        "only_after": found.only_after,
        "renamed": found.renamed,
        "notes": found.notes,
        "versions": library_versions(),
    }


def write_folder(found: Difference, parsed: argparse.Namespace, folder: Path) -> None:
    """Write `changes.csv`, `run.json` and the page into a folder. Raises ConfigError if that is not possible."""
    from runner.proof.checkpoints.layers import layers_of
    from runner.report.difference import write_difference_page
    from runner.report.page.elements import TableCell

    cells = [
        [
            *(TableCell(text, kind) for text, kind in zip(texts[:3], ("code", "", layer.verdict), strict=True)),
            *(TableCell(text, sort=value) for text, value in zip(texts[3:5], (layer.tensors, layer.elements), strict=True)),
            TableCell(texts[5], share=layer.share, sort=layer.share),
            TableCell(texts[6], sort=layer.change_rel),
        ]
        for layer, texts in zip(layers_of(found.rows), layer_rows(found), strict=True)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CHANGES, csv_text(CHANGE_COLUMNS, found.rows))
        write_text(folder / RECORD, json.dumps(record_of(found, parsed), indent=2, ensure_ascii=False))
        write_difference_page(folder, cells)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror or error}") from error
    if not parsed.markdown:
        print(f"page: {folder / PAGE}")


if __name__ == "__main__":
    sys.exit(main())
