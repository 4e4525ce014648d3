"""Pruned models of transformers from .sparsefmt folders: the dense model's results, its errors, and its way back."""

from __future__ import annotations

import copy
import json
import logging
import mmap
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors_files import craft
from torch_helpers import same_state
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    MobileBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RwkvConfig,
    WavLMConfig,
    modeling_utils,
)
from transformers.pytorch_utils import Conv1D

import sparsefmt
from sparsefmt.checkpoints.cards import HOW_TO_LOAD
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import Settings, convert_checkpoint
from sparsefmt.errors import ChecksumError, FormatError, LimitError, UnsupportedError
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import SparseLinear, load_into, sparsify
from sparsefmt.torch.choice import Choice
from sparsefmt.transformers import SparsefmtConfig, SparsefmtQuantizer, patches, replace_layers
from sparsefmt.transformers.compressed_parameter import StandIn

pytestmark = pytest.mark.usefixtures("small_layers")

SMALL = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL, **IDS, intermediate_size=128, num_key_value_heads=2),
    "tied": LlamaConfig(**SMALL, **IDS, intermediate_size=128, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=32, **IDS),
    "bert": BertConfig(**SMALL, intermediate_size=128, max_position_embeddings=32),
    "mixtral": MixtralConfig(**SMALL, **IDS, intermediate_size=128, num_key_value_heads=2, num_local_experts=4),
}
QUANTIZED = {"quant_method": "sparsefmt", "how_to_load": HOW_TO_LOAD}
SPARSE_LAYERS = {"llama": 15, "tied": 14, "gpt2": 8, "bert": 13, "mixtral": 9}
TOKENS = torch.arange(3, 23).reshape(2, 10)


def prune(model: torch.nn.Module, *, embeddings: bool = False) -> Any:
    """Set 80 % of each linear layer to zeros of either sign."""
    generator = torch.Generator().manual_seed(0)
    kinds = (torch.nn.Linear, Conv1D, torch.nn.Embedding) if embeddings else (torch.nn.Linear, Conv1D)
    for module in model.modules():
        if isinstance(module, kinds):
            module.weight.data *= torch.rand(module.weight.shape, generator=generator) < 0.2
    return model.eval()


def kind_of(name: str) -> Any:
    return AutoModel if name == "bert" else AutoModelForCausalLM


def convert(source: Path, target: Path) -> Path:
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        convert_checkpoint(checkpoint, target, Settings())
    return target


def sparse_layers(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)[0]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def tensors_in(folder: Path) -> dict[str, np.ndarray]:
    with Checkpoint(folder, ["sparsefmt"]) as checkpoint:
        return {
            name: np.asarray(array)
            for file in checkpoint.files
            for name, array in sparsefmt.load_file(file.path, layout="dense").items()
        }


