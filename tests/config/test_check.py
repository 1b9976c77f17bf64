"""The composed config: which mistakes `check` finds, its hash, and that every file in conf/ can be composed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
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
from runner.config.help.keys import known_keys
from runner.config.messages import unknown_key_message
from runner.config.naming import NOT_HASHED, config_hash
from runner.config.schema import CONF, Config
from runner.errors import ConfigError
from tests.conftest import ROOT


@pytest.fixture(autouse=True, scope="module")
def _hydra():
    """Initialize Hydra with the folder `conf`, once for all tests of this file."""
    with hydra_initialized():
        yield


@pytest.fixture(scope="module")
def default():
    """Return the composed config without overrides."""
    return compose("config")


def compose_config(*overrides):
    """Return the composed config with these overrides."""
    return compose("config", list(overrides))


def with_values(config, **values):
    """Return a copy of the config with these values; in the keys `__` stands for a dot."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config


def test_the_default_config_has_the_documented_values(default):
    config = check(default)
    assert isinstance(config, Config)
    assert (config.batches, config.seed, config.device.value, config.threads) == ("auto", 0, "auto", "auto")
    assert (config.freeze.patterns, config.freeze.keep, config.freeze.buffers.value) == (["@head"], [], "live")
    assert config.model.build["_target_"] == "torchvision.models.resnet18"
    assert config.model.build["num_classes"] == config.model.classes
    assert config.method == {"_target_": "runner.methods.requires_grad.RequiresGrad", "clean": False}


def test_check_does_not_change_the_config(default):
    before = OmegaConf.to_container(default, resolve=False)
    check(default)
    assert OmegaConf.to_container(default, resolve=False) == before


# Unknown keys


@pytest.mark.parametrize("level", ["", "freeze.", "groups."])
def test_an_unknown_key_is_an_error_at_every_level_even_with_a_plus(level):
    with pytest.raises(ConfigError, match=rf"{level}typo: no such key"):
        check(compose_config(f"+{level}typo=1"))


def test_other_keys_of_the_model_are_arguments_of_its_builder():
    assert check(compose_config("++model.drop_rate=0.5")).model.build["drop_rate"] == 0.5
    assert check(compose_config("model=timm", "model.name=vit")).model.build["name"] == "vit"


def test_a_key_of_the_model_that_is_not_there_yet_is_answered_with_how_to_add_it():
    assert unknown_key_message("model.xyzzy").endswith("an argument of the model's builder is given as ++model.xyzzy=...")


@pytest.mark.parametrize(
    ("key", "meant"), [("lr", "groups.lr or optimizer.lr"), ("keep", "freeze.keep or sweep.keep"), ("share", "sweep.share")]
)
def test_the_end_of_a_key_leads_to_the_keys_that_end_in_it(key, meant):
    assert unknown_key_message(key) == f"{key}: no such key; did you mean {meant}?"


@pytest.mark.parametrize("model", ["torchvision", "timm", "huggingface"])
def test_weights_that_are_a_file_are_the_checkpoint_of_the_model_without_weights(model):
    Path("weights.pth").write_bytes(b"")
    model = check(compose_config(f"model={model}", "model.name=a", "model.weights=weights.pth")).model
    assert (model.checkpoint, model.build["weights"]) == ("weights.pth", False)
    model = check(compose_config("++model.weights=weights.pth")).model  # another builder takes what it takes
    assert (model.checkpoint, model.build["weights"]) == (None, "weights.pth")


@pytest.mark.parametrize("vocab_size", [16, 64])
def test_synthetic_tokens_are_below_the_vocabulary_of_the_models_config(vocab_size):
    gpt2 = f"model.config={{model_type: gpt2, vocab_size: {vocab_size}}}"
    config = check(compose_config("model=huggingface", "data=tokens", gpt2))
    assert config.data["fields"]["input_ids"]["below"] == config.model.build["config"]["vocab_size"] == vocab_size


def test_synthetic_labels_are_below_the_number_of_labels_of_the_models_config():
    bert = "model.config={model_type: bert, num_labels: 7}"
    assert check(compose_config("model=huggingface", "data=masks", bert)).data["fields"][1]["below"] == 7


