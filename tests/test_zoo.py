"""The zoo of benchmarks/zoo.py: how many models it has, that their overrides compose, and a sample of them, trained."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from fnmatch import fnmatchcase

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from benchmarks import zoo
from benchmarks.zoo_models import TORCHVISION, TORCHVISION_HEADS, Entry
from runner.config.check import check
from runner.config.compose import compose_config

ENTRIES = zoo.entries()
BY_NAME = {entry.name: entry for entry in ENTRIES}
SAMPLE = [
    entry for library in zoo.LIBRARIES for entry in zoo.chosen(ENTRIES, f"{library}/*", sample=3, seed=15)
]  # other models than these in the table are tried by hand, with another seed


def is_head_by_timm(name, heads):
    """Return whether the heads are what timm says is the classifier of a model, or the last layers within that."""
    import timm

    model = timm.create_model(name, num_classes=10)
    found = model.get_classifier()
    modules = found if isinstance(found, (tuple, list)) else [found]
    names = [name for name, module in model.named_modules() if any(module is each for each in modules)]
    within = {head: [name for name in names if f"{head}.".startswith(f"{name}.")] for head in heads}
    return all(within.values()) and {name for each in within.values() for name in each} == set(names)


def test_the_zoo_has_the_models_that_it_promises():
    assert len(BY_NAME) == len(ENTRIES)
    counts = Counter(entry.library for entry in ENTRIES)
    assert counts["torchvision"] >= 80
    assert {library: counts[library] for library in ("timm", "transformers", "peft")} == {
        "timm": 100,
        "transformers": 30,
        "peft": 6,
    }
    assert all(entry.heads or entry.library == "timm" for entry in ENTRIES)


def test_every_rule_is_for_a_model_that_torchvision_has():
    from torchvision import models

    kinds = {"models": models, "video": models.video, "segmentation": models.segmentation, "detection": models.detection}
    paths = [f"{kind}/{name}" for kind, module in kinds.items() for name in models.list_models(module=module)]
    for pattern in (*TORCHVISION, *TORCHVISION_HEADS):
        assert any(fnmatchcase(path, pattern) for path in paths), pattern


@pytest.mark.long
def test_the_overrides_of_every_model_compose():
    parser = OverridesParser.create()
    kinds = {}
    for entry in ENTRIES:
        parsed = parser.parse_overrides([*zoo.COMMON, *entry.overrides])  # the values can be read
        groups = (each.value() for each in parsed if "." not in each.key_or_group)
        kinds[(*(each.input_line.partition("=")[0] for each in parsed), *map(str, groups))] = entry
    assert len(kinds) < 40
    for entry in kinds.values():  # and each set of keys exists, so that entries which differ in values are composed once
        config = check(compose_config(*zoo.COMMON, *entry.overrides))
        assert (config.freeze.patterns, config.batches) == (["**"], 1)


@pytest.mark.long
@pytest.mark.parametrize("entry", SAMPLE, ids=[entry.name for entry in SAMPLE])
def test_the_backbone_of_a_model_holds_and_its_head_is_what_a_person_would_say(entry):
    rows = zoo.run_entry(entry)
    assert [(row["method"], row.get("verdict")) for row in rows] == [("requires_grad", "held"), ("zero_lr", "held")], rows
    (heads,) = {row["heads"] for row in rows}
    found = [name for name in heads.split("|") if entry.library != "peft" or name in entry.heads]  # less the adapters
    assert sorted(found) == sorted(entry.heads) if entry.heads else is_head_by_timm(entry.model, found)
    assert {row["same_bits"] for row in rows} == {"True"}
    for by_flags, by_lr in ([float(row[share]) for row in rows] for share in zoo.SHARES if rows[0][share]):
        assert 0 < by_flags <= by_lr <= 1


def test_a_table_is_continued_with_the_models_that_it_lacks_or_that_failed(tmp_path, monkeypatch):
    every = [Entry("timm", name, (f"model={name}",)) for name in ("a", "b", "c")]
    ran = []

    def run_entry(entry):
        ran.append(entry.model)
        verdict = "" if entry.model == "b" and ran.count("b") == 1 else "held"
        row = dict.fromkeys(zoo.COLUMNS, "1") | {"library": "timm", "model": entry.model, "verdict": verdict}
        return [row | {"method": method} for method in zoo.METHODS]

    monkeypatch.setattr(zoo, "entries", lambda: every)
    monkeypatch.setattr(zoo, "run_entry", run_entry)
    file = tmp_path / "zoo.csv"
    for only, expected in (("*/[bc]", "bc"), ("*", "bcab"), ("*", "bcab")):
        monkeypatch.setattr(sys, "argv", ["zoo", "--only", only, "-o", str(file)])
        zoo.main()
        assert "".join(ran) == expected
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["model"], row["method"]) for row in rows] == [(name, each) for name in "abc" for each in zoo.METHODS]
    assert {row["verdict"] for row in rows} == {"held"}


def test_modules_that_differ_in_a_number_have_one_name_and_a_tied_one_is_the_last():
    rows = [
        {"name": name, "aliases": aliases, "frozen": frozen}
        for name, aliases, frozen in (
            ("a.0.1.weight", "", False),
            ("a.12.1.weight", "", False),
            ("a.12.1.bias", "", False),
            ("embed.weight", "b.1.weight|c.1.head.weight", False),
            ("scale", "", False),
            ("d.0.weight", "", True),
        )
    ]
    assert zoo.not_frozen(rows) == ["a.*.1", "c.1.head", "scale"]


@pytest.mark.long
def test_a_model_that_cannot_be_built_is_a_row_with_its_reason():
    rows = zoo.run_entry(Entry("timm", "none", ("model=custom", "model.build._target_=torch.nn.Identityy")))
    assert [row["method"] for row in rows] == [*zoo.METHODS]
    assert all("did you mean Identity" in row["reason"] for row in rows)
