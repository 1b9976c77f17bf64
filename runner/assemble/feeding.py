"""Build what feeds a run from the checked config: the task, the data, and the batches of all passes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import chain
from typing import Any

import torch

from runner.assemble.models import dtype_of
from runner.config.build import build, build_function, locate, names_function
from runner.config.checks.numbers import check_numbers
from runner.config.schema import ENDLESS_BATCHES, RUNNERS_DATA_KEYS, Config
from runner.contract import Note
from runner.errors import ConfigError, is_integer
from runner.seeding import PrivateRandomness, derived_seed
from runner.training.data.source import Source, as_source, batches_a_pass, to_device
from runner.training.data.steps import StepBatches, cut_in_steps
from runner.training.data.structure import refuse_other_structure
from runner.training.tasks.task import BatchTask
from runner.training.tasks.trained import TrainedTask
from runner.training.tasks.wording import described
from runner.training.weights import transforms_of

FUNCTIONS = ("transform", "test_transform", "collate")  # keys of `data` that give functions of one sample, or of several
BUILD = -4  # stands for the number of a pass in the seed under which the data are built


@dataclass(frozen=True)
class Feed:
    """The data of a run, opened.

    Attributes:
        config: the config of the run, in which `batches` is now a number.
        first: the first batch, on the device of the model.
        steps: the batches of all training steps of the run, the first batch included; each can be taken once.
        reread: a function that returns the first batch as the second pass would read it, or None.
        held_out: a function that returns the batches that are held out, anew in each call; None if there are none.
        is_length_known: whether the number of steps follows from the data or the config; False if it is a default for data
            that may end at any batch.
        passes: the number of batches of each pass that has ended so far.
    """

    config: Config
    first: Any
    steps: Iterator[StepBatches]
    reread: Callable[[], Any | None]
    held_out: Callable[[], Generator[Any, None, None] | None]
    is_length_known: bool = True
    passes: list[int] = field(default_factory=list)

    @property
    def batches_a_pass(self) -> int:
        """The number of batches that a pass had, the most of any; the number in the config while no pass has ended."""
        return max(self.passes) if self.passes else int(self.config.batches)


def open_feed(config: Config, device: torch.device, note: Note, undo: ExitStack) -> Feed:
    """Build the data that the config declares, and read the first batch. Closing `undo` ends the worker processes.

    `note` is called with a message if a pass has fewer batches than the config asks for. Raises ConfigError if the data are
    no batches, if there are none, or if the config asks for a number of them that is not known.
    """
    with PrivateRandomness(derived_seed(config.seed, BUILD)):
        source = build_source(config)
    length = source.length()
    count = batches_a_pass(config.batches, length, ENDLESS_BATCHES)
    is_known = is_integer(config.batches) or length is not None or config.is_endless
    if config.batches not in ("auto", "all", count):
        note(f"the data have {count} batches a pass, fewer than batches={config.batches}")
    config = config.with_batches(count)
    check_numbers(config)
    move = partial(to_device, device=device, dtype=dtype_of(config))
    passes = list[int]()
    steps = _all_steps(source, config, move, passes)
    undo.callback(steps.close)
    first = next(steps, None)
    if first is None:
        raise ConfigError("data: there is no batch; give data that yield at least one")
    first.batches[0] = move(first.batches[0])
    return Feed(
        config=config,
        first=first.batches[0],
        steps=chain([first], steps),
        reread=lambda: _moved(source.reread(config.seed), move),
        held_out=lambda: _moved(source.read_held_out(config.seed), partial(_each_moved, move)),
        is_length_known=is_known,
        passes=passes,
    )


def _moved(value: Any, move: Callable[[Any], Any]) -> Any:
    """Return `move(value)`, or None for None."""
    return None if value is None else move(value)


def _each_moved(move: Callable[[Any], Any], batches: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield `move(batch)` for each batch. To close it ends the reading, and the worker processes that read."""
    for batch in batches:
        yield move(batch)


def _all_steps(
    source: Source, config: Config, move: Callable[[Any], Any], passes: list[int]
) -> Generator[StepBatches, None, None]:
    """Yield the batches of every step of every pass; append to `passes` how many batches each pass had, once it has ended.

    Raises ConfigError if a batch has another structure than the first.
    """
    structure, number = None, 0
    for epoch in range(config.epochs):
        before = number
        for batches in cut_in_steps(source.read(config.seed, epoch, config.batches), config.accumulate):
            for batch in batches:
                number += 1
                structure = refuse_other_structure(batch, number, structure)
            yield StepBatches(epoch, batches, move)
        if number > before:
            passes.append(number - before)


def build_source(config: Config) -> Source:
    """Return the data that the config declares. Raises ConfigError if they are no batches."""
    node = {key: value for key, value in config.data.items() if key not in RUNNERS_DATA_KEYS}
    for key in FUNCTIONS:
        if key != "collate" and node.get(key) == "weights":
            node[key] = transforms_of(config.model.build)
        elif node.get(key) is not None:
            node[key] = build_functions(node[key], f"data.{key}")
    source = as_source(build(node, "data"), partial(build, node, "data"))
    if config.data.get("test") is not None:
        source.hold_out(partial(build, config.data["test"], "data.test"))
    return source


def build_functions(node: Any, key: str) -> Any:
    """Return the function that a node or a dotted path names; of a mapping without a `_target_`, {field: function}."""
    if names_function(node):
        return build_function(node, key)
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key} is {node!r}; give {key}._target_=..., the dotted path of a function")
    return {field: build_functions(value, f"{key}.{field}") for field, value in node.items()}


def build_task(config: Config, device: torch.device) -> TrainedTask:
    """Return the config's task, a function (model, batch) -> loss. With `autocast=true`, it runs the model in bfloat16."""
    return TrainedTask(declared_task(config.task), device.type if config.autocast else None)


def declared_task(options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the task that the node `task` of the config declares. Raises ConfigError if it is no function.

    The files in `conf/task` have all options of BatchTask; a task of the user's own is not given those that are not set.
    """
    node = dict(options)
    if locate(node["_target_"], "task._target_") is BatchTask:
        if names_function(loss := node.get("loss")):
            node["loss"] = build_function(loss, "task.loss")
    else:
        unset = {name: each.default for name, each in signature(BatchTask).parameters.items()}
        node = {name: value for name, value in node.items() if name not in unset or value != unset[name]}
    task = build_function(node, "task")
    if not callable(task):
        raise ConfigError(f"task gives {described(task)}; it must give a function (model, batch) -> loss")
    return task
