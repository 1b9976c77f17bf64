"""Synthetic data: shapes and ranges of their fields, and malformed fields."""

from __future__ import annotations

import weakref
from itertools import islice

import pytest
import torch

from runner.errors import ConfigError
from runner.seeding import random_state
from runner.tensors import same_bits, tensors_in
from runner.training.data.synthetic import LEAST_BYTES, MOST_BYTES, MOST_PASSES, Boxes, Synthetic, _kept

TOKENS = {"ids": {"shape": [16], "below": 50}, "mask": {"shape": []}, "labels": {"same": "ids"}}
SOURCES = {
    "pairs": Synthetic(5, input=[3, 8, 8], classes=10),
    "tokens": Synthetic(5, TOKENS),
    "boxes": Boxes([3, 32, 24], 4, 5),
    "boxes with masks and keypoints": Boxes([3, 32, 24], 4, 5, masks=True, keypoints=17),
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


def flat(batches):
    """Return all tensors of batches in one list."""
    return [tensor for batch in batches for tensor in tensors_in(batch)]


@every_source
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_same_seed_gives_the_same_batches_in_every_pass_and_another_seed_does_not(source, seed):
    torch.manual_seed(3)
    before = random_state()
    one, again, later = (flat(source.read(seed, epoch, 3)) for epoch in (0, 0, 1))
    assert random_state() == before
    assert all(same_bits(*pair) for pair in [*zip(one, again, strict=True), *zip(one, later, strict=True)])
    assert not all(same_bits(*pair) for pair in zip(one, flat(source.read(seed - 1 if seed else 1, 0, 3)), strict=True))
    assert same_bits(flat([source.reread(seed)])[0], one[0])


@every_source
def test_a_larger_count_gives_the_same_first_batches(source):
    assert all(same_bits(*pair) for pair in zip(flat(source.read(0, 0, 2)), flat(source.read(0, 0, 4)), strict=False))


@pytest.mark.parametrize(("input", "classes", "batch_size"), [([64], 2, 1), ([3, 8, 8], 1000, 7), ([2, 3, 4, 5], 1, 2)])
def test_without_fields_batches_are_pairs_of_the_models_input_and_classes(input, classes, batch_size):
    for x, y in Synthetic(batch_size, input=input, classes=classes).read(0, 0, 3):
        assert (list(x.shape), x.dtype, y.dtype) == ([batch_size, *input], torch.float32, torch.int64)
        assert set(y.tolist()) <= set(range(classes))


def test_values_have_mean_0_and_deviation_1_and_every_class_is_drawn():
    ((x, y),) = Synthetic(1000, input=[100], classes=10).read(0, 0, 1)
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1) < 0.02
    assert set(y.tolist()) == set(range(10))


def test_fields_have_their_names_shapes_and_ranges():
    (batch,) = Synthetic(5, TOKENS).read(0, 0, 1)
    assert {name: tuple(value.shape) for name, value in batch.items()} == {"ids": (5, 16), "mask": (5,), "labels": (5, 16)}
    assert same_bits(batch["ids"], batch["labels"])
    assert batch["ids"].data_ptr() != batch["labels"].data_ptr()
    assert 0 <= batch["ids"].min() <= batch["ids"].max() < 50


def test_a_list_of_fields_gives_tuples():
    (batch,) = Synthetic(2, [{"shape": [3]}, {"shape": [], "below": 2}, {"same": 0}]).read(0, 0, 1)
    assert [tuple(part.shape) for part in batch] == [(2, 3), (2,), (2, 3)]


def test_boxes_lie_in_their_picture_and_labels_are_classes():
    ((pictures, targets),) = Boxes([3, 32, 24], 4, batch_size=50).read(0, 0, 1)
    for picture, target in zip(pictures, targets, strict=True):
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        assert picture.shape == (3, 32, 24)
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= 24) & (y1 >= 0) & (y1 < y2) & (y2 <= 32)).all()
        assert ((target["labels"] >= 1) & (target["labels"] < 4)).all()


def test_memory_does_not_grow_with_the_count():
    references = []
    for x, _ in islice(SOURCES["pairs"].read(0, 0, 10**12), 5):
        references.append(weakref.ref(x))
        del x
        assert sum(each() is not None for each in references) <= 1


def test_batches_that_are_read_again_have_the_bits_of_batches_that_are_drawn_whatever_was_done_to_the_first():
    source = Synthetic(64, input=[3, 64, 64], classes=10)
    count = MOST_BYTES // (64 * (3 * 64 * 64 * 4 + 8)) + 2  # the last two are not kept
    drawn = [source.draw(generator) for generator in [torch.Generator().manual_seed(5)] for _ in range(count)]
    for read in (1, count, count):
        batches = list(source.read(5, 0, read))
        assert all(same_bits(*pair) for pair in zip(flat(drawn[:read]), flat(batches), strict=True))
        for tensor in flat(batches):
            tensor.zero_()


