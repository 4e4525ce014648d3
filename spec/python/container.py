"""Section 2 of SPEC.md: preamble, chunk table, trailer, index. All that section 7 has a reader check on opening."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import faults
import msgpack
import xxhash
import zstandard
from dtypes import DTYPES, DType
from faults import Fault, require
from frames import ZSTD_MAGIC, decode_frame
from layouts import LAYOUTS, ceil_div, check_sizes

MAGIC, END_MAGIC = bytes.fromhex("89 53 50 46 0D 0A 1A 0A"), bytes.fromhex("0A 1A 0A 0D 46 50 53 89")
MAJOR, MINOR, FEATURES = 1, 0, 0
CODECS = {"raw": 1, "zstd": faults.MAX_ZSTD_RATIO, "rans": faults.MAX_RANS_RATIO}  # raw bytes per stored byte, at most


class Record(NamedTuple):
    """One record of the chunk table, and where its chunk lies."""

    offset: int
    stored: int
    raw: int
    checksum: int
    padding: int  # bytes behind the chunk


@dataclass(frozen=True)
class Kind:
    """What tensors of one kind have in common."""

    dtype: DType
    layout: str
    arrays: dict[str, str]  # array name to codec name, in order of the array names


@dataclass(frozen=True)
class Entry:
    """What the index says about a tensor, and what follows from it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    layout: str
    arrays: dict[str, str]  # array name to codec name, in order of the array names
    models: dict[str, bytes]
    row_dims: int
    tile_rows: int
    first_chunk: int
    nnz: int | None

    @property
    def rows(self) -> int:
        return math.prod(self.shape[: self.row_dims])

    @property
    def cols(self) -> int:
        return math.prod(self.shape[self.row_dims :])

    @property
    def tiles(self) -> int:
        return ceil_div(self.rows, self.tile_rows) if self.rows * self.cols else 0

    @property
    def end(self) -> int:
        """The number of the chunk behind its own."""
        return self.first_chunk + self.tiles * len(self.arrays)

    def rows_of(self, tile: int) -> int:
        return min(self.tile_rows, self.rows - tile * self.tile_rows)


@dataclass(frozen=True)
class Container:
    data: bytes
    metadata: dict[str, str]
    names: dict[str, Entry]  # a further name of a tensor has the entry of that tensor
    records: list[Record]

    def chunks(self, entry: Entry, tile: int) -> Iterator[tuple[str, Record]]:
        """The chunks of a tile: one for each array, in order of the array names."""
        first = entry.first_chunk + tile * len(entry.arrays)
        return zip(entry.arrays, self.records[first : first + len(entry.arrays)], strict=True)


def place(end: int, stored: int, raw: int) -> int:
    """Where a chunk starts, if the one before ends there."""
    if stored != raw:
        return end
    unit = max(math.gcd(raw, 64), 8) if raw >= 32768 else 8
    return ceil_div(end, unit) * unit


def open_container(data: bytes) -> Container:
    minor = check_preamble(data)
    index_offset = find_index(data)
    root = decode_canonical(decode_index(data[index_offset:-20]))
    fields = read_fields(root, 3, {"metadata"}, minor, "the index")
    chunks, kinds, tensors = root[:3]
    check_metadata(fields)
    records = read_records(chunks, index_offset)
    first = records[0].offset if records else 16
    require(not any(data[16:first]), "padding-not-zero", f"bytes 16 to {first}")
    names = read_tensors(tensors, read_kinds(kinds, minor), minor)
    container = Container(data, fields.get("metadata", {}), names, records)
    check_chunks(container)
    return container


# ------------------------------------------------------------------------------------------------------- 2.1 Preamble


def check_preamble(data: bytes) -> int:
    """The minor version."""
    require(data[:8] == MAGIC, "not-sparsefmt", "no magic")
    require(len(data) >= 36, "file-too-short", f"{len(data)} bytes")
    major, minor, features = struct.unpack_from("<HHI", data, 8)
    require(major == MAJOR, "version-unsupported", f"version {major}.{minor}")
    require(features & ~FEATURES == 0, "feature-unsupported", f"feature bits {features:#x}")
    return minor


