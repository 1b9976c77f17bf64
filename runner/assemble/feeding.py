"""Build what feeds a run from the checked config: the task, the data, and the batches of all passes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import chain
from typing import Any

import torch

from runner.assemble.objects import dtype_of
from runner.config.build import build, build_function, locate, names_function
from runner.config.numbers import check_numbers
from runner.config.schema import ENDLESS_BATCHES, RUNNERS_DATA_KEYS, Config
from runner.contract import Note
from runner.errors import ConfigError
from runner.seeding import PrivateRandomness, derived_seed
from runner.training.data.source import Source, as_source, batches_a_pass, to_device
from runner.training.data.structure import refuse_other_structure
from runner.training.tasks.task import BatchTask
from runner.training.tasks.trained import TrainedTask
from runner.training.tasks.wording import described
from runner.training.weights import transforms_of

FUNCTIONS = ("transform", "collate")  # keys of the node `data` whose targets are functions of a sample or of samples
BUILD = -4  # stands for the number of a pass in the seed under which the data are built


@dataclass(frozen=True)
class Feed:
    """The data of a run, opened.

    Attributes:
        config: the config of the run, in which `batches` is now a number.
        first: the first batch, on the device of the model.
        batches: all batches of the run on that device, the first included; each can be taken once.
        reread: a function that returns the first batch as the second pass would read it, or None.
        held_out: a function that returns the batches that are held out, anew in each call; None if there are none.
    """

    config: Config
    first: Any
    batches: Iterator[Any]
    reread: Callable[[], Any | None]
    held_out: Callable[[], Iterator[Any] | None]


def open_feed(config: Config, device: torch.device, note: Note, undo: ExitStack) -> Feed:
    """Build the data that the config declares, and read the first batch. Closing `undo` ends the worker processes.

    `note` is called with a message if a pass has fewer batches than the config asks for. Raises ConfigError if the data are
    no batches, if there are none, or if the config asks for a number of them that is not known.
    """
    with PrivateRandomness(derived_seed(config.seed, BUILD)):
        source = build_source(config)
    count = batches_a_pass(config.batches, source.length(), ENDLESS_BATCHES)
    if config.batches not in ("auto", "all", count):
        note(f"the data have {count} batches a pass, fewer than batches={config.batches}")
    config = config.with_batches(count)
    check_numbers(config)
    move = partial(to_device, device=device, dtype=dtype_of(config))
    passes = _all_passes(source, config)
    undo.callback(passes.close)
    batches = map(move, passes)
    first = next(batches, None)
    if first is None:
        raise ConfigError("data: there is no batch; give data that yield at least one")
    return Feed(
        config=config,
        first=first,
        batches=chain([first], batches),
        reread=lambda: _moved(source.reread(config.seed), move),
        held_out=lambda: _moved(source.read_held_out(config.seed), partial(map, move)),
    )


def _moved(value: Any, move: Callable[[Any], Any]) -> Any:
    """Return `move(value)`, or None for None."""
    return None if value is None else move(value)


def _all_passes(source: Source, config: Config) -> Generator[Any, None, None]:
    """Yield the batches of every pass over the data. Raises ConfigError if one has another structure than the first."""
    structure = None
    for epoch in range(config.epochs):
        for number, batch in enumerate(source.read(config.seed, epoch, config.batches), epoch * config.batches + 1):
            structure = refuse_other_structure(batch, number, structure)
            yield batch


def build_source(config: Config) -> Source:
    """Return the data that the config declares. Raises ConfigError if they are no batches."""
    node = {key: value for key, value in config.data.items() if key not in RUNNERS_DATA_KEYS}
    for key in FUNCTIONS:
        if node.get(key) == "weights":
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
