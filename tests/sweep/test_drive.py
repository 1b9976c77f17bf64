"""Sweeps in one process: one folder per run, tables of all runs, failing runs, and resuming."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from runner.config.schema import CONF
from runner.sweep.end import command_to_go_on
from tests.conftest import read_table

QUICK = ("model=mlp", "batches=2", "hydra.sweep.dir=sweep")
SWEEP = Path("sweep")


def comparison():
    """Return the rows of the sweep's `comparison.csv`."""
    return read_table(SWEEP / "comparison.csv")


def test_a_sweep_has_a_folder_per_run_and_joins_their_tables(cli):
    code, out, err = cli("-m", "method=requires_grad,zero_lr", "freeze=head,backbone", *QUICK)
    assert (code, err) == (0, "")
    folders = sorted(path.parent for path in SWEEP.rglob("run.json"))
    assert len(folders) == 4
    assert all(re.fullmatch(r"(requires_grad|zero_lr)__(head|backbone)__s0__[0-9a-f]{8}", f.name) for f in folders)
    rows = comparison()
    assert [row["run"] for row in rows] == [folder.name for folder in folders]
    assert list(rows[0])[:6] == ["run", "method", "freeze", "status", "reason", "verdict"]
    assert {row["verdict"] for row in rows} == {"held"}
    joined = (SWEEP / "changes.csv").read_text().splitlines()
    assert joined[0].startswith("run,name,aliases,")
    assert joined[1:] == [
        f"{folder.name},{line}" for folder in folders for line in (folder / "changes.csv").read_text().splitlines()[1:]
    ]
    assert "requires_grad  backbone  held" in out


def test_a_glob_selects_every_method(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = cli("-m", "method=glob(*)", "freeze=backbone", *QUICK, "plan=true")
    assert code == 0
    assert sorted(re.findall(r"(\w+)__backbone__s0__", out)) == sorted(
        path.stem for path in (CONF / "method").glob("*.yaml")
    )


def test_a_failing_run_affects_neither_the_other_runs_nor_the_table(cli):
    code, out, _ = cli("-m", "freeze=head,fc,bias", *QUICK)
    assert code == 1
    assert [(row["freeze"], row["status"], row["verdict"]) for row in comparison()] == [
        ("bias", "finished", "held"),
        ("fc", "failed", ""),
        ("head", "finished", "held"),
    ]
    assert "'fc' matches no parameter or module of the model" in out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["freeze.patterns=[haed]", "method=requires_grad,zero_lr"], "'haed' matches no parameter or module"),
        (["freeze.patterns=[haed],[bcak]", "method=requires_grad,zero_lr"], "'haed' matches no parameter or module"),
        (["freeze=backbone", "freeze.keep=[haed]", "seed=0,1"], "'haed' "),
        (["freeze=head", "groups=module", "groups.names=[haed]", "seed=0,1"], "groups.names: 'haed' "),
        (["freeze=head", "groups.lr=[{pattern: haed, lr: 0.1}]", "groups=role,parameter"], "groups.lr: 'haed' "),
        (["model.build.widht=3", "seed=0,1"], "widht"),
    ],
)
def test_what_would_fail_in_every_run_is_refused_once_before_the_first(wrong, message, cli):
    code, out, err = cli("-m", *wrong, *QUICK)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert len(err) <= 401
    assert not SWEEP.exists()


@pytest.mark.long
@pytest.mark.parametrize("behavior", ["raise KeyError('oh')", "os._exit(0)", "sys.exit(0)", "raise GeneratorExit"])
def test_a_constructor_that_fails_in_every_run_gives_failed_rows(behavior, cli):
    Path("mine.py").write_text(f"import os, sys\nclass Net:\n    def __init__(self, **options):\n        {behavior}\n")
    assert cli("-m", "model.build._target_=mine.Net", "seed=0,1", *QUICK)[0] == 1
    assert [row["status"] for row in comparison()] == ["failed", "failed"]


@pytest.mark.parametrize("bad", ["batches=1,0", "method=zero_lr,nosuch", "freeze.patterns=[head],[a..b]", "+typo=1,2"])
def test_a_config_that_cannot_be_composed_is_refused_before_any_run(cli, bad):
    code, _, err = cli("-m", "model=mlp", "hydra.sweep.dir=sweep", bad)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not SWEEP.exists()


