"""One tensor of the index: what is said of it, and whether that can be. No I/O.

An entry is one of

    {"arrays": {name: codec}, "dtype", "first_chunk", "layout", "models"?, "negative_zeros_dropped"?, "nnz"?, "shape",
     "tile_rows"}
    {"alias_of": name}

of which this file decodes the first. Every check is O(1), and they are arranged so that an index of a hundred thousand
tensors is read in a moment: what tensors of the same layout, dtype and codecs have in common is looked at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from sparsefmt.codecs import CODECS
from sparsefmt.container.canonical import Keys, expect_ints, expect_keys, expect_sorted, expect_type
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.errors import FormatError, LimitError, UnsupportedError
from sparsefmt.layouts import layout_of
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
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
    ("arrays", "dtype", "first_chunk", "layout", "shape", "tile_rows"),
    ("models", "negative_zeros_dropped"),
)
_SPARSE_KEYS = _DENSE_KEYS._replace(required=tuple(sorted((*_DENSE_KEYS.required, "nnz"))))


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

    def is_left_out(self, array: str) -> bool:
        """Whether an array that is coded takes no byte, since it follows from others."""
        return _is_left_out(self.layout, array, self.codecs[array])

    def to_object(self) -> dict[str, Any]:
        """The entry as it stands in the index, keys sorted."""
        entry: dict[str, Any] = {
            "arrays": dict(self.codecs),
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


def decode_entry(name: str, entry: dict[str, Any], strict: bool) -> TensorEntry:
    """The entry of tensor `name`, checked as far as that goes without the chunk table.

    Args:
        strict: whether keys that this version does not know are refused.
    """
    layout = _decode_layout(entry)
    expect_keys(entry, _SPARSE_KEYS if layout.sparse else _DENSE_KEYS, strict)
    dtype, arrays, shape = entry["dtype"], entry["arrays"], entry["shape"]
    expect_type(dtype, str, "dtype")
    expect_type(arrays, dict, "arrays")
    expect_type(shape, list, "shape")
    expect_ints((*shape, entry["first_chunk"], entry["tile_rows"]), "its shape, first_chunk and tile_rows")
    try:
        kind = _kind(layout, dtype, tuple(arrays.items()))
    except TypeError:  # a codec that cannot be looked up is no text
        raise FormatError("index-type", "the codec of an array must be str") from None
    shape = tuple(shape)
    check_shape(shape, kind.dtype)
    nnz, dropped, models = None, 0, {}
    if layout.sparse:
        nnz = entry["nnz"]
        expect_ints((nnz,), "its nnz")
    if "negative_zeros_dropped" in entry:
        dropped = _decode_dropped(entry["negative_zeros_dropped"])
    if kind.modelled or "models" in entry:
        models = _decode_models(entry.get("models", {}), kind.modelled)
    decoded = TensorEntry(
        kind.dtype, shape, layout, entry["tile_rows"], name, kind.codecs, entry["first_chunk"], nnz, dropped, models
    )
    _check_tiles(decoded)
    if layout.sparse:
        _check_sparse(decoded)
    return decoded


def _decode_layout(entry: dict[str, Any]) -> Layout:
    name = entry.get("layout", "dense")  # an entry without a layout fails the check of its keys
    expect_type(name, str, "layout")
    arrays = entry.get("arrays", ())
    layout = layout_of(name, arrays if isinstance(arrays, dict) else ())
    if layout is None:
        raise UnsupportedError("layout-unknown", f"layout {name!r} is not known to this version")
    if "nnz" in entry and not layout.sparse:
        raise FormatError("index-key", f"its entry has 'nnz', which layout {name!r} has not")
    return layout


class _Kind(NamedTuple):
    """What tensors of one layout, dtype and codecs have in common.

    Attributes:
        codecs: codec name of each array, shared by all of them.
        modelled: arrays whose codecs have models.
    """

    dtype: DType
    codecs: Mapping[str, str]
    modelled: list[str]


@lru_cache(maxsize=256)
def _kind(layout: Layout, dtype_name: str, items: tuple[tuple[str, str], ...]) -> _Kind:
    """Check dtype, arrays and the codecs of those."""
    for array, codec in items:
        expect_type(codec, str, f"the codec of array {array!r}")
    dtype, arrays = DTYPES.get(dtype_name), dict(items)
    if dtype is None:
        raise UnsupportedError("dtype-unknown", f"dtype {dtype_name!r} is not known to this version")
    expect_sorted(arrays, "the arrays")
    optional = {NEGATIVE_ZEROS} if layout.sparse and dtype.negative_zero else set()
    if not set(layout.arrays) <= set(arrays) <= set(layout.arrays) | optional:
        raise FormatError(
            "array-set", f"layout {layout.name!r} has arrays {', '.join(layout.arrays)}, not {', '.join(arrays)}"
        )
    for array, codec in items:
        if codec not in CODECS:
            raise UnsupportedError("codec-unknown", f"codec {codec!r} of array {array!r} is not known to this version")
    modelled = [array for array, codec in items if CODECS[codec].has_models and not _is_left_out(layout, array, codec)]
    return _Kind(dtype, MappingProxyType(arrays), modelled)


def _is_left_out(layout: Layout, array: str, codec: str) -> bool:
    return array in layout.derived and CODECS[codec].leaves_out_derived


def _decode_dropped(dropped: Any) -> int:
    expect_ints((dropped,), "its negative_zeros_dropped")
    if dropped == 0:
        raise FormatError("index-not-canonical", "negative_zeros_dropped is 0; it must be left out then")
    return dropped


def _decode_models(models: Any, expected: list[str]) -> dict[str, bytes]:
    """The models, one for each array whose codec has them; what they say is up to the codec."""
    expect_type(models, dict, "models")
    expect_sorted(models, "the models")
    if list(models) != expected:
        raise FormatError("model-set", f"it has models for {list(models)}, and needs them for {expected}")
    if not models:
        raise FormatError("index-not-canonical", "models is empty; it must be left out then")
    for array, model in models.items():
        expect_type(model, bytes, f"the model of array {array!r}")
        if len(model) > MAX_MODEL_BYTES:
            raise LimitError("model-size", f"the model of array {array!r} has {len(model):,} bytes")
    return models


def _check_tiles(entry: TensorEntry) -> None:
    """Refuse tiles and counts that cannot be."""
    rows, tile_rows, dtype = entry.rows, entry.tile_rows, entry.dtype
    if not (rows and entry.cols):
        if tile_rows or entry.first_chunk:
            raise FormatError(
                "tile-rows", "a tensor without elements has no tiles: tile_rows and first_chunk must be 0"
            )
    elif not 1 <= tile_rows <= rows:
        raise FormatError("tile-rows", f"tile_rows is {tile_rows:,}, and the tensor has {rows:,} rows")
    if dtype.nbits < 8 and tile_rows % 8 and tile_rows < rows:
        raise FormatError("tile-rows", f"tile_rows of a {dtype.name} tensor must be a multiple of 8")
    if entry.negative_zeros_dropped > (entry.elements if dtype.negative_zero else 0):
        raise FormatError("negative-zeros-dropped", "more negative zeros were dropped than there can be")


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
