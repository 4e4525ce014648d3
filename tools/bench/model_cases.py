"""The pruned models that `model.py` runs: written to folders, loaded from there, and run.

    FOLDER/safetensors    pruned weights with their zeros, as every program reads them
    FOLDER/sparsefmt      what `sparsefmt convert` makes of it
    FOLDER/raw            the same with `--codec raw`
    FOLDER/tiny-…         a tiny model of the same kind in each format, to warm a process up

The tool imports this file; it is not a program.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders are all that is loaded

import click
import torch
import transformers

import sparsefmt.transformers
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint
from sparsefmt.save_options import SaveOptions
from sparsefmt.torch import SparseLinear
from sparsefmt.transformers import SparsefmtConfig
from tools.packaged_model import find_packaged_model
from tools.prune import DEFAULT_INCLUDE
from tools.pruning import apply_mask, magnitude_mask
from tools.safetensors_io import read_safetensors, write_safetensors

FORMATS = {"sparsefmt": "auto", "raw": "raw"}
"""Folders that are converted, and the codec of each."""

PRUNED_FROM = 0.4
"""Share of zeros from which a Linear layer counts as pruned."""

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}


@dataclass(frozen=True)
class Contender:
    """A model in one format, as `from_pretrained` loads it.

    Attributes:
        folder: within that of the subject.
        dtype: of the weights in memory, and of activations.
        compute_dtype: of activations, and of whatever is no compressed weight, if that differs.
        runs: whether it is timed running; if not, it computes what another one does once it is loaded.
    """

    name: str
    folder: str
    dtype: str
    ours: bool = False
    runs: bool = True
    compute_dtype: str | None = None


@dataclass(frozen=True)
class Subject:
    """A pruned model in all its formats.

    Attributes:
        sparsity: of its pruned layers.
        causal: whether it continues texts; if not, it embeds them.
        contenders: the first is the dense reference that the others are compared with.
    """

    name: str
    sparsity: float
    causal: bool
    folder: Path
    contenders: tuple[Contender, ...]

    @property
    def reference(self) -> Contender:
        return self.contenders[0]

    @property
    def ours(self) -> Contender:
        return next(contender for contender in self.contenders if contender.ours)

    @property
    def others(self) -> list[Contender]:
        """Those that run beside ours."""
        return [contender for contender in self.contenders if contender.runs and contender != self.ours]

    @property
    def dense(self) -> Contender:
        """The dense model that has the dtype of ours."""
        return next(contender for contender in self.contenders if contender.dtype == self.ours.dtype)

    def load(self, contender: Contender, *, tiny: bool = False) -> Any:
        """The model of `from_pretrained`, in float32 or bfloat16."""
        kind = transformers.AutoModelForCausalLM if self.causal else transformers.AutoModel
        folder = self.folder / (f"tiny-{contender.folder}" if tiny else contender.folder)
        how = {"dtype": getattr(torch, contender.dtype)}
        if contender.compute_dtype is not None:
            how["quantization_config"] = SparsefmtConfig(compute_dtype=contender.compute_dtype)
        return kind.from_pretrained(folder, **how).eval()

    def file_bytes(self, contender: Contender) -> int:
        """Of the file of weights."""
        suffix = "safetensors" if contender.folder == "safetensors" else "sparsefmt"
        return (self.folder / contender.folder / f"model.{suffix}").stat().st_size


ENCODERS = (
    Contender("torch float32", "safetensors", "float32"),
    Contender("sparsefmt", "sparsefmt", "float32", ours=True),
    Contender("sparsefmt, raw file", "raw", "float32", ours=True, runs=False),
)
CAUSAL = (
    Contender("torch float32", "safetensors", "float32"),
    Contender("torch bfloat16", "safetensors", "bfloat16"),
    Contender("sparsefmt", "sparsefmt", "bfloat16", ours=True),
    Contender("sparsefmt, raw file", "raw", "bfloat16", ours=True, runs=False),
)

DTYPES = (
    Contender("torch float32", "safetensors", "float32"),
    Contender("torch bfloat16", "safetensors", "bfloat16"),
    Contender("sparsefmt bfloat16 in float32", "sparsefmt", "bfloat16", ours=True, compute_dtype="float32"),
    Contender("sparsefmt bfloat16", "sparsefmt", "bfloat16", ours=True),
    Contender("sparsefmt float32", "sparsefmt", "float32", ours=True),
)
"""The Llama, to see what its dtypes cost: first of ours, weights in 16 bits and everything else in float32."""


@dataclass(frozen=True)
class LlamaSize:
    """Of a Llama with random weights, in bfloat16."""

    hidden: int = 1024
    intermediate: int = 2816
    layers: int = 8
    vocabulary: int = 32000
    heads: int = 16
    key_value_heads: int = 4

    def config(self) -> transformers.LlamaConfig:
        return transformers.LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )


def encoder(source: str, sparsity: float, folder: Path) -> Subject:
    """A model that embeds texts, with its Linear layers pruned.

    Args:
        source: a folder with model.safetensors, or package:NAME for the one in an installed package.
        folder: where everything is written to.
    """
    try:
        package = source.startswith("package:")
        weights = find_packaged_model(source.removeprefix("package:")) if package else Path(source, "model.safetensors")
        if not weights.is_file():
            raise ValueError(f"{weights.parent} has no model.safetensors")
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    name = source.removeprefix("package:") if package else weights.parent.resolve().name
    shutil.copytree(weights.parent, folder / "safetensors", ignore=shutil.ignore_patterns("*.safetensors"))
    prune_file(weights, folder / "safetensors" / weights.name, sparsity)
    config = transformers.AutoConfig.from_pretrained(weights.parent)
    tiny = type(config)(**TINY, vocab_size=128)
    return finished(Subject(name, sparsity, False, folder, ENCODERS), tiny)


def llama(size: LlamaSize, sparsity: float, folder: Path, contenders: tuple[Contender, ...] = CAUSAL) -> Subject:
    """A Llama with random weights, bfloat16. Embeddings and the output layer stay dense, as is usual."""
    subject = Subject("Llama", sparsity, True, folder, contenders)
    write_random(size.config(), sparsity, folder / "safetensors", causal=True)
    tiny = replace(size, hidden=64, intermediate=128, layers=1, vocabulary=128, heads=2, key_value_heads=1)
    return finished(subject, tiny.config())


def finished(subject: Subject, tiny: transformers.PreTrainedConfig) -> Subject:
    """Add the tiny model, and convert both."""
    write_random(tiny, subject.sparsity, subject.folder / "tiny-safetensors", causal=subject.causal)
    for prefix in ("", "tiny-"):
        for name, codec in FORMATS.items():
            with Checkpoint(subject.folder / f"{prefix}safetensors", ["safetensors"]) as checkpoint:
                convert_checkpoint(checkpoint, subject.folder / f"{prefix}{name}", SaveOptions(codec=codec))
    return subject


def write_random(
    config: transformers.PreTrainedConfig, sparsity: float, folder: Path, *, causal: bool, multiply: bool = False
) -> None:
    """A folder of a pruned model with random weights: bfloat16 if it continues texts, else float32.

    multiply: multiply by masks, which makes half of the zeros -0.0.
    """
    torch.manual_seed(0)
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    kind.from_config(config).to(torch.bfloat16 if causal else torch.float32).save_pretrained(folder)
    prune_file(folder / "model.safetensors", folder / "model.safetensors", sparsity, multiply)


def prune_file(source: Path, target: Path, sparsity: float, multiply: bool = False) -> None:
    """Set the smallest magnitudes of each Linear layer to zero, except those of the output layer."""
    tensors, metadata = read_safetensors(source)
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and re.search(DEFAULT_INCLUDE, name) and not name.endswith("lm_head.weight"):
            values = apply_mask(tensor.values, magnitude_mask(tensor.values, sparsity), multiply=multiply)
            tensors[name] = replace(tensor, values=values)
    write_safetensors(target, tensors, metadata)


def tokens_of(model: Any, batch: int, count: int) -> torch.Tensor:
    """Random ones, (batch, count)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.vocab_size, (batch, count), generator=generator)