@pytest.mark.long
def test_duplicate_runs_are_dropped_with_a_message(cli):
    code, out, _ = cli("-m", "seed=0,0,1", "freeze.patterns=[head],['@head']", *QUICK)
    assert code == 0
    assert "2 of 6 runs dropped" in out
    assert len(comparison()) == 4


def test_the_exit_code_of_a_sweep_is_that_of_its_worst_run(cli):
    code, _, err = cli("-m", "method=none,zero_lr", "freeze=head", "strict=true", *QUICK)
    assert code == 3
    (leaked,) = SWEEP.glob("none__*")
    assert err.splitlines()[-1] == f"freeze-runner: strict: 1 of 2 runs: {leaked.name} (2 frozen tensors leaked)"
    assert cli("-m", "method=none", "freeze=head,fc", "strict=true", "model=mlp", "hydra.sweep.dir=other")[0] == 1


@pytest.mark.long
def test_a_second_start_does_not_change_finished_runs(cli):
    cli("-m", "freeze=head", *QUICK)
    (first,) = SWEEP.rglob("run.json")
    written_at = first.stat().st_mtime_ns
    code, out, _ = cli("-m", "freeze=head,bias", *QUICK)
    assert code == 0
    assert "1 of 2 runs are finished already and kept" in out
    assert first.stat().st_mtime_ns == written_at
    assert len(comparison()) == 2


def test_a_plan_of_a_sweep_lists_the_runs_and_writes_nothing(cli):
    cli("-m", "freeze=head", *QUICK)
    before = sorted(SWEEP.rglob("*"))
    code, out, _ = cli("-m", "freeze=head,bias", "plan=true", *QUICK)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["2", "runs:", "1", "finished,", "1", "to", "run"]
    assert lines[1][:2] == ["all", "with"]
    assert lines[2:4] == [["state", "freeze", "folder"], ["finished", "head", lines[3][-1]]]
    assert lines[4][:3] == ["to", "run", "bias"]
    assert lines[5] == ["in", str(SWEEP)]
    assert (SWEEP / lines[3][-1]).is_dir()
    assert sorted(SWEEP.rglob("*")) == before


def test_a_run_folder_without_a_record_is_a_failed_row():
    from runner.report.files import write_sweep_files

    (SWEEP / "zero_lr__fc__s0__00000000" / ".hydra").mkdir(parents=True)
    write_sweep_files(SWEEP)
    (row,) = comparison()
    assert (row["status"], row["reason"]) == ("failed", "the run left no run.json; it was killed")


def test_an_interrupted_sweep_writes_its_table_and_exits_with_130(cli):
    Path("mine.py").write_text(
        "import runner.training.models\nclass Net(runner.training.models.MLP):\n"
        "    def forward(self, x):\n        raise KeyboardInterrupt\n"
    )
    code, _, _ = cli("-m", "model.build._target_=runner.training.models.MLP,mine.Net", "seed=0,1", *QUICK)
    assert code == 130
    assert [row["status"] for row in comparison()].count("interrupted") == 1
    assert [row["status"] for row in comparison()].count("finished") == 2  # the fourth did not begin


LONG_FOLDERS = [pytest.param(name, marks=pytest.mark.long) for name in ("sweep", "../other")]


