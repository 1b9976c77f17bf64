"""Which settings save little, why, what a setting of the same report saves instead, and what to run to save more."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from runner.contract import WhySmall
from runner.display.units import bytes_text, percent_text
from runner.errors import listed
from runner.report.compare.costs import compare_costs, cost_rank
from runner.report.compare.modules import Module, build_tree
from runner.report.compare.settings import Place, Setting, Told
from runner.runs.tables import TensorRow

PLAIN_NAME = re.compile(r"[A-Za-z_][\w.]*")  # what needs no quotes in a list of patterns
BACKWARD_AT_END: Final[WhySmall] = "the frozen part is at the end: backward still runs through it"
BACKWARD_BETWEEN: Final[WhySmall] = "what trains begins before the frozen part: backward still runs through it"
COMPUTES_LITTLE: Final[WhySmall] = "the frozen part computes little"
BACKWARD_FROM_INPUT: Final[WhySmall] = "the input of the frozen part requires a gradient: backward runs through it"
MORE_FROZEN: Mapping[str, str] = {
    BACKWARD_AT_END: "Freeze what runs first instead of what runs last",
    BACKWARD_BETWEEN: "Freeze what comes before it too",
}
NOT_MEASURED = "Not measured here."
CACHED = "method=cached_prefix freeze.buffers=frozen data.epochs=10"


@dataclass(frozen=True)
class Fix:
    """What to run to save more: for what, as the beginning of a sentence, and the arguments of the command line."""

    text: str
    override: str


@dataclass(frozen=True)
class Opportunity:
    """A setting that saves little: what was found, what would be saved, as far as that was measured, and how."""

    finding: str
    saving: str
    fixes: tuple[Fix, ...]


def opportunities(settings: Sequence[Setting]) -> list[Opportunity | None]:
    """Return for each setting what it could save; None if it saves much, its costs are not known, or it is a baseline.

    A saving is claimed only where a setting with the same frozen set and context was measured, held, and cost less.
    """
    cheapest = sorted(filter(_is_candidate, settings), key=lambda each: (*cost_rank(each.cost), not each.is_requires_grad))
    by_place: dict[Place, list[Setting]] = {}
    by_context: dict[Told, list[Setting]] = {}
    for each in cheapest:
        by_place.setdefault(each.place, []).append(each)
        by_context.setdefault(each.place.context, []).append(each)
    leaked_places = {each.place for each in settings if each.is_requires_grad and any(run.leaked for run in each.runs)}
    found: list[Opportunity | None] = []
    for setting in settings:
        finding = "" if setting.trains_everything else _finding(setting)
        if not finding:
            found.append(None)
            continue
        same = next(iter(by_place.get(setting.place, ())), None)
        others = by_context.get(setting.place.context, ())
        other = next((each for each in others if each.place.frozen != setting.place.frozen), None)
        saving = _saving(
            setting, *(each if each and compare_costs(each.cost, setting.cost) == -1 else None for each in (same, other))
        )
        fixes = tuple(_fixes(setting, setting.cost.get("why_small", ""), setting.place in leaked_places))
        found.append(Opportunity(finding, saving, fixes))
    return found


def _finding(setting: Setting) -> str:
    """Return what is known against a setting's costs, as sentences; "" if nothing is."""
    cost, sentences = setting.cost, []
    share = cost.get("flops_share")
    if cost.get("why_small") and share is not None:
        saved = f"saves {percent_text(1 - share)} of the FLOPs" if share < 1 else "saves none of the FLOPs"
        sentences.append(f"It {saved} of training everything: {cost['why_small']}.")
    held = [
        f"{bytes_text(cost[key])} of {what}"
        for key, what in (("frozen_gradient_bytes", "gradients"), ("frozen_optimizer_state_bytes", "optimizer state"))
        if cost.get(key)
    ]
    if held:
        sentences.append(f"{listed(held)} belong to parameters that are frozen.")
    return " ".join(sentences)


def _saving(setting: Setting, better: Setting | None, other: Setting | None) -> str:
    """Return what a cheaper setting saves: `better` freezes the same, `other` something else, which is the second choice."""
    if better:
        parts = [f"takes {percent_text(better.cost['flops_share'])} of the FLOPs of training everything"]
        less = _kept_bytes(setting), _kept_bytes(better)
        if less[0] is not None and less[1] is not None and less[0] > less[1]:
            parts.append(f"keeps {bytes_text(less[0] - less[1])} less of gradients and optimizer state")
        return f"{better.method} {listed(parts)}: measured here, with the same parameters frozen."
    if other is None or other.cost["flops_share"] > 0.9:
        return NOT_MEASURED
    share = percent_text(other.cost["flops_share"])
    return (
        f"Not measured here with the same parameters frozen. With {other.frozen_set} frozen instead, which trains other "
        f"parameters, {other.method} takes {share} of the FLOPs of training everything: measured here."
    )


