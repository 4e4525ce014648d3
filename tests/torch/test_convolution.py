"""SparseConv1d and SparseConv2d: bits, gradients, what has their weights, and which convolutions stay dense."""

from __future__ import annotations

import copy

import naive
import numpy as np
import pytest
import torch
import torch.nn.utils.prune

from sparsefmt.errors import UnsupportedError
from sparsefmt.torch import (
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    TrainableSparseLinear,
    load_into,
    make_dense,
    make_trainable,
    parameter_count,
    save_model,
    sparsify,
    tensors_of,
    unfolded,
)

KINDS = {torch.nn.Conv1d: SparseConv1d, torch.nn.Conv2d: SparseConv2d}

CONVOLUTIONS = {
    "point": (torch.nn.Conv2d(6, 20, 1), (3, 6, 5, 7)),
    "point, stride": (torch.nn.Conv2d(6, 20, 1, stride=2, bias=False), (2, 6, 5, 8)),
    "point, padding": (torch.nn.Conv2d(6, 20, 1, padding=1), (1, 6, 5, 5)),
    "window": (torch.nn.Conv2d(6, 20, 3, padding=1), (2, 6, 12, 15)),
    "stride and dilation": (torch.nn.Conv2d(6, 20, 3, stride=2, padding=2, dilation=2), (1, 6, 12, 15)),
    "patches": (torch.nn.Conv2d(3, 20, 4, stride=4), (2, 3, 16, 12)),
    "uneven": (torch.nn.Conv2d(3, 20, (3, 5), stride=(1, 3), padding=(2, 1), dilation=(3, 1)), (3, 16, 20)),
    "same": (torch.nn.Conv2d(3, 20, (2, 3), padding="same"), (1, 3, 8, 9)),
    "reflect": (torch.nn.Conv2d(3, 20, 3, padding=1, padding_mode="reflect"), (1, 3, 8, 9)),
    "circular": (torch.nn.Conv2d(3, 20, 3, padding=1, padding_mode="circular"), (1, 3, 8, 9)),
    "sound": (torch.nn.Conv1d(5, 20, 3, padding=1), (2, 5, 50)),
    "sound, stride": (torch.nn.Conv1d(5, 20, 3, stride=2, padding=1, padding_mode="replicate"), (5, 50)),
    "sound, same": (torch.nn.Conv1d(5, 20, 5, padding="same", dilation=2), (2, 5, 31)),
    "sound, point": (torch.nn.Conv1d(5, 20, 1), (2, 5, 31)),
}


@pytest.fixture(params=CONVOLUTIONS)
def case(request):
    """A pruned convolution, the same compressed, and images."""
    dense, shape = copy.deepcopy(CONVOLUTIONS[request.param][0]), CONVOLUTIONS[request.param][1]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(dense.weight.shape, generator=generator))
        dense.weight[torch.rand(dense.weight.shape, generator=generator) < 0.7] = 0
        if dense.bias is not None:
            dense.bias.copy_(torch.randn(20, generator=generator))
    return dense, KINDS[type(dense)].from_convolution(dense), torch.randn(shape, generator=generator)


def unfold(dense, x):
    """The activations of each place of the result, (images, places, columns), by torch."""
    if dense.padding_mode != "zeros" or isinstance(dense.padding, str):
        mode = "constant" if dense.padding_mode == "zeros" else dense.padding_mode
        x, padding = torch.nn.functional.pad(x, dense._reversed_padding_repeated_twice, mode), (0, 0)
    else:
        padding = (0, *dense.padding)[-2:]
    x = x.unsqueeze(-2) if isinstance(dense, torch.nn.Conv1d) else x
    pairs = [(1, *numbers)[-2:] for numbers in (dense.kernel_size, dense.dilation, dense.stride)]
    return torch.nn.functional.unfold(x, pairs[0], pairs[1], padding, pairs[2]).transpose(-1, -2)


def check_bits(dense, x, y):
    """y has the bits of the chain of fused multiply-adds that SPEC.md fixes, and the bias is added last."""
    batch = x if x.dim() == dense.weight.dim() else x[None]
    tokens = unfold(dense, batch)
    weight = dense.weight.detach().numpy().reshape(20, -1)
    expected = naive.product(weight, tokens.reshape(-1, weight.shape[1]).numpy(), np.float32)
    expected = torch.from_numpy(expected).view(*tokens.shape[:2], 20).transpose(1, 2)
    if dense.bias is not None:
        expected = expected + dense.bias.detach()[:, None]
    assert torch.equal(y.reshape(len(batch), 20, -1), expected)


