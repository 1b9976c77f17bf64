"""Rehearse anyone's training loop on the model itself: make some steps under an audit, then put everything back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from runner.errors import ConfigError
from runner.foresight.effects import names_changed
from runner.foresight.rehearsal import Rehearsal, RehearsedPhase, advance, run_phase
from runner.foresight.unreached import ForwardCalls, watching_calls
from runner.freezing.groups import group_lr, groups_by_tensor
from runner.freezing.selection import Selection
from runner.kept_state import contents_kept, gradients_kept, state_kept
from runner.proof.audit import audit
from runner.proof.causes.optimizer_copy import stepped_tensors
from runner.proof.changes import Snapshot, snapshot
from runner.proof.steps import has_compiled_a_step
from runner.seeding import preserve_random_state, preserve_settings
from runner.tensors import map_tensors, same_bits
from runner.tensors.optimizer_state import needs_closure
from runner.training.loop import Step, train_in_present_modes

LEAST_STEPS, MOST_STEPS = 2, 8  # that are made; more than the least while a trainable parameter has not changed
FARTHEST = 1000  # steps of the scheduler that are looked at


@dataclass(frozen=True)
class Loop:
    """A training loop that has not begun.

    Attributes:
        model: the model, or one module that contains several.
        optimizer: the optimizer that trains it.
        task: a function (what the user calls the model, batch) -> loss.
        given: what the user calls the model: the model, or {name: one of several}.
        batch: a batch.
        scheduler: the scheduler that is called after each step, a function that builds it for the optimizer, or None.
        set_to_none: whether gradients are set to None before each step, or to zeros.
        zero_grad: whether that is `before` each backward pass, or `after` each step; None if it is not known.
    """

    model: nn.Module
    optimizer: Optimizer
    task: Callable[[Any, Any], Tensor]
    given: Any
    batch: Any
    scheduler: Any = None
    set_to_none: bool = True
    zero_grad: str | None = None

    @property
    def left_gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Each tensor of the optimizer with the gradient that it has now, if the first step would be made with that too.

        With an optimizer that needs a closure it would not: each call of a closure computes gradients anew.
        """
        if self.zero_grad == "before" or needs_closure(self.optimizer):
            return []
        return [(each, each.grad) for each in stepped_tensors(self.optimizer) if each.grad is not None]

    @property
    def has_several_models(self) -> bool:
        """Whether the user has a mapping of several models."""
        return self.given is not self.model

    def build_scheduler(self) -> Any:
        """Return the scheduler, built now if a function is to build it; None if there is none."""
        is_built = self.scheduler is None or hasattr(self.scheduler, "step")
        return self.scheduler if is_built else self.scheduler(self.optimizer)


@dataclass
class Trial:
    """What some steps of a training loop have shown.

    Attributes:
        before: the tensors of the model and copies of them, made before the first step.
        rehearsal: which tensors changed, and why; None if no step could be made.
        error: why no step could be made, or "".
        why_unknown: {name: why it is not known what changed the tensor}.
        calls: the modules that the first forward pass called.
        written: the names of the tensors that the first forward pass changed.
        losses: the losses of the steps.
        without_gradient: the ids of the optimizer's tensors that have no gradient after the last step.
    """

    before: Snapshot
    rehearsal: Rehearsal | None = None
    error: str = ""
    why_unknown: dict[str, str] = field(default_factory=dict)
    calls: ForwardCalls | None = None
    written: set[str] = field(default_factory=set)
    losses: list[float] = field(default_factory=list)
    without_gradient: set[int] = field(default_factory=set)


def rehearse_in_place(loop: Loop, selection: Selection) -> Trial:
    """Make the first steps of a training loop, and one at the highest rate of its scheduler; then put everything back.

    `selection`: what is declared frozen. Raises what the loss raises; if the optimizer or the scheduler raises, the result
    says so.
    """
    trial, loss_errors = Trial(snapshot(loop.model)), list[BaseException]()
    left = [(each, gradient.clone()) for each, gradient in loop.left_gradients] if loop.zero_grad == "after" else []

    def loss(_: nn.Module, number: int) -> Tensor:
        batch = map_tensors(loop.batch, Tensor.clone)  # the model may write to it
        is_first = trial.calls is None
        if is_first:
            for tensor, gradient in left:  # which were removed before the step, as the loop does not
                tensor.grad = gradient
        try:
            with watching_calls(loop.model) if is_first else nullcontext(trial.calls) as trial.calls:
                value = loop.task(loop.given, batch)
        except Exception as error:
            loss_errors.append(error)
            raise
        if is_first:
            trial.written.update(names_changed(trial.before, loop.model))
        return value

    def make_steps(numbers: Any, **options: Any) -> Iterator[Step]:
        options |= {"zero_grad_to_none": loop.set_to_none}
        for step in train_in_present_modes(loop.model, loop.optimizer, loss, numbers, **options):
            trial.losses.append(step.loss.item())
            yield step

    with everything_kept(loop, trial.before):
        try:
            _rehearse(loop, selection, trial, make_steps)
        except ConfigError:
            raise
        except Exception as error:
            if any(error is each for each in loss_errors):
                raise
            trial.error = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return trial


