"""Attention of torch with compressed projections: it computes what it did, is saved as it was, takes no fast path."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import sparsefmt
from sparsefmt.torch import (
    SparseLinear,
    SparseStack,
    load_into,
    load_model,
    make_dense,
    make_sparse,
    make_trainable,
    save_model,
    sparsify,
)
from sparsefmt.torch.attention import SparseMultiheadAttention

NAMES = {"same": ["in_proj_weight"], "other": ["k_proj_weight", "q_proj_weight", "v_proj_weight"]}
BATCH, QUERIES, KEYS = 2, 5, 6


class Model(torch.nn.Module):
    """A module of attention, so that it has a name."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(32, 4, **options)

    def forward(self, *inputs: torch.Tensor, **options: Any) -> Any:
        return self.attention(*inputs, **options)


def pruned(model: torch.nn.Module, sparsity: float = 0.8) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
            if parameter.dim() > 1:
                parameter *= torch.rand_like(parameter) >= sparsity
    return model.eval()


def pair(kind: str = "same", **options: Any) -> tuple[Any, Any]:
    """A dense model, and the same compressed."""
    options |= {"kdim": 24, "vdim": 40} if kind == "other" else {}
    dense = pruned(Model(**options))
    sparse = copy.deepcopy(dense)
    result = sparsify(sparse, min_size=0)
    assert sorted(result.sparse) == sorted([*(f"attention.{name}" for name in NAMES[kind]), "attention.out_proj"])
    assert not result.dense
    return dense, sparse


def inputs_of(dense: Any, *, batched: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(1)
    attention = dense.attention
    sizes = ((QUERIES, attention.embed_dim), (KEYS, attention.kdim), (KEYS, attention.vdim))
    found = [torch.randn(BATCH, *size) for size in sizes]
    if not batched:
        return [x[0] for x in found]
    return found if attention.batch_first else [x.transpose(0, 1) for x in found]


def same_state(model: torch.nn.Module, other: torch.nn.Module) -> None:
    state, expected = model.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    assert all(state[name].numpy().tobytes() == expected[name].numpy().tobytes() for name in expected)


CAUSAL = torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(1)
PADDING = torch.arange(KEYS) >= torch.tensor([[KEYS], [4]])
BIAS = torch.linspace(-1, 1, BATCH * 4 * QUERIES * KEYS).view(BATCH * 4, QUERIES, KEYS)
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"attn_mask": CAUSAL},
    "hint": {"attn_mask": CAUSAL, "is_causal": True},
    "padding": {"key_padding_mask": PADDING},
    "both": {"key_padding_mask": PADDING, "attn_mask": CAUSAL, "is_causal": True},
    "floats": {"attn_mask": BIAS},
}


