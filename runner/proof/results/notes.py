"""Sentences about a model under audit that its rows do not say: mistyped flags, train mode, tensors that changed in kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from runner.contract import Row
from runner.errors import listed
from runner.freezing.names import ModelNames
from runner.freezing.selection import modules_frozen_as_a_whole
from runner.proof.following import Followed, Following
from runner.proof.results.phases import PhaseRows, thawed_parameters
from runner.tensors import has_arithmetic, has_values, same_bits, tensor_entries

FLAG = "requires_grad"

COMPARED_ON_LEAVING = "bits were compared on leaving only: torch.compile has compiled a step"


def model_notes(following: Following, rows: Sequence[Row], mode_notes: list[str] | None) -> list[str]:
    """Return all sentences about the model of an audit.

    `rows`: the rows of the report. `mode_notes`: what `train_mode_notes` returned after the first step; None without a step.
    """
    return [
        *flag_notes(following.model),
        *(train_mode_notes(following.model, following.frozen_ids()) if mode_notes is None else mode_notes),
        *computed_notes(following.model, rows),
        *kind_notes(following.rows),
        *(skipped_notes(following.rows) if mode_notes is not None else []),
        *gone_notes(following.rows),
    ]


def flag_notes(model: nn.Module) -> list[str]:
    """Return a sentence for each assignment that was to freeze something, but has only set a new attribute.

    Examples are `model.fc.requires_grad = False`, for a module has no such flag, and `weight.require_grad = False`.
    """
    notes = []
    for name, module in model.named_modules():
        for key in _flags_in(vars(module)):
            place = f"{name}.{key}" if name else f"model.{key}"
            notes.append(
                f"{place} = False freezes nothing: it is an attribute of a {type(module).__name__}; "
                f"call {name or 'model'}.requires_grad_(False)"
            )
    for entry in tensor_entries(model).values():
        for key in _flags_in(getattr(entry.tensor, "__dict__", {})):
            notes.append(f"{entry.name}.{key} = False freezes nothing: the flag is {FLAG}")
    return notes


def _flags_in(attributes: dict[str, Any]) -> list[str]:
    """Return the attributes that are False and have the name of the flag, or one that is nearly the same.

    An attribute with an underscore in front is one of the module's own: those of wav2vec 2.0 have `_requires_grad`.
    """
    names = [name for name, value in attributes.items() if value is False and not name.startswith("_")]
    return get_close_matches(FLAG, names, n=2, cutoff=0.9)


def train_mode_notes(model: nn.Module, frozen_ids: set[int]) -> list[str]:
    """Return a sentence if modules that are frozen as a whole compute something else in each step.

    These are BatchNorms that normalise by the batch, because they are in train mode or have no running statistics, and
    active dropout. `frozen_ids`: the ids of the frozen parameters.
    """
    by_batch, always, active = Counter[str](), Counter[str](), Counter[str]()
    for module in set(modules_frozen_as_a_whole(model, frozen_ids).values()):
        if isinstance(module, _BatchNorm):
            if module.training or module.running_mean is None:
                (always if module.running_mean is None else by_batch)[type(module).__name__] += 1
        elif module.training and (module.p if isinstance(module, _DropoutNd) else _dropout_of(module)) > 0:
            active[type(module).__name__] += 1
    problems = [f"{count} {name} without running statistics normalise by the batch" for name, count in always.items()]
    no_statistics = ["in frozen modules " + listed(problems)] if problems else []
    problems = [f"{count} {name} normalise by the batch" for name, count in by_batch.items()]
    problems += [f"{count} {name} drop values" for name, count in active.items()]
    train_mode = [f"in frozen modules {listed(problems)}, because they are in train mode"] if problems else []
    return [*no_statistics, *train_mode]


def _dropout_of(module: nn.Module) -> float:
    """Return the rate of the dropout that a module does itself, such as an LSTM or an attention; 0 if it does none."""
    rate = getattr(module, "dropout", 0)
    return rate if isinstance(rate, float) else 0


def computed_notes(model: nn.Module, rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each frozen parameter that held, but from which a weight is computed with buffers that changed.

    An example is `spectral_norm`, whose power iteration changes buffers in each forward pass.
    """
    held = {row["name"] for row in rows if row["kind"] == "parameter" and row["frozen"] and row["verdict"] == "held"}
    drifted = [row["name"] for row in rows if row["verdict"] == "drifted"]
    notes = []
    for name, behind in ModelNames(model).computed().items():
        owner, _, key = name.rpartition(".")
        beside = tuple(f"{owner}.{part}".lstrip(".") for part in (f"{key}_", f"parametrizations.{key}."))
        parameters = [each for each in behind if each in held]
        buffers = [each for each in drifted if each.startswith(beside)]
        if parameters and buffers:
            sources = listed(buffers, most=2)
            notes.append(f"{listed(parameters, most=2)} held, but {name} changed: it is computed with {sources}")
    return notes