@pytest.fixture(scope="module", params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """A pruned model of each kind."""
    torch.manual_seed(0)
    made = {}
    for name, config in CONFIGS.items():
        made[name] = prune(kind_of(name).from_config(config), embeddings=name == "tied")
    return made


@pytest.fixture(scope="module")
def folders(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The folders of each, as safetensors and as .sparsefmt. Not to be changed."""
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(root / name)
        convert(root / name, root / f"{name}-sparsefmt")
    return {name: (root / name, root / f"{name}-sparsefmt") for name in models}


@pytest.fixture
def llama(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    """A .sparsefmt folder that may be changed."""
    target = tmp_path / "llama"
    target.mkdir()
    for path in folders["llama"][1].iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What transformers logs."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, logger = Collector(), logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # other tests may have silenced it
    yield found
    logger.setLevel(level)
    logger.removeHandler(handler)


# loading and saving


def test_results_are_those_of_the_dense_model(
    name: str, models: dict[str, Any], folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    dense, (_, folder) = models[name], folders[name]
    model, found = kind_of(name).from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert len(sparse_layers(model)) == SPARSE_LAYERS[name]
    assert not any(isinstance(parameter, StandIn) for parameter in model.parameters())
    assert not model.training
    assert type(model) is type(dense)
    torch.testing.assert_close(output(model), output(dense), atol=1e-5, rtol=1e-5)
    if name != "bert":
        arguments = {"max_new_tokens": 5, "do_sample": False}
        assert model.generate(TOKENS, **arguments).equal(dense.generate(TOKENS, **arguments))
    # there and back again
    model.save_pretrained(tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {path.name for path in folder.iterdir()}
    again = kind_of(name).from_pretrained(tmp_path / "again")
    assert sparse_layers(again) == sparse_layers(model)
    assert output(again).equal(output(model))
    ours, theirs = tensors_in(tmp_path / "again"), tensors_in(folder)
    assert ours.keys() == theirs.keys()
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
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


def test_options_of_the_config(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    config = SparsefmtConfig(layout="bitmask", min_sparsity=0.5, include="*.mlp.*")
    for number, folder in enumerate(folders["llama"]):
        source = tmp_path / f"in{number}"
        source.mkdir()
        for path in folder.iterdir():
            (source / path.name).write_bytes(path.read_bytes())
        if number:
            edit_config(source, quantization_config=config.to_dict())
        model = AutoModelForCausalLM.from_pretrained(source, **{} if number else {"quantization_config": config})
        assert len(sparse_layers(model)) == 6
        assert all(".mlp." in name for name in sparse_layers(model))
        layers = [module for module in model.modules() if isinstance(module, SparseLinear)]
        assert {layer.sparse_tensor().layout for layer in layers} == {"bitmask"}
        model.save_pretrained(tmp_path / f"out{number}")
        saved = json.loads((tmp_path / f"out{number}" / "config.json").read_text())["quantization_config"]
        assert saved == {**QUANTIZED, "layout": "bitmask", "min_sparsity": 0.5, "include": ["*.mlp.*"]}
    model = AutoModelForCausalLM.from_pretrained(
        folders["llama"][0], quantization_config=SparsefmtConfig(min_sparsity=0.95)
    )
    assert not sparse_layers(model)


def test_limit_and_backend_are_of_the_call(
    folders: dict[str, tuple[Path, Path]], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders["llama"][1]
    for error_in in (folder, llama):
        if error_in == llama:
            edit_config(llama, quantization_config=None)
        with pytest.raises(LimitError, match=r"raise SparsefmtConfig\(max_decoded_bytes=...\) if you trust it"):
            AutoModelForCausalLM.from_pretrained(error_in, quantization_config=SparsefmtConfig(max_decoded_bytes=1000))
    config = SparsefmtConfig(max_decoded_bytes=1 << 30, backend="pread")
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", None)
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    assert len(sparse_layers(model)) == SPARSE_LAYERS["llama"]
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == QUANTIZED
    for chosen in ({"max_decoded_bytes": 1 << 60}, {"backend": "pread"}):
        edit_config(tmp_path, quantization_config={"quant_method": "sparsefmt", **chosen})
        with pytest.raises(ValueError, match="not for a file to choose"):
            AutoModelForCausalLM.from_pretrained(tmp_path)


def test_signs_that_cost_much_are_named_once(tmp_path: Path, messages: list[str]) -> None:
    """By transformers' logger, for all shards together."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape) < 0.001
    sparsify(model, min_sparsity=0.5)
    for module in (module for module in model.modules() if isinstance(module, torch.nn.Embedding)):
        module.weight.data.zero_()
    messages.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path, max_shard_size="20KB")
    said = [message for message in messages if "signs of pruned zeros" in message]
    assert len(said) == 1
    assert 'save_pretrained(..., negative_zeros="drop") leaves them out' in said[0]
    assert len(list(tmp_path.glob("*.sparsefmt"))) > 1
    before = sum(path.stat().st_size for path in tmp_path.glob("*.sparsefmt"))
    messages.clear()
    model.save_pretrained(tmp_path, max_shard_size="20KB", negative_zeros="drop")
    assert not [message for message in messages if "signs of pruned zeros" in message]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.sparsefmt")) < 2 / 3 * before
    weight = next(iter(tensors_in(tmp_path).values()))
    assert not np.signbit(weight[weight == 0]).any()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"backend": "carrier pigeon"}, ValueError),
        ({"layout": "dense"}, ValueError),
        ({"min_sparsity": 1.5}, ValueError),
        ({"include": [1]}, TypeError),
        ({"quant_method": "gptq"}, ValueError),
        ({"bits": 4}, ValueError),
    ],
)
def test_wrong_options(arguments: dict[str, Any], error: type[Exception], llama: Path) -> None:
    with pytest.raises(error, match=str(next(iter(arguments)))):
        SparsefmtConfig(**arguments)
    edit_config(llama, quantization_config={"quant_method": "sparsefmt", **arguments})
    if "quant_method" not in arguments:
        with pytest.raises(error):
            AutoModelForCausalLM.from_pretrained(llama)


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


class OwnConfig(PreTrainedConfig):
    model_type = "own"


