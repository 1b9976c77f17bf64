"""Real data from end to end: pictures in a folder, text, a regression, and which part of a model to freeze for digits."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import numpy
import pytest
from PIL import Image, ImageDraw

from tests.conftest import read_table

SHAPES = """
from torch import nn


def small_cnn(classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, classes),
    )
"""


def draw_shapes(root, count):
    """Write `count` pictures of each of two classes, discs and crosses, of any colour, place and size."""
    drawn = numpy.random.default_rng(0)
    for name in ("cross", "disc"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (40, 32), tuple(drawn.integers(0, 90, 3)))
            pen, colour = ImageDraw.Draw(picture), tuple(drawn.integers(130, 255, 3))
            (x, y), size = drawn.integers(12, 20, 2), drawn.integers(7, 11)
            if name == "disc":
                pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)
            else:
                pen.line((x - size, y, x + size, y), fill=colour, width=3)
                pen.line((x, y - size, x, y + size), fill=colour, width=3)
            picture.save(root / name / f"{number}.png")


@pytest.mark.long
def test_a_folder_of_pictures_is_learned_and_the_accuracy_stands_in_the_record_and_the_table(cli):
    draw_shapes(Path("shapes"), 100)
    Path("mine.py").write_text(SHAPES)
    model = ("model=custom", "model.build._target_=mine.small_cnn", "++model.build.classes=2", "model.classes=2")
    data = ("data=image_folder", "data.root=shapes", "model.input=[3,32,32]", "data.batch_size=16", "data.epochs=8")
    flip = (
        "data.transform={_target_: torchvision.transforms.v2.RandomHorizontalFlip}",
        "data.holdout=0.25",
        "evaluate=true",
    )
    train = (
        "optimizer=adam",
        "optimizer.lr=0.01",
        "cost=off",
        "freeze=none,head",
        "model.head='8'",
        "hydra.sweep.dir=sweep",
    )
    code, _, err = cli("-m", *model, *data, *flip, *train)
    assert code == 0, err
    rows = {row["run"]: row for row in read_table(Path("sweep/comparison.csv"))}
    assert len(rows) == 2
    for name, row in rows.items():
        evaluation = json.loads(Path("sweep", name, "run.json").read_text())["evaluation"]
        assert evaluation["before"]["accuracy"] < 0.7
        assert evaluation["after"]["accuracy"] >= 0.9
        assert float(row["test_accuracy"]) == evaluation["after"]["accuracy"]


TEXT = """
from pathlib import Path
import sklearn.datasets
import torch
from torch import nn


class Text(torch.utils.data.Dataset):
    '''The descriptions of scikit-learn's data sets, as bytes, in pieces of 64.'''

    def __init__(self):
        files = sorted((Path(sklearn.datasets.__file__).parent / 'descr').glob('*.rst'))
        text = torch.tensor(list(b''.join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
        self.pieces = text[: len(text) // 64 * 64].view(-1, 64)

    def __len__(self):
        return len(self.pieces)

    def __getitem__(self, index):
        return {'input_ids': self.pieces[index]}


class CausalModel(nn.Module):
    '''A causal transformer with one layer; it returns a mapping, as models of libraries do.'''

    def __init__(self, vocab_size=256, width=64):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.place = nn.Embedding(64, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.lm_head = nn.Linear(width, vocab_size)

    def forward(self, input_ids):
        x = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1], device=input_ids.device))
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1], device=x.device)
        return {'logits': self.lm_head(self.block(x, src_mask=mask, is_causal=True))}
"""
CAUSAL = ("task=causal_lm", "data=dataset", "data.dataset._target_=mine.Text", "data.batch_size=16", "data.epochs=3")
ADAM = ("optimizer=adam", "optimizer.lr=0.003", "evaluate=true", "data.holdout=0.1", "cost=off", "hydra.run.dir=run")


@pytest.mark.long
def test_a_causal_model_learns_the_next_byte_of_real_text_while_its_embeddings_are_frozen(cli):
    Path("mine.py").write_text(TEXT)
    model = ("model=custom", "model.build._target_=mine.CausalModel", "model.head=lm_head")
    code, _, err = cli(*model, *CAUSAL, *ADAM, "freeze=none", "freeze.patterns=[embed, place]")
    assert code == 0, err
    record = json.loads(Path("run/run.json").read_text())
    before, after = record["evaluation"]["before"], record["evaluation"]["after"]
    assert before["loss"] > 5.4  # 256 bytes, none more likely than another: log(256) is 5.55
    assert after["loss"] < 3.1
    assert before["accuracy"] < 0.05
    assert after["accuracy"] > 0.2  # a model that copies its input has the accuracy of repeated bytes, below 0.03
    assert (record["verdict"], record["counts"]["held"]) == ("held", 2)


@pytest.mark.long
def test_a_gpt2_of_transformers_learns_the_next_byte_of_real_text(cli):
    build = "import transformers\n\n\ndef gpt2():\n    return transformers.GPT2LMHeadModel(transformers.GPT2Config("
    sizes = "n_embd=64, n_layer=2, n_head=4, vocab_size=256, n_positions=64, bos_token_id=0, eos_token_id=0))\n"
    Path("mine.py").write_text(TEXT + build + sizes)
    model = ("model=custom", "model.build._target_=mine.gpt2", "model.head=lm_head")
    code, _, err = cli(*model, *CAUSAL, *ADAM, "freeze=none", "freeze.patterns=[transformer.wpe, transformer.h.0]")
    assert code == 0, err
    evaluation = json.loads(Path("run/run.json").read_text())["evaluation"]
    assert evaluation["before"]["loss"] > 5.4
    assert evaluation["after"]["loss"] < 3.5


DIABETES = """
from sklearn.datasets import load_diabetes
import torch


