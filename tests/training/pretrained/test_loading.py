"""The tensors of a checkpoint are put into a model exactly, and what does not fit is listed, or refused."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import detection, segmentation

from runner.errors import ConfigError
from runner.tensors import same_bits
from runner.training.models import MLP
from runner.training.pretrained.loading import load_into


class Remembers(nn.Linear):
    """A linear layer with state that is no tensor."""

    def __init__(self):
        super().__init__(2, 2)
        self.seen = 0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


class Versioned(nn.Linear):
    """A linear layer that doubles the weight of a checkpoint of its first version, and takes its bias under an old name."""

    _version = 2

    def __init__(self):
        super().__init__(2, 2)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 1) < 2:
            state_dict[f"{prefix}weight"] = 2 * state_dict[f"{prefix}weight"]
        if f"{prefix}shift" in state_dict:
            state_dict[f"{prefix}bias"] = state_dict.pop(f"{prefix}shift")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Grows(nn.Module):
    """A buffer that takes the size that it has in a checkpoint."""

    def __init__(self, size=2):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("bank", torch.randn(size))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.bank = torch.empty_like(state_dict[f"{prefix}bank"])
        super()._load_from_state_dict(state_dict, prefix, *args)


class WithPositions(nn.Module):
    """A linear layer, and a buffer that a `state_dict` does not have."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.register_buffer("positions", torch.arange(3), persistent=False)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight


class SharesMemory(nn.Module):
    """Two parameters that are not the same, in the same memory."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.randn(3))
        self.other = nn.Parameter(self.one.detach())


MODELS = {
    "resnet18": torchvision.models.resnet18,
    "mlp, with tied weights and BatchNorm": lambda: MLP([4]),
    "parametrizations": lambda: parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(3, 2))),
    "extra state": lambda: nn.Sequential(Remembers(), nn.Linear(2, 2)),
    "a loader of its own, with a version": lambda: nn.Sequential(Versioned()),
    "a buffer that is not persistent": WithPositions,
    "a lazy module": lambda: nn.Sequential(nn.LazyLinear(2)),
}


def trained(model: nn.Module) -> nn.Module:
    """Return the model with other values, lazy modules initialised, and with other extra state."""
    if isinstance(model[0] if isinstance(model, nn.Sequential) else None, nn.LazyLinear):
        model(torch.ones(1, 3))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if isinstance(tensor, torch.Tensor):
                tensor.add_(1)
    for module in model.modules():
        if isinstance(module, Remembers):
            module.seen = 5
    return model


def is_equal(model: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have the same `state_dict`, bit by bit."""
    one, two = model.state_dict(), other.state_dict()
    is_same = (same_bits(one[n], two[n]) if isinstance(one[n], torch.Tensor) else one[n] == two[n] for n in one)
    return one.keys() == two.keys() and all(is_same)


def refusal(model: nn.Module, tensors: dict, **options: object) -> str:
    """Return the message with which tensors are refused."""
    with pytest.raises(ConfigError) as refused:
        load_into(model, tensors, **options)
    assert len(str(refused.value)) <= 370
    return str(refused.value)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_a_model_gets_every_bit_of_a_state_dict_as_with_load_state_dict(build):
    source, model, oracle = trained(build()), build(), build()
    oracle.load_state_dict(source.state_dict())
    loaded = load_into(model, source.state_dict())
    assert is_equal(model, oracle)
    assert is_equal(model, source)
    assert (loaded.model, loaded.new, loaded.notes) == (model, frozenset(), ())