def test_a_value_may_refer_to_a_key_of_the_users_own_in_the_model(monkeypatch):
    monkeypatch.setenv("WEIGHTS", "weights.pth")
    Path("weights.pth").write_bytes(b"")
    own = (
        "++model.arch=resnet18",
        "++model.build.model_name=${model.arch}",
        "++model.depth=${model.width}",
        "++model.width=3",
    )
    build = check(compose_config("model=custom", "model.build._target_=my.Net", *own)).model.build
    assert build == {"_target_": "my.Net", "model_name": "resnet18", "arch": "resnet18", "depth": 3, "width": 3}
    model = check(compose_config("model=timm", "model.name=a", "model.weights=${oc.env:WEIGHTS}")).model
    assert (model.checkpoint, model.build["weights"]) == ("weights.pth", False)


def test_a_wrong_reference_names_the_key_where_the_user_wrote_it():
    with pytest.raises(ConfigError, match=r"^model.name: Interpolation key 'model.nothing' not found$"):
        check(compose_config("model=timm", "model.name=${model.nothing}"))


def test_two_files_of_weights_are_refused():
    Path("weights.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"model.weights is the file .* and model.checkpoint is b; give one of them"):
        check(compose_config("model=timm", "model.name=a", "model.weights=weights.pth", "model.checkpoint=b"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=timm", "model.name=a"], r"model=timm needs timm; install it with: pip install 'freeze-runner\[timm\]'"),
        (["model=huggingface"], "model=huggingface needs transformers; install it with: .*freeze-runner.huggingface.'"),
        (
            ["model.then=[{_target_: peft.get_peft_model}]"],
            r"model.then\[0\]._target_=peft.get_peft_model needs peft; install it with: .*huggingface",
        ),
    ],
)
def test_a_library_that_is_not_installed_is_refused_with_the_extra_that_has_it(overrides, message, monkeypatch):
    monkeypatch.setattr("runner.config.checks.machine.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=message):
        check(compose_config(*overrides))


@pytest.mark.parametrize("directive", ["_convert_=all", "_recursive_=false", "_recursive_=[1]", "_convert_={}"])
@pytest.mark.parametrize("node", ["optimizer", "model.build", "task"])
def test_an_unsupported_directive_of_hydra_is_an_error(node, directive):
    with pytest.raises(ConfigError, match=rf"^{node}\.{directive.split('=')[0]} is not supported; remove it"):
        check(compose_config(f"++{node}.{directive}"))


def test_an_unknown_key_in_a_list_is_an_error(default):
    with pytest.raises(ConfigError, match="typo"):
        check(with_values(default, groups__lr=[{"pattern": "fc", "lr": 0.1, "typo": 1}]))


@pytest.mark.parametrize(
    ("key", "similar"),
    [("batchs", "batches"), ("Seed", "seed"), ("freeze__pattern", "freeze.patterns"), ("groups__name", "groups.names")],
)
def test_the_error_for_an_unknown_key_names_a_similar_key(default, key, similar):
    with pytest.raises(ConfigError, match=rf"no such key; did you mean {similar}"):
        check(with_values(default, **{key: 1}))


@pytest.mark.parametrize("node", ["model.build", "method", "optimizer", "scheduler", "task", "data", "groups.cut"])
def test_a_node_with_a_target_accepts_new_keys(default, node):
    config = check(with_values(default, **{f"{node}.new": 1}))
    for part in node.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    assert config["new"] == 1


def test_known_keys_returns_the_keys_of_the_composed_config(default):
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
def test_a_value_of_the_wrong_type_is_an_error_that_begins_with_the_key(default, key, value):
    with pytest.raises(ConfigError, match=f"^{key.replace('__', '.')}"):
        check(with_values(default, **{key: value}))


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
def test_a_value_out_of_range_is_an_error_that_begins_with_the_key(default, key, value):
    with pytest.raises(ConfigError, match=f"^{key.replace('__', '.')}"):
        check(with_values(default, **{key: value}))


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
def test_a_value_at_the_end_of_its_range_is_accepted(default, key, value):
    check(with_values(default, **{key: value}))


# Missing values


def test_each_missing_value_is_an_error_until_none_is_missing():
    config, named = compose_config("model=custom", "data=image_folder", "model.input=[3,8,8]"), []
    values = {"model.build._target_": "my.Net", "data.root": "."}
    for _ in values:
        with pytest.raises(ConfigError, match=r"(\S+) is missing; give \1=\.\.\.") as caught:
            check(config)
        named.append(str(caught.value).split(" ")[0])
        config = with_values(config, **{named[-1]: values[named[-1]]})
    assert sorted(named) == sorted(values)
    assert check(config).model.build == {"_target_": "my.Net"}


def test_a_missing_value_in_a_list_is_an_error(default):
    with pytest.raises(ConfigError, match=r"groups\.lr\[0\]\.lr is missing"):
        check(with_values(default, groups__lr=[{"pattern": "fc"}]))


# Patterns


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        *((key, "re:(") for key in ("freeze__patterns", "freeze__keep", "groups__names", "model__head")),
        *(("freeze__patterns", text) for text in ("", " fc", "a..b", "a**", "re:", "type:1", "@tail")),
    ],
)
def test_a_malformed_pattern_is_an_error_that_begins_with_the_key(default, key, pattern):
    with pytest.raises(ConfigError, match=f"^{key.replace('__', '.')}: "):
        check(with_values(default, **{key: [pattern]}))


