"""SparsefmtConfig(compute_dtype="float32"): from_pretrained, and that save_pretrained writes the 16 bits again."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import first_always
from torch_helpers import same, same_state
from transformers import AutoModelForCausalLM, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers_models import (
    CONFIGS,
    QUANTIZED,
    SPARSE_LAYERS,
    check_compressed,
    check_same_words,
    convert,
    edit_config,
    kind_of,
    output,
    prune,
    same_weights,
    sparse_layers,
    tensors_in,
)

from sparsefmt.torch import SparseLinear, compute_dtype, sparsify
from sparsefmt.transformers import SparsefmtConfig

pytestmark = pytest.mark.usefixtures("small_layers")

IN_FLOAT32 = SparsefmtConfig(compute_dtype="float32")
DTYPES = [torch.bfloat16, torch.float16]
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16"}


Folders = Callable[[str, torch.dtype], tuple[Path, Path]]


@pytest.fixture(scope="module")
def small_folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folders of a model in 16 bits, by name and dtype, as safetensors and as .sparsefmt. Not to be changed."""
    root = tmp_path_factory.mktemp("models")

    @functools.cache
    def made(name: str, dtype: torch.dtype) -> tuple[Path, Path]:
        torch.manual_seed(0)
        model = prune(kind_of(name).from_config(copy.deepcopy(CONFIGS[name])), embeddings=name == "tied")
        dense = root / f"{name}-{NAMES[dtype]}"
        model.to(dtype).save_pretrained(dense)
        return dense, convert(dense, root / f"{dense.name}-sparsefmt")

    return made


def check_computing(model: Any, dtype: torch.dtype) -> None:
    # transformers leaves a text there when it has saved
    assert str(model.config.dtype).removeprefix("torch.") == "float32"
    assert model.dtype == torch.float32
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
    assert {layer.weight.tensor.operand().dtype.name for layer in layers} == {NAMES[dtype]}
    assert {layer.weight.dtype for layer in layers} == {torch.float32}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sparsefmt"}


@pytest.mark.parametrize(
    ("name", "dtype", "source"),
    first_always(
        [
            *((name, torch.bfloat16, "sparsefmt") for name in CONFIGS),
            ("gpt2", torch.float16, "safetensors"),
            ("llama", torch.float16, "sparsefmt"),
            *((name, torch.bfloat16, "safetensors") for name in CONFIGS),
        ],
        6,
        several=True,
    ),
)
def test_a_float32_model_with_weights_of_16_bits(
    name: str, dtype: torch.dtype, source: str, small_folders: Folders, tmp_path: Path
) -> None:
    dense_folder, sparse_folder = small_folders(name, dtype)
    folder = sparse_folder if source == "sparsefmt" else dense_folder
    model = kind_of(name).from_pretrained(folder, quantization_config=SparsefmtConfig(compute_dtype=torch.float32))
    check_computing(model, dtype)
    check_compressed(model, name)
    # the bits of a model whose weights are float32 with the same values
    expected = kind_of(name).from_pretrained(sparse_folder, dtype=torch.float32)
    assert same(output(model), output(expected))
    check_same_words(model, expected, name)
    # saved as it is without, bit for bit
    without = kind_of(name).from_pretrained(folder, quantization_config=SparsefmtConfig())
    without.save_pretrained(tmp_path / "without")
    for number, made in enumerate((model, copy.deepcopy(model))):
        made.save_pretrained(tmp_path / str(number))
        assert files_of(tmp_path / str(number)) == files_of(tmp_path / "without")
        assert same_weights(tmp_path / str(number), tmp_path / "without")
        assert same_weights(tmp_path / str(number), sparse_folder)
    saved = json.loads((tmp_path / "0" / "config.json").read_text())
    assert saved["dtype"] == str(dtype).removeprefix("torch.")
    assert saved["quantization_config"] == QUANTIZED
    check_computing(model, dtype)
    assert kind_of(name).from_pretrained(tmp_path / "0").dtype == dtype
    # and dense again: float32, or what was loaded
    dense = kind_of(name).from_pretrained(dense_folder)
    assert same_state(copy.deepcopy(model).dequantize(dtype), dense)
    again = copy.deepcopy(model).dequantize()
    assert same_state(again, dense.float())
    assert str(again.config.dtype).removeprefix("torch.") == "float32"


