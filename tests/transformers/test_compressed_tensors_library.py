"""Checkpoints that the library compressed-tensors itself has written: our elements and scales are what it reads.

The checkpoints of other tests are made by hand, so that they need no library; these say that the hand was right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers_models import output

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint, export_checkpoint
from sparsefmt.checkpoints.huggingface import quantization_of
from sparsefmt.checkpoints.quantized import quantized_weights
from sparsefmt.save_options import SaveOptions
from sparsefmt.transformers import SparsefmtConfig

library = pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
compressors = pytest.importorskip("compressed_tensors.compressors")
quantization = pytest.importorskip("compressed_tensors.quantization")

LLAMA = LlamaConfig(
    vocab_size=96,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
)
BY_TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
STATIC = {"num_bits": 8, "strategy": "tensor"}
SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {"weights": {"num_bits": 8, "strategy": "channel"}, "input_activations": BY_TOKEN},
    "int8-static": {"weights": {"num_bits": 8, "strategy": "tensor"}, "input_activations": STATIC},
    "fp8": {
        "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
        "input_activations": BY_TOKEN | {"type": "float"},
    },
    "int4": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 64}},
    "int8-weights": {"weights": {"num_bits": 8, "strategy": "channel"}},
}


def written(folder: Path, scheme: dict[str, Any]) -> Any:
    """A pruned model that the library has quantized and saved; compressed, with the compressor to undo that."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LLAMA).to(torch.bfloat16).eval()
    arguments = {name: quantization.QuantizationArgs(**given) for name, given in scheme.items()}
    group = quantization.QuantizationScheme(targets=["Linear"], **arguments)
    config = quantization.QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"])
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        found = getattr(module, "quantization_scheme", None)
        if found is not None and found.weights is not None:
            calibrate(module, found.weights)
    compressor = compressors.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return model, compressor


def calibrate(module: Any, weights: Any) -> None:
    """Prune half of a weight, and find its scales."""
    weight = module.weight.data
    weight *= torch.rand(weight.shape) < 0.5
    parts = weight.float()
    parts = parts.reshape(len(parts), -1, weights.group_size) if weights.strategy == "group" else parts
    largest = parts.abs().amax(-1)
    largest = {"tensor": largest.max().reshape(1), "channel": largest.reshape(-1, 1), "group": largest}[
        weights.strategy
    ]
    most = 448.0 if weights.type == "float" else 2.0 ** (weights.num_bits - 1) - 1
    module.weight_scale.data.copy_(largest / most)
    if hasattr(module, "input_scale"):
        module.input_scale.data.fill_(0.03125)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCHEMES))
def test_elements_and_scales_are_what_the_library_reads(name: str, tmp_path: Path) -> None:
    model, compressor = written(tmp_path / "model", SCHEMES[name])
    with Checkpoint(tmp_path / "model", ["safetensors"]) as checkpoint:
        checkpoint.fold()
        convert_checkpoint(checkpoint, tmp_path / "sparse", SaveOptions())
    found = dequantized(tmp_path / "sparse")
    compressor.decompress_model(model)
    expected = {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert found.keys() == expected.keys()
    for layer, weight in expected.items():
        assert torch.equal(found[layer], weight), layer


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCHEMES))
def test_the_library_reads_what_is_exported(name: str, tmp_path: Path) -> None:
    """Also what was folded, which is another of its formats then."""
    written(tmp_path / "model", SCHEMES[name])
    expected = output(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    for fold in (False, True):
        sparse, back = tmp_path / f"sparse-{fold}", tmp_path / f"back-{fold}"
        with Checkpoint(tmp_path / "model", ["safetensors"]) as checkpoint:
            if fold:
                checkpoint.fold()
            convert_checkpoint(checkpoint, sparse, SaveOptions())
        with Checkpoint(sparse, ["sparsefmt"]) as checkpoint:
            export_checkpoint(checkpoint, back)
        assert torch.equal(output(AutoModelForCausalLM.from_pretrained(back)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCHEMES))
def test_logits_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    """It multiplies weights that it rounds to bfloat16, by activations that it rounds as the config says."""
    written(tmp_path / "model", SCHEMES[name])
    expected = output(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32))
    config = SparsefmtConfig()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, quantization_config=config)
    assert len(model.hf_quantizer.result.sparse) == 14
    difference = (output(model) - expected).abs().max() / expected.abs().max()
    assert difference < (0.05 if name == "fp8" else 0.03)


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a converted folder as the library computes them: elements times scales, rounded to their dtype."""
    config = json.loads((folder / "config.json").read_text())
    how = quantization_of(config, folder / "config.json")
    assert how is not None
    with Checkpoint(folder, ["sparsefmt"]) as checkpoint:
        made = {}
        for weight in quantized_weights(checkpoint.holder, how).values():
            rows = weight.rows()
            elements = rows.bits(0, rows.rows).view(rows.dtype.numpy).astype(np.float32)
            scales = weight.scales()
            groups = scales.shape[1] if scales.ndim == 2 else 1
            parts = elements.reshape(rows.rows, groups, -1) * scales.reshape(-1, groups, 1)
            values = parts.reshape(rows.shape).astype(ml_dtypes.bfloat16)
            made[weight.layer] = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return made