# --------------------------------------------------------------------------------------------------------- 2.2 Chunks


def integers(column: bytes, width: int) -> list[int]:
    """Unsigned integers of so many bytes."""
    return [int.from_bytes(column[at : at + width], "little") for at in range(0, len(column), width)]


def least_width(sizes: list[int]) -> int:
    """Bytes of the smallest integers that hold these sizes."""
    return next(width for width in (1, 2, 4, 8) if max(sizes) < 256**width)


def read_sizes(table: bytes) -> list[tuple[int, int, int]]:
    """The chunk table (2.4): stored size, raw size and checksum of each chunk."""
    if not table:
        return []
    raw_width, stored_width = table[0] % 16, table[0] // 16
    known = raw_width in (1, 2, 4, 8) and stored_width in (0, 1, 2, 4, 8)
    require(known, "index-type", f"sizes of {raw_width} and of {stored_width} bytes")
    count, rest = divmod(len(table) - 1, raw_width + stored_width + 8)
    require(rest == 0, "index-type", f"a chunk table of {len(table)} bytes")
    require(count > 0, "index-not-canonical", "a chunk table that should be empty")
    raw = integers(table[1 : 1 + count * raw_width], raw_width)
    stored = integers(table[1 + count * raw_width : -8 * count], stored_width) if stored_width else raw
    checksums = integers(table[-8 * count :], 8)
    require(raw_width == least_width(raw), "index-not-canonical", f"raw sizes of {raw_width} bytes")
    if stored_width:
        shortest = stored_width == least_width(stored) and stored != raw
        require(shortest, "index-not-canonical", f"stored sizes of {stored_width} bytes")
    return list(zip(stored, raw, checksums, strict=True))


def read_records(table: Any, index_offset: int) -> list[Record]:
    """The chunk table (2.4), whose chunks fill the file up to the index."""
    fields = read_sizes(typed(table, bytes, "the chunk table"))
    end, offsets = 16, []
    for number, (stored, raw, _) in enumerate(fields):
        size = max(stored, raw)
        require(size <= faults.MAX_CHUNK_BYTES, "chunk-limit", f"chunk {number} of {size} bytes")
        offsets.append(place(end, stored, raw))
        end = offsets[-1] + stored
    require(end <= index_offset, "chunk-out-of-bounds", f"the chunks end at {end}, the index starts at {index_offset}")
    require(end >= index_offset, "chunk-gap", f"the chunks end at {end}, the index starts at {index_offset}")
    records, behind = [], [*offsets, end][1:]
    for offset, (stored, raw, checksum), following in zip(offsets, fields, behind, strict=True):
        records.append(Record(offset, stored, raw, checksum, following - offset - stored))
    return records


# -------------------------------------------------------------------------------------------------------- 2.3 Trailer


def find_index(data: bytes) -> int:
    """The offset of the index."""
    trailer = len(data) - 20
    size, checksum, end_magic = struct.unpack_from("<IQ8s", data, trailer)
    offset = trailer - size
    require(end_magic == END_MAGIC, "trailer-missing", "no end magic at the end")
    require(size <= faults.MAX_INDEX_BYTES, "index-size", f"index of {size} bytes")
    require(offset >= 16, "index-out-of-bounds", f"index of {size} bytes at {offset}")
    digest = xxhash.xxh64_intdigest(data[:16] + data[offset:trailer])
    require(digest == checksum, "index-checksum", "preamble or index changed")
    return offset


# --------------------------------------------------------------------------------------------- 2.4 Index: its msgpack


def decode_index(stored: bytes) -> bytes:
    """The index, which may be coded."""
    if stored[:4] != ZSTD_MAGIC:
        return stored
    require(len(stored) >= 32, "index-frame", f"a coded index of {len(stored)} bytes")
    try:
        size = zstandard.frame_content_size(stored)
        require(size <= faults.MAX_CODED_INDEX_BYTES, "index-size", f"index of {size} bytes")
        require(0 <= size <= len(stored) * faults.MAX_INDEX_RATIO, "index-frame", f"{size} of {len(stored)} bytes")
        return decode_frame(stored, size)
    except zstandard.ZstdError as error:
        raise Fault("index-frame", str(error)) from None
    except Fault as fault:
        raise Fault("index-frame", str(fault)) if fault.code.startswith("zstd") else fault from None


