"""A small .sparsefmt file, taken apart and put together again with another index."""

from __future__ import annotations

import io
import struct
from functools import cache

import msgpack
import numpy as np
import xxhash
from helpers import weights

from sparsefmt.container import envelope
from sparsefmt.tensor_writer import TensorWriter


@cache
def small_file(codec: str = "raw") -> bytes:
    rng = np.random.default_rng(3)
    tensors = {
        "bias": rng.standard_normal(5).astype(np.float32),
        "half": weights(rng, (9, 70), np.float16, 0.5, True),
        "most": weights(rng, (17, 40), np.float32, 0.9),
        "none": np.zeros((0, 3), np.int8),
    }
    sink = io.BytesIO()
    writer = TensorWriter(sink, {"k": "v"}, codec=codec)
    for name, array in tensors.items():
        # whatever is smaller, small as they are
        writer._layout = {"half": "bitmask", "most": "permuted"}.get(name, "auto")
        writer.add(name, array)
    writer.add_alias("tied", "half")
    writer.finish()
    return sink.getvalue()


def split(data: bytes) -> tuple[bytes, dict]:
    """Everything before the index, and the index decoded."""
    offset, size, _, _ = struct.unpack("<QQQ8s", data[-32:])
    return data[:offset], msgpack.unpackb(data[offset : offset + size])


def join(head: bytes, encoded: bytes) -> bytes:
    """A file with correct trailer and checksum around any index."""
    checksum = xxhash.xxh64_intdigest(head[:16] + encoded)
    return head + encoded + struct.pack("<QQQ8s", len(head), len(encoded), checksum, envelope.END_MAGIC)
