"""`docs/architecture.md` agrees with the code, and its examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner import run
from tests.conftest import ROOT
from tests.test_policy import LAYERS

PAGE = (ROOT / "docs" / "architecture.md").read_text()
EXAMPLES = {
    "blobs": ("data=custom", "data._target_=blobs.Blobs", "++data.input=${model.input}", "++data.classes=${model.classes}"),
}


def test_the_picture_shows_the_packages_in_the_rows_of_the_table_of_layers():
    (picture,) = re.findall(r"## The packages\n.*?```text\n(.*?)```", PAGE, re.S)
    rows = [{word for word in re.split(r"\s+", line[:84]) if word not in ("", "|")} for line in picture.splitlines()]
    assert [row for row in rows if row] == list(reversed(LAYERS))


def test_every_python_file_that_the_page_mentions_exists():
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE):
        assert any((ROOT / folder / name).is_file() for folder in ("", "runner")), name


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_works_with_the_overrides_that_the_page_gives(name, monkeypatch):
    (code,) = re.findall(rf"```python\n# {name}\.py\n(.*?)```", PAGE, re.S)
    Path(f"{name}.py").write_text(code)
    assert all(override in PAGE for override in EXAMPLES[name])
    result = run(*EXAMPLES[name], "model=mlp", "freeze=backbone", "batches=20", "optimizer=adam")
    assert (result.status, result.verdict) == ("finished", "held")
    assert result.record["counts"]["held"] == len([row for row in result.rows if row["frozen"]]) == 7