@pytest.mark.long
@pytest.mark.parametrize("folder", [*LONG_FOLDERS, 'it\'s \\ a "sweep" $HOME'])
@pytest.mark.parametrize("ends", ["raise KeyboardInterrupt", "raise KeyError('oh')"])
def test_the_command_that_goes_on_carries_out_what_is_left(ends, folder, cli):
    Path("mine.py").write_text(
        "from pathlib import Path\nimport runner.training.models\nclass Net(runner.training.models.MLP):\n"
        f"    def forward(self, x):\n        if not Path('again').exists(): {ends}\n        return super().forward(x)\n"
    )
    quoted = folder.replace("'", "\\'")
    model = "model.build._target_=runner.training.models.MLP,mine.Net"
    arguments = ("-m", model, "model=mlp", "batches=2", "seed=0,1", "freeze.patterns=['re:he.d.*']", "on_error=stop")
    code, out, _ = cli(*arguments, f"hydra.sweep.dir='{quoted}'")
    assert code == (130 if "Interrupt" in ends else 1)
    assert "\n2 of 4 are not done; go on with:\npython -m runner -m " in out
    assert not [path.name for path in Path(folder).glob(".*") if path.is_file()]  # neither .stop nor .interrupt
    Path("again").touch()
    command = shlex.split(out.splitlines()[-1])
    assert command[:4] == ["python", "-m", "runner", "-m"]
    code, out, _ = cli(*command[3:])
    assert (code, "go on" in out) == (0, False)
    assert [row["status"] for row in read_table(Path(folder, "comparison.csv"))] == ["finished"] * 4


def test_resume_last_is_not_in_the_command_that_goes_on():
    folder = Path.cwd() / "outputs" / "a sweep"
    command = command_to_go_on(["-m", "seed=0,1", "resume=last", "hydra.sweep.dir=other"], folder)
    assert command == "python -m runner -m seed=0,1 'hydra.sweep.dir='\"'\"'outputs/a sweep'\"'\"''"


@pytest.mark.parametrize("n_jobs", ["0", "0,0"])
@pytest.mark.parametrize("more", [(), ("plan=true",)])
def test_a_launcher_without_processes_is_refused(n_jobs, more, cli):
    code, out, err = cli("-m", "launch=joblib", f"hydra.launcher.n_jobs={n_jobs}", *more, *QUICK)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "hydra.launcher.n_jobs" in err
    assert not SWEEP.exists()


def test_a_new_sweep_whose_launcher_can_begin_no_run_leaves_no_file_and_a_resumed_one_keeps_its_files(cli):
    broken = ("-m", "launch=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.batch_size=nosuch", "report.every=1", *QUICK)
    code, _, err = cli(*broken)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "the launcher could not begin a run" in err
    assert not SWEEP.exists()
    assert cli("-m", *QUICK)[0] == 0
    before = set(files(SWEEP))
    assert cli(*broken, "seed=0,1,2")[0] == 2
    assert set(files(SWEEP)) == before


def test_a_skipped_run_is_in_the_table_and_not_a_failure(cli):
    Path("mine.py").write_text(
        "from runner import FreezingMethod\n"
        "class Never(FreezingMethod):\n"
        "    def skip(self, model, selection):\n"
        "        return 'never serves'\n"
    )
    methods = "method._target_=mine.Never,runner.methods.zero_lr.ZeroLr"
    code, out, _ = cli("-m", methods, *QUICK)
    assert code == 0
    assert sorted(row["status"] for row in comparison()) == ["finished", "skipped"]
    assert "never serves" in out
    code, _, err = cli("method._target_=mine.Never", "model=mlp", "hydra.run.dir=alone")
    assert (code, "skipped: never serves" in err) == (2, True)
    assert json.loads(Path("alone/run.json").read_text())["status"] == "skipped"


def test_a_run_that_was_interrupted_and_fails_when_resumed_has_no_rows(cli):
    Path("mine.py").write_text(
        "from pathlib import Path\n"
        "import runner.training.models\n"
        "class Net(runner.training.models.MLP):\n"
        "    def forward(self, x):\n"
        "        if Path('again').exists(): raise KeyError('now it fails')\n"
        "        if Path('once').exists(): raise KeyboardInterrupt\n"
        "        Path('once').touch()\n"
        "        return super().forward(x)\n"
    )
    command = ("-m", "model.build._target_=mine.Net", *QUICK)
    assert cli(*command)[0] == 130
    (folder,) = (path.parent for path in SWEEP.rglob("run.json"))
    assert (folder / "changes.csv").exists()
    Path("again").touch()
    assert cli(*command)[0] == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert not (folder / "changes.csv").exists()
    assert (SWEEP / "changes.csv").read_text() == ""


