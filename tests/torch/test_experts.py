"""Modules of experts with compressed weights: they compute what they did, and only what tokens chose."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experts_models import CONFIGS, TOKENS, logits, model_of, same_state
from transformers_models import convert

import sparsefmt
from sparsefmt.errors import SparsefmtError
from sparsefmt.quantizing import Quantization
from sparsefmt.torch import (
    SparseLinear,
    SparseStack,
    load_into,
    load_model,
    make_dense,
    parameter_count,
    save_model,
    sparsify,
    tensors_of,
)

KINDS = ["mixtral", "gpt_oss", "llama4_text", "dbrx"]
"""One of each way to compute experts."""


def compressed(name: str = "mixtral", **options: Any) -> Any:
    model = model_of(name)
    sparsify(model, min_size=0, **options)
    return model


def experts_of(model: Any) -> Any:
    """The first module of experts."""
    return next(module for module in model.modules() if any(isinstance(c, SparseStack) for c in module.children()))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_model_computes_what_it_did_and_comes_back_with_every_bit(name: str) -> None:
    model = model_of(name)
    state, expected, kinds = {**model.state_dict()}, logits(model), [type(module) for module in model.modules()]
    result = sparsify(model, min_size=0)
    assert result.summary is not None
    assert result.summary.pruned_share is not None
    assert result.summary.pruned_share >= 0.95
    assert result.summary.stacks == result.summary.compressed_stacks > 0
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    make_dense(model)
    assert same_state(model.state_dict(), state)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("layout", ["bitmask", "permuted"])
def test_each_expert_has_the_bits_of_linear(layout: str) -> None:
    model = compressed("mixtral", layout=layout)
    stack = experts_of(model).gate_up_proj
    x = torch.randn(3, 64)
    for layer, dense in zip(stack, stack.to_dense(), strict=True):
        expected = sparsefmt.linear(x.numpy(), sparsefmt.SparseTensor.from_dense(dense, layout))
        assert np.array_equal(layer(x).numpy(), expected)


def test_only_experts_that_tokens_chose_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = experts_of(compressed())
    batches: list[tuple[int, int]] = []
    for number, layer in enumerate(experts.gate_up_proj):
        layer.register_forward_hook(lambda layer, x, y, number=number: batches.append((number, len(x[0]))))
    x = torch.randn(5, 64)
    chosen = torch.tensor([[3, 1], [1, 3], [3, 1], [1, 3], [1, 3]])
    y = experts(x, chosen, torch.full((5, 2), 0.5))
    assert batches == [(1, 5), (3, 5)]
    # experts of other machines are numbers beyond, and add nothing
    batches.clear()
    alone = experts(x, torch.where(chosen == 3, 4, chosen), torch.full((5, 2), 0.5))
    assert batches == [(1, 5)]
    other = experts(x, torch.where(chosen == 1, 4, chosen), torch.full((5, 2), 0.5))
    torch.testing.assert_close(alone + other, y)
    assert torch.equal(experts(x, torch.full((5, 2), 4), torch.ones(5, 2)), torch.zeros(5, 64))
    assert experts(x[:0], chosen[:0], torch.ones(0, 2)).shape == (0, 64)


def test_llama4_multiplies_the_tokens_that_are_not_zero() -> None:
    experts = experts_of(compressed("llama4_text"))
    tokens: list[int] = []
    for layer in experts.gate_up_proj:
        layer.register_forward_hook(lambda layer, x, y: tokens.append(len(x[0])))
    x = torch.randn(4, 3, 64) * torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]])[..., None]
    with torch.no_grad():
        y = experts(x.view(12, 64)).view(4, 3, 64)
    assert tokens == [2, 1]
    assert torch.equal((y != 0).any(-1), (x != 0).any(-1))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_the_dense_model(name: str) -> None:
    dense, sparse = model_of(name), compressed(name)
    found = []
    for model in (dense, sparse):
        embedded = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
        model(inputs_embeds=embedded).logits.square().sum().backward()
        found.append(embedded.grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_copies_pickles_and_states(name: str) -> None:
    model = compressed(name)
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = compressed(name)
    for stack in (module for module in other.modules() if isinstance(module, SparseStack)):
        stack.set_weights([sparsefmt.SparseTensor.from_dense(np.zeros(t.weight.tensor.shape, "f4")) for t in stack])
    assert not torch.equal(logits(other), expected)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(logits(other), expected)


def test_a_dense_state_is_loaded_into_a_stack() -> None:
    model, state = compressed("gpt_oss"), model_of("gpt_oss").state_dict()
    expected = logits(model)
    experts = experts_of(model)
    experts.gate_up_proj[0].set_weight(experts.gate_up_proj[1].weight.tensor)
    model.load_state_dict(state)
    assert torch.equal(logits(model), expected)
    key = next(key for key in state if key.endswith("experts.gate_up_proj"))
    with pytest.raises(RuntimeError, match=rf'While loading "{key}": size mismatch'):
        model.load_state_dict({**state, key: state[key][:3]})


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "dbrx"])
def test_files_have_stacks_and_load_into_takes_them(name: str, tmp_path: Path) -> None:
    dense, model = model_of(name), compressed(name)
    expected = logits(model)
    save_model(dense, tmp_path / "dense.sparsefmt")
    save_model(model, tmp_path / "sparse.sparsefmt")
    stacks = {key for key, tensor in tensors_of(model).items() if ".experts." in key and "_bias" not in key}
    for path in ("dense.sparsefmt", "sparse.sparsefmt"):
        with sparsefmt.open_file(tmp_path / path) as file:
            assert {key for key in file if ".experts." in key and "_bias" not in key} == stacks
        again = model_of(name)
        result = load_into(again, tmp_path / path, min_size=0)
        assert stacks <= set(result.sparse)
        assert torch.equal(logits(again), expected)
        # a second time, into what is compressed
        load_into(again, tmp_path / path, min_size=0)
        assert torch.equal(logits(again), expected)
        make_dense(again)
        assert same_state(again.state_dict(), dense.state_dict())
    filled = compressed(name)
    assert load_model(filled, tmp_path / "sparse.sparsefmt") == ([], [])
    assert torch.equal(logits(filled), expected)
    assert parameter_count(model) == parameter_count(dense)


def test_a_stack_that_was_stored_by_experts_is_loaded(tmp_path: Path) -> None:
    model = model_of("mixtral")
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    names = [key for key in state if ".experts." in key]
    sparsefmt.save_file(state, tmp_path / "m.sparsefmt", row_dims=dict.fromkeys(names, 1), layout="permuted")
    again = model_of("mixtral")
    assert set(names) <= set(load_into(again, tmp_path / "m.sparsefmt", min_size=0).sparse)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_other_dtypes(name: str) -> None:
    model = model_of(name, torch.bfloat16)
    expected = logits(model).float()
    sparsify(model, min_size=0)
    assert experts_of(model).to(torch.bfloat16) is not None
    torch.testing.assert_close(logits(model).float(), expected, atol=5e-2, rtol=5e-2)
    rounded = compressed(name).to(torch.bfloat16)
    assert all(
        torch.equal(a.weight.to_dense(), b.weight.to_dense())
        for a, b in zip(*map(layers, (rounded, model)), strict=True)
    )


def layers(model: Any) -> list[SparseLinear]:
    return [module for module in model.modules() if isinstance(module, SparseLinear)]


@pytest.mark.thorough
def test_compile_runs_experts_outside_of_its_graph() -> None:
    model = compressed("mixtral")
    expected = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(logits(torch.compile(model, backend="eager")), expected)


def test_what_stays_dense_is_said() -> None:
    model = model_of("mixtral")
    key = "model.layers.0.mlp.experts.gate_up_proj"
    by_default = sparsify(copy.deepcopy(model))
    assert "12,288 elements for each expert: below 131,072" in by_default.dense[key]
    assert by_default.summary is not None
    assert not by_default.summary.surprises  # as for small layers
    assert "it is excluded" in sparsify(copy.deepcopy(model), min_size=0, exclude="*.experts").dense[key]
    assert "it is excluded" in sparsify(copy.deepcopy(model), min_size=0, exclude="*.gate_up_proj").dense[key]
    assert "it is not included" in sparsify(copy.deepcopy(model), include="*.self_attn.*").dense[key]
    assert key in sparsify(copy.deepcopy(model), include="*.experts").sparse
    assert key in sparsify(copy.deepcopy(model), include="*.experts.*").sparse
    torch.nn.utils.prune.l1_unstructured(model.model.layers[0].mlp.experts, "gate_up_proj", amount=0.8)
    result = sparsify(model, min_size=0)
    assert "torch.nn.utils.prune masks it" in result.dense[key]
    assert "model.layers.1.mlp.experts.gate_up_proj" in result.sparse


@pytest.mark.parametrize("name", KINDS)
def test_a_projection_that_stays_dense_is_multiplied_as_it_is(name: str) -> None:
    model = model_of(name)
    expected = logits(model)
    result = sparsify(model, min_size=0, exclude=["*.down_proj", "*.w2"])
    assert any(isinstance(layer, SparseStack) for layer in result.sparse.values())
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_a_stack_says_what_it_is() -> None:
    stack = experts_of(compressed()).gate_up_proj
    assert repr(stack).startswith("SparseStack(4 experts, shape=(4, 192, 64), dtype=torch.float32, layout=")
    assert (stack.dtype, stack.device.type, stack.dim(), stack.size(1), stack.numel()) == (
        torch.float32,
        "cpu",
        3,
        192,
        49152,
    )
    with pytest.raises(RuntimeError, match="compressed, and cannot be seen as"):
        stack.view(-1)
    matrices = [layer.weight.tensor for layer in stack]
    with pytest.raises(ValueError, match="do not make a stack of shape"):
        SparseStack.from_matrices(matrices, (4, 64, 192), False)
    with pytest.raises(ValueError, match="have one shape"):
        SparseStack.from_matrices(
            [matrices[0], sparsefmt.SparseTensor.from_dense(np.eye(4, dtype="f4"))], (2, 192, 64), False
        )


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "jamba"])
def test_load_into_merges_the_experts_of_a_checkpoint(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse")
    again = model_of(name)
    for parameter in again.parameters():
        parameter.data.zero_()
    result = load_into(again, tmp_path / "sparse", min_size=0)
    assert result.summary.stacks == result.summary.compressed_stacks > 0
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-5)
    make_dense(again)
    assert same_state(again.state_dict(), model.state_dict())
    # experts that are not pruned enough are merged too
    load_into(again, tmp_path / "sparse", min_sparsity=0.9)
    assert same_state(again.state_dict(), model.state_dict())


def test_load_into_multiplies_scales_of_experts_into_them_and_says_so(tmp_path: Path) -> None:
    model = model_of("mixtral")
    model.save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse", Quantization())
    result = load_into(model, tmp_path / "sparse", min_size=0)
    assert result.summary.stacks == result.summary.compressed_stacks == 4
    reason = "the scales of its elements are multiplied into it, since experts cannot have any"
    assert result.summary.quantizing.left_out["model.layers.0.mlp.experts.down_proj"] == reason
    file = sparsefmt.load_file(tmp_path / "sparse" / "model.sparsefmt", layout="dense")
    name = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    expected = torch.from_numpy(np.asarray(file[name]) * file[f"{name}_scale"])
    experts = model.model.layers[0].mlp.experts
    assert torch.equal(experts.down_proj[1].weight.to_dense(), expected)
    # into what is compressed already, and into what stays dense
    experts.down_proj[1].set_weight(experts.down_proj[0].weight.tensor)
    load_into(model, tmp_path / "sparse", min_size=0)
    assert torch.equal(experts.down_proj[1].weight.to_dense(), expected)
    dense = model_of("mixtral")
    assert load_into(dense, tmp_path / "sparse").summary.compressed_stacks == 0
    assert torch.equal(dense.model.layers[0].mlp.experts.down_proj[1], expected)


def test_load_into_names_an_expert_that_is_missing_or_does_not_fit(tmp_path: Path) -> None:
    model_of("mixtral").save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse")
    path = tmp_path / "sparse" / "model.sparsefmt"
    tensors = {**sparsefmt.load_file(path)}
    gone = next(key for key in tensors if "experts.2." in key)
    del tensors[gone]
    sparsefmt.save_file(tensors, path)
    with pytest.raises(SparsefmtError, match=rf"{gone}.*missing: the layer has 4 experts"):
        load_into(model_of("mixtral"), tmp_path / "sparse")
    # or that has another shape
    tensors[gone] = sparsefmt.SparseTensor.from_dense(np.eye(96, 32, dtype="f4"))
    sparsefmt.save_file(tensors, path)
    with pytest.raises(SparsefmtError, match=rf"{gone}.*has shape \[96, 32\], and expert 0 has \[96, 64\]"):
        load_into(model_of("mixtral"), tmp_path / "sparse")