@pytest.mark.parametrize("dtype", DTYPES)
def test_tied_embeddings_stay_tied(dtype: torch.dtype, small_folders: Folders) -> None:
    for folder in small_folders("tied", dtype):
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=IN_FLOAT32)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert type(model.lm_head.weight) is torch.nn.Parameter
        assert len(sparse_layers(model)) == SPARSE_LAYERS["tied"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_that_was_made_sparse_in_memory(dtype: torch.dtype, small_folders: Folders, tmp_path: Path) -> None:
    model, without = (AutoModelForCausalLM.from_pretrained(small_folders("llama", dtype)[0]) for _ in range(2))
    sparsify(model, compute_dtype="float32")
    assert model.dtype == torch.float32
    sparsify(without)
    for made, name in ((model, "model"), (without, "without")):
        made.save_pretrained(tmp_path / name)
    assert files_of(tmp_path / "model") == files_of(tmp_path / "without")
    assert same_weights(tmp_path / "model", tmp_path / "without")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_trained_is_saved_as_it_is(dtype: torch.dtype, small_folders: Folders, tmp_path: Path) -> None:
    folder = small_folders("llama", dtype)[1]
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=IN_FLOAT32)
    with torch.no_grad():
        model.model.norm.weight[3] = 1 + 2**-20
    model.save_pretrained(tmp_path)
    found, before = tensors_in(tmp_path), tensors_in(folder)
    assert found.pop("model.norm.weight")[3] == 1 + 2**-20
    assert all(found[name].tobytes() == before[name].tobytes() for name in found)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=IN_FLOAT32)
    assert len(sparse_layers(again)) == len(sparse_layers(model))


def test_dtype_says_how_weights_are_held(llama: Path, folders: dict[str, tuple[Path, Path]]) -> None:
    for folder in (llama, folders["llama"][0]):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=IN_FLOAT32)
        check_computing(model, torch.bfloat16)
        without = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert same_state(model.dequantize(torch.bfloat16), without.dequantize() if folder == llama else without)
    # a float32 model has nothing to keep in 16 bits
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config=IN_FLOAT32)
    assert same(output(model), output(AutoModelForCausalLM.from_pretrained(llama)))
    assert {module.weight.tensor.dtype.itemsize for module in model.modules() if isinstance(module, SparseLinear)} == {
        4
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_contradictions(dtype: torch.dtype, small_folders: Folders, tmp_path: Path) -> None:
    for folder in small_folders("llama", dtype):
        with pytest.raises(ValueError, match=rf"keeps them in 16 bits: give dtype={dtype}, or leave compute_dtype out"):
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=IN_FLOAT32)
        with pytest.raises(ValueError, match=r"dtype=torch\.float64 contradicts compute_dtype='float32'"):
            AutoModelForCausalLM.from_pretrained(folder, dtype="float64", quantization_config=IN_FLOAT32)
    # what the error says works where config.json has the wrong dtype
    folder = convert(small_folders("llama", dtype)[0], tmp_path / "wrong")
    edit_config(folder, dtype="float32")
    with pytest.raises(ValueError, match="keeps them in 16 bits"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=IN_FLOAT32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=IN_FLOAT32)
    check_computing(model, dtype)


def test_config(llama: Path) -> None:
    for given in ("float32", torch.float32):
        config = SparsefmtConfig(compute_dtype=given)
        assert config.compute_dtype == "float32"
        assert config.to_dict() == SparsefmtConfig().to_dict()
    assert SparsefmtConfig().compute_dtype is None
    with pytest.raises(ValueError, match=r"compute_dtype must be None, 'float32' or torch\.float32, not 'bfloat16'"):
        SparsefmtConfig(compute_dtype="bfloat16")
    # it depends on the machine
    edit_config(llama, quantization_config={"quant_method": "sparsefmt", "compute_dtype": "float32"})
    with pytest.raises(ValueError, match=r"SparsefmtConfig\(compute_dtype=\.\.\.\)"):
        AutoModelForCausalLM.from_pretrained(llama)


def test_configs_of_parts_have_the_dtype_too(tmp_path: Path) -> None:
    text = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes = {"image_size": 8, "patch_size": 4, "projection_dim": 64}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision, **sizes}, text_config=text, image_token_index=5
    )
    prune(LlavaForConditionalGeneration(config)).to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    edit_config(tmp_path / "dense", dtype="bfloat16")
    models = [
        LlavaForConditionalGeneration.from_pretrained(tmp_path / "dense", quantization_config=how)
        for how in (IN_FLOAT32, SparsefmtConfig())
    ]
    assert models[0].config.text_config.dtype == models[0].config.vision_config.dtype == torch.float32
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1")
    assert same_weights(tmp_path / "0", tmp_path / "1")


def test_the_hint_is_given_once(small_folders: Folders, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_dtype, "_processor_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(compute_dtype, "_hinted", set())

    def hints() -> list[str]:
        return [message for message in messages if "has no instructions" in message]

    folder = small_folders("llama", torch.bfloat16)[1]
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=IN_FLOAT32)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not hints()
    for _ in range(2):
        AutoModelForCausalLM.from_pretrained(folder)
    (message,) = hints()
    assert 'from_pretrained(..., quantization_config=SparsefmtConfig(compute_dtype="float32"))' in message
