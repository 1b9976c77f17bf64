"""What `conforms` asks of a freezing method: each claim is a function that yields a sentence for everything against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

from runner.contract import Row
from runner.errors import SkippedError, listed
from runner.experiment import Outcome, experiment
from runner.freezing.groups import by_role
from runner.freezing.selection import select
from runner.methods.base import TRAPS, Example, FreezingMethod
from runner.proof.verdict import run_verdict
from runner.testing.in_memory import config_with
from runner.training.models import MLP

if TYPE_CHECKING:
    from torch import nn

MID_RUN = ("schedule=after", "schedule.step=3", "batches=6")
# For each trap, overrides under which a method that falls into the trap leaks.
OVERRIDES_OF_TRAPS = {
    "any_step": (),
    "weight_decay": ("optimizer.weight_decay=0.1",),
    "optimizer_rule": ("optimizer=asgd",),
    "optimizer_ignores_lr": ("optimizer=rprop",),
    "scheduler": ("scheduler=one_cycle", "batches=5"),
    "mid_run": MID_RUN,
    "zeros_mid_run": (*MID_RUN, "zero_grad_to_none=false"),
    "lbfgs_mid_run": (*MID_RUN, "optimizer=lbfgs", "groups=one"),
    "scheduler_mid_run": (*MID_RUN, "scheduler=lambda", "optimizer.momentum=0"),
}
FREEZES = ("backbone", "head", "bias", "batchnorm", "all")  # choices of `freeze`
SMALL = {"cost": "off", "threads": 1, "device": "cpu"}  # for models so small that a second thread costs time
BASELINE = {"_target_": "runner.methods.requires_grad.RequiresGrad"}


@dataclass(frozen=True)
class Candidate:
    """A freezing method that is to be checked.

    Attributes:
        method: its class.
        options: the arguments with which it is built.
        node: the node `method` of a config that builds it.
    """

    method: type[FreezingMethod]
    options: Mapping[str, Any]
    node: Mapping[str, Any]

    def build(self) -> FreezingMethod:
        """Return a new object of the class."""
        return self.method(**self.options)

    def run(self, *overrides: str) -> Outcome:
        """Return the outcome of a run of a small model with this method. Raises SkippedError if the method refuses it."""
        return experiment(config_with(*overrides, method=dict(self.node), **SMALL))

    def freezes(self) -> list[str]:
        """Return the first two choices of `freeze` with which the method works. Raises SkippedError if it has none."""
        found, skipped = [], None
        for freeze in FREEZES:
            try:
                self.run(f"freeze={freeze}", "batches=1")
                found.append(freeze)
            except SkippedError as error:
                skipped = error
            if len(found) == 2:
                break
        if skipped and not found:
            raise skipped
        return found


def docstring(candidate: Candidate) -> Iterator[str]:
    """Its docstring says what it does."""
    if len((candidate.method.__doc__ or "").split()) <= 5:
        yield f"{candidate.method.__name__} has no docstring of more than five words."


def known_traps(candidate: Candidate) -> Iterator[str]:
    """Its leaks_under holds keys of TRAPS."""
    if unknown := set(candidate.build().leaks_under) - TRAPS.keys():
        yield f"Not among them: {listed(sorted(unknown))}."


def traps(candidate: Candidate) -> Iterator[str]:
    """It leaks under the traps of its leaks_under, and under no other."""
    leaks_under, freezes = candidate.build().leaks_under, candidate.freezes()
    for trap, overrides in OVERRIDES_OF_TRAPS.items():
        expected = "leaked" if trap in leaks_under else "held"
        if trap == "lbfgs_mid_run" and candidate.method.groups is not FreezingMethod.groups:
            expected = "skipped"  # the method needs a second group, and LBFGS accepts only one
        actual, told = _verdict_under(candidate, overrides, freezes)
        if actual != expected and (actual != "skipped" or expected == "leaked"):
            yield f"{trap} ({TRAPS[trap]}): expected {expected}, was {actual}{told}."


def _verdict_under(candidate: Candidate, overrides: Sequence[str], freezes: Sequence[str]) -> tuple[str, str]:
    """Return the worst verdict of runs with these overrides, or `skipped`, and what a message says of it."""
    verdict, told = "skipped", ""
    for freeze in freezes:
        try:
            rows = candidate.run(f"freeze={freeze}", *overrides).rows
        except SkippedError as skipped:
            told = told or f": {skipped}"
            continue
        if (verdict := run_verdict(rows)) == "leaked":
            return verdict, f": {listed([_told(row) for row in rows if row['verdict'] == 'leaked'], most=3)}"
        told = ""
    return verdict, told


def holds(candidate: Candidate) -> Iterator[str]:
    """Frozen tensors are held and all other parameters are trained, whatever is frozen."""
    leaks = "any_step" in candidate.build().leaks_under
    for freeze, buffers in product(FREEZES, ("live", "frozen")):
        try:
            rows = candidate.run(f"freeze={freeze}", f"freeze.buffers={buffers}").rows
        except SkippedError:
            continue
        for row in rows:
            expected = ("trained",) if not row["frozen"] else ("leaked",) if leaks else ("held", "returned")
            if row["kind"] == "buffer":
                expected = ("held",) if row["frozen"] else ("still", "drifted")
            if row["verdict"] not in expected:
                yield f"freeze={freeze} freeze.buffers={buffers}: {_told(row)}."


def as_built(candidate: Candidate) -> Iterator[str]:
    """What the model's own flags froze is held, and the rest is trained."""
    build = f"model.build={{_target_: {__name__}.half_frozen, features: [8], width: 4, classes: 2}}"
    options = ("model.input=[8]", "model.classes=2", "freeze.patterns=['@as_built']", "freeze.keep=[]")
    frozen = {name for name, parameter in half_frozen(features=[8]).named_parameters() if not parameter.requires_grad}
    try:
        rows = candidate.run(build, *options).rows
    except SkippedError:
        return
    for row in rows:
        is_held = row["verdict"] in ("held", "returned")
        if row["kind"] == "parameter" and (is_held != (row["name"] in frozen) or row["verdict"] == "idle"):
            yield f"{_told(row)}."


