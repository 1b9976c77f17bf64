"""How a batch meets the model: `task.call`, `task.fields`, `task.target`, and which calls are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from runner.errors import ConfigError
from runner.training.tasks.calls import CallOptions, arrange, left_out
from runner.training.tasks.forward import Call, call_model, forward_signature


class Net(nn.Module):
    """Returns the arguments that its forward was given."""

    def forward(self, image, mask: Tensor | None = None, cache: dict | None = None):
        return image, mask, cache


class TakesRest(nn.Module):
    """Returns the keywords that its forward was given."""

    def forward(self, image, **rest):
        return rest


class Broken(nn.Module):
    """Raises an error of the given kind, within its forward."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


A, B, C = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)
OWN = CallOptions(loss_by="task")


def parts_of(call: Call) -> tuple:
    return call.args, call.kwargs, call.target


@pytest.mark.parametrize(
    ("batch", "options", "expected"),
    [
        ((A, C), CallOptions(call="first"), ((A,), {}, C)),
        ((A, B, C), CallOptions(call="first", target=2), ((A,), {}, C)),
        ((A, B, C), CallOptions(call="args", target=-1), ((A, B), {}, C)),
        ((C, A, B), CallOptions(call="args", target=0), ((A, B), {}, C)),
        ((A, B), CallOptions(loss_by="model"), ((A, B), {}, None)),
        ((A, B), CallOptions(call="first", loss_by="model"), ((A,), {}, None)),
        ((A, B, C), CallOptions(fields={0: "image", 1: "mask"}), ((), {"image": A, "mask": B}, C)),
        ((A, B, C), CallOptions(fields={1: 0, 2: 1}, target=0), ((B, C), {}, A)),
        ({"a": A, "b": B}, CallOptions(call="first", fields={"a": "image"}, target="b"), ((), {"image": A}, B)),
        ({"a": A, "label": B}, CallOptions(fields={"a": "image"}), ((), {"image": A}, B)),
        ({"a": A, "label": B}, CallOptions(fields={"a": "image", "label": "mask"}), ((), {"image": A, "mask": B}, None)),
        ({"image": A, "mask": B, "id": C}, OWN, ((), {"image": A, "mask": B}, None)),
        ({"image": A, "id": C}, replace(OWN, target="id"), ((), {"image": A}, C)),
        ({"image": A, "mask": B}, replace(OWN, target="mask"), ((), {"image": A}, B)),
        ({"image": A, "id": C}, CallOptions(call="kwargs"), ((), {"image": A, "id": C}, None)),
        ({"image": A, "y": C}, CallOptions(call="kwargs"), ((), {"image": A}, C)),
        ({"image": A, "y": C}, CallOptions(call="kwargs", loss_by="model"), ((), {"image": A, "y": C}, None)),
        (({"image": A, "id": B}, C), OWN, ((), {"image": A}, C)),
        (([A, B], [{"boxes": A}, {"boxes": B}]), CallOptions(), (([A, B], [{"boxes": A}, {"boxes": B}]), {}, None)),
    ],
    ids=lambda value: "",
)
def test_the_fields_of_a_batch_become_the_arguments_and_the_target(batch, options, expected):
    args, kwargs, target = parts_of(arrange(batch, Net(), options))
    assert (len(args), kwargs.keys()) == (len(expected[0]), expected[1].keys())
    given, wanted = [*args, *kwargs.values(), target], [*expected[0], *expected[1].values(), expected[2]]
    assert all(one is other or isinstance(one, list) for one, other in zip(given, wanted, strict=True))


def test_a_field_with_nearly_the_name_of_an_argument_is_not_left_out_silently():
    batch = {"image": A, "masks": B, "label": C}
    with pytest.raises(ConfigError, match=r"field masks of a batch; did you mean mask\?") as caught:
        arrange(batch, Net(), CallOptions())
    for words, mask in (("{image: image, masks: mask}", B), ("{image: image}", None)):
        assert f"task.fields={words}" in str(caught.value)
        fields = dict(pair.split(": ") for pair in words.strip("{}").split(", "))
        call = arrange(batch, Net(), CallOptions(fields=fields))
        assert (call.kwargs.get("mask") is mask, call.target is C) == (True, True)


@pytest.mark.parametrize(
    ("batch", "options", "names"),
    [
        ({"image": A, "label": C, "index": B, "size": B.clone(), "name": ["a"]}, CallOptions(), ["index", "size"]),
        ({"image": A, "label": C, "index": B}, CallOptions(fields={"image": "image"}), []),
        (({"image": A, "index": B}, C), CallOptions(), ["index"]),
        ((A, C), CallOptions(), []),
        (A, CallOptions(), []),
    ],
)
def test_the_tensors_that_reach_neither_model_nor_loss_are_named(batch, options, names):
    assert left_out(batch, Net(), options) == names