class OwnLinear(torch.nn.Linear):
    """A subclass, whose forward does something else."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) + 1


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.one = torch.nn.Linear(64, 64)
        self.two = OwnLinear(64, 64)
        self.three = torch.nn.Linear(64, 64, bias=False)
        self.attention = torch.nn.MultiheadAttention(64, 4)
        self.conv = torch.nn.Conv2d(64, 64, 3)
        self.norm = torch.nn.BatchNorm1d(64)
        self.post_init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(self.one(x)) + self.three(x)
        y = self.conv(y.reshape(-1, 64, 1, 1).expand(-1, 64, 3, 3)).reshape(y.shape)
        return self.attention(y, y, y)[0]


def test_only_layers_that_are_called_are_replaced(tmp_path: Path) -> None:
    """Not a subclass of Linear, nor what MultiheadAttention has; weights of other modules are dense."""
    dense = OwnModel(OwnConfig())
    for parameter in dense.parameters():
        parameter.data *= torch.rand(parameter.shape) < 0.2
    dense.eval().save_pretrained(tmp_path / "in")
    folder = convert(tmp_path / "in", tmp_path / "out")
    x = torch.randn(3, 2, 64)
    model = OwnModel.from_pretrained(folder)
    assert sparse_layers(model) == {"one", "three"}
    assert type(model.two) is OwnLinear
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), atol=1e-5, rtol=1e-5)
        model.save_pretrained(tmp_path / "saved")
        assert OwnModel.from_pretrained(tmp_path / "saved")(x).equal(model(x))


def test_linear_layers_that_share_a_weight_share_the_compressed_one() -> None:
    weight = torch.nn.Parameter(StandIn(SparseTensor.from_dense(np.eye(64, dtype=np.float32))))
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64), torch.nn.Embedding(64, 64))
    for module in model:
        module.weight = weight
    replace_layers.settle(model, Choice(exclude=("2",)))
    assert not sparse_layers(model)
    assert model[0].weight is model[1].weight is model[2].weight
    assert model[0].weight.equal(torch.eye(64))
    pair = model[:2]
    for module in pair:
        module.weight = weight
    replace_layers.settle(pair, Choice())
    assert sparse_layers(pair) == {"0", "1"}
    assert pair[0].weight_arrays.data_ptr() == pair[1].weight_arrays.data_ptr()
    assert pair[0].bias is not pair[1].bias
    twice = torch.nn.ModuleDict(dict.fromkeys(("one", "same"), torch.nn.Linear(64, 64)))
    twice["one"].weight = weight
    replace_layers.settle(twice, Choice())
    assert type(twice["one"]) is SparseLinear
    assert twice["one"] is twice["same"]


class Buffers(torch.nn.Module):
    """A module with whatever a model may keep beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias_of_logits", torch.zeros(1, 1536))
        self.register_buffer("table", torch.eye(64))
        self.register_buffer("computed", torch.eye(64), persistent=False)
        self.scale = torch.nn.Parameter(torch.eye(64))
        self.linear = torch.nn.Linear(64, 64)
        self.pruned_by_mask = torch.nn.Linear(64, 64)
        self.pruned_by_mask.register_buffer("weight_mask", torch.eye(64))
        self.pruned_by_mask.register_parameter("weight_orig", torch.nn.Parameter(torch.eye(64)))


class BuffersModel(OwnModel):
    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.buffers_of_mine = Buffers()
        self.register_buffer("of_the_model", torch.eye(64))


def check_plain(model: torch.nn.Module) -> None:
    """Everything in a model is an ordinary tensor, with memory of its own."""
    for kind, found in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in found:
            assert type(tensor) in (torch.Tensor, torch.nn.Parameter), f"{kind} {name} is a {type(tensor).__name__}"
            assert tensor.data_ptr() or not tensor.numel()


def check_saves_in_every_way(model: Any, dense: Any, folder: Path) -> None:
    """save_pretrained, a second time, torch.save, copies, casts, dequantize."""
    kind = type(model)
    check_plain(model)
    model.save_pretrained(folder / "again")
    again = kind.from_pretrained(folder / "again")
    check_plain(again)
    assert sparse_layers(again) == sparse_layers(model)
    again.save_pretrained(folder / "twice")
    assert tensors_in(folder / "again").keys() == tensors_in(folder / "twice").keys()
    torch.save(model.state_dict(), folder / "state.pt")
    torch.save(model, folder / "model.pt")
    check_plain(copy.deepcopy(model).bfloat16())
    assert same_state(again.dequantize(), dense)
    again.save_pretrained(folder / "dense")
    assert same_state(kind.from_pretrained(folder / "dense"), dense)