@pytest.mark.long
def test_a_run_with_a_corrupt_record_is_run_again(cli):
    cli("-m", "freeze=head", *QUICK)
    (record,) = SWEEP.rglob("run.json")
    record.write_text("{ incomplete")
    code, _, _ = cli("-m", "freeze=head,bias", *QUICK)
    assert code == 0  # it was run again
    assert [row["status"] for row in comparison()] == ["finished", "finished"]


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_a_run_is_found_by_its_config_whatever_its_overrides_or_folder_name(cli):
    cli("-m", "freeze.patterns=[head]", *QUICK)
    (folder,) = SWEEP.glob("*__custom__*")
    written_at = (folder / "run.json").stat().st_mtime_ns
    code, out, _ = cli(
        "-m", "freeze.patterns=['head']", "strict=true", "on_error=stop", "timeout=60", "launch=local", *QUICK
    )
    assert (code, "1 of 1 runs are finished already" in out) == (0, True)
    cli("-m", "method=zero_lr", *QUICK)
    renamed = next(SWEEP.glob("zero_lr__*"))
    renamed.rename(SWEEP / renamed.name.replace("zero_lr__head", "mine__custom"))
    code, out, _ = cli("-m", "method=zero_lr", *QUICK)
    assert "1 of 1 runs are finished already" in out
    assert not list(SWEEP.glob("zero_lr__*"))
    assert (folder / "run.json").stat().st_mtime_ns == written_at


def test_a_finished_run_whose_table_is_missing_is_run_again(cli):
    cli("-m", "freeze=head", *QUICK)
    (table,) = SWEEP.glob("*/changes.csv")
    before = table.read_bytes()
    table.unlink()
    code, out, _ = cli("-m", "freeze=head", *QUICK)
    assert (code, "finished already" in out) == (0, False)
    assert table.read_bytes() == before


def test_a_process_that_died_between_its_record_and_the_end_of_its_run_leaves_no_mark_in_a_resumed_sweep(cli):
    cli("-m", "seed=0,1", *QUICK)
    finished, other = sorted(path.parent for path in SWEEP.glob("*/run.json"))
    (finished / ".running").touch()
    (other / "run.json").unlink()
    written_at = (finished / "run.json").stat().st_mtime_ns
    code, out, _ = cli("-m", "seed=0,1", *QUICK)
    assert (code, "an earlier start died" in out) == (0, False)
    assert (finished / "run.json").stat().st_mtime_ns == written_at
    assert not list(SWEEP.glob("*/.running"))


@pytest.mark.long
@pytest.mark.parametrize(("died", "said"), [(1, "during 1 run,"), (2, "during 2 runs,")])
def test_runs_during_which_an_earlier_start_died_are_counted_and_run_last(died, said, cli):
    arguments = ("-m", "seed=0,1,2", *QUICK)
    cli(*arguments)
    for record in sorted(SWEEP.glob("*/run.json"))[:died]:
        record.rename(record.with_name(".running"))
    code, out, _ = cli(*arguments)
    assert (code, f"an earlier start died {said} now run last" in out) == (0, True)
    assert [row["status"] for row in comparison()] == ["finished"] * 3


@pytest.mark.parametrize("name", ["multirun.yaml", "notes.txt"])
def test_a_folder_with_files_of_another_project_is_refused_and_not_changed(cli, name):
    SWEEP.mkdir()
    (SWEEP / name).write_text("of another project")
    (SWEEP / "0").mkdir()
    (SWEEP / "0" / "run.json").write_text("{}")
    before = files(SWEEP)
    code, _, err = cli("-m", "freeze=head", *QUICK)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no sweep of freeze-runner; give another folder: hydra.sweep.dir=DIR" in err
    assert files(SWEEP) == before


@pytest.mark.long
def test_on_error_stop_begins_no_more_runs_and_resuming_carries_out_the_others(cli):
    code, _, _ = cli("-m", "freeze=head,fc,bias", "on_error=stop", *QUICK)
    assert code == 1
    assert {row["freeze"]: row["status"] for row in comparison()} == {"head": "finished", "fc": "failed"}
    assert len(list(SWEEP.glob("*__s0__*"))) == 2
    assert cli("-m", "freeze=head,fc,bias", *QUICK)[0] == 1
    assert {row["freeze"]: row["status"] for row in comparison()} == {
        "head": "finished",
        "fc": "failed",
        "bias": "finished",
    }


