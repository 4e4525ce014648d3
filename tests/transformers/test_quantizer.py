"""Pruned models of transformers, loaded from .sparsefmt folders: the dense model's results, and its errors."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_helpers import same_state
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
)
from transformers.pytorch_utils import Conv1D
from transformers_models import (
    CONFIGS,
    QUANTIZED,
    SPARSE_LAYERS,
    TOKENS,
    check_compressed,
    check_same_words,
    convert,
    edit_config,
    kind_of,
    output,
    prune,
    same_weights,
    sparse_layers,
)

import sparsefmt
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import SparseLinear
from sparsefmt.transformers import SparsefmtConfig, SparsefmtQuantizer
from sparsefmt.transformers.compressed_parameter import StandIn

pytestmark = pytest.mark.usefixtures("small_layers")


def test_results_are_those_of_the_dense_model(
    name: str, models: dict[str, Any], folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    dense, (_, folder) = models[name], folders[name]
    model, found = kind_of(name).from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    check_compressed(model, name)
    assert not model.training
    assert type(model) is type(dense)
    torch.testing.assert_close(output(model), output(dense), atol=1e-5, rtol=1e-5)
    check_same_words(model, dense, name)
    # there and back again
    model.save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in folder.iterdir()}
    again = kind_of(name).from_pretrained(tmp_path / "again")
    assert sparse_layers(again) == sparse_layers(model)
    assert output(again).equal(output(model))
    assert same_weights(tmp_path / "again", folder)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"] == QUANTIZED
    # every bit is there, -0.0 included
    assert same_state(model.dequantize(), dense)
    assert not sparse_layers(model)
    model.save_pretrained(tmp_path / "dense")
    assert (tmp_path / "dense" / "model.safetensors").exists()


def test_pruned_weights_are_compressed_while_they_are_loaded(
    name: str, models: dict[str, Any], folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    dense, (folder, converted) = models[name], folders[name]
    model = kind_of(name).from_pretrained(folder, quantization_config=SparsefmtConfig())
    assert len(sparse_layers(model)) == SPARSE_LAYERS[name]
    assert output(model).equal(output(kind_of(name).from_pretrained(converted)))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.sparsefmt").exists()
    assert same_state(model.dequantize(), dense)


def test_weights_of_sparse_layers_are_never_dense(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("made dense")

    monkeypatch.setattr(StandIn, "dense", refuse)
    monkeypatch.setattr(SparseTensor, "todense", refuse)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "again")
    output(AutoModelForCausalLM.from_pretrained(tmp_path / "again"))
    output(AutoModel.from_pretrained(folders["bert"][1]))
    AutoModelForCausalLM.from_pretrained(folders["llama"][0], quantization_config=SparsefmtConfig())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16", "auto", None])
def test_dtype(dtype: Any, models: dict[str, Any], folders: dict[str, tuple[Path, Path]]) -> None:
    dense, sparse = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=place)
        for folder, place in zip(folders["gpt2"], (None, "cpu"), strict=True)
    )
    assert sparse.dtype == dense.dtype
    assert {layer.weight.dtype for layer in sparse.modules() if isinstance(layer, SparseLinear)} == {dense.dtype}
    torch.testing.assert_close(output(sparse), output(dense), atol=2e-2, rtol=0)
    assert same_state(sparse.dequantize(), dense)


def test_dtype_is_that_of_the_file_where_config_has_none(llama: Path) -> None:
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(llama)
    edit_config(llama, dtype=None)
    assert AutoModelForCausalLM.from_pretrained(llama).dtype == torch.bfloat16


def test_tied_embeddings_stay_tied(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    with Checkpoint(folders["tied"][1], ["sparsefmt"]) as checkpoint:
        assert "lm_head.weight" not in checkpoint.names
    dense, sparse = folders["tied"]
    for folder, arguments in ((sparse, {}), (dense, {"quantization_config": SparsefmtConfig()})):
        model = AutoModelForCausalLM.from_pretrained(folder, **arguments)
        assert len(sparse_layers(model)) == 14
        assert type(model.lm_head) is torch.nn.Linear
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert type(model.lm_head.weight) is torch.nn.Parameter


def test_names_change_as_for_any_checkpoint(models: dict[str, Any], tmp_path: Path) -> None:
    """Weights of a model with a head load into one without, and the other way round."""
    with_head = prune(BertForMaskedLM(CONFIGS["bert"]))
    with_head.save_pretrained(tmp_path / "in")
    folder = convert(tmp_path / "in", tmp_path / "head")
    model, found = BertModel.from_pretrained(folder, output_loading_info=True, add_pooling_layer=False)
    assert all(name.startswith("cls.") for name in found["unexpected_keys"])
    assert not found["missing_keys"]
    assert len(sparse_layers(model)) == 12
    torch.testing.assert_close(output(model), output(with_head.bert), atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "body")
    model, found = BertForMaskedLM.from_pretrained(tmp_path / "body", output_loading_info=True)
    assert all(name.startswith("cls.") for name in found["missing_keys"])
    assert len(sparse_layers(model)) == 12


def test_a_dequantized_model_trains_as_a_dense_one(
    name: str, models: dict[str, Any], folders: dict[str, tuple[Path, Path]]
) -> None:
    for folder in folders[name]:
        model = kind_of(name).from_pretrained(folder, quantization_config=SparsefmtConfig()).train().dequantize()
        dense = models[name]
        assert model.training
        assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == {
            key: parameter.requires_grad for key, parameter in dense.named_parameters()
        }
        assert all(module.training for module in model.modules())
        assert [key for key, _ in model.named_parameters()] == [key for key, _ in dense.named_parameters()]
        model(TOKENS)[0].square().mean().backward()
        weights = [module.weight for module in model.modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
        assert any(weight.grad is not None and weight.grad.count_nonzero() for weight in weights)


def test_copies_compute(folders: dict[str, tuple[Path, Path]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    twin = copy.deepcopy(model)
    del model.model.layers[0]
    assert output(twin).shape == (2, 10, 96)
    assert sparse_layers(twin) - sparse_layers(model)


def test_missing_and_unexpected_keys(llama: Path, messages: list[str]) -> None:
    tensors = dict(sparsefmt.load_file(llama / "model.sparsefmt"))
    tensors["model.layers.0.mlp.what.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    sparsefmt.save_file(tensors, llama / "model.sparsefmt")
    model, found = AutoModelForCausalLM.from_pretrained(llama, output_loading_info=True)
    assert found["missing_keys"] == {"model.layers.0.mlp.up_proj.weight"}
    assert found["unexpected_keys"] == {"model.layers.0.mlp.what.weight"}
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    [report] = [message for message in messages if "LOAD REPORT" in message]
    assert str(llama) in report
    assert "mlp.up_proj.weight" in report


@pytest.mark.parametrize("sparse", [True, False])
def test_shape_mismatch(llama: Path, messages: list[str], sparse: bool) -> None:
    tensors = dict(sparsefmt.load_file(llama / "model.sparsefmt"))
    tensors["lm_head.weight"] = (np.eye if sparse else np.ones)(*[96] * (1 if sparse else 0) or [(96, 96)])
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float32)
    sparsefmt.save_file(tensors, llama / "model.sparsefmt")
    with pytest.raises(RuntimeError, match="mismatched"):
        AutoModelForCausalLM.from_pretrained(llama)
    [report] = [message for message in messages if "LOAD REPORT" in message]
    assert "lm_head.weight" in report
    assert "96, 96" in report
    model = AutoModelForCausalLM.from_pretrained(llama, ignore_mismatched_sizes=True)
    assert model.lm_head.weight.shape == (96, 64)


def test_shape_mismatch_of_a_dense_checkpoint(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path, messages: list[str]
) -> None:
    folder = folders["llama"][0]
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    edit_config(tmp_path, intermediate_size=96)
    with pytest.raises(RuntimeError, match="mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=SparsefmtConfig())
    [report] = [message for message in messages if "LOAD REPORT" in message]
    assert "mlp.up_proj.weight" in report
    assert "128, 64" in report
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=SparsefmtConfig(), ignore_mismatched_sizes=True
    )
    assert len(sparse_layers(model)) == 9


@pytest.mark.parametrize("place", ["cuda", "cuda:1", "mps", 0, {"": "disk"}, {"model": "cpu", "lm_head": "cuda:0"}])
def test_devices_that_are_not_the_cpu(place: Any, folders: dict[str, tuple[Path, Path]]) -> None:
    with pytest.raises(ValueError, match="computes on the CPU"):
        AutoModelForCausalLM.from_pretrained(folders["llama"][1], device_map=place)


@pytest.mark.parametrize("place", ["auto", "cpu", {"": "cpu"}, torch.device("cpu")])
def test_device_maps_that_are(place: Any, folders: dict[str, tuple[Path, Path]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1], device_map=place)
    assert model.device.type == "cpu"
    assert len(sparse_layers(model)) == 15


def test_shapes_are_compared_where_transformers_does_not() -> None:
    quantizer = SparsefmtQuantizer(SparsefmtConfig())
    model = torch.nn.Linear(3, 2)
    quantizer._process_model_before_weight_loading(model)
    model.weight = torch.nn.Parameter(torch.ones(2, 4))
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: .* \(2, 4\), in the model \(2, 3\)"):
        quantizer._process_model_after_weight_loading(model)


def test_what_the_quantizer_says_of_itself() -> None:
    quantizer = SparsefmtQuantizer(SparsefmtConfig())
    assert quantizer.is_serializable()
    assert quantizer.is_trainable
    assert quantizer.is_qat_trainable


MEASURED = """
import re, sys
from transformers import AutoModelForCausalLM, logging
logging.set_verbosity_error()
small, large = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(small)
except OSError as error:
    assert "no file named" in str(error)
