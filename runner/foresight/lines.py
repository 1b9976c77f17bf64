"""The line of plain PyTorch that mends a hazard of anyone's training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from keyword import iskeyword
from typing import Any

from torch import Tensor, nn

from runner.foresight.hazards import Hazard
from runner.foresight.in_place import Loop
from runner.freezing.groups import group_lr
from runner.freezing.patterns import with_parents
from runner.freezing.resolver import owner_of
from runner.freezing.selection import Selection
from runner.tensors import TensorEntry
from runner.tensors.optimizer_state import needs_closure

INDEXED = (nn.Sequential, nn.ModuleList, nn.ParameterList)
MOST_LISTED = 3  # modules, if they can be said in another way


@dataclass(frozen=True)
class Lines:
    """Writes lines of Python in which `model` and `optimizer` are what the user has.

    Attributes:
        loop: the training loop.
        entries: {name: entry} of all tensors of its model.
        selection: what is declared frozen.
    """

    loop: Loop
    entries: Mapping[str, TensorEntry]
    selection: Selection

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """{name: tensor}, also under the other names of a tied one."""
        return {name: entry.tensor for entry in self.entries.values() for name in entry.names}

    def line_for(self, hazard: Hazard) -> str:
        """Return the line that mends a hazard; "" if no line is known."""
        if hazard.verdict == "idle":
            return self._for_idle(hazard)
        tensors = [self.entries[name].tensor for name in hazard.names]
        if hazard.verdict == "drifted" or all(self.entries[name].kind == "buffer" for name in hazard.names):
            return f"{self._eval(set(map(owner_of, hazard.names)))}  # after each model.train()"
        if hazard.cause == "shared_tensor":
            return "; ".join(f"{path}.data = {path}.data.clone()" for path in map(self.path, hazard.names))
        if hazard.cause == "forward_write":
            modules = {owner: self.loop.model.get_submodule(owner) for owner in map(owner_of, hazard.names)}
            limited = [owner for owner, module in modules.items() if getattr(module, "max_norm", None) is not None]
            return "; ".join(f"{self.path(owner)}.max_norm = None" for owner in limited)
        if hazard.cause in ("outside_write", "replaced", "dtype_changed", "unknown"):
            return ""
        return self._for_stepped(hazard.names, tensors)

    def _eval(self, modules: set[str]) -> str:
        """Return the line that puts these modules in eval mode, and no others."""
        types = {name: type(module).__name__ for name, module in self.loop.model.named_modules()}
        (one_type, *others) = {types[name] for name in modules}
        are_all_of_type = not others and not self.loop.has_several_models
        if (
            len(modules) > MOST_LISTED
            and are_all_of_type
            and modules == {n for n, each in types.items() if each == one_type}
        ):
            return f"[part.eval() for part in model.modules() if type(part).__name__ == {one_type!r}]"
        return self.call([name for name in types if name in modules], ".eval()")

    def tie_of(self, name: str) -> tuple[list[str], list[str]]:
        """Return (the names of a frozen tensor that are declared frozen, its other names)."""
        names, declared = self.entries[name].names, self.selection.names
        frozen = [each for each in names if each in declared] or names
        return frozen, [each for each in names if each not in frozen]

    def line_for_tie(self, name: str) -> str:
        """Return the line that gives the names of a frozen tensor that are not declared frozen a tensor that trains."""
        lines, made = self._untie([name])
        return "; ".join([*lines, self._add_to_optimizer(made)])

    def _untie(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return (lines that give the undeclared names of tied tensors copies of their own, how to list these copies).

        A module that stands at both names is copied, for its tensors cannot be separated.
        """
        places: dict[int, list[str]] = {}  # by id of what is copied
        for name in names:
            declared, others = self.tie_of(name)
            for other in others:
                place = self._shared_module(other, declared) or other
                copied = self.tensors[place] if place in self.tensors else self.loop.model.get_submodule(place)
                if place not in (same := places.setdefault(id(copied), [])):
                    same.append(place)
        lines, made = [], []
        for first, *more in places.values():
            path, is_tensor = self.path(first), first in self.tensors
            value = f"torch.nn.Parameter({path}.detach().clone())" if is_tensor else f"copy.deepcopy({path})"
            lines += [] if is_tensor or "import copy" in lines else ["import copy"]
            lines += [self._assigned(first, value), *(self._assigned(place, path) for place in more)]
            made.append(path if is_tensor else f"*{path}.parameters()")
        return lines, made

    def _shared_module(self, name: str, others: Sequence[str]) -> str:
        """Return the outermost module around a name that is also around one of `others`, by another name; "" if none is."""
        modules = dict(self.loop.model.named_modules(remove_duplicate=False))
        around = {id(modules[part]): part for other in others for part in with_parents(owner_of(other))}
        shared = [part for part in with_parents(owner_of(name)) if around.get(id(modules[part]), part) != part]
        return shared[0] if shared else ""

    def _for_stepped(self, names: Sequence[str], tensors: Sequence[Tensor]) -> str:
        """Return the line that keeps the optimizer from changing these parameters, and separates what is tied to them."""
        freeze = (
            self.call(self.parts(names), ".requires_grad_(False)") if any(each.requires_grad for each in tensors) else ""
        )
        lines, made = self._untie(names) if freeze else ([], [])
        comment = f"  # unties them; to freeze all names: {freeze}" if made else ""
        lines += [freeze] * bool(freeze)
        optimizer, left = self.loop.optimizer, [id(each) for each, _ in self.loop.left_gradients]
        if needs_closure(optimizer) and (optimizer.state or made or not lines):  # the state of all parameters is one
            held = (
                f"(*optimizer.param_groups[0]['params'], {', '.join(made)})"
                if made
                else "optimizer.param_groups[0]['params']"
            )
            return "; ".join([*lines, _new_with(f"[p for p in {held} if p.requires_grad]")]) + comment
        if not self.loop.set_to_none or not {id(each) for each in tensors}.isdisjoint(left):
            lines.append("optimizer.zero_grad(set_to_none=True)")
        elif not lines:
            trained = "[p for p in group['params'] if p.requires_grad]"
            lines.append(f"for group in optimizer.param_groups: group['params'] = {trained}")
        return "; ".join([*lines, self._add_to_optimizer(made)] if made else lines) + comment

    def _add_to_optimizer(self, parameters: Sequence[str]) -> str:
        """Return the line that lets the optimizer step these parameters, which it does not have."""
        if needs_closure(self.loop.optimizer):  # it takes one group, and keeps a list of what is in it
            return _new_with(f"[*optimizer.param_groups[0]['params'], {', '.join(parameters)}]")
        if self.loop.scheduler is not None:  # it is made for the groups that there are
            rates = [group_lr(group) for group in self.loop.optimizer.param_groups]
            return f"optimizer.param_groups[{rates.index(max(rates))}]['params'] += [{', '.join(parameters)}]"
        return f"optimizer.add_param_group({{'params': [{', '.join(parameters)}]}})"

    def _for_idle(self, hazard: Hazard) -> str:
        """Return the line that lets parameters train that would stay idle."""
        tensors = [self.entries[name].tensor for name in hazard.names]
        if hazard.cause == "not_in_optimizer":
            parts = [(part in self.tensors, self.path(part)) for part in self.parts(hazard.names)]
            return self._add_to_optimizer([path if is_tensor else f"*{path}.parameters()" for is_tensor, path in parts])
        if hazard.cause == "no_gradient" and not any(tensor.requires_grad for tensor in tensors):
            return self.call(self.parts(hazard.names), ".requires_grad_(True)")
        if hazard.cause == "lr_zero":
            return self._for_lr_zero({id(tensor) for tensor in tensors})
        if hazard.cause == "rounded_away" and all(tensor.element_size() < 4 for tensor in tensors):
            return f"{self.call(self.parts(hazard.names), '.data = {}.data.float()')}  # with torch.autocast"
        return ""

    def _for_lr_zero(self, ids: set[int]) -> str:
        """Return the line that gives the groups of these parameters the rate they began with, or that of the optimizer."""
        lines = []
        for position, group in enumerate(self.loop.optimizer.param_groups):
            rate = group.get("initial_lr") or self.loop.optimizer.defaults.get("lr")
            if rate and not ids.isdisjoint(map(id, group["params"])):
                lines.append(f"optimizer.param_groups[{position}]['lr'] = {float(rate)!r}")
        return "; ".join(lines)

    def parts(self, names: Sequence[str]) -> list[str]:
        """Return the fewest modules and parameters that have all these parameters, and no others, each of them once.

        Of a tied parameter that is declared frozen under some of its names, these names count.
        """
        wanted = {each: self.tensors[name] for name in names for each in self.tie_of(name)[0]}
        found, covered = [], set[int]()
        for name, module in self.loop.model.named_modules(remove_duplicate=False):
            own = dict(module.named_parameters(name, remove_duplicate=False))
            ids = set(map(id, own.values()))
            if (
                ids
                and wanted.keys() >= own.keys()
                and ids.isdisjoint(covered)
                and (name or not self.loop.has_several_models)
            ):
                found.append(name)
                covered |= ids
        for name, tensor in wanted.items():
            if id(tensor) not in covered:
                found.append(name)
                covered.add(id(tensor))
        return found

    def call(self, parts: Sequence[str], what: str) -> str:
        """Return the line that does something to each of these modules and parameters; `{}` stands for each."""
        paths = [self.path(part) for part in parts]
        if len(paths) == 1:
            return f"{paths[0]}{what.format(paths[0])}"
        return f"for part in ({', '.join(paths)}): part{what.format('part')}"

    def _assigned(self, name: str, value: str) -> str:
        """Return the line that puts something else at the place of a module or parameter."""
        path = self.path(name)
        owner, _, key = name.rpartition(".")
        return f"setattr({self.path(owner)}, {key!r}, {value})" if path.endswith(")") else f"{path} = {value}"

    def path(self, name: str) -> str:
        """Return the expression for a module or parameter of the model."""
        root, expression, within = "model", "model", name
        module: Any = self.loop.model
        if self.loop.has_several_models:
            first, _, within = name.partition(".")
            root = expression = f"model[{first!r}]"
            module = self.loop.given[first]
        for part in within.split(".") if within else ():
            if part.isidentifier() and not iskeyword(part):
                expression += f".{part}"
            elif isinstance(module, INDEXED) and _is_index(module, part):
                expression += f"[{part}]"
            else:
                return f"{root}.{'get_parameter' if name in self.tensors else 'get_submodule'}({within!r})"
            module = getattr(module, part)
        return expression


def _new_with(parameters: str) -> str:
    """Return the line that builds the optimizer anew, with these parameters in one group."""
    return f"optimizer = type(optimizer)({parameters}, **optimizer.defaults)"


def _is_index(module: Any, part: str) -> bool:
    """Return whether `module[PART]` is the part of that name."""
    return part in map(str, range(len(module))) and module[int(part)] is getattr(module, part)
