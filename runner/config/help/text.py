"""The text of `--help`: examples, the config groups with their choices, and each key with half a line. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from runner.config.help.keys import OPTIONS, is_passed_on, known_keys, sentences

WIDTH, COLUMN = 80, 32  # of the text; where the sentences begin
INDENT = " " * 6
BEGINNING = """\
Freeze it, prove it, price it: train a model with some parameters frozen, and
see to the last bit which of them moved.

  python -m runner method=zero_lr freeze=fc            one run
  python -m runner plan=true method=zero_lr            show it, train nothing
  python -m runner -m method=zero_lr,none seed=0,1     a sweep and its page
  python -m runner -m resume=last method=...           what is left of the last
  python -m runner -m launch=joblib method=...         on all cores; ray, slurm
  python -m runner 'freeze.patterns=["layer1", "**.bias"]' freeze.keep=[fc]
"""
END = """\
A key without = belongs to other choices of its group: --help data=digits shows
the keys and values of that choice. --cfg job prints the whole config as YAML.
A node with a `_target_` takes a class or function of your own, and more of its
arguments with ++: optimizer._target_=my.Sgd ++optimizer.nesterov=true.
hydra.run.dir=DIR and hydra.sweep.dir=DIR choose the folder. --hydra-help shows
Hydra's own options. More about each key: docs/config.md.
"""


def help_text(composed: DictConfig) -> str:
    """Return the text that `--help` prints for a composed config, 80 columns wide; each $ is doubled, as Hydra asks."""
    lines = [BEGINNING, "Config groups, GROUP=CHOICE. What stands behind = is chosen."]
    for group, choices in _choices_by_group().items():
        chosen = composed.hydra.runtime.choices
        head = _head(group, chosen[group]) if group in chosen else group
        lines += ["", *_explained(head, sentences().get(group, ""))]
        lines += wrap(", ".join(choices), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    lines += ["", "", "Keys, KEY=VALUE. What stands behind = is the value with the choices above."]
    for block in _blocks(OmegaConf.to_container(composed)):  # type: ignore[arg-type]
        lines += ["", *(line for head, sentence in block for line in _explained(head, sentence))]
    return "\n".join([*lines, "", "", END]).replace("$", "$$")


def _choices_by_group() -> dict[str, list[str]]:
    """Return {config group: its choices}, those of a user's `--config-dir` too; ours first, in the order of the schema."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    loader = GlobalHydra.instance().config_loader()

    def groups_in(parent: str) -> Iterator[str]:
        for name in loader.list_groups(parent):
            group = f"{parent}/{name}" if parent else name
            if group != "hydra":
                yield group
                yield from groups_in(group)

    order = list(sentences())
    found = {group: sorted(loader.get_group_options(group, ObjectType.CONFIG)) for group in groups_in("")}
    known = sorted(found.keys() & set(order), key=order.index)
    return {group: found[group] for group in [*known, *sorted(found.keys() - set(order))] if found[group]}


def _blocks(config: Mapping[str, Any]) -> Iterator[list[tuple[str, str]]]:
    """Yield a list of (key and value, sentence) for each node of a config, then one for the other keys."""
    top = [key for key in known_keys() if key in config]
    nodes = {key: config[key] for key in top if isinstance(config[key], Mapping)}
    for node, content in nodes.items():
        others = [name for name in _options_of(node) if name not in content]
        block = [*_keys_of(node, content), *((f"{node}.{name}", sentences()[f"{node}.{name}"]) for name in others)]
        if block:
            yield block
    yield [(_head(key, config[key]), sentences()[key]) for key in top if key not in nodes]


def _options_of(node: str) -> list[str]:
    """Return the names of the keys in a node that only some choices of its group have."""
    return [key.removeprefix(f"{node}.") for key in OPTIONS if key.startswith(f"{node}.")]


def _keys_of(node: str, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key and value, sentence) for the keys in a node: first those with a sentence, in the order of the schema."""
    order = list(sentences())
    target = str(content.get("build", content).get("_target_", "")).rpartition(".")[2]
    own = {name: value for name, value in content.items() if name != "_target_" and not is_passed_on(name, value)}
    keys = {f"{node}.{name}": value for name, value in own.items()}
    for key in sorted(keys, key=lambda key: order.index(key) if key in order else len(order)):
        yield _head(key, keys[key]), sentences().get(key, f"Argument of {target}.")


def _head(key: str, value: Any) -> str:
    """Return a key with its value as it is given on the command line; of a node with a `_target_`, with its target."""
    if isinstance(value, Mapping) and "_target_" in value:
        return f"{key}._target_={_shown(value['_target_'])}"
    return f"{key}={_shown(value)}"


def _shown(value: Any) -> str:
    """Return a value of a config in one line of YAML."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).split("\n")[0]


def _explained(head: str, sentence: str) -> list[str]:
    """Return the lines of a key or group: its sentence beside it, or beneath it where there is no room."""
    left = wrap(head, WIDTH, initial_indent="  ", subsequent_indent=INDENT, break_on_hyphens=False)
    right = wrap(sentence.rstrip("."), WIDTH - COLUMN) or [""]
    if len(left[-1]) > COLUMN - 2:
        left.append("")
    beside = f"{left[-1]:<{COLUMN}}{right[0]}".rstrip()
    return [*left[:-1], beside, *(" " * COLUMN + line for line in right[1:])]
