"""Make a run anew without the stored outputs of other runs, if it may have become another by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from runner.contract import Note, TrainingRecord
from runner.methods.prefix.shared.feed import NotAsAloneError
from runner.sharing.folder import SharedFolder


class HasRecord(Protocol):
    """The result of a run. `record`: its entries of `run.json`."""

    record: TrainingRecord


T = TypeVar("T", bound=HasRecord)


def alone_if_it_differs(train: Callable[..., T], note: Note, shared: SharedFolder | None) -> T:
    """Return `train(on_note=note, shared=shared)`; without `shared` if that raises NotAsAloneError.

    `train` must begin with a new model. A note that both give is shown once.
    """
    said: list[str] = []

    def note_first(text: str, *, urgent: bool = False) -> None:
        said.append(text)
        note(text, urgent=urgent)

    def note_unless_said(text: str, *, urgent: bool = False) -> None:
        if text in said:
            said.remove(text)
        else:
            note(text, urgent=urgent)

    try:
        return train(on_note=note_first, shared=shared)
    except NotAsAloneError as error:
        record = error.record
    outcome = train(on_note=note_unless_said, shared=None)  # not above, where the error holds the first model
    outcome.record["shared"] = record
    return outcome