def test_a_loader_of_the_models_own_decides_about_sizes_and_old_names():
    model = Grows()
    assert load_into(model, Grows(5).state_dict()).new == frozenset()
    assert model.bank.shape == (5,)
    model, tensors = nn.Sequential(Versioned()), OrderedDict({"0.weight": torch.ones(2, 2), "0.shift": torch.ones(2)})
    assert load_into(model, tensors).new == frozenset()
    assert (model[0].weight.sum(), model[0].bias.sum()) == (8, 2)


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda name: f"module.{name}", "read without module."),
        (lambda name: f"_orig_mod.module.{name}", "read without _orig_mod.module."),
        (lambda name: f"model.{name}", "read without model."),
    ],
)
def test_a_beginning_that_all_names_have_and_the_model_lacks_is_removed_and_the_versions_stay(rename, said):
    source, model = trained(nn.Sequential(Versioned(), MLP([4]))), nn.Sequential(Versioned(), MLP([4]))
    wrapped = source.state_dict()
    tensors = OrderedDict((rename(name), each) for name, each in wrapped.items())
    tensors._metadata = {rename(name).removesuffix("."): each for name, each in wrapped._metadata.items()}
    assert load_into(model, tensors).notes == (f"model.checkpoint: the names in it are {said}",)
    assert is_equal(model, source)


def test_the_names_of_a_base_model_are_read_below_the_child_that_has_them():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.other = nn.Sequential(Versioned(), MLP([4])), nn.Linear(2, 2)

    source, model = trained(nn.Sequential(Versioned(), MLP([4]))), Whole()
    loaded = load_into(model, source.state_dict(), strict=False)
    assert is_equal(model.base, source)
    assert loaded.new == {"other.weight", "other.bias"}
    assert loaded.notes[0] == "model.checkpoint: the names in it are read below base"
    base = nn.Sequential(Versioned(), MLP([4]))
    loaded = load_into(base, model.state_dict(), strict=False)  # and the other way round
    assert is_equal(base, source)
    assert loaded.notes[0] == "model.checkpoint: the names in it are read without base."
    assert "2 not in the model: other.weight and other.bias" in loaded.notes[1]


def test_names_stay_as_they_are_where_two_children_fit_equally_well():
    towers = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    assert "0 of its 2 tensors fit the model" in refusal(towers, nn.Linear(2, 2).state_dict(), strict=False)


def test_a_compiled_model_takes_the_names_without_its_wrapper():
    source, model = trained(MLP([4])), torch.compile(MLP([4]))
    load_into(model, source.state_dict())
    assert is_equal(model._orig_mod, source)


def test_of_tied_weights_one_name_is_enough_and_of_memory_that_is_shared_too():
    for build, left_out in ((Tied, "embed.weight"), (Tied, "out.weight"), (SharesMemory, "other"), (SharesMemory, "one")):
        source, model = trained(build()), build()
        tensors = {name: each for name, each in source.state_dict().items() if name != left_out}
        assert load_into(model, tensors).new == frozenset()
        assert is_equal(model, source)


def test_what_a_loader_takes_under_an_old_name_is_not_new_where_the_module_lacks_something_else():
    class Scaled(Versioned):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    tensors = {"weight": torch.ones(2, 2), "shift": torch.ones(2)}
    assert load_into(Scaled(), tensors, strict=False).new == {"scale"}


def test_where_another_shape_is_left_out_the_versions_of_the_rest_still_count():
    source, model = trained(nn.Sequential(Versioned(), nn.Linear(2, 5))), nn.Sequential(Versioned(), nn.Linear(2, 3))
    load_into(model, source.state_dict(), classes=3)
    assert same_bits(model[0].weight, source[0].weight)


def test_few_names_alike_are_no_reason_to_read_the_others_differently():
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(2), "body": nn.Linear(2, 2)})
    assert "0 of its 10 tensors fit" in refusal(model, {f"{name}.weight": torch.ones(2) for name in "abcdefghij"})
    tensors = {**{f"layer.{number}": torch.ones(2) for number in range(9)}, "weight": torch.ones(2)}
    assert "not in the model: layer.0, " in refusal(model, tensors)


def test_a_tied_weight_that_is_missing_is_new_under_all_its_names():
    model = nn.ModuleDict({"tied": Tied(), "rest": nn.Linear(2, 2)})
    tensors = {name: each for name, each in model.state_dict().items() if name.startswith("rest")}
    assert load_into(model, tensors, strict=False).new == {"tied.embed.weight", "tied.out.weight"}


def test_a_buffer_that_is_no_longer_persistent_is_neither_missing_nor_unexpected():
    model, tensors = WithPositions(), {**WithPositions().state_dict(), "positions": torch.arange(3)}
    assert load_into(model, tensors) == load_into(model, WithPositions().state_dict())