def test_buffers_and_bare_parameters_are_ordinary_tensors(tmp_path: Path) -> None:
    """Stored sparse, of any name, saved or not, tied or not."""
    dense = prune(BuffersModel(OwnConfig()))
    dense.save_pretrained(tmp_path / "in")
    folder = convert(tmp_path / "in", tmp_path / "out")
    with Checkpoint(folder, ["sparsefmt"]) as checkpoint:
        file = checkpoint.files[0].path
    with sparsefmt.open_file(file) as opened:
        stored_sparse = {name for name in opened if isinstance(opened[name], SparseTensor)}
    assert {"of_the_model", "buffers_of_mine.bias_of_logits", "buffers_of_mine.scale"} <= stored_sparse
    model = BuffersModel.from_pretrained(folder)
    assert sparse_layers(model) == {"one", "three", "buffers_of_mine.linear"}
    assert type(model.buffers_of_mine.pruned_by_mask) is torch.nn.Linear
    check_saves_in_every_way(model, dense, tmp_path)
    model = BuffersModel.from_pretrained(folder)
    # what is not the weight that a linear layer computes with
    assert model.hf_quantizer.result.dense["buffers_of_mine.scale"] == "it is not the weight of a linear layer"


def test_tied_buffers_stay_tied() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Module(), torch.nn.Module())
    stand_in = StandIn(SparseTensor.from_dense(np.eye(64, dtype=np.float32)))
    for module, name in ((model[1], "a"), (model[1], "b"), (model[2], "c")):
        module.register_buffer(name, stand_in, persistent=name != "b")
    model[2].register_buffer("nothing", None)
    replace_layers.settle(model, Choice())
    check_plain(model)
    assert model[1].a is model[1].b is model[2].c
    assert model[1].a.equal(torch.eye(64))


SEQ2SEQ = {
    "vocab_size": 96,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
    **IDS,
}


