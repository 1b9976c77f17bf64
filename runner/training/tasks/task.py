"""The task of a run: a batch meets the model and becomes a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from runner.errors import ConfigError, is_integer, short_repr
from runner.training.tasks.calls import CALLS, CallOptions, arrange, left_out
from runner.training.tasks.forward import Call, call_model
from runner.training.tasks.losses import (
    LossFunction,
    class_dimension,
    fits,
    loss_of,
    named_loss,
    refuse_unless_classes,
    scores_and_target,
)
from runner.training.tasks.model_losses import (
    classified,
    is_scalar,
    loss_of_model,
    no_loss_message,
    refuse_loss_beside_target,
    sum_of,
    sum_of_scalars,
)
from runner.training.tasks.outputs import main_of, main_output, weighted_outputs
from runner.training.tasks.tokens import are_token_labels, loss_of_next_tokens, next_token, own_target
from runner.training.tasks.wording import described, typed


@dataclass(frozen=True)
class TaskResult:
    """What became of one batch.

    Attributes:
        loss: the loss, of shape ().
        parts: {name: summand of the loss, its weight applied}; empty if the loss has one part only.
        scores: the output that the loss was taken of, classes in dimension 1 for a cross entropy; None where the model
            computed the loss of something else.
        target: the target that belongs to the scores, with -100 where it is ignored.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    target: Tensor | None = None