def test_results_have_the_bits_of_the_specification(case):
    dense, sparse, x = case
    with torch.no_grad():
        expected, y = dense(x), sparse(x)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    check_bits(dense, x, y)
    # through the operator, too
    assert torch.equal(sparse(x.requires_grad_()), y)


def test_other_layouts_tokens_at_once_and_threads_make_no_difference(case, monkeypatch):
    dense, sparse, x = case
    with torch.no_grad():
        y = sparse(x)
        for layout in ("bitmask", "dense"):
            assert torch.equal(type(sparse).from_convolution(dense, layout)(x), y)
        monkeypatch.setattr(unfolded, "MOST_TOKENS", 16)
        monkeypatch.setattr(unfolded, "WORTH_SHARING", 0)
        assert torch.equal(sparse(x), y)
        if x.dim() == 4:
            last = sparse(x.to(memory_format=torch.channels_last))
            assert torch.equal(last, y)
        assert torch.equal(sparse(-torch._neg_view(x)), y)


def test_gradients_are_those_of_torch(case):
    dense, sparse, x = case
    found = []
    for layer in (dense, sparse):
        given = x.clone().requires_grad_()
        y = layer(given)
        y.backward(torch.cos(torch.arange(y.numel(), dtype=torch.float32)).view(y.shape))
        found.append((given.grad, None if layer.bias is None else layer.bias.grad.clone()))
        layer.zero_grad()
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients():
    dense = torch.nn.Conv2d(2, 3, 2, stride=2, padding=1).double()
    sparse = SparseConv2d.from_convolution(dense)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(sparse, x)
    assert torch.autograd.gradgradcheck(sparse, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(case, dtype):
    dense, sparse, x = case
    other = copy.deepcopy(sparse).to(dtype)
    assert other.weight.dtype == dtype
    y = other(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), dense(x), rtol=0.05, atol=0.1)
    assert sparse(x.to(dtype)).dtype == dtype


def test_infinite_activations_reach_what_they_are_multiplied_by():
    dense = torch.nn.Conv2d(1, 16, 3, padding=1, bias=False)
    with torch.no_grad():
        dense.weight.zero_()
        dense.weight[0, 0, 1, 1] = 1.0
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 2] = torch.inf
    y = SparseConv2d.from_convolution(dense)(x)
    assert torch.equal(y[0, 0], x[0, 0])
    assert not y[0, 1:].any()


