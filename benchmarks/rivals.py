"""Detectors of training faults as functions that watch a case and return what they complain about, a line each."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from torch.nn import functional

from benchmarks.detector_cases import Case
from runner import audit


class Detector(NamedTuple):
    """A detector.

    Attributes:
        name: its name in the table.
        package: its package, whose version the table names.
        complaints: watches a case, and returns what it complains about.
        is_watching: whether it watches each step of the user's loop; otherwise it looks at one batch, and is called before
            the loop and after it, so that it sees what has changed in between.
    """

    name: str
    package: str
    complaints: Callable[[Case], list[str]]
    is_watching: bool

    @property
    def version(self) -> str:
        """The version that is installed; "" if it is not."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""


def by_audit(case: Case, **options: Any) -> list[str]:
    """`runner.audit` over the user's loop."""
    with audit(case.model, case.frozen, buffers="frozen", **options) as report:
        for number in range(1, case.steps + 1):
            case.step(number)
    return [f"{row['name']} {row['verdict']}: {row['cause']}" for row in report.rows if row["verdict"] in ("leaked", "idle")]


def by_audit_every_step(case: Case) -> list[str]:
    """The same, comparing bits after every step."""
    return by_audit(case, every=1)


def by_torcheck(case: Case) -> list[str]:
    """torcheck, with a check for each tensor that the optimizer has; it knows no others."""
    from torcheck.registry import Registry

    registry, complaints = Registry(), list[str]()
    registry.register(case.optimizer)
    for name, parameter in case.model.named_parameters():
        is_frozen = name.split(".")[0] in case.frozen
        try:
            registry.add_tensor(parameter, name, changing=not is_frozen)
        except RuntimeError as error:  # "The tensor doesn't belong to any optimizer"
            complaints.append(f"{name}: {error}")
    for number in range(1, case.steps + 1):
        try:
            case.step(number)
        except RuntimeError as error:
            complaints += str(error).splitlines()[1:]
    return list(dict.fromkeys(complaints))


def by_torchtest2(case: Case) -> list[str]:
    """torchtest2: its checks of what is frozen, of what changes, of the optimizer and of gradients, on one batch."""
    import torchtest2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = torchtest2.check_model(
            case.model,
            case.inputs,
            case.targets,
            loss_fn=functional.cross_entropy,
            optimizer=case.optimizer,
            frozen=case.frozen,
            skip=["overfit_batch", "initial_loss", "batch_independence", "eval_determinism", "output_varies"],
        )
    return [f"{each.name}: {each.message}" for each in report if each.status.value in ("FAIL", "WARN")]


def by_torchtest(case: Case) -> list[str]:
    """torchtest's two checks of a step: the frozen parameters stay the same, and the others change."""
    from torchtest import torchtest

    complaints = []
    for is_frozen, check in ((True, torchtest.assert_vars_same), (False, torchtest.assert_vars_change)):
        parameters = [each for each in case.model.named_parameters() if (each[0].split(".")[0] in case.frozen) == is_frozen]
        try:
            check(case.model, functional.cross_entropy, case.optimizer, (case.inputs, case.targets), "cpu", parameters)
        except torchtest.VariablesChangeException as error:
            complaints.append(str(error))
    return complaints


def by_guardtower(case: Case) -> list[str]:
    """guardtower's audit of one step."""
    import guardtower

    report = guardtower.audit(case.model, case.loss, optimizer=case.optimizer, inputs=case.inputs)
    return [str(each) for each in [*report.errors, *report.warnings]]


def by_torch_audit(case: Case) -> list[str]:
    """torch-audit, patched into the user's loop and looking after every step."""
    from torch_audit import autopatch

    auditor = autopatch(case.model, optimizer=case.optimizer, every_n_steps=1, reporters=[], run_static=True, run_init=True)
    try:
        for number in range(1, case.steps + 1):
            case.step(number)
        found = auditor.finish().findings
    finally:
        auditor.unpatch()
    return list(dict.fromkeys(f"{each.module_path or ''} {each.entity or ''} {each.message}" for each in found))


def by_torchmortem(case: Case) -> list[str]:
    """torchmortem over the user's loop."""
    from torchmortem import Autopsy

    with (
        tempfile.TemporaryDirectory() as folder,
        Autopsy(case.model, optimizer=case.optimizer, sampling="thorough") as autopsy,
    ):
        for number in range(1, case.steps + 1):
            case.step(number)
            autopsy.step(loss=float(case.loss()))
        report = autopsy.report(Path(folder) / "report.json")
    return [f"{each.title} {each.summary} {', '.join(each.affected_layers)}" for each in report.findings]


def by_torchdiag(case: Case) -> list[str]:
    """torchdiag's verification of one step."""
    import torchdiag

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        torchdiag.verify_step(case.model, case.optimizer, functional.cross_entropy, case.inputs, case.targets)
    return [line for line in printed.getvalue().splitlines() if any(sign in line for sign in "✗⚠")]


def by_traintools(case: Case) -> list[str]:
    """traintools' check of the gradients, after each backward pass of the user's loop."""
    from traintools.gradhealth import GradientHealthMonitor

    monitor, complaints = GradientHealthMonitor(), list[str]()
    for number in range(1, case.steps + 1):
        case.step(number)
        complaints += monitor.inspect(case.model, step=number, lr=case.optimizer.param_groups[0]["lr"]).warnings
    return list(dict.fromkeys(complaints))


DETECTORS = (
    Detector("runner.audit", "freeze-runner", by_audit, True),
    Detector("runner.audit, every=1", "freeze-runner", by_audit_every_step, True),
    Detector("torcheck", "torcheck", by_torcheck, True),
    Detector("torchtest2", "torchtest2", by_torchtest2, False),
    Detector("torchtest", "torchtest", by_torchtest, False),
    Detector("guardtower", "guardtower", by_guardtower, False),
    Detector("torch-audit", "torch-audit", by_torch_audit, True),
    Detector("torchmortem", "torchmortem", by_torchmortem, True),
    Detector("torchdiag", "torchdiag", by_torchdiag, False),
    Detector("traintools", "traintools", by_traintools, True),
)
