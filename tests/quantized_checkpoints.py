"""Checkpoints as compressed-tensors writes them, made slowly and by hand from what its formats are said to be."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tensor_groups import Arrays, spelled

from sparsefmt.adapters import ArrayRows
from sparsefmt.checkpoints.safetensors_writing import write_safetensors

BY_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True, "observer": None}
STATIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}
INPUT_SCALE = np.array([0.03125], np.float32)


@dataclass(frozen=True)
class Kind:
    """How the weights of a checkpoint are quantized.

    Attributes:
        weights: what differs from symmetric integers of 8 bits with a scale for each row.
        inputs: of activations, None where they are not quantized.
        sparsity: the format of pruned weights.
        scales: the dtype of scales.
    """

    format: str
    weights: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] | None = None
    sparsity: str = "dense"
    scales: Any = ml_dtypes.bfloat16

    @property
    def arguments(self) -> dict[str, Any]:
        usual = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None}
        return usual | {"dynamic": False, "observer": "minmax", "observer_kwargs": {}, "actorder": None} | self.weights

    def config(self, **changes: Any) -> dict[str, Any]:
        """The quantization_config."""
        group = {"targets": ["Linear"], "weights": self.arguments, "input_activations": self.inputs}
        config = {
            "config_groups": {"group_0": {**group, "output_activations": None}},
            "format": self.format,
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {"format": self.sparsity} if self.sparsity != "dense" else {},
            "version": "0.13.0",
        }
        return config | changes

    def quantized(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Elements and scales of a float32 matrix: the scale of what has one is its largest magnitude by the largest
        element."""
        arguments = self.arguments
        rows, cols = weight.shape
        wide = {"tensor": rows * cols, "channel": cols, "group": arguments["group_size"]}[arguments["strategy"]]
        parts = weight.reshape(-1, wide)
        largest = 448.0 if arguments["type"] == "float" else 2.0 ** (arguments["num_bits"] - 1) - 1
        scales = (np.abs(parts).max(axis=1) / largest).astype(self.scales)
        divided = parts / np.where(scales == 0, 1, scales).astype(np.float32)[:, None]
        if arguments["type"] == "float":
            elements = np.clip(divided, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        else:
            elements = np.clip(np.rint(divided), -largest - 1, largest).astype(np.int8)
        shape = (1,) if arguments["strategy"] == "tensor" else (rows, cols // wide)
        return elements.reshape(rows, cols), scales.reshape(shape)

    def tensors(self, layer: str, weight: np.ndarray) -> Arrays:
        """All that a checkpoint has for a layer whose weight is quantized."""
        elements, scales = self.quantized(weight)
        made: Arrays = {f"{layer}.weight_scale": scales}
        if self.format == "pack-quantized":
            made[f"{layer}.weight_packed"] = packed(elements, self.arguments["num_bits"])
            made[f"{layer}.weight_shape"] = np.array(elements.shape, np.int64)
        elif self.sparsity != "dense":
            parts = spelled(elements, layer)
            if self.sparsity == "sparse-24-bitmask":
                del parts[f"{layer}.row_offsets"]
                parts[f"{layer}.compressed"] = parts[f"{layer}.compressed"].reshape(len(elements), -1)
                parts[f"{layer}.shape"] = parts[f"{layer}.shape"].reshape(-1, 1)
            made |= parts
        else:
            made[f"{layer}.weight"] = elements
        if self.inputs is not None and not self.inputs["dynamic"]:
            made[f"{layer}.input_scale"] = INPUT_SCALE.astype(self.scales)
        return made

    def dequantized(self, weight: np.ndarray) -> np.ndarray:
        """What the elements stand for, exactly: float64."""
        elements, scales = self.quantized(weight)
        parts = elements.astype(np.float64).reshape(scales.size, -1) * scales.astype(np.float64).reshape(-1, 1)
        return parts.reshape(weight.shape)


FP8 = {"type": "float"}
KINDS: dict[str, Kind] = {
    "int8": Kind("int-quantized", inputs=BY_TOKEN),
    "int8-static": Kind("int-quantized", {"strategy": "tensor"}, STATIC, scales=np.float32),
    "int8-groups": Kind("naive-quantized", {"strategy": "group", "group_size": 32}, scales=np.float16),
    "fp8": Kind("float-quantized", FP8, BY_TOKEN | FP8),
    "fp8-static": Kind("float-quantized", FP8 | {"strategy": "tensor"}, STATIC | FP8),
    "packed": Kind("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    "packed-8": Kind("pack-quantized"),
    "int8-bitmask": Kind("int-quantized", inputs=BY_TOKEN, sparsity="sparse-bitmask"),
    "fp8-two-of-four": Kind("float-quantized", FP8, BY_TOKEN | FP8, sparsity="sparse-24-bitmask"),
}
SPELLED = ("packed", "packed-8", "int8-bitmask", "fp8-two-of-four")
"""Those with weights in several tensors."""


def packed(elements: np.ndarray, num_bits: int) -> np.ndarray:
    """Elements in words of 32 bits, naively."""
    each = 32 // num_bits
    words = np.zeros((len(elements), -(-elements.shape[1] // each)), np.uint32)
    for row, values in enumerate(elements.tolist()):
        for column, value in enumerate(values):
            words[row, column // each] |= np.uint32((value + 2 ** (num_bits - 1)) << (column % each * num_bits))
    return words.view(np.int32)


def two_of_four(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Weights, float32, of which two of four are zero, and the others large enough to stay."""
    rng = np.random.default_rng(seed)
    array = rng.choice([-1, 1], (rows * cols // 4, 4)) * (rng.random((rows * cols // 4, 4)) + 0.5)
    array[np.arange(len(array))[:, None], rng.permuted(np.tile(np.arange(4), (len(array), 1)), axis=1)[:, :2]] = 0
    return array.reshape(rows, cols).astype(np.float32)


WEIGHTS = {"model.a": two_of_four(48, 64), "model.b": two_of_four(16, 96, 1)}
LEFT = {"lm_head.weight": two_of_four(8, 64, 2), "model.norm.weight": np.ones(64, np.float32)}


def checkpoint(kind: Kind) -> Arrays:
    """The tensors of a small checkpoint: two layers that are quantized, and what is not."""
    return {
        **LEFT,
        **{name: part for layer, weight in WEIGHTS.items() for name, part in kind.tensors(layer, weight).items()},
    }


def save_file(path: Path, tensors: Arrays) -> None:
    with open(path, "wb") as sink:
        write_safetensors(sink, {name: ArrayRows(array) for name, array in tensors.items()}, {"format": "pt"})


def save_folder(folder: Path, tensors: Arrays, config: dict[str, Any], shards: int = 1) -> Path:
    """The folder of a model. In several shards, neighbours lie in different files."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model_type": "llama", "quantization_config": config}, indent=2) + "\n"
    (folder / "config.json").write_text(text)
    if shards == 1:
        save_file(folder / "model.safetensors", tensors)
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[number::shards])
        save_file(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