@pytest.mark.parametrize("name", ["bart", "mbart", "marian", "pegasus", "plbart", "blenderbot", "led", "m2m_100"])
def test_models_with_a_sparse_buffer(name: str, tmp_path: Path) -> None:
    """final_logits_bias, whose zeros are stored sparse."""
    torch.manual_seed(0)
    own = {"max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32, "attention_window": [4]}
    config = AutoConfig.for_model(name, **SEQ2SEQ, **(own if name == "led" else {}))
    dense = prune(AutoModelForSeq2SeqLM.from_config(config))
    dense.save_pretrained(tmp_path / "in")
    folder = convert(tmp_path / "in", tmp_path / "out")
    model = type(dense).from_pretrained(folder)
    expected = dense.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert model.generate(TOKENS, max_new_tokens=4, do_sample=False).equal(expected)
    check_saves_in_every_way(model, dense, tmp_path)
    if name != "bart":
        return
    check_saves_in_every_way(
        type(dense).from_pretrained(tmp_path / "in", quantization_config=SparsefmtConfig()), dense, tmp_path / "config"
    )
    loaded = type(dense)(config).eval()
    assert load_into(loaded, folder / "model.sparsefmt").sparse == sorted(sparse_layers(model))
    check_saves_in_every_way(loaded, dense, tmp_path / "into")


WEIGHT_USERS: dict[str, tuple[Any, Any, dict[str, torch.Tensor], set[str]]] = {
    "mamba": (
        AutoModelForCausalLM,
        MambaConfig(vocab_size=96, hidden_size=64, num_hidden_layers=2, state_size=16, time_step_rank=64),
        {"input_ids": TOKENS},
        {"backbone.layers.0.mixer.dt_proj", "backbone.layers.1.mixer.dt_proj"},
    ),
    "wavlm": (
        AutoModel,
        WavLMConfig(
            **{**SMALL, "vocab_size": 32, "num_hidden_layers": 1},
            intermediate_size=128,
            conv_dim=(32, 32),
            conv_kernel=(10, 3),
            conv_stride=(5, 2),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
        {"input_values": torch.linspace(-1, 1, 4000)[None].sin()},
        {f"encoder.layers.0.attention.{name}_proj" for name in ["q", "k", "v", "out"]},
    ),
    "mobilebert": (
        AutoModelForMaskedLM,
        MobileBertConfig(
            **SMALL, intermediate_size=64, embedding_size=64, intra_bottleneck_size=64, true_hidden_size=64
        ),
        {"input_ids": TOKENS},
        set(),
    ),
    "rwkv": (
        AutoModelForCausalLM,
        RwkvConfig(
            vocab_size=96,
            hidden_size=64,
            attention_hidden_size=64,
            num_hidden_layers=4,
            intermediate_size=128,
            rescale_every=1,
            context_length=32,
        ),
        {"input_ids": TOKENS},
        {f"rwkv.blocks.{n}.{name}" for n in range(4) for name in ("attention.output", "feed_forward.value")},
    ),
}
"""Models whose code uses the weights of layers without calling them, what they take, and layers that are used so."""


@pytest.mark.parametrize("name", list(WEIGHT_USERS))
def test_models_that_use_weights_without_calling_the_layers(name: str, tmp_path: Path) -> None:
    kind, config, inputs, used = WEIGHT_USERS[name]
    torch.manual_seed(0)
    dense = prune(kind.from_config(config))
    dense.save_pretrained(tmp_path / "in")
    model = kind.from_pretrained(convert(tmp_path / "in", tmp_path / "out"))
    in_memory = copy.deepcopy(dense)
    sparsify(in_memory)
    assert used <= sparse_layers(model) == sparse_layers(in_memory)
    if name == "mobilebert":
        used = {"cls.predictions.dense"} & sparse_layers(model)
    with torch.no_grad():
        expected = dense(**inputs)[0]
        for sparse in (model, in_memory):
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                for _ in range(2):
                    torch.testing.assert_close(sparse(**inputs)[0], expected, atol=1e-5, rtol=1e-5)
            said = {
                str(warning.message).split("'")[1] for warning in found if "needs the elements" in str(warning.message)
            }
            assert used <= said <= sparse_layers(sparse)
            assert all("exclude='*." in str(warning.message) for warning in found)
            assert len(found) == len(said)
    if name == "rwkv":
        # in training the layers are scaled back, to what they were
        dense.train()
        with torch.no_grad():
            expected = dense(**inputs)[0]
            for sparse in (model.train(), in_memory.train()):
                torch.testing.assert_close(sparse(**inputs)[0], expected, atol=1e-5, rtol=1e-5)
        assert same_state(model.dequantize(), dense)


def test_falcon_whose_linear_layers_are_a_class_of_its_own(tmp_path: Path) -> None:
    config = FalconConfig(**SMALL, bias=True, **IDS)
    torch.manual_seed(0)
    dense = prune(AutoModelForCausalLM.from_config(config))
    dense.save_pretrained(tmp_path / "in")
    folder = convert(tmp_path / "in", tmp_path / "out")
    for model in (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(tmp_path / "in", quantization_config=SparsefmtConfig()),
    ):
        assert len(sparse_layers(model)) == 8
        # tied to the embedding
        assert "word_embeddings.weight" in model.hf_quantizer.result.dense.pop("lm_head")
        assert set(model.hf_quantizer.result.dense) <= {"transformer.word_embeddings.weight"}
        torch.testing.assert_close(output(model), output(dense), atol=1e-5, rtol=1e-5)
        assert same_state(model.dequantize(), dense)
        torch.testing.assert_close(output(model), output(dense), atol=1e-5, rtol=1e-5)
    loaded = AutoModelForCausalLM.from_config(config)
    assert len(load_into(loaded, folder, strict=False).sparse) == 8


def test_min_sparsity_holds_wherever_weights_come_from(tmp_path: Path) -> None:
    """A quarter of the zeros makes a weight sparse in a file, which is smaller, and not in memory, where it is slow."""
    torch.manual_seed(0)
    dense = OwnModel(OwnConfig()).eval()
    for layer, part in ((dense.one, 0.3), (dense.three, 0.6)):
        layer.weight.data[torch.rand(64, 64) < part] = 0
    dense.save_pretrained(tmp_path / "in")
    folder = convert(tmp_path / "in", tmp_path / "out")
    with sparsefmt.open_file(folder / "model.sparsefmt") as file:
        assert isinstance(file["one.weight"], SparseTensor)
        tensors = {name: file.get_tensor(name) for name in file}
    # the same, stored dense
    stored_dense = tmp_path / "stored-dense"
    stored_dense.mkdir()
    (stored_dense / "config.json").write_bytes((folder / "config.json").read_bytes())
    sparsefmt.save_file(tensors, stored_dense / "model.sparsefmt", layout="dense")
    for min_sparsity, expected in ((None, {"three"}), (0.2, {"one", "three"}), (0.9, set())):
        chosen = {} if min_sparsity is None else {"min_sparsity": min_sparsity}
        config = {"quantization_config": SparsefmtConfig(**chosen)}
        in_memory = copy.deepcopy(dense)
        results = [sparsify(in_memory, **chosen)]
        models = [in_memory]
        for source in (folder, stored_dense, tmp_path / "in"):
            models.append(OwnModel.from_pretrained(source, **config))
            results.append(models[-1].hf_quantizer.result)
        for source in (folder, stored_dense):
            models.append(OwnModel(OwnConfig()))
            results.append(load_into(models[-1], source, **chosen))
        for model, result in zip(models, results, strict=True):
            assert sparse_layers(model) == set(result.sparse) == expected
            linear = {"one", "two", "three", "attention.out_proj"}
            assert linear - expected <= set(result.dense)
            for name in {"one", "three"} - expected:
                assert result.dense[name].endswith(f"which is less than {min_sparsity or 0.4:.1%}")
            assert result.dense["two"].startswith("it is a OwnLinear")


def test_layers_can_be_left_out_by_name(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    config = SparsefmtConfig(exclude=["*.mlp.*", "lm_head"])
    for folder in folders["llama"]:
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
        assert len(sparse_layers(model)) == 8
        assert not any(".mlp." in name or "lm_head" in name for name in sparse_layers(model))
        assert model.hf_quantizer.result.dense["lm_head"] == "it is excluded"
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved == {**QUANTIZED, "exclude": ["*.mlp.*", "lm_head"]}
    assert len(sparse_layers(AutoModelForCausalLM.from_pretrained(tmp_path))) == 8


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


def test_shards(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    index = json.loads((tmp_path / "model.sparsefmt.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert {path.name for path in tmp_path.glob("*.sparsefmt")} == shards
    assert output(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(output(model))
    # what an earlier save left would be loaded too, or first
    model.save_pretrained(tmp_path, max_shard_size="40kB")
    fewer = set(json.loads((tmp_path / "model.sparsefmt.index.json").read_text())["weight_map"].values())
    assert {path.name for path in tmp_path.glob("*.sparsefmt*")} == {*fewer, "model.sparsefmt.index.json"}
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.sparsefmt*")} == {"model.sparsefmt"}
    assert output(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(output(model))


def test_variant_and_subfolder(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    model.save_pretrained(tmp_path / "sub", variant="one")
    model.save_pretrained(tmp_path / "sub", variant="more", max_shard_size="20kB")
    for variant in ("one", "more"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="sub", variant=variant)
        assert output(again).equal(output(model))
    with pytest.raises(OSError, match=r"no model\.none\.sparsefmt"):
        AutoModelForCausalLM.from_pretrained(tmp_path, subfolder="sub", variant="none")


def test_model_made_sparse_in_memory_is_saved_and_loaded(models: dict[str, Any], tmp_path: Path) -> None:
    model = copy.deepcopy(models["gpt2"])
    sparsify(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sparse_layers(loaded) == sparse_layers(model)
    assert output(loaded).equal(output(model))


def test_saving_takes_the_place_of_dense_weights(
    models: dict[str, Any], folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """A folder that has both, and says that it is sparse, is loaded as sparse."""
    models["bert"].save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    model.save_pretrained(tmp_path)
    assert output(AutoModelForCausalLM.from_pretrained(tmp_path)).equal(output(model))


def test_what_saving_refuses(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    with pytest.raises(ValueError, match="state_dict"):
        model.save_pretrained(tmp_path / "out", state_dict=model.state_dict())
    with pytest.raises(ValueError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "out", push_to_hub=True)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        model.save_pretrained(tmp_path / "file")
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not list((tmp_path / "none").glob("*"))


def test_copies_compute(folders: dict[str, tuple[Path, Path]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    twin = copy.deepcopy(model)
    del model.model.layers[0]
    assert output(twin).shape == (2, 10, 96)
    assert sparse_layers(twin) - sparse_layers(model)


# folders of other kinds


def test_other_weights_come_first_unless_config_says_sparsefmt(llama: Path, models: dict[str, Any]) -> None:
    edit_config(llama, quantization_config=None)
    # with no other weights in the folder, those of .sparsefmt are loaded, dense
    model = AutoModelForCausalLM.from_pretrained(llama)
    assert not sparse_layers(model)
    assert same_state(model, models["llama"])
    assert len(sparse_layers(AutoModelForCausalLM.from_pretrained(llama, quantization_config=SparsefmtConfig()))) == 15
    other = copy.deepcopy(models["llama"])
    other.lm_head.weight.data += 1
    other.save_pretrained(llama / "other")
    (llama / "other" / "model.safetensors").rename(llama / "model.safetensors")
    assert same_state(AutoModelForCausalLM.from_pretrained(llama), other)
    edit_config(llama, quantization_config={"quant_method": "sparsefmt"})
    assert same_state(AutoModelForCausalLM.from_pretrained(llama).dequantize(), models["llama"])


def test_config_that_names_a_file_of_weights(llama: Path) -> None:
    """What it says of the dense model does not matter any more."""
    edit_config(llama, transformers_weights="consolidated.safetensors")
    assert len(sparse_layers(AutoModelForCausalLM.from_pretrained(llama))) == 15


def test_config_says_sparsefmt_and_weights_are_dense(folders: dict[str, tuple[Path, Path]], llama: Path) -> None:
    (llama / "model.sparsefmt").unlink()
    (llama / "model.safetensors").write_bytes((folders["llama"][0] / "model.safetensors").read_bytes())
    assert len(sparse_layers(AutoModelForCausalLM.from_pretrained(llama))) == 15


def test_models_of_others_are_untouched(models: dict[str, Any], tmp_path: Path) -> None:
    models["bert"].save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert same_state(AutoModel.from_pretrained(tmp_path), models["bert"])
    with pytest.raises(OSError, match="no file named"):
        AutoModel.from_pretrained(tmp_path, variant="none")


@pytest.mark.parametrize("shard_size", ["50GB", "50kB"])
def test_repository_of_the_hub(folders: dict[str, tuple[Path, Path]], tmp_path: Path, shard_size: str) -> None:
    """As it lies in the cache: a folder of links."""
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1])
    cache = tmp_path / "models--someone--pruned"
    model.save_pretrained(cache / "blobs", max_shard_size=shard_size)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for path in (cache / "blobs").iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    loaded = AutoModelForCausalLM.from_pretrained("someone/pruned", cache_dir=tmp_path)
    assert output(loaded).equal(output(model))
    assert len(sparse_layers(loaded)) == 15
    last = max(snapshot.glob("*.sparsefmt"))
    last.unlink()
    with pytest.raises(OSError, match="model" if shard_size == "50GB" else last.name):
        AutoModelForCausalLM.from_pretrained("someone/pruned", cache_dir=tmp_path)
    with pytest.raises(OSError, match="connect"):
        AutoModelForCausalLM.from_pretrained("someone/other", cache_dir=tmp_path)


# bad input


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


@pytest.fixture
def sharded(llama: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(llama, max_shard_size="50kB")
    return llama


def test_shard_missing(sharded: Path) -> None:
    [*_, last] = sorted(sharded.glob("*.sparsefmt"))
    last.unlink()
    with pytest.raises(FileNotFoundError, match=last.name):
        AutoModelForCausalLM.from_pretrained(sharded)
    (sharded / "model.sparsefmt.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=last.name):
        AutoModelForCausalLM.from_pretrained(sharded)


def test_extra_shard_is_mentioned(sharded: Path, messages: list[str]) -> None:
    first = min(sharded.glob("*.sparsefmt"))
    (sharded / "model-00009-of-00009.sparsefmt").write_bytes(first.read_bytes())
    AutoModelForCausalLM.from_pretrained(sharded)
    assert any("not loaded: model-00009-of-00009.sparsefmt" in message for message in messages)


def test_index_and_shards_disagree(sharded: Path) -> None:
    path = sharded / "model.sparsefmt.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"].pop("lm_head.weight")
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match=f"'lm_head.weight'.*{shard}.*{path}"):
        AutoModelForCausalLM.from_pretrained(sharded)
    index["weight_map"]["ghost"] = shard
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="'ghost'"):
        AutoModelForCausalLM.from_pretrained(sharded)


@pytest.mark.parametrize("name", ["../other.sparsefmt", "/etc/passwd", "sub/x.sparsefmt"])
def test_index_that_names_a_file_elsewhere(sharded: Path, name: str) -> None:
    path = sharded / "model.sparsefmt.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"'lm_head\.weight'.*plain name"):
        AutoModelForCausalLM.from_pretrained(sharded)


def test_dtype_that_torch_does_not_have(llama: Path) -> None:
    tensors = dict(sparsefmt.load_file(llama / "model.sparsefmt"))
    tensors["model.norm.weight"] = np.ones(64, ml_dtypes.float6_e2m3fn)
    sparsefmt.save_file(tensors, llama / "model.sparsefmt")
    for _ in range(2):
        with pytest.raises(UnsupportedError, match=r"'model\.norm\.weight'.* no dtype for F6_E2M3"):
            AutoModelForCausalLM.from_pretrained(llama)
        edit_config(llama, dtype=None)


def test_damage_names_tensor_and_file(llama: Path) -> None:
    path = llama / "model.sparsefmt"
    with sparsefmt.open_file(path) as file:
        index = file.reader.index
        place = int(index.chunk(index.entry("lm_head.weight"), 0, "values")["offset"])
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match=r"lm_head\.weight") as caught:
        AutoModelForCausalLM.from_pretrained(llama)
    assert caught.value.path == str(path)
    path.write_bytes(data[:-1])
    with pytest.raises(FormatError) as cut:
        AutoModelForCausalLM.from_pretrained(llama)
    assert cut.value.path == str(path)


def test_file_of_another_kind(llama: Path) -> None:
    (llama / "model.sparsefmt").write_bytes(craft({}))
    with pytest.raises(FormatError, match="sparsefmt convert"):
        AutoModelForCausalLM.from_pretrained(llama)
    (llama / "model.sparsefmt").unlink()
    with pytest.raises(OSError, match=r"there is no model\.sparsefmt"):
        AutoModelForCausalLM.from_pretrained(llama)


@pytest.mark.parametrize("place", ["cuda", "cuda:1", "mps", 0, {"": "disk"}, {"model": "cpu", "lm_head": "cuda:0"}])
def test_devices_that_are_not_the_cpu(place: Any, folders: dict[str, tuple[Path, Path]]) -> None:
    with pytest.raises(ValueError, match="computes on the CPU"):
        AutoModelForCausalLM.from_pretrained(folders["llama"][1], device_map=place)


@pytest.mark.parametrize("place", ["auto", "cpu", {"": "cpu"}, torch.device("cpu")])
def test_device_maps_that_are(place: Any, folders: dict[str, tuple[Path, Path]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["llama"][1], device_map=place)
    assert model.device.type == "cpu"
    assert len(sparse_layers(model)) == 15


# the parts


def test_stand_in_is_the_dense_tensor_to_every_operation() -> None:
    rng = np.random.default_rng(0)
    array = np.where(rng.random((40, 70)) < 0.8, 0, rng.standard_normal((40, 70))).astype(np.float32)
    tensor, stand_in = torch.from_numpy(array), StandIn(SparseTensor.from_dense(array))
    assert (stand_in.shape, stand_in.dtype, stand_in.device.type) == (tensor.shape, tensor.dtype, "cpu")
    for moved in (
        stand_in.to("cpu"),
        stand_in.detach(),
        stand_in[...],
        stand_in.clone(),
        stand_in.contiguous(),
        torch.nn.Parameter(stand_in),
        copy.copy(stand_in),
    ):
        assert isinstance(moved, StandIn)
        assert moved.compressed is stand_in.compressed
    rounded = stand_in.to(torch.bfloat16)
    assert isinstance(rounded, StandIn)
    assert bits(rounded.dense()).equal(bits(tensor.to(torch.bfloat16)))
    for operation in (
        lambda x: x.t(),
        lambda x: x[3:5],
        lambda x: x + 1,
        lambda x: torch.cat([x, x], dim=1),
        lambda x: torch.stack([x, x]),
        lambda x: x.chunk(2)[1],
        lambda x: x.reshape(-1),
        lambda x: torch.empty(40, 70).copy_(x),
        lambda x: torch.nn.functional.linear(torch.ones(2, 70), x),
    ):
        made = operation(stand_in)
        assert type(made) is torch.Tensor
        assert made.equal(operation(tensor))
    assert "sparsity=0.797" in repr(stand_in)


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
    assert not quantizer.is_trainable


def test_hooks_are_installed_once_and_only_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = modeling_utils.load_state_dict
    patches.install()
    assert modeling_utils.load_state_dict is before
    monkeypatch.setattr(modeling_utils, "load_state_dict", lambda path: None)
    with pytest.raises(UnsupportedError, match=f"{transformers.__version__} has no load_state_dict"):
        patches.install()
    monkeypatch.delattr(modeling_utils, "_get_resolved_checkpoint_files")
    with pytest.raises(UnsupportedError, match="has no _get_resolved_checkpoint_files"):
        patches.install()


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