@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}])
@pytest.mark.parametrize("masks", list(MASKS))
@pytest.mark.parametrize("first", [False, True])
def test_it_computes_what_the_dense_module_does(first: bool, masks: str, weights: dict[str, Any]) -> None:
    for kind, options in (("same", {}), ("other", {"add_bias_kv": True, "add_zero_attn": True, "bias": first})):
        dense, sparse = pair(kind, batch_first=first, **options)
        x = inputs_of(dense)
        for found, expected in zip(*(model(*x, **MASKS[masks], **weights) for model in (sparse, dense)), strict=True):
            if expected is None:
                assert found is None
            else:
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_without_a_batch() -> None:
    dense, sparse = pair()
    x = inputs_of(dense, batched=False)
    for options in ({}, {"key_padding_mask": PADDING[1]}, {"attn_mask": BIAS[:4], "average_attn_weights": False}):
        for found, expected in zip(sparse(*x, **options), dense(*x, **options), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", list(NAMES))
def test_projections_have_the_bits_of_linear(kind: str) -> None:
    dense, sparse = pair(kind)
    attention, x = sparse.attention, inputs_of(dense)
    stacks = [
        getattr(attention, name) for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    ]
    layers = [layer for stack in stacks if stack is not None for layer in stack]
    assert sum("projections, shape" in line for line in str(attention).splitlines()) == len(NAMES[kind])
    biases = attention.in_proj_bias.detach().chunk(3)
    found = attention._projected(*x)
    assert len(layers) == len(found) == 3
    for y, given, layer, bias in zip(found, x, layers, biases, strict=True):
        assert type(layer) is SparseLinear
        rows = given.reshape(-1, given.shape[-1]).numpy()
        expected = sparsefmt.linear(rows, layer.sparse_tensor(), bias.numpy())
        assert np.array_equal(y.detach().reshape(-1, 32).numpy(), expected)


@pytest.mark.parametrize("kind", list(NAMES))
def test_gradients_and_dropout_are_those_of_the_dense_module(kind: str) -> None:
    found = []
    for model in pair(kind, dropout=0.25):
        x = [each.requires_grad_() for each in inputs_of(model)]
        model.train()
        torch.manual_seed(2)
        model(*x)[0].square().sum().backward()
        found.append(
            [*(each.grad for each in x), model.attention.in_proj_bias.grad, model.attention.out_proj.bias.grad]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", list(NAMES))
def test_it_comes_back_with_every_bit(kind: str, tmp_path: Path) -> None:
    dense, sparse = pair(kind)
    assert type(sparse.attention) is SparseMultiheadAttention
    assert isinstance(sparse.attention, torch.nn.MultiheadAttention)
    save_model(sparse, tmp_path / "model.sparsefmt")
    with sparsefmt.open_file(tmp_path / "model.sparsefmt") as file:
        assert set(file) == set(dense.state_dict())
    x = inputs_of(dense)
    expected = sparse(*x)[0]
    with torch.device("meta"):
        loaded = pruned(Model(**({"kdim": 24, "vdim": 40} if kind == "other" else {})))
    result = load_into(loaded, tmp_path / "model.sparsefmt", min_size=0)
    assert len(result.sparse) == len(NAMES[kind]) + 1
    again = copy.deepcopy(dense)
    load_model(again, tmp_path / "model.sparsefmt")
    same_state(again, dense)
    copied = [copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), loaded]
    filled = copy.deepcopy(sparse)
    with torch.no_grad():
        filled.attention.in_proj_bias.zero_()
    filled.load_state_dict(sparse.state_dict())
    other = copy.deepcopy(sparse)
    other.load_state_dict(dense.state_dict())
    for model in (*copied, filled, other):
        assert type(model.attention) is SparseMultiheadAttention
        assert torch.equal(model(*x)[0], expected)
        make_dense(model)
        assert type(model.attention) is torch.nn.MultiheadAttention
        assert type(model.attention.out_proj) is NonDynamicallyQuantizableLinear
        same_state(model, dense)
        assert torch.equal(model(*x)[0], dense(*x)[0])


@pytest.mark.parametrize(
    "options", [{}, {"exclude": "*.out_proj"}, {"include": "*.out_proj"}, {"include": "*.linear1"}]
)
def test_layers_around_it_take_no_fast_path(options: dict[str, Any]) -> None:
    layer = torch.nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    dense = pruned(torch.nn.TransformerEncoder(layer, 2))
    sparse = copy.deepcopy(dense)
    assert (
        len(sparsify(sparse, min_size=0, **options).sparse) == {(): 8, ("exclude",): 6, ("include",): 2}[tuple(options)]
    )
    x, padding = torch.randn(BATCH, KEYS, 32), PADDING
    for options in ({}, {"src_key_padding_mask": padding}, {"mask": torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1)}):
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
            with mode():
                found, expected = sparse(x, **options), dense(x, **options)
            seen = ~padding if "src_key_padding_mask" in options else torch.ones_like(padding)
            torch.testing.assert_close(found[seen], expected[seen], atol=1e-4, rtol=1e-4)


