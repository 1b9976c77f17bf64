"""A sweep composes its runs' configs once for each choice of groups, and gets the very configs that Hydra composes."""

from __future__ import annotations

import pickle
from pathlib import Path
from random import Random

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Container, Node

from runner.config.compose import hydra_initialized
from runner.config.naming import config_hash, run_name
from runner.config.schema import CONF
from runner.contract import CONFIGS
from runner.sweep.composing import Composer, composed_for_workers

GROUPS = [path.name for path in CONF.iterdir() if path.is_dir() and path.name != "launch"]
VALUES = (
    *("0", "-3", "1.5", "1e-3", "true", "null", "abc", "'quoted text'", '"a=b, c"', "'5'", "inf", "a.b/c-d", "''"),
    *(
        "[]",
        "[1,2]",
        "[fc,'**.bias']",
        "[{pattern: fc, lr: 0.1}]",
        "{}",
        "{a: 1}",
        "{lr: 7, b: {c: null}}",
        "{_target_: x.Y}",
    ),
    *("${seed}", "${.lr}", "${..model.classes}", "'${model.input}-${seed}'", "${oc.env:HOME}", "${runner.steps:}"),
    *(
        "${hydra:job.name}",
        "${missing.key}",
        "[${seed},${batches}]",
        "{a: ${seed}}",
        "'${'",
        "extend_list(1)",
        "int('4')",
        "1,2",
    ),
)


@pytest.fixture(scope="module")
def loader():
    """Hydra's config loader for this project's `conf`."""
    with hydra_initialized():
        yield GlobalHydra.instance().config_loader()


def sweep_config(loader, *overrides: str) -> DictConfig:
    """Return the config of a sweep with these overrides, as Hydra gives it to a sweeper."""
    return loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)


def keys_of(config: DictConfig) -> list[str]:
    """Return all dotted keys of a config outside of Hydra's own node."""
    keys = []
    for key in config if not config._is_none() else ():
        if key != "hydra":
            node = config._get_node(key)
            inner = keys_of(node) if OmegaConf.is_dict(node) and not node._is_interpolation() else []
            keys += [str(key), *(f"{key}.{each}" for each in inner)]
    return keys