def _rehearse(loop: Loop, selection: Selection, trial: Trial, make_steps: Callable[..., Iterator[Step]]) -> None:
    """Make the steps, and store in `trial` what they have shown."""
    optimizer = loop.optimizer
    steps = range(1, 1 + (steps_of_scheduler(loop) if loop.scheduler is not None else MOST_STEPS))
    full_steps = _until_all_have_moved(loop, trial.before, selection, steps[:MOST_STEPS])
    with audit(loop.model, selection, optimizer, before=trial.before, watch_forward=True) as report:
        scheduler = loop.build_scheduler()  # the audit has seen the rates that were declared
        lrs = run_phase(make_steps, optimizer, scheduler, steps, restore_lrs=ExitStack(), full_steps=full_steps)
        trial.without_gradient = {id(each) for each in stepped_tensors(optimizer) if each.grad is None}
    trial.rehearsal, trial.why_unknown = (
        Rehearsal([RehearsedPhase(steps, report.rows)], report.rows, lrs, scheduler),
        report.why_unknown,
    )


def _until_all_have_moved(loop: Loop, before: Snapshot, selection: Selection, steps: range) -> Iterator[int]:
    """Yield LEAST_STEPS numbers of steps, and more of them while a parameter that may still move has not.

    Some gradients are 0 only in the first steps, such as those of an adapter whose second matrix begins at 0.
    """
    trainable = {n: e.tensor for n, e in before.entries.items() if e.kind == "parameter" and e.tensor not in selection}
    for number in steps:
        if number > LEAST_STEPS:
            group_of = groups_by_tensor([loop.optimizer])
            may_move = [n for n, t in trainable.items() if id(t) in group_of and group_lr(group_of[id(t)][1])]
            if not any(same_bits(before.values[name], trainable[name]) for name in may_move):
                return
        yield number


def steps_of_scheduler(loop: Loop) -> int:
    """Return how many steps the scheduler can be called for, at most FARTHEST; it and the optimizer are put back.

    Raises what building the scheduler raises, or calling it for the first time.
    """
    with contents_kept(loop.optimizer, loop.scheduler, besides=_parts_of(loop.model)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is called before the optimizer
        scheduler = loop.build_scheduler()
        for count in range(FARTHEST):
            try:
                advance(scheduler)
            except Exception:  # a scheduler for a given number of steps has come to its end
                if not count:
                    raise
                return count
    return FARTHEST


@contextmanager
def everything_kept(loop: Loop, before: Snapshot) -> Iterator[None]:
    """On leaving the block, put back what training changes.

    That is the model with its buffers, modes, flags, gradients and the attributes of its modules; what the optimizer, the
    scheduler and the loss hold; what other optimizers hold that step in the block, as in a hook; the random states, and the
    settings of torch.
    """
    tensors = {id(each): each for each in (*stepped_tensors(loop.optimizer), *loop.model.parameters())}
    parts, known = _parts_of(loop.model), {id(loop.optimizer)}
    with ExitStack() as undo, preserve_settings(), preserve_random_state():
        undo.enter_context(gradients_kept([each for each in tensors.values() if each.is_leaf]))
        attributes = map(vars, loop.model.modules())
        undo.enter_context(contents_kept(loop.optimizer, loop.scheduler, loop.task, *attributes, besides=parts))
        undo.enter_context(state_kept(loop.model, before.values))

        def before_step(optimizer: Optimizer, *_: Any) -> None:
            if id(optimizer) not in known:
                known.add(id(optimizer))
                undo.enter_context(contents_kept(optimizer, besides=parts))

        if not has_compiled_a_step():
            handle = register_optimizer_step_pre_hook(torch.compiler.disable(before_step, recursive=False))
            undo.callback(handle.remove)
        torch.set_grad_enabled(True)
        yield


def _parts_of(model: nn.Module) -> list[Any]:
    """Return the modules of a model and their tensors, which `state_kept` puts back."""
    return [*model.modules(), *model.parameters(), *model.buffers()]
