"""safetensors files: read by ranges, written in one pass.

    0  8  length n of the header u64
    8  n  header: JSON, padded with spaces to a multiple of 8
    8+n   the tensors, dense, little-endian, row-major, without gaps

safetensors knows no tied tensors: a tensor of two names, an alias in .sparsefmt, is written twice.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from sparsefmt.container import envelope, sniff
from sparsefmt.container.sources import ReadFile
from sparsefmt.container.writer import Sink
from sparsefmt.dtypes import DTYPES, DType, pack
from sparsefmt.errors import FormatError, LimitError, SparsefmtError, UnsupportedError
from sparsefmt.intake import BytesIntake, Intake
from sparsefmt.interchange.contract import TensorFile, expect_regular_file
from sparsefmt.threads import in_order

METADATA = "__metadata__"
"""The one key of the header that is no tensor."""

MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library reads at most."""

_LENGTH_BYTES = 8


class StoredTensor(NamedTuple):
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
            self._validate()
            header = self._read_header()
            self.metadata: dict[str, str] = header.pop(METADATA, None) or {}
            self.tensors = self._stored_tensors(header)
            self.names = sorted(self.tensors, key=lambda name: (self.tensors[name].begin, self.tensors[name].end))
        except BaseException:
            self.close()
            raise

    def intake(self, name: str) -> BytesIntake:
        tensor = self.tensors[name]

        def read(offset: int, size: int) -> np.ndarray:
            return self._source.read(tensor.begin + offset, size)

        try:
            return BytesIntake(read, tensor.dtype, tensor.shape)
        except SparsefmtError as error:
            raise error.within(name) from None

    def close(self) -> None:
        self._source.close()

    def _validate(self) -> None:
        """Let the safetensors library judge the file, after a look at what it can only call a bad header."""
        head = self._source.read(0, min(self.nbytes, sniff.HEAD_SIZE)).tobytes()
        if head.startswith(envelope.MAGIC):
            raise self._invalid("it is a .sparsefmt file already, not safetensors")
        if not sniff.is_safetensors(head):
            raise self._invalid(sniff.describe(head, "a safetensors file"))
        try:
            # maps the file, but touches the header alone
            with safe_open(self.path, framework="np"):
                pass
        except SafetensorError as error:
            raise self._invalid(str(error)) from None

    def _read_header(self) -> dict[str, Any]:
        length = int.from_bytes(self._source.read(0, _LENGTH_BYTES).tobytes(), "little")
        text = self._source.read(_LENGTH_BYTES, length).tobytes()
        self._data_begin = _LENGTH_BYTES + length
        try:
            header = json.loads(text, object_pairs_hook=dict_of_distinct_keys)
        except ValueError as error:
            raise self._invalid(f"its header is ambiguous: {error}") from None
        return header

    def _stored_tensors(self, header: dict[str, Any]) -> dict[str, StoredTensor]:
        tensors = {}
        for name, fields in header.items():
            if fields["dtype"] not in DTYPES:
                raise UnsupportedError("dtype-unknown", f"dtype {fields['dtype']!r} is not known", tensor=name)
            begin, end = (self._data_begin + offset for offset in fields["data_offsets"])
            tensors[name] = StoredTensor(DTYPES[fields["dtype"]], tuple(fields["shape"]), begin, end)
        return tensors

    def _invalid(self, message: str) -> FormatError:
        return FormatError("safetensors-invalid", f"{self.path}: {message}")


def write_safetensors(
    sink: Sink,
    tensors: Mapping[str, Intake],
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
        tensors: intakes by name.
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


def _encode_header(names: list[str], tensors: Mapping[str, Intake], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        intake = tensors[name]
        bits = intake.rows * intake.cols * intake.dtype.bits
        if name == METADATA:
            raise FormatError(
                "safetensors-name", "safetensors keeps this name for the metadata: rename it", tensor=name
            )
        if bits % 8:
            raise FormatError(
                "safetensors-size",
                f"{bits:,} bits of {intake.dtype.name}: safetensors holds sub-byte tensors of whole bytes only",
                tensor=name,
            )
        end = offset + bits // 8
        header[name] = {"dtype": intake.dtype.name, "shape": list(intake.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise LimitError(
            "safetensors-header", f"the header would have {len(text):,} bytes; {MAX_HEADER_BYTES:,} is most"
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _dense_tiles(intake: Intake) -> tuple[Callable[[int], np.ndarray], range]:
    """A function that gives the bytes of the tile that starts at a row, and those rows."""
    height = intake.tile_rows("dense")

    def dense_tile(begin: int) -> np.ndarray:
        bits = intake.bits(begin, min(begin + height, intake.rows))
        flat = pack(bits, intake.dtype) if intake.dtype.packed else np.ascontiguousarray(bits)
        return flat.reshape(-1).view(np.uint8)

    return dense_tile, range(0, intake.rows if height else 0, height or 1)


def dict_of_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: a dict, or a ValueError if a key is there twice, which parsers settle in different ways."""
    content = dict(pairs)
    if len(content) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} is there twice")
    return content
