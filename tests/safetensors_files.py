"""safetensors files and sharded checkpoints made by hand, also such as the library would not write."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from sparsefmt.dtypes import DTYPES


def craft(header: dict[str, Any] | str, data: bytes = b"") -> bytes:
    """The bytes of a safetensors file."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def craft_tensors(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a safetensors file of tensors given as dtype, shape and content."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return craft(header, data)


def read_back(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What the safetensors library finds in a file."""
    return {
        name: (fields["dtype"], list(fields["shape"]), bytes(fields["data"]))
        for name, fields in safetensors.deserialize(path.read_bytes())
    }


def patterns(dtype: str, rows: int, cols: int, seed: int = 0) -> bytes:
    """Any bits the dtype has, half of them zeros, some of those negative: NaN payloads and subnormals among them."""
    rng = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    if dtype == "BOOL":
        return rng.integers(0, 2, rows * cols, np.uint8).tobytes()
    if kind.packed:
        return rng.bytes(rows * cols * kind.nbits // 8)
    bits = np.frombuffer(rng.bytes(rows * cols * kind.nbits // 8), kind.bits_dtype).copy()
    choice = rng.random(bits.size)
    bits[choice < 0.5] = 0
    bits[choice < 0.2] = kind.negative_zero
    return bits.tobytes()


def save_shards(
    folder: Path, shards: dict[str, dict[str, np.ndarray]], index: bool = True, **changes: str | None
) -> Path:
    """A sharded checkpoint. `changes` change the weight map: None takes a tensor out."""
    folder.mkdir()
    weight_map: dict[str, str | None] = {}
    for shard, arrays in shards.items():
        safetensors.numpy.save_file(arrays, folder / shard, {"format": "pt"})
        weight_map.update(dict.fromkeys(arrays, shard))
    weight_map.update(changes)
    content = {
        "metadata": {"total_size": 99, "note": "é"},
        "weight_map": {name: shard for name, shard in weight_map.items() if shard is not None},
        "other": [1],
    }
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def sparse_array(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((64, 96)) < 0.8, 0, rng.standard_normal((64, 96))).astype(np.float32)


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS = {ONE: {"a": sparse_array(1), "b": sparse_array(2)}, TWO: {"c": sparse_array(3)}}
