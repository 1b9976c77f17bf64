"""The task of a run: the files in conf/task, its options, and where it must work: autocast, fake tensors, copies."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from runner.assemble.feeding import declared_task
from runner.config.check import check
from runner.config.compose import compose_config
from runner.config.schema import CONF
from runner.errors import ConfigError
from runner.training.tasks.task import BatchTask
from runner.training.tasks.trained import TrainedTask

X, CLASSES = torch.randn(5, 3), torch.tensor([0, 3, 1, 1, 2])
IDS = torch.randint(4, (2, 6))


def built(*overrides):
    """Return the task that the config with these overrides declares."""
    return declared_task(check(compose_config(*overrides)).task)


class Net(nn.Linear):
    """A linear layer with 4 outputs, whose result is given to a function before it is returned."""

    def __init__(self, then=lambda scores: scores):
        super().__init__(3, 4)
        self.then = then

    def forward(self, x):
        return self.then(super().forward(x))


class OwnLoss(nn.Linear):
    """A model that takes its target and returns its loss."""

    def __init__(self):
        super().__init__(3, 4)

    def forward(self, x, y):
        return functional.cross_entropy(super().forward(x), y)


class Pixels(nn.Conv2d):
    """A segmentation model as those of torchvision."""

    def __init__(self):
        super().__init__(3, 8, 1)

    def forward(self, x):
        scores = super().forward(x)
        return OrderedDict(out=scores[:, :4], aux=scores[:, 4:])


class Tokens(nn.Embedding):
    """A causal model of 4 tokens."""

    def __init__(self):
        super().__init__(4, 4)

    def forward(self, input_ids):
        return SimpleNamespace(logits=super().forward(input_ids))


PICTURES, MASKS = torch.randn(2, 3, 5, 5), torch.randint(4, (2, 5, 5))
MASKS[:, 0] = 255


def of_pixels(model):
    out, aux = (functional.cross_entropy(scores, MASKS, ignore_index=255) for scores in model(PICTURES).values())
    return out + 0.4 * aux


def of_tokens(model):
    return functional.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def detection_model():
    """A detection model of torchvision that is small and quick."""
    build = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    return build(weights=None, weights_backbone=None, num_classes=3, min_size=32, max_size=64)


BOXES = [{"boxes": torch.tensor([[2.0, 2.0, 20.0, 20.0]]), "labels": torch.tensor([1])} for _ in range(2)]
SCENES = ([torch.rand(3, 32, 32) for _ in range(2)], BOXES)


def of_boxes(model):
    torch.manual_seed(0)  # the model draws the regions that it is trained on
    return sum(model(*SCENES).values())


def task(model, batch):
    """A task as users write it."""
    return functional.mse_loss(model(batch[0])[:, 0], batch[1].float())


FILES = {
    "auto": (Net(), (X, CLASSES), lambda model: functional.cross_entropy(model(X), CLASSES)),
    "classification": (Net(), (X, CLASSES), lambda model: functional.cross_entropy(model(X), CLASSES)),
    "segmentation": (Pixels(), (PICTURES, MASKS), of_pixels),
    "detection": (detection_model(), SCENES, of_boxes),
    "causal_lm": (Tokens(), {"input_ids": IDS}, of_tokens),
    "model_loss": (OwnLoss(), (X, CLASSES), lambda model: model(X, CLASSES)),
    "custom": (Net(), (X, CLASSES), lambda model: task(model, (X, CLASSES))),
}


def test_every_file_of_the_group_is_tested():
    assert {path.stem for path in (CONF / "task").glob("*.yaml")} == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_group_gives_the_loss_of_its_kind_of_model(name):
    model, batch, expected = FILES[name]
    built_task = built(f"task={name}", *([f"task._target_={__name__}.task"] if name == "custom" else []))
    torch.manual_seed(0)
    loss = built_task(model, batch)
    assert torch.allclose(loss, expected(model))
    loss.backward()


def test_every_file_but_custom_has_the_keys_of_the_task():
    keys = {"_target_", "call", "fields", "target", "loss", "outputs", "shift"}
    assert all(OmegaConf.load(CONF / "task" / f"{name}.yaml").keys() == keys for name in FILES.keys() - {"custom"})


def test_a_detection_model_has_named_parts_and_no_loss_in_eval_mode():
    model = detection_model()
    result = BatchTask().run(model, SCENES)
    assert result.parts.keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert torch.allclose(result.loss, sum(result.parts.values()))
    with pytest.raises(ConfigError, match=r"^in eval mode the model returned a list of 2 and no loss.*evaluate=false"):
        built("task=detection")(model.eval(), SCENES)


def test_a_segmentation_model_may_lack_the_second_output_and_may_return_a_tensor():
    segmentation, scores = built("task=segmentation"), torch.randn(2, 4, 5, 5)
    expected = functional.cross_entropy(scores, MASKS, ignore_index=255)
    for output in (scores, {"out": scores}, {"out": scores, "aux": None}):
        result = segmentation.run(Net(lambda _, output=output: output), (torch.randn(2, 3), MASKS))
        assert (torch.equal(result.loss, expected), result.parts) == (True, {})
    assert set(result.target[:, 0].flatten().tolist()) == {-100}


def mine(output, target, *, factor=1.0):
    """A loss as users write it."""
    return factor * functional.cross_entropy(output, target)


@pytest.mark.parametrize(
    ("override", "factor"),
    [
        (f"task.loss={__name__}.mine", 1),
        (f"task.loss={{_target_: {__name__}.mine, factor: 2.0}}", 2),
        (f"task.loss={{_target_: {__name__}.mine, _partial_: true, factor: 2.0}}", 2),
        ("task.loss=torch.nn.CrossEntropyLoss", 1),
        ("task.loss={_target_: torch.nn.CrossEntropyLoss}", 1),
        ("task.loss=torch.nn.functional.cross_entropy", 1),
        ("task.loss=cross_entropy", 1),
    ],
)
def test_the_loss_is_a_name_a_dotted_path_or_a_node(override, factor):
    model = Net()
    assert torch.equal(built(override)(model, (X, CLASSES)), factor * functional.cross_entropy(model(X), CLASSES))


class Task:
    """A task whose instances are called."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, model, batch):
        return self.factor * task(model, batch)


