"""`detach` and `cached_prefix` train models of tokens and mappings to the same bits as `requires_grad`."""

from __future__ import annotations

import pytest

from runner.errors import SkippedError
from runner.proof.verdict import run_verdict
from tests.in_memory import run_experiment
from tests.methods.test_cached_prefix import assert_same_bits, notes_of_method
from tests.methods.token_models import overrides

CASES = {
    "embedding and first block": overrides("Language", "own_loss", "freeze.patterns=[embed,'blocks.0']"),
    "all but the head": overrides("Language", "own_loss", "freeze.patterns=[embed,blocks]"),
    "a mapping in a mapping": overrides("Classifier", "class_loss", "freeze.patterns=[encoder]", nested=True),
    "only the embedding": overrides("Classifier", "class_loss", "freeze.patterns=['encoder.embed']", nested=True),
}
TIED = overrides("Language", "own_loss", "model.build.tied=true", "freeze.patterns=[embed,'blocks.0']")
TWO_TENSORS = overrides("Pair", "class_loss", "freeze.patterns=[both]", nested=True)


def share_of_forward_flops(cached, plain):
    return cached.record["cost"]["flops_forward"] / plain.record["cost"]["flops_forward"]


@pytest.mark.parametrize("name", CASES)
def test_the_weights_have_the_same_bits_as_with_requires_grad(name):
    plain, detached, cached = (
        run_experiment(f"method={method}", *CASES[name], "data.epochs=3")
        for method in ("requires_grad", "detach", "cached_prefix")
    )
    assert_same_bits(plain, detached)
    assert_same_bits(plain, cached)
    assert run_verdict(cached.rows) == run_verdict(detached.rows) == "held"
    assert all(detached.model.get_parameter(name).grad is None for name in detached.selection.parameters)


@pytest.mark.parametrize("name", ["embedding and first block", "all but the head", "a mapping in a mapping"])
def test_later_epochs_skip_the_frozen_blocks(name):
    plain, cached = (
        run_experiment(f"method={method}", *CASES[name], "data.epochs=3") for method in ("requires_grad", "cached_prefix")
    )
    assert share_of_forward_flops(cached, plain) < 0.9


def test_an_output_beside_none_in_a_mapping_is_cached():
    cached = run_experiment("method=cached_prefix", *CASES["a mapping in a mapping"], "data.epochs=2")
    note = "the outputs of encoder are cached, and what follows it runs: head.0, a Dropout, is not held in eval mode"
    assert any(each.startswith(note) for each in cached.notes)


def test_a_frozen_weight_that_the_output_layer_uses_again_is_cached_but_not_detached():
    plain, cached = (
        run_experiment(f"method={method}", *TIED, "data.epochs=3") for method in ("requires_grad", "cached_prefix")
    )
    assert_same_bits(plain, cached)
    assert share_of_forward_flops(cached, plain) < 0.9
    with pytest.raises(SkippedError, match=r"embed\.weight is frozen, but no single module's output separates"):
        run_experiment("method=detach", *TIED, "data.epochs=3")


def test_of_two_tensors_both_are_detached_and_the_first_is_cached():
    plain, detached, cached = (
        run_experiment(f"method={method}", *TWO_TENSORS, "data.epochs=2")
        for method in ("requires_grad", "detach", "cached_prefix")
    )
    assert_same_bits(plain, detached)
    assert_same_bits(plain, cached)
    reason = "both does not return one tensor with one row per sample"
    assert f"the outputs of both.one are cached, and what follows it runs: {reason}" in cached.notes


@pytest.mark.parametrize("memory_mb", [0, 0.001, 1024])
def test_batches_of_several_lengths_are_cached_each_at_its_length(memory_mb):
    given = (*CASES["embedding and first block"], "data.lengths=[6,4,6]", "data.epochs=3")
    plain = run_experiment("method=requires_grad", *given)
    cached = run_experiment("method=cached_prefix", f"method.memory_mb={memory_mb}", *given)
    assert_same_bits(plain, cached)
    assert share_of_forward_flops(cached, plain) < 0.9
    assert notes_of_method(cached) == notes_of_method(plain)
