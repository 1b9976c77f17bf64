"""What detectors of training faults say about trainings whose truth is known, and what they cost.

Run from the project's root: `python -m benchmarks.detectors [--rivals DIR] [--quick]`. The rivals are no dependencies;
install each with `pip install --no-deps --target DIR/NAME NAME`. One that is missing is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from benchmarks.detector_cases import CASES, Case, held
from benchmarks.rivals import DETECTORS, Detector
from benchmarks.timing import read_clocks

LAYERS = ("body", "norm", "branch", "head")
FALSE_CLAIM = re.compile("chang|learning|NaN")


def judged(case: Case, complaints: Sequence[str], usual: Sequence[str]) -> str:
    """Return what the complaints get right: that the layer of the culprit is at fault (`says`), its `tensor`, the `cause`.

    It is `-` if nothing is said of that layer but what is `usual`, said of a sound training too. Of a sound training it is
    `ALARM` if something is said to change, not to change or not to learn that is as it should be, `hint` for other advice,
    and `ok` if nothing is said.
    """
    if not case.culprit:
        about = [line for line in complaints if any(layer in line for layer in LAYERS)]
        return "ALARM" if any(FALSE_CLAIM.search(line) for line in about) else "hint" if about else "ok"
    layer = case.culprit.split(".")[0]
    about = [line for line in complaints if layer in line and line not in usual]
    if not about:
        return "-"
    named = [line for line in about if case.culprit in line]
    if not named:
        return "says"
    return "cause" if any(word in line.lower() for line in named for word in case.causes) else "tensor"


def verdicts(detector: Detector) -> list[str]:
    """Return for each case what the detector gets right; what it raises counts as nothing said."""
    found: list[str] = []
    torch.manual_seed(0)
    usual = complaints_of(detector, held())
    for build in CASES:
        torch.manual_seed(0)
        case = build()
        try:
            complaints = complaints_of(detector, case)
        except Exception as error:
            found.append(f"({type(error).__name__})")
            continue
        found.append(judged(case, complaints, usual))
    return found


def complaints_of(detector: Detector, case: Case) -> list[str]:
    """Return what a detector says of a case; one that looks at a batch is asked before the loop and after it."""
    complaints = detector.complaints(case)
    if not detector.is_watching:
        for number in range(1, case.steps + 1):
            case.step(number)
        complaints += detector.complaints(case)
    return complaints


class Loop(Case):
    """A case that is large enough to be timed: six layers of a million weights, all but the last frozen by their flags."""

    def __init__(self) -> None:
        model = nn.Sequential()
        for name in (*(f"body{number}" for number in range(5)), "head"):
            model.add_module(name, nn.Linear(1000, 1000))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head"))
        optimizer: Optimizer = SGD(model.parameters(), lr=1e-6)
        batch: dict[str, Tensor] = {"inputs": torch.randn(256, 1000), "targets": torch.randint(0, 1000, (256,))}
        super().__init__("timed", model, optimizer, [f"body{number}" for number in range(5)], steps=20, **batch)
        self.seconds: list[float] = []

    def step(self, number: int) -> None:
        """Do a step, and note its CPU seconds."""
        start = read_clocks().cpu
        super().step(number)
        self.seconds.append(read_clocks().cpu - start)


def cost(detector: Detector, pairs: int) -> str:
    """Return what a detector costs: the time of a step under it / without it, or the steps that its one call takes."""
    ratios = list(_ratios(detector, pairs))
    if detector.is_watching:
        return f"x {median(ratios):.2f}"
    steps = round(median(ratios))
    return f"{steps} step{'s' * (steps != 1)}, once"


def _ratios(detector: Detector, pairs: int) -> Iterator[float]:
    """Yield the CPU time under a detector / that of as many steps without it, alternately, in one process."""
    for number in range(pairs + 1):
        plain, watched = Loop(), Loop()
        for step in range(1, plain.steps + 1):
            plain.step(step)
        start = read_clocks().cpu
        detector.complaints(watched)
        total = read_clocks().cpu - start
        if number:  # the first pair imports and warms up
            yield (total / sum(plain.seconds)) if detector.is_watching else total / median(plain.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals", type=Path, help="the folder into which the rivals were installed")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for folder in sorted(args.rivals.iterdir()) if args.rivals else ():
        sys.path.append(str(folder))
    titles = [build().title for build in CASES]
    print(f"| detector | {' | '.join(titles)} | cost |")
    print(f"|{'---|' * (len(titles) + 2)}")
    for detector in DETECTORS:
        if not detector.version:
            print(f"{detector.package} is not installed, and left out", file=sys.stderr)
            continue
        cells = [*verdicts(detector), cost(detector, 2 if args.quick else 9)]
        print(f"| {detector.name} {detector.version} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