def test_another_seed_dtype_or_form_draws_other_batches():
    fields = [{"shape": [3]}, {"shape": [], "below": 4}]
    as_tuple, as_mapping = (next(Synthetic(2, each).read(0, 0, 1)) for each in (fields, dict(enumerate(fields))))
    assert (type(as_tuple), type(as_mapping)) == (tuple, dict)
    first = next(Synthetic(4, input=[8], classes=3).read(0, 0, 1))
    assert not same_bits(first[0], next(Synthetic(4, input=[8], classes=3).read(1, 0, 1))[0])
    assert next(Synthetic(5, input=[8], classes=3).read(0, 0, 1))[0].shape == (5, 8)
    assert next(Synthetic(4, input=[9], classes=3).read(0, 0, 1))[0].shape == (4, 9)
    torch.set_default_dtype(torch.float64)
    try:
        assert next(Synthetic(4, input=[8], classes=3).read(0, 0, 1))[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_kept_for_later_passes_has_a_limit():
    for seed in range(2 * MOST_PASSES):
        list(islice(SOURCES["pairs"].read(seed, 0, 10**12), 3))
    assert len(_kept) == MOST_PASSES
    list(islice(Synthetic(64, input=[3, 64, 64], classes=10).read(0, 0, 10**12), 20))
    count = MOST_BYTES // LEAST_BYTES + 9
    assert sum(1 for _ in Synthetic(1, input=[1], classes=2).read(0, 0, count)) == count
    for kept in _kept.values():
        assert sum(tensor.nbytes for tensor in flat(kept.batches)) <= kept.size <= MOST_BYTES
        assert len(kept.batches) <= MOST_BYTES // LEAST_BYTES


def test_readers_that_take_turns_get_the_same_batches():
    source = Synthetic(3, input=[7], classes=5)
    generator = torch.Generator().manual_seed(41)
    drawn = [source.draw(generator) for _ in range(6)]
    readers, taken = [source.read(41, 0, 6) for _ in range(2)], [0, 0]
    for turn in (0, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1):
        batch = next(readers[turn])
        assert all(same_bits(*pair) for pair in zip(flat([batch]), flat([drawn[taken[turn]]]), strict=True))
        taken[turn] += 1
    assert taken == [6, 6]


REFUSED = {
    "3": r"data.fields is 3; give a mapping or a list of fields",
    "[]": r"data.fields is \[\]; give a mapping or a list",
    "'x'": r"data.fields is 'x'; give a mapping",
    "[3]": r"data.fields.0 is 3; give {shape: \[16\], below: 100}",
    "{'x': {}}": r"data.fields.x is {}; give {shape",
    "{'x': {'shpe': [3]}}": r"data.fields.x is {'shpe': \[3\]}; give {shape",
    "{'x': {'shape': 3}}": r"data.fields.x.shape is 3; give the shape of one sample, such as \[3, 8, 8\]",
    "{'x': {'shape': [0]}}": r"data.fields.x.shape is \[0\]; give the shape",
    "{'x': {'below': 3}}": r"data.fields.x.shape is None; give the shape",
    "{'x': {'shape': [3], 'below': 0}}": r"data.fields.x.below is 0; give a whole number of 1 or more",
    "{'x': {'shape': [3], 'below': None}}": r"data.fields.x.below is None; give a whole number",
    "{'x': {'shape': [3]}, 'y': {'same': 'z'}}": r"data.fields.y.same is 'z'; give one of x, and no other key",
    "{'x': {'same': 'x'}}": r"data.fields.x.same is 'x'; give",
    "{'x': 3, 'y': {'same': 'x'}}": r"data.fields.x is 3; give",
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.items(), ids=REFUSED)
def test_malformed_fields_are_refused(fields, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Synthetic(4, eval(fields))


def test_what_the_model_does_not_say_is_asked_for():
    with pytest.raises(ConfigError, match=r"data=synthetic needs model.input; give it, or the fields of a batch"):
        Synthetic(4, classes=3)
    with pytest.raises(ConfigError, match=r"data=synthetic needs model.classes"):
        Synthetic(4, input=[3])
    with pytest.raises(ConfigError, match=r"data=boxes needs model.input=\[3,height,width\] and model.classes of 2 or more"):
        Boxes([64], 4)
    with pytest.raises(ConfigError, match=r"data=boxes needs"):
        Boxes(None, None)
    with pytest.raises(ConfigError, match=r"data.masks is 1; give true or false"):
        Boxes([3, 8, 8], 4, masks=1)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match=rf"data.keypoints is {wrong}; give a whole number of 0 or more"):
            Boxes([3, 8, 8], 4, keypoints=wrong)


def test_masks_and_keypoints_lie_in_their_boxes_which_are_the_same_without_them():
    ((pictures, targets),) = Boxes([3, 32, 24], 4, 5, masks=True, keypoints=17).read(0, 0, 1)
    assert {picture.shape for picture in pictures} == {(3, 32, 24)}
    for target in targets:
        assert (target["masks"].shape, target["masks"].dtype) == ((2, 32, 24), torch.uint8)
        assert (target["keypoints"].shape, target["keypoints"].dtype) == ((2, 17, 3), torch.float32)
        for (left, top, right, bottom), mask, points in zip(
            target["boxes"].tolist(), target["masks"], target["keypoints"], strict=True
        ):
            rows, columns = mask.nonzero().T.tolist()
            assert set(columns) == {x for x in range(24) if left <= x < right}
            assert set(rows) == {y for y in range(32) if top <= y < bottom}
            assert all(left <= x <= right and top <= y <= bottom and seen == 1 for x, y, seen in points.tolist())
    ((_, plain),) = Boxes([3, 32, 24], 4, 5).read(0, 0, 1)
    assert same_bits(plain[0]["boxes"], targets[0]["boxes"])
