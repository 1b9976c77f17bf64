"""Worker processes: the same bits with any number of them and on every launcher, none left over, each end explained."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from runner.assemble.feeding import open_feed
from runner.config.check import check
from runner.config.compose import compose_config
from runner.contract import ignore_note
from runner.tensors import same_bits
from runner.training.data.loading import from_dataset
from tests.conftest import ROOT, read_table
from tests.training.data import examples
from tests.training.data.examples import HERE, data_here, model_here

NOISY_BATCHES = [
    *model_here("WithDropout"),
    f"++data.transform._target_={HERE}.add_noise",
    f"++data.collate._target_={HERE}.noisy_collate",
    "data.batch_size=10",
    "data.epochs=3",
    "threads=1",
]
NOISY = [*data_here("Noisy"), *NOISY_BATCHES]


def losses(folder):
    """Return the column `loss` of `steps.csv`."""
    return [row["loss"] for row in read_table(folder / "steps.csv")]


@pytest.fixture
def tables(tmp_path, cli):
    """Return a function that carries out a run, and returns the bytes of `changes.csv` and the losses of its steps."""

    def tables_of(*overrides):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        code, _, err = cli(*overrides, f"hydra.run.dir='{folder.name}'")
        assert (code, err) == (0, "")
        return (folder / "changes.csv").read_bytes(), losses(folder)

    return tables_of


@pytest.mark.long
def test_random_transforms_collate_and_dropout_give_the_same_bits_with_0_1_and_2_workers(tables):
    none, one, two = (tables(*NOISY, f"data.workers={workers}") for workers in (0, 1, 2))
    assert none == one == two
    assert len(set(none[1])) == 9


@pytest.mark.long
def test_an_iterable_that_is_shared_out_in_turn_gives_the_same_bits_with_0_1_and_2_workers(tables):
    stream = [*data_here("Stream", "is_noisy=true", "has_length=true"), *NOISY_BATCHES, "batches=all"]
    none, one, two = (tables(*stream, f"data.workers={workers}") for workers in (0, 1, 2))
    assert none == one == two
    assert len(none[1]) == 9


@pytest.mark.parametrize("kind", ["Pictures", "PictureStream"])
def test_with_two_threads_a_transform_that_sums_over_a_picture_gives_the_same_bits_with_0_and_1_workers(kind):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        read = [
            list(from_dataset(getattr(examples, kind)(), workers=workers, transform=examples.normalised).read(0, 0, 9))
            for workers in (0, 1)
        ]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert len(read[0]) == 2
    assert all(same_bits(one, other) for (one, _), (other, _) in zip(*read, strict=True))


def test_the_seed_changes_what_transforms_draw(tables):
    assert tables(*NOISY, "seed=1")[1] != tables(*NOISY)[1]


def assert_same_on(launch, cli_process, tables, **environment):
    """Assert that a sweep with two workers on a launcher gives the bits of runs without workers in this process."""
    sweep = ["-m", "hydra.sweep.dir=sweep", *NOISY, "data.workers=2", "seed=0,1", *launch]
    done = cli_process(*sweep, timeout=300, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    for seed in (0, 1):
        (folder,) = Path("sweep").glob(f"*__s{seed}__*")
        expected = tables(*NOISY, f"seed={seed}")
        assert ((folder / "changes.csv").read_bytes(), losses(folder)) == expected


@pytest.mark.long
@pytest.mark.skipif(find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="needs the extra joblib")
def test_workers_run_inside_the_processes_of_joblib_and_give_the_same_bits(cli_process, tables):
    assert_same_on(["launch=joblib", "hydra.launcher.n_jobs=2"], cli_process, tables)


@pytest.mark.long
@pytest.mark.skipif(find_spec("hydra_plugins.hydra_ray_launcher") is None, reason="needs the extra ray")
def test_workers_run_inside_the_processes_of_ray_and_give_the_same_bits(cli_process, tables):
    assert_same_on(
        ["launch=ray", "++hydra.launcher.ray.init.include_dashboard=false"], cli_process, tables, RAY_ADDRESS="local"
    )


# Processes


def processes_of(marker):
    """Return the ids of the living processes whose environment has the text."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (path / "environ").read_bytes() and "State:\tZ" not in (path / "status").read_text():
                found.append(int(path.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def wait_until(is_true):
    """Return once `is_true()` is; raises TimeoutError after a minute."""
    for _ in range(600):
        if is_true():
            return
        time.sleep(0.1)
    raise TimeoutError


def children():
    """Return the ids of this process's children."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the processes of Linux")


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize("batches", ["auto", "2"])
def test_after_a_run_its_worker_processes_and_file_descriptors_are_gone(batches, cli):
    before, descriptors = children(), []
    for number in range(3):
        code, _, err = cli(
            "model=mlp", *data_here("Numbers"), "data.workers=2", f"batches={batches}", f"hydra.run.dir=r{number}"
        )
        assert (code, err) == (0, "")
        assert children() == before
        descriptors.append(len(os.listdir("/proc/self/fd")))
    assert descriptors[1] == descriptors[2]


@needs_proc
def test_the_workers_of_data_end_when_the_run_is_left_even_if_batches_remain():
    before = children()
    config = check(compose_config("model=mlp", *data_here("Numbers"), "data.workers=2"))
    with ExitStack() as undo:
        feed = open_feed(config, torch.device("cpu"), ignore_note, undo)
        assert len(children()) > len(before)
    assert children() == before
    assert list(feed.steps)[1:] == []


@pytest.mark.long
@needs_proc
def test_file_descriptors_do_not_grow_over_the_passes():
    script = (
        "import os\n"
        f"overrides = {data_here('Numbers')!r} + ['data.workers=1', 'data.batch_size=15', 'data.epochs=6', 'batches=auto']\n"
        "from runner.experiment import experiment\n"
        "from runner.config.compose import compose_config\n"
        "from runner.config.check import check\n"
        "counts = []\n"
        "config = check(compose_config('model=mlp', *overrides))\n"
        "experiment(config, on_step=lambda step: counts.append(len(os.listdir('/proc/self/fd'))))\n"
        "print(counts)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    counts = json.loads(done.stdout.splitlines()[-1])
    assert len(counts) == 12
    assert counts[3] == counts[5] == counts[7] == counts[9]


@pytest.mark.long
@needs_proc
@pytest.mark.parametrize(
    ("number", "to_group"),
    [
        (signal.SIGINT, True),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.long),
    ],
)
def test_an_interrupt_ends_a_run_and_its_workers(number, to_group):
    marker = f"FREEZE_RUNNER_TEST={os.getpid()}-{number}-{to_group}"
    command = [sys.executable, "-m", "runner", "model=mlp", *data_here("Numbers", "size=100000"), "data.workers=2"]
    process = subprocess.Popen(
        [*command, "hydra.run.dir=run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict([marker.split("=")])},
    )
    wait_until(lambda: len(processes_of(marker)) >= 3)
    time.sleep(1)
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, processes_of(marker)) == (130, [])
    assert json.loads(Path("run/run.json").read_text())["status"] == "interrupted"
    assert re.fullmatch(r"freeze-runner: interrupted.*\n", err)


@pytest.mark.long
@needs_proc
def test_workers_end_soon_after_their_run_was_killed():
    marker = f"FREEZE_RUNNER_TEST={os.getpid()}-killed"
    command = [sys.executable, "-m", "runner", "model=mlp", *data_here("Numbers", "size=100000"), "data.workers=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **dict([marker.split("=")])}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    wait_until(lambda: len(processes_of(marker)) >= 3)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(marker))


# What goes wrong in a worker

ENDS = {
    "raise": (1, r"ReadError: sample 7 of 30: examples.py, line \d+: KeyError: 'boom'"),
    "index": (1, r"ReadError: sample 7 of 30: examples.py, line \d+: IndexError: list index out of range"),
    "exit": (1, r"ReadError: data: a worker process exited .* code 3; give data.workers=0 to see the error itself"),
    "kill": (
        1,
        r"ReadError: data: a worker process was killed by signal: Killed; give data.workers=0 to see the error itself",
    ),
    "none": (2, r"data: sample 7, field 0 is of type NoneType; give data.transform or data.collate to make it a tensor"),
    "hang": (1, r"TimeoutError: the run was not done after timeout=10 seconds"),
}


SHORT = ("raise",)


@pytest.mark.parametrize(
    ("kind", "end"),
    [pytest.param(kind, end, id=kind, marks=[] if kind in SHORT else [pytest.mark.long]) for kind, end in ENDS.items()],
)
def test_what_goes_wrong_in_a_worker_is_said_in_one_line(kind, end, cli_process):
    overrides = ["data.workers=2", "data.batch_size=10", "hydra.run.dir=run", "timeout=10"]
    done = cli_process("model=mlp", *data_here("Failing", f"kind={kind}"), *overrides)
    code, message = end
    assert done.returncode == code
    assert re.fullmatch(rf"freeze-runner: failed: {message} \(log: .*\)\n", done.stderr)
    if kind in ("raise", "index"):
        assert 'examples.py", line' in Path("run/runner.log").read_text()
