"""Importing the public names does not import large libraries, and changes no global state."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

HEAVY = {"omegaconf", "hydra", "pandas", "matplotlib", "rich", "jinja2"}
STATE = """
import logging, os, random, signal, sys, warnings
import numpy, omegaconf, torch, hydra, hydra.core.global_hydra
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

OmegaConf.register_new_resolver("steps", lambda: "mine")
OmegaConf.register_new_resolver("epochs", lambda: "mine")

def state():
    return (
        dict(BaseContainer._resolvers), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        list(warnings.filters), list(logging.root.handlers), logging.root.level, dict(os.environ), list(sys.path),
        torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state().tolist(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), random.getstate(), numpy.random.get_state()[1].tolist(),
        hydra.core.global_hydra.GlobalHydra.instance().hydra, sys.excepthook, sys.stdout, sys.stderr,
    )

before = state()
"""


def run_python(code: str) -> None:
    """Run code in a new process that can import the project; asserts that it succeeds."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_importing_audit_and_select_imports_none_of_the_large_libraries():
    run_python(
        "from runner import audit, foresee, select, FreezingMethod\n"
        f"found = {HEAVY} & sys.modules.keys()\nassert not found, found"
    )


@pytest.mark.long
def test_an_audit_imports_none_of_the_large_libraries():
    run_python(
        "import torch\nfrom runner import audit, select\nmodel = torch.nn.Linear(2, 2)\n"
        "optimizer = torch.optim.SGD(model.parameters(), 0.1)\n"
        "with audit(model, select(model, ['bias']), optimizer) as report:\n"
        "    model(torch.ones(1, 2)).sum().backward(); optimizer.step()\n"
        "assert report.leaks == ['bias'] and str(report)\n"
        f"found = {HEAVY} & sys.modules.keys()\nassert not found, found"
    )


@pytest.mark.long
def test_importing_the_public_names_changes_no_global_state():
    run_python(
        f"{STATE}\nfrom runner import audit, foresee, select, run, FreezingMethod\n"
        "for old, new in zip(before, state(), strict=True): assert old == new, (old, new)"
    )


@pytest.mark.long
def test_a_run_does_not_change_the_resolvers_of_the_user(tmp_path):
    run_python(
        f"{STATE}\nfrom runner import run\n"
        "assert run('model=mlp', 'batches=2', 'scheduler=cosine', 'method=cached_prefix').status == 'finished'\n"
        "others = {name: each for name, each in BaseContainer._resolvers.items() if not name.startswith('runner.')}\n"
        "assert others.items() >= before[0].items(), others.keys() ^ before[0].keys()\n"
        "assert OmegaConf.create({'a': '${steps:}', 'b': '${epochs:}'}) == {'a': 'mine', 'b': 'mine'}"
    )
