"""One tensor of the index: what is said of it, and whether that can be. No I/O.

An entry is one of

    {"first_chunk"?, "kind", "models"?, "negative_zeros_dropped"?, "nnz"?, "row_dims"?, "shape", "tile_rows"?}
    {"alias_of": name}

of which this file decodes the first. What it shares with others, its **kind**, stands apart (kinds.py). Every check is
O(1), and they are arranged so that an index of a hundred thousand tensors is read in a moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsefmt.container.canonical import Keys, expect_ints, expect_keys, expect_sorted, expect_type
from sparsefmt.container.kinds import Kind, is_left_out
from sparsefmt.errors import FormatError, LimitError
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.limits import (
    MAX_MODEL_BYTES,
    MAX_SPARSE_COLS,
    MAX_SPARSE_TILE_POSITIONS,
    MAX_SPARSE_TILE_ROWS,
)
from sparsefmt.shapes import check_shape

_DENSE_KEYS = Keys(
    "its entry",
    3,
    ("kind", "shape"),
    ("first_chunk", "models", "negative_zeros_dropped", "row_dims", "tile_rows"),
)
_SPARSE_KEYS = _DENSE_KEYS._replace(required=("kind", "nnz", "shape"))


@dataclass(slots=True)
class TensorEntry(Tiling):
    """One tensor of the index: its tiling, and where in the file its tiles are.

    Attributes:
        codecs: codec name of each array, in order of array names.
        first_chunk: number of its first record in the chunk table; 0 if it has no tiles.
        nnz: values stored, or None in layout `dense`.
        negative_zeros_dropped: how many -0.0 were turned into +0.0 when the file was written.
        models: what the codec of an array has to know, for the arrays whose codecs have models.
    """

    name: str
    codecs: Mapping[str, str]
    first_chunk: int
    nnz: int | None = None
    negative_zeros_dropped: int = 0
    models: dict[str, bytes] = field(default_factory=dict)

    @property
    def chunk_count(self) -> int:
        return self.tiles * len(self.codecs)

    @property
    def kind(self) -> Kind:
        """What it has in common with others."""
        return Kind(self.layout, self.dtype, self.codecs)

    def is_left_out(self, array: str) -> bool:
        """Whether an array that is coded takes no byte, since it follows from others."""
        return is_left_out(self.layout, array, self.codecs[array])

    def to_object(self, kind: str) -> dict[str, Any]:
        """The entry as it stands in the index, keys sorted; `kind`: the name of its kind there."""
        entry: dict[str, Any] = {}
        if self.first_chunk:
            entry["first_chunk"] = self.first_chunk
        entry["kind"] = kind
        if self.models:
            entry["models"] = self.models
        if self.negative_zeros_dropped:
            entry["negative_zeros_dropped"] = self.negative_zeros_dropped
        if self.nnz is not None:
            entry["nnz"] = self.nnz
        if self.row_dims > 1:
            entry["row_dims"] = self.row_dims
        entry["shape"] = self.shape
        if self.tile_rows not in (0, self.matrix_rows):
            entry["tile_rows"] = self.tile_rows
        return entry


def decode_entry(name: str, entry: dict[str, Any], kinds: Mapping[str, Kind], strict: bool) -> TensorEntry:
    """The entry of tensor `name`, checked as far as that goes without the chunk table.

    Args:
        kinds: those of the index, by name.
        strict: whether keys that this version does not know are refused.
    """
    kind = _decode_kind(entry, kinds)
    layout = kind.layout
    expect_keys(entry, _SPARSE_KEYS if layout.sparse else _DENSE_KEYS, strict)
    shape = entry["shape"]
    expect_type(shape, list, "shape")
    expect_ints(shape, "its shape")
    shape = tuple(shape)
    check_shape(shape, kind.dtype)
    nnz, models = None, {}
    if layout.sparse:
        nnz = entry["nnz"]
        expect_ints((nnz,), "its nnz")
    first_chunk = _decode_count(entry, "first_chunk")
    dropped = _decode_count(entry, "negative_zeros_dropped")
    if kind.modelled or "models" in entry:
        models = _decode_models(entry.get("models", {}), kind.modelled)
    row_dims = _decode_row_dims(entry, shape) if "row_dims" in entry else 1
    decoded = TensorEntry(
        kind.dtype, shape, layout, 0, name, kind.codecs, first_chunk, nnz, dropped, models, row_dims=row_dims
    )
    _put_tile_rows(decoded, entry)
    if layout.sparse:
        _check_sparse(decoded)
    if dropped > (decoded.elements if kind.dtype.negative_zero else 0):
        raise FormatError("negative-zeros-dropped", "more negative zeros were dropped than there can be")
    return decoded


def _decode_kind(entry: dict[str, Any], kinds: Mapping[str, Kind]) -> Kind:
    name = entry.get("kind")
    if name is None:
        raise FormatError("index-key", "its entry lacks 'kind'")
    expect_type(name, str, "kind")
    kind = kinds.get(name)
    if kind is None:
        raise FormatError("kind-invalid", f"it is of kind {name!r}, which is not in the index")
    if "nnz" in entry and not kind.layout.sparse:
        raise FormatError("index-key", f"its entry has 'nnz', which layout {kind.layout.name!r} has not")
    return kind


def _decode_count(entry: dict[str, Any], key: str) -> int:
    """A number that is left out where it is 0."""
    count = entry.get(key)
    if count is None:
        if key in entry:
            expect_ints((count,), f"its {key}")
        return 0
    expect_ints((count,), f"its {key}")
    if count == 0:
        raise FormatError("index-not-canonical", f"{key} is 0; it must be left out then")
    return count


def _decode_models(models: Any, expected: tuple[str, ...]) -> dict[str, bytes]:
    """The models, one for each array whose codec has them; what they say is up to the codec."""
    expect_type(models, dict, "models")
    expect_sorted(models, "the models")
    if tuple(models) != expected:
        raise FormatError("model-set", f"it has models for {list(models)}, and needs them for {list(expected)}")
    if not models:
        raise FormatError("index-not-canonical", "models is empty; it must be left out then")
    for array, model in models.items():
        expect_type(model, bytes, f"the model of array {array!r}")
        if len(model) > MAX_MODEL_BYTES:
            raise LimitError("model-size", f"the model of array {array!r} has {len(model):,} bytes")
    return models


def _decode_row_dims(entry: dict[str, Any], shape: tuple[int, ...]) -> int:
    """How many dimensions make rows, of a stack."""
    row_dims = entry["row_dims"]
    expect_ints((row_dims,), "its row_dims")
    if not 2 <= row_dims < len(shape) or 0 in shape:
        raise FormatError(
            "row-dims", f"row_dims is {row_dims:,}, which shape {list(shape)} cannot have, or which must be left out"
        )
    return row_dims


def _put_tile_rows(decoded: TensorEntry, entry: dict[str, Any]) -> None:
    """Take from its entry how a tensor is cut into tiles."""
    usual = decoded.matrix_rows if decoded.elements else 0
    tile_rows = decoded.tile_rows = entry.get("tile_rows", usual)
    if "tile_rows" in entry:
        expect_ints((tile_rows,), "its tile_rows")
        if not 1 <= tile_rows < usual:
            raise FormatError("tile-rows", f"tile_rows is {tile_rows:,}; less than {usual:,}, or left out, it must be")
        if decoded.row_dims > 1 and usual % tile_rows:
            raise FormatError("tile-rows", f"tiles of {tile_rows:,} rows do not divide matrices of {usual:,}")
        if decoded.dtype.nbits < 8 and tile_rows % 8:
            raise FormatError("tile-rows", f"tile_rows of a {decoded.dtype.name} tensor must be a multiple of 8")
    elif decoded.row_dims > 1 and decoded.dtype.nbits < 8 and tile_rows % 8 and decoded.tiles > 1:
        raise FormatError("tile-rows", f"matrices of a {decoded.dtype.name} stack must have a multiple of 8 rows")
    if decoded.first_chunk and not usual:
        raise FormatError("tile-rows", "a tensor without elements has no tiles: first_chunk must be left out")


def _check_sparse(entry: TensorEntry) -> None:
    """Refuse sparse layouts of what must be dense, and tiles that are too large for them."""
    elements = entry.rows * entry.cols
    if not entry.dtype.prunable or len(entry.shape) < 2 or not elements:
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
    if entry.nnz is not None and entry.nnz > elements:
        raise FormatError("nnz", f"nnz is {entry.nnz:,}, over its {elements:,} elements")