@pytest.mark.long
def test_a_run_that_exceeds_its_timeout_fails_and_the_others_finish(cli):
    cli("model=mlp", "batches=1")  # the first run of a process imports more than it computes
    code, out, _ = cli("-m", "batches=2,1000000", "timeout=2", "model=mlp", "threads=1", "hydra.sweep.dir=sweep")
    assert code == 1
    assert {row["batches"]: row["reason"] for row in comparison()} == {
        "2": "",
        "1000000": "TimeoutError: the run was not done after timeout=2 seconds",
    }
    assert "failed: TimeoutError" in out


def test_exit_code_by_the_statuses_of_the_runs():
    from runner.sweep.end import exit_code

    @dataclass
    class FakeRun:
        strict: bool
        record: dict | None

    def code(*statuses, strict=False, leaked=0):
        counts = {"leaked": leaked, "idle": 0, "trained": 1}
        return exit_code([FakeRun(strict, {"status": status, "counts": counts}) for status in statuses])

    assert code("finished", "skipped") == 0
    assert code("finished", "failed", "interrupted") == 130
    assert code("finished", "failed", strict=True, leaked=1) == 1
    assert code("finished", strict=True, leaked=1) == 3
    assert exit_code([FakeRun(False, None)]) == 1


def test_strict_does_not_rerun_a_finished_run_of_an_older_version(cli):
    cli("-m", "freeze=head", *QUICK)
    (record,) = SWEEP.glob("*/run.json")
    record.write_text(json.dumps({"status": "finished"}))
    assert cli("-m", "freeze=head", "strict=true", *QUICK)[0] == 0


@pytest.mark.long
def test_temporary_files_of_a_killed_sweep_are_removed(cli):
    cli("-m", "freeze=head", *QUICK)
    (folder,) = (path.parent for path in SWEEP.glob("*/run.json"))
    for path in (SWEEP / ".changes.csv.99999.part", SWEEP / ".multirun.yaml.99.part", folder / ".run.json.9.part"):
        path.write_text("a part")
    (folder / "changes.csv").unlink()
    cli("-m", "freeze=head", *QUICK)
    assert not list(SWEEP.rglob("*.part"))


def test_each_run_is_printed_when_it_ends_with_the_numbers_of_done_failed_and_left(cli):
    _, out, _ = cli("-m", "freeze=fc,head", *QUICK)
    lines = [line for line in out.splitlines() if " left" in line]
    assert "failed: freeze.patterns: 'fc' matches no parameter" in lines[0]
    assert lines[1].endswith("held  (1 done, 1 failed, 0 left)")


def test_the_error_for_a_missing_launcher_names_the_extra_to_install(cli, monkeypatch):
    from hydra.core.config_store import ConfigStore

    assert cli("plan=true", "model=mlp")[0] == 0  # so that Hydra has loaded its plugins
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    for launch, plugin in {"joblib": "joblib", "ray": "ray", "slurm": "submitit_slurm"}.items():
        monkeypatch.delitem(launchers, f"{plugin}.yaml", raising=False)
        code, _, err = cli("-m", f"launch={launch}", *QUICK)
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"launch={launch} needs hydra-" in err
        assert f"pip install 'freeze-runner[{launch}]'" in err
        assert not SWEEP.exists()


@pytest.mark.parametrize(
    ("launcher", "threads", "message"),
    [
        ({}, "auto", ""),
        ({"n_jobs": 1}, 1, ""),
        ({"n_jobs": -1}, 1, ""),
        ({"n_jobs": 100_000}, 1, "100,000 workers x 1 thread on"),
        ({"n_jobs": -1}, 2, "2 threads on"),
    ],
)
def test_more_worker_threads_than_cores_give_a_note(launcher, threads, message):
    from omegaconf import OmegaConf

    from runner.sweep.drive import too_many_threads

    note = too_many_threads(OmegaConf.create({"threads": threads, "hydra": {"launcher": launcher}}))
    assert message in note
    assert bool(note) == bool(message)