def diabetes():
    x, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    return torch.utils.data.TensorDataset(torch.tensor(x, dtype=torch.float32) * 20, torch.tensor(y, dtype=torch.float32))


def net():
    return torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
"""


@pytest.mark.long
def test_a_regression_is_refused_by_auto_and_learned_with_the_loss_that_its_message_names(cli):
    Path("mine.py").write_text(DIABETES)
    model = (
        "model=custom",
        "model.build._target_=mine.net",
        "model.head='2'",
        "freeze.patterns=['2.bias']",
        "freeze.keep=[]",
    )
    data = (
        "data=dataset",
        "data.dataset._target_=mine.diabetes",
        "data.batch_size=16",
        "data.epochs=20",
        "data.holdout=0.2",
    )
    more = ("optimizer.lr=0.01", "optimizer.momentum=0", "cost=off", "evaluate=true")
    code, _, err = cli(*model, *data, *more)
    assert (code, err.count("\n")) == (2, 1)
    assert "task.loss=mse_loss" in err
    code, _, err = cli(*model, *data, *more, "task.loss=mse_loss", "metrics=[R2Score]", "hydra.run.dir=run")
    assert code == 0, err
    evaluation = json.loads(Path("run/run.json").read_text())["evaluation"]
    assert "accuracy" not in evaluation["after"]
    assert evaluation["after"]["loss"] < 0.8 * evaluation["before"]["loss"]
    assert evaluation["after"]["r2_score"] > 0.3


DIGITS = """
import torch
from safetensors.torch import load_file
from torch.utils.data import Subset

from runner.training.data.pictures import Digits
from runner.training.models import MLP


def digits(first, last, classes=tuple(range(10))):
    '''The digits from number `first` to `last` in a fixed random order, of these classes, which are numbered from 0.'''
    every = Digits([64])
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [index for index in order if every.targets[index] in classes][first:last]
    every.targets = [classes.index(target) if target in classes else -1 for target in every.targets]
    return Subset(every, chosen)


def mlp(features, classes, weights=None):
    '''An MLP; with a file of weights, all but its head has those.'''
    model = MLP(features, 64, classes)
    if weights:
        backbone = {name: value for name, value in load_file(weights).items() if not name.startswith('head')}
        model.load_state_dict(backbone, strict=False)
    return model
"""


def accuracies(cli, name, data, *more):
    """Return the accuracies on held-out digits of five seeds, after 25 passes over a few digits."""
    first, last, test_first, test_last, classes = data
    of_classes = f"classes: {list(classes)}"
    code, _, err = cli(
        *("-m", "seed=1,2,3,4,5", "model=mlp", "++model.build={_target_: mine.mlp}", f"model.classes={len(classes)}"),
        *("~model.build.width", *more, "data=dataset", "data.dataset._target_=mine.digits", "evaluate=true", "cost=off"),
        *(f"++data.dataset.first={first}", f"++data.dataset.last={last}", f"++data.dataset.classes={list(classes)}"),
        f"data.test={{_target_: mine.digits, first: {test_first}, last: {test_last}, {of_classes}}}",
        *("data.batch_size=10", "data.epochs=25", "optimizer=adam", "optimizer.lr=0.003", f"hydra.sweep.dir={name}"),
    )
    assert code == 0, err
    return [float(row["test_accuracy"]) for row in read_table(Path(name, "comparison.csv"))]


def trained_backbone(cli, name, data):
    """Train on many digits, and return the override that loads the weights of that run."""
    first, last, classes = data
    code, _, err = cli(
        *("model=mlp", "++model.build={_target_: mine.mlp}", "~model.build.width", f"model.classes={len(classes)}"),
        *("freeze=none", "data=dataset", "data.dataset._target_=mine.digits", "cost=off", "save=true"),
        *(f"++data.dataset.first={first}", f"++data.dataset.last={last}", f"++data.dataset.classes={list(classes)}"),
        *("data.batch_size=32", "data.epochs=10", "optimizer=adam", "optimizer.lr=0.003", f"hydra.run.dir={name}"),
    )
    assert code == 0, err
    return f"++model.build.weights={Path(name, 'model.safetensors')}"


@pytest.mark.long
def test_a_frozen_backbone_wins_on_new_digits_of_its_classes_and_loses_on_other_classes(cli):
    Path("mine.py").write_text(DIGITS)
    every, low, high = tuple(range(10)), (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
    of_all, of_low = trained_backbone(cli, "all", (0, 1000, every)), trained_backbone(cli, "low", (0, 800, low))
    fifty, others = (1000, 1050, 1050, 1797, every), (0, 50, 200, 890, high)
    frozen = accuracies(cli, "frozen", fifty, "freeze=backbone", of_all)
    anew = accuracies(cli, "anew", fifty, "freeze=none")
    assert mean(frozen) > 0.89
    assert mean(anew) < 0.79
    assert min(frozen) > max(anew)
    frozen = accuracies(cli, "frozen_others", others, "freeze=backbone", of_low)
    anew = accuracies(cli, "anew_others", others, "freeze=none")
    assert mean(frozen) < 0.68
    assert mean(anew) > 0.83
    assert max(frozen) < min(anew)
