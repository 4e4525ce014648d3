"""Layers whose values are trained and whose zeros stay, against dense layers whose gradients are masked."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import numpy as np
import pytest
import torch
from torch_helpers import conv1d, raw

from sparsefmt import SparseTensor, UnsupportedError
from sparsefmt.torch import (
    SparseLinear,
    TrainableSparseLinear,
    keep_zeros,
    load_into,
    load_model,
    make_dense,
    make_sparse,
    make_trainable,
    parameter_count,
    save_model,
    sparsify,
    tensors_of,
)

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(1, 1), (5, 7), (8, 30), (16, 64), (33, 130), (40, 200)]


def pruned(rows: int, cols: int, dtype: torch.dtype = torch.float32, sparsity: float = 0.7) -> torch.nn.Linear:
    torch.manual_seed(0)
    linear = torch.nn.Linear(cols, rows, dtype=dtype)
    with torch.no_grad():
        linear.weight.mul_(torch.rand(linear.weight.shape) >= sparsity)
        linear.weight[0, 0] = 1
    return linear


def positions(linear: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns in the order of the values, slowly."""
    keep = linear.weight != 0
    rows, cols = keep.shape
    found = [
        (row, col)
        for first in range(0, rows, 16)
        for col in range(cols)
        for row in range(first, min(first + 16, rows))
        if keep[row, col]
    ]
    return tuple(torch.tensor(part) for part in zip(*found, strict=True))  # type: ignore[return-value]


def naive_gradient(x: np.ndarray, g: np.ndarray) -> np.floating:
    """x and g (tokens,): one value's gradient in the order that kernels/sampled.py has, with fma as exact as needed."""
    kind = x.dtype.type
    total = None
    for begin in range(0, len(x), 64):
        lanes = [kind(0)] * 16
        for token in range(begin, min(begin + 64, len(x))):
            # whole numbers, so small that products and sums are exact in float64: rounded once
            lanes[token % 16] = kind(np.float64(x[token]) * np.float64(g[token]) + np.float64(lanes[token % 16]))
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [kind(low + high) for low, high in zip(lanes[:half], lanes[half:], strict=True)]
        total = lanes[0] if total is None else kind(total + lanes[0])
    return kind(0) if total is None else total


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 150])
def test_gradients_are_those_of_the_dense_layer(shape, tokens):
    linear = pruned(*shape)
    layer, places = TrainableSparseLinear.from_linear(linear), positions(linear)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(layer.places(), places, strict=True))
    assert torch.equal(layer.values, linear.weight[places])
    twin = copy.deepcopy(linear).double()
    x = torch.randn(tokens, shape[1])
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    g = torch.randn(tokens, shape[0])
    layer(ours).backward(g)
    twin(theirs).backward(g.double())
    torch.testing.assert_close(layer.values.grad.double(), twin.weight.grad[places], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad.double(), twin.bias.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [5, 40, 130])
def test_the_order_of_additions_is_the_one_that_is_written(tokens):
    linear = pruned(20, 40)
    layer, (rows, cols) = TrainableSparseLinear.from_linear(linear), positions(linear)
    generator = torch.Generator().manual_seed(1)
    # 11 bits each: sums need more than float32 has, and float64 holds each product and each sum of two
    x = (torch.randint(-1500, 1500, (tokens, 40), generator=generator) / 64).float()
    g = (torch.randint(-1500, 1500, (tokens, 20), generator=generator) * 64).float()
    inputs = x.clone().requires_grad_()
    layer(inputs).backward(g)
    for number in range(0, layer.nnz, 7):
        expected = naive_gradient(x[:, cols[number]].numpy(), g[:, rows[number]].numpy())
        assert layer.values.grad[number].item() == expected, number
    transposed = SparseLinear.from_linear(linear)
    again = x.clone().requires_grad_()
    transposed(again).backward(g)
    assert raw(inputs.grad) == raw(again.grad)