def decode_canonical(index: bytes) -> Any:
    """One msgpack value in canonical form, which is one that encodes to the same bytes again."""

    def sorted_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        require({str}.issuperset(map(type, keys)), "index-malformed", "map key other than str")
        # sorted by code points is sorted by UTF-8 bytes
        require(keys == sorted(set(keys)), "index-not-canonical", "map keys not ascending")
        return dict(pairs)

    def extension(code: int, data: bytes) -> None:
        raise Fault("index-malformed", "extension type")

    hooks = {"object_pairs_hook": sorted_map, "ext_hook": extension}
    try:
        root = msgpack.unpackb(index, strict_map_key=False, max_ext_len=0, **hooks)
    except Fault:
        raise
    except Exception as error:
        raise Fault("index-malformed", f"no msgpack: {error}") from None
    check_value(root, 1)
    require(msgpack.packb(root) == index, "index-not-canonical", "not the smallest encoding")
    return root


def check_value(value: Any, level: int) -> None:
    if type(value) not in (dict, list, str, bytes, int) or (type(value) is int and value < 0):
        raise Fault("index-type", f"msgpack type of {value!r:.80}")
    if type(value) in (dict, list):
        require(level <= faults.MAX_INDEX_DEPTH, "index-malformed", f"{level} levels of maps and arrays")
        fits = isinstance(value, dict) or len(value) <= faults.MAX_INDEX_ARRAY
        require(fits, "index-malformed", f"array of {len(value)} elements")
        for inner in value.values() if isinstance(value, dict) else value:
            if type(inner) not in (str, bytes):  # of which every value will do
                check_value(inner, level + 1)


def read_fields(value: Any, always: int, keys: set[str], minor: int, what: str) -> dict[str, Any]:
    """The map behind those elements of an array that are always there, which is left out if it is empty."""
    typed(value, list, what)
    require(len(value) in (always, always + 1), "index-key", f"{what} has {len(value)} elements")
    if len(value) == always:
        return {}
    fields = typed(value[always], dict, what)
    require(fields != {}, "index-not-canonical", f"{what} has an empty map")
    check_keys(fields, keys, minor, what)
    return fields


def check_keys(fields: dict[str, Any], keys: set[str], minor: int, what: str) -> None:
    unknown = fields.keys() - keys
    require(not unknown or minor > MINOR, "index-key", f"{what} has the unknown keys {sorted(unknown)}")