class BatchTask:
    """A task: called with a model and a batch, it returns the loss. What would be a guess raises ConfigError.

    call: how the batch meets the model. `first`: model(batch[0]); `args`: all its parts but the target; `kwargs`: its fields
        as keywords; `auto`: a mapping by those of its fields that the model takes, a pair by its first part, a batch for
        detection (images, list of mappings) whole.
    fields: {field of the batch, a key or index: name or position of the model's argument}; where it is
        given, `call` is not looked at.
    target: the field of the batch that is the target; by default the second part of a pair, or a field of a mapping named
        label(s), target(s) or y that the model does not take.
    loss: `model` for the one that the model returns, `cross_entropy`, the name of another loss in torch.nn.functional, a
        function (output, target), or `auto`: the model's own if the batch has no separate target, else the cross entropy if
        the target holds integers and lacks just the class dimension of the output.
    outputs: {field or index of the model's output: weight of its loss in the sum}. A scalar beside the scores, such as the
        loss that balances the experts of a mixture, is a loss itself.
    shift: whether scores (N, T, classes) are those of the next token: position t is compared with the target at t + 1. If
        there is no target, it is the token ids; padding, where the attention mask is 0, is then ignored.
    """

    def __init__(
        self,
        call: str = "auto",
        fields: Mapping[str | int, str | int] | None = None,
        target: str | int | None = None,
        loss: str | LossFunction = "auto",
        outputs: Mapping[str | int, float] | None = None,
        shift: bool = False,
    ) -> None:
        if call not in CALLS:
            raise ConfigError(f"task.call is {short_repr(call)}; give one of {', '.join(CALLS)}")
        if fields is not None and (not isinstance(fields, Mapping) or not fields or not _are_keys(fields.values())):
            raise ConfigError(f"task.fields is {short_repr(fields)}; give {{FIELD: ARGUMENT}}, such as {{image: x}}")
        if target is not None and not _are_keys([target]):
            raise ConfigError(f"task.target is {short_repr(target)}; give the name or index of a field of the batch")
        if outputs is not None and (not isinstance(outputs, Mapping) or not outputs or not _are_numbers(outputs.values())):
            raise ConfigError(f"task.outputs is {short_repr(outputs)}; give {{FIELD: WEIGHT}}, such as {{out: 1, aux: 0.4}}")
        if shift and loss in ("auto", "model"):
            raise ConfigError(f"task.shift=true needs a loss of scores and tokens; task.loss={loss}, give cross_entropy")
        self.outputs, self.shift = outputs, shift
        self.class_dimension: int | None = None  # of scores (N, C, ...) or (N, T, C) in the batches until now
        self.loss = loss if loss in ("auto", "model") or not isinstance(loss, str) else named_loss(loss)
        if not callable(self.loss) and not isinstance(self.loss, str):
            raise ConfigError(
                f"task.loss is {short_repr(loss)}; give auto, model, cross_entropy, or a function (output, target)"
            )
        loss_by = self.loss if isinstance(self.loss, str) else "task"
        self.options = CallOptions(call=call, fields=fields, target=target, loss_by=loss_by)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of the model on the batch; raises as `run` does."""
        return self.run(model, batch).loss

    def run(self, model: nn.Module, batch: Any) -> TaskResult:
        """Return the loss of the model on the batch, its parts, and the scores and target that it was taken of.

        Raises ConfigError if the batch, the model and the keys of this task do not go together.
        """
        call = arrange(batch, model, self.options)
        target = own_target(call) if self.shift and call.target is None else call.target
        output = call_model(model, call)
        if self.loss == "model" or (self.loss == "auto" and target is None):
            return self._result_of_model(model, call, output, batch)
        if target is None:
            raise ConfigError(
                f"the batch is {described(batch)} without a target; give task.target=FIELD, or task.loss=model"
            )
        loss = self.loss if callable(self.loss) else functional.cross_entropy
        if self.outputs:
            chosen = weighted_outputs(output, self.outputs)
        else:
            if self.loss == "auto" or not isinstance(output, Tensor):
                refuse_loss_beside_target(model, call, output, partial(fits, loss))
            chosen = {"": (main_output(output, lambda value: fits(loss, value, target)), 1.0)}
        main = main_of(chosen)
        if isinstance(main, Tensor) and main.dim() == 3 and not self.shift:
            self.class_dimension = class_dimension(main, target, self.class_dimension)
        if self.loss == "auto":
            refuse_unless_classes(main, target)
            _refuse_token_labels(call, main, target)
        summands = {}
        for name, (value, weight) in chosen.items():
            is_loss = is_scalar(value) and value is not main
            summands[name] = _weighted(value if is_loss else self._taken(loss, value, target), weight)
        if self.shift:
            main, target = next_token(main, target)
            main = main.transpose(1, 2)
        scores, target = scores_and_target(loss, main, target, self.class_dimension)
        return TaskResult(sum_of(summands), summands if len(summands) > 1 else {}, scores, target)

    def left_out(self, model: nn.Module, batch: Any) -> list[str]:
        """Return the names of a batch's tensors that reach neither the model nor the loss; raises as `arrange` does."""
        return left_out(batch, model, self.options)

    def _taken(self, loss: LossFunction, value: Any, target: Any) -> Tensor:
        """Return the loss of one output, of its next tokens if `shift`."""
        if self.shift:
            return loss_of_next_tokens(loss, value, target)
        return loss_of(loss, value, target, earlier=self.class_dimension)

    def _result_of_model(self, model: nn.Module, call: Call, output: Any, batch: Any) -> TaskResult:
        """Return the loss that the model returned, with its parts. Raises ConfigError if it returned none."""
        if self.outputs:
            chosen = weighted_outputs(output, self.outputs)
            found = sum_of_scalars({name: _weighted(value, weight) for name, (value, weight) in chosen.items()})
        else:
            found = loss_of_model(output)
        if found is None:
            raise ConfigError(no_loss_message(model, call, output, batch))
        loss, parts = found
        return TaskResult(loss, parts if len(parts) > 1 else {}, *classified(output, call))


def _weighted(value: Any, weight: float) -> Any:
    """Return the value times its weight; the value itself for a weight of 1, which adds no operation to be counted."""
    return value if weight == 1 or not isinstance(value, Tensor) else value * weight


def _refuse_token_labels(call: Call, scores: Tensor, target: Tensor) -> None:
    """Raise ConfigError if the target has a label for each token: for the tokens themselves, a model would learn to copy."""
    if are_token_labels(call, scores, target):
        raise ConfigError(
            f"the model returned {described(scores)} for a target {typed(target)}, the shape of its tokens: give "
            "task=causal_lm to predict the next token, or task.loss=cross_entropy if each label belongs to its own position"
        )


def _are_keys(values: Iterable[Any]) -> bool:
    """Return whether all values are names or indices."""
    return all(isinstance(value, str) or is_integer(value) for value in values)


def _are_numbers(values: Iterable[Any]) -> bool:
    """Return whether all values are finite numbers."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) for value in values)
