"""The report's tables and page: written from new, old and damaged run folders, with everything that can be read."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.report.__main__ import main
from runner.report.files import write_run_page, write_sweep_files
from runner.runs import read
from runner.runs.read import read_run
from tests.conftest import ROOT
from tests.run_folders import HELD_ROWS, LEAKED_ROWS, change_row, write_run, write_sweep

SWEEP = Path("sweep")
FILES = ("comparison.csv", "comparison.json", "changes.csv", "failures.csv", "report.html", "heatmap.svg", "heatmap.png")


@pytest.fixture
def report(capsys):
    """Call the command in this process; returns the exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def rows_of(name: str, sweep: Path = SWEEP) -> list[dict[str, str]]:
    with (sweep / name).open(newline="") as file:
        return list(csv.DictReader(file))


def problems_in(out: str) -> list[str]:
    """What the command printed after `could not be read: `, line by line."""
    return [line.removeprefix("could not be read: ") for line in out.splitlines() if line.startswith("could not be read")]


def test_a_sweep_folder_gets_exactly_seven_files():
    folders = write_sweep(SWEEP)
    write_sweep_files(SWEEP)
    assert {path.name for path in SWEEP.iterdir()} == {*FILES, *(folder.name for folder in folders)}


def test_the_same_run_folders_give_the_same_bytes_in_any_place():
    write_sweep(SWEEP)
    shutil.copytree(SWEEP, Path("elsewhere") / "sweep")
    for sweep in (SWEEP, Path("elsewhere") / "sweep"):
        write_sweep_files(sweep)
    for name in FILES:
        assert (SWEEP / name).read_bytes() == (Path("elsewhere") / "sweep" / name).read_bytes(), name


def test_no_file_of_a_sweep_holds_a_path_of_the_machine(tmp_path):
    write_sweep(SWEEP)
    write_sweep_files(tmp_path / SWEEP)
    for name in FILES:
        assert str(tmp_path).encode() not in (SWEEP / name).read_bytes(), name


def test_failures_csv_has_a_row_for_each_run_that_did_not_finish():
    write_sweep(SWEEP)
    write_sweep_files(SWEEP)
    (row,) = (row for row in rows_of("comparison.csv") if row["status"] != "finished")
    (failed,) = rows_of("failures.csv")
    assert list(failed) == ["run", "status", "reason", "log", "overrides"]
    assert failed == {
        "run": row["run"],
        "status": "failed",
        "reason": "KeyError: 'x'",
        "log": f"{row['run']}/runner.log",
        "overrides": "method=detach seed=0",
    }
    assert (SWEEP / failed["log"]).is_file()


def test_failures_csv_of_a_sweep_without_failures_has_only_its_header():
    write_run(SWEEP)
    write_sweep_files(SWEEP)
    assert (SWEEP / "failures.csv").read_text() == "run,status,reason,log,overrides\n"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_this_project_did_not_write_is_not_overwritten_and_named_on_stderr(name, capsys):
    write_sweep(SWEEP)
    (SWEEP / name).write_text("mine: run,status\n")
    write_sweep_files(SWEEP)
    assert (SWEEP / name).read_text() == "mine: run,status\n"
    err = capsys.readouterr().err
    assert re.fullmatch(rf"freeze-runner: .*{name} was not written by freeze-runner, and is left as it is\n", err)
    assert all((SWEEP / other).stat().st_size > 20 for other in FILES if other != name)


def test_files_that_this_project_wrote_are_overwritten():
    write_run(SWEEP)
    write_sweep_files(SWEEP)
    write_run(SWEEP, "none", rows=LEAKED_ROWS)
    write_sweep_files(SWEEP)
    assert len(rows_of("comparison.csv")) == 2
    assert "none" in (SWEEP / "report.html").read_text()
    assert b"none" in (SWEEP / "heatmap.svg").read_bytes()


def test_a_swept_key_and_a_cost_are_columns_of_the_comparison():
    write_run(SWEEP, "zero_lr", "clip=1.0", cost={"flops_forward": 10, "saved_bytes": 3})
    write_run(SWEEP, "zero_lr", "++clip2=null", "~scheduler")
    write_sweep_files(SWEEP)
    first, second = rows_of("comparison.csv")
    assert {"clip", "++clip2", "~scheduler", "flops_forward", "saved_bytes", "seconds_step"} <= first.keys()
    assert sorted([first["flops_forward"], second["flops_forward"]]) == ["", "10.0"]