def test_bits_do_not_depend_on_threads_and_empty_batches_have_gradients():
    layer = TrainableSparseLinear.from_linear(pruned(300, 500))
    x, g = torch.randn(2, 100, 500), torch.randn(2, 100, 300)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            layer.zero_grad()
            inputs = x.clone().requires_grad_()
            layer(inputs).backward(g)
            found.append((raw(layer.values.grad), raw(inputs.grad)))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    layer.zero_grad()
    layer(torch.empty(0, 500)).sum().backward()
    assert not layer.values.grad.any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_other_dtypes_of_values_and_activations(dtype):
    linear = pruned(24, 50, dtype)
    layer, places = TrainableSparseLinear.from_linear(linear), positions(linear)
    assert layer.values.dtype == dtype
    for other in (dtype, torch.float32):
        layer.zero_grad()
        x = torch.randn(9, 50, dtype=other, requires_grad=True)
        y = layer(x)
        assert y.dtype == other
        y.sum().backward()
        assert layer.values.grad.dtype == dtype
        expected = x.detach().double().sum(0)[places[1]]
        tolerance = 1e-9 if dtype == other == torch.float64 else 0.05
        torch.testing.assert_close(layer.values.grad.double(), expected, rtol=tolerance, atol=tolerance)
        assert x.grad.dtype == other


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
}


def net() -> torch.nn.Sequential:
    return torch.nn.Sequential(pruned(80, 48), torch.nn.ReLU(), pruned(16, 80))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6) -> list[float]:
    generator = torch.Generator().manual_seed(5)
    x, target = torch.randn(70, 48, generator=generator), torch.randn(70, 16, generator=generator)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_those_of_the_dense_model_with_its_zeros_kept(make):
    sparse, dense = net(), net()
    zeros = [layer.weight == 0 for layer in (dense[0], dense[2])]
    sparsify(sparse, min_size=0)
    assert sorted(make_trainable(sparse)) == ["0", "2"]
    ours = train(sparse, make(sparse.parameters()))
    with keep_zeros(dense) as kept:
        assert kept.names == ["0.weight", "2.weight"]
        theirs = train(dense, make(dense.parameters()))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert all(after < before for before, after in itertools.pairwise(ours))
    for layer, other, mask in zip((sparse[0], sparse[2]), (dense[0], dense[2]), zeros, strict=True):
        assert torch.equal(other.weight == 0, mask)
        assert torch.equal(layer.weight.to_dense() == 0, mask)
        torch.testing.assert_close(layer.weight.to_dense(), other.weight, rtol=1e-3, atol=1e-3)


def test_checkpointing_accumulation_and_clipping():
    model = torch.nn.Sequential(
        *(TrainableSparseLinear.from_linear(layer) for layer in (pruned(48, 48), pruned(8, 48)))
    )
    x = torch.randn(20, 48)
    model(x).square().sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.utils.checkpoint.checkpoint(model, x.clone().requires_grad_(), use_reentrant=False).square().sum().backward()
    assert all(torch.equal(p.grad, expected) for p, expected in zip(model.parameters(), plain, strict=True))
    model(x).square().sum().backward()
    for parameter, expected in zip(model.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, 2 * expected)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    model[0].values.requires_grad_(False)
    model.zero_grad()
    model(x).sum().backward()
    assert model[0].values.grad is None


def test_values_that_change_between_forward_and_backward_are_noticed():
    layer = TrainableSparseLinear.from_linear(pruned(8, 8))
    y = layer(torch.randn(2, 8, requires_grad=True))
    with torch.no_grad():
        layer.values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_values_in_other_memory_are_taken():
    layer = TrainableSparseLinear.from_linear(pruned(8, 8))
    x = torch.randn(3, 8)
    expected = layer(x) - layer.bias
    layer.values.data = layer.values.data * 2
    torch.testing.assert_close(layer(x) - layer.bias, 2 * expected)
    layer.values.data = torch.ones(3)
    with pytest.raises(RuntimeError, match="positions, and its values have shape"):
        layer(x)


