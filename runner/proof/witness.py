"""Who wrote it: a witness of one step tells whether a forward pass, the optimizer, or somebody else changed a tensor."""

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
from runner.proof.replay import causes_in_step
from runner.tensors import Entry, same_bits


@dataclass
class WatchedTensor:
    """A tensor declared frozen. `writers` are those seen to change it since the witness began."""

    places: list[tuple[nn.Module, str]]
    tensor: Tensor
    mark: Tensor
    writers: set[str] = field(default_factory=set)
    inside: int = 0  # how many forward passes of its modules are under way
    lent: bool = False  # its place, to another tensor for one pass: torch.func.functional_call

    @property
    def now(self) -> Tensor | None:
        """The tensor as registered now; a module may put another in its place."""
        for module, key in self.places:
            for registry in (module._parameters, module._buffers):
                if registry.get(key) is not None:
                    return registry[key]
        return None


class Witness:
    """Watches suspects from one step's end to the next one's, with hooks of its own, and changes nothing.

    A `wary` one replays the first step of each optimizer for all suspects, and not just for those that have leaked.
    `start`: what they were when they were frozen; `declared`: the rates that each optimizer's groups were given. `causes`
    fills as steps end; `reasons` says why an experiment failed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        suspects: Mapping[str, tuple[Entry, Tensor]],
        start: Mapping[str, Tensor],
        declared: Sequence[Sequence[float]],
        wary: bool = False,
    ) -> None:
        self.optimizers, self.start, self.declared, self.wary = optimizers, start, declared, wary
        modules = dict(model.named_modules(remove_duplicate=False))
        self.suspects = {
            name: WatchedTensor(
                [
                    (modules[owner], key)
                    for owner, _, key in (full.rpartition(".") for full in was.names)
                    if owner in modules
                ],
                tensor,
                start[name] if same_bits(start[name], tensor) else tensor.detach().clone(),
            )
            for name, (was, tensor) in suspects.items()
        }
        self.below: dict[int, set[str]] = {}  # of each module, the suspects that it or a module below it owns
        for name, (was, _) in suspects.items():
            for full in was.names:
                parts = full.split(".")[:-1]
                for count in range(len(parts) + 1):
                    self.below.setdefault(id(modules.get(".".join(parts[:count]))), set()).add(name)
        self.stepping = self.evaluates = self.hooked = False
        self.stepped: list[int] = []  # the optimizer of each step that has ended
        self.replayed: set[str] = set()  # those whose move the replay of this step has sought
        self.in_step: dict[str, LeakCause] = {}
        self.causes: dict[str, LeakCause] = {}
        self.reasons: dict[str, str] = {}
        # Hooks for all modules, for those of a module would turn off the fast path of a transformer in eval mode.
        self.hooks = [
            register_module_forward_pre_hook(self._forward_begins),
            register_module_forward_hook(self._forward_ends, always_call=True),
            *(one.register_step_pre_hook(partial(self._step_begins, index)) for index, one in enumerate(optimizers)),
        ]

    @property
    def done(self) -> bool:
        """Whether every optimizer has stepped since the witness began, or the others often enough to stop waiting."""
        return len(set(self.stepped)) == len(self.optimizers) or len(self.stepped) >= 4 * len(self.optimizers)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()

    def step_ended(self, index: int) -> None:
        """To be called when an optimizer's step has ended: tells the causes of what was written since the last one."""
        self._look(self.suspects.values())
        self.stepping = False
        self.stepped.append(index)
        for name in self._leaked():
            writers = self.suspects[name].writers
            if writers and (cause := self._told(name, writers)):
                self.causes[name] = cause
        self.replayed.clear()
        self.in_step.clear()
        for suspect in self.suspects.values():
            suspect.writers.clear()

    def _sought(self, index: int) -> dict[str, Tensor]:
        if self.wary and index not in self.stepped:
            now = {name: suspect.now for name, suspect in self.suspects.items()}
            return {name: tensor for name, tensor in now.items() if tensor is not None}
        return self._leaked()

    def _leaked(self) -> dict[str, Tensor]:
        """Those without a cause that are not now what they were at the start."""
        now = {name: suspect.now for name, suspect in self.suspects.items() if name not in self.causes}
        return {name: at for name, at in now.items() if at is not None and not same_bits(self.start[name], at)}

    def _told(self, name: str, writers: set[str]) -> LeakCause | Literal[""]:
        outsiders: tuple[LeakCause, ...] = ("forward_write", "outside_write")
        for outside in outsiders:
            if outside in writers:
                return outside
        if name not in self.replayed or name in self.in_step or name in self.reasons:
            return self.in_step.get(name, "")
        if self.hooked and not self.evaluates:
            return "outside_write"
        several = "the step evaluates a closure at several points, and a replay of the first does not move it"
        self.reasons[name] = several if self.evaluates else "the step moves it, and a replay of the step on copies does not"
        return ""

    def _step_begins(self, index: int, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._look(self.suspects.values())
        self.stepping = True
        own = 2  # the audit's
        self.hooked = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks) > own
        named = "closure" in list(signature(type(optimizer).step).parameters)[1:2]
        closure: Any = args[1] if named and len(args) > 1 else kwargs.get("closure")
        self.evaluates = callable(closure)
        if not self.evaluates:
            self._replay(index, self._sought(index))
            return None

        @wraps(closure)
        def evaluated(*given: Any, **options: Any) -> Any:
            loss = closure(*given, **options)
            if not self.replayed:  # it has just made the step's gradients, and nothing has been stepped
                self._replay(index, self._sought(index))
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluated}
        return (args[0], evaluated, *args[2:]), kwargs

    def _replay(self, index: int, leaked: dict[str, Tensor]) -> None:
        if leaked:
            self.replayed.update(leaked)
            found, reason = try_causes(self.optimizers[index], leaked, self.declared[index], self.evaluates)
            self.in_step.update(found)
            self.reasons.update(dict.fromkeys(leaked if reason else (), reason))

    def _forward_begins(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling():  # a graph must not hold what watches it
            return
        passed = self._passed(module)
        for suspect in passed:
            if not suspect.inside:
                suspect.lent = suspect.now is not suspect.tensor
        self._look(suspect for suspect in passed if not suspect.lent)
        for suspect in passed:
            suspect.inside += 1

    def _forward_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        passed = self._passed(module)
        self._look(suspect for suspect in passed if not suspect.lent)
        for suspect in passed:
            suspect.inside = max(0, suspect.inside - 1)

    def _passed(self, module: nn.Module) -> list[WatchedTensor]:
        compiled = getattr(module, "_orig_mod", module)  # which does not call what it has compiled
        return [self.suspects[name] for name in self.below.get(id(compiled), ())]

    def _look(self, suspects: Iterable[WatchedTensor]) -> None:
        for suspect in suspects:
            tensor = suspect.now
            if tensor is not None and not same_bits(suspect.mark, tensor):
                outside = "step" if self.stepping else "outside_write"
                suspect.writers.add("forward_write" if suspect.inside else outside)
                suspect.mark = tensor.detach().clone()
            suspect.tensor = suspect.tensor if tensor is None else tensor


def try_causes(
    optimizer: Optimizer, suspects: Mapping[str, Tensor], declared: Sequence[float], with_closure: bool = False
) -> tuple[dict[str, LeakCause], str]:
    """The causes that a replay of the step finds, and, where it cannot be replayed, none and the reason."""
    try:
        return causes_in_step(optimizer, suspects, declared, with_closure), ""
    except Exception as error:  # of anyone's optimizer; the training must go on
        return {}, f"a step of {type(optimizer).__name__} could not be replayed ({type(error).__name__}: {error})"