@pytest.mark.parametrize("has_versions", [True, False])  # a torch file has them, a safetensors file does not
def test_all_of_a_batch_norm_that_a_file_lacks_is_new_and_its_counter_alone_is_not_missing(has_versions):
    model, tensors = MLP([4]), MLP([4]).state_dict()
    versions = tensors._metadata
    rest = OrderedDict((name, each) for name, each in tensors.items() if not name.startswith("norm."))
    uncounted = OrderedDict((name, each) for name, each in tensors.items() if not name.endswith("tracked"))
    uncounted._metadata = {**versions, "norm": {"version": 1}}  # of torch before 0.4.1
    if has_versions:
        rest._metadata = versions
    loaded = load_into(model, rest, strict=False)
    assert loaded.new == {f"norm.{name}" for name in model.norm.state_dict()}
    assert load_into(MLP([4]), uncounted if has_versions else dict(uncounted)).new == frozenset()


def test_what_is_missing_unexpected_or_of_another_shape_is_listed_and_refused():
    model, tensors = MLP([4], classes=3), {**MLP([5], classes=3).state_dict(), "extra": torch.ones(1)}
    del tensors["head.bias"]
    assert refusal(model, tensors) == (
        "model.checkpoint: 11 of its 13 tensors fit the model; 1 missing in it: head.bias; 1 not in the model: extra; "
        "1 of another shape: body.weight (32x5 in it, 32x4 in the model); model.strict=false loads what fits"
    )
    assert "1 missing in it: 0._extra_state" in refusal(
        nn.Sequential(Remembers(), nn.Linear(2, 2)),
        {f"{number}.{name}": torch.ones(size) for number in (0, 1) for name, size in (("weight", (2, 2)), ("bias", 2))},
    )


def test_with_strict_false_what_fits_is_loaded_and_the_rest_is_new_and_noted():
    source, model = trained(MLP([5], classes=3)), MLP([4], classes=3)
    before = model.body.weight.clone()
    loaded = load_into(model, source.state_dict(), strict=False)
    assert loaded.new == {"body.weight"}
    assert same_bits(model.body.weight, before)
    assert same_bits(model.head.weight, source.head.weight)
    (note,) = loaded.notes
    assert note == (
        "model.checkpoint: 12 of its 13 tensors fit the model; "
        "1 of another shape: body.weight (32x5 in it, 32x4 in the model)"
    )


@pytest.mark.long
@pytest.mark.parametrize("strict", [True, False])
def test_a_checkpoint_of_another_model_is_refused_and_the_message_counts_what_fits(strict):
    text = refusal(torchvision.models.vgg11(), torchvision.models.resnet18().state_dict(), strict=strict)
    assert "0 of its 122 tensors fit the model; 22 missing in it: " in text
    assert text.endswith("it is of another model, or only its library can load it")
    text = refusal(torchvision.models.resnet50(), torchvision.models.resnet18().state_dict())
    assert "98 of its 122 tensors fit the model; 165 missing in it: " in text


NO_WEIGHTS = {"weights": None, "weights_backbone": None}


