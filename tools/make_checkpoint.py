"""Write a synthetic sharded checkpoint of a pruned transformer, in the layout that Hugging Face writes.

    python -m tools.make_checkpoint FOLDER --gigabytes 2 --shards 4 --dtype bf16 --sparsity 0.6 --seed 0

The program holds one shard in memory at a time, and float32 scratch for one tensor. A tensor's values depend on the
size, the dtype, the sparsity and the seed, not on the number of shards.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import click
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError
from safetensors.numpy import save_file

DTYPES: dict[str, tuple[str, Any]] = {
    "f32": ("float32", np.float32),
    "bf16": ("bfloat16", ml_dtypes.bfloat16),
    "f16": ("float16", np.float16),
}
HEAD_SIZE = 64
WEIGHT_STD = 0.02


@dataclass(frozen=True)
class ModelConfig:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    vocab_size: int


def config_of_size(parameters: int) -> ModelConfig:
    """A transformer of about that many parameters, whose largest tensor is about a sixteenth of the whole.

    Depth and width grow as the cube root of the size, the vocabulary as its square: for a billion parameters
    17 layers, 2048 hidden features and 32,000 tokens.
    """
    scale = (parameters / 1e9) ** (1 / 3)
    hidden = HEAD_SIZE * max(1, round(2048 * scale / HEAD_SIZE))
    vocab = 64 * max(1, round(32_000 * scale**2 / 64))
    layer_parameters = parameters - 2 * vocab * hidden
    layers = max(1, round(layer_parameters / (12.25 * hidden**2)))
    # The width of the MLP takes up what the rounding of the depth left over.
    intermediate = 16 * max(1, round((layer_parameters / layers - 4 * hidden**2) / (3 * hidden) / 16))
    return ModelConfig(hidden, intermediate, layers, vocab)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}.self_attn.{projection}.weight"] = (hidden, hidden)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (intermediate, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, intermediate)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def split_into_shards(sizes: dict[str, int], shards: int) -> list[list[str]]:
    """Consecutive runs of names, none empty, of about equal total size. Needs at least as many names as shards."""
    names = list(sizes)
    remaining_size = sum(sizes.values())
    runs: list[list[str]] = []
    for later_shards in reversed(range(shards)):
        target = remaining_size / (later_shards + 1)
        run: list[str] = []
        run_size = 0
        while not run or (run_size < target and len(names) > later_shards):
            run_size += sizes[names[0]]
            run.append(names.pop(0))
        remaining_size -= run_size
        runs.append(run)
    return runs


def make_tensor(name: str, shape: tuple[int, ...], sparsity: float, dtype: Any, seed: list[int]) -> NDArray[Any]:
    """Gaussian values; in the 2-d weights but the embedding the smallest are +0.0. O(size), twice float32 scratch."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    if len(shape) == 2 and "embed" not in name:
        # The quantile of the distribution in place of the tensor's own: no selection over all the values.
        values[np.abs(values) < NormalDist().inv_cdf((1 + sparsity) / 2)] = 0
    values *= WEIGHT_STD
    if len(shape) == 1:
        values += 1
    return values.astype(dtype)


@click.command(
    context_settings={"show_default": True},
    epilog="""\b
Examples:
  make_checkpoint.py checkpoint
  make_checkpoint.py checkpoint --gigabytes 0.1 --shards 2 --dtype f32 --sparsity 0.8 --seed 1
""",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--gigabytes", type=click.FloatRange(0.001), default=2, help="About this many 10^9 bytes of tensors.")
@click.option("--shards", type=click.IntRange(1, 99_999), default=4)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bf16")
@click.option("--sparsity", type=click.FloatRange(0, 1, max_open=True), default=0.6, help="Of each pruned weight.")
@click.option("--seed", type=click.IntRange(0), default=0)
def main(folder: Path, gigabytes: float, shards: int, dtype: str, sparsity: float, seed: int) -> None:
    """Write a synthetic checkpoint of a pruned transformer, its index and a config.json into FOLDER.

    FOLDER is made if need be and must not hold safetensors files yet. Embeddings and norms are dense, all
    other tensors pruned by magnitude.
    """
    dtype_name, numpy_dtype = DTYPES[dtype]
    item_size = np.dtype(numpy_dtype).itemsize
    config = config_of_size(round(gigabytes * 1e9 / item_size))
    shapes = tensor_shapes(config)
    if shards > len(shapes):
        raise click.UsageError(f"--shards {shards} is more than the {len(shapes)} tensors of this size")
    sizes = {name: math.prod(shape) * item_size for name, shape in shapes.items()}
    seeds = {name: [seed, position] for position, name in enumerate(shapes)}
    index: dict[str, Any] = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": {}}
    architecture = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **vars(config),
        "num_attention_heads": config.hidden_size // HEAD_SIZE,
        "tie_word_embeddings": False,
        "torch_dtype": dtype_name,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("*.safetensors")):
            raise click.ClickException(f"{folder} already holds safetensors files")
        for number, names in enumerate(split_into_shards(sizes, shards), start=1):
            file_name = f"model-{number:05d}-of-{shards:05d}.safetensors"
            save_file(
                {name: make_tensor(name, shapes[name], sparsity, numpy_dtype, seeds[name]) for name in names},
                folder / file_name,
                metadata={"format": "pt"},
            )
            index["weight_map"].update(dict.fromkeys(names, file_name))
        for file_name, content in (("model.safetensors.index.json", index), ("config.json", architecture)):
            (folder / file_name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise click.ClickException(" ".join(str(error).split())) from None
    Console().print(
        f"{len(shapes)} tensors, {sum(sizes.values()):,} bytes in {shards} shards, "
        f"largest tensor {max(sizes.values()):,} bytes"
    )


if __name__ == "__main__":
    main()