def kind_notes(rows: Iterable[Followed]) -> list[str]:
    """Return sentences about tensors whose dtype or shape changed, and about those of a dtype that has no norms."""
    names_of: dict[str, list[str]] = {}
    for row in rows:
        old, new = row.reference, row.tensor
        if not has_values(new):
            names_of.setdefault("it has no values any more, on the meta device or because its memory was freed", []).append(
                row.name
            )
        elif old.dtype != new.dtype:
            names_of.setdefault(f"the dtype changed from {_dtype(old)} to {_dtype(new)}", []).append(row.name)
        elif old.shape != new.shape:
            names_of.setdefault(f"the shape changed from {_shape(old)} to {_shape(new)}", []).append(row.name)
        elif not has_arithmetic(new):
            names_of.setdefault(f"{_dtype(new)} has no arithmetic, so bits are compared and norms are empty", []).append(
                row.name
            )
    return [f"{listed(names, most=3)}: {what}" for what, names in names_of.items()]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def skipped_notes(rows: Iterable[Followed]) -> list[str]:
    """Return a sentence about trainable parameters that no step changed although their gradients were not finite."""
    names = [row.name for row in rows if "not_finite" in row.evidence.gradients and not row.evidence.differed]
    if not names:
        return []
    return [
        f"{listed(names, most=3)}: gradients are infinite or NaN and no bit changed; a GradScaler may have skipped the steps"
    ]


def gone_notes(rows: Iterable[Followed]) -> list[str]:
    """Return a sentence about tensors that were in the model on entry and are not in it on leaving."""
    gone = [row.name for row in rows if row.is_gone]
    return [f"no longer in the model: {listed(gone, most=3)}"] if gone else []


def unfrozen_and_unchanged(rows: Iterable[Followed], last_step: int, phases: Sequence[PhaseRows]) -> list[str]:
    """Return sentences about parameters that were unfrozen before a step, and that no step has changed since then.

    One is about those that are unfrozen still; one about those that were frozen again, and changed in no phase between.
    """
    unfrozen = [row for row in rows if row.ended_spans and not row.frozen and row.kind == "parameter"]
    since = [row.name for row in unfrozen if last_step > row.window.begin and same_bits(row.reference, row.tensor)]
    thawed = thawed_parameters(phases)
    again = {row["name"] for row in phases[-1].rows if row["frozen"]} & thawed.names if phases else set()
    idle = [text for text in thawed.idle if text.rpartition(" (")[0] in again]
    between = [f"unfrozen, unchanged, and frozen again: {listed(idle, most=4)}"] if idle else []
    return [*unchanged_since_unfrozen(since), *between]


def unchanged_since_unfrozen(names: Sequence[str]) -> list[str]:
    """Return a sentence about parameters, given by their names, that did not change after they were unfrozen."""
    return [f"unfrozen in mid-run, and unchanged since: {listed(names, most=4)}"] if names else []
