"""`--help` fits 80 columns and says half a line about every key; `docs/config.md` says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from omegaconf import MISSING, OmegaConf

from runner.config.help.keys import OPTIONS, docstrings_of_fields, is_passed_on, known_keys, sentences
from runner.config.help.text import COLUMN, WIDTH
from runner.config.schema import CONF, Config, values_by_key
from tests.conftest import ROOT

GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
ARGUMENTS_OF_TORCH = ("optimizer", "scheduler")  # what their files give beside lr, momentum and decay, torch explains


def options_in_conf() -> set[str]:
    """Return the keys in the files of the groups, such as `data.epochs`, without those that pass another key on."""
    return {
        f"{path.parent.name}.{key}"
        for path in CONF.glob("*/*.yaml")
        for key, value in OmegaConf.to_container(OmegaConf.load(path)).items()
        if path.parent.name not in ("experiment", "launch") and key != "_target_" and not is_passed_on(key, value)
    }


def test_every_key_of_the_schema_has_a_sentence_that_fits_beside_it():
    assert [key for key in sentences() if not sentences()[key]] == []
    assert {key: text for key, text in sentences().items() if len(text.rstrip(".")) > WIDTH - COLUMN} == {}
    assert all(text.endswith(".") and text[0].isupper() for text in sentences().values())


def test_every_key_of_a_file_of_conf_has_a_sentence_and_every_sentence_is_about_a_key_or_group():
    found = options_in_conf()
    assert {key for key in found - sentences().keys() if not key.startswith(ARGUMENTS_OF_TORCH)} == set()
    assert sentences().keys() - found - set(known_keys()) - set(GROUPS) == set()
    assert OPTIONS.keys() & set(known_keys()) == set()


def test_the_sentence_of_a_field_is_the_first_line_of_the_docstring_beneath_it():
    lines = ["x: int", "'One.'", "y: int = 2", "z: int", '"""Three.', "", 'More."""', "def f(self):", "    'No.'"]
    source = "\n".join(["class A:", *(f"    {line}" for line in lines)])
    assert docstrings_of_fields(source) == {"A": {"x": "One.", "z": "Three."}}


def shown_keys(text: str) -> dict[str, str]:
    """Return {key: what stands after it} of the second part of a help text; the sentence of a long one is left out."""
    lines = re.findall(r"^  (\S.*)$", text.split("\nKeys, ")[1].split("\n\n\n")[0], re.M)
    return {re.split(r"[=\s]", line)[0].removesuffix("._target_"): line for line in lines}


def test_help_lists_every_group_choice_and_key_in_80_columns(cli):
    code, text, _ = cli("--help")
    assert code == 0
    assert max(map(len, text.splitlines())) <= WIDTH
    for group in GROUPS:
        head, choices = re.search(rf"^  {group}=(\w+).*\n((?:      .*\n)+)", text, re.M).groups()
        assert re.findall(r"\w+", choices) == sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        assert head in re.findall(r"\w+", choices) or (group, head) == ("experiment", "null")
    keys = shown_keys(text)
    nodes = {key.split(".")[0] for key in known_keys() if "." in key} | set(GROUPS)
    assert sentences().keys() - nodes <= keys.keys()
    assert all(sentences()[key].rstrip(".") in text for key in {*keys, *GROUPS})


def test_help_shows_the_keys_and_values_of_the_choices_that_are_given(cli):
    keys = shown_keys(cli("--help", "data=image_folder", "optimizer=adam", "scheduler=one_cycle", "seed=7")[1])
    assert keys["data.root"].startswith("data.root=??? ")
    assert keys["optimizer.lr"].startswith("optimizer.lr=0.001 ")
    assert keys["optimizer.momentum"].split() == ["optimizer.momentum", "Momentum"]
    assert keys["scheduler.max_lr"] == "scheduler.max_lr=${optimizer.lr}"
    assert keys["seed"].startswith("seed=7 ")
    assert "data.input" not in keys  # it is that of the model


def test_help_shows_the_groups_and_choices_of_a_folder_of_ones_own(cli):
    for path, text in {"data/photos": "_target_: my.photos\nsize: 3", "shape/round": "a: 1"}.items():
        Path("mine", path).parent.mkdir(parents=True, exist_ok=True)
        Path("mine", f"{path}.yaml").write_text(text)
    text = cli("--config-dir", "mine", "--help", "data=photos")[1]
    assert re.search(r"^  data=photos .*\n      .*\bphotos,", text, re.M)
    assert "\n  shape\n      round\n" in text
    assert re.search(r"^  data\.size=3 +Argument of photos$", text, re.M)


@pytest.mark.long
@pytest.mark.parametrize("given", ["data=masks", "data=tokens", "task=segmentation", f"data._target_={'a' * 300}.b"])
def test_help_fits_80_columns_whatever_is_chosen(cli, given):
    code, text, _ = cli("--help", given, f"freeze.patterns=[{'b' * 300}]")
    assert code == 0
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_dollar_sign_in_a_value_is_shown_as_it_is(cli):
    assert "model.checkpoint=a$b " in cli("--help", "model.checkpoint='a$b'")[1]


def in_yaml(value: object) -> str:
    """Return a default of the schema as a cell of a table; empty for what has none, and for a node."""
    is_value = value != MISSING and not isinstance(value, dict)
    return f"`{yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`" if is_value else ""


def files_with(option: str) -> str:
    """Return the choices of a group whose files have a key, such as `model.weights`, as a cell of a table."""
    group, _, name = option.partition(".")
    files = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((CONF / group).glob("*.yaml"))}
    having, lacking = ([f"`{each}`" for each in files if (name in files[each]) is has] for has in (True, False))
    if len(having) < len(lacking):
        return ", ".join(having)
    return f"all but {', '.join(lacking)}" if lacking else "all"


def test_the_tables_of_the_docs_have_every_key_with_its_default_and_its_sentence():
    text = (ROOT / "docs" / "config.md").read_text()
    schema = OmegaConf.to_container(OmegaConf.structured(Config), enum_to_str=True)
    defaults = {key: in_yaml(value) for key, value in values_by_key(schema)}
    rows = [f"| `{key}` | {defaults[key]} | {sentences()[key]} |" for key in known_keys()]
    assert "\n".join(["| key | default | is |", "|---|---|---|", *rows]) + "\n\n" in text
    rows = [f"| `{key}` | {files_with(key)} | {OPTIONS[key]} |" for key in OPTIONS if "." in key]
    assert "\n".join(["| key | in the files | is |", "|---|---|---|", *rows]) + "\n\n" in text