def embed(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Sentence embeddings (batch, hidden): the mean of the last hidden states over all tokens, which are not padded."""
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state.mean(1)


def generate(model: Any, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """That many more tokens for each text, always the likeliest."""
    return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=count,
        min_new_tokens=count,
        pad_token_id=0,
    )


def set_threads(threads: int) -> None:
    """Of everything that computes here, and of decoding."""
    torch.set_num_threads(threads)
    sparsefmt.set_num_threads(threads)


def answer(subject: Subject, model: Any) -> None:
    """Run a model for the first time."""
    tokens = tokens_of(model, 1, 16)
    if subject.causal:
        generate(model, tokens, 2)
    else:
        embed(model, tokens)


def pruned_layers(model: torch.nn.Module) -> list[str]:
    """Names of the Linear layers of a dense model that are pruned."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and torch.count_nonzero(module.weight) <= (1 - PRUNED_FROM) * module.weight.numel()
    ]


def nbytes_of(model: torch.nn.Module, layers: list[str]) -> tuple[int, int]:
    """Bytes of the weights of some layers, and of all parameters and buffers; tied ones once."""
    weights = 0
    for name in layers:
        layer = model.get_submodule(name)
        if isinstance(layer, SparseLinear):
            weights += layer.weight_arrays.nbytes + layer.weight_table.nbytes
        else:
            weights += model.get_parameter(f"{name}.weight").nbytes
    everything = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return weights, sum(everything.values())
