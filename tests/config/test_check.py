"""The composed config: what is refused of it, its hash, and that every file under conf/ composes."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import pytest
from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf

import runner
from runner.config.check import check
from runner.config.compose import hydra_initialized
from runner.config.naming import NOT_HASHED, config_hash
from runner.config.schema import CONF, Config, known_keys
from runner.errors import ConfigError


@pytest.fixture(autouse=True, scope="module")
def _conf():
    with hydra_initialized():
        yield


@pytest.fixture(scope="module")
def default():
    return compose("config")


def composed(*overrides):
    return compose("config", list(overrides))


def changed(config, **values):
    """A copy with dotted keys (written with `__`) set, as an override would set them."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config


def test_the_default_run_is_what_the_contract_says(default):
    config = check(default)
    assert isinstance(config, Config)
    assert (config.batches, config.seed, config.device.value, config.threads) == (10, 0, "auto", "auto")
    assert (config.freeze.patterns, config.freeze.keep, config.freeze.buffers.value) == (["@head"], [], "live")
    assert config.model.build["_target_"] == "torchvision.models.resnet18"
    assert config.model.build["num_classes"] == config.model.classes
    assert config.method == {"_target_": "runner.methods.requires_grad.RequiresGrad", "clean": False}


def test_checking_changes_nothing(default):
    was = OmegaConf.to_container(default, resolve=False)
    check(default)
    assert OmegaConf.to_container(default, resolve=False) == was


# Unknown keys


@pytest.mark.parametrize("level", ["", "model.", "freeze.", "groups."])
def test_an_unknown_key_is_refused_at_every_level_even_with_a_plus(level):
    with pytest.raises(ConfigError, match=rf"{level}typo: no such key"):
        check(composed(f"+{level}typo=1"))


def test_an_unknown_key_in_a_list_is_refused(default):
    with pytest.raises(ConfigError, match="typo"):
        check(changed(default, groups__lr=[{"pattern": "fc", "lr": 0.1, "typo": 1}]))


@pytest.mark.parametrize(
    ("key", "near"),
    [("batchs", "batches"), ("Seed", "seed"), ("freeze__pattern", "freeze.patterns"), ("groups__name", "groups.names")],
)
def test_an_unknown_key_is_answered_with_the_nearest(default, key, near):
    with pytest.raises(ConfigError, match=rf"no such key; did you mean {near}"):
        check(changed(default, **{key: 1}))


@pytest.mark.parametrize("node", ["model.build", "method", "optimizer", "scheduler", "task", "data", "groups.cut"])
def test_a_node_with_a_target_is_open_to_new_keys(default, node):
    config = check(changed(default, **{f"{node}.new": 1}))
    for part in node.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    assert config["new"] == 1


def test_the_known_keys_are_those_of_the_composed_config(default):
    assert {str(key) for key in default} == {key for key in known_keys() if "." not in key}
    assert {"freeze.patterns", "freeze.keep", "freeze.buffers", "groups.lr", "groups.names", "model.head"} <= set(
        known_keys()
    )


