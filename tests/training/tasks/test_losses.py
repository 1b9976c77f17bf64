"""How an output and a target become a loss, by cross entropy, another loss of torch's or a function of the user's."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from runner.errors import ConfigError
from runner.training.tasks.losses import loss_of, named_loss, scores_and_target
from runner.training.tasks.tokens import loss_of_next_tokens

CROSS_ENTROPIES = [functional.cross_entropy, nn.CrossEntropyLoss(), partial(functional.cross_entropy, label_smoothing=0.0)]


@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
def test_cross_entropy_takes_samples_pixels_and_tokens(loss):
    samples, pixels, tokens = torch.randn(5, 4), torch.randn(2, 4, 3, 3), torch.randn(2, 3, 4)
    for scores, by_class in ((samples, samples), (pixels, pixels), (tokens, tokens.transpose(1, 2))):
        target = torch.randint(4, (by_class.shape[0], *by_class.shape[2:]))
        expected = functional.cross_entropy(by_class, target)
        assert torch.allclose(loss_of(loss, scores, target), expected)
        given, _ = scores_and_target(loss, scores, target)
        assert torch.equal(given, by_class)  # the classes are in dimension 1


@pytest.mark.parametrize("loss", CROSS_ENTROPIES)
@pytest.mark.parametrize(
    ("scores", "target"),
    [
        (torch.randn(5, 1), torch.rand(5)),
        (torch.randn(5, 1), torch.rand(5, 1)),
        (torch.randn(5, 1), torch.zeros(5, dtype=torch.int64)),
        (torch.randn(5, 1), torch.zeros(5, 1, dtype=torch.int64)),
        (torch.randn(5, 4), torch.rand(5)),
        (torch.randn(5, 4), torch.ones(5, dtype=torch.bool)),
        (torch.randn(5), torch.zeros(5, dtype=torch.int64)),
        (torch.randn(5), torch.rand(5)),
        (torch.randn(4), torch.tensor(1)),
        (torch.tensor(0.5), torch.tensor(1)),
        (torch.randn(5, 4), torch.zeros(4, dtype=torch.int64)),
        (torch.randn(2, 4, 3, 3), torch.zeros(2, 6, 6, dtype=torch.int64)),
        (torch.randn(2, 3, 3), torch.zeros(2, 3, dtype=torch.int64)),  # the classes may be in either dimension
        (torch.randn(5, 4), [0] * 5),
        (None, torch.zeros(5, dtype=torch.int64)),
    ],
    ids=str,
)
def test_cross_entropy_refuses_what_is_no_classification(loss, scores, target):
    with pytest.raises(ConfigError, match=r"^the model returned .*; give task|classes .*give task\.loss=my\.loss"):
        loss_of(loss, scores, target)


def test_cross_entropy_takes_class_probabilities():
    scores, target = torch.randn(5, 4), torch.rand(5, 4).softmax(1)
    assert torch.equal(loss_of(functional.cross_entropy, scores, target), functional.cross_entropy(scores, target))


@pytest.mark.parametrize("shape", [(2,), (2, 3, 3)])
@pytest.mark.parametrize("target", [4, 9, -1])
def test_a_target_that_is_not_a_class_of_the_head_raises_a_config_error(target, shape):
    targets = torch.ones(shape, dtype=torch.int64)
    targets[1].view(-1)[0] = target
    advice = r"task\.loss=\{_target_: torch\.nn\.CrossEntropyLoss, ignore_index: -1\}" if target < 0 else r"model\.classes"
    words = rf"^data: the target {target} of sample 1 of the batch is outside the head's 4 classes \(targets run .* {advice}"
    with pytest.raises(ConfigError, match=words):
        loss_of(functional.cross_entropy, torch.randn(2, 4, *shape[1:]), targets)


def test_the_sample_of_a_wrong_token_is_named():
    targets = torch.ones(3, 5, dtype=torch.int64)
    targets[2, 1] = -7
    with pytest.raises(ConfigError, match=r"the target -7 of sample 2 of the batch"):
        loss_of(functional.cross_entropy, torch.randn(3, 5, 4), targets)
    with pytest.raises(ConfigError, match=r"the target -7 of sample 2 of the batch"):
        loss_of_next_tokens(functional.cross_entropy, torch.randn(3, 5, 4), targets)
    assert loss_of(nn.CrossEntropyLoss(ignore_index=-7), torch.randn(3, 5, 4), targets).isfinite()  # as the message says


def test_the_classes_are_in_the_dimension_of_earlier_batches_where_a_target_lacks_either():
    scores, target = torch.randn(2, 4, 4), torch.randint(4, (2, 4))
    with pytest.raises(ConfigError, match=r"no earlier batch tells; give task\.loss=my\.loss"):
        loss_of(functional.cross_entropy, scores, target)
    for earlier, by_class in ((1, scores), (2, scores.transpose(1, 2))):
        assert torch.allclose(
            loss_of(functional.cross_entropy, scores, target, earlier=earlier), functional.cross_entropy(by_class, target)
        )
        assert torch.equal(scores_and_target(functional.cross_entropy, scores, target, earlier)[0], by_class)


def test_ignored_targets_are_minus_100_in_the_result_whatever_the_loss_ignores():
    loss, target = nn.CrossEntropyLoss(ignore_index=255), torch.tensor([[0, 255]])
    scores = torch.randn(1, 3, 2)
    assert torch.equal(loss_of(loss, scores, target), functional.cross_entropy(scores[:, :, 0], target[:, 0]))
    assert scores_and_target(loss, scores, target)[1].tolist() == [[0, -100]]


@pytest.mark.parametrize("loss", [named_loss("mse_loss"), nn.MSELoss(), partial(functional.mse_loss, reduction="mean")])
@pytest.mark.parametrize(
    ("one", "other"),
    [((5, 1), (5,)), ((5,), (5, 1)), ((5, 1), (5, 1)), ((5, 2), (5, 2)), ((5, 1, 2, 2), (5, 2, 2))],
)
@pytest.mark.filterwarnings("error")
def test_a_loss_of_numbers_compares_element_by_element(loss, one, other):
    output, target = torch.randn(one), torch.randn(other)
    expected = ((output.flatten() - target.flatten()) ** 2).mean()
    assert torch.allclose(loss_of(loss, output, target), expected)
    scores, aligned = scores_and_target(loss, output, target)
    assert scores.shape == aligned.shape


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_binary_cross_entropy_takes_classes_of_any_dtype(dtype):
    output, target = torch.randn(4, 1), torch.tensor([0, 1, 1, 0], dtype=dtype)
    expected = functional.binary_cross_entropy_with_logits(output[:, 0], target.float())
    assert torch.allclose(loss_of(named_loss("binary_cross_entropy_with_logits"), output, target), expected)


@pytest.mark.parametrize("target", [torch.randn(4), torch.zeros(4, dtype=torch.int64), torch.randn(4, 1), torch.randn(1, 4)])
@pytest.mark.parametrize("loss", [named_loss("mse_loss"), nn.HuberLoss()])
def test_a_loss_of_numbers_never_broadcasts(loss, target):
    with pytest.raises(ConfigError, match=r"^task\.loss=\w+: the model returned .*; the shapes must be equal$"):
        loss_of(loss, torch.randn(4, 4), target)


@pytest.mark.parametrize("name", ["nll_loss", "multi_margin_loss"])
def test_a_loss_of_classes_gets_its_target_as_it_is(name):
    scores, target = torch.randn(5, 4).log_softmax(1), torch.tensor([0, 3, 1, 1, 2])
    assert torch.equal(loss_of(named_loss(name), scores, target), getattr(functional, name)(scores, target))


def test_what_torch_refuses_is_said_with_the_shapes():
    with pytest.raises(
        ConfigError, match=r"^task\.loss=NLLLoss: the model returned a tensor of shape \(5, 4\) for a target"
    ):
        loss_of(nn.NLLLoss(), torch.randn(5, 4), torch.rand(5))


def test_a_function_of_the_users_gets_output_and_target_as_they_are():
    given = []

    def mine(output, target):
        given.extend((output, target))
        return output.sum()

    output, target = torch.randn(5, 1), torch.rand(5)
    loss_of(mine, output, target)
    assert given[0] is output
    assert given[1] is target


@pytest.mark.parametrize("returned", [torch.ones(5), 0.5, None], ids=str)
def test_a_loss_that_is_no_scalar_is_refused(returned):
    with pytest.raises(ConfigError, match=r"^task\.loss=<lambda> returned an? .*must return a tensor of shape \(\)$"):
        loss_of(lambda output, target: returned, torch.ones(5), torch.ones(5))
    with pytest.raises(ConfigError, match=r"^task\.loss=MSELoss returned a tensor of shape \(5,\)"):
        loss_of(nn.MSELoss(reduction="none"), torch.ones(5), torch.ones(5))


@pytest.mark.parametrize(
    ("name", "words"), [("mse_los", "did you mean mse_loss"), ("relu", "give auto, model"), ("", "give")]
)
def test_a_name_that_is_no_loss_is_refused(name, words):
    with pytest.raises(ConfigError, match=rf"^task\.loss is .*{words}"):
        named_loss(name)
