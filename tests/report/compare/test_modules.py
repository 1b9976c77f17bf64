"""The modules of a model, told from the names of its tensors."""

from __future__ import annotations

from runner.report.compare.modules import MAX_DEPTH, build_tree, divide

RESNET = [
    *("conv1.weight", "bn1.weight", "bn1.bias"),
    *(f"layer{layer}.{block}.conv{conv}.weight" for layer in range(1, 5) for block in range(2) for conv in range(6)),
    *("fc.weight", "fc.bias"),
]


def tree(names):
    return build_tree((name, name) for name in names)


def test_a_tree_has_every_tensor_once_in_the_order_of_the_model():
    assert list(tree(RESNET).items()) == RESNET
    assert list(tree(RESNET).modules) == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert tree(RESNET).modules["layer1"].modules["0"].name == "layer1.0"


def test_a_tree_is_never_deeper_than_its_limit():
    module, depth = tree([".".join("a" * 150)]), 0
    while module.modules:
        (module,) = module.modules.values()
        depth += 1
    assert depth == MAX_DEPTH
    assert [item for _, item in module.tensors] == [".".join("a" * 150)]


def test_a_model_is_divided_into_modules_of_a_few_tensors_that_have_every_tensor_once():
    parts = divide(tree(RESNET), 6, 100)
    assert [name for name, _ in parts[:4]] == ["conv1", "bn1", "layer1.0", "layer1.1"]
    assert [item for _, items in parts for item in items] == RESNET


def test_a_division_into_too_many_modules_is_not_made():
    assert len(divide(tree(RESNET), 6, 10)) <= 10
    flat = tree([f"layer{number}.weight" for number in range(500)])
    assert [(name, len(items)) for name, items in divide(flat, 20, 200)] == [("", 500)]


def test_the_own_tensors_of_a_divided_module_are_a_part_under_its_name():
    parts = divide(tree(["scale", "block.gamma", "block.0.weight", "block.1.weight"]), 1, 10)
    assert parts == [
        ("", ["scale"]),
        ("block", ["block.gamma"]),
        ("block.0", ["block.0.weight"]),
        ("block.1", ["block.1.weight"]),
    ]
