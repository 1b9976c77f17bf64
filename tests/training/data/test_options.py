"""The options of reading a dataset: values out of range, and keys that are misspelt."""

from __future__ import annotations

import pytest

from runner.errors import ConfigError
from runner.training.data.options import Loading

REFUSED = [
    ("batch_size", 0, r"data.batch_size is 0; it must be a whole number of 1 or more"),
    ("workers", -1, r"data.workers is -1; it must be a whole number of 0 or more"),
    ("workers", True, r"data.workers is True; it must be a whole number"),
    ("shuffle", 1, r"data.shuffle is 1; give true or false"),
    ("drop_last", "no", r"data.drop_last is 'no'; give true or false"),
    ("holdout", 0, r"data.holdout is 0; give the share to hold out, above 0 and below 1"),
    ("holdout", 1.5, r"data.holdout is 1.5; give the share"),
    ("holdout", "some", r"data.holdout is 'some'; give the share"),
    ("holdout", [0.5], r"data.holdout is \[0.5\]; give the share"),
    ("transform", (3,), r"data.transform is a tuple; give a function of a part of a sample"),
    ("transform", {"x": abs, "y": 3}, r"data.transform.y is a int; give a function of a part"),
    ("collate", 3, r"data.collate is a int; give a function of a list of samples"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_a_value_out_of_range_is_refused(key, value, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Loading(**{key: value})


@pytest.mark.parametrize("data", ["digits", "image_folder", "torchvision", "huggingface", "dataset"])
def test_a_misspelt_option_of_any_dataset_is_refused_before_anything_is_built(data, cli, tmp_path):
    given = ["data.root=.", "data.name=CIFAR10", "data.dataset._target_=builtins.list"]
    needed = {"image_folder": given[:1], "torchvision": given[:2], "huggingface": given[:1], "dataset": given[2:]}
    code, _, err = cli("model=mlp", f"data={data}", "model.input=[3,8,8]", *needed.get(data, []), "++data.worker=2")
    assert code == 2
    assert err.endswith("takes no worker; did you mean workers?\n")
    assert not (tmp_path / "outputs").exists()