def test_a_malformed_pattern_of_a_learning_rate_is_an_error(default):
    with pytest.raises(ConfigError, match=r"^groups\.lr\[0\]\.pattern: "):
        check(with_values(default, groups__lr=[{"pattern": "re:(", "lr": 0.1}]))


@pytest.mark.parametrize("pattern", ["fc", "re:.*bias", "type:Linear", "@head", "**"])
def test_the_same_entry_in_patterns_and_in_keep_is_an_error(default, pattern):
    with pytest.raises(ConfigError, match=r"is in freeze.patterns and in freeze.keep"):
        check(with_values(default, freeze__patterns=["layer1", pattern], freeze__keep=[pattern]))


# The hash


def leaves(node, path=()):
    """Yield (path, value) for every value in a nested config that is not a mapping or list, or that is an empty one."""
    if isinstance(node, dict) and node:
        return [leaf for key, value in node.items() for leaf in leaves(value, (*path, key))]
    if isinstance(node, list) and node:
        return [leaf for index, value in enumerate(node) for leaf in leaves(value, (*path, index))]
    return [(path, node)]


def other_value(path, value):
    """Return another value that the key may have."""
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
    """Return a copy of a nested config with another value at a path."""
    if not path:
        return value
    key, *rest = path
    items = node.items() if isinstance(node, dict) else enumerate(node)
    built = [(name, with_leaf(item, rest, value) if name == key else item) for name, item in items]
    return dict(built) if isinstance(node, dict) else [item for _, item in built]


def as_json(node):
    """Return the config as JSON with sorted keys, by an independent implementation."""
    if isinstance(node, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {as_json(node[key])}" for key in sorted(node)) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(as_json(item) for item in node) + "]"
    return json.dumps(node)


def test_the_keys_that_are_not_hashed_are_the_documented_ones():
    text = (ROOT / "docs" / "config.md").read_text()
    (sentence,) = re.findall(r"where and how a run is carried out: (.*?)\.\s", text, re.S)
    reserved = ["tracker", "checkpoint"]  # keys that do not exist yet
    assert sorted(NOT_HASHED) == sorted([*re.findall(r"`([\w.]+)`", sentence), *reserved])


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
def test_the_hash_equals_that_of_an_independent_implementation(overrides):
    config = compose_config(*overrides)
    node = OmegaConf.to_container(config, resolve=True)
    hashed = {key: value for key, value in node.items() if key not in NOT_HASHED}
    assert config_hash(config) == hashlib.sha256(as_json(hashed).encode()).hexdigest()[:8]


@pytest.mark.parametrize("key", ["strict", "save", "plan"])
def test_the_hash_does_not_depend_on_where_and_how_a_run_is_carried_out(default, key):
    assert config_hash(with_values(default, **{key: True})) == config_hash(default)


def test_the_hash_does_not_depend_on_the_hydra_node(default):
    with_hydra = compose("config", return_hydra_config=True)
    assert "hydra" in with_hydra
    assert config_hash(with_hydra) == config_hash(default)


def test_the_hash_does_not_depend_on_the_order_of_the_overrides():
    overrides = ["method=zero_lr", "freeze=fc", "seed=3", "+optimizer.nesterov=true", "+optimizer.dampening=0"]
    assert config_hash(compose_config(*overrides)) == config_hash(compose_config(*reversed(overrides)))


def test_the_hash_is_the_same_for_different_overrides_that_give_the_same_config(default):
    assert config_hash(compose_config("freeze=none", "freeze.patterns=['@head']", "batches=auto")) == config_hash(default)


def test_the_hash_depends_on_the_order_of_a_list(default):
    first, second = (config_hash(with_values(default, freeze__patterns=names)) for names in (["a", "b"], ["b", "a"]))
    assert first != second


