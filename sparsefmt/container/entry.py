"""One tensor of the index: what is said of it, and whether that can be. No I/O.

An entry is one of

    [kind, shape]
    [kind, shape, {"first_chunk"?, "models"?, "negative_zeros_dropped"?, "nnz"?, "row_dims"?, "tile_rows"?}]

and what stands in the place of the entry of a further name is read in index.py. What an entry shares with others, its
**kind**, stands apart (kinds.py). Every check is O(1), and they are arranged so that an index of a hundred thousand
tensors is read in a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsefmt.container.canonical import Keys, expect_ints, expect_keys, expect_sorted, expect_type, fields_of
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

_DENSE_KEYS = Keys("its entry", 4, (), ("first_chunk", "models", "negative_zeros_dropped", "row_dims", "tile_rows"))
_SPARSE_KEYS = _DENSE_KEYS._replace(required=("nnz",))

_NO_MODELS: dict[str, bytes] = {}
"""Of all entries that have none: nobody changes the models of an entry."""

FOLLOWS = -1
"""In place of a number: the chunks of an entry follow on those of the entry before, which must be known first."""


@dataclass(slots=True)
class TensorEntry(Tiling):
    """One tensor of the index: its tiling, and where in the file its tiles are.

    Attributes:
        codecs: codec name of each array, in order of array names.
        first_chunk: number of its first record in the chunk table; 0 if it has no tiles. FOLLOWS while it is decoded.
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

    def to_object(self, kind: int, following: int) -> list[Any]:
        """The entry as it stands in the index, keys sorted.

        Args:
            kind: the number of its kind there.
            following: the number of the chunk behind those of the entry before.
        """
        fields: dict[str, Any] = {}
        if self.tile_rows and self.first_chunk != following:
            fields["first_chunk"] = self.first_chunk
        if self.models:
            fields["models"] = self.models
        if self.negative_zeros_dropped:
            fields["negative_zeros_dropped"] = self.negative_zeros_dropped
        if self.nnz is not None:
            fields["nnz"] = self.nnz
        if self.row_dims > 1:
            fields["row_dims"] = self.row_dims
        if self.tile_rows not in (0, self.matrix_rows):
            fields["tile_rows"] = self.tile_rows
        return [kind, self.shape, fields] if fields else [kind, self.shape]


def decode_entry(name: str, entry: Any, kinds: Sequence[Kind], strict: bool) -> TensorEntry:
    """The entry of tensor `name`, checked as far as that goes without the chunk table.

    Its `first_chunk` is FOLLOWS if it has tiles and does not say where their chunks are.

    Args:
        kinds: those of the index.
        strict: whether keys that this version does not know are refused.
    """
    fields = fields_of(entry, 2, "its entry")
    number, shape = entry[0], entry[1]
    kind = _kind(number, kinds)
    layout = kind.layout
    if fields or layout.sparse:
        _expect_fields(fields, layout.sparse, strict)
    expect_type(shape, list, "shape")
    expect_ints(shape, "its shape")
    shape = tuple(shape)
    check_shape(shape, kind.dtype)
    nnz, first_chunk, dropped, models, row_dims = None, FOLLOWS, 0, _NO_MODELS, 1
    if kind.modelled or "models" in fields:
        models = _decode_models(fields.get("models", {}), kind.modelled)
    if fields:
        if layout.sparse:
            nnz = _decode_int(fields, "nnz")
        if "first_chunk" in fields:
            first_chunk = _decode_int(fields, "first_chunk")
        if "negative_zeros_dropped" in fields:
            dropped = _decode_dropped(fields)
        if "row_dims" in fields:
            row_dims = _decode_row_dims(fields, shape)
    decoded = TensorEntry(
        kind.dtype, shape, layout, 0, name, kind.codecs, first_chunk, nnz, dropped, models, row_dims=row_dims
    )
    _put_tile_rows(decoded, fields)
    if layout.sparse:
        _check_sparse(decoded)
    if dropped > (decoded.elements if kind.dtype.negative_zero else 0):
        raise FormatError("negative-zeros-dropped", "more negative zeros were dropped than there can be")
    return decoded


def _kind(number: Any, kinds: Sequence[Kind]) -> Kind:
    expect_type(number, int, "the number of its kind")
    if not 0 <= number < len(kinds):
        expect_ints((number,), "the number of its kind")
        raise FormatError("kind-invalid", f"it is of kind {number:,}, and the index has {len(kinds):,}")
    return kinds[number]


def _expect_fields(fields: dict[str, Any], sparse: bool, strict: bool) -> None:
    """Check the keys of an entry."""
    if "nnz" in fields and not sparse:
        raise FormatError("index-key", "its entry has 'nnz', which layout 'dense' has not")
    expect_keys(fields, _SPARSE_KEYS if sparse else _DENSE_KEYS, strict)


def _decode_int(fields: dict[str, Any], key: str) -> int:
    number = fields[key]
    expect_ints((number,), f"its {key}")
    return number


def _decode_dropped(fields: dict[str, Any]) -> int:
    dropped = _decode_int(fields, "negative_zeros_dropped")
    if dropped == 0:
        raise FormatError("index-not-canonical", "negative_zeros_dropped is 0; it must be left out then")
    return dropped


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


def _decode_row_dims(fields: dict[str, Any], shape: tuple[int, ...]) -> int:
    """How many dimensions make rows, of a stack."""
    row_dims = _decode_int(fields, "row_dims")
    if not 2 <= row_dims < len(shape) or 0 in shape:
        raise FormatError(
            "row-dims", f"row_dims is {row_dims:,}, which shape {list(shape)} cannot have, or which must be left out"
        )
    return row_dims


def _put_tile_rows(decoded: TensorEntry, fields: dict[str, Any]) -> None:
    """Take from its entry how a tensor is cut into tiles."""
    usual = decoded.matrix_rows if decoded.elements else 0
    tile_rows = decoded.tile_rows = fields.get("tile_rows", usual)
    if "tile_rows" in fields:
        expect_ints((tile_rows,), "its tile_rows")
        if not 1 <= tile_rows < usual:
            raise FormatError("tile-rows", f"tile_rows is {tile_rows:,}; less than {usual:,}, or left out, it must be")
        if decoded.row_dims > 1 and usual % tile_rows:
            raise FormatError("tile-rows", f"tiles of {tile_rows:,} rows do not divide matrices of {usual:,}")
        if decoded.dtype.nbits < 8 and tile_rows % 8:
            raise FormatError("tile-rows", f"tile_rows of a {decoded.dtype.name} tensor must be a multiple of 8")
    elif decoded.row_dims > 1 and decoded.dtype.nbits < 8 and tile_rows % 8 and decoded.tiles > 1:
        raise FormatError("tile-rows", f"matrices of a {decoded.dtype.name} stack must have a multiple of 8 rows")
    if not usual:
        if decoded.first_chunk != FOLLOWS:
            raise FormatError("tile-rows", "a tensor without elements has no tiles: first_chunk must be left out")
        decoded.first_chunk = 0


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
