"""What starts the runs of a sweep: our own worker processes for joblib, or Hydra's launcher, with several runs in a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from runner.contract import BATCHES, STOP
from runner.errors import ConfigError
from runner.runs.folder import write_text
from runner.runs.record import error_line
from runner.sweep.grid import SweepRun
from runner.sweep.launch import Start, launch_once
from runner.sweep.worker import Job
from runner.sweep.workers import Workers

SEQUENTIAL, JOBLIB = "basic", "joblib"  # Hydra's names of the launchers that carry out runs on this machine


@contextmanager
def starting(job: Job, launcher: Launcher, runs: list[SweepRun]) -> Iterator[tuple[Start, list[list[SweepRun]]]]:
    """Yield what starts runs, and the lists of runs that it starts together; no worker outlives the block.

    `job`: what carries out a run. `launcher`: Hydra's. `runs`: all runs. Raises ConfigError if joblib refuses a key of
    `hydra.launcher`.
    """
    name, sweep = job.config.hydra.runtime.choices["hydra/launcher"], Path(job.worker.sweep)
    if count := number_of_workers(job.config):

        def on_death() -> None:
            if job.config.on_error == "stop":
                (sweep / STOP).touch()

        with Workers(job, count, job.config.hydra.launcher.timeout, on_death) as workers:
            yield workers.start, [runs]
        return
    batches, batch = [runs], 1
    if name == SEQUENTIAL:  # it keeps all configs of a launch in memory
        batches = [[run] for run in runs]
    elif name != JOBLIB:
        batch = job.config.launch.batch
    task = job.worker if batch == 1 else Batch(job)
    launcher.setup(hydra_context=job.context, task_function=task, config=job.config)
    yield partial(launch_in_batches, launcher, sweep, batch), batches


def number_of_workers(config: DictConfig) -> int:
    """Return how many Workers a sweep with this config has: 0 if a launcher of Hydra starts its runs.

    Raises ConfigError if joblib refuses a key of `hydra.launcher`.
    """
    launcher = config.hydra.launcher
    if config.hydra.runtime.choices["hydra/launcher"] != JOBLIB:
        return 0
    from joblib import Parallel, effective_n_jobs

    keys = OmegaConf.to_container(launcher, resolve=True)
    assert isinstance(keys, dict)
    numbers = {str(key): int(value) if str(value).isdecimal() else value for key, value in keys.items() if key != "_target_"}
    try:
        Parallel(**{**numbers, "backend": "loky"})
        count = int(effective_n_jobs(launcher.n_jobs))
    except Exception as error:
        raise ConfigError(f"the launcher could not begin a run: {error_line(error)}") from error
    return count if count > 1 else 0  # one worker of joblib is the process of the sweep


def launch_in_batches(launcher: Launcher, sweep: Path, size: int, runs: list[SweepRun]) -> list[Exception | None]:
    """Give Hydra's launcher a job for each `size` runs; return the same for each run: an exception that one raised, or None.

    `sweep`: the sweep's folder. If a job has several runs, a file in it says which follow the first, for `Batch`.
    """
    batches = [runs[index : index + size] for index in range(0, len(runs), size)]
    if size > 1:
        following = {batch[0].folder.name: [run.overrides for run in batch[1:]] for batch in batches}
        write_text(sweep / BATCHES, json.dumps(following))
    return [launch_once(launcher, [batch[0].overrides for batch in batches])] * len(runs)


@dataclass(frozen=True)
class Batch:
    """The callable that Hydra calls with the config of the first run of each job, where jobs have several runs.

    It carries out that run and then, in the same process, those that follow it. Hydra knows of the first alone. Which follow
    is read from a file when the job begins: a job that waited in a queue while others died may find that a later job has
    them, and carries out its first run alone.
    """

    job: Job

    def __call__(self, composed: DictConfig) -> None:
        """Carry out the run with the config `composed` and those that follow it, until one of them is interrupted.

        If several raise an exception, the first is raised at the end.
        """
        following = following_runs(Path(HydraConfig.get().runtime.output_dir))
        runs = [partial(self.job.worker, composed)]
        runs += [partial(self.job.carry_out, overrides, number) for number, overrides in enumerate(following, start=1)]
        errors = []
        for run in runs:
            try:
                if run() == "interrupted":
                    break
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def following_runs(first: Path) -> list[list[str]]:
    """Return the overrides of each run that follows, in the same job, the run with the folder `first`."""
    try:
        following: dict[str, list[list[str]]] = json.loads((first.parent / BATCHES).read_text(encoding="utf-8"))
    except OSError:  # the sweep is over
        return []
    return following.get(first.name, [])