def test_overrides_that_only_say_where_a_run_runs_are_no_column_and_split_no_seed_group():
    write_run(SWEEP, "zero_lr", "seed=0", "timeout=9", "launch=joblib")
    write_run(SWEEP, "zero_lr", "seed=1")
    assert len(write_sweep_files(SWEEP).settings) == 1
    assert list(rows_of("comparison.csv")[0])[:3] == ["run", "seed", "status"]


def test_joined_changes_have_the_columns_of_other_versions_and_omit_torn_rows():
    one, two = write_run(SWEEP, "none", rows=LEAKED_ROWS), write_run(SWEEP, "zero_lr")
    old = (one / "changes.csv").read_text().splitlines()
    (one / "changes.csv").write_text("\n".join(["name,verdict,new", "a,held,7", "b,he"]))
    write_sweep_files(SWEEP)
    rows = rows_of("changes.csv")
    assert list(rows[0]) == ["run", *old[0].split(","), "new"]
    assert [(row["run"], row["name"], row["new"]) for row in rows] == [
        (one.name, "a", "7"),
        *((two.name, row["name"], "") for row in HELD_ROWS),
    ]


def test_the_command_reads_any_folders_and_writes_only_the_page(report):
    write_sweep(Path("one") / "sweep")
    write_run(Path("two") / "deep" / "down", "none", rows=LEAKED_ROWS, name="named by someone")
    before = set(Path().rglob("*"))
    code, out, err = report("one", "two")
    assert (code, err) == (0, "")
    assert set(Path().rglob("*")) - before == {Path("report.html")}  # in the folder that holds both
    assert out.splitlines()[-1] == f"page: {Path('report.html').absolute()}"
    assert "deep/down/named by someone" in Path("report.html").read_text()


def test_a_folder_found_twice_counts_once_and_a_copy_of_it_counts_again(report):
    folder = write_run(Path("one"))
    shutil.copytree("one", "two")
    assert report("one", "two", str(folder), "one/.", "-o", "page.html")[0] == 0
    html = Path("page.html").read_text()
    assert "2 runs" in html
    assert f"two/{folder.name}" in html


def test_a_single_run_gets_a_page_of_its_own(report):
    folder = write_run(SWEEP, "none", rows=LEAKED_ROWS)
    write_run_page(folder)
    html = (folder / "report.html").read_text()
    assert "1 of 1 frozen tensor changed" in html
    assert "body.<wbr>weight" in html
    assert "python -m runner method=none" in html
    (folder / "report.html").unlink()
    assert report(str(folder))[0] == 0
    assert (folder / "report.html").read_text() == html


