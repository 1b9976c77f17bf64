"""What tells runs apart: the overrides in which they differ, their method, and which differ in the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runner.contract import NOT_HASHED, method_name
from runner.runs.read import Run

WORST = ("leaked", "failed", "interrupted", "skipped", "finished", "held")  # from the worst


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in the seed alone."""

    name: str
    runs: list[Run]

    @property
    def outcome(self) -> str:
        """The worst of its runs."""
        return worst(self.runs)


def given(run: Run) -> dict[str, str]:
    """A run's overrides by key, but for those that only say where and how it is carried out: they tell no runs apart."""
    overrides = (text.partition("=") for text in run.record["overrides"])
    return {key: value for key, _, value in overrides if key.lstrip("+~").split(".")[0] not in NOT_HASHED}


def swept(runs: Sequence[Run]) -> list[str]:
    """The override keys whose values are not the same in all runs; all keys where there is just one run."""
    overrides = [given(run) for run in runs]
    keys = dict.fromkeys(key for own in overrides for key in own)
    return [key for key in keys if len(runs) == 1 or len({own.get(key) for own in overrides}) > 1]


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Runs by the values of what tells them apart, numbers as numbers, then by name."""
    keys = swept(runs)

    def place(run: Run) -> list[tuple[float, str]]:
        own = given(run)
        return [_natural(text) for text in (*(own.get(key, "") for key in keys), run.label)]

    return sorted(runs, key=place)


def names(runs: Sequence[Run]) -> dict[str, str]:
    """A short name of each run by its label: the values of what tells it apart; the label where they do not."""
    keys = swept(runs)
    short = {run.label: " ".join(_told(key, given(run)[key]) for key in keys if given(run).get(key)) for run in runs}
    times: dict[str, int] = {}
    for name in short.values():
        times[name] = times.get(name, 0) + 1
    return {label: name if len(runs) > 1 and name and times[name] == 1 else label for label, name in short.items()}


def _told(key: str, value: str) -> str:
    return f"seed {value}" if key == "seed" else value


def seed_groups(runs: Sequence[Run]) -> list[SeedGroup]:
    """The runs by their overrides but for the seed; one whose overrides are unknown is a cell of its own."""
    keys = [key for key in swept(runs) if key != "seed"]
    grouped: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        own = sorted(f"{key}={value}" for key, value in given(run).items() if key != "seed")
        grouped.setdefault(tuple(own) or ("", run.label), []).append(run)
    return [
        SeedGroup(" ".join(filter(None, (given(members[0]).get(key, "") for key in keys))) or members[0].label, members)
        for members in grouped.values()
    ]


def worst(runs: Sequence[Run]) -> str:
    """The worst outcome of some runs."""
    found = {run.outcome for run in runs}
    return next((word for word in WORST if word in found), "finished")


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by the method that they used, with those of its options that are not the same in all runs of it."""
    nodes = {run.label: run.record["method"] for run in runs}
    varied: dict[str, dict[str, set[str]]] = {}
    for node in nodes.values():
        for key, value in node.items():
            varied.setdefault(str(node.get("_target_")), {}).setdefault(key, set()).add(str(value))
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        node = nodes[run.label]
        options = varied.get(str(node.get("_target_")), {})
        told = [f"{key}={_plain(value)}" for key, value in node.items() if key != "_target_" and len(options[key]) > 1]
        grouped.setdefault(" ".join([method_of(run), *told]), []).append(run)
    return grouped


def method_of(run: Run) -> str:
    """What a run's method is called; as it was asked for where an old record does not say."""
    target = str(run.record["method"].get("_target_", ""))
    return method_name(target) or given(run).get("method", "") or "an unknown method"


def _natural(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
