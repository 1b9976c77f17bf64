"""Flags that are read again say what was frozen and unfrozen in between."""

from __future__ import annotations

from torch import nn

from runner.freezing.flags import Flags


def net():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_flags_that_did_not_change_say_nothing():
    flags = Flags(net())
    assert flags.changes() is None
    assert not flags.are_all_frozen


def test_what_is_frozen_and_what_is_unfrozen_since_the_last_reading_is_told_once():
    model = net()
    model[0].requires_grad_(False)
    flags = Flags(model)
    model[0].bias.requires_grad_(True)
    model[2].weight.requires_grad_(False)
    changes = flags.changes()
    assert list(changes.frozen.parameters) == ["2.weight"]
    assert list(changes.trainable.parameters) == ["0.bias"]
    assert flags.changes() is None


def test_a_flag_that_is_ignored_counts_as_unchanged_until_it_is_read():
    model = net()
    flags = Flags(model)
    model[2].requires_grad_(False)
    assert flags.changes(ignored=model[2].parameters()) is None
    assert list(flags.changes().frozen.parameters) == ["2.weight", "2.bias"]


def test_buffers_change_sides_with_the_last_parameter_of_their_module():
    model = net()
    flags = Flags(model, buffers="frozen")
    model[1].weight.requires_grad_(False)
    assert not flags.changes().frozen.buffers
    model[1].bias.requires_grad_(False)
    assert list(flags.changes().frozen.buffers) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_parameters_that_the_model_gains_or_loses_are_no_change():
    model = net()
    flags = Flags(model)
    model[2].requires_grad_(False)
    model[2] = nn.Linear(4, 2).requires_grad_(False)
    changes = flags.changes()
    assert changes is None or not (changes.frozen.parameters or changes.trainable.parameters)


def test_a_model_without_parameters_is_not_frozen():
    assert not Flags(nn.ReLU()).are_all_frozen
    assert Flags(nn.Linear(1, 1).requires_grad_(False)).are_all_frozen