def half_frozen(**options: Any) -> nn.Module:
    """Return an MLP whose builder froze its first layers."""
    model = MLP(**options)
    for layer in (model.body, model.norm):
        layer.requires_grad_(False)
    return model


def undone(candidate: Candidate) -> Iterator[str]:
    """Closing undo restores all that it changed in the model: tensors, flags, hooks, modules and modes."""
    import torch

    model = MLP([8])
    before = _state(model)
    method = candidate.build()
    method.example = Example(lambda model, batch: model(batch).sum(), torch.randn(4, 8))
    selection = select(model, ["body", "norm"])
    if method.skip(model, selection):
        return
    with ExitStack() as undo:
        prepared = method.prepare(model, selection, undo)
        optimizer = torch.optim.SGD(method.groups(by_role(prepared, selection), selection), lr=0.1)
        method.attach(optimizer, selection, undo)
    if changed := [name for name, state in _state(model).items() if before.get(name) != state]:
        yield f"Not restored: {listed(sorted(changed), most=6)}."
    if lost := sorted(before.keys() - _state(model).keys()):
        yield f"No longer there: {listed(lost, most=6)}."


def same_bits(candidate: Candidate) -> Iterator[str]:
    """Where it holds, it trains all other parameters to the same bits as requires_grad does, without weight decay."""
    for freeze, optimizer in product(FREEZES[:-1], ("sgd", "adamw", "rmsprop")):
        overrides = (f"freeze={freeze}", f"optimizer={optimizer}", "optimizer.weight_decay=0", "batches=4")
        try:
            outcome = candidate.run(*overrides)
        except SkippedError:
            continue
        if run_verdict(outcome.rows) == "held" and outcome.record["trained_digest"] != _baseline_digest(*overrides):
            yield f"Not with freeze={freeze} optimizer={optimizer}."


def same_bits_in_any_groups(candidate: Candidate) -> Iterator[str]:
    """How the config cuts the parameter groups changes no bit."""
    freeze = f"freeze={candidate.freezes()[0]}"
    default = candidate.run(freeze).record["trained_digest"]
    for cut in ("one", "parameter"):
        if candidate.run(freeze, f"groups={cut}").record["trained_digest"] != default:
            yield f"Not with groups={cut}."


@lru_cache(maxsize=20)
def _baseline_digest(*overrides: str) -> str | None:
    """Return the digest of what is trained in a run with `requires_grad`."""
    return experiment(config_with(*overrides, method=BASELINE, **SMALL)).record["trained_digest"]


def _told(row: Row) -> str:
    """Return what a message says of a row."""
    cause = f" ({row['cause']})" if row["cause"] else ""
    return f"{row['name']}, {'frozen' if row['frozen'] else 'not frozen'}, {row['verdict']}{cause}"


def _state(model: nn.Module) -> dict[str, Any]:
    """Return the identity, flags and hooks of each tensor, and the identity, mode, attributes and hooks of each module."""
    parameters = {
        name: (id(p), p.requires_grad, not p._backward_hooks, not p._post_accumulate_grad_hooks)
        for name, p in model.named_parameters()
    }
    buffers = {name: id(buffer) for name, buffer in model.named_buffers()}
    modules = {
        name or "the model": (id(m), m.training, sorted(vars(m)), _counted_hooks(m)) for name, m in model.named_modules()
    }
    return {**parameters, **buffers, **modules, "the order of the tensors": [*parameters, *buffers, *modules]}


def _counted_hooks(module: nn.Module) -> dict[str, int]:
    """Return {attribute: how many hooks a module has there}, for hooks of every kind."""
    return {key: len(hooks) for key, hooks in vars(module).items() if key.endswith("_hooks")}


CLAIMS: tuple[Callable[[Candidate], Iterator[str]], ...] = (
    docstring,
    known_traps,
    traps,
    holds,
    as_built,
    undone,
    same_bits,
    same_bits_in_any_groups,
)
