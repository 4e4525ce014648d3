"""Experts in folders: merged while they are loaded, and split again when they are saved, compressed all the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experts_models import CONFIGS, logits, model_of, same_state
from helpers import first_always
from transformers import AutoModelForCausalLM
from transformers_models import convert, same_weights, tensors_in

import sparsefmt
from sparsefmt.errors import SparsefmtError
from sparsefmt.quantizing import Quantization
from sparsefmt.torch import SparseStack, sparsify
from sparsefmt.transformers import SparsefmtConfig
from sparsefmt.transformers.compressed_parameter import StandIn
from sparsefmt.transformers.compressed_stack import StackStandIn


@pytest.fixture
def made_dense(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the compressed tensors that were made dense on their way."""
    found: list[tuple[int, ...]] = []
    for kind in (StandIn, StackStandIn):

        def dense(self: Any, original: Any = kind.dense) -> torch.Tensor:
            found.append(tuple(self.shape))
            return original(self)

        monkeypatch.setattr(kind, "dense", dense)
    return found


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=SparsefmtConfig(min_size=0, **options))


@pytest.mark.parametrize("name", first_always(CONFIGS, 6))
def test_a_folder_is_loaded_and_saved_without_ever_being_dense(
    name: str, tmp_path: Path, made_dense: list[tuple[int, ...]]
) -> None:
    model = model_of(name)
    state, expected = model.state_dict(), logits(model)
    model.save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse")
    loaded = load(tmp_path / "sparse")
    summary = loaded.hf_quantizer.result.summary
    assert summary.stacks == summary.compressed_stacks > 0
    assert summary.pruned_share >= 0.95
    words = logits(loaded)
    torch.testing.assert_close(words, expected, atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    assert not [shape for shape in made_dense if len(shape) == 3 or min(shape) > 8]
    assert same_weights(tmp_path / "sparse", tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), words)
    assert same_state(loaded.dequantize().state_dict(), state)
    # what sparsify has compressed is saved as well
    sparsify(model, min_size=0)
    model.save_pretrained(tmp_path / "again")
    assert same_weights(tmp_path / "sparse", tmp_path / "again")


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "dbrx"])
def test_safetensors_are_compressed_while_they_are_loaded(name: str, tmp_path: Path) -> None:
    model = model_of(name, torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    stacks = [module for module in loaded.modules() if isinstance(module, SparseStack)]
    assert {stack.dtype for stack in stacks} == {torch.bfloat16}
    assert same_state(loaded.dequantize().state_dict(), model.state_dict())


def test_a_folder_may_have_stacks(tmp_path: Path) -> None:
    model = model_of("mixtral")
    model.save_pretrained(tmp_path / "dense", save_original_format=False)
    convert(tmp_path / "dense", tmp_path / "sparse")
    assert "model.layers.0.mlp.experts.gate_up_proj" in tensors_in(tmp_path / "sparse")
    loaded = load(tmp_path / "sparse")
    assert loaded.hf_quantizer.result.summary.compressed_stacks == 4
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(tmp_path / "again", save_original_format=False)
    assert same_weights(tmp_path / "sparse", tmp_path / "again")


def test_an_expert_that_is_not_pruned_does_not_keep_the_others_dense(tmp_path: Path) -> None:
    model = model_of("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts.gate_up_proj.data[1].normal_()
    model.save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse")
    loaded = load(tmp_path / "sparse")
    assert loaded.hf_quantizer.result.summary.compressed_stacks == 4
    assert same_state(loaded.dequantize().state_dict(), model.state_dict())


def test_experts_compute_in_float32_with_weights_of_16_bits(tmp_path: Path) -> None:
    model = model_of("gpt_oss", torch.bfloat16)
    model.save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse")
    loaded = load(tmp_path / "sparse", compute_dtype="float32")
    stack = next(module for module in loaded.modules() if isinstance(module, SparseStack))
    assert stack.dtype == torch.float32
    assert stack[0].weight.tensor.dtype.name == "bfloat16"
    torch.testing.assert_close(logits(loaded), logits(model.float()), atol=1e-4, rtol=1e-4)
    loaded.save_pretrained(tmp_path / "again")
    assert same_weights(tmp_path / "sparse", tmp_path / "again")


def test_experts_are_not_quantized_and_that_is_said(tmp_path: Path) -> None:
    model_of("mixtral").save_pretrained(tmp_path)
    result = load(tmp_path, values="int8").hf_quantizer.result
    assert result.quantizing.left_out["model.layers.0.mlp.experts.down_proj"] == "it holds the weights of experts"


def test_scales_of_experts_in_a_file_are_multiplied_into_them_and_that_is_said(
    tmp_path: Path, made_dense: list[tuple[int, ...]]
) -> None:
    model_of("mixtral").save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse", Quantization())
    loaded = load(tmp_path / "sparse")
    assert not [shape for shape in made_dense if len(shape) == 3 or min(shape) > 8]
    result, experts = loaded.hf_quantizer.result, loaded.model.layers[0].mlp.experts
    assert "model.layers.0.mlp.experts.gate_up_proj" in result.sparse
    reason = "the scales of its elements are multiplied into it, since experts cannot have any"
    assert result.quantizing.left_out["model.layers.0.mlp.experts.down_proj"] == reason
    assert reason in str(result)
    assert not result.quantizing.losses
    tensors, name = tensors_in(tmp_path / "sparse"), "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    elements, scales = tensors[name], tensors[f"{name}_scale"]
    assert elements.dtype == np.int8
    assert torch.equal(experts.down_proj[1].weight.to_dense(), torch.from_numpy(elements * scales))


def folder_with(tmp_path: Path, **changes: np.ndarray | None) -> Path:
    """A folder whose file has other tensors, or lacks some. Names are without `model.layers.1.…experts.`."""
    model_of("qwen3_moe").save_pretrained(tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "sparse")
    path = tmp_path / "sparse" / "model.sparsefmt"
    tensors = {**sparsefmt.load_file(path)}
    for name, array in changes.items():
        key = f"model.layers.1.mlp.experts.{name.replace('__', '.')}.weight"
        del tensors[key]
        if array is not None:
            tensors[key] = sparsefmt.SparseTensor.from_dense(array)
    sparsefmt.save_file(tensors, path, {"format": "pt"})
    return tmp_path / "sparse"


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{"2__up_proj": None})
    with pytest.raises(
        SparsefmtError, match=r"1\.mlp\.experts\.2\.up_proj\.weight.*missing: the layer has 4"
    ) as caught:
        load(folder)
    assert caught.value.code == "experts"


def test_the_last_expert_may_not_be_missing_either(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{f"3__{part}_proj": None for part in ("gate", "up", "down")})
    with pytest.raises(SparsefmtError, match=r"1\.mlp\.experts\.3\..*missing: the layer has 4"):
        load(folder)


def test_experts_of_several_shapes_are_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **{"1__gate_proj": np.eye(48, 32, dtype="f4")})
    with pytest.raises(
        SparsefmtError, match=r"experts\.1\.gate_proj\.weight.*shape \[48, 32\], and expert 0 has \[48, 64\]"
    ):
        load(folder)
