"""Files are written completely or not at all, and their numbers read back exactly."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.contract import CHANGE_COLUMNS
from runner.runs.folder import contains_run, csv_text, write_atomically, write_record, write_text
from runner.runs.read import checked_record, read_record
from runner.runs.record import new_record


def test_the_columns_are_those_of_the_contract_in_order():
    assert ", ".join(CHANGE_COLUMNS) == (
        "name, aliases, kind, module_type, shape, numel, dtype, frozen, group, lr, requires_grad, "
        "initial_l2, change_l2, change_rel, change_max, moved, moved_elements, seen_at, verdict, cause"
    )


def failing_writer(error):
    """Return a function that writes a part of a file, then raises."""

    def write(path):
        path.write_text("a part")
        raise error

    return write


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_writer_that_raises_leaves_no_file(error, tmp_path):
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "changes.csv", failing_writer(error))
    assert os.listdir(tmp_path) == []


def test_a_writer_that_raises_keeps_the_previous_file(tmp_path):
    (tmp_path / "changes.csv").write_text("the first")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "changes.csv", failing_writer(OSError("disk full")))
    assert os.listdir(tmp_path) == ["changes.csv"]
    assert (tmp_path / "changes.csv").read_text() == "the first"


def test_a_file_has_its_final_name_only_when_it_is_complete(tmp_path):
    seen = []

    def write(path):
        path.write_text("complete")
        seen.append(((tmp_path / "x.csv").exists(), path.parent))

    write_atomically(tmp_path / "x.csv", write)
    assert seen == [(False, tmp_path)]
    assert os.listdir(tmp_path) == ["x.csv"]
    assert (tmp_path / "x.csv").read_text() == "complete"


def test_a_new_file_replaces_an_old_one(tmp_path):
    for text in ("old and longer", "new"):
        write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_bytes() == b"new"


def test_text_is_written_in_utf8_and_line_ends_are_kept(tmp_path):
    write_text(tmp_path / "a", "é\r\nb\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\r\nb\n"


def test_a_record_reads_back_unchanged(tmp_path):
    record = {"status": "finished", "reason": "", "loss_first": 0.1, "verdict": None, "looks": [1, 2], "counts": {"held": 2}}
    record["notes"] = ["a note"]
    write_record(tmp_path, record)
    assert json.loads((tmp_path / "run.json").read_text()) == record
    assert list(json.loads((tmp_path / "run.json").read_text())) == list(record)


def test_a_record_that_was_written_is_never_too_long_to_read(tmp_path):
    record = new_record(
        overrides=[], config_hash="", method={}, buffers="live", setting="", seed=0, device="cpu"
    )  # as a run begins
    record |= {"reason": f"KeyError: {'x' * 5000} at the end", "notes": ["n" * 2000] * 300}
    record |= {"looks": list(range(1, 301)), "evaluation": {"passes": [{"loss": 1.0}] * 300}}
    record["phases"] = [{"first_step": step, "last_step": step, "frozen": 1, "trained": 1} for step in range(1, 301)]
    write_record(tmp_path, record)
    problems = []
    read = checked_record(json.loads((tmp_path / "run.json").read_text()), problems)
    assert problems == []
    assert len(read["reason"]) == 1000
    assert read["reason"].startswith("KeyError: xxx")
    assert read["reason"].endswith("xxx at the end")
    assert read["notes"][-1] == "and 101 more notes"
    assert [len(each) for each in (read["notes"], read["looks"], read["phases"], read["evaluation"]["passes"])] == [
        *(200, 300, 300, 300)
    ]


def test_a_record_has_the_blocks_of_its_first_phases_where_it_would_be_too_large_to_read(tmp_path):
    block = {"name": "encoder.layers.10", "frozen": True, "factor": 1.0, "change_rel": 0.00012345678901234567}
    blocks = [{**block, "name": f"encoder.layers.{number}"} for number in range(100)]
    phases = [
        {"first_step": step, "last_step": step, "frozen": 1, "trained": 1, "blocks": blocks} for step in range(1, 1001)
    ]
    write_record(tmp_path, {"reason": "", "notes": [], "status": "finished", "phases": phases})
    raw = read_record(tmp_path)
    assert [len(phase.get("blocks", ())) for phase in raw["phases"]] == [100] * 200 + [0] * 800
    problems = []
    assert checked_record(raw, problems)["phases"] == raw["phases"]
    assert problems == []
    assert phases[-1]["blocks"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_with_a_number_that_is_not_finite_is_not_written(value, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_record(tmp_path, {"reason": "", "notes": [], "loss_first": value})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (0.1, "0.1"),
        (1e-5, "1e-05"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (3, "3"),
        (True, "True"),
        (False, "False"),
        (None, ""),
        ("", ""),
        ("a,b", '"a,b"'),
    ],
    ids=repr,
)
def test_csv_fields_are_written_exactly(value, field):
    assert csv_text(["x", "y"], [{"x": value, "y": 0}]) == f"x,y\n{field},0\n"


def test_a_missing_key_is_an_empty_field_and_a_key_without_a_column_is_an_error():
    assert csv_text(["x", "y"], [{"y": 1}]) == "x,y\n,1\n"
    with pytest.raises(ValueError, match="z"):
        csv_text(["x", "y"], [{"z": 1}])


def test_without_rows_only_the_header_is_written():
    assert csv_text(CHANGE_COLUMNS, []) == ",".join(CHANGE_COLUMNS) + "\n"


@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\r")), st.floats(allow_nan=False)), max_size=5
    )
)
def test_names_and_floats_read_back_exactly(pairs):
    text = csv_text(["name", "value"], [{"name": name, "value": value} for name, value in pairs])
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(row["name"], float(row["value"])) for row in read] == pairs


@pytest.mark.parametrize("name", ["run.json", "changes.csv", "steps.csv", "runner.log", ".hydra"])
def test_a_folder_with_any_file_of_a_run_contains_a_run(name, tmp_path):
    folder = Path(tmp_path)
    (folder / "notes.txt").write_text("mine")
    assert not contains_run(folder)
    (folder / name).mkdir()
    assert contains_run(folder)


def test_a_missing_folder_contains_no_run(tmp_path):
    assert not contains_run(tmp_path / "nowhere")
