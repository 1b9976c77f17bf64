"""The page as a whole: what stands on top, what it holds for programs, and when it loads itself again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from runner.contract import COMPARISON_JSON, COMPARISON_SCHEMA, STATUSES, VERDICTS
from runner.report import page
from runner.report.compare.run_set import Planned, RunSet
from runner.report.files import write_sweep_files
from runner.report.page.render import render_page, styles, subtitle
from runner.runs.read import read_run, run_folders
from tests.run_folders import write_run, write_sweep

SWEEP = Path("sweep")


def run_set(**others) -> RunSet:
    """Return the runs in SWEEP."""
    return RunSet.of([read_run(folder) for folder in run_folders(SWEEP)], "sweep", SWEEP, **others)


def comparison_in(html: str) -> dict:
    """Return what a page holds for programs."""
    (text,) = re.findall(r'<script type="application/json" id="comparison">(.*?)</script>', html, re.S)
    return json.loads(text)


def test_what_is_not_done_stands_on_top_with_the_command_that_goes_on():
    names = [folder.name for folder in write_sweep(SWEEP)]
    command = "python -m runner -m method=zero_lr 'hydra.sweep.dir=sweep'"
    html = render_page(run_set(planned=[Planned(SWEEP, (*names, "one", "two"), command)]))
    head = html[html.index("<h1") : html.index("</header>")]
    assert "3 of 9 runs are not done: 1 failed, 2 not begun." in head
    assert '<code class="paste">python -m runner -m method=zero_lr &#39;hydra.sweep.dir=sweep&#39;</code>' in head
    assert subtitle(run_set(planned=[Planned(SWEEP, (*names, "one"))])) == "8 runs: 1 failed, 6 finished, 1 not begun"


def test_a_page_loads_itself_again_only_while_it_is_told_to():
    write_sweep(SWEEP)
    assert "http-equiv" not in render_page(run_set())
    assert '<meta http-equiv="refresh" content="5">' in render_page(run_set(), 5)


def test_the_comparison_inside_the_page_is_that_of_the_file_and_names_its_schema():
    write_sweep(SWEEP)
    write_run(SWEEP, "</script><b>", "freeze=fc", name="hostile")
    write_sweep_files(SWEEP)
    inside = comparison_in((SWEEP / "report.html").read_text())
    assert inside == json.loads((SWEEP / COMPARISON_JSON).read_text())
    assert inside["schema"] == COMPARISON_SCHEMA
    assert len(inside["runs"]) == 8
    assert "</script><b>" in {run["values"]["method"] for run in inside["runs"]}


def test_what_could_not_be_read_is_the_last_section():
    folder = write_run(SWEEP, "zero_lr")
    (folder / "steps.csv").unlink()
    write_run(SWEEP, "exclude")
    html = render_page(replace(run_set(), problems=["a folder: permission denied"]))
    last = html[html.rindex("<section") :]
    assert "a folder: permission denied" in last
    assert f"{folder.name}: steps.csv is missing" in last


def test_the_same_runs_give_the_same_bytes_in_any_order_and_place():
    write_sweep(SWEEP)
    first = render_page(run_set())
    SWEEP.rename("moved")
    found = [read_run(folder) for folder in reversed(run_folders(Path("moved")))]
    assert render_page(RunSet.of(found, "sweep", Path("moved"))) == first


def test_each_template_is_used_and_each_class_of_the_styles_stands_in_one():
    package = Path(page.__file__).parent
    sources = {path: path.read_text() for path in package.rglob("*") if path.suffix in (".py", ".jinja", ".js")}
    for path in (package / "templates").iterdir():
        name = path.name.split(".")[0]
        others = "".join(text for other, text in sources.items() if other != path)
        assert f'"{name}"' in others or f'"{path.name}"' in others, path.name
    css = re.sub(r"\{[^{}]*\}", "", styles())
    parts = {name for name in re.findall(r"\.([a-z][\w-]*)", css) if not re.fullmatch(r"h\d", name)}  # h1 to h5: levels
    made_of_verdicts = {"moved-held", "moved-leaked", "moved-drifted"}
    everything = "".join(sources.values()) + " ".join([*VERDICTS, *STATUSES, "running"])
    assert {name for name in parts - made_of_verdicts if not re.search(rf"(?<![\w-]){name}(?![\w-])", everything)} == set()
