"""Run experiments in memory: as the command line does, but without composing the config anew and without files."""

from __future__ import annotations

from runner.experiment import Outcome, experiment
from runner.testing.in_memory import config_with as config_with


def run_experiment(*overrides: str, on_step=lambda step: None) -> Outcome:
    """Run the config with these overrides and return its outcome, with its notes in the attribute `notes`."""
    notes: list[str] = []
    outcome = experiment(config_with(*overrides), on_step, on_note=lambda text, *, urgent=False: notes.append(text))
    outcome.notes = notes
    return outcome
