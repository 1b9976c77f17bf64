"""Small models and data for tests of methods: tokens, mappings, keywords, nested outputs; made by name in overrides."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

HERE = "tests.methods.token_models."
TOKENS, WIDTH = 20, 8


class Block(nn.Module):
    """Attention with rotated queries and a mask, as the layers of language models have; called with keywords."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden, angles=None, mask=None):
        query, key, value = self.attention(self.norm(hidden)).chunk(3, -1)
        if angles is not None:
            query, key = query * angles, key * angles
        return hidden + self.out(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))


class Angles(nn.Module):
    """Has a buffer and no parameters; each block needs its output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rates", torch.linspace(0.1, 1, WIDTH), persistent=False)

    def forward(self, hidden, positions):
        return (positions[..., None] * self.rates.to(hidden.device)).cos().to(hidden.dtype)


class Output(OrderedDict):
    """A mapping whose items are attributes too."""

    def __getattr__(self, name):
        return self[name]


class Language(nn.Module):
    """Embedding, angles, three blocks and an output layer; returns a mapping with the loss, as language models do."""

    def __init__(self, tied=False):
        super().__init__()
        self.embed, self.angles = nn.Embedding(TOKENS, WIDTH), Angles()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids, mask=None, labels=None):
        hidden = self.embed(ids)
        angles = self.angles(hidden, torch.arange(ids.shape[1], device=ids.device))
        mask = None if mask is None else mask[:, None, :].bool()
        for block in self.blocks:
            hidden = block(hidden, angles=angles, mask=mask)
        logits = self.head(hidden)
        loss = None if labels is None else functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(loss=loss, logits=logits)


class Encoder(nn.Module):
    """Returns its only tensor in a mapping, beside None."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(TOKENS, WIDTH), Block()

    def forward(self, ids):
        return Output(hidden=self.block(hidden=self.embed(ids)), cache=None)


class Classifier(nn.Module):
    """An encoder and a head with dropout, for sequences."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 3))

    def forward(self, ids, mask):
        hidden = self.encoder(ids).hidden
        return self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


class Pair(nn.Module):
    """Its frozen part returns two tensors, both of which are used."""

    def __init__(self):
        super().__init__()
        self.both, self.head = PairOfLayers(), nn.Linear(2 * WIDTH, 3)

    def forward(self, ids, mask):
        return self.head(torch.cat(self.both(ids), -1).mean(1))


class PairOfLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Embedding(TOKENS, WIDTH), nn.Embedding(TOKENS, WIDTH)

    def forward(self, ids):
        return self.one(ids), self.other(ids)


def own_loss(model, batch):
    """Call the model with keywords, and return the loss that it computes."""
    return model(**batch).loss


def class_loss(model, batch):
    """Call the model with two keywords, and return the loss of the classes in a mapping of the batch."""
    return functional.cross_entropy(model(ids=batch["text"]["ids"], mask=batch["text"]["mask"]), batch["target"])


class Sentences:
    """Batches of token numbers with masks: `lengths` are those of the batches; with `nested`, in a mapping in a mapping."""

    def __init__(self, lengths=(6, 6, 6), nested=False, size=4):
        self.lengths, self.nested, self.size = lengths, nested, size

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for length in self.lengths:
            ids = torch.randint(TOKENS, (self.size, length), generator=generator)
            ends = torch.randint(2, length + 1, (self.size, 1), generator=generator)
            text = {"ids": ids, "mask": (torch.arange(length) < ends).float()}
            target = torch.randint(3, (self.size,), generator=generator)
            yield {"text": text, "target": target} if self.nested else {**text, "labels": ids.clone()}


def overrides(model, task, *more, nested=False):
    """Return the overrides that train a model of this file on sentences."""
    return (
        *("model=custom", f"model.build._target_={HERE}{model}", "model.input=[1]", "model.classes=3", "model.head=head"),
        *("task=custom", f"task._target_={HERE}{task}", "task._partial_=true"),
        *("data=custom", f"data._target_={HERE}Sentences", f"data.nested={str(nested).lower()}"),
        *("freeze.keep=[]", "freeze.buffers=frozen", *more),
    )
