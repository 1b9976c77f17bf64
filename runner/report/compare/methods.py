"""The runs of one method: in which it held, leaked or proves nothing, and how it trained the rest."""

from __future__ import annotations

from dataclasses import dataclass

from runner.proof.verdict import defects_of
from runner.report.compare.costs import trains_everything
from runner.report.compare.equivalence import OTHER_MACHINE, is_requires_grad
from runner.runs.read import Run


@dataclass(frozen=True)
class MethodResults:
    """The runs of one method; `trained_parts` is what `compare_trained_parts` returns for all runs of the report."""

    method: str
    runs: list[Run]
    trained_parts: dict[str, tuple[str, str]]

    @property
    def finished(self) -> list[Run]:
        """The runs that finished and in which something was declared frozen."""
        return [run for run in self.runs if run.finished and has_frozen(run)]

    @property
    def measured(self) -> list[Run]:
        """The finished runs, and those that were interrupted after something had leaked."""
        return [run for run in self.runs if (run.finished and has_frozen(run)) or run.leaked]

    @property
    def leaked(self) -> list[Run]:
        """The runs that ended with a changed bit in a frozen tensor, interrupted ones too."""
        return [run for run in self.measured if run.leaked]

    @property
    def trains_everything(self) -> bool:
        """Whether the method is `none`, which does nothing about what is declared frozen."""
        return trains_everything(self.runs[0])

    @property
    def proven(self) -> list[Run]:
        """The finished runs that are evidence for the method: every frozen bit held, and the run has no defect.

        A run with a defect, such as `nothing trained` or `loss not finite`, proves nothing about the method.
        """
        return self.with_outcome("held")

    @property
    def held(self) -> bool:
        """Whether at least one run is evidence that the frozen tensors held, and in no run they leaked."""
        return bool(self.proven) and not self.leaked

    @property
    def complete(self) -> bool:
        """Whether every run of the method finished without a defect."""
        return all(run.finished and not defects_of(run.record) for run in self.runs)

    @property
    def returned(self) -> bool:
        """Whether in some finished run a frozen tensor changed for a while and then got its old bits back."""
        return any(run.record["counts"]["returned"] for run in self.proven)

    @property
    def is_requires_grad(self) -> bool:
        """Whether the method is `requires_grad`; the runs of all other methods are compared with its runs."""
        return is_requires_grad(self.runs[0])

    @property
    def trained_same_bits(self) -> bool:
        """Whether in each run that finished the trainable parameters end with the same bits as under `requires_grad`."""
        return bool(self.finished) and len(self.with_trained_part("identical")) == len(self.finished)

    @property
    def trained_otherwise(self) -> bool:
        """Whether in a run the trainable parameters end with other bits than under `requires_grad` on the same machine."""
        return any(
            not self.trained_parts[run.label][1].startswith(OTHER_MACHINE) for run in self.with_trained_part("differs")
        )

    def with_outcome(self, outcome: str) -> list[Run]:
        """Return the finished runs with this outcome, such as `held` or `loss not finite`."""
        return [run for run in self.finished if run.outcome == outcome]

    def with_trained_part(self, word: str) -> list[Run]:
        """Return the finished runs whose trainable parameters compare in a given way with those under `requires_grad`.

        `word`: `identical` for runs in which these parameters end with the same bits, `differs` for runs in which they do
        not.
        """
        return [run for run in self.finished if self.trained_parts[run.label][0] == word]


def trains_something(run: Run) -> bool:
    """Return whether a parameter was trained in a run; True if `run.json` does not give the numbers of tensors."""
    counts = run.record["counts"]
    return bool(counts["trained"]) or not any(counts.values())


def has_frozen(run: Run) -> bool:
    """Return whether anything was declared frozen in a run; True if `run.json` does not give the numbers of tensors."""
    counts = run.record["counts"]
    return any(counts[verdict] for verdict in ("held", "returned", "leaked")) or not any(counts.values())
