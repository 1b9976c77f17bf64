"""The FLOPs of operators, against an independent count: 2 x outputs x weights an output, and once or twice that backward."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.models
from torch import nn

from runner.cost.copies import ModelCopy, count_step
from runner.cost.operators.counter import OperatorCounter
from runner.cost.operators.formulas import formula_of, may_multiply_matrices
from runner.training.tasks.task import BatchTask

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def counted_by_hand(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """Return (FLOPs forward, FLOPs backward) of a model of convolutions and linear layers, from the shapes of its layers.

    Forward, each output of a layer takes 2 FLOPs for each weight that it depends on; of a transposed convolution, each input
    takes 2 FLOPs for each weight that it is multiplied with. Backward, the gradients of the weights take as many, and so do
    the gradients of the inputs, where something before the layer trains.
    """
    forward = backward = 0

    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal forward, backward
        transposed = getattr(layer, "transposed", False)
        positions = (inputs[0] if transposed else output).numel()
        flops = 2 * positions * layer.weight.numel() // len(layer.weight)
        forward += flops
        backward += flops * (layer.weight.requires_grad + inputs[0].requires_grad)

    handles = [layer.register_forward_hook(add) for layer in model.modules() if isinstance(layer, LAYERS)]
    fake = ModelCopy.without_values(model)
    with fake.mode:
        fake.model(fake.mode.from_tensor(x))
    for handle in handles:
        handle.remove()
    return forward, backward


MODELS = ("alexnet", "squeezenet1_1", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small")
MORE_MODELS = (
    *("vgg11", "resnext50_32x4d", "densenet121", "mobilenet_v2", "mnasnet0_5", "efficientnet_b0"),
    *("regnet_y_400mf", "convnext_tiny"),
)


@pytest.mark.parametrize("trains", ["the last layer", pytest.param("what is not depthwise", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=pytest.mark.long) for name in MORE_MODELS)])
def test_the_flops_of_torchvision_models_are_those_of_a_count_by_hand(name, trains):
    model, x = getattr(torchvision.models, name)(num_classes=10), torch.randn(2, 3, 64, 64)
    layers = [layer for layer in model.modules() if isinstance(layer, LAYERS)]
    if trains == "the last layer":
        model.requires_grad_(False)
        layers[-1].requires_grad_(True)
    else:
        for layer in layers:
            layer.requires_grad_(getattr(layer, "groups", 1) == 1)
    counted = count_step(model, BatchTask(), (x, torch.randint(10, (2,))))
    assert (counted.flops_forward, counted.flops_backward) == counted_by_hand(model, x)
    assert not counted.unpriced


CONVOLUTIONS = {
    "grouped": (nn.Conv2d(8, 12, 3, groups=4), (2, 8, 9, 9)),
    "depthwise": (nn.Conv2d(32, 32, 3, padding=1, groups=32), (2, 32, 16, 16)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=1), (2, 4, 9, 9)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2), (2, 4, 9, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
    "transposed and grouped": (nn.ConvTranspose2d(8, 12, 3, stride=2, groups=4), (2, 8, 5, 5)),
    "1-D": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "1-D, grouped": (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
    "transposed 1-D": (nn.ConvTranspose1d(4, 6, 3), (2, 4, 9)),
    "3-D": (nn.Conv3d(4, 6, (1, 2, 3)), (2, 4, 5, 6, 7)),
    "3-D, grouped": (nn.Conv3d(4, 6, 2, groups=2), (2, 4, 5, 6, 7)),
    "transposed 3-D": (nn.ConvTranspose3d(4, 6, 2, groups=2), (2, 4, 3, 3, 3)),
    "without a batch": (nn.Conv2d(4, 6, 3, groups=2), (4, 9, 9)),
}


@pytest.mark.parametrize("trains", ["everything", "the input", "the weight", "nothing"])
@pytest.mark.parametrize("on_fake_tensors", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_flops_of_a_convolution_are_those_of_a_count_by_hand(name, on_fake_tensors, trains):
    layer, shape = CONVOLUTIONS[name]
    layer.requires_grad_(trains in ("everything", "the weight"))
    first = nn.Parameter(torch.ones(()), requires_grad=trains in ("everything", "the input"))
    model = nn.Sequential(Scale(first), layer)
    x = torch.randn(shape)

    def task(model, x):
        return model(x).sum()

    counted = ModelCopy.without_values(model).count(task, x) if on_fake_tensors else count_step(model, task, x)
    assert (counted.flops_forward, counted.flops_backward) == counted_by_hand(model, x)


class Scale(nn.Module):
    """Multiplies its input with a parameter, so that the input of the next layer needs a gradient if the parameter does."""

    def __init__(self, factor: nn.Parameter) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_a_depthwise_convolution_is_not_counted_as_a_dense_one():
    layer, shape = CONVOLUTIONS["depthwise"]
    layer.requires_grad_(True)
    counted = count_step(layer, lambda model, x: model(x).sum(), torch.randn(shape).requires_grad_())
    assert counted.flops_forward == 294_912
    assert counted.flops_backward == 589_824  # torch's own formula says 9,732,096


def flops_of(function, *tensors) -> OperatorCounter:
    with OperatorCounter() as counter:
        function(*tensors)
    return counter


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype)


GROUPS = torch.tensor([2, 5, 8], dtype=torch.int32)  # the ends of three groups of rows
GROUPED = {
    "grouped rows and their backward": (lambda: grouped_product_forward_and_backward(), 3 * 2 * 8 * 16 * 24),
    "grouped rows": (
        lambda: torch._grouped_mm(random(8, 16, dtype=torch.bfloat16), random(3, 16, 24, dtype=torch.bfloat16), offs=GROUPS),
        2 * 8 * 16 * 24,
    ),
    "stacks": (
        lambda: torch._grouped_mm(random(3, 8, 16, dtype=torch.bfloat16), random(3, 16, 24, dtype=torch.bfloat16)),
        2 * 3 * 8 * 16 * 24,
    ),
    "groups within the sum": (
        lambda: torch._grouped_mm(random(16, 8, dtype=torch.bfloat16), random(8, 24, dtype=torch.bfloat16), offs=GROUPS),
        2 * 16 * 8 * 24,
    ),
}
OPERATORS = {
    "mv": (lambda: random(3, 4).mv(random(4)), 2 * 3 * 4),
    "addmv": (lambda: torch.addmv(random(3), random(3, 4), random(4)), 2 * 3 * 4),
    "dot": (lambda: random(5).dot(random(5)), 2 * 5),
    "addmm in place": (lambda: random(3, 5).addmm_(random(3, 4), random(4, 5)), 2 * 3 * 4 * 5),
    "baddbmm in place": (lambda: random(2, 3, 5).baddbmm_(random(2, 3, 4), random(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "addbmm": (lambda: torch.addbmm(random(3, 5), random(2, 3, 4), random(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "einsum": (lambda: torch.einsum("bij,bjk->bik", random(2, 3, 4), random(2, 4, 5)), 2 * 2 * 3 * 4 * 5),
    "bilinear": (lambda: nn.Bilinear(4, 5, 6)(random(3, 4), random(3, 5)), 2 * 3 * 4 * 5 * 6),
    "cdist": (lambda: torch.cdist(random(30, 8), random(40, 8)), 2 * 30 * 40 * (8 + 2)),
    "integers": (lambda: torch._int_mm(torch.ones(32, 16).char(), torch.ones(16, 8).char()), 2 * 32 * 16 * 8),
    "linear in inference mode": (lambda: torch.inference_mode()(nn.Linear(4, 5))(random(3, 4)), 2 * 3 * 4 * 5),
    **(GROUPED if hasattr(torch, "_grouped_mm") else {}),  # since torch 2.8
}


def grouped_product_forward_and_backward():
    a = random(8, 16, dtype=torch.bfloat16).requires_grad_()
    b = random(3, 16, 24, dtype=torch.bfloat16).requires_grad_()
    torch._grouped_mm(a, b, offs=GROUPS).backward(random(8, 24, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_that_multiplies_matrices_is_counted(name):
    function, expected = OPERATORS[name]
    counter = flops_of(function)
    assert (counter.flops, counter.unpriced) == (expected, set())


@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("packed", [False, True])
def test_a_recurrent_layer_is_counted_by_its_weights_and_positions(cls, packed):
    layer = cls(8, 16, num_layers=2, bidirectional=True)
    x = random(5, 3, 8)
    inputs = nn.utils.rnn.pack_sequence(list(x.unbind(1))) if packed else x
    with OperatorCounter() as counter:
        output = layer(inputs)[0]
        forward = counter.flops
        (output.data if packed else output).sum().backward()
    weights = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() == 2)
    assert forward == 2 * 5 * 3 * weights
    first = sum(parameter.numel() for name, parameter in layer.named_parameters() if name.startswith("weight_ih_l0"))
    recurrent = sum(parameter.numel() for name, parameter in layer.named_parameters() if name.startswith("weight_hh"))
    backward = counter.flops - forward
    # At most the gradients of weights and inputs. Those of the input of the layer and of the first states may be left out.
    assert forward + 2 * 5 * 3 * (weights - first) - 2 * 3 * recurrent <= backward <= 2 * forward
    assert not counter.unpriced


def test_attention_is_counted_by_its_products():
    query, key, value = (random(2, 4, length, 8).requires_grad_() for length in (5, 7, 7))
    counter = flops_of(lambda: nn.functional.scaled_dot_product_attention(query, key, value).sum().backward())
    product = 2 * 2 * 4 * 5 * 7 * 8
    assert counter.flops in (
        2 * product + 4 * product,
        2 * product + 5 * product,
    )  # a fused kernel computes the scores again
    assert not counter.unpriced


def test_a_deformable_convolution_is_counted_as_a_convolution():
    x, weight = random(2, 4, 9, 9).requires_grad_(), random(6, 4, 3, 3).requires_grad_()
    offset = torch.zeros(2, 18, 7, 7)
    counter = flops_of(lambda: torchvision.ops.deform_conv2d(x, offset, weight).sum().backward())
    assert (counter.flops, counter.unpriced) == (3 * 2 * 2 * 6 * 7 * 7 * 4 * 9, set())


@torch.library.custom_op("cost_test::product", mutates_args=())
def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


@product.register_fake
def _(a, b):
    return a.new_empty(a.shape[0], b.shape[1])


@torch.library.custom_op("cost_test::scale", mutates_args=())
def scale(a: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return a * by


UNPRICED = {
    "of another library": (lambda: product(random(3, 4), random(4, 5)), {"cost_test::product"}),
    "a matrix exponential": (lambda: torch.linalg.matrix_exp(random(3, 3)), {"aten::linalg_matrix_exp"}),
    "of sparse matrices": (lambda: torch.mm(random(3, 4).to_sparse(), random(4, 5)), {"aten::mm"}),
    "of a matrix, of another library": (lambda: scale(random(3, 4), random(4)), {"cost_test::scale"}),
    "of vectors, of another library": (lambda: scale(random(4), random(4)), set()),
    "boxes": (lambda: torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1], [2, 2, 3, 3]]), random(2), 0.5), set()),
    "elementwise": (lambda: (random(3, 4) * random(3, 4)).softmax(0).sum(), set()),
    "interpolation": (lambda: nn.functional.interpolate(random(1, 2, 4, 4), scale_factor=2, mode="bilinear"), set()),
    "regions of images": (
        lambda: torchvision.ops.roi_align(random(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5], [0, 2, 2, 6, 6]]), 2),
        set(),
    ),
}


@pytest.mark.parametrize("name", UNPRICED)
def test_an_operator_that_may_multiply_matrices_and_has_no_formula_is_named(name):
    function, names = UNPRICED[name]
    assert flops_of(function).unpriced == names


def test_every_operator_of_torch_whose_name_says_that_it_multiplies_has_a_formula_or_is_named():
    """What torch's own counter knows is known here too, and the names that were read by a person are sorted as they were."""
    named = ("slow_conv3d_forward", "mkldnn_linear", "miopen_rnn", "linalg_qr", "_sparse_addmm", "cholesky_solve")
    harmless = (
        "upsample_bilinear2d",
        "upsample_linear1d",
        "linalg_vector_norm",
        "add",
        "native_batch_norm",
        "lgamma",
        "_thnn_fused_lstm_cell",
        "_thnn_fused_gru_cell_backward",
    )
    for name in (*named, *harmless):
        operator = getattr(getattr(torch.ops.aten, name), getattr(torch.ops.aten, name).overloads()[0])
        assert formula_of(operator) is None
        assert may_multiply_matrices(operator, ()) is (name in named), name
    for packet in torch.utils.flop_counter.flop_registry:
        if hasattr(packet, "overloads"):
            assert formula_of(getattr(packet, packet.overloads()[0])) is not None


def test_a_formula_that_was_given_to_torch_is_used():
    @torch.library.custom_op("cost_test::priced", mutates_args=())
    def priced(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b

    @torch.utils.flop_counter.register_flop_formula(torch.ops.cost_test.priced)
    def _(a_shape, b_shape, *args, out_shape=None, **kwargs):
        return 2 * math.prod(a_shape) * b_shape[1]

    counter = flops_of(lambda: priced(random(3, 4), random(4, 5)))
    assert (counter.flops, counter.unpriced) == (2 * 3 * 4 * 5, set())
