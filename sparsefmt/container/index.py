"""The index: what tensors a file holds and where their chunks lie. No I/O.

Canonical msgpack, one encoding for one content:

    {"chunks": bin, "metadata": {key: text}, "tensors": {name: entry}}

`chunks` is a table of 32-byte records in file order: offset, stored size, raw size and XXH64 of the stored bytes, each
u64. A tensor owns the run of records that starts at its `first_chunk`: tile by tile, and within a tile one for each of
its arrays in order of their names. An entry is one of

    {"arrays": {name: codec}, "dtype", "first_chunk", "layout", "models"?, "negative_zeros_dropped"?, "nnz"?, "shape",
     "tile_rows"}
    {"alias_of": name}

Every check here is O(1) per tensor or vectorised over the chunk table, and runs before anything is allocated for data.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import msgpack
import numpy as np

from sparsefmt.codecs import CODECS
from sparsefmt.container.envelope import ALIGNMENT, MINOR
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.errors import FormatError, LimitError, SparsefmtError, UnsupportedError
from sparsefmt.layouts import LAYOUTS
from sparsefmt.layouts.contract import NEGATIVE_ZEROS, Layout
from sparsefmt.limits import (
    MAX_CHUNK_BYTES,
    MAX_INDEX_ARRAY,
    MAX_INDEX_DEPTH,
    MAX_METADATA_BYTES,
    MAX_MODEL_BYTES,
    MAX_NAME_BYTES,
    MAX_NDIM,
    MAX_SPARSE_COLS,
    MAX_SPARSE_TILE_POSITIONS,
    MAX_SPARSE_TILE_ROWS,
    MAX_TENSOR_BITS,
    MAX_TENSORS,
)

CHUNK_RECORD = np.dtype([("offset", "<u8"), ("stored", "<u8"), ("raw", "<u8"), ("checksum", "<u8")])

_TOP_KEYS = ("chunks", "metadata", "tensors")
_ALIAS_KEYS = ("alias_of",)
_REQUIRED_KEYS = ("arrays", "dtype", "first_chunk", "layout", "shape", "tile_rows")
_SPARSE_KEYS = ("nnz",)
_SPARSE_REQUIRED_KEYS = tuple(sorted(_REQUIRED_KEYS + _SPARSE_KEYS))
_OPTIONAL_KEYS = ("models", "negative_zeros_dropped")
_MAX_INT = (1 << 63) - 1


def matrix_view(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, cols) of a tensor: the first dimension, and the product of the rest. (1, 1) for 0-d."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the index.

    Attributes:
        codecs: codec name of each array, in order of array names.
        tile_rows: rows in every tile but the last, which may have fewer. 0 if the tensor has no elements.
        first_chunk: number of its first record in the chunk table; 0 if it has no tiles.
        nnz: values stored, or None in layout `dense`.
        negative_zeros_dropped: how many -0.0 were turned into +0.0 when the file was written.
        models: what the codec of an array has to know, for the arrays whose codecs have models.
        rows, cols: of its matrix view.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    layout: Layout
    codecs: dict[str, str]
    tile_rows: int
    first_chunk: int
    nnz: int | None = None
    negative_zeros_dropped: int = 0
    models: dict[str, bytes] = field(default_factory=dict)
    rows: int = field(init=False)
    cols: int = field(init=False)

    def __post_init__(self) -> None:
        rows, cols = matrix_view(self.shape)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "cols", cols)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense tensor, sub-byte types packed."""
        return self.dtype.nbytes(self.elements)

    @property
    def tiles(self) -> int:
        # tile_rows is 0 exactly where there are no elements
        return -(-self.rows // self.tile_rows) if self.tile_rows else 0

    @property
    def chunk_count(self) -> int:
        return self.tiles * len(self.codecs)

    def tile_range(self, tile: int) -> tuple[int, int]:
        """First row of `tile`, and the row after its last."""
        return tile * self.tile_rows, min(self.rows, (tile + 1) * self.tile_rows)

    def to_object(self) -> dict[str, Any]:
        """The entry as it stands in the index, keys sorted."""
        entry: dict[str, Any] = {
            "arrays": self.codecs,
            "dtype": self.dtype.name,
            "first_chunk": self.first_chunk,
            "layout": self.layout.name,
        }
        if self.models:
            entry["models"] = self.models
        if self.negative_zeros_dropped:
            entry["negative_zeros_dropped"] = self.negative_zeros_dropped
        if self.nnz is not None:
            entry["nnz"] = self.nnz
        entry["shape"] = self.shape
        entry["tile_rows"] = self.tile_rows
        return entry


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

    @cached_property
    def names(self) -> list[str]:
        """All names, aliases included, sorted."""
        return sorted([*self.tensors, *self.aliases])

    def entry(self, name: str) -> TensorEntry:
        """The entry of a tensor or of what it is an alias of. Raises KeyError."""
        return self.tensors[self.aliases.get(name, name)]

    def chunk(self, entry: TensorEntry, tile: int, array: str) -> np.void:
        """The chunk record of one array of one tile."""
        return self.chunks[entry.first_chunk + tile * len(entry.codecs) + list(entry.codecs).index(array)]

    def stored_nbytes(self, entry: TensorEntry) -> int:
        """Bytes of a tensor's chunks in the file."""
        first = entry.first_chunk
        return int(self.chunks["stored"][first : first + entry.chunk_count].sum())

    def encode(self) -> bytes:
        """Canonical msgpack."""
        tensors: dict[str, Any] = {name: {"alias_of": target} for name, target in self.aliases.items()}
        tensors.update((name, entry.to_object()) for name, entry in self.tensors.items())
        return _pack(
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
    top = _unpack(data)
    _expect_keys(top, _TOP_KEYS, (), strict, "the index", level=1)
    for value, kind, what in (
        (top["chunks"], bytes, "chunks"),
        (top["metadata"], dict, "metadata"),
        (top["tensors"], dict, "tensors"),
    ):
        _expect_type(value, kind, what)
    index = Index(metadata=_decode_metadata(top["metadata"]), chunks=_decode_chunks(top["chunks"], index_offset))
    if len(top["tensors"]) > MAX_TENSORS:
        raise LimitError("tensor-count", f"the index has {len(top['tensors']):,} tensors; the limit is {MAX_TENSORS:,}")
    _expect_sorted(top["tensors"], "the tensors")
    for name, entry in top["tensors"].items():
        check_name(name)
        try:
            _expect_type(entry, dict, "its entry")
            if "alias_of" in entry:
                _expect_keys(entry, _ALIAS_KEYS, (), strict, "an alias entry", level=3)
                _expect_type(entry["alias_of"], str, "alias_of")
                index.aliases[name] = entry["alias_of"]
            else:
                index.tensors[name] = _decode_entry(name, entry, strict)
        except SparsefmtError as error:
            raise error.within(name) from None
    for name, target in index.aliases.items():
        if target not in index.tensors:
            raise FormatError("alias-invalid", f"it is an alias of {target!r}, which is no tensor here", tensor=name)
    _assign_chunks(index)
    return index


def check_name(name: Any) -> None:
    """Refuse what cannot be a tensor name: not text, empty, too long, with NUL, not UTF-8."""
    if not isinstance(name, str):
        raise FormatError("name-invalid", f"a tensor name must be text, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise FormatError("name-invalid", f"tensor name {name!r} is not valid Unicode") from None
    if not encoded:
        raise FormatError("name-invalid", "a tensor name is empty")
    if len(encoded) > MAX_NAME_BYTES:
        raise LimitError(
            "name-length", f"tensor name {name[:40]!r}… has {len(encoded):,} bytes; the limit is {MAX_NAME_BYTES:,}"
        )
    if "\0" in name:
        raise FormatError("name-invalid", f"tensor name {name!r} contains NUL")


def check_metadata(metadata: Any) -> None:
    """Refuse metadata that is not a mapping of text to text, or too large."""
    if not isinstance(metadata, dict):
        raise FormatError("metadata-invalid", f"metadata must be a dict of str to str, not {type(metadata).__name__}")
    size = 0
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise FormatError("metadata-invalid", f"metadata must map str to str; {key!r} is {value!r}")
        try:
            size += len(key.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise FormatError("metadata-invalid", f"metadata {key!r} is not valid Unicode") from None
    if size > MAX_METADATA_BYTES:
        raise LimitError("metadata-size", f"metadata has {size:,} bytes; the limit is {MAX_METADATA_BYTES:,}")


def check_shape(shape: tuple[int, ...], dtype: DType) -> None:
    """Refuse a shape with too many dimensions or whose sizes do not fit 63 bits."""
    if len(shape) > MAX_NDIM:
        raise LimitError("shape-ndim", f"{len(shape)} dimensions; the limit is {MAX_NDIM}")
    if prod(max(size, 1) for size in shape) * dtype.bits > MAX_TENSOR_BITS:
        raise LimitError("shape-size", f"shape {list(shape)} of {dtype.name} is over {MAX_TENSOR_BITS:,} bits")


def _decode_metadata(metadata: dict[str, str]) -> dict[str, str]:
    _expect_sorted(metadata, "the metadata")
    check_metadata(metadata)
    return metadata


def _decode_chunks(table: bytes, index_offset: int) -> np.ndarray:
    """Check that the chunks lie one after the other from the first aligned offset to the index, without a gap."""
    if len(table) % CHUNK_RECORD.itemsize:
        raise FormatError(
            "index-type", f"the chunk table has {len(table):,} bytes, no multiple of {CHUNK_RECORD.itemsize}"
        )
    chunks = np.frombuffer(table, CHUNK_RECORD)
    too_large = np.maximum(chunks["stored"], chunks["raw"]) > MAX_CHUNK_BYTES
    if too_large.any():
        number = int(too_large.argmax())
        raise LimitError(
            "chunk-limit", f"chunk {number} is over {MAX_CHUNK_BYTES:,} bytes", offset=int(chunks["offset"][number])
        )
    # sizes are below 2**36 and a table below 2**23 records: this cannot overflow
    ends = chunks["stored"].astype(np.int64)
    ends = np.cumsum(-(-ends // ALIGNMENT) * ALIGNMENT) + ALIGNMENT
    expected = np.concatenate([[ALIGNMENT], ends]).astype(np.uint64)
    actual = np.concatenate([chunks["offset"], np.array([index_offset], np.uint64)])
    wrong = actual != expected
    if wrong.any():
        number = int(wrong.argmax())
        what = f"chunk {number}" if number < len(chunks) else "the index"
        at, due = int(actual[number]), int(expected[number])
        if at > index_offset:
            raise FormatError("chunk-out-of-bounds", f"{what} starts at {at:,}, beyond the index", offset=at)
        code = "chunk-overlap" if at < due else "chunk-gap"
        raise FormatError(code, f"{what} starts at {at:,}, but the one before makes it start at {due:,}", offset=at)
    return chunks


def _decode_entry(name: str, entry: dict[str, Any], strict: bool) -> TensorEntry:
    _expect_type(entry.get("layout", ""), str, "layout")
    # an entry without a layout fails the check of its keys
    layout = LAYOUTS.get(entry.get("layout", "dense"))
    if layout is None:
        raise UnsupportedError("layout-unknown", f"layout {entry['layout']!r} is not known to this version")
    if "nnz" in entry and not layout.sparse:
        raise FormatError("index-key", f"its entry has 'nnz', which layout {layout.name!r} has not")
    required = _SPARSE_REQUIRED_KEYS if layout.sparse else _REQUIRED_KEYS
    _expect_keys(entry, required, _OPTIONAL_KEYS, strict, "its entry", level=3)
    _expect_type(entry["dtype"], str, "dtype")
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise UnsupportedError("dtype-unknown", f"dtype {entry['dtype']!r} is not known to this version")
    _expect_type(entry["shape"], list, "shape")
    for size in entry["shape"]:
        _expect_int(size, "a dimension")
    shape = tuple(entry["shape"])
    check_shape(shape, dtype)
    for key in ("first_chunk", "tile_rows", *_SPARSE_KEYS, "negative_zeros_dropped"):
        if key in entry:
            _expect_int(entry[key], key)
    decoded = TensorEntry(
        name,
        dtype,
        shape,
        layout,
        _decode_arrays(entry["arrays"], layout, dtype),
        entry["tile_rows"],
        entry["first_chunk"],
        entry["nnz"] if layout.sparse else None,
        entry.get("negative_zeros_dropped", 0),
        _decode_models(entry),
    )
    _check_entry(decoded)
    if entry.get("negative_zeros_dropped") == 0:
        raise FormatError("index-not-canonical", "negative_zeros_dropped is 0; it must be left out then")
    return decoded


def _decode_arrays(arrays: Any, layout: Layout, dtype: DType) -> dict[str, str]:
    _expect_type(arrays, dict, "arrays")
    for array, codec in arrays.items():
        _expect_type(codec, str, f"the codec of array {array!r}")
    _check_arrays(layout.name, dtype.name, tuple(arrays.items()))
    return arrays


@lru_cache(maxsize=256)
def _check_arrays(layout_name: str, dtype_name: str, items: tuple[tuple[str, str], ...]) -> None:
    """Check arrays and their codecs. Most tensors have those of another one."""
    layout, dtype, arrays = LAYOUTS[layout_name], DTYPES[dtype_name], dict(items)
    _expect_sorted(arrays, "the arrays")
    optional = {NEGATIVE_ZEROS} if layout.sparse and dtype.negative_zero else set()
    if not set(layout.arrays) <= set(arrays) <= set(layout.arrays) | optional:
        raise FormatError(
            "array-set", f"layout {layout.name!r} has arrays {', '.join(layout.arrays)}, not {', '.join(arrays)}"
        )
    for array, codec in items:
        if codec not in CODECS:
            raise UnsupportedError("codec-unknown", f"codec {codec!r} of array {array!r} is not known to this version")


@lru_cache(maxsize=256)
def _arrays_with_models(items: tuple[tuple[str, str], ...]) -> list[str]:
    """Of arrays and their codecs, those that need a model."""
    return [array for array, codec in items if CODECS[codec].has_models and not CODECS[codec].derives(array)]


def _decode_models(entry: dict[str, Any]) -> dict[str, bytes]:
    """The models, one for each array whose codec has them; what they say is up to the codec."""
    expected = _arrays_with_models(tuple(entry["arrays"].items()))
    if not expected and "models" not in entry:
        return {}
    models = entry.get("models", {})
    _expect_type(models, dict, "models")
    _expect_sorted(models, "the models")
    if list(models) != expected:
        raise FormatError("model-set", f"it has models for {list(models)}, and needs them for {expected}")
    if not models:
        raise FormatError("index-not-canonical", "models is empty; it must be left out then")
    for array, model in models.items():
        _expect_type(model, bytes, f"the model of array {array!r}")
        if len(model) > MAX_MODEL_BYTES:
            raise LimitError("model-size", f"the model of array {array!r} has {len(model):,} bytes")
    return models


def _check_entry(entry: TensorEntry) -> None:
    """Refuse tiles, counts and layouts that cannot be."""
    if not entry.elements:
        if entry.tile_rows or entry.first_chunk:
            raise FormatError(
                "tile-rows", "a tensor without elements has no tiles: tile_rows and first_chunk must be 0"
            )
    elif not 1 <= entry.tile_rows <= entry.rows:
        raise FormatError("tile-rows", f"tile_rows is {entry.tile_rows:,}, and the tensor has {entry.rows:,} rows")
    if entry.dtype.packed and entry.tiles > 1 and entry.tile_rows % 8:
        raise FormatError("tile-rows", f"tile_rows of a {entry.dtype.name} tensor must be a multiple of 8")
    if entry.negative_zeros_dropped > (entry.elements if entry.dtype.negative_zero else 0):
        raise FormatError("negative-zeros-dropped", "more negative zeros were dropped than there can be")
    if not entry.layout.sparse:
        return
    if not entry.dtype.prunable or len(entry.shape) < 2 or not entry.elements:
        raise FormatError(
            "layout-invalid", f"a {entry.dtype.name} tensor of shape {list(entry.shape)} must have layout 'dense'"
        )
    if (
        entry.cols > MAX_SPARSE_COLS
        or entry.tile_rows > MAX_SPARSE_TILE_ROWS
        or entry.tile_rows * entry.cols > MAX_SPARSE_TILE_POSITIONS
    ):
        raise LimitError(
            "tile-size", f"tiles of {entry.tile_rows:,} x {entry.cols:,} are too large for layout {entry.layout.name!r}"
        )
    if entry.nnz is not None and entry.nnz > entry.elements:
        raise FormatError("nnz", f"nnz is {entry.nnz:,}, over its {entry.elements:,} elements")


def _assign_chunks(index: Index) -> None:
    """Check that every chunk belongs to exactly one tensor, and that sizes are possible for its layout and codec."""
    raw, stored = np.ascontiguousarray(index.chunks["raw"]), np.ascontiguousarray(index.chunks["stored"])
    due = 0
    for entry in sorted(index.tensors.values(), key=lambda entry: entry.first_chunk):
        count = entry.chunk_count
        if not count:
            continue
        first, due = due, due + count
        if entry.first_chunk != first:
            raise FormatError(
                "chunk-assignment",
                f"its chunks start at number {entry.first_chunk:,}, not {first:,}",
                tensor=entry.name,
            )
        if due > len(raw):
            raise FormatError(
                "chunk-assignment", f"it needs chunks up to number {due:,} of {len(raw):,}", tensor=entry.name
            )
        try:
            _check_chunk_sizes(entry, raw[first:due].tolist(), stored[first:due].tolist())
        except FormatError as error:
            raise error.within(entry.name) from None
    if due != len(raw):
        raise FormatError("chunk-assignment", f"{len(raw) - due:,} chunks belong to no tensor")


def _check_chunk_sizes(entry: TensorEntry, raw: list[int], stored: list[int]) -> None:
    """Check raw and stored sizes of all chunks of a tensor."""
    arrays, cols = len(entry.codecs), entry.cols
    ratios, derived = _ratios_and_derived(tuple(entry.codecs.items()))
    for number, (raw_size, stored_size) in enumerate(zip(raw, stored, strict=True)):
        if derived[number % arrays] and stored_size == 0:
            continue  # raw sizes of arrays that can be derived follow from the tile's
        if derived[number % arrays] and stored_size != raw_size:
            raise FormatError("chunk-size", f"a chunk that can be derived has {stored_size:,} bytes")
        if not stored_size <= raw_size <= stored_size * ratios[number % arrays]:
            raise FormatError("chunk-size", f"a chunk of {stored_size:,} bytes cannot decode to {raw_size:,}")
    for tile in range(len(raw) // arrays):
        begin, end = entry.tile_range(tile)
        sizes = dict(zip(entry.codecs, raw[tile * arrays : (tile + 1) * arrays], strict=True))
        entry.layout.check_sizes(sizes, entry.dtype, end - begin, cols)


@lru_cache(maxsize=256)
def _ratios_and_derived(items: tuple[tuple[str, str], ...]) -> tuple[list[int], list[bool]]:
    """Of arrays and their codecs: how much the codec can do, and whether it derives the array from others."""
    return [CODECS[codec].max_ratio for _, codec in items], [CODECS[codec].derives(array) for array, codec in items]


def _pack(value: object) -> bytes:
    return msgpack.packb(value, use_bin_type=True)


def _unpack(data: bytes) -> dict[str, Any]:
    """Decode msgpack and refuse anything that `_pack` would have written otherwise, or not at all."""
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_INDEX_ARRAY,
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
        canonical = _pack(value) == data
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        # duplicate keys, unlike the rest, decode; they fail the comparison
        raise FormatError("index-malformed", f"the index is not the msgpack it should be: {error}") from None
    except MemoryError:
        raise LimitError("memory", "the index does not fit in memory") from None
    if not canonical:
        raise FormatError("index-not-canonical", "the index is not in canonical form")
    _expect_type(value, dict, "the index")
    return value


def _refuse_extension(code: int, data: bytes) -> None:
    """Those of no bytes, which have no other limit."""
    raise ValueError(f"it has an extension type, {code}")


def _expect_keys(
    mapping: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...], strict: bool, what: str, level: int
) -> None:
    """Check the keys of a map that stands `level` levels deep. Unknown ones are refused, or, not `strict`, ignored."""
    if tuple(mapping) == required:  # the usual case, and the fastest
        return
    _expect_text_keys(mapping, f"the keys of {what}")
    for key in required:
        if key not in mapping:
            raise FormatError("index-key", f"{what} lacks {key!r}")
    for key, value in mapping.items():
        if key not in required and key not in optional:
            if strict:
                raise FormatError("index-key", f"{what} has an unknown key {key!r}")
            _check_ignored(value, f"the value of unknown key {key!r}", level + 1)
    _expect_sorted(mapping, f"the keys of {what}")


def _check_ignored(value: Any, what: str, level: int) -> None:
    """What a later minor version added is not read, but has to be in canonical form like all of the index."""
    if type(value) in (dict, list) and level > MAX_INDEX_DEPTH:
        raise FormatError("index-malformed", f"{what} has over {MAX_INDEX_DEPTH} levels of maps and arrays")
    if type(value) is dict:
        _expect_sorted(value, f"the keys of {what}")
        value = list(value.values())
    if type(value) is list:
        for inner in value:
            _check_ignored(inner, what, level + 1)
    elif type(value) not in (str, bytes, int) or (type(value) is int and value < 0):
        raise FormatError("index-type", f"{what} has a value of a type that an index cannot have: {value!r:.80}")


def _expect_text_keys(mapping: Mapping[Any, Any], what: str) -> None:
    if not all(type(key) is str for key in mapping):
        raise FormatError("index-malformed", f"{what} must be text")


def _expect_sorted(mapping: Mapping[str, Any], what: str) -> None:
    _expect_text_keys(mapping, what)
    keys = list(mapping)
    if keys != sorted(keys):
        raise FormatError("index-not-canonical", f"{what} are not sorted")


def _expect_type(value: object, kind: type, what: str) -> None:
    if type(value) is not kind:
        raise FormatError("index-type", f"{what} must be {kind.__name__}, not {type(value).__name__}")


def _expect_int(value: object, what: str) -> None:
    if type(value) is not int or not 0 <= value <= _MAX_INT:
        raise FormatError("index-type", f"{what} must be an integer from 0 to 2**63 - 1, not {value!r}")