# Wrong types and numbers out of range


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batches", "many"),
        ("batches", 1.5),
        ("batches", True),
        ("batches", None),
        ("seed", "x"),
        ("seed", 0.5),
        ("clip", "x"),
        ("device", "gpu"),
        ("freeze__buffers", "thawed"),
        ("freeze__patterns", "fc"),
        ("freeze__patterns", None),
        ("freeze__keep", "fc"),
        ("groups__names", "fc"),
        ("groups__lr", [{"pattern": "fc", "lr": "fast"}]),
        ("groups__lr", ["fc"]),
        ("model__input", ["a"]),
        ("model__classes", "ten"),
        ("deterministic", "perhaps"),
        ("zero_grad_to_none", "perhaps"),
        ("strict", "perhaps"),
        ("optimizer", "sgd"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_refused_by_its_key(default, key, value):
    with pytest.raises(ConfigError, match=f"^{key.replace('__', '.')}"):
        check(changed(default, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batches", 0),
        ("batches", -1),
        ("data__batch_size", 0),
        ("data__batch_size", 2.5),
        ("data__batch_size", "four"),
        ("data__batch_size", True),
        ("model__classes", 0),
        ("model__input", []),
        ("model__input", [3, 0, 4]),
        ("model__input", [-1]),
        ("seed", -1),
        ("seed", 2**63),
        ("clip", 0),
        ("clip", -1.0),
        ("clip", float("nan")),
        ("threads", 0),
        ("threads", -2),
        ("threads", 1.5),
        ("threads", True),
        ("threads", "some"),
        ("threads", None),
        ("groups__lr", [{"pattern": "fc", "lr": -0.1}]),
        ("groups__lr", [{"pattern": "fc", "lr": float("nan")}]),
        ("model__head", []),
        ("model__head", 3),
        ("model__head", None),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_its_key(default, key, value):
    with pytest.raises(ConfigError, match=f"^{key.replace('__', '.')}"):
        check(changed(default, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batches", 1),
        ("seed", 2**63 - 1),
        ("clip", 0.001),
        ("clip", None),
        ("threads", 1),
        ("threads", "auto"),
        ("freeze__patterns", []),
        ("groups__lr", [{"pattern": "fc", "lr": 0.0}]),
        ("model__head", ["fc", "layer4"]),
        ("model__head", "auto"),
        ("model__input", [1]),
    ],
    ids=str,
)
def test_a_value_at_the_edge_of_its_range_is_taken(default, key, value):
    check(changed(default, **{key: value}))


# Missing values


def test_what_is_missing_is_named_one_after_the_other_until_nothing_is():
    config, named = composed("model=custom"), []
    values = {"model.build._target_": "my.Net", "model.input": [8], "model.classes": 4}
    for _ in values:
        with pytest.raises(ConfigError, match=r"(\S+) is missing; give \1=\.\.\.") as caught:
            check(config)
        named.append(str(caught.value).split(" ")[0])
        config = changed(config, **{named[-1]: values[named[-1]]})
    assert sorted(named) == sorted(values)
    assert check(config).model.build == {"_target_": "my.Net"}


def test_a_missing_value_in_a_list_is_named(default):
    with pytest.raises(ConfigError, match=r"groups\.lr\[0\]\.lr is missing"):
        check(changed(default, groups__lr=[{"pattern": "fc"}]))


# Patterns


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        *((key, "re:(") for key in ("freeze__patterns", "freeze__keep", "groups__names", "model__head")),
        *(("freeze__patterns", text) for text in ("", " fc", "a..b", "a**", "re:", "type:1", "@tail")),
    ],
)
def test_a_malformed_pattern_is_refused_where_it_stands(default, key, pattern):
    with pytest.raises(ConfigError, match=f"^{key.replace('__', '.')}: "):
        check(changed(default, **{key: [pattern]}))


def test_a_malformed_pattern_of_a_learning_rate_is_refused(default):
    with pytest.raises(ConfigError, match=r"^groups\.lr: "):
        check(changed(default, groups__lr=[{"pattern": "re:(", "lr": 0.1}]))


@pytest.mark.parametrize("pattern", ["fc", "re:.*bias", "type:Linear", "@head", "**"])
def test_one_entry_in_patterns_and_in_keep_is_refused(default, pattern):
    with pytest.raises(ConfigError, match=r"stands in freeze.patterns and in freeze.keep"):
        check(changed(default, freeze__patterns=["layer1", pattern], freeze__keep=[pattern]))


# The hash


def leaves(node, path=()):
    """Every path to something that is not a mapping or a list with members."""
    if isinstance(node, dict) and node:
        return [leaf for key, value in node.items() for leaf in leaves(value, (*path, key))]
    if isinstance(node, list) and node:
        return [leaf for index, value in enumerate(node) for leaf in leaves(value, (*path, index))]
    return [(path, node)]


def another(path, value):
    """A value that the key could have as well."""
    if path == ("groups", "lr"):
        return [{"pattern": "fc", "lr": 0.1}]
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return {"auto": "cpu", "live": "frozen"}.get(value, f"{value}_")
    return {"more": 1} if isinstance(value, dict) else ["more"] if isinstance(value, list) else 1


def with_leaf(node, path, value):
    if not path:
        return value
    key, *rest = path
    items = node.items() if isinstance(node, dict) else enumerate(node)
    built = [(name, with_leaf(item, rest, value) if name == key else item) for name, item in items]
    return dict(built) if isinstance(node, dict) else [item for _, item in built]


def as_json(node):
    """JSON with sorted mappings and lists in order, written out."""
    if isinstance(node, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {as_json(node[key])}" for key in sorted(node)) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(as_json(item) for item in node) + "]"
    return json.dumps(node)


def test_what_is_not_hashed_is_the_list_of_the_contract():
    said = "hydra launch tracker plan resume on_error timeout strict save cost"
    assert sorted(NOT_HASHED) == sorted(said.split())


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=mlp", "method=zero_lr", "freeze=backbone", "optimizer=adamw", "seed=7", "clip=0.5"],
        ["experiment=module_groups"],
        ["save=true", "strict=true", "device=cpu", "freeze.buffers=frozen", "+optimizer.nesterov=true"],
    ],
    ids=str,
)
def test_the_hash_is_that_of_a_slow_obvious_implementation(overrides):
    config = composed(*overrides)
    node = OmegaConf.to_container(config, resolve=True)
    kept = {key: value for key, value in node.items() if key not in NOT_HASHED}
    assert config_hash(config) == hashlib.sha256(as_json(kept).encode()).hexdigest()[:8]


