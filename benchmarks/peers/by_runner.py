"""This project's runner: every method of `conf/method/` but the baseline and `custom`, as users run them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from benchmarks.timing import ROOT

if TYPE_CHECKING:  # which would import torch, and make the processes that this one measures begin large
    from benchmarks.peers.work import Batch

METHODS = tuple(sorted({file.stem for file in (ROOT / "conf" / "method").glob("*.yaml")} - {"none", "custom"}))
given: dict[str, Iterable[Batch]] = {}  # the batches of each method, for a config can hold no objects


class Given:
    """A source of data that yields what it was given."""

    def __init__(self, method: str) -> None:
        self.method = method

    def batches(self, count: int, input: Any, classes: int, seed: int) -> Iterable[Batch]:
        """The batches of `given`."""
        return given[self.method]


def overrides(method: str, samples: int, size: int, steps: int, threads: int) -> list[str]:
    """The command line of a run."""
    work = [f"model.input=[3,{size},{size}]", f"batches={steps}", f"data.batch_size={samples}", f"threads={threads}"]
    return [f"method={method}", "freeze=backbone", *work]


def configured(method: str, size: int, steps: int, threads: int) -> Any:
    """The same as a typed config, whose data are those of `given`."""
    from runner.config.check import check
    from runner.config.compose import composed

    source = ["data=custom", f"data._target_={__name__}.Given", f"++data.method={method}"]
    asked = [text for text in overrides(method, 1, size, steps, threads) if not text.startswith("data.")]
    return check(composed(*asked, *source))


def train(config: Any, batches: Iterable[Batch]) -> Any:
    """One run inside its audit; returns the model as trained, and asserts that the frozen part held."""
    from runner.experiment import experiment
    from runner.proof.verdict import run_verdict

    given[config.data["method"]] = batches
    outcome = experiment(config)
    assert run_verdict(outcome.rows) == "held", "the audit says that the frozen part leaked"
    return outcome.model
