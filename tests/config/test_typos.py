"""A mistyped key or choice is refused before Hydra is imported, where composing would refuse it in the same words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from runner.config.files import choices_of, config_groups, texts_in
from runner.config.help.keys import sentences
from runner.config.typos import refuse_typos
from runner.errors import ConfigError

TYPOS = [
    ["modle=x"],
    ["model=mlp", "sead=1"],
    ["optimizer.lrr=1"],
    ["optimizer=adam", "optimizer.lrr=1", "optimizer.momentum=1"],
    ["seed=1", "foo.bar.baz=1"],
    ["optimizer.momentum=1", "modle=x", "optimizer=adam"],
    ["-m", "optimizer=adam", "optimizer.momentum=1,2"],
    ["lr=0.1"],
    ["method=zero_lrr"],
    ["experiment=digit"],
    ["launch=locl"],
    ["experiment=digits", "schedule.evry=1"],
    ["model.build.foo=1"],
    ["sweep.max_runz=3"],
    ["seed.x=1"],
    ["groups.lr.nope=1"],
    ["hydra.run.dir=a/b", "freze=fc"],
    ["-m", "modle=x,y"],
    ["-m", "sead=0,1", "frezze=fc"],
    ["--multirun", "method=zero_lrr,none", "seed=1,2,3"],
    ["-m", "method=zero_lr,none", "seed=0,1", "freze=fc"],
]
FOR_HYDRA = [
    [],
    ["seed=1"],
    ["+modle=x"],
    ["++modle=x"],
    ["~modle"],
    ["modle@a=x"],
    ["modle='x'"],
    ["modle={a: 1}"],
    ["modle=${seed}"],
    ["hydra.searchpath=[x]", "modle=x"],
    ["hydra/launcher=joblib", "modle=x"],
    ["hydra.job.name=x", "modle=x"],
    ["hydra.run.dir=null", "modle=x"],
    ["-m", "hydra.sweep.dir=a,b", "modle=x"],
    ["--config-dir", "x", "modle=x"],
    ["-cd=x", "modle=x"],
    ["-cn", "x", "modle=x"],
    ["--cfg", "job", "modle=x"],
    ["--help", "modle=x"],
    ["modle=x", "-m"],
    ["modle=x", "method=zero_lrr", "freeze=nope"],
    ["modle=x,y"],
    ["modle=x", "modle=x"],
    ["experiment=digits", "optimizer.momentum=1", "modle=x"],
    ["-m", "optimizer=adam,sgd", "optimizer.momentum=1"],
    ["launch=joblib", "modle=x"],
    ["-m", "resume=last", "modle=x"],
    ["-m", "sweep.max_runs=1", "modle=x"],
    ["-m", "method=none,zero_lrr"],
    ["-m", "seed=range(1,5)", "modle=x"],
    ["optimizer._target_=x.Y", "optimizer.momentum=1"],
    ["method=null"],
    ["method=[a,b]"],
]


@pytest.fixture
def as_hydra_refuses(cli, monkeypatch):
    """Return a function that gives the exit code and stderr of a command line that goes to Hydra; nothing is run."""

    def refuse_to_run(*args, **kwargs):
        raise AssertionError("Hydra has composed this")

    monkeypatch.setattr("hydra._internal.hydra.run_job", refuse_to_run)
    monkeypatch.setattr("runner.sweep.drive.check_folder", refuse_to_run)

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr("runner.__main__.refuse_typos", lambda arguments: None)
            code, _, err = cli(*arguments)
        return code, err

    return call


def refused(arguments) -> str:
    """Return the message with which a command line is refused before Hydra is imported; "" if it is not."""
    try:
        refuse_typos(arguments)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("arguments", TYPOS, ids=" ".join)
def test_a_typo_is_refused_at_once_in_the_words_that_composing_gives(arguments, cli, as_hydra_refuses):
    assert refused(arguments)
    code, _, err = cli(*arguments)
    assert (code, err) == as_hydra_refuses(*arguments)
    assert code == 2


@pytest.mark.parametrize("arguments", FOR_HYDRA, ids=" ".join)
def test_what_is_not_certainly_wrong_goes_to_hydra(arguments):
    assert not refused(arguments)


VALUES = ("1", "x", "[a,b]", "-1.5e3", "null", "a/b.c", "1,2", "a,b,c", "", "{}")


def random_line(random: Random) -> list[str]:
    """Return a command line of choices and values, some of them mistyped."""
    groups, keys = (
        config_groups(),
        [*sentences(), "hydra.run.dir", "model.build._target_", "optimizer.betas", "scheduler.gamma"],
    )
    options = [f"{group}.{key}" for group in groups if group not in ("experiment", "launch") for key in option_names(group)]
    line = []
    for _ in range(random.choice([1, 1, 2, 3, 4])):
        if random.random() < 0.4:
            group = random.choice(groups)
            names = [mistyped(random, random.choice(choices_of(group)), 0.4) for _ in range(random.choice([1, 1, 1, 2]))]
            line.append(f"{group}={','.join(names)}")
        else:
            key = mistyped(random, random.choice([*keys, *options]), 0.3)
            key += random.choice([*[""] * 8, ".x", ".zzz", ".lr.zzz"])
            prefix = random.choice([*[""] * 12, "+", "++", "~"])
            line.append(
                f"{prefix}{key}={random.choice(['1', 'x', '[a,b]', '-1.5e3', 'null', 'a/b.c', '1,2', 'a,b,c', '', '{}'])}"
            )
    return [*random.choice([[], [], [], ["-m"], ["-m"], ["--multirun"]]), *line]


def option_names(group: str) -> list[str]:
    """Return the keys in the files of a group."""
    return sorted({key for choice in choices_of(group) for key in texts_in(group, choice)})


def mistyped(random: Random, word: str, share: float) -> str:
    """Return a word, with a letter doubled, left out or replaced in a share of the cases."""
    if random.random() > share:
        return word
    place = random.randrange(len(word))
    return word[:place] + random.choice(["", 2 * word[place], "q"]) + word[place + 1 :]


@pytest.mark.parametrize("seed", [pytest.param(number, marks=[pytest.mark.long] if number else []) for number in range(10)])
def test_of_random_lines_only_those_are_refused_that_composing_refuses_in_the_same_words(seed, as_hydra_refuses):
    random, count = Random(seed), 0
    for line in [random_line(random) for _ in range(150)]:
        if message := refused(line):
            count += 1
            assert as_hydra_refuses(*line) == (2, f"freeze-runner: {message}\n"), line
    assert count > 15


def test_a_typo_imports_neither_hydra_nor_omegaconf_nor_torch():
    code = "import sys, runner.__main__ as cli; sys.argv = ['', 'optimizer.lrr=1']; print(cli.main(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, *modules = done.stdout.split()
    assert status == "2"
    assert not {"hydra", "omegaconf", "torch", "numpy", "rich"} & set(modules)


def test_with_another_plugin_of_hydra_which_may_bring_files_nothing_is_refused_before_hydra(monkeypatch):
    folder = Path("plugins", "hydra_plugins", "mine")
    folder.mkdir(parents=True)
    assert refused(["modle=x"])
    monkeypatch.syspath_prepend(str(folder.parent.parent.absolute()))
    monkeypatch.delitem(sys.modules, "hydra_plugins", raising=False)
    assert not refused(["modle=x"])