def weighted_task(model, batch, factor=1.0):
    return factor * task(model, batch)


def make_task(factor=1.0):
    return Task(factor)


@pytest.mark.parametrize("name", ["Task", "weighted_task", "make_task"])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_custom_task_is_a_function_a_class_or_a_function_that_returns_one(name, factor):
    more = [] if factor == 1 else [f"++task.factor={factor}"]
    model, custom = Net(), built("task=custom", f"task._target_={__name__}.{name}", *more)
    assert torch.equal(custom(model, (X, CLASSES)), factor * task(model, (X, CLASSES)))


def test_a_target_of_the_users_is_not_given_the_options_of_ours_that_are_not_set():
    model = Net()
    assert torch.equal(built(f"task._target_={__name__}.task")(model, (X, CLASSES)), task(model, (X, CLASSES)))
    with pytest.raises(ConfigError, match=r"^task\.call: .*Task takes no call"):
        built(f"task._target_={__name__}.Task", "task.call=first")


def test_the_example_in_the_messages_can_be_written_without_a_partial(cli):
    Path("my.py").write_text("def task(model, batch):\n    return model(batch[0]).mean()\n")
    assert cli("model=mlp", "batches=1", "task=custom", "task._target_=my.task")[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"call": "second"}, r"^task\.call is 'second'; give one of auto, first, args, kwargs$"),
        ({"fields": {"image": 1.5}}, r"^task\.fields is \{'image': 1\.5\}; give \{FIELD: ARGUMENT\}"),
        ({"target": True}, r"^task\.target is True; give the name or index"),
        ({"fields": "x"}, r"^task\.fields is 'x'"),
        ({"fields": {}}, r"^task\.fields is \{\}"),
        ({"outputs": {"logits": "1"}}, r"^task\.outputs is \{'logits': '1'\}; give \{FIELD: WEIGHT\}"),
        ({"outputs": {"logits": float("nan")}}, r"^task\.outputs is"),
        ({"outputs": ["logits"]}, r"^task\.outputs is \['logits'\]"),
        ({"loss": 3}, r"^task\.loss is 3; give auto, model"),
        ({"loss": "mean_squared"}, r"^task\.loss is 'mean_squared'; give auto"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_option_is_refused_when_the_task_is_built(options, words):
    with pytest.raises(ConfigError, match=words):
        BatchTask(**options)


HEADS = Net(lambda scores: OrderedDict(logits=scores, aux=2 * scores, hidden=[scores]))


@pytest.mark.parametrize(
    "outputs", [{"logits": 1, "aux": 0.3}, {"aux": 0.3, "logits": 1}, {0: 1, 1: 0.3}, {"logits": 1, "aux": 0.3, "more": 0.1}]
)
def test_the_loss_of_several_outputs_is_their_weighted_sum_by_name(outputs):
    result, main = BatchTask(outputs=outputs).run(HEADS, (X, CLASSES)), HEADS(X)["logits"]
    losses = functional.cross_entropy(main, CLASSES), 0.3 * functional.cross_entropy(2 * main, CLASSES)
    assert torch.allclose(torch.stack([*result.parts.values()]), torch.stack(losses))
    assert torch.allclose(result.loss, sum(losses))
    assert torch.equal(result.scores, main)


BALANCED = Net(lambda scores: {"aux_loss": scores.square().mean(), "logits": scores})


@pytest.mark.parametrize("outputs", [{"logits": 1, "aux_loss": 0.01}, {"aux_loss": 2, "logits": 1}, {1: 1, 0: 0.01}])
@pytest.mark.parametrize("loss", ["auto", "cross_entropy"])
def test_a_scalar_beside_the_scores_is_added_with_its_weight(outputs, loss):
    result, fields = BatchTask(outputs=outputs, loss=loss).run(BALANCED, (X, CLASSES)), BALANCED(X)
    weight = next(weight for name, weight in outputs.items() if name in ("aux_loss", 0))
    expected = functional.cross_entropy(fields["logits"], CLASSES) + weight * fields["aux_loss"]
    assert torch.allclose(result.loss, expected)
    assert torch.equal(result.scores, fields["logits"])
    assert len(result.parts) == 2


@pytest.mark.parametrize("loss", ["auto", "cross_entropy", lambda output, target: output.mean()])
def test_a_scalar_beside_the_scores_is_never_left_out_silently(loss):
    with pytest.raises(ConfigError, match=r"the scalar aux_loss would be left out of the loss"):
        BatchTask(loss=loss)(BALANCED, (X, CLASSES))
    assert BatchTask(loss=loss, outputs={"logits": 1}).run(BALANCED, (X, CLASSES)).parts == {}


@pytest.mark.parametrize(
    ("then", "overrides", "expected"),
    [
        (torch.sum, ["task.call=first"], torch.sum),
        (lambda scores: (scores.sum(), scores), ["task.call=first", "task.outputs={0: 1}"], torch.sum),
        (lambda scores: {"loss": scores.sum(), "logits": scores}, ["task.call=first"], torch.sum),
    ],
)
def test_the_whole_loss_of_a_model_that_takes_no_target_is_taken_as_the_message_says(then, overrides, expected):
    model = Net(then)
    with pytest.raises(ConfigError) as caught:
        BatchTask()(model, (X, CLASSES))
    assert " ".join(["task=model_loss", *overrides]) in str(caught.value)
    scores = functional.linear(X, model.weight, model.bias)
    assert torch.equal(built("task=model_loss", *overrides)(model, (X, CLASSES)), expected(scores))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"logit": 1}, r"names logit, and the model returned an OrderedDict with .*; did you mean logits\?"),
        ({"logits": 1, "auxx": 0.3}, r"names auxx.*did you mean aux\?"),
        ({5: 1}, r"names 5"),
    ],
)
def test_an_output_that_is_a_mistake_is_refused(outputs, words):
    with pytest.raises(ConfigError, match=words):
        BatchTask(outputs=outputs)(HEADS, (X, CLASSES))


