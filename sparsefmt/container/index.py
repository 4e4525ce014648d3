"""The index: what tensors a file holds and where their chunks lie. No I/O.

Canonical msgpack, one encoding for one content:

    {"chunks": bin, "metadata": {key: text}, "tensors": {name: entry}}

Chunks are described in chunks.py, entries in entry.py. Every check is O(1) per tensor or per chunk, and all run before
anything is allocated for data.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsefmt.container import canonical
from sparsefmt.container.canonical import Keys, expect_keys, expect_possible, expect_sorted, expect_type
from sparsefmt.container.chunks import CHUNK_RECORD, check_owners, decode_chunks
from sparsefmt.container.entry import TensorEntry, decode_entry
from sparsefmt.container.envelope import MINOR
from sparsefmt.container.names import check_metadata, check_names
from sparsefmt.errors import FormatError, LimitError, SparsefmtError
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.lazily import computed_once
from sparsefmt.limits import MAX_TENSORS

_TOP_KEYS = Keys("the index", 1, ("chunks", "metadata", "tensors"))
_ALIAS_KEYS = Keys("an alias entry", 3, ("alias_of",))


@dataclass
class Index:
    """The content of a file's index.

    Attributes:
        tensors: entries by name.
        aliases: name of the tensor that each tied name stands for.
        chunks: the chunk table, CHUNK_RECORD.
    """

    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    chunks: np.ndarray = field(default_factory=lambda: np.empty(0, CHUNK_RECORD))

    @computed_once
    def names(self) -> list[str]:
        """All names, aliases included, sorted."""
        return sorted([*self.tensors, *self.aliases])

    def entry(self, name: str) -> TensorEntry:
        """The entry of a tensor or of what it is an alias of. Raises KeyError."""
        return self.tensors[self.aliases.get(name, name)]

    def offset_keys(self) -> list[str]:
        """All names, in the order in which their tensors lie in the file: tied names one after the other, and first the
        empty tensors, which lie nowhere."""

        def place(name: str) -> tuple[int, str]:
            entry = self.entry(name)
            return (entry.first_chunk if entry.tiles else -1), name

        return sorted(self.names, key=place)

    def chunk(self, entry: TensorEntry, tile: int, array: str) -> np.void:
        """The chunk record of one array of one tile."""
        return self.chunks[self.chunk_number(entry, tile, array)]

    @staticmethod
    def chunk_number(entry: TensorEntry, tile: int, array: str) -> int:
        """Where in the chunk table the record of one array of one tile stands."""
        return entry.first_chunk + tile * len(entry.codecs) + list(entry.codecs).index(array)

    def stored_nbytes(self, entry: TensorEntry) -> int:
        """Bytes of a tensor's chunks in the file."""
        first = entry.first_chunk
        return int(self.chunks["stored"][first : first + entry.chunk_count].sum())

    def sign_nbytes(self, entry: TensorEntry) -> int:
        """Of these, what the signs of negative zeros take."""
        arrays = list(entry.codecs)
        if NEGATIVE_ZEROS not in arrays:
            return 0
        first = entry.first_chunk + arrays.index(NEGATIVE_ZEROS)
        return int(self.chunks["stored"][first : entry.first_chunk + entry.chunk_count : len(arrays)].sum())

    def encode(self) -> bytes:
        """Canonical msgpack."""
        tensors: dict[str, Any] = {name: {"alias_of": target} for name, target in self.aliases.items()}
        tensors.update((name, entry.to_object()) for name, entry in self.tensors.items())
        return canonical.encode(
            {
                "chunks": self.chunks.tobytes(),
                "metadata": dict(sorted(self.metadata.items())),
                "tensors": dict(sorted(tensors.items())),
            }
        )


def decode(data: bytes, index_offset: int, minor: int) -> Index:
    """The index that `data` encodes, fully checked, for a file of version 1.`minor` with the index at `index_offset`.

    Keys that this version does not know are refused, unless the file has a newer minor version: then they are ignored.
    """
    # a hundred thousand small dicts: the cyclic collector would run over them again and again, and finds nothing
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _decode(data, index_offset, strict=minor <= MINOR)
    finally:
        if collecting:
            gc.enable()


def _decode(data: bytes, index_offset: int, strict: bool) -> Index:
    top = canonical.decode(data)
    expect_keys(top, _TOP_KEYS, strict)
    tensors, metadata, chunks = top["tensors"], top["metadata"], top["chunks"]
    expect_type(chunks, bytes, "chunks")
    expect_type(metadata, dict, "metadata")
    expect_type(tensors, dict, "tensors")
    expect_sorted(metadata, "the metadata")
    for key, text in metadata.items():
        if type(text) is not str:
            expect_possible(text, f"metadata {key!r}", level=3)
    check_metadata(metadata)
    index = Index(metadata=metadata, chunks=decode_chunks(chunks, index_offset))
    if len(tensors) > MAX_TENSORS:
        raise LimitError("tensor-count", f"the index has {len(tensors):,} tensors; the limit is {MAX_TENSORS:,}")
    expect_sorted(tensors, "the tensors")
    check_names(tensors)
    try:
        for name, entry in tensors.items():
            if type(entry) is dict and "alias_of" not in entry:
                index.tensors[name] = decode_entry(name, entry, strict)
            else:
                index.aliases[name] = _decode_alias(entry, strict)
    except SparsefmtError as error:
        raise error.within(name) from None
    for name, target in index.aliases.items():
        if target not in index.tensors:
            raise FormatError("alias-invalid", f"it is an alias of {target!r}, which is no tensor here", tensor=name)
    check_owners(index.tensors.values(), index.chunks)
    return index


def _decode_alias(entry: Any, strict: bool) -> str:
    """Name of the tensor that another name stands for."""
    expect_type(entry, dict, "its entry")
    expect_keys(entry, _ALIAS_KEYS, strict)
    expect_type(entry["alias_of"], str, "alias_of")
    return entry["alias_of"]
