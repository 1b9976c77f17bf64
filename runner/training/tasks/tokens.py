"""Token models: the target where a batch has none, and the shift by which each position predicts the next token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from runner.errors import ConfigError
from runner.training.tasks.forward import Call
from runner.training.tasks.losses import LossFunction, is_integer_tensor, loss_of
from runner.training.tasks.wording import described, typed


def own_target(call: Call) -> Tensor:
    """Return the token ids that the model is given, with -100 where its attention mask is 0, as the target.

    Raises ConfigError if it is not given exactly one tensor of token ids.
    """
    ids = call.kwargs.get("input_ids")
    given = [value for value in (*call.args, *call.kwargs.values()) if is_integer_tensor(value) and value.dim() == 2]
    if ids is None and len(given) == 1:
        ids = given[0]
    if not isinstance(ids, Tensor) or not is_integer_tensor(ids):
        raise ConfigError("there is no target, and no field `input_ids` with the tokens; give task.target=FIELD")
    mask = call.kwargs.get("attention_mask")
    return ids if not isinstance(mask, Tensor) or mask.shape != ids.shape else ids.masked_fill(mask == 0, -100)


def next_token(scores: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Return (scores at all positions but the last, target at all but the first): (N, T - 1, C) and (N, T - 1).

    Raises ConfigError if the scores are not (N, T, C) for a target of integers (N, T) with at least two positions.
    """
    fits = (
        isinstance(scores, Tensor) and is_integer_tensor(target) and scores.dim() == 3 and scores.shape[:2] == target.shape
    )
    if not fits or target.shape[1] < 2:
        words = f"a target {typed(target)}" if isinstance(target, Tensor) else f"{described(target)} as the target"
        raise ConfigError(
            f"the model returned {described(scores)} for {words}; task.shift=true needs scores (N, T, classes) and tokens "
            "(N, T), T at least 2"
        )
    return scores[:, :-1], target[:, 1:]


def loss_of_next_tokens(loss: LossFunction, scores: Any, target: Any) -> Tensor:
    """Return the loss of scores (N, T, C), given to it as (N * (T - 1), C); raises as `next_token` and `loss_of` do."""
    scores, target = next_token(scores, target)
    return loss_of(loss, scores.flatten(0, 1), target.flatten(), samples=len(target))


def are_token_labels(call: Call, scores: Tensor, target: Tensor) -> bool:
    """Return whether the target has a label for each token that the model is given: it may be the tokens themselves."""
    inputs = (*call.args, *call.kwargs.values())
    return scores.dim() == 3 and any(is_integer_tensor(value) and value.shape == target.shape for value in inputs)