def test_the_parts_of_a_models_own_loss_can_be_weighted_and_chosen():
    model = Net(lambda scores: (scores, scores.sum(), scores.mean()))
    result = BatchTask(loss="model", call="first", outputs={1: 1, 2: 0.5}).run(model, (X, CLASSES))
    scores = model(X)[0]
    assert torch.allclose(result.loss, scores.sum() + 0.5 * scores.mean())
    assert set(result.parts) == {"1", "2"}


def test_the_scores_of_a_model_that_takes_its_labels_serve_for_the_accuracy():
    class Classifier(Net):
        def forward(self, x, labels):
            scores = super().forward(x)
            return {"loss": functional.cross_entropy(scores, labels), "logits": scores, "state": [scores]}

    model = Classifier()
    result = BatchTask().run(model, {"x": X, "labels": CLASSES})
    assert (result.scores.shape, result.target is CLASSES, result.parts) == ((5, 4), True, {})


def test_one_score_a_sample_is_no_classification_of_the_labels_that_a_model_takes():
    class Regression(Net):
        def forward(self, x, labels):
            scores = super().forward(x)[:, :1]
            return {"loss": functional.mse_loss(scores[:, 0], labels.float()), "logits": scores}

    assert BatchTask().run(Regression(), {"x": X, "labels": CLASSES}).scores is None