def test_it_is_the_dense_module_to_code_and_in_a_state_dict(case):
    dense, sparse, x = case
    assert sparse.weight.shape == dense.weight.shape
    assert sparse.weight.dim() == dense.weight.dim()
    assert torch.equal(sparse.weight.to_dense(), dense.weight)
    assert np.array_equal(np.asarray(sparse.weight), dense.weight.detach().numpy())
    for name in ("stride", "padding", "dilation", "kernel_size", "in_channels", "out_channels", "groups"):
        assert getattr(sparse, name) == getattr(dense, name)
    other = type(sparse)(dense)
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other(x), sparse(x))
    other.load_state_dict(dense.state_dict())
    assert torch.equal(other(x), sparse(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({**dense.state_dict(), "weight": torch.zeros(20, 1, 1)})
    with pytest.warns(UserWarning, match="needs the elements"):
        sparse.weight.mul_(2)
    assert torch.equal(sparse.weight.to_dense(), dense.weight * 2)


class Seeing(torch.nn.Module):
    """Convolutions of all kinds, one tied to another that moves otherwise, and one in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 96, 3, stride=3)
        self.apart = torch.nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.point = torch.nn.Conv2d(96, 128, 1)
        self.window = torch.nn.Conv2d(128, 128, 3, padding=1, bias=False)
        self.again = torch.nn.Conv2d(128, 128, 3, padding=2, dilation=2, bias=False)
        self.again.weight = self.window.weight
        self.head = torch.nn.Linear(128, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.point(self.apart(self.stem(x)))
        return self.head(self.again(self.window(x)).mean((2, 3)))


SPARSE = ["again", "head", "point", "window"]
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def seeing(sparsity: float = 0.8) -> Seeing:
    torch.manual_seed(0)
    model = Seeing().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter[torch.rand(parameter.shape) < sparsity] = 0
    return model


def check_model(found: torch.nn.Module, dense: torch.nn.Module, sparse: list[str]) -> None:
    """It has these layers compressed, and the weights and results of the dense one."""
    layers = {name for name, module in found.named_modules() if isinstance(module, SparseLinear)}
    assert layers == set(sparse)
    assert {name: tuple(tensor.shape) for name, tensor in tensors_of(found).items()} == {
        name: tuple(tensor.shape) for name, tensor in dense.state_dict().items()
    }
    with torch.no_grad():
        torch.testing.assert_close(found(X), dense(X), rtol=1e-4, atol=1e-4)
    made = copy.deepcopy(found)
    make_dense(made)
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in made.state_dict().items())
    assert {type(module) for module in made.modules()} == {type(module) for module in dense.modules()}


def test_sparsify_save_and_load(tmp_path):
    dense = seeing()
    model = copy.deepcopy(dense)
    result = sparsify(model)
    assert sorted(result.sparse) == SPARSE
    assert "in 96 groups" in result.dense["apart"]
    assert "elements: below 4,096" in result.dense["stem"]
    assert "1 of 1 linear layers, 3 of 5 convolutions compressed" in str(result)
    check_model(model, dense, SPARSE)
    assert model.again.weight_arrays is model.window.weight_arrays
    assert parameter_count(model) == parameter_count(dense)
    save_model(model, tmp_path / "model.sparsefmt")
    for device in ("cpu", "meta"):
        with torch.device(device):
            loaded = Seeing().eval()
        again = load_into(loaded, tmp_path / "model.sparsefmt")
        assert again.sparse == SPARSE
        check_model(loaded, dense, SPARSE)
        assert torch.equal(loaded(X), model(X))
        # once more, into what is compressed
        load_into(loaded, tmp_path / "model.sparsefmt")
        check_model(loaded, dense, SPARSE)
    assert not make_trainable(torch.nn.Sequential(model.point))


def test_a_pruned_module_and_its_bias():
    model = torch.nn.Sequential(torch.nn.Conv2d(96, 64, 1))
    torch.nn.utils.prune.random_unstructured(model[0], "weight", 0.8)
    torch.nn.utils.prune.random_unstructured(model[0], "bias", 0.5)
    x = torch.ones(1, 96, 4, 4)
    expected = model(x).detach()
    assert list(sparsify(model).sparse) == ["0"]
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


class Own(torch.nn.Conv2d):
    """A subclass."""


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (torch.nn.Conv2d(64, 64, 3, padding=1), "faster dense below"),
        (torch.nn.Conv2d(80, 300, 1), "it has 80 channels and 300 in the result, and is faster dense"),
        (torch.nn.Conv2d(16, 300, 3, padding=1), "it has 16 channels and 300 in the result, and is faster dense"),
        (Own(64, 64, 1), "it is a Own, whose forward"),
        (torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(64, 64, 1)), "Conv2d"),
    ],
)
def test_what_stays_dense_is_said(layer, reason):
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.numel() > 100:
                parameter.view(-1)[: parameter.numel() // 2] = 0
    model = torch.nn.Sequential(layer)
    result = sparsify(model)
    assert not result.sparse
    assert reason in result.dense["0"]
    assert reason in str(result)


def test_small_and_slow_ones_are_compressed_if_that_is_asked_for():
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3))
    with torch.no_grad():
        model[0].weight.view(-1)[:600] = 0
    assert list(sparsify(model, min_size=0).sparse) == ["0"]


def test_values_in_eight_bits_leave_convolutions_out():
    model = seeing()
    result = sparsify(model, values="int8")
    assert result.quantizing.left_out["point"] == "it is a convolution"
    assert sorted(result.sparse) == SPARSE
    assert set(result.quantizing.losses) == {"head"}


def test_wrong_images():
    layer = SparseConv2d.from_convolution(torch.nn.Conv2d(3, 16, 3))
    for shape, message in (((1, 4, 8, 8), "in_channels"), ((8, 8), "takes 3 dimensions"), ((3, 2, 8), "smaller than")):
        with pytest.raises(RuntimeError, match=message):
            layer(torch.zeros(shape))
    with pytest.raises(RuntimeError, match="x has dtype"):
        layer(torch.zeros(1, 3, 8, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="one group, not of a Conv2d in groups"):
        SparseConv2d.from_convolution(torch.nn.Conv2d(4, 16, 3, groups=2))
    with pytest.raises(TypeError, match="in one group, not of a Conv2d"):
        SparseConv1d.from_convolution(torch.nn.Conv2d(4, 16, 3))


def test_no_other_layer_is_made_of_one():
    layer = SparseConv2d.from_convolution(torch.nn.Conv2d(8, 8, 1))
    with pytest.raises(UnsupportedError, match="a convolution cannot be trained"):
        TrainableSparseLinear.from_sparse_linear(layer)


def test_compilers_trace_through():
    model, dense = seeing(), seeing()
    sparsify(model)
    program = torch.export.export(model, (X,)).module()
    with torch.no_grad():
        torch.testing.assert_close(program(X), dense(X), rtol=1e-4, atol=1e-4)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(X), dense(X), rtol=1e-4, atol=1e-4)
