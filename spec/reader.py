"""A complete, strictly validating reader of sparsefmt 1.0 files, for study: laid out section by section as SPEC.md.

It makes every check of section 7 and computes the products of section 6 to the bit. It is made to be read, not to be
fast.

    python reader.py FILE           lists the tensors
    python reader.py FILE TENSOR    writes the dense bytes of one tensor to standard output
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import xxhash
import zstandard

sys.path.append(str(Path(__file__).parent))  # if this file was loaded by its path
import rans

# ------------------------------------------------------------------------------------------------------------ 1. Words


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def aligned(n: int) -> int:
    return ceil_div(n, 64) * 64


@dataclass(frozen=True)
class Tensor:
    """A named tensor as it is read."""

    dtype: str
    shape: tuple[int, ...]
    layout: str
    data: bytes  # all elements in row-major order; sub-byte types packed


# -------------------------------------------------------------------------------------------------------- 2. Container

MAGIC, END_MAGIC = bytes.fromhex("89 53 50 46 0D 0A 1A 0A"), bytes.fromhex("0A 1A 0A 0D 46 50 53 89")
MAJOR, MINOR, FEATURES = 1, 0, 0


class Record(NamedTuple):
    """One record of the chunk table (2.4)."""

    offset: int
    stored: int
    raw: int
    checksum: int


@dataclass(frozen=True)
class Entry:
    """What the index says about a tensor (2.4), and what follows from it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    arrays: dict[str, str]  # array name to codec name, in order of the array names
    tile_rows: int
    first_chunk: int
    nnz: int | None
    models: dict[str, bytes]  # of the arrays whose codec is `rans`

    @property
    def element(self) -> Element:
        return ELEMENTS[self.dtype]

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def cols(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def tiles(self) -> int:
        return ceil_div(self.rows, self.tile_rows) if self.rows * self.cols else 0

    def rows_of(self, tile: int) -> int:
        return min(self.tile_rows, self.rows - tile * self.tile_rows)


@dataclass(frozen=True)
class Container:
    data: bytes
    metadata: dict[str, str]
    names: dict[str, Entry]  # a further name of a tensor has the entry of that tensor
    records: list[Record]

    def tile(self, entry: Entry, tile: int) -> Iterator[tuple[str, Record]]:
        """The chunks of a tile: one for each array, in order of the array names."""
        first = entry.first_chunk + tile * len(entry.arrays)
        return zip(entry.arrays, self.records[first : first + len(entry.arrays)], strict=True)


def open_container(data: bytes) -> Container:
    """The checks that section 7 marks *open*."""
    # 2.1 Preamble
    require(data[:8] == MAGIC, "not-sparsefmt", "no magic")
    require(len(data) >= 96, "file-too-short", f"{len(data)} bytes")
    major, minor, features = struct.unpack_from("<HHI", data, 8)
    require(major == MAJOR, "version-unsupported", f"version {major}.{minor}")
    require(features & ~FEATURES == 0, "feature-unsupported", f"feature bits {features:#x}")
    # 2.3 Trailer
    trailer = len(data) - 32
    index_offset, index_size, checksum, end_magic = struct.unpack_from("<QQQ8s", data, trailer)
    require(end_magic == END_MAGIC, "trailer-missing", "no end magic at the end")
    require(index_size <= MAX_INDEX_BYTES, "index-size", f"index of {index_size} bytes")
    in_bounds = index_offset % 64 == 0 and index_offset >= 64 and index_offset + index_size == trailer
    require(in_bounds, "index-out-of-bounds", f"index of {index_size} bytes at {index_offset}")
    index = data[index_offset:trailer]
    require(xxhash.xxh64_intdigest(data[:16] + index) == checksum, "index-checksum", "preamble or index changed")
    require(not any(data[16:64]), "padding-not-zero", "bytes 16 to 63")
    # 2.4 Index
    root = decode_canonical(index)
    check_keys(root, {"chunks", "metadata", "tensors"}, set(), minor, "the index")
    metadata, table, tensors = root["metadata"], root["chunks"], root["tensors"]
    require(isinstance(metadata, dict), "index-type", "`metadata` is no map")
    texts = all(isinstance(text, str) for text in metadata.values())
    require(texts, "metadata-invalid", "metadata other than str to str")
    metadata_bytes = sum(len(text.encode()) for item in metadata.items() for text in item)
    require(metadata_bytes <= MAX_METADATA_BYTES, "metadata-size", f"{metadata_bytes} bytes of metadata")
    # 2.2 Chunks
    whole = isinstance(table, bytes) and len(table) % 32 == 0
    require(whole, "index-type", "the chunk table is no bin of whole records")
    records = [Record(*fields) for fields in struct.iter_unpack("<QQQQ", table)]
    end = 64
    for number, (offset, stored, raw, _) in enumerate(records):
        require(max(stored, raw) <= MAX_CHUNK_BYTES, "chunk-limit", f"chunk {number} of {max(stored, raw)} bytes")
        require(offset <= index_offset, "chunk-out-of-bounds", f"chunk {number} at {offset}")
        check_place(offset, end, f"chunk {number}")
        end = offset + stored
    check_place(index_offset, end, "the index")
    # 2.4 Index: tensors and aliases
    require(isinstance(tensors, dict), "index-type", "`tensors` is no map")
    require(len(tensors) <= MAX_TENSORS, "tensor-count", f"{len(tensors)} tensors")
    entries, aliases = {}, {}
    for name, fields in tensors.items():
        require(name != "" and "\0" not in name, "name-invalid", f"name {name!r:.80}")
        require(len(name.encode()) <= MAX_NAME_BYTES, "name-length", f"name of {len(name.encode())} bytes")
        require(isinstance(fields, dict), "index-type", f"the entry of {name!r} is no map")
        if "alias_of" in fields:
            check_keys(fields, {"alias_of"}, set(), minor, repr(name))
            aliases[name] = typed(fields["alias_of"], str, name)
        else:
            entries[name] = parse_entry(name, fields, minor)
    for name, target in aliases.items():
        require(target in entries, "alias-invalid", f"{name!r} is an alias of {target!r:.80}, which is no tensor")
    container = Container(data, metadata, {name: entries[aliases.get(name, name)] for name in tensors}, records)
    check_assignment(container, list(entries.values()))
    return container


def check_place(offset: int, end: int, what: str) -> None:
    """2.2: each chunk, and the index, starts at aligned(end) of the chunk before."""
    require(offset >= aligned(end), "chunk-overlap", f"{what} at {offset}, before {aligned(end)}")
    require(offset <= aligned(end), "chunk-gap", f"{what} at {offset}, later than {aligned(end)}")


def decode_canonical(index: bytes) -> Any:
    """2.4: one msgpack value in canonical form, which is one that encodes to the same bytes again."""

    def sorted_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        require(all(type(key) is str for key in keys), "index-malformed", "map key other than str")
        # sorted by code points is sorted by UTF-8 bytes
        require(keys == sorted(set(keys)), "index-not-canonical", "map keys not ascending")
        return dict(pairs)

    def extension(code: int, data: bytes) -> None:
        raise Fault("index-malformed", "extension type")

    options = {"object_pairs_hook": sorted_map, "ext_hook": extension}
    try:
        root = msgpack.unpackb(index, strict_map_key=False, max_ext_len=0, **options)
        again = msgpack.packb(root)
    except Fault:
        raise
    except Exception as error:
        raise Fault("index-malformed", f"no msgpack: {error}") from None
    unchecked = [(root, 1)]
    while unchecked:
        value, level = unchecked.pop()
        known = type(value) in (dict, list, str, bytes) or (type(value) is int and value >= 0)
        require(known, "index-type", f"msgpack type of {value!r:.80}")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        fits = not isinstance(value, list) or len(value) <= MAX_INDEX_ARRAY
        require(fits, "index-malformed", f"array of {len(inner)} elements")
        fits = not isinstance(value, dict | list) or level <= MAX_INDEX_DEPTH
        require(fits, "index-malformed", f"more than {MAX_INDEX_DEPTH} levels of maps and arrays")
        unchecked.extend((value, level + 1) for value in inner)
    require(again == index, "index-not-canonical", "not the smallest encoding")
    return root


def check_keys(fields: Any, always: set[str], sometimes: set[str], minor: int, what: str) -> None:
    require(isinstance(fields, dict), "index-type", f"{what} is no map")
    missing, unknown = always - fields.keys(), fields.keys() - always - sometimes
    require(not missing, "index-key", f"{what} lacks {sorted(missing)}")
    require(not unknown or minor > MINOR, "index-key", f"{what} has the unknown keys {sorted(unknown)}")


def typed(value: Any, kind: type, name: str) -> Any:
    fits = not isinstance(value, int) or value < 2**63
    require(fits and type(value) is kind, "index-type", f"{name!r}: {value!r:.80} is no {kind.__name__}, or too large")
    return value


def parse_entry(name: str, fields: dict[str, Any], minor: int) -> Entry:
    """2.4: the entry of a tensor; what can be checked without the chunk table."""
    always = {"arrays", "dtype", "first_chunk", "layout", "shape", "tile_rows"}
    check_keys(fields, always, {"models", "negative_zeros_dropped", "nnz"}, minor, repr(name))
    dtype, layout = typed(fields["dtype"], str, name), typed(fields["layout"], str, name)
    shape = tuple(typed(dimension, int, name) for dimension in typed(fields["shape"], list, name))
    arrays = {array: typed(codec, str, name) for array, codec in typed(fields["arrays"], dict, name).items()}
    tile_rows, first_chunk = typed(fields["tile_rows"], int, name), typed(fields["first_chunk"], int, name)
    nnz = typed(fields["nnz"], int, name) if "nnz" in fields else None
    models = typed(fields.get("models", {}), dict, name)

    require(dtype in ELEMENTS, "dtype-unknown", f"{name!r}: {dtype!r:.80}")
    require(layout in LAYOUTS, "layout-unknown", f"{name!r}: {layout!r:.80}")
    require(all(codec in CODECS for codec in arrays.values()), "codec-unknown", f"{name!r}: {arrays!r:.80}")
    element, sparse, elements = ELEMENTS[dtype], layout != "dense", math.prod(shape)
    require(len(shape) <= MAX_NDIM, "shape-ndim", f"{name!r}: {len(shape)} dimensions")
    size = math.prod(max(dimension, 1) for dimension in shape) * element.bits
    require(size <= MAX_TENSOR_BITS, "shape-size", f"{name!r}: {size} bits")
    entry = Entry(name, dtype, shape, layout, arrays, tile_rows, first_chunk, nnz, models)
    may_be_sparse = element.sparse and len(shape) >= 2 and elements > 0
    require(may_be_sparse or not sparse, "layout-invalid", f"{name!r} must be dense")
    if elements == 0:
        require(tile_rows == 0 and first_chunk == 0, "tile-rows", f"{name!r} has no tiles")
    else:
        whole_bytes = element.bits >= 8 or tile_rows == entry.rows or tile_rows % 8 == 0
        fits = 1 <= tile_rows <= entry.rows and whole_bytes
        require(fits, "tile-rows", f"{name!r}: tiles of {tile_rows} of {entry.rows} rows")
    if sparse:
        fits = entry.cols <= MAX_SPARSE_COLS and tile_rows <= MAX_SPARSE_TILE_ROWS
        fits = fits and tile_rows * entry.cols <= MAX_SPARSE_TILE_POSITIONS
        require(fits, "tile-size", f"{name!r}: tiles of {tile_rows} x {entry.cols}")
    optional = {"negative_zeros"} if sparse and element.negative_zero else set()
    require(arrays.keys() - optional == LAYOUTS[layout], "array-set", f"{name!r}: {sorted(arrays)}")
    require(models != {} or "models" not in fields, "index-not-canonical", f"{name!r}: `models` that is empty")
    modelled = {array for array, codec in arrays.items() if codec == "rans" and array != "row_offsets"}
    require(models.keys() == modelled, "model-set", f"{name!r}: models of {sorted(models)}, not {sorted(modelled)}")
    for array, model in models.items():
        size = len(typed(model, bytes, name))
        require(size <= MAX_MODEL_BYTES, "model-size", f"{name!r}: model of `{array}` of {size} bytes")
    require((nnz is not None) == sparse, "index-key", f"{name!r}: `nnz` of a dense tensor, or none of a sparse one")
    require(nnz is None or nnz <= elements, "nnz", f"{name!r}: {nnz} of {elements} elements")
    if "negative_zeros_dropped" in fields:
        dropped = typed(fields["negative_zeros_dropped"], int, name)
        require(dropped > 0, "index-not-canonical", f"{name!r}: `negative_zeros_dropped` of 0")
        possible = element.negative_zero is not None and dropped <= elements
        require(possible, "negative-zeros-dropped", f"{name!r}: {dropped} of {elements} elements of {dtype}")
    return entry


def check_assignment(container: Container, entries: list[Entry]) -> None:
    """2.4: every record belongs to exactly one tensor. 4, 5: it has sizes that its array and its codec can have."""
    owners, number = sorted((e for e in entries if e.tiles), key=lambda e: e.first_chunk), 0
    for entry in owners:
        require(entry.first_chunk == number, "chunk-assignment", f"{entry.name!r} starts at chunk {entry.first_chunk}")
        number += entry.tiles * len(entry.arrays)
    require(number == len(container.records), "chunk-assignment", f"{number} of {len(container.records)} chunks owned")
    for entry in owners:
        for tile in range(entry.tiles):
            chunks = dict(container.tile(entry, tile))
            for array, (offset, stored, raw, _) in chunks.items():
                codec = entry.arrays[array]
                possible = stored <= raw <= stored * CODECS[codec]
                if array == "row_offsets" and codec == "rans":
                    possible = stored in (0, raw)  # derived, or as they are
                require(possible, "chunk-size", f"chunk at {offset}: stored {stored}, raw {raw}")
            check_array_sizes(entry, entry.rows_of(tile), {array: record.raw for array, record in chunks.items()})


# ---------------------------------------------------------------------------------------------------- 3. Element types


class Element(NamedTuple):
    bits: int
    sparse: bool  # whether sparse layouts are possible
    negative_zero: int | None = None


ELEMENTS = {
    "BOOL": Element(8, False),
    "F4": Element(4, False),
    "F6_E2M3": Element(6, False),
    "F6_E3M2": Element(6, False),
    "U8": Element(8, True),
    "I8": Element(8, True),
    "F8_E5M2": Element(8, True, 0x80),
    "F8_E4M3": Element(8, True, 0x80),
    "F8_E8M0": Element(8, False),
    "F8_E4M3FNUZ": Element(8, True),
    "F8_E5M2FNUZ": Element(8, True),
    "I16": Element(16, True),
    "U16": Element(16, True),
    "F16": Element(16, True, 1 << 15),
    "BF16": Element(16, True, 1 << 15),
    "I32": Element(32, True),
    "U32": Element(32, True),
    "F32": Element(32, True, 1 << 31),
    "C64": Element(64, False),
    "F64": Element(64, True, 1 << 63),
    "I64": Element(64, True),
    "U64": Element(64, True),
}

# ---------------------------------------------------------------------------------------------------------- 4. Layouts

LAYOUTS = {
    "dense": {"values"},
    "bitmask": {"mask", "row_offsets", "values"},
    "permuted": {"columns", "row_counts", "row_permutation", "slice_offsets", "values"},
}
Arrays = dict[str, np.ndarray]  # the arrays of one tile, by name


class Tile(NamedTuple):
    arrays: Arrays
    shape: tuple[int, int]  # rows and columns
    stored: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # row, column and bits of each value of a sparse layout


def array_width(entry: Entry, array: str) -> int:
    """Bytes of one element of an array; 1 for packed types."""
    widths = {
        "values": max(entry.element.bits // 8, 1),
        "columns": 2 if entry.cols <= 65536 else 4,
        "row_offsets": 4,
        "row_counts": 4,
        "row_permutation": 2,
        "slice_offsets": 4,
        "mask": 1,
        "negative_zeros": 1,
    }
    return widths[array]


def check_array_sizes(entry: Entry, r: int, sizes: dict[str, int]) -> None:
    """The sizes of the arrays of a tile of r rows, as far as they follow from the index."""
    c, w, slices = entry.cols, array_width(entry, "values"), ceil_div(r, 8)
    n, slots = sizes["values"] // w, sizes["values"] // (8 * w)
    if entry.layout == "dense":
        expected = {"values": ceil_div(r * c * entry.element.bits, 8)}
    elif entry.layout == "bitmask":
        expected = {"mask": r * 8 * ceil_div(c, 64), "row_offsets": 4 * (r + 1), "values": min(n, r * c) * w}
    else:
        expected = {
            "columns": 8 * slots * array_width(entry, "columns"),
            "row_counts": 4 * r,
            "row_permutation": 2 * r,
            "slice_offsets": 4 * (slices + 1),
            "values": 8 * min(slots, slices * c) * w,
        }
    for array, size in expected.items():
        require(sizes[array] == size, "array-size", f"{entry.name!r}: `{array}` of {sizes[array]} bytes, not {size}")


def read_tiles(container: Container, entry: Entry) -> Iterator[Tile]:
    """The tiles of a tensor, with the checks that section 7 marks *tensor*."""
    nnz, negative_zeros = 0, 0
    models: Models = {}
    for number in range(entry.tiles):
        r, c = entry.rows_of(number), entry.cols
        arrays: Arrays = {}
        for array, record in container.tile(entry, number):
            arrays[array] = read_array(container.data, record, entry, array, r, arrays, models)
        if entry.layout == "dense":
            check_dense(entry, arrays["values"], r * c)
            yield Tile(arrays, (r, c), None)
            continue
        stored = check_bitmask(arrays, r, c) if entry.layout == "bitmask" else check_permuted(arrays, r, c)
        values, n = stored[2], len(stored[2])
        zeros = (values == 0) | (values == (entry.element.negative_zero or 0))
        require(not zeros.any(), "stored-zero", f"{entry.name!r}")
        if "negative_zeros" in arrays:
            negative_zeros += check_negative_zeros(arrays["negative_zeros"], r * c - n)
        nnz += n
        yield Tile(arrays, (r, c), stored)
    require(entry.nnz in (None, nnz), "nnz", f"{entry.name!r}: {entry.nnz}, but {nnz} are stored")
    useful = "negative_zeros" not in entry.arrays or negative_zeros > 0
    require(useful, "negative-zeros-empty", f"{entry.name!r}")


def dense_bytes(entry: Entry, tile: Tile) -> bytes:
    """All elements of a tile in row-major order."""
    if tile.stored is None:
        return tile.arrays["values"].tobytes()
    rows, columns, values = tile.stored
    matrix = np.zeros(tile.shape, values.dtype)
    matrix[rows, columns] = values
    if "negative_zeros" in tile.arrays:
        pruned = matrix == 0
        signs = np.unpackbits(tile.arrays["negative_zeros"], count=int(pruned.sum()), bitorder="little")
        matrix[pruned] = signs.astype(matrix.dtype) * matrix.dtype.type(entry.element.negative_zero)
    return matrix.tobytes()


def check_dense(entry: Entry, values: np.ndarray, elements: int) -> None:
    """4.1"""
    require(entry.dtype != "BOOL" or bool((values <= 1).all()), "bool-invalid", f"{entry.name!r}")
    used = elements * entry.element.bits % 8  # bits of the last byte, if not all
    require(used == 0 or values[-1] >> used == 0, "values-padding", f"{entry.name!r}")


def check_bitmask(arrays: Arrays, r: int, c: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """4.2; row, column and bits of each value"""
    mask = mask_bits(arrays["mask"], r, c)
    expected = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    require(np.array_equal(arrays["row_offsets"], expected), "row-offsets", "row offsets other than the mask gives")
    require(len(arrays["values"]) == expected[-1], "row-offsets", "row offsets other than `values` has")
    rows, columns = np.nonzero(mask)
    return rows, columns, arrays["values"]


def mask_bits(mask: np.ndarray, r: int, c: int) -> np.ndarray:
    """4.2; of each position"""
    bits = np.unpackbits(mask.reshape(r, -1), axis=1, bitorder="little").astype(bool)
    require(not bits[:, c:].any(), "mask-padding", f"mask bit beyond column {c - 1}")
    return bits[:, :c]


def check_permuted(arrays: Arrays, r: int, c: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """4.3; row, column and bits of each value, in the order in which they lie"""
    permutation, counts = arrays["row_permutation"].astype(np.int64), arrays["row_counts"].astype(np.int64)
    require(np.array_equal(np.sort(permutation), np.arange(r)), "row-permutation", "no permutation of the rows")
    fall = -np.diff(counts)
    require(bool((fall >= 0).all()) and counts[0] <= c, "row-counts", "counts ascending, or over the columns")
    stable = (fall > 0) | (np.diff(permutation) > 0)
    require(bool(stable.all()), "row-permutation", "rows of equal count out of order")
    slots = counts[::8]  # of each slice
    first = np.concatenate([[0], np.cumsum(slots)])
    require(np.array_equal(arrays["slice_offsets"], first), "slice-offsets", "slice offsets other than the counts give")
    require(len(arrays["values"]) == 8 * first[-1], "slice-offsets", "slice offsets other than `values` has")
    columns, values = arrays["columns"].reshape(-1, 8).astype(np.int64), arrays["values"].reshape(-1, 8)
    k = np.arange(first[-1]) - np.repeat(first[:-1], slots)  # of each slot in its slice
    position = np.repeat(np.arange(len(slots)) * 8, slots)[:, None] + np.arange(8)  # of each slot and lane
    stored = k[:, None] < np.pad(counts, (0, -r % 8))[position]
    require(bool((columns < c).all()), "column-range", f"column not below {c}")
    require(not (columns[~stored].any() or values[~stored].any()), "slot-padding", "padding lane not zero")
    follows = (k[1:] > 0)[:, None] & stored[1:]
    require(bool((np.diff(columns, axis=0)[follows] > 0).all()), "column-order", "columns of a row not ascending")
    return permutation[position[stored]], columns[stored], values[stored]


def check_negative_zeros(signs: np.ndarray, pruned: int) -> int:
    """4.4; how many are set"""
    require(len(signs) == ceil_div(pruned, 8), "array-size", f"`negative_zeros` of {len(signs)} bytes")
    bits = np.unpackbits(signs, bitorder="little")
    require(not bits[pruned:].any(), "negative-zeros-padding", f"bit beyond pruned position {pruned - 1}")
    return int(bits.sum())


# ----------------------------------------------------------------------------------------------------------- 5. Codecs

CODECS = {"raw": 1, "zstd": 32768, "rans": 262144}  # raw bytes per stored byte, at most
ZSTD_MAGIC = bytes.fromhex("28 B5 2F FD")
Models = dict[str, rans.ElementModel | rans.PositionModel]  # those of a tensor that a chunk has needed so far


def read_array(
    data: bytes, record: Record, entry: Entry, array: str, r: int, arrays: Arrays, models: Models
) -> np.ndarray:
    """One array of a tile of r rows, given the arrays before it, and the models that are decoded already."""
    end, width = record.offset + record.stored, array_width(entry, array)
    chunk = data[record.offset : end]
    require(xxhash.xxh64_intdigest(chunk) == record.checksum, "chunk-checksum", f"chunk at {record.offset} changed")
    require(not any(data[end : aligned(end)]), "padding-not-zero", f"behind the chunk at {record.offset}")
    possible = array != "negative_zeros" or record.raw <= ceil_div(r * entry.cols, 8)
    require(possible and record.raw % width == 0, "array-size", f"chunk at {record.offset}")
    if record.stored < record.raw:  # never if the codec is `raw`
        if entry.arrays[array] == "zstd":
            planes = np.frombuffer(decode_zstd(chunk, record.raw), np.uint8)
            chunk = planes.reshape(width, -1).T.tobytes()
        elif array == "row_offsets":
            chunk = rans.derive_row_offsets(arrays["mask"], r)
        else:
            chunk = decode_rans(chunk, record.raw // width, entry, array, r, arrays, models)
    return np.frombuffer(chunk, f"<u{width}")


def decode_zstd(chunk: bytes, raw: int) -> bytes:
    """5.2: one frame that states its content size, uses no dictionary, and fills the chunk exactly."""
    try:
        require(chunk[:4] == ZSTD_MAGIC, "zstd-corrupt", "no zstd frame")
        frame = zstandard.get_frame_parameters(chunk)
        require(frame.dict_id == 0, "zstd-corrupt", "frame with a dictionary")
        require(frame.content_size == raw, "zstd-size", f"content size {frame.content_size}, raw size {raw}")
        require(frame.window_size <= max(raw, 1024), "zstd-corrupt", f"window of {frame.window_size} bytes")
        return zstandard.ZstdDecompressor().decompress(chunk, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Fault("zstd-corrupt", str(error)) from None


def decode_rans(chunk: bytes, m: int, entry: Entry, array: str, r: int, arrays: Arrays, models: Models) -> bytes:
    """5.3: an array of m elements, of a tile of r rows; faults of the model, then of the chunk."""
    code = "rans-model"
    try:
        if array not in models:
            model, element_bits = entry.models[array], 8 * array_width(entry, array)
            in_columns = array == "values" and entry.layout != "permuted" and entry.element.bits >= 8
            if array == "mask":
                models[array] = rans.PositionModel(model, entry.cols)
            else:
                models[array] = rans.ElementModel(model, element_bits, entry.cols if in_columns else None)
        decoder, code = models[array], "rans-stream"
        if isinstance(decoder, rans.PositionModel):
            return decoder.decode(chunk, r)
        return decoder.decode(chunk, m, r, positions(entry, r, m, arrays) if decoder.has_classes else None)
    except rans.Invalid as error:
        raise Fault(code, f"{entry.name!r}, `{array}`: {error}") from None


def positions(entry: Entry, r: int, m: int, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """5.3.5: row and column of each of m `values`."""
    if entry.layout == "dense":
        return np.divmod(np.arange(m), entry.cols)
    rows, columns = np.nonzero(mask_bits(arrays["mask"], r, entry.cols))
    require(len(rows) == m, "row-offsets", f"{m} values of {len(rows)} positions")
    return rows, columns


# --------------------------------------------------------------------------------------------------------- 6. Products

NUMPY_TYPES = {
    "BOOL": "<u1",
    "U8": "<u1",
    "I8": "<i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}
SMALL_FLOATS: dict[str, tuple[int, int, int, list[int]]] = {  # exponent bits, mantissa bits, bias, NaNs; none has Inf
    "F4": (2, 1, 1, []),
    "F6_E2M3": (2, 3, 1, []),
    "F6_E3M2": (3, 2, 3, []),
    "F8_E4M3": (4, 3, 7, [0x7F, 0xFF]),
    "F8_E4M3FNUZ": (4, 3, 8, [0x80]),
    "F8_E5M2FNUZ": (5, 2, 16, [0x80]),
}


def multiply(data: bytes, name: str, x: np.ndarray) -> np.ndarray:
    """y = W x for the tensor of that name, in its stored layout, and one vector x; of the type A of the sums."""
    container = open_container(data)
    entry = container.names[name]
    wide = entry.dtype in ("F64", "I32", "U32", "I64", "U64") or x.dtype == np.float64
    a = np.dtype(np.float64 if wide or (x.dtype.kind in "iu" and x.dtype.itemsize >= 4) else np.float32)
    if x.shape != (entry.cols,) or entry.dtype == "C64" or x.dtype.kind == "c":
        raise ValueError(f"no product of {entry.dtype} {list(entry.shape)} and {x.dtype} {list(x.shape)}")
    tiles = [np.zeros(0 if entry.tiles else entry.rows, a)]
    with np.errstate(all="ignore"):
        for tile in read_tiles(container, entry):
            values = converted(entry.dtype, tile.arrays["values"], a)
            multiply_tile = multiply_permuted if entry.layout == "permuted" else multiply_sixteen
            tiles.append(multiply_tile(tile, values, x.astype(a)))
    return np.concatenate(tiles)


def multiply_permuted(tile: Tile, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One chain for each row: slot by slot, at once for all rows that have so many elements."""
    counts, position = tile.arrays["row_counts"], np.arange(tile.shape[0])
    first = tile.arrays["slice_offsets"].astype(np.int64)[position // 8] * 8 + position % 8
    s = np.zeros(len(counts), x.dtype)
    for k in range(int(counts[0])):
        rows = int((counts > k).sum())  # counts never ascend: it is the first rows
        lanes = first[:rows] + 8 * k
        s[:rows] = fma(values[lanes], x[tile.arrays["columns"][lanes]], s[:rows])
    y = np.empty_like(s)
    y[tile.arrays["row_permutation"]] = s + x.dtype.type(0)
    return y


def multiply_sixteen(tile: Tile, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`bitmask` and `dense`: sixteen partial sums for each row, sixteen columns at a time, then a tree."""
    r, c = tile.shape
    if tile.stored is None:
        matrix, stored = values[: r * c].reshape(r, c), np.ones((r, c), bool)
    else:
        matrix, stored = np.zeros((r, c), x.dtype), np.zeros((r, c), bool)
        matrix[tile.stored[:2]], stored[tile.stored[:2]] = values, True
    p = np.zeros((r, 16), x.dtype)
    for j in range(0, c, 16):
        here = np.nonzero(stored[:, j : j + 16])
        p[here] = fma(matrix[:, j : j + 16][here], x[j : j + 16][here[1]], p[here])
    for h in 8, 4, 2, 1:
        p[:, :h] = p[:, :h] + p[:, h : 2 * h]
    return p[:, 0] + x.dtype.type(0)


def converted(dtype: str, values: np.ndarray, a: np.dtype) -> np.ndarray:
    """Element bits to the values that they mean, of type A; of packed types perhaps one too many at the end."""
    if dtype in NUMPY_TYPES:
        return values.view(NUMPY_TYPES[dtype]).astype(a)
    if dtype == "BF16":
        return (values.astype("<u4") << 16).view("<f4").astype(a)
    if dtype == "F8_E5M2":  # upper half of binary16
        return (values.astype("<u2") << 8).view("<f2").astype(a)
    if dtype == "F8_E8M0":
        return np.where(values == 0xFF, np.nan, np.ldexp(1.0, values.astype(int) - 127)).astype(a)
    exponent_bits, mantissa_bits, bias, nans = SMALL_FLOATS[dtype]
    bits = 1 + exponent_bits + mantissa_bits
    unpacked = np.unpackbits(values, bitorder="little")
    codes = unpacked[: unpacked.size // bits * bits].reshape(-1, bits) @ (1 << np.arange(bits))
    exponent, fraction = (codes >> mantissa_bits) % (1 << exponent_bits), codes % (1 << mantissa_bits)
    mantissa = np.where(exponent > 0, 1 << mantissa_bits, 0) + fraction
    magnitude = np.ldexp(mantissa.astype(float), np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.where(np.isin(codes, nans), np.nan, np.where(codes >> (bits - 1), -magnitude, magnitude)).astype(a)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c with one rounding, element by element."""
    if a.dtype == np.float64:
        return fma64(a, b, c).astype(np.float64)
    # binary32: the product is exact in binary64. The sum is rounded to odd there (an inexact one to the neighbour whose
    # last bit is 1); of that, the rounding to binary32 makes what it would make of the exact sum.
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    outwards = np.where((error > 0) == (total > 0), 1, -1)
    to_odd = np.where(np.isfinite(total) & (error != 0) & (bits % 2 == 0), outwards, 0)
    return (bits + to_odd).view(np.float64).astype(np.float32)


def fma64_of(a: float, b: float, c: float) -> float:
    """binary64: exactly, in integers, whose quotient Python rounds once, to nearest, ties to even."""
    if not (math.isfinite(a) and math.isfinite(b)):
        return a * b + c
    if not math.isfinite(c):
        return c
    (an, ad), (bn, bd), (cn, cd) = a.as_integer_ratio(), b.as_integer_ratio(), c.as_integer_ratio()
    numerator, denominator = an * bn * cd + cn * ad * bd, ad * bd * cd
    if numerator == 0:
        return a * b + c  # exact, and has the right sign
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


fma64 = np.frompyfunc(fma64_of, 3, 1)

# --------------------------------------------------------------------------------------- 7. What a reader must reject


class Fault(ValueError):
    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


def require(condition: bool, code: str, message: str) -> None:
    if not condition:
        raise Fault(code, message)


# ----------------------------------------------------------------------------------------------------------- 8. Limits

MAX_INDEX_BYTES = 268435456
MAX_INDEX_ARRAY = 1024
MAX_INDEX_DEPTH = 16
MAX_TENSORS = 1048576
MAX_NAME_BYTES = 1024
MAX_METADATA_BYTES = 16777216
MAX_NDIM = 32
MAX_TENSOR_BITS = 9223372036854775807
MAX_CHUNK_BYTES = 68719476736
MAX_SPARSE_COLS = 2147483648
MAX_SPARSE_TILE_ROWS = 65536
MAX_SPARSE_TILE_POSITIONS = 2147483647
MAX_MODEL_BYTES = 1048576

# ------------------------------------------------------------------------------------------------------ 10. The reader


def read(data: bytes) -> dict[str, Tensor]:
    """All tensors of a file, by name."""
    container = open_container(data)
    tensors = {entry.name: read_tensor(container, entry) for entry in container.names.values()}
    return {name: tensors[entry.name] for name, entry in container.names.items()}


def read_tensor(container: Container, entry: Entry) -> Tensor:
    dense = b"".join(dense_bytes(entry, tile) for tile in read_tiles(container, entry))
    return Tensor(entry.dtype, entry.shape, entry.layout, dense)


def metadata(data: bytes) -> dict[str, str]:
    return open_container(data).metadata


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: reader.py FILE [TENSOR]", file=sys.stderr)
        return 2
    try:
        container = open_container(Path(arguments[0]).read_bytes())
        if len(arguments) == 1:
            for name, entry in container.names.items():
                alias = f", alias of {entry.name!r}" if name != entry.name else ""
                print(f"{name!r}: {entry.dtype} {list(entry.shape)} {entry.layout}{alias}")
        elif arguments[1] in container.names:
            sys.stdout.buffer.write(read_tensor(container, container.names[arguments[1]]).data)
        else:
            raise ValueError(f"no tensor {arguments[1]!r}")
    except (OSError, ValueError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