def test_the_hash_depends_on_every_hashed_value():
    config = compose_config("experiment=module_groups", "model=mlp", "freeze.keep=[conv1]", "clip=1.5")
    node = OmegaConf.to_container(config, resolve=True)
    hashed = {key: value for key, value in node.items() if key not in NOT_HASHED}
    hashed["data"].pop("workers", None)
    paths = leaves(hashed)
    assert len(paths) > 25
    hashes = [config_hash(OmegaConf.create(with_leaf(node, path, other_value(path, value)))) for path, value in paths]
    assert len({config_hash(config), *hashes}) == len(paths) + 1


def test_the_hash_depends_on_a_new_key_of_a_node_with_a_target(default):
    assert config_hash(with_values(default, **{"optimizer.nesterov": False})) != config_hash(default)


def test_config_hash_does_not_change_the_config(default):
    before = OmegaConf.to_container(default, resolve=False)
    config_hash(default)
    assert OmegaConf.to_container(default, resolve=False) == before


# The files in conf/


FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)


def missing_in(path):
    """Return the dotted keys whose value a file leaves to the user (`???`)."""
    plain = OmegaConf.to_container(OmegaConf.load(CONF / path), resolve=False)
    prefix = () if path.parts[0] == "experiment" else path.parent.parts
    return {".".join(map(str, key_path)) for key_path, value in leaves(plain, prefix) if value == "???"}


PLUGINS = {"joblib": "joblib", "ray": "ray", "slurm": "submitit"}  # by launcher: the Hydra plugin that its file needs


def sets_of_files():
    """Return sets of files to compose together, because composing is slow: one file of each group, each file once.

    Files of `experiment` choose other files, so each is a set of its own. Launchers whose plugin is not installed are left
    out; the extra `all` installs all plugins.
    """
    groups = {str(path.parent): [] for path in FILES}
    for path in FILES:
        plugin = PLUGINS.get(path.stem) if path.parent.name == "launch" else None
        if plugin is None or find_spec(f"hydra_plugins.hydra_{plugin}_launcher"):
            groups[str(path.parent)].append(path)
    experiments = groups.pop("experiment", [])
    sets = [[path for path in files if path] for files in zip_longest(*groups.values())]
    return sets + [[path] for path in experiments]


@pytest.mark.parametrize("files", sets_of_files(), ids=lambda files: " ".join(map(str, files)))
def test_every_file_can_be_composed_and_each_value_that_it_lacks_is_named(files):
    choices = [f"{path.parent}={path.stem}" for path in files]
    config, named = compose_config(*choices, *(["groups.names=[fc]"] if "groups=module" in choices else [])), set()
    missing = {key for path in files for key in missing_in(path)}
    for _ in missing:
        with pytest.raises(ConfigError, match=r"(\S+) is missing; give \1=\.\.\.") as caught:
            check(config)
        named.add(key := str(caught.value).split(" ")[0])
        values = {"model.input": [8], "model.classes": 4, "schedule.step": 2, "data.root": "."}
        config = with_values(config, **{key: values.get(key, "given.Name")})
    if "data=digits" in choices:
        config = with_values(config, model__input=[64])
    if "data=image_folder" in choices:
        config = with_values(config, model__input=[3, 8, 8])
    check(config)
    assert named == missing


@pytest.mark.parametrize("group", ["model", "optimizer", "scheduler", "task", "data"])
def test_every_group_that_builds_an_object_has_a_custom_file_without_a_target(group):
    assert Path(group, "custom.yaml") in FILES
    key = "model.build._target_" if group == "model" else f"{group}._target_"
    assert key in missing_in(Path(group, "custom.yaml"))


def test_an_unknown_choice_is_an_error_of_hydra():
    with pytest.raises(HydraException):
        compose_config("method=no_such_method")


# Imports


@pytest.mark.parametrize("module", ["runner", "runner.__main__", "runner.config", "runner.report"])
def test_importing_these_modules_does_not_import_torch_or_pandas(module):
    code = f"import sys, {module}; print([name for name in ('torch', 'torchvision', 'pandas') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(runner.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(("override", "imports_torch"), [("optimizer.lr=0.5", False), ("++optimizer.dampening=0.1", True)])
def test_torch_is_imported_only_for_a_node_with_other_keys_than_its_file(override, imports_torch):
    code = (
        "import sys\n"
        "from hydra import compose\n"
        "from runner.config.check import check\n"
        "from runner.config.compose import hydra_initialized\n"
        "with hydra_initialized():\n"
        f"    check(compose('config', ['model=mlp', {override!r}, 'hydra.job.name=x'], return_hydra_config=True))\n"
        "print('torch' in sys.modules)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (process.stdout, process.stderr) == (f"{imports_torch}\n", "")