def test_a_model_that_takes_any_keyword_gets_all_but_the_target():
    call = arrange({"image": A, "label": C, "id": B}, TakesRest(), CallOptions())
    assert (call.kwargs.keys(), call.target is C) == ({"image", "id"}, True)


@pytest.mark.parametrize(
    ("batch", "options", "words"),
    [
        (
            (A, B, C),
            CallOptions(call="first"),
            r"mask=None, cache=None\): give task\.call=first task\.target=1",
        ),
        ((A, B, C), CallOptions(call="args"), r"give task\.call=args task\.target=-1, or task\.fields=\{0: ARGUMENT\}"),
        ((A, B, C), CallOptions(target=2), r"2 of them besides the target; .*give task\.call=args"),
        ((A, B), CallOptions(call="kwargs"), r"task\.call=kwargs takes a mapping; the data gave a batch of 2"),
        (
            {"image": A},
            CallOptions(call="args"),
            r"task\.call=args takes a tuple or list; the data gave a mapping",
        ),
        ((A, B), CallOptions(target=5), r"task\.target names 5, which the batch does not have; its fields are 0 and 1"),
        ({"image": A}, CallOptions(target="y"), r"task\.target names 'y', .* its fields are image$"),
        ((A, B), CallOptions(fields={"image": "image"}), r"task\.fields names 'image'"),
        ((A, B, C), CallOptions(fields={0: 0, 1: 2}), r"positions \[0, 2\]; number positional arguments 0, 1, 2"),
        ((A, B, C), CallOptions(fields={0: 0}), r"which one is the target with task\.target=FIELD"),
        ([A], CallOptions(target=0), r"a batch of 1 parts, 0 of them besides the target"),
        (A, CallOptions(target=1), r"a tensor of shape \(2,\) as a batch, which has no fields; write a function"),
        ({}, CallOptions(), "an empty dict"),
        ({"picture": A, "label": B}, CallOptions(), r"give task\.fields=\{picture: image\}"),
    ],
    ids=lambda value: "",
)
def test_what_would_be_a_guess_is_refused_with_the_key_to_set(batch, options, words):
    with pytest.raises(ConfigError, match=words):
        arrange(batch, Net(), options)


def test_a_field_that_only_goes_into_a_models_other_keywords_is_refused():
    with pytest.raises(ConfigError, match=r"forward\(image, \*\*rest\): give task\.fields=\{picture: image\}"):
        arrange({"picture": A, "label": B}, TakesRest(), CallOptions())


def test_a_tensor_is_not_given_by_position_to_an_argument_for_something_else():
    with pytest.raises(ConfigError, match=r"as `cache: .*dict.*name them with task\.fields=\{0: "):
        arrange((A, B, B, C), Net(), CallOptions(call="args", target=-1))


def test_a_call_that_the_forward_does_not_take_is_one_message_with_its_signature():
    with pytest.raises(ConfigError, match=r"^the model takes forward\(image, mask=None, .*\) and was given \(mask=\.\.\.\)"):
        call_model(Net(), Call((), {"mask": A}))
    with pytest.raises(ConfigError, match=r"and was given \(a tensor of shape \(2,\), an int, .*too many positional"):
        call_model(Net(), Call((A, 1, 2, 3), {}))


def test_the_signature_of_a_long_forward_is_cut():
    class Long(nn.Module):
        def forward(self, first, a=1, b=2, c=3, d="a long text", e=None, f=None, g=None, h=None): ...

    with pytest.raises(ConfigError, match=r"forward\(first, a=1, b=2, c=3, d=\.\.\., e=None, f=None, \.\.\.\)") as caught:
        call_model(Long(), Call((), {}))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("error", [TypeError("a bug"), ValueError("a bug"), IndexError("a bug"), KeyError("a bug")])
def test_an_error_within_the_model_is_passed_on(error):
    with pytest.raises(type(error), match="a bug") as caught:
        call_model(Broken(error), Call((A,), {}))
    assert caught.value is error


def test_an_input_outside_an_embedding_is_one_message():
    with pytest.raises(ConfigError, match=r"^data: an input is outside an embedding of the model, such as a token"):
        call_model(nn.Embedding(3, 2), Call((torch.tensor([3]),), {}))


def test_a_target_outside_the_classes_of_a_models_own_loss_is_one_message():
    class OwnLoss(nn.Module):
        def forward(self, x, labels):
            return nn.functional.cross_entropy(x, labels)

    with pytest.raises(ConfigError, match=r"^data: a target is outside the classes of the model \(Target 5 .*, in sample 1"):
        call_model(OwnLoss(), Call((torch.ones(3, 3), torch.tensor([0, 5, 5])), {}))
    with pytest.raises(ConfigError, match=r", in sample 2 of the batch$"):
        call_model(OwnLoss(), Call((), {"x": torch.ones(3, 3), "labels": torch.tensor([0, 1, 7])}))


