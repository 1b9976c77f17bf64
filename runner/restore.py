"""`python -m runner.restore BEFORE AFTER PATTERN ... -o FILE`: a checkpoint with the matched tensors as they were before."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.contract import EXIT_DONE
from runner.errors import ConfigError, listed
from runner.report.command import Parser, exit_code
from runner.runs.folder import write_atomically
from runner.runs.text import counted

USAGE = "python -m runner.restore BEFORE AFTER PATTERN ... [--keep PATTERN ...] [--key NAME] -o FILE.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the checkpoint, say what was restored, and return the exit code: see `exit_code`.

    `arguments`: those of the command line without the program's name; None stands for those of this process.
    """
    return exit_code(lambda: _restore_and_print(parse_arguments(arguments)))


def _restore_and_print(parsed: argparse.Namespace) -> int:
    """Write the checkpoint, say what was restored, and return the exit code."""
    restored = restore(parsed)
    print(f"{parsed.out}: {counted(len(restored), 'tensor')} as in {parsed.before}: {listed(restored, most=4)}")
    return EXIT_DONE


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments. Raises ConfigError if one is wrong."""
    parser = Parser(prog="python -m runner.restore", usage=USAGE, description=__doc__)
    parser.add_argument("before", metavar="BEFORE", help="the checkpoint from which tensors are taken")
    parser.add_argument("after", metavar="AFTER", help="the checkpoint of which all other tensors are")
    parser.add_argument("patterns", nargs="+", metavar="PATTERN", help="what is to be as it was, such as layer3")
    parser.add_argument("--keep", nargs="+", default=[], metavar="PATTERN", help="exceptions from the patterns")
    parser.add_argument("--key", metavar="NAME", help="the name of the state dict in a file of torch.save that has several")
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="the safetensors file to write; it must be new")
    return parser.parse_intermixed_args(arguments)


def restore(parsed: argparse.Namespace) -> Sequence[str]:
    """Write the checkpoint, and return the names that were restored. Raises ConfigError if that is not possible."""
    out = Path(parsed.out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"-o is {parsed.out}; give a file that ends in .safetensors, which is what is written")
    if out.exists():
        raise ConfigError(f"{out} exists, and is left as it is; give -o a new file")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}; make it, or give -o another file")
    from runner.proof.checkpoints.restoration import restoration, write_restoration  # imports torch

    found = restoration(parsed.before, parsed.after, parsed.patterns, parsed.keep, key=parsed.key)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as opened:
            write_restoration(found, opened)
        found.refuse_if_changed()

    try:
        write_atomically(out, write)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from error
    return found.restored


if __name__ == "__main__":
    sys.exit(main())
