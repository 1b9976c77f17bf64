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
from runner.report.compare.equivalence import BASELINE_TARGET
from runner.report.compare.modules import Module, build_tree
from runner.report.compare.settings import Setting
from runner.runs.tables import TensorRow

PLAIN_NAME = re.compile(r"[A-Za-z_][\w.]*")  # what needs no quotes in a list of patterns
BACKWARD_AT_END: Final[WhySmall] = "the frozen part is at the end: backward still runs through it"
BACKWARD_BETWEEN: Final[WhySmall] = "what trains begins before the frozen part: backward still runs through it"
COMPUTES_LITTLE: Final[WhySmall] = "the frozen part computes little"
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


def opportunity_of(setting: Setting, settings: Sequence[Setting]) -> Opportunity | None:
    """Return what a setting could save; None if it saves much, its costs are not known, or it is to train everything.

    `settings`: all settings of the report. A saving is claimed only where one of them with the same frozen set and context
    was measured, held, and cost less.
    """
    if setting.trains_everything or not (finding := _finding(setting)):
        return None
    same_place = [each for each in settings if _same_place(each, setting)]
    better = _cheapest([each for each in same_place if _saves_more(each, setting)])
    fixes = tuple(_fixes(setting, setting.cost.get("why_small", ""), same_place))
    return Opportunity(finding, _saving(setting, better, settings), fixes)


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


def _saving(setting: Setting, better: Setting | None, settings: Sequence[Setting]) -> str:
    """Return what `better`, which freezes the same at less cost, saves; else what freezing something else saves."""
    if better:
        parts = [f"takes {percent_text(better.cost['flops_share'])} of the FLOPs of training everything"]
        less = _kept_bytes(setting), _kept_bytes(better)
        if less[0] is not None and less[1] is not None and less[0] > less[1]:
            parts.append(f"keeps {bytes_text(less[0] - less[1])} less of gradients and optimizer state")
        return f"{better.method} {listed(parts)}: measured here, with the same parameters frozen."
    others = [each for each in settings if each.context == setting.context and each.frozen_set != setting.frozen_set]
    other = _cheapest([each for each in others if _saves_more(each, setting)])
    if other is None or other.cost["flops_share"] > 0.9:
        return NOT_MEASURED
    share = percent_text(other.cost["flops_share"])
    return (
        f"Not measured here with the same parameters frozen. With {other.frozen_set} frozen instead, which trains other "
        f"parameters, {other.method} takes {share} of the FLOPs of training everything: measured here."
    )


def _same_place(other: Setting, setting: Setting) -> bool:
    """Return whether two settings differ at most in the method."""
    return (other.frozen_set, other.context) == (setting.frozen_set, setting.context)


def _saves_more(other: Setting, setting: Setting) -> bool:
    """Return whether a setting held in each run that finished, and takes fewer FLOPs than another, or fewer bytes."""
    own, its = setting.cost.get("flops_share"), other.cost.get("flops_share")
    if other.trains_everything or not other.held_in_all_finished or own is None or its is None:
        return False
    return (its, _kept_bytes(other) or 0) < (own, _kept_bytes(setting) or 0)


def _cheapest(settings: Sequence[Setting]) -> Setting | None:
    """Return the setting of the smallest cost, of several `requires_grad`, else the first; None if there is none."""
    return min(
        settings, key=lambda each: (each.cost["flops_share"], _kept_bytes(each) or 0, not _is_baseline(each)), default=None
    )


def _is_baseline(setting: Setting) -> bool:
    """Return whether a setting's method is `requires_grad`."""
    return setting.runs[0].record["method"].get("_target_") == BASELINE_TARGET


def _kept_bytes(setting: Setting) -> float | None:
    """Return the bytes of gradients and optimizer state together; None if they are not known."""
    parts = [setting.cost.get(key) for key in ("gradient_bytes", "optimizer_state_bytes")]
    return None if None in parts else sum(parts)  # type: ignore[arg-type]


def _fixes(setting: Setting, why: WhySmall | str, same_place: Sequence[Setting]) -> Iterator[Fix]:
    """Yield what to run to save more, as the reason asks for it.

    `same_place`: the settings with the same frozen set and context. Where `requires_grad` leaked there, `method.clean` is
    asked for, with which it drops gradients and optimizer state of earlier steps.
    """
    tensors = next((run.tensors for run in setting.runs if run.tensors), [])
    if why in (BACKWARD_AT_END, BACKWARD_BETWEEN, COMPUTES_LITTLE):
        if override := _other_patterns(tensors, why):
            yield Fix(MORE_FROZEN[why], override)
        if setting.frozen_set.split(" ")[0] != "backbone":
            yield Fix("Freeze everything but the head", "freeze=backbone")
        return
    leaked = any(_is_baseline(each) and not each.is_sound for each in same_place)
    if not _is_baseline(setting):
        override = "method=requires_grad method.clean=true" if leaked else "method=requires_grad"
        yield Fix("Compute no gradient of what is frozen", override)
    elif not setting.runs[0].record["method"].get("clean"):
        yield Fix("Drop gradients and state of earlier steps when the freezing begins", "method.clean=true")
    if _is_prefix(tensors):
        yield Fix("Over several passes, run the frozen first layers once for each sample", CACHED)


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
