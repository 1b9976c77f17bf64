"""What messages call the arguments of `select`: in Python other names than in a config."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """The names that messages use for what the user gave; the defaults are the arguments of `select`.

    Attributes:
        patterns: the list of patterns that say what to freeze.
        keep: the list of exceptions.
        head: the patterns that `@head` stands for.
        head_words: what may be given for `head` besides patterns.
        frozen_buffers: how to freeze the buffers of modules too.
        without_tensors: what to do for modules that have neither parameters nor buffers.
        found_head: what a note says of the head that a trial found; `{}` stands for its name.
        guessed_head: what a note says of the head where no trial was made.
        freeze_head: what freezes the head, a clause.
        keep_head: what freezes everything but the head, a clause.
        example: how to give a single pattern; `{}` stands for the pattern.
        all_but_head: how to freeze everything but the classifier; `{}` stands for the pattern as written; "" where there is
            no `@head`.
    """

    patterns: str = "patterns"
    keep: str = "keep"
    head: str = "head"
    head_words: tuple[str, ...] = ()
    frozen_buffers: str = 'buffers="frozen"'
    without_tensors: str = 'buffers="frozen" would select them'
    found_head: str = "@head is {}: the loss of the batch is made there"
    guessed_head: str = "@head is taken to be {}, the last layer with an output size: a guess; give batch=... to find it"
    freeze_head: str = "@head is its head"
    keep_head: str = "@head is its head"
    example: str = 'as in select(model, ["{}"])'
    all_but_head: str = 'select(model, ["**"], keep=["@head"]) for all the rest'


FOR_PYTHON = Words()
FOR_CONFIG = Words(
    patterns="freeze.patterns",
    keep="freeze.keep",
    head="model.head",
    head_words=("auto", "new"),
    frozen_buffers="freeze.buffers=frozen",
    without_tensors="freeze.buffers=frozen would keep them in eval mode",
    found_head="model.head=auto found {}: the loss of the first batch is made there",
    guessed_head="model.head=auto takes {} for the head, the last layer with an output size: a guess",
    freeze_head="freeze=head freezes its head",
    keep_head="freeze=backbone freezes all but its head",
    example="as in freeze.patterns=[{}]",
    all_but_head="freeze={}",
)
# `audit` takes patterns, but no exceptions.
FOR_AUDIT = Words(
    patterns="frozen",
    head="select's head",
    frozen_buffers='buffers="frozen"',
    without_tensors="give modules with parameters or buffers",
    guessed_head="@head is taken to be {}, the last layer with an output size: a guess; give select(..., batch=...)",
)
# The names of a checkpoint have no classes and no head.
FOR_CHECKPOINT = Words(patterns="frozen", frozen_buffers="the whole name", all_but_head="")
