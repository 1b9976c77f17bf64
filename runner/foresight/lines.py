"""The line of plain PyTorch that mends a hazard of anyone's training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from torch import Tensor, nn

from runner.foresight.hazards import Hazard
from runner.foresight.in_place import Loop
from runner.freezing.resolver import owner_of
from runner.tensors import TensorEntry
from runner.training.loop import needs_closure

INDEXED = (nn.Sequential, nn.ModuleList, nn.ParameterList)
MOST_LISTED = 3  # modules, if they can be said in another way


@dataclass(frozen=True)
class Lines:
    """Writes lines of Python in which `model` and `optimizer` are what the user has.

    Attributes:
        loop: the training loop.
        entries: {name: entry} of all tensors of its model.
    """

    loop: Loop
    entries: Mapping[str, TensorEntry]

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

    def _for_stepped(self, names: Sequence[str], tensors: Sequence[Tensor]) -> str:
        """Return the line that keeps the optimizer from changing these parameters."""
        lines = [self.call(self.parts(names), ".requires_grad_(False)")] if any(t.requires_grad for t in tensors) else []
        optimizer = self.loop.optimizer
        if needs_closure(optimizer) and (optimizer.state or not lines):  # the state of all parameters is one
            lines.append(_new_with("[p for p in optimizer.param_groups[0]['params'] if p.requires_grad]"))
        elif not self.loop.set_to_none or any(each is tensor for each, _ in self.loop.left_gradients for tensor in tensors):
            lines.append("optimizer.zero_grad(set_to_none=True)")
        elif not lines:
            trained = "[p for p in group['params'] if p.requires_grad]"
            lines.append(f"for group in optimizer.param_groups: group['params'] = {trained}")
        return "; ".join(lines)

    def _for_idle(self, hazard: Hazard) -> str:
        """Return the line that lets parameters train that would stay idle."""
        tensors = [self.entries[name].tensor for name in hazard.names]
        if hazard.cause == "not_in_optimizer":
            listed = [
                f"*{path}.parameters()" if is_module else path
                for path, is_module in ((self.path(part), part not in self.entries) for part in self.parts(hazard.names))
            ]
            if needs_closure(self.loop.optimizer):  # it takes one group, and keeps a list of what is in it
                return _new_with(f"[*optimizer.param_groups[0]['params'], {', '.join(listed)}]")
            return f"optimizer.add_param_group({{'params': [{', '.join(listed)}]}})"
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
                lines.append(f"optimizer.param_groups[{position}]['lr'] = {float(rate):g}")
        return "; ".join(lines)

    def parts(self, names: Sequence[str]) -> list[str]:
        """Return the fewest modules and parameters that have all these parameters, and no others."""
        ids = {id(self.entries[name].tensor) for name in names}
        found: list[str] = []
        for name, module in self.loop.model.named_modules():
            is_within = any(name == part or name.startswith(f"{part}.") for part in found if part not in self.entries)
            own = [id(parameter) for parameter in module.parameters()]
            if own and not is_within and ids.issuperset(own) and (name or not self.loop.has_several_models):
                found.append(name)
                if not name:
                    return found
        covered = {id(p) for part in found for p in self.loop.model.get_submodule(part).parameters()}
        return [*found, *(name for name in names if id(self.entries[name].tensor) not in covered)]

    def call(self, parts: Sequence[str], what: str) -> str:
        """Return the line that does something to each of these modules and parameters; `{}` stands for each."""
        paths = [self.path(part) for part in parts]
        if len(paths) == 1:
            return f"{paths[0]}{what.format(paths[0])}"
        return f"for part in ({', '.join(paths)}): part{what.format('part')}"

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
                return f"{root}.{'get_parameter' if name in self.entries else 'get_submodule'}({within!r})"
            module = getattr(module, part)
        return expression


def _new_with(parameters: str) -> str:
    """Return the line that builds the optimizer anew, with these parameters in one group."""
    return f"optimizer = type(optimizer)({parameters}, **optimizer.defaults)"


def _is_index(module: Any, part: str) -> bool:
    """Return whether `module[PART]` is the part of that name."""
    return part in map(str, range(len(module))) and module[int(part)] is getattr(module, part)
