"""The classification task: its loss and its error messages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runner.errors import ConfigError
from runner.training.tasks import Classification


class BrokenModel(nn.Module):
    """A model whose forward pass raises an error."""

    def forward(self, x):
        raise ValueError("a bug of the user")


def test_the_loss_is_the_mean_cross_entropy():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 3, 1, 1, 2])
    logits = model(x).double()
    by_hand = sum(logits[row].exp().sum().log() - logits[row, target] for row, target in enumerate(y.tolist())) / 5
    assert torch.allclose(Classification()(model, (x, y)).double(), by_hand)
    assert torch.equal(Classification()(model, (x, y)), nn.functional.cross_entropy(model(x), y))


def test_the_loss_is_a_scalar_with_a_gradient():
    model = nn.Linear(3, 4)
    loss = Classification()(model, (torch.ones(2, 3), torch.tensor([0, 1])))
    assert (loss.shape, loss.requires_grad) == ((), True)


def test_a_batch_may_be_a_list():
    loss = Classification()(nn.Linear(3, 4), [torch.ones(2, 3), torch.tensor([0, 1])])
    assert loss.shape == ()


@pytest.mark.parametrize("target", [4, 9])
def test_a_target_that_is_not_a_class_of_the_head_raises_a_config_error(target):
    with pytest.raises(ConfigError, match=rf"the head's 4 classes \(targets run from 1 to {target}\); give model.classes"):
        Classification()(nn.Linear(3, 4), (torch.ones(2, 3), torch.tensor([1, target])))


def test_a_batch_of_one_that_batchnorm_cannot_normalise_raises_a_config_error():
    model, batch = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), (torch.ones(1, 3), torch.tensor([0]))
    with pytest.raises(ConfigError, match=r"data.batch_size=1: BatchNorm .*freeze.buffers=frozen"):
        Classification()(model, batch)
    assert Classification()(model.eval(), batch).shape == ()


class Returns(nn.Module):
    """A model that returns a fixed value."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.tensor(0.5), r"a tensor of shape \(\)"),
        (torch.ones(2), r"a tensor of shape \(2,\)"),
        (torch.ones(3, 4), r"a tensor of shape \(3, 4\) for targets of shape \(2,\)"),
        (0.5, "a float"),
        (None, "a NoneType"),
        ((torch.ones(2, 4),), "a tuple of 1"),
    ],
    ids=str,
)
def test_a_model_that_returns_no_scores_for_the_classes_raises_a_config_error_that_says_what_it_returned(value, words):
    with pytest.raises(ConfigError, match=rf"^the model returned {words}.*give task=custom"):
        Classification()(Returns(value), (torch.ones(2, 3), torch.tensor([0, 1])))


@pytest.mark.parametrize("batch", [torch.ones(2, 3), (torch.ones(2, 3),), {"x": 1, "y": 2}, None], ids=str)
def test_a_batch_that_is_no_pair_raises_a_config_error(batch):
    with pytest.raises(ConfigError, match=r"^the data gave a \w+.* as a batch; this task needs a pair \(x, y\)"):
        Classification()(nn.Linear(3, 4), batch)


def test_scores_and_targets_may_have_more_dimensions():
    scores, targets = torch.randn(2, 4, 5, 5), torch.randint(4, (2, 5, 5))
    loss = Classification()(Returns(scores), (torch.ones(2, 3), targets))
    assert torch.equal(loss, nn.functional.cross_entropy(scores, targets))


def test_any_other_error_of_the_model_is_raised_unchanged():
    with pytest.raises(ValueError, match=r"^a bug of the user$") as caught:
        Classification()(BrokenModel(), (torch.ones(2, 3), torch.tensor([0, 1])))
    assert type(caught.value) is ValueError