def test_copies_pickles_and_dtypes_keep_values_and_positions():
    layer = TrainableSparseLinear.from_linear(pruned(20, 30))
    x = torch.randn(4, 30)
    layer(x).sum().backward()
    with torch.no_grad():
        layer.values[3] = 0  # still a position
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for made in (copy.deepcopy(layer), torch.load(stored, weights_only=False)):
        assert torch.equal(made(x), layer(x))
        assert made.values.numel() == layer.nnz
        with torch.no_grad():
            made.values.zero_()
        assert layer.values.any()
        assert not (made(x) - made.bias).any()
    assert torch.equal(copy.deepcopy(layer).values.grad, layer.values.grad)
    half = copy.deepcopy(layer).bfloat16()
    assert half.values.dtype == half.bias.dtype == torch.bfloat16
    assert torch.equal(half.values, layer.values.bfloat16())
    expected = half(x)
    torch.testing.assert_close(half.double()(x.double()).float(), expected)
    with pytest.raises(NotImplementedError, match="on the CPU, not on meta"):
        layer.to("meta")


def test_state_dict_is_loaded_into_the_parameter_and_says_what_does_not_fit():
    linear = pruned(20, 30)
    layer, other = (TrainableSparseLinear.from_linear(linear) for _ in range(2))
    with torch.no_grad():
        layer.values.mul_(3)
        layer.values[0] = 0
    state = layer.state_dict()
    assert set(state) == {"values", "positions", "bias"}
    parameter = other.values
    for options in ({}, {"assign": True}):
        with torch.no_grad():
            other.values.fill_(7)
        other.load_state_dict(copy.deepcopy(state), **options)
        assert other.values is parameter
        assert torch.equal(other.values, layer.values)
        assert torch.equal(other(torch.ones(30)), layer(torch.ones(30)))
    empty = TrainableSparseLinear(30, 20)
    assert "without weights" in repr(empty)
    with pytest.raises(RuntimeError, match="no weights yet"):
        empty(torch.ones(30))
    empty.load_state_dict(state)
    assert torch.equal(empty.values, layer.values)
    ordinary = SparseLinear.from_linear(linear).state_dict()
    for taken in (ordinary, linear.state_dict()):
        other.load_state_dict(taken)
        assert torch.equal(other.weight.to_dense(), linear.weight)

    def refused(changed: dict, message: str) -> None:
        before = raw(other.values)
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(changed)
        assert raw(other.values) == before

    refused({**state, "values": state["values"][:-1]}, r"values\": .*saved half-way: \d+ values for \d+ positions")
    refused({"values": state["values"], "bias": state["bias"]}, "saved half-way: values without positions")
    refused({"bias": state["bias"]}, "Missing key.*values.*positions")
    refused({**state, "positions": state["positions"][:-1]}, "its positions have 89 bytes")
    moved = state["positions"].roll(2)
    refused({**state, "positions": moved}, "other positions than those of the layer")
    dense = linear.weight.detach().clone()
    dense[dense == 0] = 1
    refused({"weight": dense, "bias": state["bias"]}, "its zeros are not those of the layer, where .* have to be 0")
    refused({"weight": dense[:5], "bias": state["bias"]}, "size mismatch")
    beyond = TrainableSparseLinear(30, 20)
    positions_beyond = state["positions"].clone()
    positions_beyond[-1] |= 0x80
    count = int(np.bitwise_count(positions_beyond.numpy()).sum())
    with pytest.raises(RuntimeError, match="bits beyond its 20 rows"):
        beyond.load_state_dict({**state, "positions": positions_beyond, "values": torch.ones(count)})


