"""XLNet's attention with compressed projections: it computes what it did, and is saved as it was."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

import sparsefmt
from sparsefmt.torch import SparseStack, load_into, make_dense, make_trainable, save_model, sparsify
from sparsefmt.torch.relative_attention import SparseRelativeAttention
from sparsefmt.transformers import SparsefmtConfig

PROJECTIONS = ["k", "o", "q", "r", "v"]
TOKENS = torch.arange(14).view(2, 7) % 11


def dense_model() -> Any:
    config = transformers.XLNetConfig(
        vocab_size=11, d_model=32, n_layer=2, n_head=4, d_inner=48, mem_len=5, dropout=0.25, summary_last_dropout=0.0
    )
    torch.manual_seed(0)
    model = transformers.XLNetLMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
            if parameter.dim() > 1:
                parameter *= torch.rand_like(parameter) >= 0.8
    return model.eval()


def pair(**options: Any) -> tuple[Any, Any]:
    dense = dense_model()
    sparse = copy.deepcopy(dense)
    result = sparsify(sparse, min_size=0, **options)
    assert all(f"transformer.layer.1.rel_attn.{name}" in result.sparse for name in PROJECTIONS if not options)
    return dense, sparse


def streams() -> dict[str, Any]:
    """Two tokens of each text to predict, in an order of their own: the stream of queries."""
    mask = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(1)) < 0.3
    targets = torch.zeros(2, 2, 7)
    targets[:, 0, 5] = targets[:, 1, 2] = 1
    return {"perm_mask": mask.float(), "target_mapping": targets}


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "segments": {"token_type_ids": (torch.arange(14).view(2, 7) > 3).long()},
    "padding": {"attention_mask": (torch.arange(7) < torch.tensor([[7], [4]])).long(), "output_attentions": True},
    "streams": streams() | {"output_attentions": True},
}


def numbers_of(model: Any, **options: Any) -> list[torch.Tensor]:
    found = model(TOKENS, use_mems=True, output_hidden_states=True, **options)
    flat = torch.utils._pytree.tree_leaves(dict(found))
    return [each for each in flat if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize("call", list(CALLS))
def test_it_computes_what_the_dense_module_does(call: str) -> None:
    dense, sparse = pair()
    with torch.no_grad():
        past = dense(TOKENS, use_mems=True).mems
        for options in (CALLS[call], {**CALLS[call], "mems": past}):
            found, expected = numbers_of(sparse, **options), numbers_of(dense, **options)
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_projections_have_the_bits_of_linear() -> None:
    _, sparse = pair()
    attention = sparse.transformer.layer[0].rel_attn
    assert type(attention).__name__ == "SparseXLNetRelativeAttention"
    x = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(2))
    stack = attention.k
    assert isinstance(stack, SparseStack)
    assert "SparseStack(1 projections, shape=(32, 4, 8)" in str(attention)
    found = attention._by_heads("k", x)
    expected = sparsefmt.linear(x.view(-1, 32).numpy(), stack[0].sparse_tensor())
    assert found.shape == (3, 2, 4, 8)
    assert np.array_equal(found.view(-1, 32).numpy(), expected)


def test_gradients_and_dropout_are_those_of_the_dense_module() -> None:
    found = []
    for model in pair():
        model.train()
        torch.manual_seed(3)
        model(TOKENS, labels=TOKENS[:, :2].clone(), **streams()).loss.backward()
        attention = model.transformer.layer[0].rel_attn
        found.append([attention.r_w_bias.grad, attention.seg_embed.grad, model.transformer.word_embedding.weight.grad])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def check_same_bits(model: torch.nn.Module, dense: torch.nn.Module) -> None:
    state, expected = model.state_dict(), dense.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name].view(torch.int32), expected[name].view(torch.int32)) for name in expected)


def test_it_comes_back_with_every_bit(tmp_path: Path) -> None:
    dense, sparse = pair()
    with torch.no_grad():
        expected = sparse(TOKENS).logits
    file = tmp_path / "model.sparsefmt"
    save_model(sparse, file)
    with sparsefmt.open_file(file) as opened:
        assert opened.tensor("transformer.layer.0.rel_attn.o").shape == (32, 4, 8)
    with torch.device("meta"):
        loaded = transformers.XLNetLMHeadModel(dense.config)
    result = load_into(loaded, file, min_size=0)
    assert result.summary is not None
    assert (result.summary.attention, result.summary.compressed_attention) == (10, 10)
    other = copy.deepcopy(sparse)
    other.load_state_dict(dense.state_dict())
    refilled = copy.deepcopy(sparse)
    load_into(refilled, file, min_size=0)
    for model in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), loaded.eval(), other, refilled):
        attention = model.transformer.layer[0].rel_attn
        assert isinstance(attention, SparseRelativeAttention)
        assert isinstance(attention, XLNetRelativeAttention)
        with torch.no_grad():
            assert torch.equal(model(TOKENS).logits, expected)
        make_dense(model)
        assert type(model.transformer.layer[0].rel_attn) is XLNetRelativeAttention
        check_same_bits(model, dense)


@pytest.mark.parametrize("source", ["dense", "sparse"])
def test_transformers_loads_and_saves_it(source: str, tmp_path: Path) -> None:
    dense, sparse = pair()
    (dense if source == "dense" else sparse).save_pretrained(tmp_path / "folder")
    settings = SparsefmtConfig(min_size=0)
    loaded = type(dense).from_pretrained(tmp_path / "folder", quantization_config=settings).eval()
    assert loaded.hf_quantizer.result.summary.compressed_attention == 10
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, sparse(TOKENS).logits)
    loaded.save_pretrained(tmp_path / "again", state_dict=loaded.state_dict())
    again = type(dense).from_pretrained(tmp_path / "again", quantization_config=settings)
    again.dequantize()
    check_same_bits(again, dense)


def test_what_stays_dense_says_why_and_is_multiplied_as_it_is() -> None:
    dense, sparse = pair(exclude=["*.rel_attn.q", "*.1.rel_attn.o"])
    attention = sparse.transformer.layer[1].rel_attn
    assert isinstance(attention.q, torch.nn.Parameter)
    assert isinstance(attention.o, torch.nn.Parameter)
    assert isinstance(attention.k, SparseStack)
    with torch.no_grad():
        torch.testing.assert_close(sparse(TOKENS).logits, dense(TOKENS).logits, atol=1e-4, rtol=1e-4)
    summary = sparsify(dense_model(), min_size=0).summary
    assert summary is not None
    assert summary.surprises["transformer.layer.0.rel_attn.seg_embed"] == "it is not the weight of a linear layer"
    result = sparsify(dense_model())
    assert "1,024 elements" in result.dense["transformer.layer.0.rel_attn.q"]


def test_it_is_trained_on_and_compiled() -> None:
    _, sparse = pair()
    with torch.no_grad():
        attention, x = sparse.transformer.layer[0].rel_attn, torch.randn(3, 2, 32)
        inputs = x, None, None, None, torch.randn(6, 2, 32), None
        compiled = torch.compile(attention, backend="eager", fullgraph=True)
        assert torch.equal(compiled(*inputs)[0], attention(*inputs)[0])
    trained = make_trainable(sparse)
    assert "transformer.layer.0.rel_attn.q.0" in trained
    sparse(TOKENS, labels=TOKENS[:, :2].clone(), **streams()).loss.backward()
    values = trained["transformer.layer.0.rel_attn.q.0"].values
    assert values.grad is not None
    assert values.grad.count_nonzero()
