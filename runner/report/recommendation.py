"""The answer in words: which methods held, which leaked and by whose doing, and which one to use. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.errors import listed
from runner.report.equivalence import BASELINE, trained_parts
from runner.report.grouping import by_method, given, swept
from runner.report.prices import cheapest
from runner.runs.console import cost_lines, steps_of
from runner.runs.read import Run
from runner.runs.text import counted

Points = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Answer:
    """A headline, what it trained_parts on, and the findings: a term, and what is said of it."""

    headline: str
    lead: str
    points: Points = field(default_factory=list)


@dataclass(frozen=True)
class MethodResults:
    """How one method fared over its runs."""

    method: str
    runs: list[Run]
    rest: dict[str, tuple[str, str]]

    @property
    def judged(self) -> list[Run]:
        """The runs that finished with something frozen."""
        return [run for run in self.runs if run.finished and froze(run)]

    @property
    def leaked(self) -> list[Run]:
        return [run for run in self.judged if run.record["verdict"] == "leaked"]

    @property
    def held(self) -> bool:
        """Whether it held in every run that finished."""
        return bool(self.judged) and not self.leaked

    @property
    def complete(self) -> bool:
        """Whether each of its runs finished."""
        return all(run.finished for run in self.runs)

    @property
    def returned(self) -> bool:
        return any(run.record["counts"]["returned"] for run in self.judged)

    def rested(self, word: str) -> list[Run]:
        """The runs whose rest is `identical`, or `differs`."""
        return [run for run in self.judged if self.rest[run.label][0] == word]


def froze(run: Run) -> bool:
    """Whether anything was declared frozen, as far as the record tells."""
    counts = run.record["counts"]
    return any(counts[word] for word in ("held", "returned", "leaked")) or not any(counts.values())


def of_runs(runs: Sequence[Run]) -> Answer:
    """The answer that several runs give together."""
    rest = trained_parts({run.label: run.record for run in runs})
    results = [MethodResults(method, members, rest) for method, members in by_method(runs).items()]
    if not any(one.judged for one in results):
        why = (
            "Nothing was declared frozen." if any(run.finished for run in runs) else "Failures and their reasons are below."
        )
        done = sum(run.finished for run in runs)
        return Answer(f"{counted(done, 'run')} of {len(runs):,} finished", why, points(results, runs))
    headline, lead = advice(results)
    return Answer(headline, lead, points(results, runs))


def advice(results: Sequence[MethodResults]) -> tuple[str, str]:
    """Which method to use: one that held throughout, left the rest as it was, and is the cheapest where costs are known."""
    held = [one for one in results if one.held]
    if len(results) == 1:
        return _alone(results[0])
    if not held:
        if not any(len(one.judged) > len(one.leaked) for one in results if one.method != "none"):
            return "No method held", "Each leaked in all of its runs; below stands by whose doing."
        most = max(
            (one for one in results if one.method != "none"),
            key=lambda one: (len(one.judged) - len(one.leaked)) / max(len(one.judged), 1),
        )
        kept = len(most.judged) - len(most.leaked)
        return "No method held", f"{most.method} came nearest: it held in {kept} of {counted(len(most.judged), 'run')}."
    pool = best(held)
    names = [one.method for one in pool]
    saving = cheapest({one.method: one.judged for one in pool})
    baseline = [one.method for one in pool if one.runs[0].record["method"].get("_target_") == BASELINE]
    least = saving[0] if saving else names
    chosen = next((name for name in least if name in baseline), least[0])
    others = [name for name in names if name != chosen]
    alike = ", and trained the rest to the same bits" if any(one.rested("identical") for one in pool) else ""
    said = f"{chosen} kept every frozen bit in {_kept(pool[names.index(chosen)])}"
    if not others:
        return f"Use {chosen}", f"{said}; {_why_alone([one for one in held if one.method != chosen])}."
    said += f". So did {listed(others)}{alike}"
    if saving:
        if len(least) == len(names):
            return f"Use {chosen}", f"{said}, at the same cost: {saving[1]}."
        others = [name for name in least if name != chosen]
        beside = f"{listed(others)} and it are the cheapest of them" if others else "It is the cheapest of them"
        return f"Use {chosen}", f"{said}. {beside}: {saving[1]}."
    return (
        f"Use {chosen}",
        f"{said}. {'Any of them will do' if chosen not in baseline else 'Among equals, it is torch’s own way'}.",
    )


def best(held: Sequence[MethodResults]) -> list[MethodResults]:
    """Of the methods that held, those of the first rank that has any: complete, with the rest alike, nothing put back."""
    for rank in (
        lambda one: one.complete and not one.rested("differs") and not one.returned,
        lambda one: one.complete and not one.rested("differs"),
        lambda one: not one.rested("differs"),
        lambda one: one.complete,
    ):
        if found := [one for one in held if rank(one)]:
            return found
    return list(held)


def points(results: Sequence[MethodResults], runs: Sequence[Run]) -> Points:
    """The findings, term by term; a term of which there is nothing to say is left out."""
    idle = [run for run in runs if run.finished and run.record["counts"]["idle"]]
    found: Points = [
        ("Held", _held(results)),
        ("Leaked", [_leaked(one) for one in results if one.leaked]),
        ("Trained the rest", _rest(results)),
        ("Saves little", [line for one in results for line in _saves_little(one)]),
        ("Idle", [f"{counted(len(idle), 'run')} left something trainable unmoved: {causes(idle, 'idle')}"] if idle else []),
        ("Unfinished", [line for one in results for line in _unfinished(one)]),
    ]
    return [(term, lines) for term, lines in found if lines]


def causes(runs: Sequence[Run], verdict: str) -> str:
    """By whose doing tensors got a verdict: the causes, the most frequent first."""
    count = Counter(row.cause or "unknown" for run in runs for row in run.tensors if row.verdict == verdict)
    return listed([cause.replace("|", " with ") for cause, _ in count.most_common()]) or "what their tables do not tell"


def under(picked: Sequence[Run], among: Sequence[Run]) -> str:
    """What the picked runs have in common that not all runs of the method have, as overrides."""
    told = []
    for key in swept(among):
        values, everywhere = ({given(run).get(key, "") for run in part} for part in (picked, among))
        if key != "seed" and len(values) < len(everywhere):
            told.append(f"{key}={'|'.join(sorted(values))}")
    return ", ".join(told)


def _alone(one: MethodResults) -> tuple[str, str]:
    if one.held:
        return f"{one.method} held", f"It kept every frozen bit in {_kept(one)}."
    where = under(one.leaked, one.judged)
    told = f"It leaked in {len(one.leaked)} of {counted(len(one.judged), 'run')}{', under ' + where if where else ''}."
    return f"{one.method} leaked", told


def _held(results: Sequence[MethodResults]) -> list[str]:
    kept = [one for one in results if one.held and not one.returned]
    back = [one.method for one in results if one.held and one.returned]
    lines = [f"{listed([one.method for one in kept])}: every frozen bit, at every look"] if kept else []
    return lines + ([f"{listed(back)}: moved within a step, and was put back each time"] if back else [])


def _leaked(one: MethodResults) -> str:
    where = under(one.leaked, one.judged)
    said = f"{one.method}: in {len(one.leaked)} of {counted(len(one.judged), 'run')}, by {causes(one.leaked, 'leaked')}"
    return f"{said}; under {where}" if where else said


def _rest(results: Sequence[MethodResults]) -> list[str]:
    others = [one for one in results if one.runs[0].record["method"].get("_target_") != BASELINE]
    alike = [one.method for one in others if one.rested("identical") and not one.rested("differs")]
    lines = [f"as requires_grad does, bit for bit: {listed(alike)}"] if alike else []
    for one in results:
        if other := one.rested("differs"):
            compared = len(other) + len(one.rested("identical"))
            why = dict.fromkeys(one.rest[run.label][1] for run in other)
            lines.append(f"otherwise: {one.method}, in {len(other)} of {counted(compared, 'run')} ({listed(list(why))})")
    return lines


def _saves_little(one: MethodResults) -> list[str]:
    by_why: dict[str, list[Run]] = {}
    for run in one.judged:
        if (why := run.record["cost"].get("why_small")) and not one.leaked:
            by_why.setdefault(str(why), []).append(run)
    told = {why: under(runs, one.judged) for why, runs in by_why.items()}
    return [f"{one.method}: {why}{'; under ' + where if where else ''}" for why, where in told.items()]


def _unfinished(one: MethodResults) -> list[str]:
    by_status: dict[str, list[Run]] = {}
    for run in one.runs:
        if not run.finished:
            by_status.setdefault(run.record["status"], []).append(run)
    return [f"{one.method}: {len(some)} of {counted(len(one.runs), 'run')} {status}" for status, some in by_status.items()]


def _kept(one: MethodResults) -> str:
    """How many runs that is, and of how many."""
    done, asked = len(one.judged), len([run for run in one.runs if not run.finished or froze(run)])
    if done < asked:
        return f"{done:,} of {asked:,} runs; {asked - done:,} did not finish"
    return "its one run" if done == 1 else f"all of its {done:,} runs"


def _why_alone(others: Sequence[MethodResults]) -> str:
    """Why no other method that held is as good."""
    differ = [one.method for one in others if one.rested("differs")]
    back = [one.method for one in others if one.returned and not one.rested("differs")]
    short = [one.method for one in others if one.method not in (*differ, *back)]
    told = [
        f"{listed(differ)} held too, but trained the rest otherwise" if differ else "",
        f"{listed(back)} put back what had moved" if back else "",
        f"{listed(short)} did not finish everywhere" if short else "",
    ]
    return "; ".join(filter(None, told)) or "no other method held"


def of_run(run: Run) -> Answer:
    """The answer that one run gives."""
    record, frozen = run.record, [row for row in run.tensors if row.frozen]
    if not run.finished and not run.tensors:
        return Answer(record["status"].capitalize(), _sentence(record["reason"]))
    counts: Mapping[str, int] = record["counts"]
    leaks = [row for row in frozen if row.verdict == "leaked"]
    if leaks:
        told = [f"{row.name} ({row.cause or 'unknown'})" for row in leaks]
        headline, lead = f"Leaked: {len(leaks)} of {counted(len(frozen), 'frozen tensor')}", f"Changed: {listed(told)}."
    elif not froze(run):
        headline, lead = "Nothing was declared frozen", ""
    else:
        total = len(frozen) or counts["held"] + counts["returned"]
        headline = f"Held: {counted(total, 'frozen tensor')} kept every bit"
        back = f"{counts['returned']} of them moved within a step, and were put back." if counts["returned"] else ""
        lead = back or "Compared bit by bit with what they were at the start."
    looks = f"after {steps_of(record['looks'])}" if record["looks"] else ""
    idle = [f"{row.name} ({row.cause or 'unknown'})" for row in run.tensors if row.verdict == "idle"]
    found: Points = [
        ("Status", [f"{record['status']}: {record['reason']}"] if not run.finished else []),
        ("Trained", [f"{counted(counts['trained'], 'parameter')}"] if counts["trained"] else []),
        ("Idle", [listed(idle)] if idle else []),
        ("Drifted", [f"{counted(counts['drifted'], 'live buffer')}, as PyTorch's do"] if counts["drifted"] else []),
        ("Bits compared", [looks] if looks else []),
        ("Cost", list(cost_lines(record["cost"]))),
        ("Notes", record["notes"]),
    ]
    return Answer(headline, lead, [(term, lines) for term, lines in found if lines])


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".") if text else ""
