"""Every method of `conf/method` conforms, as `runner.testing.conforms` checks it; what breaks a claim does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from omegaconf import OmegaConf

from runner.config.build import build, locate
from runner.config.schema import CONF
from runner.errors import ConfigError
from runner.methods.base import TRAPS, FreezingMethod
from runner.methods.exclude import Exclude
from runner.methods.zero_grad import ZeroGrad
from runner.testing import claims, conforms
from tests.conftest import ROOT
from tests.in_memory import run_experiment

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
# Options with which a method leaks under fewer traps.
VARIANTS = {"requires_grad": {"clean": True}, "zero_lr": {"guard": True}}


def method_node(name: str) -> dict[str, object]:
    """Return the content of `conf/method/NAME.yaml`, with values in place of interpolations."""
    node = OmegaConf.create({"method": OmegaConf.load(CONF / "method" / f"{name}.yaml")})
    return OmegaConf.to_container(node, resolve=True)["method"]


def build_method(name: str) -> FreezingMethod:
    """Return the method of `conf/method/NAME.yaml` with its default options."""
    return build(method_node(name), "method")


def test_every_trap_has_overrides():
    assert set(claims.OVERRIDES_OF_TRAPS) == set(TRAPS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_conforms(name):
    node = method_node(name)
    conforms(locate(node.pop("_target_"), "method"), **node)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_a_method_conforms_and_leaks_under_fewer_traps(name):
    method = build_method(name)
    conforms(type(method), **VARIANTS[name])
    assert type(method)(**VARIANTS[name]).leaks_under < method.leaks_under


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("freeze", ["backbone", "all"])
def test_a_method_works_with_a_frozen_prefix(name, freeze):
    assert run_experiment(f"method={name}", f"freeze={freeze}").rows


class Undocumented(Exclude):
    pass


class ClaimsATrapThatDoesNotExist(Exclude):
    """Keeps frozen parameters out of the optimizer, and claims to leak on Fridays."""

    leaks_under = frozenset({"friday"})


class ClaimsToLeak(Exclude):
    """Keeps frozen parameters out of the optimizer, and claims to leak under a scheduler."""

    leaks_under = frozenset({"scheduler"})


class ClaimsToHold(ZeroGrad):
    """Sets gradients of frozen parameters to zero, and claims that this always holds."""

    leaks_under = frozenset()


class ClaimsToLeakAtOnce(Exclude):
    """Keeps frozen parameters out of the optimizer, and claims that they leak in every step."""

    leaks_under = frozenset(TRAPS)


class LeaksAsBuilt(FreezingMethod):
    """Freezes nothing, and sets the flags that the builder set to False back to True."""

    def prepare(self, model, selection, undo):
        return model.requires_grad_(True)


class LeavesTheFlags(FreezingMethod):
    """Sets the flags of the frozen parameters to False, and never puts them back."""

    def prepare(self, model, selection, undo):
        for parameter in selection.parameters.values():
            parameter.requires_grad_(False)
        return model


class LeavesHooks(Exclude):
    """Keeps frozen parameters out of the optimizer, and leaves hooks in backward that do nothing."""

    def prepare(self, model, selection, undo):
        model.norm.bias.register_post_accumulate_grad_hook(lambda parameter: None)
        model.head.register_full_backward_hook(lambda *args: None)
        return model


class DividesTheRate(Exclude):
    """Keeps frozen parameters out of the optimizer, and divides the learning rate by the number of groups."""

    def groups(self, groups, selection):
        groups = super().groups(groups, selection)
        return [{**group, "lr": 0.1 / len(groups)} for group in groups]


class ScalesTheOthers(Exclude):
    """Keeps frozen parameters out of the optimizer, and halves the learning rate of all others."""

    def groups(self, groups, selection):
        return [{**group, "lr": 0.05} for group in super().groups(groups, selection)]


class FreezesNothing(FreezingMethod):
    """Finds a reason to skip every model that it is given, so that it never freezes."""

    def skip(self, model, selection):
        return "not today"


class Raises(FreezingMethod):
    """Has a bug in the stage in which the parameter groups are made."""

    def groups(self, groups, selection):
        return groups["frozen"]


@pytest.mark.parametrize(
    ("claim", "method", "sentence"),
    [
        (claims.known_traps, ClaimsATrapThatDoesNotExist, "Not among them: friday."),
        (claims.traps, ClaimsToLeak, "scheduler (a scheduler that raises the learning rate of a group from 0"),
        (claims.traps, ClaimsToHold, "expected held, was leaked: body.weight, frozen, leaked ("),
        (claims.undone, LeavesTheFlags, "Not restored: body.bias, body.weight, norm.bias and norm.weight."),
        (claims.undone, LeavesHooks, "Not restored: head and norm.bias."),
        (claims.same_bits_in_any_groups, DividesTheRate, "Not with groups=one."),
        (claims.same_bits, ScalesTheOthers, "Not with freeze=backbone optimizer=sgd."),
        (claims.holds, ClaimsToLeakAtOnce, "freeze=backbone freeze.buffers=live: body.weight, frozen, held."),
        (claims.as_built, LeaksAsBuilt, "body.weight, frozen, leaked (gradient)."),
    ],
)
def test_a_claim_that_does_not_hold_is_told_with_what_is_against_it(claim, method, sentence):
    path = f"{method.__module__}.{method.__qualname__}"
    assert any(sentence in found for found in claim(claims.Candidate(method, {}, {"_target_": path})))


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (FreezesNothing, "under no other. It skips everything that was tried: .*not today"),
        (Raises, "under no other. TypeError: list indices must be integers"),
    ],
)
def test_what_does_not_conform_is_refused_with_its_claims(method, sentence):
    with pytest.raises(AssertionError, match=sentence) as caught:
        conforms(method)
    assert str(caught.value).startswith(f"{method.__module__}.{method.__name__} does not conform:\n")


def test_only_the_claims_that_do_not_hold_are_told():
    with pytest.raises(AssertionError) as caught:
        conforms(Undocumented)
    (told,) = str(caught.value).splitlines()[1:]
    assert told == "  Its docstring says what it does. Undocumented has no docstring of more than five words."


def test_the_error_of_a_method_is_the_cause_of_the_assertion():
    with pytest.raises(AssertionError) as caught:
        conforms(Raises)
    assert isinstance(caught.value.__cause__, TypeError)


def test_what_a_config_cannot_name_is_refused():
    class Local(Exclude):
        """Keeps frozen parameters out of the optimizer, within a function."""

    with pytest.raises(ConfigError, match="define the class at the top of a module"):
        conforms(Local)
    with pytest.raises(ConfigError, match="a Exclude given; give a subclass of FreezingMethod"):
        conforms(Exclude())
    with pytest.raises(ConfigError, match="dict given"):
        conforms(dict)


@pytest.mark.long
def test_the_suite_of_another_package_can_call_it():
    code = '''
        from runner import FreezingMethod
        from runner.testing import conforms


        class Pin(FreezingMethod):
            """Does not give frozen parameters to the optimizer, as a method of another package might do."""

            def groups(self, groups, selection):
                return [{**group, "params": [p for p in group["params"] if p not in selection]} for group in groups]


        class PinAndClaim(Pin):
            """Does not give frozen parameters to the optimizer, and claims that they leak under weight decay."""

            leaks_under = frozenset({"weight_decay"})


        def test_pin_conforms():
            conforms(Pin)


        def test_pin_and_claim_conforms():
            conforms(PinAndClaim)
    '''
    Path("test_theirs.py").write_text(dedent(code))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_theirs.py"]
    process = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in process.stdout
    assert "weight_decay (an optimizer with weight decay): expected leaked, was held." in process.stdout
