"""The index: what tensors a file holds and where their chunks lie. No I/O.

Canonical msgpack, one encoding for one content:

    [chunks, [kind, …], {name: entry, …}]
    [chunks, [kind, …], {name: entry, …}, {"metadata": {key: text, …}}]

Chunks are described in chunks.py, kinds in kinds.py, entries in entry.py. A file with coded chunks may have its index
coded too (coded_index.py). Every check is O(1) per tensor or per chunk, and all run before
anything is allocated for data.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsefmt.container import canonical, coded_index
from sparsefmt.container.canonical import Keys, expect_keys, expect_possible, expect_sorted, expect_type, fields_of
from sparsefmt.container.chunks import CHUNK_RECORD, check_owners, decode_chunks, encode_chunks
from sparsefmt.container.entry import TensorEntry, decode_entry
from sparsefmt.container.envelope import MINOR
from sparsefmt.container.kinds import decode_kinds, numbers_of
from sparsefmt.container.names import check_metadata, check_names
from sparsefmt.errors import FormatError, LimitError, SparsefmtError
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.lazily import computed_once
from sparsefmt.limits import MAX_TENSORS

_TOP_KEYS = Keys("the index", 2, (), ("metadata",))
_ALIAS_OF, _COPY_OF = "alias_of", "copy_of"
_ALIAS_KEYS, _COPY_KEYS = Keys("an alias entry", 3, (_ALIAS_OF,)), Keys("an alias entry", 3, (_COPY_OF,))


@dataclass
class Index:
    """The content of a file's index.

    Attributes:
        tensors: entries by name.
        aliases: name of the tensor that each further name stands for: tied names, and those of equal tensors. What a
            tied name stands for may be equal to another tensor.
        copies: which of these are tensors of their own, with the elements of another.
        chunks: the chunk table, CHUNK_RECORD.
    """

    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    copies: set[str] = field(default_factory=set)
    metadata: dict[str, str] = field(default_factory=dict)
    chunks: np.ndarray = field(default_factory=lambda: np.empty(0, CHUNK_RECORD))

    @property
    def tied(self) -> dict[str, str]:
        """Of the aliases, those that are one tensor with what they stand for."""
        if not self.copies:
            return self.aliases
        return {name: target for name, target in self.aliases.items() if name not in self.copies}

    @computed_once
    def names(self) -> list[str]:
        """All names, aliases included, sorted."""
        return sorted([*self.tensors, *self.aliases])

    def entry(self, name: str) -> TensorEntry:
        """The entry of a tensor or of what it is an alias of. Raises KeyError."""
        name = self.aliases.get(name, name)
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

    def array_nbytes(self, entry: TensorEntry, array: str) -> int:
        """Of these, what one of its arrays takes; 0 if it does not have it."""
        arrays = list(entry.codecs)
        if array not in arrays:
            return 0
        first = entry.first_chunk + arrays.index(array)
        return int(self.chunks["stored"][first : entry.first_chunk + entry.chunk_count : len(arrays)].sum())

    def sign_nbytes(self, entry: TensorEntry) -> int:
        """What the signs of negative zeros take."""
        return self.array_nbytes(entry, NEGATIVE_ZEROS)

    def encode(self, *, coded: bool = False) -> bytes:
        """The index as it stands in a file: canonical msgpack. `coded`: made smaller by zstd, if that does."""
        kinds = {entry.kind.key: entry.kind for _, entry in sorted(self.tensors.items())}
        numbers = numbers_of(kinds.values())
        tensors: dict[str, Any] = {}
        following = 0
        for name in sorted([*self.tensors, *self.aliases]):
            entry = self.tensors.get(name)
            if entry is None:
                tensors[name] = {_COPY_OF if name in self.copies else _ALIAS_OF: self.aliases[name]}
                continue
            tensors[name] = entry.to_object(numbers[entry.kind.key], following)
            if entry.tile_rows:
                following = entry.first_chunk + entry.chunk_count
        content = [encode_chunks(self.chunks), [kind.to_object() for kind in kinds.values()], tensors]
        if self.metadata:
            content.append({"metadata": dict(sorted(self.metadata.items()))})
        encoded = canonical.encode(content)
        return coded_index.encode(encoded) if coded else encoded


def content(data: bytes) -> dict[str, Any]:
    """What an index says that is valid, however its kinds are numbered, and whether it is coded or not."""
    chunks, kinds, tensors, *fields = canonical.decode(coded_index.decode(data))
    named = {name: [kinds[entry[0]], *entry[1:]] if type(entry) is list else entry for name, entry in tensors.items()}
    return {"chunks": chunks, "tensors": named, "fields": fields}


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
    top = canonical.decode(coded_index.decode(data))
    fields = fields_of(top, 3, "the index")
    expect_keys(fields, _TOP_KEYS, strict)
    chunks, kinds_there, tensors = top[:3]
    metadata = _decode_metadata(fields["metadata"]) if "metadata" in fields else {}
    kinds = decode_kinds(kinds_there, strict)
    expect_type(chunks, bytes, "chunks")
    expect_type(tensors, dict, "tensors")
    index = Index(metadata=metadata, chunks=decode_chunks(chunks, index_offset))
    if len(tensors) > MAX_TENSORS:
        raise LimitError("tensor-count", f"the index has {len(tensors):,} tensors; the limit is {MAX_TENSORS:,}")
    expect_sorted(tensors, "the tensors")
    check_names(tensors)
    used: set[int] = set()
    try:
        for name, entry in tensors.items():
            if type(entry) is not dict:
                # where it stood before it was decoded: with both, a large index would take a third more memory
                tensors[name] = decode_entry(name, entry, kinds, strict)
                used.add(entry[0])
            else:
                index.aliases[name], is_copy = _decode_alias(entry, strict)
                if is_copy:
                    index.copies.add(name)
    except SparsefmtError as error:
        raise error.within(name) from None
    for name in index.aliases:
        del tensors[name]
    index.tensors = tensors
    for name, target in index.aliases.items():
        is_there = target in index.tensors or (target in index.copies and name not in index.copies)
        if not is_there:
            raise FormatError("alias-invalid", f"it is an alias of {target!r}, which is not a tensor here", tensor=name)
    if len(used) != len(kinds):
        raise FormatError("kind-invalid", "the index has a kind that no tensor is of")
    check_owners(index.tensors.values(), index.chunks)
    return index


def _decode_metadata(metadata: Any) -> dict[str, str]:
    """The metadata of an index that has some."""
    expect_type(metadata, dict, "metadata")
    expect_sorted(metadata, "the metadata")
    for key, text in metadata.items():
        if type(text) is not str:
            expect_possible(text, f"metadata {key!r}", level=4)
    check_metadata(metadata)
    if not metadata:
        raise FormatError("index-not-canonical", "the metadata is empty; it must be left out then")
    return metadata


def _decode_alias(entry: dict[str, Any], strict: bool) -> tuple[str, bool]:
    """Name of the tensor that another name stands for, and whether it is a tensor of its own."""
    is_copy = _COPY_OF in entry
    if is_copy and _ALIAS_OF in entry:
        raise FormatError("index-key", f"an alias has both {_ALIAS_OF!r} and {_COPY_OF!r}")
    key = _COPY_OF if is_copy else _ALIAS_OF
    expect_keys(entry, _COPY_KEYS if is_copy else _ALIAS_KEYS, strict)
    expect_type(entry[key], str, key)
    return entry[key], is_copy