def test_what_stays_dense_says_why() -> None:
    class Own(torch.nn.MultiheadAttention):
        pass

    model = torch.nn.ModuleDict({"own": Own(32, 4), "full": torch.nn.MultiheadAttention(32, 4), "small": Model()})
    pruned(model)
    with torch.no_grad():
        model["full"].in_proj_weight.normal_()
    result = sparsify(model, min_size=2_000)
    assert not result.sparse
    assert "without calling it" in result.dense["own.out_proj"]
    assert "of its weight is zero" in result.dense["full.in_proj_weight"]
    assert "1,024 elements for each projection" in result.dense["small.attention.in_proj_weight"]
    assert result.summary is not None
    assert (result.summary.attention, result.summary.compressed_attention, result.summary.stacks) == (2, 0, 0)
    assert result.summary.surprises["own.in_proj_weight"] == "it is not the weight of a linear layer"
    result = sparsify(model, include=["small.*"])
    assert ", 1 of 2 projections of attention compressed" in str(result)
    assert isinstance(model["small"].attention.in_proj_weight, SparseStack)


def test_weights_that_are_masked_by_torch() -> None:
    model = Model().eval()
    torch.nn.utils.prune.l1_unstructured(model.attention, "in_proj_weight", 0.8)
    torch.nn.utils.prune.l1_unstructured(model.attention.out_proj, "weight", 0.8)
    x = inputs_of(model)
    expected = model(*x)[0]
    result = sparsify(model, min_size=0)
    assert list(result.sparse) == ["attention.out_proj"]
    assert "call its remove() first" in result.dense["attention.in_proj_weight"]
    torch.testing.assert_close(model(*x)[0], expected, atol=1e-5, rtol=1e-5)


def test_it_is_trained_on() -> None:
    dense, sparse = pair()
    x = inputs_of(dense)
    trained = make_trainable(sparse)
    assert len(trained) == 4
    y = sparse(*x)[0]
    torch.testing.assert_close(y, dense(*x)[0], atol=1e-5, rtol=1e-5)
    y.square().sum().backward()
    assert all(layer.values.grad.count_nonzero() for layer in trained.values())
    make_sparse(sparse)
    make_dense(sparse)
    # of zeros that are kept by training, the signs are lost
    assert all(map(torch.equal, sparse.state_dict().values(), dense.state_dict().values()))


def test_values_of_one_byte_are_not_for_attention() -> None:
    result = sparsify(pruned(Model(kdim=24)), min_size=0, values="int8")
    assert result.quantizing is not None
    assert result.quantizing.left_out["attention.k_proj_weight"] == "it holds the weights of projections of attention"
    assert "attention.out_proj" in result.quantizing.losses


def test_bad_input_is_refused() -> None:
    dense, sparse = pair()
    x = inputs_of(dense)
    with pytest.raises(RuntimeError, match=r"attn_mask has shape \(6, 5\)"):
        sparse(*x, attn_mask=CAUSAL.t())
    with pytest.raises(RuntimeError, match="key_padding_mask has shape"):
        sparse(*x, key_padding_mask=PADDING[:1])
    with pytest.raises(RuntimeError, match="is_causal"):
        sparse(*x, is_causal=True)
    with pytest.raises(TypeError, match="attn_mask has dtype"):
        sparse(*x, attn_mask=CAUSAL.int())
    nested = torch.nested.nested_tensor([torch.randn(3, 32), torch.randn(2, 32)])
    with pytest.raises(RuntimeError, match="use_nested_tensor"):
        sparse(nested, nested, nested)
    state = dense.state_dict()
    state["attention.in_proj_weight"] = state["attention.in_proj_weight"][:-1]
    with pytest.raises(RuntimeError, match="size mismatch"):
        sparse.load_state_dict(state)


def test_it_is_traced_and_exported() -> None:
    dense, sparse = pair(batch_first=True)
    x = inputs_of(dense)
    with torch.no_grad():
        expected = sparse(*x)[0]
        compiled = torch.compile(sparse, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(*x)[0], expected)
        program = torch.export.export(sparse, tuple(x)).module()
        torch.testing.assert_close(program(*x)[0], expected)
    buffer = io.BytesIO()
    torch.save(sparse.state_dict(), buffer)
    assert buffer.tell()
