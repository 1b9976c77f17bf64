"""Build what evaluates a run's model on held-out data, as the config asks for it."""

from __future__ import annotations

from contextlib import closing

from runner.assemble.setup import Setup
from runner.config.checks.metrics import metric_factories
from runner.errors import ConfigError
from runner.training.evaluate import Evaluation, Values, evaluate


def build_evaluation(setup: Setup) -> Evaluation:
    """Return the evaluations that the config asks for, each of the model as it is then, on held-out data."""
    config = setup.config
    if config.evaluate is False:
        return Evaluation()
    metrics, noted = metric_factories(config.metrics), set[str]()

    def note_once(text: str, *, urgent: bool = False) -> None:
        if text not in noted:
            noted.add(text)
            setup.note(text, urgent=urgent)

    def measure() -> Values:
        batches = setup.feed.held_out()
        if batches is None:  # `data.holdout` is an argument of the user's own target
            raise ConfigError("evaluate=true: the data hold no samples out; give 'data.test={_target_: ...}', a dataset")
        with setup.meter.not_counted(), closing(batches):
            return evaluate(setup.model, setup.task, batches, metrics, seed=config.seed, note=note_once)

    return Evaluation(measure, after_each_pass=config.evaluate == "epoch")
