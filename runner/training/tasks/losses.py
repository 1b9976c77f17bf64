"""How an output of a model becomes a loss: by cross entropy, by another loss of torch's, or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from runner.errors import ConfigError, did_you_mean
from runner.training.tasks.wording import described, typed

LossFunction = Callable[[Any, Any], Tensor]  # loss(output, target)
# The losses of torch, besides cross entropy, whose target is classes as integers; each as a function and as a class.
_FUNCTIONS_OF_CLASSES = (functional.nll_loss, functional.multi_margin_loss, functional.multilabel_margin_loss)
_MODULES_OF_CLASSES = (nn.NLLLoss, nn.MultiMarginLoss, nn.MultiLabelMarginLoss)


def named_loss(name: str) -> LossFunction:
    """Return the loss of torch.nn.functional with this name, such as `mse_loss`. Raises ConfigError if there is none."""
    names = [each for each in dir(functional) if not each.startswith("_") and _is_loss(getattr(functional, each))]
    if name not in names:
        raise ConfigError(
            f"task.loss is {name!r}; give auto, model, cross_entropy, another loss of torch.nn.functional such as mse_loss, "
            f"or the dotted path of your own{did_you_mean(name, ['auto', 'model', *names])}"
        )
    loss: LossFunction = getattr(functional, name)
    return loss


def _is_loss(function: Any) -> bool:
    """Return whether a function is called with an output and a target and needs nothing else, as torch's losses are."""
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return [each.name for each in parameters if each.default is each.empty] == ["input", "target"]


def loss_of(
    loss: LossFunction, output: Any, target: Any, *, samples: int | None = None, earlier: int | None = None
) -> Tensor:
    """Return `loss(output, target)`, of shape ().

    `samples`: the size of the batch, if the target has been flattened since. `earlier`: see `class_dimension`.

    Raises ConfigError if the two do not go together, or if the loss is no tensor of shape (). What a function of the user's
    raises is passed on.
    """
    if _is_cross_entropy(loss):
        value = _cross_entropy(loss, output, target, samples=samples, earlier=earlier)
    elif _is_of_torch(loss):
        value = _elementwise(loss, output, target)
    else:
        value = loss(output, target)
    if not isinstance(value, Tensor) or value.dim():
        raise ConfigError(f"task.loss={_name(loss)} returned {described(value)}; it must return a tensor of shape ()")
    return value


def fits(loss: LossFunction, output: Tensor, target: Any) -> bool:
    """Return whether an output may be the one that the loss is taken of, by its shape and that of the target."""
    if _is_cross_entropy(loss):
        return any(_class_dimensions(output, target))
    if _is_of_torch(loss) and isinstance(target, Tensor):
        return _aligned(output, target).shape == output.shape
    return True


