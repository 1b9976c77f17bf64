"""Find out what writes to frozen tensors during a training step: a forward pass, the optimizer step, or other code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim import Optimizer

from runner.contract import LeakCause
from runner.proof.replay import find_causes
from runner.tensors import TensorEntry, same_bits

AUDIT_HOOKS = 2  # step hooks that the audit itself registers on an optimizer
STEPS_TO_WAIT = 4  # steps per optimizer after which the tracer no longer waits for one that has not stepped


@dataclass
class WatchedTensor:
    """One tensor that was declared frozen, and what was seen to write to it.

    Attributes:
        registrations: (module, key) for each place where the tensor is registered, such as (layer, "weight").
        tensor: the tensor that was registered in these places when bits were last compared.
        last_value: a copy of the tensor's value when bits were last compared.
        writers: what has changed it since the last optimizer step: `forward_write` (code inside a forward pass), `step` (the
            optimizer's step) or `outside_write` (any other code).
        forward_depth: the number of nested forward passes that are running now, of modules that contain the tensor.
        is_substituted: whether another tensor is in its place during a forward pass, as by `torch.func.functional_call`.
    """

    registrations: list[tuple[nn.Module, str]]
    tensor: Tensor
    last_value: Tensor
    writers: set[str] = field(default_factory=set)
    forward_depth: int = 0
    is_substituted: bool = False

    @property
    def current(self) -> Tensor | None:
        """The tensor that is registered now where the watched tensor was, which may be a new one; None if there is none."""
        for module, key in self.registrations:
            for registry in (module._parameters, module._buffers):
                if registry.get(key) is not None:
                    return registry[key]
        return None


class LeakTracer:
    """Watch frozen tensors by hooks, and find out why they change from the end of one optimizer step to the end of the next.

    The training is not changed. When a step begins, the tracer can replay it: it first does the step on copies, several
    times, with one thing changed at a time. After each step, call `on_step_end`. It updates two attributes: `causes`,
    {tensor name: why the tensor changed}, and `errors`, {tensor name: why no cause was found}.

    Args:
        model: the model that is trained.
        optimizers: all optimizers that train it.
        tensors: {name: (entry when the audit began, current tensor)} for the tensors to watch.
        initial_values: {name: copy of the value when the tensor was declared frozen}.
        declared_lrs: for each optimizer, the learning rates of its groups when the tensors were declared frozen.
        replay_all: replay the first step of each optimizer for all tensors, not only for those that have already changed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        tensors: Mapping[str, tuple[TensorEntry, Tensor]],
        initial_values: Mapping[str, Tensor],
        declared_lrs: Sequence[Sequence[float]],
        replay_all: bool = False,
    ) -> None:
        self.optimizers, self.initial_values = optimizers, initial_values
        self.declared_lrs, self.replay_all = declared_lrs, replay_all
        modules = dict(model.named_modules(remove_duplicate=False))
        self.watched: dict[str, WatchedTensor] = {}
        self.names_within: dict[int, set[str]] = {}  # by id of a module: the watched tensors in it and its submodules
        for name, (entry, tensor) in tensors.items():
            paths = [full_name.rpartition(".") for full_name in entry.names]
            registrations = [(modules[owner], key) for owner, _, key in paths if owner in modules]
            unchanged = same_bits(initial_values[name], tensor)
            last_value = initial_values[name] if unchanged else tensor.detach().clone()
            self.watched[name] = WatchedTensor(registrations, tensor, last_value)
            for full_name in entry.names:
                parts = full_name.split(".")[:-1]
                for count in range(len(parts) + 1):
                    self.names_within.setdefault(id(modules.get(".".join(parts[:count]))), set()).add(name)
        self.in_step = self.has_closure = self.has_other_hooks = False  # of the current or last optimizer step
        self.steps_ended: list[int] = []  # the index of the optimizer for each step that has ended
        self.replayed: set[str] = set()  # the tensors for which the current step has been replayed
        self.replay_causes: dict[str, LeakCause] = {}  # what that replay has found
        self.causes: dict[str, LeakCause] = {}
        self.errors: dict[str, str] = {}
        # Global hooks, because hooks on a module would disable the fast path of a transformer in eval mode.
        self.hooks = [
            register_module_forward_pre_hook(self._on_forward_begin),
            register_module_forward_hook(self._on_forward_end, always_call=True),
            *(each.register_step_pre_hook(partial(self._on_step_begin, i)) for i, each in enumerate(optimizers)),
        ]

    @property
    def is_done(self) -> bool:
        """Whether the tracer has seen enough steps to stop.

        That is so when every optimizer has made a step, or when all optimizers together have made STEPS_TO_WAIT * (number of
        optimizers) steps.
        """
        all_stepped = len(set(self.steps_ended)) == len(self.optimizers)
        return all_stepped or len(self.steps_ended) >= STEPS_TO_WAIT * len(self.optimizers)

    def close(self) -> None:
        """Stop watching: remove all hooks."""
        for hook in self.hooks:
            hook.remove()

    def on_step_end(self, index: int) -> None:
        """Record in `causes` why watched tensors have changed since the end of the previous step.

        Call this when a step of `self.optimizers[index]` has ended.
        """
        self._record_writers(self.watched.values())
        self.in_step = False
        self.steps_ended.append(index)
        for name in self._changed_without_cause():
            writers = self.watched[name].writers
            if writers and (cause := self._cause_of(name, writers)):
                self.causes[name] = cause
        self.replayed.clear()
        self.replay_causes.clear()
        for watched in self.watched.values():
            watched.writers.clear()

    def _tensors_to_replay(self, index: int) -> dict[str, Tensor]:
        """Return {name: current tensor} for the tensors for which the step that begins now is first done on copies.

        The step is one of `self.optimizers[index]`. If `replay_all` is True and this is the first step of that optimizer,
        the tensors are all watched ones. Otherwise they are those that have changed for a reason not yet known.
        """
        if self.replay_all and index not in self.steps_ended:
            current = {name: watched.current for name, watched in self.watched.items()}
            return {name: tensor for name, tensor in current.items() if tensor is not None}
        return self._changed_without_cause()

    def _changed_without_cause(self) -> dict[str, Tensor]:
        """Return {name: current tensor} for the watched tensors that differ from their initial values.

        Tensors whose cause of change is already known are left out.
        """
        current = {name: watched.current for name, watched in self.watched.items() if name not in self.causes}
        return {
            name: tensor
            for name, tensor in current.items()
            if tensor is not None and not same_bits(self.initial_values[name], tensor)
        }

    def _cause_of(self, name: str, writers: set[str]) -> LeakCause | Literal[""]:
        """Return why the tensor `name` changed, or "" if the cause is unknown.

        `writers`: what changed the tensor: `forward_write`, `outside_write` or `step`. If the step was done on copies and no
        cause was found, `errors` has the reason.
        """
        other_writers: tuple[LeakCause, ...] = ("forward_write", "outside_write")
        for writer in other_writers:
            if writer in writers:
                return writer
        if name not in self.replayed or name in self.replay_causes or name in self.errors:
            return self.replay_causes.get(name, "")
        if self.has_other_hooks and not self.has_closure:
            return "outside_write"
        if self.has_closure:
            self.errors[name] = "the step calls its closure several times, and replaying the first call does not move it"
        else:
            self.errors[name] = "the step moves it, but a replay of the step on copies does not"
        return ""

    def _on_step_begin(self, index: int, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do the step that begins now on copies, to find out why it moves frozen tensors.

        This is the step pre-hook of `self.optimizers[index]`; `args` and `kwargs` are the arguments of the step. Without a
        closure, the step is done on copies at once, and None is returned. With a closure, it is done on copies after the
        first call of the closure, which computes the gradients. The hook then returns (args, kwargs) with the closure
        wrapped to do so.
        """
        self._record_writers(self.watched.values())
        self.in_step = True
        hook_count = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
        self.has_other_hooks = hook_count > AUDIT_HOOKS
        closure_is_first = "closure" in list(signature(type(optimizer).step).parameters)[1:2]
        closure: Any = args[1] if closure_is_first and len(args) > 1 else kwargs.get("closure")
        self.has_closure = callable(closure)
        if not self.has_closure:
            self._replay(index, self._tensors_to_replay(index))
            return None

        @wraps(closure)
        def closure_then_replay(*closure_args: Any, **closure_kwargs: Any) -> Any:
            loss = closure(*closure_args, **closure_kwargs)
            if not self.replayed:  # first call: the gradients are those of the step, and no parameter has moved yet
                self._replay(index, self._tensors_to_replay(index))
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_then_replay}
        return (args[0], closure_then_replay, *args[2:]), kwargs

    def _replay(self, index: int, tensors: dict[str, Tensor]) -> None:
        """Do a step of `self.optimizers[index]` on copies, and record why the step moves each of `tensors`, {name: tensor}.

        If the step cannot be done on copies, the reason is recorded in `errors`.
        """
        if tensors:
            self.replayed.update(tensors)
            lrs = self.declared_lrs[index]
            causes, error = try_find_causes(self.optimizers[index], tensors, lrs, self.has_closure)
            self.replay_causes.update(causes)
            self.errors.update(dict.fromkeys(tensors if error else (), error))

    def _on_forward_begin(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook: compare the watched tensors in `module` with their last values before the module's forward pass.

        A tensor that differs was not changed by this forward pass: the code that ran before is recorded as its writer.
        """
        if torch.compiler.is_compiling():  # the hook must not become part of the compiled graph
            return
        within = self._watched_within(module)
        for watched in within:
            if not watched.forward_depth:
                watched.is_substituted = watched.current is not watched.tensor
        self._record_writers(watched for watched in within if not watched.is_substituted)
        for watched in within:
            watched.forward_depth += 1

    def _on_forward_end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: compare the watched tensors in `module` with their last values after the module's forward pass.

        For a tensor that differs, this forward pass is recorded as its writer.
        """
        if torch.compiler.is_compiling():
            return
        within = self._watched_within(module)
        self._record_writers(watched for watched in within if not watched.is_substituted)
        for watched in within:
            watched.forward_depth = max(0, watched.forward_depth - 1)

    def _watched_within(self, module: nn.Module) -> list[WatchedTensor]:
        """Return the watched tensors that are registered in a module or its submodules."""
        module = getattr(module, "_orig_mod", module)  # a compiled module does not call the module that it was made from
        return [self.watched[name] for name in self.names_within.get(id(module), ())]

    def _record_writers(self, tensors: Iterable[WatchedTensor]) -> None:
        """Compare each of `tensors` with its last value; if a tensor differs, record in its `writers` what is running now.

        This is `forward_write` during a forward pass of a module that contains the tensor; otherwise `step` during an
        optimizer step; otherwise `outside_write`. The tensor's current value becomes its last value.
        """
        for watched in tensors:
            tensor = watched.current
            if tensor is not None and not same_bits(watched.last_value, tensor):
                writer = "step" if self.in_step else "outside_write"
                watched.writers.add("forward_write" if watched.forward_depth else writer)
                watched.last_value = tensor.detach().clone()
            watched.tensor = watched.tensor if tensor is None else tensor


def try_find_causes(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], declared_lrs: Sequence[float], with_closure: bool = False
) -> tuple[dict[str, LeakCause], str]:
    """Do a step of the optimizer on copies, and return ({tensor name: why the step moves the tensor}, error message).

    The message is empty, unless the step could not be done on copies. `tensors`: {name: frozen tensor}. `declared_lrs`: the
    learning rate of each parameter group when the tensors were declared frozen. `with_closure`: call `step` with a closure.
    """
    try:
        return find_causes(optimizer, tensors, declared_lrs, with_closure), ""
    except Exception as error:  # a third-party optimizer may raise anything, and the training must go on
        return {}, f"a step of {type(optimizer).__name__} could not be replayed ({type(error).__name__}: {error})"
