"""The examples of `docs/models.md` work as they are written there."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from runner.config.schema import Model
from runner.freezing.patterns import PART_NAMES
from tests.conftest import ROOT, read_table

TEXT = (ROOT / "docs" / "models.md").read_text()

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def verdicts(folder):
    """Return {name of a parameter: its verdict} of a run."""
    return {row["name"]: row["verdict"] for row in read_table(folder / "changes.csv") if row["kind"] == "parameter"}


def test_adapters_train_and_what_they_are_put_around_holds(cli):
    (command,) = re.findall(r"```bash\n(python -m runner .*?)```", TEXT, re.S)
    overrides = shlex.split(command.replace("\\\n", " "))[3:]
    code, _, err = cli(*overrides, "hydra.run.dir=out", "batches=2")
    assert code == 0, err
    found = verdicts(Path("out"))
    assert {name for name, verdict in found.items() if verdict != "held"} == {name for name in found if "lora_" in name}
    assert "base_model.model.transformer.h.0.attn.c_attn.base_layer.weight" in found


def test_a_model_of_another_library_is_a_file_of_ones_own(cli):
    (path, text) = re.findall(r"```yaml\n# (.*?)\n(.*?)```", TEXT, re.S)[0]
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text(text)
    assert cli("--config-dir", "mine", "model=tiny", "freeze=backbone", "batches=1", "hydra.run.dir=out")[0] == 0
    assert {name for name, verdict in verdicts(Path("out")).items() if verdict == "trained"} == {"head.weight", "head.bias"}


def test_every_named_part_and_every_key_of_a_model_is_in_the_page():
    assert all(f"`{name}`" in TEXT for name in PART_NAMES)
    assert all(f"model.{each.name}" in TEXT for each in fields(Model) if each.name not in ("input",))