else:
    raise AssertionError
import sparsefmt.transformers
AutoModelForCausalLM.from_pretrained(small)
def peak():
    # ru_maxrss would begin with the peak of the process that started this one
    return int(re.search("VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
model = AutoModelForCausalLM.from_pretrained(large)
print(peak() - before)
"""


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured as Linux does it")
def test_peak_memory_is_near_the_sparse_size(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Without the import, transformers says that there are no weights."""
    config = LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=8
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    rng = np.random.default_rng(0)
    made: dict[torch.Size, Any] = {}
    for parameter in model.parameters():
        if parameter.shape not in made:
            array = np.zeros(parameter.numel(), np.float32)
            array[rng.integers(0, array.size, array.size // 10)] = 1
            made[parameter.shape] = SparseTensor.from_dense(array.reshape(parameter.shape))
    # tied in the file, and not in the model
    tensors = {name: made[parameter.shape] for name, parameter in model.named_parameters()}
    dense = sum(tensor.size * 4 for tensor in tensors.values())
    sparse = sum(tensor.nbytes for tensor in tensors.values())
    assert dense > 100 << 20
    assert sparse < dense // 5
    sparsefmt.save_file(tensors, tmp_path / "model.sparsefmt", codec="zstd")
    config.save_pretrained(tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "sparsefmt"})
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folders["llama"][1]), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) * 1024 < sparse + dense // 3
