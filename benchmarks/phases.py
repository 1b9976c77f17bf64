"""What phases cost: a switch compared with a training step, a step of a run of 100 phases, and many parameter groups.

Run from the project's root: `python -m benchmarks.phases [--quick] [--threads N] [--device cuda] [PART ...]`. Parts are
`switch`, `steps` and `groups`. All train ResNet-18, in loops that take turns step by step in one process. A switch is all
that is done besides the steps: the rows of the phase that ends, copies, groups, the method, and what the audit does more in
the first two steps of a phase. So its time is that of these two steps minus that of two later ones of the same phase.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.timing import print_ratios, read_clocks
from runner import select
from runner.assemble.setup import assembled
from runner.config.check import check
from runner.config.compose import compose_config
from runner.experiment import TrainingState, audit_options, training_steps
from runner.freezing.phases.factors import RateFactors
from runner.freezing.phases.phase import Phase
from runner.proof.audit import audit

PHASE = 5  # steps
BLOCKS = ("conv1", "layer1", "layer2", "layer3", "layer4")
UNFROZEN = ("method=none", "freeze=none")
SETTINGS = {  # what is switched, samples, size of a sample: overrides
    "block by block, 8 of 3x224x224": (8, 224, ("freeze=backbone", "schedule=block_coordinate")),
    "block by block, AdamW, 8 of 3x224x224": (8, 224, ("freeze=backbone", "schedule=block_coordinate", "optimizer=adamw")),
    "gradual, 8 of 3x224x224": (8, 224, ("freeze=backbone", "schedule=gradual")),
    "block by block, 32 of 3x224x224": (32, 224, ("freeze=backbone", "schedule=block_coordinate")),
    "block by block, 8 of 3x32x32": (8, 32, ("freeze=backbone", "schedule=block_coordinate")),
    "gradual, 8 of 3x32x32": (8, 32, ("freeze=backbone", "schedule=gradual")),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1e-6, momentum=0.9),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-6),
}


@contextmanager
def by_runner(samples: int, size: int, steps: int, *overrides: str) -> Iterator[Iterator[Any]]:
    """Yield the steps of a run (an iterator), set up as in runner/experiment.py."""
    data = (f"model.input=[3,{size},{size}]", f"data.batch_size={samples}", f"batches={steps}", "device=cpu")
    config = check(compose_config(f"threads={torch.get_num_threads()}", *data, *overrides))
    with (
        assembled(config) as setup,
        audit(setup.model, setup.phases[0].selection, setup.optimizer, **audit_options(setup)) as report,
    ):
        yield training_steps(setup, report, TrainingState())


def times_in_turn(samples: int, size: int, steps: int, *runs: Sequence[str]) -> list[list[float]]:
    """Return for each run the CPU seconds of each of its steps; the runs take turns step by step."""
    times: list[list[float]] = [[] for _ in runs]
    with ExitStack() as stack:
        loops = [stack.enter_context(by_runner(samples, size, steps, *overrides)) for overrides in runs]
        for number in range(steps):
            for place in range(len(loops)) if number % 2 else reversed(range(len(loops))):
                start = read_clocks()
                next(loops[place])
                times[place].append((read_clocks() - start).cpu)
    return times


def has_look(step: int) -> bool:
    """Return whether the audit compares all bits after a step."""
    return step & (step - 1) == 0


def in_phases(times: Sequence[float]) -> Iterator[tuple[int, Sequence[float]]]:
    """Yield (number of its first step, the seconds of its steps) for each phase but the first."""
    for first in range(PHASE, len(times), PHASE):
        yield first + 1, times[first : first + PHASE]


def measure_switches(quick: bool) -> None:
    """Print the cost of a switch in training steps, for each setting."""
    for label, (samples, size, overrides) in SETTINGS.items():
        if quick and size > 32:
            continue
        seconds: list[float] = []
        in_steps: list[float] = []
        for _ in range(1 if quick else 2):
            steps = PHASE * 2 * len(BLOCKS) if "schedule=gradual" not in overrides else PHASE * (1 + len(BLOCKS))
            every = f"schedule.every={PHASE}"
            turns, whole = times_in_turn(samples, size, steps, (*overrides, every), UNFROZEN)
            for first, phase in in_phases(turns):
                if not has_look(first) and not has_look(first + 1):
                    seconds.append(phase[0] + phase[1] - 2 * median(phase[2:]))
                    in_steps.append(seconds[-1] / median(whole[PHASE:]))
        note = f"{median(seconds) * 1e3:.0f} ms, a step is {median(whole[PHASE:]) * 1e3:.0f} ms"
        print_ratios(f"a switch / a step, {label}", in_steps, 1.0, note)


def changing_factors(phases: int) -> str:
    """Return the override of a schedule in which the same is frozen in all phases; each gives another block a new factor."""
    items = [
        f"{{at: {1 + number * PHASE}, factors: {{{BLOCKS[number % len(BLOCKS)]}: {0.5 + number / 1000}}}}}"
        for number in range(1, phases)
    ]
    return f"schedule.phases=[{', '.join(items)}]"


def measure_steps(quick: bool) -> None:
    """Print what a step costs in a run of many phases, compared with the same run in one."""
    phases, (samples, size) = (10, (4, 32)) if quick else (100, (8, 128))
    frozen = "freeze={patterns: [bn1]}"
    many = (frozen, "schedule=explicit", changing_factors(phases))
    turns, one = times_in_turn(samples, size, PHASE * phases, many, (frozen,))
    pairs = [(a, b) for (_, a), (_, b) in zip(in_phases(turns), in_phases(one), strict=True)]
    label = f"a step of {phases} phases / of one, {samples} of 3x{size}x{size}"
    note = f"a step is {median(one) * 1e3:.0f} ms"
    print_ratios(f"{label}, without switches", [median(a[2:]) / median(b[2:]) for a, b in pairs], 1.01, note)
    print_ratios(f"{label}, {PHASE} steps each, with switches", [sum(a) / sum(b) for a, b in pairs])
    switch = median(a[0] + a[1] - b[0] - b[1] for a, b in pairs)
    length = switch / (0.01 * median(one))
    print(f"  a switch is {switch * 1e3:.0f} ms, so that it is under 1% of the steps of a phase of {length:.0f} or more")


class Stepping:
    """An optimizer of ResNet-18 with its parameters in several groups, whose rates are multiplied in each step."""

    def __init__(self, build: Callable[..., torch.optim.Optimizer], device: str, group_of: Callable[[str], str]) -> None:
        torch.manual_seed(0)
        self.device, self.model = device, resnet18().to(device)
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            groups.setdefault(group_of(name), []).append(parameter)
        self.optimizer, self.undo = build([{"name": name, "params": params} for name, params in groups.items()]), ExitStack()
        if len(groups) > 1:
            group_names = {id(parameter): name for name, parameters in groups.items() for parameter in parameters}
            factors = RateFactors(self.optimizer, group_names, self.undo)
            factors.begin(Phase(1, select(self.model, []), factors=dict.fromkeys(groups, 0.5)))

    def time(self, steps: int = 10) -> float:
        """Return the seconds of a step: CPU time on a CPU, otherwise elapsed time."""
        start = read_clocks()
        for _ in range(steps):
            self.optimizer.step()
        if self.device != "cpu":
            torch.cuda.synchronize()
        time = read_clocks() - start
        return (time.cpu if self.device == "cpu" else time.wall) / steps


def measure_groups(quick: bool, device: str) -> None:
    """Print what a step of an optimizer takes with many parameter groups, compared with one group."""
    for name, build in OPTIMIZERS.items():
        one = Stepping(build, device, lambda name: "all")
        for label, group_of in {"6 groups (blocks)": block_of, "62 groups": lambda name: name}.items():
            many = Stepping(build, device, group_of)
            pairs = []
            for number in range(5 if quick else 41):
                times = {each: each.time() for each in ((one, many) if number % 2 else (many, one))}
                pairs.append((times[one], times[many]))
            del pairs[0]  # with what is done once
            in_ms = [median(times) * 1e3 for times in zip(*pairs, strict=True)]
            note = f"{in_ms[1]:.2f} ms against {in_ms[0]:.2f} ms"
            print_ratios(f"{name}.step(), {label} / one group, {device}", [b / a for a, b in pairs], None, note)


def block_of(name: str) -> str:
    """Return the block of a parameter, by its name."""
    return name.split(".")[0].replace("bn1", "conv1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="switch, steps, groups (default: all)")
    parser.add_argument("--quick", action="store_true", help="small settings, to check that everything works")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where the groups are measured")
    args = parser.parse_args()
    if unknown := set(args.parts) - {"switch", "steps", "groups"}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from switch, steps, groups")
    torch.set_num_threads(args.threads)
    parts = args.parts or ["switch", "steps", "groups"]
    if "switch" in parts:
        measure_switches(args.quick)
    if "steps" in parts:
        measure_steps(args.quick)
    if "groups" in parts:
        measure_groups(args.quick, args.device)


if __name__ == "__main__":
    main()