def scores_and_target(
    loss: LossFunction, output: Any, target: Any, earlier: int | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the output and target of a loss for metrics: classes in dimension 1, and -100 where the target is ignored."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return None, None
    if not _is_cross_entropy(loss):
        return output, _aligned(output, target) if _is_of_torch(loss) else target
    ignored = getattr(loss, "ignore_index", -100)
    output = output.transpose(1, 2) if class_dimension(output, target, earlier) == 2 else output
    return output, target if ignored == -100 else target.long().masked_fill(target == ignored, -100)


def class_dimension(scores: Any, target: Any, earlier: int | None = None) -> int | None:
    """Return the dimension of the scores that their target of integers lacks: 1, or 2 for tokens (N, T, C); None if unknown.

    `earlier`: the dimension in other batches of the same model, which decides where a target lacks either.
    """
    in_second, in_last = _class_dimensions(scores, target)
    return earlier if in_second and in_last else 1 if in_second else 2 if in_last else None


def refuse_unless_classes(output: Any, target: Any) -> None:
    """Raise ConfigError unless the target holds integers and lacks just the class dimension of the output."""
    if not isinstance(output, Tensor) or not any(_class_dimensions(output, target)):
        raise ConfigError(f"the model returned {described(output)} for {_target(target)}; {_advice(output, target)}")


def _cross_entropy(loss: LossFunction, scores: Any, target: Any, *, samples: int | None, earlier: int | None) -> Tensor:
    """Return a cross entropy of scores (N, C), (N, C, ...) or (N, T, C) and the target.

    The target holds classes as integers and lacks just the class dimension, or it holds class probabilities in the shape of
    the scores. Raises ConfigError if it does neither, if there is only one class (the loss would be 0), or if an integer is
    outside the classes (on a CPU; CUDA fails with an assertion).
    """
    dimension = class_dimension(scores, target, earlier)
    are_probabilities = isinstance(target, Tensor) and target.is_floating_point() and target.shape == scores.shape
    if dimension is None and any(_class_dimensions(scores, target)):
        raise ConfigError(
            f"the model returned {described(scores)} for {_target(target)}: its classes may be in dimension 1 or in the "
            "last, and no earlier batch tells; give task.loss=my.loss, a function (output, target)"
        )
    dimension = 1 if are_probabilities and scores.dim() > 1 else dimension
    if dimension is None or scores.shape[dimension] < 2:
        raise ConfigError(f"the model returned {described(scores)} for {_target(target)}; {_advice(scores, target)}")
    samples = samples or len(target)
    if dimension == 2:
        scores, target = scores.flatten(0, 1), target.flatten()
    if not are_probabilities:
        target = target.long()
    try:
        return loss(scores, target)
    except IndexError as error:
        raise ConfigError(_outside_classes(scores, target, getattr(loss, "ignore_index", -100), samples)) from error


def _outside_classes(scores: Tensor, target: Tensor, ignored: int, samples: int) -> str:
    """Return the message for a target outside the classes, with the first sample of the batch that has one."""
    used, classes = target[target != ignored], scores.shape[1]
    place = int(((target != ignored) & ((target < 0) | (target >= classes))).flatten().nonzero()[0])
    value = int(target.flatten()[place])
    if value < 0:
        advice = f"task.loss={{_target_: torch.nn.CrossEntropyLoss, ignore_index: {value}}} if it is to be ignored"
    else:
        advice = "task=segmentation, which ignores 255" if scores.dim() == 4 and value == 255 else "model.classes"
    return (
        f"data: the target {value} of sample {place * samples // target.numel()} of the batch is outside the head's "
        f"{classes} classes (targets run from {int(used.min())} to {int(used.max())}, classes from 0 to {classes - 1}); "
        f"give {advice}"
    )


def _elementwise(loss: LossFunction, output: Any, target: Any) -> Tensor:
    """Return a loss of torch's that compares element by element.

    It would broadcast (N, 1) against (N,) to (N, N), so the target is given the shape of the output. Raises ConfigError if
    that is impossible, or if torch refuses the two. Losses whose target is classes get it as it is.
    """
    of_classes = isinstance(loss, _MODULES_OF_CLASSES) or getattr(loss, "func", loss) in _FUNCTIONS_OF_CLASSES
    if not of_classes and isinstance(output, Tensor) and isinstance(target, Tensor):
        target = _aligned(output, target)
        if target.shape != output.shape:
            raise ConfigError(_refusal(loss, output, target, "the shapes must be equal"))
    try:
        return loss(output, target)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(_refusal(loss, output, target, str(error).splitlines()[0])) from error


def _refusal(loss: LossFunction, output: Any, target: Any, reason: str) -> str:
    """Return the message for an output and a target that a loss does not take."""
    return f"task.loss={_name(loss)}: the model returned {described(output)} for {_target(target)}; {reason}"


def _aligned(output: Tensor, target: Tensor) -> Tensor:
    """Return the target in the shape of the output if just one has an additional second or last dimension of size 1.

    Integers and bools of the output's shape are converted to its dtype.
    """
    shorter, longer = sorted((output.shape, target.shape), key=len)
    dropped = [
        (*longer[:dim], *longer[dim + 1 :]) for dim in (1, len(longer) - 1) if len(longer) > dim > 0 and longer[dim] == 1
    ]
    if output.shape != target.shape and shorter not in dropped:
        return target
    target = target.reshape(output.shape)
    return target if target.is_floating_point() or target.is_complex() else target.to(output.dtype)


def _class_dimensions(scores: Any, target: Any) -> tuple[bool, bool]:
    """Return whether the target lacks just dimension 1 of the scores, (N, C, ...), and just the last of tokens, (N, T, C).

    Both are False unless the target holds integers. Scores (N, C) count as the first.
    """
    if not isinstance(scores, Tensor) or not is_integer_tensor(target) or not scores.is_floating_point():
        return False, False
    if scores.dim() < 2 or scores.dim() != target.dim() + 1 or scores.shape[0] != target.shape[0]:
        return False, False
    return scores.shape[2:] == target.shape[1:], scores.dim() == 3 and scores.shape[:2] == target.shape


def is_integer_tensor(value: object) -> bool:
    """Return whether a value is a tensor of integers; one of bools is not."""
    if not isinstance(value, Tensor):
        return False
    return not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)


def _is_cross_entropy(loss: LossFunction) -> bool:
    """Return whether a loss is torch's cross entropy, with any settings."""
    return isinstance(loss, nn.CrossEntropyLoss) or getattr(loss, "func", loss) is functional.cross_entropy


def _is_of_torch(loss: LossFunction) -> bool:
    """Return whether a loss is defined in torch."""
    return str(getattr(getattr(loss, "func", loss), "__module__", "")).startswith("torch.")


def _name(loss: LossFunction) -> str:
    """Return the name of a loss for a message."""
    function = getattr(loss, "func", loss)
    return str(getattr(function, "__name__", type(function).__name__))


def _target(target: Any) -> str:
    """Return a target in words, with its dtype."""
    return f"a target {typed(target)}" if isinstance(target, Tensor) else f"{described(target)} as the target"


def _advice(output: Any, target: Any) -> str:
    """Return which key to set for an output and a target that do not go together under cross entropy."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return "give task.loss=my.loss, a function (output, target) -> loss"
    if output.dim() and _aligned(output, target).shape == output.shape:
        numbers, two = "task.loss=mse_loss for numbers", "task.loss=binary_cross_entropy_with_logits for 0 and 1"
        if not target.is_floating_point():
            return f"give {two}, or {numbers}"
        soft = target.shape == output.shape and output.dim() > 1 and output.shape[1] > 1
        return f"give {numbers}, {'task.loss=cross_entropy for class probabilities, ' if soft else ''}or {two}"
    return (
        "cross entropy needs (N, classes, ...) and integers (N, ...); give task=model_loss if the model takes the target, "
        "or task.loss=my.loss, a function (output, target)"
    )
