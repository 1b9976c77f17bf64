"""A checkpoint is loaded before the calls of `model.then`, or after them where it fits only then."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.assemble.checkpoints import loaded_and_called
from runner.config.schema import Model
from runner.errors import ConfigError
from runner.tensors import same_bits
from runner.training.pretrained.loaded import Loaded

HERE = "tests.assemble.test_checkpoints"


class Net(nn.Module):
    """Two layers."""

    def __init__(self, width: int = 2):
        super().__init__()
        self.body, self.head = nn.Linear(2, width), nn.Linear(width, 3)


def adapted(model: nn.Module) -> nn.Module:
    """Return a module around the model, with an adapter behind its head."""
    model.head = nn.Sequential(model.head, nn.Linear(3, 3))
    return nn.ModuleDict({"inner": model})


def shifted(model: nn.Module) -> nn.Module:
    """Return `adapted(model)` with a buffer that shows the values of the body when it was called."""
    model.register_buffer("seen", model.body.weight.detach().clone(), persistent=False)
    return adapted(model)


def node(**options: object) -> Model:
    """Return the config's node of a model with the checkpoint `model.pt` and one call after the build."""
    return Model(build={}, checkpoint="model.pt", **{"then": [{"_target_": f"{HERE}.adapted"}], **options})


def saved(model: nn.Module) -> dict[str, torch.Tensor]:
    """Save the values of a model as `model.pt`, and return them."""
    torch.save(model.state_dict(), "model.pt")
    return model.state_dict()


@pytest.mark.parametrize("new", [None, frozenset(), frozenset({"head.weight", "head.bias"})])
def test_a_checkpoint_of_the_model_as_built_is_loaded_before_the_calls(new):
    values = saved(Net())
    loaded = loaded_and_called(Loaded(Net(), new), node())
    assert same_bits(loaded.model["inner"].body.weight, values["body.weight"])
    assert same_bits(loaded.model["inner"].head[0].weight, values["head.weight"])
    assert (loaded.new, loaded.notes) == (frozenset(), ())


@pytest.mark.parametrize("new", [None, frozenset(), frozenset({"head.weight", "head.bias"})])
def test_a_checkpoint_of_the_model_after_the_calls_is_loaded_after_them(new):
    values = saved(adapted(Net()))
    loaded = loaded_and_called(Loaded(Net(), new), node())
    assert all(same_bits(each, values[name]) for name, each in loaded.model.state_dict().items())
    assert loaded.new == frozenset()
    assert loaded.notes == ("model.checkpoint is loaded after model.then, whose model it fits",)


@pytest.mark.parametrize(
    ("of_builder", "new"),
    [
        (None, {"inner.head.1.weight", "inner.head.1.bias"}),
        (frozenset({"head.weight"}), {"inner.head.1.weight", "inner.head.1.bias"}),
        (frozenset({"body.weight"}), {"inner.head.1.weight", "inner.head.1.bias"}),
    ],
)
def test_what_the_calls_add_is_new_where_the_checkpoint_has_it_for_other_classes(of_builder, new):
    values = dict(adapted(Net()).state_dict())
    torch.save(values | {"inner.head.1.weight": torch.ones(6, 3), "inner.head.1.bias": torch.ones(6)}, "model.pt")
    assert loaded_and_called(Loaded(Net(), of_builder), node(classes=3)).new == new


def test_what_a_refused_load_has_written_is_taken_back_before_the_calls():
    model = Net()
    built = model.body.weight.detach().clone()
    other = {**model.state_dict(), "body.weight": torch.ones(2, 2)}
    torch.save({f"inner.{name}": each for name, each in other.items()} | {"other": torch.ones(2)}, "model.pt")
    with pytest.raises(ConfigError):
        loaded_and_called(Loaded(model), node(then=[{"_target_": f"{HERE}.shifted"}]))
    assert same_bits(model.seen, built)


def test_what_fits_neither_before_nor_after_the_calls_is_refused_as_before_them():
    saved(Net(width=5))
    with pytest.raises(ConfigError) as without:
        loaded_and_called(Loaded(Net()), node(then=[]))
    with pytest.raises(ConfigError) as refused:
        loaded_and_called(Loaded(Net()), node())
    assert str(refused.value) == str(without.value)