@pytest.mark.parametrize(
    ("scores", "target", "shape"),
    [((3, 4), (3, 5), r"\(3, 5\)"), ((3, 4, 5), (3, 4), r"\(3, 4\)"), ((3, 4), (2,), r"\(2,\)")],
)
def test_a_target_of_another_size_than_the_models_own_loss_takes_is_one_message(scores, target, shape):
    class OwnLoss(nn.Module):
        def forward(self, x, labels):
            return nn.functional.cross_entropy(x, labels if x.dim() == 3 else labels.view(-1))

    x, labels = torch.ones(scores), torch.zeros(target, dtype=torch.long)
    for call in (Call((x, labels), {}), Call((), {"x": x, "labels": labels})):
        with pytest.raises(
            ConfigError, match=rf"does not take a tensor of shape {shape} as the target .*data\.fields=\{{"
        ) as e:
            call_model(OwnLoss(), call)
        assert len(str(e.value)) < 350


def test_a_batch_of_one_that_batchnorm_cannot_normalise_is_one_message():
    model, call = nn.BatchNorm1d(3), Call((torch.ones(1, 3),), {})
    with pytest.raises(
        ConfigError, match=r"^a batch has one sample: BatchNorm .*data.drop_last=true.*freeze.buffers=frozen"
    ):
        call_model(model, call)
    assert call_model(model.eval(), call).shape == (1, 3)


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Conv1d(3, 1, 1), nn.LSTM(3, 2), nn.LayerNorm(3)])
def test_numbers_of_another_dtype_than_the_models_are_one_message(model):
    numbers = torch.ones(2, 3, 3, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"^the data are float64 and .* model float32 \(.*\); give model\.dtype=float32$"):
        call_model(model, Call((numbers,), {}))
    call_model(model, Call((numbers.float(),), {}))  # which model.dtype=float32 does


def test_a_model_that_looks_for_the_target_itself_is_one_message():
    class TakesBatch(nn.Module):
        def forward(self, **batch):
            return nn.functional.cross_entropy(batch["x"], batch["labels"])

    batch = {"x": torch.ones(2, 3), "labels": torch.tensor([0, 1])}
    with pytest.raises(ConfigError, match=r"forward\(\*\*batch\) and looks for 'labels', .* give task=model_loss"):
        call_model(TakesBatch(), arrange(batch, TakesBatch(), CallOptions()))
    assert call_model(TakesBatch(), arrange(batch, TakesBatch(), CallOptions(loss_by="model"))).shape == ()


def test_a_model_that_requires_its_target_is_sent_to_the_loss_of_the_model():
    class OwnLoss(nn.Module):
        def forward(self, x, labels):
            return nn.functional.cross_entropy(x, labels)

    batch = (torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match=r"missing a required argument: 'labels'; give task=model_loss if the model"):
        call_model(OwnLoss(), arrange(batch, OwnLoss(), CallOptions()))
    assert call_model(OwnLoss(), arrange(batch, OwnLoss(), CallOptions(loss_by="model"))).shape == ()


class Wrapper(nn.Module):
    """Passes on what it is given."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def replaced_forward():
    """A model whose instance has another forward than its class."""
    model = TakesRest()
    model.forward = Net().forward
    return model


@pytest.mark.parametrize(
    "model",
    [Net(), Wrapper(Net()), Wrapper(Wrapper(Net())), nn.DataParallel(Net()), torch.compile(Net()), replaced_forward()],
    ids=["itself", "wrapped", "wrapped twice", "parallel", "compiled", "replaced"],
)
def test_the_signature_is_that_of_the_model_that_is_called(model):
    assert list(forward_signature(model).parameters) == ["image", "mask", "cache"]


def test_a_model_of_several_parts_that_takes_anything_is_not_looked_through():
    model = Wrapper(Net())
    model.other = Net()
    assert list(forward_signature(model).parameters) == ["args", "kwargs"]


def test_the_signature_of_a_class_is_read_once(monkeypatch):
    forward_signature(Net())
    monkeypatch.setattr("runner.training.tasks.forward.signature", None)
    assert list(forward_signature(Net()).parameters) == ["image", "mask", "cache"]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_of_torchscript_is_called():
    model = torch.jit.trace(nn.Linear(3, 4), torch.ones(2, 3))
    call = arrange((torch.ones(2, 3), torch.tensor([0, 1])), model, CallOptions())
    assert call_model(model, call).shape == (2, 4)
