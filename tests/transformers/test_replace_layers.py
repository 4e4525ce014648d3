"""What a loaded model is made of: layers that compute with compressed weights, and ordinary tensors elsewhere."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import first_always
from torch_helpers import same_state
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    FalconConfig,
    MambaConfig,
    MobileBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RwkvConfig,
    WavLMConfig,
)
from transformers_models import IDS, SMALL, TOKENS, convert, output, prune, sparse_layers, tensors_in

import sparsefmt
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import SparseLinear, load_into, sparsify
from sparsefmt.torch.selection import Selection
from sparsefmt.transformers import SparsefmtConfig, replace_layers
from sparsefmt.transformers.compressed_parameter import StandIn

pytestmark = pytest.mark.usefixtures("small_layers")


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
    """Convolutions are, too, and what MultiheadAttention has. Not a subclass of Linear."""
    dense = OwnModel(OwnConfig())
    for parameter in dense.parameters():
        parameter.data *= torch.rand(parameter.shape) < 0.2
    dense.eval().save_pretrained(tmp_path / "in")
    folder = convert(tmp_path / "in", tmp_path / "out")
    x = torch.randn(3, 2, 64)
    model = OwnModel.from_pretrained(folder)
    attention = {"attention.out_proj", *(f"attention.in_proj_weight.{number}" for number in range(3))}
    assert sparse_layers(model) == {"one", "three", "conv", *attention}
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
    replace_layers.settle(model, Selection(exclude=("2",)))
    assert not sparse_layers(model)
    assert model[0].weight is model[1].weight is model[2].weight
    assert model[0].weight.equal(torch.eye(64))
    pair = model[:2]
    for module in pair:
        module.weight = weight
    replace_layers.settle(pair, Selection())
    assert sparse_layers(pair) == {"0", "1"}
    assert pair[0].weight_arrays.data_ptr() == pair[1].weight_arrays.data_ptr()
    assert pair[0].bias is not pair[1].bias
    twice = torch.nn.ModuleDict(dict.fromkeys(("one", "same"), torch.nn.Linear(64, 64)))
    twice["one"].weight = weight
    replace_layers.settle(twice, Selection())
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
    assert sparse_layers(model) == {"one", "three", "buffers_of_mine.linear", "attention.out_proj"}
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
    replace_layers.settle(model, Selection())
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


@pytest.mark.parametrize(
    "name", first_always(["bart", "led", "m2m_100", "mbart", "marian", "pegasus", "plbart", "blenderbot"], 3)
)
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