@pytest.mark.long
@pytest.mark.parametrize(
    ("build", "head"),
    [
        (torchvision.models.resnet18, {"fc"}),
        (torchvision.models.squeezenet1_1, {"classifier.1"}),
        (lambda num_classes: segmentation.lraspp_mobilenet_v3_large(num_classes=num_classes, **NO_WEIGHTS), None),
        (lambda num_classes: detection.ssdlite320_mobilenet_v3_large(num_classes=num_classes, **NO_WEIGHTS), None),
        (
            lambda num_classes: detection.fasterrcnn_mobilenet_v3_large_320_fpn(num_classes=num_classes, **NO_WEIGHTS),
            {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"},
        ),
    ],
)
@pytest.mark.parametrize(("given", "classes"), [(7, 3), (3, 6)])
def test_another_number_of_classes_replaces_the_head_and_nothing_else(build, head, given, classes):
    source, model = build(num_classes=given), build(num_classes=classes)
    built = {name: each.clone() for name, each in model.state_dict().items()}
    loaded = load_into(model, source.state_dict(), classes=classes)
    wanted = {n for n, each in source.state_dict().items() if each.shape != built[n].shape}
    assert loaded.new == wanted
    assert head is None or {name.rpartition(".")[0] for name in wanted} == head
    for name, each in model.state_dict().items():
        assert same_bits(each, built[name] if name in wanted else source.state_dict()[name])
    (note,) = loaded.notes
    assert "not loaded and stay as they were built: model.classes is " in note


@pytest.mark.parametrize(
    ("given", "model", "classes"),
    [
        (MLP([4], classes=5), MLP([4], classes=3), None),  # the number of classes is not known
        (MLP([4], classes=5), MLP([4], classes=3), 4),  # it is not that of the model
        (MLP([4], width=16, classes=3), MLP([4], classes=3), 3),  # another width
        (MLP([5], classes=3), MLP([4], classes=3), 3),  # another size of the input
        (nn.ModuleList([nn.Linear(2, 6), nn.Linear(2, 4)]), nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)]), 3),
        (nn.ModuleList([nn.Linear(2, 3), nn.Linear(2, 3)]), nn.ModuleList([nn.Linear(2, 6), nn.Linear(2, 2)]), 2),
        (nn.Embedding(50, 4), nn.Embedding(60, 4), None),
        (nn.Embedding(16, 4), nn.Embedding(8, 4), 2),  # no layer that makes classes
        (nn.LayerNorm(4), nn.LayerNorm(2), 2),
        (nn.Linear(4, 10), nn.Linear(5, 5), 5),  # more than the first dimension differs
        (nn.Linear(4, 10, bias=False), nn.Linear(4, 6, bias=False), 5),  # 6 is no multiple of the number of classes
        (nn.Linear(4, 12, bias=False), nn.Linear(4, 9, bias=False), 6),
    ],
)
def test_shapes_that_differ_for_another_reason_than_the_number_of_classes_are_refused(given, model, classes):
    assert "of another shape" in refusal(model, given.state_dict(), classes=classes)


def test_a_layer_with_a_parametrization_may_make_another_number_of_classes():
    source, model = (parametrizations.weight_norm(nn.Linear(4, classes)) for classes in (7, 3))
    assert load_into(model, source.state_dict(), classes=3).new == model.state_dict().keys()


@pytest.mark.parametrize("is_other_first", [True, False])
def test_two_tensors_are_never_read_under_one_name(is_other_first):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    own, other = {"a.weight": torch.zeros(2, 2)}, {f"x.{name}": each for name, each in model.state_dict().items()}
    tensors = {**other, **own} if is_other_first else {**own, **other}
    assert "not in the model: x.a.weight" in refusal(model, tensors)


def test_values_are_cast_to_the_dtype_of_the_model_and_a_note_says_so():
    source, model = MLP([4]), MLP([4])
    half = {name: each.half() if each.is_floating_point() else each for name, each in source.state_dict().items()}
    (note,) = load_into(model, half).notes
    assert note == (
        "model.checkpoint: 12 of its tensors are cast to the model's dtype, such as body.weight from float16 to float32"
    )
    assert same_bits(model.body.weight, source.body.weight.half().float())


@pytest.mark.filterwarnings("ignore:.*is a no-op")
def test_on_the_meta_device_names_and_shapes_are_checked():
    with torch.device("meta"):
        model, wrong = MLP([4], classes=3), MLP([4])
    loaded = load_into(model, MLP([4], classes=5).state_dict(), classes=3)
    assert loaded.new == {"head.weight", "head.bias"}
    assert all(each.is_meta for each in model.parameters())
    assert "of another shape" in refusal(wrong, MLP([5]).state_dict())
    with torch.device("meta"):
        tied = Tied()
    assert load_into(tied, {"out.weight": torch.ones(5, 3)}).new == frozenset()


def test_a_refusal_by_the_models_own_loader_is_one_message():
    class Refuses(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
            errors.append("only files of version 3 are read")

    assert "only files of version 3 are read" in refusal(Refuses(2, 2), nn.Linear(2, 2).state_dict())
