"""safetensors files, written in one pass.

safetensors knows no tied tensors: a tensor of two names, an alias in .sparsefmt, is written twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.safetensors_header import LENGTH_BYTES, MAX_HEADER_BYTES, METADATA
from sparsefmt.container.writer import Sink
from sparsefmt.dtypes import DTYPES, pack
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.threads import in_order


def write_safetensors(
    sink: Sink,
    tensors: Mapping[str, Rows],
    metadata: Mapping[str, str] | None = None,
    *,
    progress: Callable[[int], object] | None = None,
    threads: int | None = None,
) -> None:
    """Write a safetensors file in one pass; holds a few tiles in memory.

    The library's own writer wants every tensor in memory before the first byte, and cannot write the F6 types; hence
    this one. Tensors lie in the library's order: descending by dtype, which aligns each to its elements, then by name.
    A file that the library wrote comes back byte for byte if it has at most one metadata key (the library does not
    order several).

    Args:
        sink: where the bytes go.
        tensors: matrices by name.
        metadata: texts for the header's `__metadata__`.
        progress: called with the bytes of each tile written.
        threads: how many may decode.

    Raises:
        FormatError: a name, or a sub-byte tensor, that safetensors cannot hold; nothing has been written then.
        LimitError: the header is larger than the library reads; nothing has been written then.
    """
    table_order = {dtype.name: place for place, dtype in enumerate(DTYPES.values())}
    names = sorted(tensors, key=lambda name: (-table_order[tensors[name].dtype.name], name))
    sink.write(_encode_header(names, tensors, metadata or {}))
    for name in names:
        for data in in_order(*_dense_tiles(tensors[name]), threads):
            sink.write(data.data)
            if progress:
                progress(data.nbytes)


def _encode_header(names: list[str], tensors: Mapping[str, Rows], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        matrix = tensors[name]
        nbits = matrix.rows * matrix.cols * matrix.dtype.nbits
        if name == METADATA:
            raise FormatError(
                "safetensors-name", "safetensors keeps this name for the metadata: rename it", tensor=name
            )
        if nbits % 8:
            raise FormatError(
                "safetensors-size",
                f"{nbits:,} bits of {matrix.dtype.name}: safetensors holds sub-byte tensors of whole bytes only",
                tensor=name,
            )
        end = offset + nbits // 8
        header[name] = {"dtype": matrix.dtype.name, "shape": list(matrix.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise LimitError(
            "safetensors-header", f"the header would have {len(text):,} bytes; {MAX_HEADER_BYTES:,} is most"
        )
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _dense_tiles(matrix: Rows) -> tuple[Callable[[int], np.ndarray], range]:
    """A function that gives the bytes of the tile that starts at a row, and those rows."""
    height = matrix.tile_rows("dense")

    def dense_tile(begin: int) -> np.ndarray:
        bits = matrix.bits(begin, min(begin + height, matrix.rows))
        flat = pack(bits, matrix.dtype) if matrix.dtype.packed else np.ascontiguousarray(bits)
        return flat.reshape(-1).view(np.uint8)

    return dense_tile, range(0, matrix.rows if height else 0, height or 1)
