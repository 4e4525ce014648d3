"""safetensors files, written in one pass.

safetensors knows no tied tensors: a tensor of two names, an alias in .sparsefmt, is written twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.safetensors_header import LENGTH_BYTES, MAX_HEADER_BYTES, METADATA
from sparsefmt.container.writer import Sink
from sparsefmt.dtypes import DTYPES, pack
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.threads import in_batches


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
    # one stream for all tensors: while a tile is written, others are made, of the next tensors too
    tiles = (tile for name in names for tile in _tiles_of(tensors[name]))
    for data in in_batches(_Tile.dense, tiles, _Tile.nbytes, threads):
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


class _Tile(NamedTuple):
    """Rows `begin` to `end` of a matrix."""

    matrix: Rows
    begin: int
    end: int

    def nbytes(self) -> int:
        return self.matrix.dtype.nbytes((self.end - self.begin) * self.matrix.cols)

    def dense(self) -> np.ndarray:
        """Its bytes as they stand in the file."""
        bits, dtype = self.matrix.bits(self.begin, self.end), self.matrix.dtype
        flat = pack(bits, dtype) if dtype.packed else np.ascontiguousarray(bits)
        return flat.reshape(-1).view(np.uint8)


def _tiles_of(matrix: Rows) -> Iterator[_Tile]:
    height = matrix.tile_rows("dense")
    for begin in range(0, matrix.rows if height else 0, height or 1):
        yield _Tile(matrix, begin, min(begin + height, matrix.rows))