def typed(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind or (kind is int and value >= 2**63):
        raise Fault("index-type", f"{what}: {value!r:.80} is no {kind.__name__}, or too large")
    return value


# ------------------------------------------------------------------------------------------- 2.4 Index: what it holds


def check_metadata(fields: dict[str, Any]) -> None:
    metadata = typed(fields.get("metadata", {}), dict, "metadata")
    require(fields.get("metadata") != {}, "index-not-canonical", "metadata is empty")
    texts = all(isinstance(text, str) for text in metadata.values())
    require(texts, "metadata-invalid", "metadata other than str to str")
    size = sum(len(text.encode()) for item in metadata.items() for text in item)
    require(size <= faults.MAX_METADATA_BYTES, "metadata-size", f"{size} bytes of metadata")


def read_kinds(kinds: Any, minor: int) -> list[Kind]:
    return [read_kind(kind, minor, f"kind {number}") for number, kind in enumerate(typed(kinds, list, "kinds"))]


def read_kind(kind: Any, minor: int, what: str) -> Kind:
    fields = read_fields(kind, 1, {"arrays", "layout"}, minor, what)
    dtype, layout = typed(kind[0], str, what), typed(fields.get("layout", "dense"), str, what)
    require(layout == "dense" or "arrays" in fields, "index-key", f"{what} lacks `arrays`")
    arrays = typed(fields.get("arrays", {"values": "raw"}), dict, what)
    for codec in arrays.values():
        require(typed(codec, str, what) in CODECS, "codec-unknown", f"{what}: {codec!r:.80}")
    require(dtype in DTYPES, "dtype-unknown", f"{what}: {dtype!r:.80}")
    require(layout in LAYOUTS, "layout-unknown", f"{what}: {layout!r:.80}")
    has_signs = layout != "dense" and DTYPES[dtype].negative_zero is not None
    optional = {"negative_zeros"} if has_signs else set()
    require(arrays.keys() - optional in LAYOUTS[layout], "array-set", f"{what}: {sorted(arrays)}")
    usual = fields.get("layout") == "dense" or fields.get("arrays") == {"values": "raw"}
    require(not usual, "index-not-canonical", f"{what} says what should be left out")
    return Kind(DTYPES[dtype], layout, arrays)


def read_tensors(tensors: Any, kinds: list[Kind], minor: int) -> dict[str, Entry]:
    """The entry of every name, aliases included."""
    typed(tensors, dict, "tensors")
    require(len(tensors) <= faults.MAX_TENSORS, "tensor-count", f"{len(tensors)} tensors")
    entries, aliases, copies, used, following = {}, {}, {}, set(), 0
    for name, value in tensors.items():
        require(name != "" and "\0" not in name, "name-invalid", f"name {name!r:.80}")
        require(len(name.encode()) <= faults.MAX_NAME_BYTES, "name-length", f"name of {len(name.encode())} bytes")
        if isinstance(value, dict):
            key = read_alias_key(value, minor, repr(name))
            (aliases if key == "alias_of" else copies)[name] = typed(value[key], str, repr(name))
        else:
            entries[name] = read_entry(name, value, kinds, following, minor)
            check_entry(entries[name])
            used.add(value[0])
            following = entries[name].end
    for name, target in [*copies.items(), *aliases.items()]:
        there = target in entries or (name in aliases and target in copies)
        require(there, "alias-invalid", f"{name!r} is an alias of {target!r:.80}, which is no tensor")
    require(len(used) == len(kinds), "kind-invalid", f"tensors are of the kinds {sorted(used)} of {len(kinds)}")
    targets = {name: aliases.get(name, name) for name in tensors}
    return {name: entries[copies.get(target, target)] for name, target in targets.items()}


def read_alias_key(value: dict[str, Any], minor: int, what: str) -> str:
    """What is said of a further name."""
    keys = value.keys() & {"alias_of", "copy_of"}
    require(len(keys) == 1, "index-key", f"{what} has none of both keys, or both")
    check_keys(value, keys, minor, what)
    return keys.pop()


def read_entry(name: str, value: Any, kinds: list[Kind], following: int, minor: int) -> Entry:
    """Elements, keys and types. `following`: the number of the chunk behind those of the entry before."""
    what = repr(name)
    sometimes = {"first_chunk", "models", "negative_zeros_dropped", "nnz", "row_dims", "tile_rows"}
    fields = read_fields(value, 2, sometimes, minor, what)
    number, shape, models = typed(value[0], int, what), typed(value[1], list, what), fields.get("models", {})
    typed(models, dict, what)
    for key in sometimes - {"models"}:
        typed(fields.get(key, 0), int, what)
    for dimension in shape:
        typed(dimension, int, what)
    require(number < len(kinds), "kind-invalid", f"{what}: {number} of {len(kinds)}")
    kind = kinds[number]
    for model in models.values():
        size = len(typed(model, bytes, what))
        require(size <= faults.MAX_MODEL_BYTES, "model-size", f"{what}: model of {size} bytes")
    require(("nnz" in fields) == (kind.layout != "dense"), "index-key", f"{what}: `nnz` in `dense`, or none elsewhere")
    for key in "models", "negative_zeros_dropped":
        require(fields.get(key) not in (0, {}), "index-not-canonical", f"{what}: `{key}` should be left out")
    require(fields.get("first_chunk") != following, "index-not-canonical", f"{what}: `first_chunk` should be left out")
    dropped = fields.get("negative_zeros_dropped", 0)
    possible = dropped == 0 or (kind.dtype.negative_zero is not None and dropped <= math.prod(shape))
    require(possible, "negative-zeros-dropped", f"{what}: {dropped} of {kind.dtype.name} {shape}")
    require(len(shape) <= faults.MAX_NDIM, "shape-ndim", f"{what}: {len(shape)} dimensions")
    size = math.prod(max(dimension, 1) for dimension in shape) * kind.dtype.bits
    require(size <= faults.MAX_TENSOR_BITS, "shape-size", f"{what}: {size} bits")
    row_dims, elements = fields.get("row_dims", 1), math.prod(shape)
    fits = "row_dims" not in fields or (2 <= row_dims < len(shape) and elements > 0)
    require(fits, "row-dims", f"{what}: {row_dims} of {shape}")
    matrix_rows = shape[row_dims - 1] if shape else 1
    tile_rows = fields.get("tile_rows", matrix_rows if elements else 0)
    fits = "tile_rows" not in fields or (elements > 0 and 1 <= tile_rows < matrix_rows)
    fits = fits and (row_dims == 1 or matrix_rows % tile_rows == 0)
    require(fits, "tile-rows", f"{what}: tiles of {tile_rows} of {matrix_rows} rows")
    require(elements > 0 or "first_chunk" not in fields, "tile-rows", f"{what} has no tiles")
    places = row_dims, tile_rows, fields.get("first_chunk", following), fields.get("nnz")
    return Entry(name, kind.dtype, tuple(shape), kind.layout, kind.arrays, models, *places)


def check_entry(entry: Entry) -> None:
    """What the values must be, beside the chunk table."""
    dtype, elements, tile_rows, what = entry.dtype, math.prod(entry.shape), entry.tile_rows, repr(entry.name)
    whole_bytes = dtype.bits >= 8 or entry.tiles < 2 or tile_rows % 8 == 0
    require(whole_bytes, "tile-rows", f"{what}: tiles of {tile_rows} rows of a packed type")
    if entry.layout != "dense":
        may_be_sparse = dtype.sparse and len(entry.shape) >= 2 and elements > 0
        require(may_be_sparse, "layout-invalid", f"{what} must be dense")
        fits = entry.cols <= faults.MAX_SPARSE_COLS and tile_rows <= faults.MAX_SPARSE_TILE_ROWS
        fits = fits and tile_rows * entry.cols <= faults.MAX_SPARSE_TILE_POSITIONS
        require(fits, "tile-size", f"{what}: tiles of {tile_rows} x {entry.cols}")
        require(entry.nnz is not None and entry.nnz <= elements, "nnz", f"{what}: {entry.nnz} of {elements} elements")
    modelled = {array for array, codec in entry.arrays.items() if codec == "rans" and not is_derived(entry, array)}
    found = sorted(entry.models)
    require(set(found) == modelled, "model-set", f"{what}: models of {found}, not of {sorted(modelled)}")


def is_derived(entry: Entry, array: str) -> bool:
    """Whether codec `rans` derives the array from another (5.3.7)."""
    return entry.layout == "bitmask" and array == "slice_offsets"


def check_chunks(container: Container) -> None:
    """Every record belongs to exactly one tensor, and has sizes that its codec (5) and its array (4) can have."""
    entries = {entry.name: entry for entry in container.names.values() if entry.tiles}
    number = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.first_chunk):
        require(entry.first_chunk == number, "chunk-assignment", f"{entry.name!r} starts at chunk {entry.first_chunk}")
        number += entry.tiles * len(entry.arrays)
    require(number == len(container.records), "chunk-assignment", f"{number} of {len(container.records)} chunks owned")
    for entry in entries.values():
        for tile in range(entry.tiles):
            chunks = dict(container.chunks(entry, tile))
            for array, (_, stored, raw, _, _) in chunks.items():
                codec = entry.arrays[array]
                derived = codec == "rans" and is_derived(entry, array)
                possible = stored in (0, raw) if derived else stored <= raw <= stored * CODECS[codec]
                require(possible, "chunk-size", f"{entry.name!r}: `{array}`, {stored} bytes for {raw}")
            sizes = {array: record.raw for array, record in chunks.items()}
            check_sizes(entry.layout, entry.dtype, entry.rows_of(tile), entry.cols, sizes)