@pytest.mark.long
def test_the_pages_of_a_real_sweep_and_a_real_run(cli, report):
    methods = "method=requires_grad,zero_lr,none"
    assert cli("-m", methods, "freeze=head", "model=mlp", "batches=2", "hydra.sweep.dir=sweep")[0] == 0
    write_sweep_files(SWEEP)
    html = (SWEEP / "report.html").read_text()
    assert "Use requires_grad" in html
    assert "method=none does nothing about what is declared frozen" in html
    assert "none, the baseline" in html
    assert "trained the rest to the same bits as zero_lr" in html
    assert cli("model=mlp", "freeze=head", "batches=2", "hydra.run.dir=alone")[0] == 0
    assert report("alone")[0] == 0
    assert "2 frozen tensors kept every bit" in Path("alone/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "nosuch does not exist"),
        (["sweep", "nosuch"], "nosuch does not exist"),
        (["sweep/file"], "sweep/file is a file; give the folder that it lies in"),
        (["empty"], "no run found below empty; give a folder that holds run.json, or one above it"),
        ([], "the following arguments are required: DIR"),
        (["sweep", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["sweep", "-o", "empty"], "empty is a folder; give -o a file, such as empty/report.html"),
        (["sweep", "-o", "no/such/page.html"], "there is no folder no/such; make it, or give -o another file"),
        (["sweep", "-o", "sweep/file"], "sweep/file was not written by freeze-runner, and is left as it is"),
        (["sweep", "-o", "sweep/file/page.html"], "there is no folder sweep/file"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(report, arguments, message):
    write_run(SWEEP)
    Path("empty").mkdir()
    (SWEEP / "file").write_text("mine")
    code, out, err = report(*arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"freeze-runner: {re.escape(message)}.*\n", err)
    assert (SWEEP / "file").read_text() == "mine"
    assert not list(Path().rglob("report.html"))


def test_the_page_is_written_beside_the_runs_and_never_over_a_file_of_someone_else(report):
    write_run(SWEEP / "a")
    write_run(SWEEP / "b" / "deep")
    assert report("sweep/a", "sweep/b/deep")[0] == 0
    assert [str(path) for path in Path().rglob("report.html")] == ["sweep/report.html"]
    Path("sweep/a/report.html").write_text("mine")
    code, _, err = report("sweep/a")
    message = "sweep/a/report.html was not written by freeze-runner, and is left as it is; give -o another file"
    assert (code, err) == (2, f"freeze-runner: {message}\n")
    assert Path("sweep/a/report.html").read_text() == "mine"
    assert report("sweep/a", "-o", "other.html")[0] == 0
    assert Path("other.html").is_file()


def test_a_full_disk_gives_a_one_line_error_and_no_partial_page(report, monkeypatch):
    write_run(SWEEP)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = report("sweep")
    assert (code, err) == (2, "freeze-runner: cannot write sweep/report.html: No space left on device\n")
    assert [path.name for path in Path().iterdir()] == ["sweep"]


def test_the_report_imports_neither_torch_nor_hydra():
    write_run(SWEEP)
    code = (
        "import sys; from runner.report.__main__ import main; assert main(['sweep']) == 0; "
        "sys.exit(bool({'torch', 'hydra', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0


def broken(what: str):
    """A run folder with the files of BROKEN[what]: None deletes one, bytes replace it, a dict changes keys of `run.json`."""
    folder = write_run(SWEEP)
    for name, content in BROKEN[what][0].items():
        if content is None:
            (folder / name).unlink()
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            record = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**record, **content}))
    return folder


HUGE = "huge " * 200_000
UNREADABLE = "run.json cannot be read: it is incomplete, too large, or not the record of a run"
BROKEN = {
    "a torn record": ({"run.json": b'{"status": "fini'}, [UNREADABLE]),
    "an empty record": ({"run.json": b""}, [UNREADABLE]),
    "a list for a record": ({"run.json": b"[1, 2]"}, [UNREADABLE]),
    "a deep record": ({"run.json": b"[" * 200_000}, [UNREADABLE]),
    "bytes for a record": ({"run.json": bytes(range(256))}, [UNREADABLE]),
    "wrong types": (
        {"run.json": {"counts": [], "overrides": "a", "loss_last": "low", "method": 3, "versions": None, "git": []}},
        ["run.json: values of a wrong type, ignored: counts, loss_last, overrides, method, git"],
    ),
    "wrong types inside": (
        {"run.json": {"counts": {"held": "x"}, "overrides": [1, None], "cost": {"a": []}, "looks": ["x"], "notes": [{}]}},
        [],
    ),
    "a loss beyond floats": ({"run.json": {"loss_last": 10**400, "cost": {"saved_bytes": 10**400}}}, []),
    "half a character": ({"run.json": {"versions": {"torch": "\ud800"}, "git": {"commit": "\ud800"}}}, []),
    "no rows": ({"changes.csv": None}, ["changes.csv is missing"]),
    "no steps": ({"steps.csv": None}, ["steps.csv is missing"]),
    "empty rows": ({"changes.csv": b""}, ["changes.csv is empty"]),
    "binary rows": ({"changes.csv": bytes(range(256)) * 9}, ["changes.csv cannot be read to its end: not text"]),
    "a torn row": (
        {"changes.csv": b"name,verdict\na,held\nb"},
        ["changes.csv: 1 incomplete row ignored", "2 of 3 rows of changes.csv are missing: 1 trained, 1 drifted"],
    ),
    "a null byte": ({"steps.csv": b"step,loss\n1,2\n\0,\0\n"}, []),
    "other columns": ({"changes.csv": b"name,how\na,held\n"}, ["changes.csv has no column verdict"]),
    "words for numbers": (
        {
            "steps.csv": b"step,loss\n1,two\n2,nan\n",
            "changes.csv": b"name,verdict,change_l2,change_rel\na,trained,[1],1e400\nb,held,,x\n",
        },
        [
            "changes.csv: 2 fields are not numbers",
            "1 of 3 rows of changes.csv is missing: 1 drifted",
            "steps.csv: 1 field is not a number",
        ],
    ),
    "numbers at the end of floats": ({"steps.csv": b"step,loss\n1,1e308\n2,-1e308\n3,5e-324\n4,1e400\n"}, []),
    "numbers too large to show": (
        {
            "run.json": {
                "counts": {"held": 10**4000},
                "looks": [10**4000, -1],
                "seed": 10**400,
                "cost": {"saved_bytes": 1e999},
            }
        },
        [],
    ),
    "huge texts": (
        {"run.json": {"reason": HUGE, "device": HUGE, "notes": [HUGE, *"notes" * 9999], "cost": {"why_small": HUGE}}},
        ["run.json: values that are too long, shortened: reason, device, notes, cost"],
    ),
    "huge overrides": (
        {"run.json": {"overrides": [f"clip={HUGE}", *(f"key{number}=1" for number in range(999))]}},
        ["run.json: values that are too long, shortened: overrides"],
    ),
    "huge mappings": (
        {"run.json": {"method": {"_target_": HUGE}, "versions": {HUGE: HUGE} | {str(n): "1" for n in range(999)}}},
        ["run.json: values that are too long, shortened: method, versions"],
    ),
    "many looks": (
        {"run.json": {"looks": list(range(1, 99_999))}},
        ["run.json: values that are too long, shortened: looks"],
    ),
    "a huge name": (
        {"changes.csv": b"name,verdict,cause\n%b,held,%b\n" % (b"n" * 100_000, b"c" * 100_000)},
        ["2 of 3 rows of changes.csv are missing: 1 trained, 1 drifted"],
    ),
    "a name beyond the limit of CSV": (
        {"changes.csv": b"name,verdict\n%b,leaked\n" % (b"n" * 200_000)},
        ["changes.csv cannot be read to its end: field larger than field limit (131072)"],
    ),
    "other steps": ({"steps.csv": b"a,b\n1,two\n"}, ["steps.csv has no column step or loss"]),
}


def test_folders_whose_names_are_not_utf8_are_reported_in_every_file_and_links_reach_them(report):
    for name in (b"a\xff", b"a\xfe"):
        os.rename(write_run(SWEEP), b"sweep/" + name)
    os.rename(write_run(SWEEP, "detach", status="failed", reason="x", verdict=None, rows=(), losses=()), b"sweep/b\xff")
    (SWEEP / "sweep.json").write_text(
        json.dumps({"command": "go on", "runs": [os.fsdecode(b"a\xff"), os.fsdecode(b"c\xff")]})
    )
    os.rename(b"sweep", b"sw\xff")
    sweep = Path(os.fsdecode(b"sw\xff"))
    code, out, err = report(str(sweep))
    assert (code, err) == (0, "")
    assert out.endswith("1 of 2 is not done; go on with:\ngo on\n")
    html = (sweep / "report.html").read_text()
    for link in ("a%FF/", "a%FE/", "b%FF/", "b%FF/runner.log"):
        assert f'href="{link}"' in html
    write_sweep_files(sweep)
    assert {row["run"] for row in rows_of("comparison.csv", sweep)} == {"a\ufffd", "a\ufffd (2)", "b\ufffd"}
    assert [row["log"] for row in rows_of("failures.csv", sweep)] == ["b\ufffd/runner.log"]
    write_run_page(sweep / os.fsdecode(b"a\xff"))
    assert report(str(sweep / os.fsdecode(b"a\xff")))[::2] == (0, "")
    assert report(os.fsdecode(b"no\xff"))[0] == 2


@pytest.mark.parametrize("what", BROKEN)
def test_each_broken_file_is_a_line_and_everything_else_is_reported(report, what):
    folder = broken(what)
    good = write_run(SWEEP, "none", rows=LEAKED_ROWS)
    code, out, err = report("sweep")
    assert (code, err) == (0, "")
    assert problems_in(out) == [f"{folder.name}: {line}" for line in BROKEN[what][1]]
    html = (SWEEP / "report.html").read_text()
    assert good.name in html
    assert folder.name in html
    assert ("What could not be read" in html) == bool(BROKEN[what][1])
    assert len(html) < 150_000  # a command is whole
    assert len(out) < 10_000
    write_sweep_files(SWEEP)
    write_run_page(folder)
    bounded = *(SWEEP / name for name in FILES if name != "changes.csv"), folder / "report.html"
    assert all(path.stat().st_size < 150_000 for path in bounded if path.exists())
    assert {row["run"] for row in rows_of("comparison.csv")} == {folder.name, good.name}


def test_a_run_whose_record_cannot_be_read_failed_and_keeps_its_overrides(report):
    folder = broken("a torn record")
    write_sweep_files(SWEEP)
    assert {row["run"]: (row["status"], row["reason"]) for row in rows_of("failures.csv")} == {
        folder.name: ("failed", read.UNREADABLE),
    }
    assert "method=zero_lr" in {row["overrides"] for row in rows_of("failures.csv")}


def test_a_run_in_progress_is_running_in_every_table_and_no_failure(report):
    write_run(SWEEP)
    (SWEEP / "by hand").mkdir()
    (SWEEP / "by hand" / ".running").touch()
    write_sweep_files(SWEEP)
    assert rows_of("failures.csv") == []
    (row,) = (row for row in rows_of("comparison.csv") if row["run"] == "by hand")
    assert (row["status"], row["outcome"]) == ("running", "running")
    comparison = json.loads((SWEEP / "comparison.json").read_text())
    assert {run["run"]: (run["status"], run["outcome"]) for run in comparison["runs"]}["by hand"] == ("running", "running")
    assert {setting["outcome"] for setting in comparison["settings"]} == {"held", "running"}
    _, out, _ = report("sweep")
    assert "failed" not in out
    assert "failed" not in re.sub("<style>.*?</style>", "", (SWEEP / "report.html").read_text(), flags=re.DOTALL)


def test_a_record_of_an_old_version_lacks_keys_and_is_no_problem(report):
    folder = write_run(SWEEP)
    write_run(SWEEP, "requires_grad")
    record = json.loads((folder / "run.json").read_text())
    old = {key: record[key] for key in ("status", "verdict", "loss_last", "overrides")}
    (folder / "run.json").write_text(json.dumps(old))
    code, out, _ = report("sweep")
    assert (code, problems_in(out)) == (0, [])
    html = (SWEEP / "report.html").read_text()
    assert "zero_lr" in html
    assert read_run(folder).record["counts"]["held"] == 0


def test_an_override_of_thousands_of_characters_is_whole_in_the_command_and_short_in_the_tables(report):
    names = ",".join(f"layer{number}.weight" for number in range(500))
    write_run(SWEEP, "zero_lr", f"freeze.patterns=[{names}]", setting="one")
    write_run(SWEEP, "none", rows=LEAKED_ROWS)
    code, out, _ = report("sweep")
    assert (code, problems_in(out)) == (0, [])
    assert max(map(len, out.splitlines())) < 1000
    html = (SWEEP / "report.html").read_text()
    assert f"freeze.patterns=[{names}]" in html
    (whole,) = (text for text in re.findall(r"<code>(.*?)</code>", html) if names in text)
    assert whole.startswith("python -m runner")
    for section in ("matrix", "runs", "losses"):
        part = html[html.index(f'<section id="{section}-section"') :].split("</section>")[0]
        assert "layer250.weight" not in part, section


@pytest.mark.long
def test_a_page_of_100000_tensors_shows_those_that_leaked_or_stayed_idle_and_says_how_many_there_are():
    rows = [change_row(f"layer{number}.weight", "held") for number in range(100_000)]
    folder = write_run(SWEEP, rows=[*rows, change_row("last.weight", "leaked", 0.1), change_row("head.weight", "idle")])
    write_run_page(folder)
    html = (folder / "report.html").read_text()
    assert len(html) < 2_000_000
    assert "The model has 100,002 tensors" in html
    assert all(f"<b>{name}</b>" in html for name in ("last", "head", "layer0"))
    assert "Not listed: 98,002 more tensors: 98,002 held" in html


def test_a_change_that_is_nan_or_infinite_is_shown_as_such():
    folder = write_run(SWEEP, rows=[change_row("a.weight", "trained", 1.0, change_l2="nan", change_rel="inf")])
    write_run_page(folder)
    assert '<td class="moved-trained">NaN<' in (folder / "report.html").read_text()


def test_a_name_that_a_spreadsheet_takes_for_a_formula_stays_as_it_is_in_every_csv():
    names = ["=cmd()", "+1", "-1", "@a", "\tb"]
    write_run(SWEEP, "none", "tag==cmd()", rows=[change_row(name, "leaked", 0.1) for name in names])
    write_run(SWEEP)
    write_sweep_files(SWEEP)
    assert [row["name"] for row in rows_of("changes.csv") if row["verdict"] == "leaked"] == names
    assert {row["tag"] for row in rows_of("comparison.csv")} == {"=cmd()", ""}


def test_an_unknown_status_is_reported_as_failed_and_named_in_the_reason():
    write_run(SWEEP, status="pruned")
    write_sweep_files(SWEEP)
    (row,) = rows_of("failures.csv")
    assert row["reason"] == "run.json has a status that this version does not know: 'pruned'"


def test_folders_of_other_hydra_projects_are_skipped_and_counted(report):
    write_run(SWEEP)
    for name in ("theirs", "deep/theirs"):
        (SWEEP / name / ".hydra").mkdir(parents=True)
        (SWEEP / name / ".hydra" / "config.yaml").write_text("lr: 1\n")
    _, out, _ = report("sweep")
    assert problems_in(out) == ["2 folders of other Hydra projects skipped"]
    write_sweep_files(SWEEP)
    assert len(rows_of("comparison.csv")) == 1
    code, _, err = report("sweep/theirs")
    assert code == 2
    assert "1 folder of other Hydra projects skipped" in err


def test_nothing_in_a_config_is_executed_and_nested_yaml_aliases_are_not_expanded(report):
    folder = write_run(SWEEP)
    write_run(SWEEP, "none")
    config = folder / ".hydra" / "config.yaml"
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    for text in ("a: !!python/object/apply:os.system ['touch executed']", "a: &a [*a]", "{", "\0", bomb):
        config.write_text(text)
        assert report("sweep")[0] == 0
    assert not Path("executed").exists()
    assert (SWEEP / "report.html").stat().st_size < 1_000_000


def rows_122(verdict: str) -> list[dict]:
    names = [f"layer{n // 15}.{n % 2}.bn{n}.weight" for n in range(62)]
    parameters = [
        change_row(name, verdict, 0.1 * (verdict == "leaked"), "gradient" * (verdict == "leaked")) for name in names
    ]
    return [*parameters, *(change_row(f"layer{n // 15}.{n}.running_var", "drifted", 0.123456789) for n in range(60))]


def test_a_page_of_24_runs_of_122_rows_is_under_a_megabyte():
    for number in range(24):
        verdict = ("held", "leaked", "returned")[number % 3]
        losses = [2.0 + number / 7 + step / 3 for step in range(100)]
        write_run(SWEEP, f"method_{number % 3}", f"seed={number}", rows=rows_122(verdict), losses=losses)
    write_sweep_files(SWEEP)
    assert (SWEEP / "report.html").stat().st_size < 1_000_000


@pytest.mark.long
def test_a_page_of_1000_runs_is_under_five_megabytes_and_says_how_runs_are_grouped():
    for number in range(1000):
        losses = [2.0 + number / 7 + step / 3 for step in range(20)]
        given = f"optimizer.lr={number // 100}", f"optimizer.weight_decay={number % 10}", f"seed={number}"
        write_run(SWEEP, "zero_lr", *given, rows=rows_122("held"), losses=losses)
    write_sweep_files(SWEEP)
    html = (SWEEP / "report.html").read_text()
    assert len(html.encode()) < 5_000_000
    assert "A column is all runs of a method, of 1,000 runs" in html
    assert "Shown are the first 40 of 100 settings in the ranking" in html
