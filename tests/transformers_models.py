"""Small pruned models of transformers, their folders, and what tests ask of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
)
from transformers.pytorch_utils import Conv1D

import sparsefmt
from sparsefmt.checkpoints.cards import HOW_TO_LOAD
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint
from sparsefmt.quantizing import Quantization
from sparsefmt.save_options import SaveOptions
from sparsefmt.torch import SparseLinear
from sparsefmt.transformers.compressed_parameter import StandIn

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


def convert(source: Path, target: Path, quantization: Quantization | None = None) -> Path:
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        checkpoint.quantization = quantization
        convert_checkpoint(checkpoint, target, SaveOptions())
    return target


def sparse_layers(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)[0]


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


def same_weights(left: Path, right: Path) -> bool:
    """Whether two .sparsefmt folders have the same tensors, to the bit."""
    ours, theirs = tensors_in(left), tensors_in(right)
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes() for name in ours
    )


def check_compressed(model: Any, name: str) -> None:
    """All pruned layers of the model of this name are compressed, and nothing stands for a weight any more."""
    assert len(sparse_layers(model)) == SPARSE_LAYERS[name]
    assert not any(isinstance(parameter, StandIn) for parameter in model.parameters())


def check_same_words(model: Any, expected: Any, name: str) -> None:
    """Both go on with the same tokens, if models of this name do."""
    if name != "bert":
        arguments = {"max_new_tokens": 5, "do_sample": False}
        assert model.generate(TOKENS, **arguments).equal(expected.generate(TOKENS, **arguments))
