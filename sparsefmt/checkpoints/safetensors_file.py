"""safetensors files: read by ranges, written in one pass.

    0  8  length n of the header u64
    8  n  header: JSON, padded with spaces to a multiple of 8
    8+n   the tensors, dense, little-endian, row-major, without gaps

safetensors knows no tied tensors: a tensor of two names, an alias in .sparsefmt, is written twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from sparsefmt.adapters import BytesRows, Rows
from sparsefmt.checkpoints.contract import TensorFile, expect_regular_file
from sparsefmt.checkpoints.safetensors_header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    METADATA,
    Header,
    check_length,
    decode_header,
)
from sparsefmt.container import envelope, sniff
from sparsefmt.container.sources import ReadFile
from sparsefmt.container.writer import Sink
from sparsefmt.dtypes import DTYPES, DType, pack
from sparsefmt.errors import FormatError, LimitError, SparsefmtError, UnsupportedError
from sparsefmt.threads import in_order

_MOST_EXPLAINED = 1 << 24
"""Bytes of a header that is parsed only to say what is wrong with it."""


class TensorRange(NamedTuple):
    """One tensor of the header: its bytes are `begin` to `end` of the file."""

    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(TensorFile):
    """An open safetensors file. Reads ranges instead of mapping, so that memory use is what is being worked on.

    Attributes:
        names: in the order in which the tensors lie in the file.
        tensors: dtype, shape and place of each.

    Raises:
        FormatError: the safetensors library refuses it, or it is something else, which the message then names.
        UnsupportedError: it has a dtype that the format lacks.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        expect_regular_file(path)
        self.path = Path(path)
        self._source = ReadFile(path)
        try:
            self.nbytes = self._source.size
            header = self._read_header()
            self.metadata = header.metadata
            self.tensors = self._stored_tensors(header)
            self.names = sorted(self.tensors, key=lambda name: (self.tensors[name].begin, self.tensors[name].end))
        except BaseException:
            self.close()
            raise

    def rows_of(self, name: str) -> BytesRows:
        tensor = self.tensors[name]

        def read(offset: int, size: int) -> np.ndarray:
            return self._source.read(tensor.begin + offset, size)

        try:
            return BytesRows(read, tensor.dtype, tensor.shape)
        except SparsefmtError as error:
            raise error.within(name) from None

    def close(self) -> None:
        self._source.close()

    def _read_header(self) -> Header:
        """The header, after a look at what the file may be instead."""
        head = self._source.read(0, min(self.nbytes, sniff.HEAD_SIZE)).tobytes()
        if head.startswith(envelope.MAGIC):
            raise self._invalid("it is a .sparsefmt file already, not safetensors")
        if not sniff.is_safetensors(head):
            raise self._invalid(sniff.describe(head, "a safetensors file"))
        length = int.from_bytes(head[:LENGTH_BYTES], "little")
        try:
            check_length(length, self.nbytes)
            refusal = self._refusal()
            if refusal is not None and length > _MOST_EXPLAINED:
                raise self._invalid(refusal)
            header = decode_header(self._source.read(LENGTH_BYTES, length).tobytes(), self.nbytes)
        except FormatError as error:
            if error.tensor is not None:
                raise FormatError(error.code, f"{error.message} (in {self.path})", tensor=error.tensor) from None
            raise self._invalid(error.message) from None
        if refusal is not None:
            raise self._invalid(refusal)
        return header

    def _refusal(self) -> str | None:
        """What the safetensors library has against the file: what it refuses is not converted, whatever we think."""
        try:
            # maps the file, but touches the header alone
            with safe_open(self.path, framework="np"):
                return None
        except SafetensorError as error:
            return str(error)
        except OSError:
            # its file system cannot map it: we have read it, and judge by ourselves
            return None

    def _stored_tensors(self, header: Header) -> dict[str, TensorRange]:
        tensors = {}
        for name, field in header.fields.items():
            if field.dtype not in DTYPES:
                raise UnsupportedError("dtype-unknown", f"dtype {field.dtype!r} is not known", tensor=name)
            begin, end = header.nbytes + field.begin, header.nbytes + field.end
            tensors[name] = TensorRange(DTYPES[field.dtype], field.shape, begin, end)
        return tensors

    def _invalid(self, message: str) -> FormatError:
        where = "" if message.startswith(f"{self.path}: ") else f"{self.path}: "
        return FormatError("safetensors-invalid", where + message)


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