def random_overrides(random: Random, keys: list[str]) -> list[str]:
    """Return some choices of groups, then some values of keys of the config, mostly without a prefix."""
    choices = []
    for group in random.sample(GROUPS, random.choice([0, 0, 1, 2])):
        name = random.choice(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
        choices.append(f"{group}={name}")
    values = []
    for _ in range(random.choice([0, 1, 1, 2, 3, 5])):
        key = random.choice(
            [*keys, "new", "model.new", "optimizer.a.b", "optimizer@other", "freeze.patterns[0]", "task@x.y"]
        )
        prefix = random.choice(["", "", "", "", "++", "++", "+", "~"])
        values.append(f"{prefix}{key}" if prefix == "~" else f"{prefix}{key}={random.choice(VALUES)}")
    overrides = [*choices, *values]
    random.shuffle(overrides)
    return overrides


def description(node: Node) -> list[object]:
    """Return all that an object of OmegaConf is: types, flags, keys in order, and values, of all nodes in it."""
    metadata = node._metadata
    own = [type(node), metadata.ref_type, metadata.object_type, metadata.optional, metadata.key, metadata.flags or {}]
    own += [getattr(metadata, name, None) for name in ("element_type", "key_type")]
    content = vars(node)["_content"] if isinstance(node, Container) else vars(node)["_val"]
    if isinstance(content, dict):
        return [own, [(key, description(each)) for key, each in content.items()]]
    if isinstance(content, list):
        return [own, [description(each) for each in content]]
    return [own, repr(content)]


def outcome(function, *arguments) -> object:
    """Return what a function returns, or the type and text of what it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error), str(error)


def assert_same(composed: object, expected: object) -> None:
    """Assert that two outcomes of composing are equal in every respect."""
    if not isinstance(expected, DictConfig):
        assert composed == expected
        return
    assert isinstance(composed, DictConfig)
    assert OmegaConf.to_container(composed, resolve=False) == OmegaConf.to_container(expected, resolve=False)
    assert OmegaConf.to_yaml(composed) == OmegaConf.to_yaml(expected)
    assert description(composed) == description(expected)
    assert OmegaConf.get_cache(composed) == OmegaConf.get_cache(expected)
    for function in (config_hash, run_name):
        assert outcome(function, composed) == outcome(function, expected)


def assert_composes_as_hydra(composer: Composer, overrides: list[str]) -> bool:
    """Assert that a Composer composes what Hydra does; return whether that is a config and no error."""
    expected = outcome(composer.loader.load_sweep_config, composer.config, list(overrides))
    assert_same(outcome(composer.compose, overrides), expected)
    return isinstance(expected, DictConfig)


@pytest.mark.parametrize("seed", [pytest.param(number, marks=[pytest.mark.long] if number else []) for number in range(10)])
def test_random_overrides_give_the_config_that_hydra_composes(seed, loader):
    random = Random(seed)
    master = sweep_config(loader, "seed=7", "hydra.sweep.dir=somewhere", "hydra.job.config.override_dirname.kv_sep='--'")
    composer, keys = Composer(loader, master), keys_of(master)
    composed = 0
    for _ in range(40):
        overrides = random_overrides(random, keys)
        composed += assert_composes_as_hydra(composer, ["seed=7", *overrides])
    assert composed > 10


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_recipe_composes_as_hydra_does_and_once_for_all_its_values(recipe, loader):
    composer = Composer(loader, sweep_config(loader, f"experiment={recipe}"))
    for values in (["seed=3"], ["batches=2", "seed=4"], ["freeze.patterns=['**.bias']"], ["model.head=${freeze.patterns}"]):
        assert assert_composes_as_hydra(composer, [f"experiment={recipe}", *values])
    assert len(composer._bases) == 1


def test_hydra_composes_only_once_what_differs_in_values(loader, monkeypatch):
    composer = Composer(loader, sweep_config(loader))
    calls = []
    compose = type(loader).load_sweep_config
    monkeypatch.setattr(type(loader), "load_sweep_config", lambda *given: calls.append(given) or compose(*given))
    hashes = {
        config_hash(composer.compose([f"model={model}", f"seed={seed}", f"++optimizer.new={seed}"]))
        for model in ("mlp", "token_mlp")
        for seed in range(20)
    }
    assert (len(hashes), len(calls)) == (40, 2)


def test_a_value_that_is_set_in_one_run_is_not_in_the_next(loader):
    composer = Composer(loader, sweep_config(loader))
    for value in ("[1,2]", "{lr: 7}", "null", "5"):
        assert assert_composes_as_hydra(composer, [f"++optimizer.new={value}", "optimizer.lr=9"])
        assert assert_composes_as_hydra(composer, [])


OVERRIDES = ["model=mlp", "seed=5", "optimizer.lr=${clip}"]


def test_another_process_reads_the_config_and_composes_it_only_where_it_cannot(loader, tmp_path, monkeypatch):
    master = sweep_config(loader)
    composer, context = Composer(loader, master), HydraContext(config_loader=loader, callbacks=None)
    expected = composer.loader.load_sweep_config(master, OVERRIDES)
    with composed_for_workers(context, composer, [OVERRIDES], tmp_path) as given:
        there = pickle.loads(pickle.dumps(given)).config_loader
        (file,) = (tmp_path / CONFIGS).iterdir()
        with monkeypatch.context() as patch:
            patch.setattr(type(loader), "load_configuration", None)
            assert_same(there.load_sweep_config(master, OVERRIDES), expected)
        for damage in (lambda: file.write_bytes(file.read_bytes()[:100]), file.unlink):
            damage()
            assert_same(there.load_sweep_config(master, OVERRIDES), expected)
    assert not list(tmp_path.iterdir())
    assert_same(there.load_sweep_config(master, OVERRIDES), expected)


def test_a_job_weighs_the_same_however_many_runs_a_sweep_has(loader, tmp_path):
    composer = Composer(loader, sweep_config(loader))
    context, sizes = HydraContext(config_loader=loader, callbacks=None), set()
    for count in (1, 50):
        with composed_for_workers(context, composer, [[f"seed={seed}"] for seed in range(count)], tmp_path) as given:
            assert len(list(Path(tmp_path / CONFIGS).iterdir())) == count
            sizes.add(len(pickle.dumps(given)))
    assert len(sizes) == 1