@pytest.mark.parametrize("key", ["strict", "save", "plan"])
def test_the_hash_does_not_depend_on_what_only_says_where_and_how(default, key):
    assert config_hash(changed(default, **{key: True})) == config_hash(default)


def test_the_hash_does_not_depend_on_the_hydra_node(default):
    with_hydra = compose("config", return_hydra_config=True)
    assert "hydra" in with_hydra
    assert config_hash(with_hydra) == config_hash(default)


def test_the_hash_does_not_depend_on_the_order_of_the_overrides():
    overrides = ["method=zero_lr", "freeze=fc", "seed=3", "+optimizer.nesterov=true", "+optimizer.dampening=0"]
    assert config_hash(composed(*overrides)) == config_hash(composed(*reversed(overrides)))


def test_the_hash_does_not_depend_on_how_a_config_was_said(default):
    assert config_hash(composed("freeze=none", "freeze.patterns=['@head']", "batches=10")) == config_hash(default)


def test_the_hash_depends_on_the_order_of_a_list(default):
    one, other = (config_hash(changed(default, freeze__patterns=names)) for names in (["a", "b"], ["b", "a"]))
    assert one != other


def test_the_hash_depends_on_every_other_leaf_and_no_two_changes_give_one_hash():
    config = composed("experiment=module_groups", "model=mlp", "freeze.keep=[conv1]", "clip=1.5")
    node = OmegaConf.to_container(config, resolve=True)
    hashed = {key: value for key, value in node.items() if key not in NOT_HASHED}
    paths = leaves(hashed)
    assert len(paths) > 25
    hashes = [config_hash(OmegaConf.create(with_leaf(node, path, another(path, value)))) for path, value in paths]
    assert len({config_hash(config), *hashes}) == len(paths) + 1


def test_the_hash_depends_on_a_new_key_of_an_open_node(default):
    assert config_hash(changed(default, **{"optimizer.nesterov": False})) != config_hash(default)


def test_hashing_changes_nothing(default):
    was = OmegaConf.to_container(default, resolve=False)
    config_hash(default)
    assert OmegaConf.to_container(default, resolve=False) == was


# The files


FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)


def missing_in(path):
    """The keys that a file leaves to the user, as `group.key`."""
    plain = OmegaConf.to_container(OmegaConf.load(CONF / path), resolve=False)
    below = () if path.parts[0] == "experiment" else path.parent.parts
    return {".".join(map(str, leaf)) for leaf, value in leaves(plain, below) if value == "???"}


PLUGINS = {"joblib": "joblib", "ray": "ray", "slurm": "submitit"}  # that a launcher's file needs


def columns():
    """Every file once, one of each group at a time, for composing takes a while; recipes choose files themselves.

    A launcher's file composes where its plugin is installed: the extra `all` brings each.
    """
    groups = {str(path.parent): [] for path in FILES}
    for path in FILES:
        plugin = PLUGINS.get(path.stem) if path.parent.name == "launch" else None
        if plugin is None or find_spec(f"hydra_plugins.hydra_{plugin}_launcher"):
            groups[str(path.parent)].append(path)
    recipes = groups.pop("experiment", [])
    return [[path for path in column if path] for column in zip_longest(*groups.values())] + [[path] for path in recipes]


@pytest.mark.parametrize("files", columns(), ids=lambda files: " ".join(map(str, files)))
def test_every_file_composes_as_a_choice_of_its_group_and_what_it_leaves_open_is_named(files):
    config, named = composed(*(f"{path.parent}={path.stem}" for path in files)), set()
    left = {key for path in files for key in missing_in(path)}
    for _ in left:
        with pytest.raises(ConfigError, match=r"(\S+) is missing; give \1=\.\.\.") as caught:
            check(config)
        named.add(key := str(caught.value).split(" ")[0])
        config = changed(config, **{key: {"model.input": [8], "model.classes": 4, "schedule.step": 2}.get(key, "given")})
    check(config)
    assert named == left


@pytest.mark.parametrize("group", ["model", "optimizer", "scheduler", "task", "data"])
def test_every_group_that_builds_an_object_has_a_custom_file_with_the_target_to_fill_in(group):
    assert Path(group, "custom.yaml") in FILES
    wanted = "model.build._target_" if group == "model" else f"{group}._target_"
    assert wanted in missing_in(Path(group, "custom.yaml"))


def test_a_choice_that_is_not_there_is_hydras_error():
    with pytest.raises(HydraException):
        composed("method=no_such_method")


# Imports


@pytest.mark.parametrize("module", ["runner", "runner.__main__", "runner.config", "runner.report"])
def test_importing_a_door_leaves_torch_unimported(module):
    code = f"import sys, {module}; print([name for name in ('torch', 'torchvision', 'pandas') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