def test_a_scalar_of_integers_is_no_loss():
    with pytest.raises(ConfigError, match=r"a tensor of shape \(\), which is no loss"):
        BatchTask()(Net(lambda scores: scores.argmax()), X)


@pytest.mark.parametrize("name", ["auto", "classification", "segmentation", "causal_lm", "model_loss"])
def test_a_task_works_on_fake_tensors_and_under_autocast(name):
    model, batch, _ = FILES[name]
    built_task = built(f"task={name}")
    assert TrainedTask(built_task, "cpu")(model, batch).isfinite()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = copy.deepcopy(model)
        to_fake = torch.utils._pytree.tree_map(lambda value: mode.from_tensor(value), batch)
        assert built_task(fake, to_fake).shape == ()


def test_a_copy_of_a_task_gives_the_same_loss():
    model, (_, batch, _) = Pixels(), FILES["segmentation"]
    segmentation = built("task=segmentation")
    assert torch.equal(copy.deepcopy(segmentation)(model, batch), segmentation(model, batch))


def timed(function):
    """Decorate a function, as users do who do not know functools.wraps."""

    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


timed_task, timed_mine = timed(task), timed(mine)


def test_a_decorated_function_that_hides_its_signature_is_refused_with_the_key_that_makes_it_work():
    model, custom = Net(), ("task=custom", f"task._target_={__name__}.timed_task")
    with pytest.raises(ConfigError, match=r"^task: .*timed_task takes any arguments and .*give \+\+task\._partial_=true if"):
        built(*custom)
    assert torch.equal(built(*custom, "++task._partial_=true")(model, (X, CLASSES)), task(model, (X, CLASSES)))
    path = f"{__name__}.timed_mine"
    with pytest.raises(ConfigError, match=rf"give task\.loss={{_target_: {path}, _partial_: true}} if"):
        built(f"task.loss={path}")
    loss = built(f"task.loss={{_target_: {path}, _partial_: true}}")(model, (X, CLASSES))
    assert torch.equal(loss, mine(model(X), CLASSES))


class TakesLabels(nn.Embedding):
    """A model that returns scores, and its loss if it is given labels."""

    def __init__(self):
        super().__init__(4, 4)

    def forward(self, input_ids, attention_mask=None, labels=None):
        scores = super().forward(input_ids).mean(1)
        return {"logits": scores} | ({} if labels is None else {"loss": functional.cross_entropy(scores, labels)})


@pytest.mark.parametrize(
    ("batch", "fields"),
    [
        ({"input_ids": IDS, "label": IDS[:, 0]}, "{input_ids: input_ids, label: labels}"),
        ((IDS, IDS[:, 0]), "{0: input_ids, 1: labels}"),
    ],
)
def test_labels_under_another_name_reach_the_model_by_the_fields_in_the_message(batch, fields):
    model = TakesLabels()
    with pytest.raises(ConfigError) as caught:
        built("task=model_loss")(model, batch)
    assert f"give task.fields={fields}" in str(caught.value)
    loss = built("task=model_loss", f"task.fields={fields}")(model, batch)
    assert torch.equal(loss, functional.cross_entropy(model(IDS)["logits"], IDS[:, 0]))