def test_models_are_saved_in_the_ordinary_format(tmp_path):
    model = net()
    sparsify(model, min_size=0)
    expected_count = parameter_count(model)
    make_trainable(model)
    assert parameter_count(model) == expected_count
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    with torch.no_grad():
        model[0].values[:5] = 0
    x = torch.randn(3, 48)
    assert all(isinstance(tensors_of(model)[f"{name}.weight"], SparseTensor) for name in ("0", "2"))
    save_model(model, tmp_path / "model.sparsefmt")
    loaded = net()
    load_into(loaded, tmp_path / "model.sparsefmt", min_size=0)
    assert type(loaded[0]) is SparseLinear
    assert torch.equal(loaded(x), model(x))
    again = net()
    sparsify(again, min_size=0)
    make_trainable(again)
    load_model(again, tmp_path / "model.sparsefmt")
    assert torch.equal(again[0].values, model[0].values)
    dense = copy.deepcopy(model)
    make_dense(dense)
    torch.testing.assert_close(dense(x), model(x), rtol=1e-4, atol=1e-5)
    make_sparse(model)
    assert type(model[0]) is SparseLinear
    assert model[0].weight.tensor.nnz == again[0].nnz - 5
    assert torch.equal(loaded(x), model(x))


def test_what_is_not_trained_stays_or_is_refused():
    layer = SparseLinear.from_linear(pruned(64, 64))
    model = torch.nn.Sequential(layer, SparseLinear(64, 64, bias=False))
    model[1].share_weight(layer)
    assert make_trainable(model) == {}
    scaled = torch.nn.Sequential(pruned(64, 64), pruned(64, 64))
    sparsify(scaled, min_size=0, values="int8", include="0")
    sparsify(scaled, min_size=0, include="1")
    with pytest.warns(UserWarning, match="^1 layer has scales and is not trained: '0'") as caught:
        assert list(make_trainable(scaled)) == ["1"]
    assert caught[0].filename == __file__
    with pytest.raises(UnsupportedError, match="train, then quantize"):
        TrainableSparseLinear.from_sparse_linear(scaled[0])
    trained = TrainableSparseLinear.from_sparse_linear(layer)
    with pytest.raises(RuntimeError, match="change its `values`"):
        trained.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"positions .* are fixed"):
        trained.set_weight(layer.weight.tensor)
    for convert, given in ((make_trainable, layer), (make_sparse, trained)):
        with pytest.raises(TypeError, match="itself"):
            convert(given)


def test_layers_with_scales_are_named_and_trained_once_their_scales_are_multiplied_out():
    model = torch.nn.Sequential(*(pruned(64, 64) for _ in range(5)))
    sparsify(model, min_size=0, values="int8")
    with pytest.warns(UserWarning, match="^5 layers have scales and are not trained: '0', '1', '2', …") as caught:
        assert make_trainable(model) == {}
    assert "make_dense(model)" in str(caught[0].message)
    expected = [layer.weight.to_dense() for layer in model]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_trainable(model, exclude="*") == {}
        # as the warning says
        make_dense(model)
        sparsify(model, min_size=0)
        assert len(make_trainable(model)) == 5
    assert all(torch.equal(layer.weight.to_dense(), weight) for layer, weight in zip(model, expected, strict=True))


def test_a_conv1d_is_trained_and_comes_back():
    model = torch.nn.Sequential(conv1d(48, 32))
    sparsify(model, min_size=0, min_sparsity=0)
    expected = model[0].weight.to_dense()
    x = torch.randn(3, 48)
    y = model(x)
    make_trainable(model)
    torch.testing.assert_close(model(x), y)
    assert torch.equal(model[0].weight.to_dense(), expected)
    model[0].load_state_dict({"weight": 2 * expected, "bias": model[0].bias.detach()})
    assert torch.equal(model[0].weight.to_dense(), 2 * expected)


def test_masks_that_are_given_are_kept_and_have_to_fit():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    mask = torch.rand(8, 8) < 0.5
    kept = keep_zeros(model, masks={"0.weight": mask})
    assert not model[0].weight[~mask].any()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    assert not model[0].weight[~mask].any()
    kept.close()
    kept.close()
    optimizer.step()
    assert model[0].weight[~mask].any()
    for name, shape, message in (("1.wait", (8,), "no parameter of this name"), ("1.weight", (9,), "has shape .9,.")):
        with pytest.raises(ValueError, match=message):
            keep_zeros(model, masks={name: torch.ones(shape)})
