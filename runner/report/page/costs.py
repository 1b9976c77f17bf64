"""What a step costs, for each setting, against training everything; and what would save more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from runner.contract import Cost
from runner.display.units import bytes_text, flops_text, percent_text, seconds_text
from runner.errors import listed
from runner.report.answer.sharing import sharing_text
from runner.report.compare.costs import total_flops
from runner.report.compare.run_set import RunSet
from runner.report.compare.savings import Opportunity, opportunities
from runner.report.compare.settings import Place, Setting
from runner.report.page.elements import Section
from runner.runs.text import MAX_CELL, shortened

MAX_GROUPS = 24


class Measure(NamedTuple):
    """A cost that gets a column: its heading, its key, how its figure is written, and whether it is there if unknown."""

    heading: str
    key: str
    text_of: Callable[[float | None], str]
    always: bool = True


MEASURES = (
    Measure("FLOPs a step", "flops", flops_text),
    Measure("FLOPs forward", "flops_forward", flops_text),
    Measure("FLOPs backward", "flops_backward", flops_text),
    Measure("saved activations", "saved_bytes", bytes_text),
    Measure("gradients", "gradient_bytes", bytes_text),
    Measure("optimizer state", "optimizer_state_bytes", bytes_text),
    Measure("peak memory", "peak_memory_bytes", bytes_text, always=False),
    Measure("time forward", "seconds_forward", seconds_text, always=False),
    Measure("time backward", "seconds_backward", seconds_text, always=False),
    Measure("time of a step", "seconds_step", seconds_text, always=False),
)


class CostBar(NamedTuple):
    """A cost of a setting: its figure and its share of training everything as texts, and the share as a number.

    `figure` is empty if the cost is unknown; `percent` and `share` are "" and None if only the share is.
    """

    figure: str
    percent: str
    share: float | None


@dataclass(frozen=True)
class CostGroup:
    """The settings that differ in the method alone.

    Attributes:
        title: what they freeze, and in which context; of several contexts whose costs are all the same, these.
        measures: the headings of the bars.
        rows: (method, bars) of each setting, the one with the fewest FLOPs first.
        cards: (settings, opportunity) for settings that save little.
    """

    title: str
    measures: list[str]
    rows: list[tuple[str, list[CostBar]]]
    cards: list[tuple[str, Opportunity]]

    @property
    def uncompared(self) -> str:
        """A sentence on what was measured and has no share, since no run of `method=none` was measured alike; or ""."""
        optional = {one.heading for one in MEASURES if not one.always}
        shares = zip(*([bar.share for bar in bars] for _, bars in self.rows), strict=True)
        names = [name for name, each in zip(self.measures, shares, strict=True) if name in optional and set(each) == {None}]
        return f"Without a bar: {listed(names)}; no run of method=none to compare with." if names else ""


def costs_section(run_set: RunSet) -> Section | None:
    """Return the section about costs and what the runs computed once; None if none were measured and nothing was shared."""
    settings = [each for each in run_set.settings if any(_number(each.cost, one.key) is not None for one in MEASURES)]
    shared = sharing_text(run_set.runs)
    if not settings and not shared:
        return None
    groups = cost_groups(settings)
    more = f"Shown are the first {MAX_GROUPS} of {len(groups):,} groups of settings." if len(groups) > MAX_GROUPS else ""
    data = {"groups": groups[:MAX_GROUPS], "more": more, "shared": shared}
    return Section("costs", "What a step costs", "costs", data)


def cost_groups(settings: Sequence[Setting]) -> list[CostGroup]:
    """Return the settings in groups of the same frozen set and context; contexts of the same costs share a group."""
    cards = dict(zip(map(id, settings), opportunities(settings), strict=True))
    by_place: dict[Place, list[Setting]] = {}
    for setting in settings:
        by_place.setdefault(setting.place, []).append(setting)
    merged: dict[tuple[object, ...], list[list[Setting]]] = {}
    for place, members in by_place.items():
        members.sort(key=lambda each: (each.flops is None, each.flops))
        costs = tuple((each.method, tuple(cost_bar(one, each.cost) for one in MEASURES)) for each in members)
        merged.setdefault((place.frozen, costs, tuple(cards[id(each)] for each in members)), []).append(members)
    return [_group(places, cards) for places in merged.values()]


def _group(places: Sequence[Sequence[Setting]], cards_by_id: Mapping[int, Opportunity | None]) -> CostGroup:
    """Return the group of the settings of several places, in which the costs are all the same.

    `cards_by_id`: {id of a setting: what it could save}.
    """
    members = places[0]
    bars = {each.method: [cost_bar(one, each.cost) for one in MEASURES] for each in members}
    kept = [
        number for number, one in enumerate(MEASURES) if one.always or any(line[number].figure for line in bars.values())
    ]
    cards: dict[Opportunity, list[str]] = {}
    for setting in members:
        if found := cards_by_id[id(setting)]:
            cards.setdefault(found, []).append(setting.method)
    where = listed([each[0].context for each in places if each[0].context], most=3)
    return CostGroup(
        title=shortened(f"Frozen: {members[0].frozen_set}" + (f", with {where}" if where else ""), MAX_CELL),
        measures=[MEASURES[number].heading for number in kept],
        rows=[(method, [line[number] for number in kept]) for method, line in bars.items()],
        cards=[(listed(methods, most=6), card) for card, methods in cards.items()],
    )


def cost_bar(measure: Measure, cost: Cost) -> CostBar:
    """Return the bar of a cost."""
    share = cost.get(f"{measure.key}_share")
    return CostBar(measure.text_of(_number(cost, measure.key)), percent_text(share), share)


def _number(cost: Mapping[str, Any], key: str) -> float | None:
    """Return a cost by its key, or under `flops` the FLOPs of forward and backward together; None if unknown."""
    return total_flops(cost) if key == "flops" else cost.get(key)
