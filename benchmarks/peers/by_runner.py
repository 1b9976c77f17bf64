"""This project's runner with every method of `conf/method/`, except the baseline `none` and `custom`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from benchmarks.timing import ROOT

if TYPE_CHECKING:  # torch is not imported, so that this process and its children stay small
    from benchmarks.peers.work import Batch

METHODS = tuple(sorted({file.stem for file in (ROOT / "conf" / "method").glob("*.yaml")} - {"none", "custom"}))
batches_of: dict[str, Iterable[Batch]] = {}  # the batches of each method; a config cannot contain objects


def prepared_batches(method: str) -> Iterable[Batch]:
    """The batches of a method in `batches_of`."""
    return batches_of[method]


def overrides(method: str, samples: int, size: int, steps: int, threads: int) -> list[str]:
    """The overrides of a run."""
    work = [f"model.input=[3,{size},{size}]", f"batches={steps}", f"data.batch_size={samples}", f"threads={threads}"]
    return [f"method={method}", "freeze=backbone", *work]


def build_config(method: str, size: int, steps: int, threads: int) -> Any:
    """The checked config of these overrides, with the data of `batches_of`."""
    from runner.config.check import check
    from runner.config.compose import compose_config

    source = ["data=custom", f"data._target_={__name__}.prepared_batches", f"++data.method={method}"]
    others = [text for text in overrides(method, 1, size, steps, threads) if not text.startswith("data.")]
    return check(compose_config(*others, *source))


def train(config: Any, batches: Iterable[Batch]) -> Any:
    """Do one run, with its audit; returns the trained model, and asserts that the frozen part held."""
    from runner.experiment import experiment
    from runner.proof.verdict import run_verdict

    batches_of[config.data["method"]] = batches
    outcome = experiment(config)
    assert run_verdict(outcome.rows) == "held", "the audit says that the frozen part leaked"
    return outcome.model
