"""Observe why a parameter that is not frozen stays as it is: its gradients, its learning rates, a copy that is stepped."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer

from runner.freezing.groups import group_lr, groups_by_tensor
from runner.proof.causes.gradients import gradient_kind, has_finite_gradient
from runner.proof.following import Followed
from runner.proof.verdict import Evidence
from runner.tensors import same_bits


def record_gradients(rows: Iterable[Followed], optimizer: Optimizer | None) -> None:
    """Record the kind of gradient and the learning rate of parameters that are not frozen and were never found changed.

    The kind is `none`, `zero`, `present`, or `not_finite` if an element is infinite or NaN. The learning rate is that of the
    parameter's group in `optimizer`.
    """
    idle = [row for row in rows if row.kind == "parameter" and not row.frozen and not row.evidence.differed]
    record_gradients_in([(row, row.evidence) for row in idle], optimizer)


def record_gradients_in(pairs: Iterable[tuple[Followed, Evidence]], optimizer: Optimizer | None) -> None:
    """Record in each Evidence the kind of gradient and the learning rate that the parameter of its row has now."""
    group_of = groups_by_tensor([optimizer] if optimizer else [])
    for row, evidence in pairs:
        kind = gradient_kind(row.tensor)
        evidence.gradients.add("not_finite" if kind == "present" and not has_finite_gradient(row.tensor) else kind)
        if id(row.tensor) in group_of:
            evidence.lrs.add(group_lr(group_of[id(row.tensor)][1]))


def is_rounded_copy(tensor: Tensor, stepped: Iterable[Tensor]) -> bool:
    """Return whether a tensor has the rounded values of one that an optimizer steps in its place, such as a float32 master.

    The other tensor must have moved away from it, by less than the tensor's dtype can hold: two equal tensors prove nothing.
    """
    return any(
        other.shape == tensor.shape
        and other.dtype != tensor.dtype
        and other.is_floating_point()
        and same_bits(other.to(tensor.dtype), tensor)
        and not same_bits(other, tensor.to(other.dtype))
        for other in stepped
    )
