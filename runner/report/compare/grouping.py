"""Sort, name and group runs by their overrides, the `key=value` arguments of the command line."""

from __future__ import annotations

from collections.abc import Sequence

from runner.contract import is_hashed, method_name
from runner.runs.read import Run


def overrides_by_key(run: Run) -> dict[str, str]:
    """Return a run's command-line overrides as {key: value}, then its `origin`, where the runs have several.

    Keys that only say where and how the run is carried out, such as `timeout`, are left out. `contract.NOT_HASHED` lists
    these keys.
    """
    overrides = (text.partition("=") for text in run.record["overrides"])
    return {key: value for key, _, value in overrides if is_hashed(key.lstrip("+~"))} | run.origin


def swept_keys(runs: Sequence[Run]) -> list[str]:
    """Return the override keys whose values are not the same in all runs; for a single run, all its override keys."""
    overrides = [overrides_by_key(run) for run in runs]
    keys = dict.fromkeys(key for values in overrides for key in values)
    return [key for key in keys if len(runs) == 1 or len({values.get(key) for values in overrides}) > 1]


def sort_runs(runs: Sequence[Run]) -> list[Run]:
    """Return the runs sorted by the override values in which they differ (numbers by size), then by label."""
    keys = swept_keys(runs)

    def sort_key(run: Run) -> list[tuple[float, str]]:
        """Return a sort key for a run: a list of (number, text) pairs.

        There is a pair for each override that is not the same in all runs, and then a pair for the run's label.
        """
        values = overrides_by_key(run)
        return [_number_or_text(text) for text in (*(values.get(key, "") for key in keys), run.label)]

    return sorted(runs, key=sort_key)


def short_names(runs: Sequence[Run]) -> dict[str, str]:
    """Return {run label: short name}.

    A short name consists of the run's values of those overrides that are not the same in all runs, such as `zero_lr fc
    optimizer.lr=0.1 seed 1`. If it is empty or not unique, or if there is only one run, the label is used instead.
    """
    keys = sorted(swept_keys(runs), key=_place_in_name)
    short = {}
    for run in runs:
        values = overrides_by_key(run)
        short[run.label] = " ".join(_value_in_name(key, values[key]) for key in keys if values.get(key))
    uses: dict[str, int] = {}
    for name in short.values():
        uses[name] = uses.get(name, 0) + 1
    return {label: name if len(runs) > 1 and name and uses[name] == 1 else label for label, name in short.items()}


def _place_in_name(key: str) -> int:
    """Return a sort key for the keys in the name of a run: its method first, what is frozen next, its seed last."""
    return {"method": 0, "freeze": 1, "seed": 3}.get(key, 2)


def _value_in_name(key: str, value: str) -> str:
    """Return a value in the name of a run: bare where it says by itself what it is, else with its key."""
    return value if key in ("method", "freeze") else f"seed {value}" if key == "seed" else f"{key.lstrip('+')}={value}"


def group_by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return {method name: its runs}.

    A method that ran with several values of an option appears once per value, with a name like `zero_lr guard=true`. Two
    classes of the same name have their dotted paths as names.
    """
    nodes = {run.label: run.record["method"] for run in runs}
    option_values: dict[str, dict[str, set[str]]] = {}
    for node in nodes.values():
        for key, value in node.items():
            option_values.setdefault(str(node.get("_target_")), {}).setdefault(key, set()).add(str(value))
    targets: dict[str, set[str]] = {}
    for run in runs:
        targets.setdefault(method_of(run), set()).update(filter(None, [nodes[run.label].get("_target_")]))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        node, name = nodes[run.label], method_of(run)
        name = name if len(targets[name]) < 2 else str(node.get("_target_", name))
        values = option_values.get(str(node.get("_target_")), {})
        options = [f"{key}={_yaml_text(value)}" for key, value in node.items() if key != "_target_" and len(values[key]) > 1]
        groups.setdefault(" ".join([name, *options]), []).append(run)
    return groups


def method_of(run: Run) -> str:
    """Return the name of a run's method.

    The name comes from `run.json`. If an old version wrote that file without the method, the name comes from the run's
    command-line overrides. If they do not name a method either, the text `an unknown method` is returned.
    """
    target = str(run.record["method"].get("_target_", ""))
    return method_name(target) or overrides_by_key(run).get("method", "") or "an unknown method"


def _number_or_text(value: str) -> tuple[float, str]:
    """Return a sort key for a text: (its number, "") if it is a number, otherwise (infinity, the text).

    Numbers come first, in order of size, then all other texts, in alphabetical order.
    """
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _yaml_text(value: object) -> str:
    """Return a value as a text; True, False and None in lower case."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