def _is_candidate(setting: Setting) -> bool:
    """Return whether a setting may be named as one that saves: it held in each run that finished, and trained something."""
    known = setting.cost.get("flops_share") is not None
    return known and setting.held_in_all_finished and not setting.trains_everything and not setting.trains_nothing


def _kept_bytes(setting: Setting) -> float | None:
    """Return the bytes of gradients and optimizer state together; None if they are not known."""
    parts = [setting.cost.get(key) for key in ("gradient_bytes", "optimizer_state_bytes")]
    return None if None in parts else sum(parts)  # type: ignore[arg-type]


def _fixes(setting: Setting, why: WhySmall | str, leaked: bool) -> Iterator[Fix]:
    """Yield what to run to save more, as the reason asks for it.

    `leaked`: whether `requires_grad` leaked with the same frozen set and context. Then `method.clean` is asked for, with
    which it drops gradients and optimizer state of earlier steps.
    """
    tensors = next((run.tensors for run in setting.runs if run.tensors), [])
    if why in (BACKWARD_AT_END, BACKWARD_BETWEEN, COMPUTES_LITTLE):
        if patterns := _other_patterns(tensors, why):
            keep = " freeze.keep=[]" if _is_told(setting, "freeze.keep") or setting.runs[0].config.get("freeze.keep") else ""
            yield Fix(MORE_FROZEN[why], f"{patterns}{keep}")
        if setting.frozen_set.split(" ")[0] != "backbone":
            yield Fix("Freeze everything but the head", _backbone(setting))
        return
    if why == BACKWARD_FROM_INPUT:
        yield Fix("End backward where the frozen part ends", "method=detach")
    elif not setting.is_requires_grad:
        override = "method=requires_grad method.clean=true" if leaked else "method=requires_grad"
        yield Fix("Compute no gradient of what is frozen", override)
    elif not setting.runs[0].record["method"].get("clean"):
        yield Fix("Drop gradients and state of earlier steps when the freezing begins", "method.clean=true")
    if _is_prefix(tensors):
        whole = " batches=auto" if _is_told(setting, "batches") else ""
        yield Fix("Over several whole passes, run the frozen first layers once for each sample", f"{CACHED}{whole}")


def _is_told(setting: Setting, key: str) -> bool:
    """Return whether a config key was given on the command line of a setting's runs."""
    return any(text.partition("=")[0].lstrip("+") == key for text in setting.runs[0].record["overrides"])


def _backbone(setting: Setting) -> str:
    """Return the overrides that freeze all but the head, also beside patterns that a run was given."""
    given = _is_told(setting, "freeze.patterns") or _is_told(setting, "freeze.keep")
    return "freeze.patterns=['**'] freeze.keep=['@head']" if given else "freeze=backbone"


def _other_patterns(tensors: Sequence[TensorRow], why: str) -> str:
    """Return the override that freezes the first half of the model, or all up to its last frozen module; may be empty."""
    modules = top_modules(tensors)
    frozen = [number for number, module in enumerate(modules) if any(row.frozen for row in module.items())]
    if why == BACKWARD_AT_END:
        return _patterns(modules[: len(modules) // 2])
    if why == BACKWARD_BETWEEN and frozen and frozen[-1] + 1 < len(modules):
        return _patterns(modules[: frozen[-1] + 1])
    return ""


def top_modules(tensors: Sequence[TensorRow]) -> list[Module[TensorRow]]:
    """Return the modules that stand side by side at the top of a model, in its order; empty if it has no two of them."""
    module = build_tree((row.name, row) for row in tensors if row.kind == "parameter")
    while len(module.modules) == 1 and not module.tensors:
        (module,) = module.modules.values()
    return list(module.modules.values()) if len(module.modules) > 1 else []


def _is_prefix(tensors: Sequence[TensorRow]) -> bool:
    """Return whether all frozen parameters stand before all others in the model's order, and there are both."""
    frozen = [row.frozen for row in tensors if row.kind == "parameter"]
    return True in frozen and False in frozen and frozen == sorted(frozen, reverse=True)


def _patterns(modules: Sequence[Module[TensorRow]]) -> str:
    """Return the override that freezes these modules; "" if there are none, or a name would need quotes."""
    names = [module.name for module in modules]
    if not names or not all(PLAIN_NAME.fullmatch(name) for name in names):
        return ""
    return shlex.quote(f"freeze.patterns=[{','.join(names)}]")
