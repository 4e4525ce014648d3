"""Kinds of tensors: what tensors of the same layout, dtype and codecs have in common, said once. No I/O.

    [dtype]
    [dtype, {"arrays"?: {name: codec}, "layout"?}]

The layout is left out if it is `dense`, and the arrays if these are the `values` of `dense`, of codec `raw`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sparsefmt.codecs import CODECS
from sparsefmt.container.canonical import Keys, expect_keys, expect_sorted, expect_type, fields_of
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.errors import FormatError, LimitError, SparsefmtError, UnsupportedError
from sparsefmt.layouts import layout_of
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.limits import MAX_INDEX_ARRAY

_KEYS = Keys("it", 4, (), ("arrays", "layout"))
_USUAL_LAYOUT, _USUAL_ARRAYS = "dense", {"values": "raw"}


class Kind(NamedTuple):
    """What tensors of one kind have in common.

    Attributes:
        codecs: codec name of each array, in order of array names; shared by all of them.
        modelled: arrays that have models.
    """

    layout: Layout
    dtype: DType
    codecs: Mapping[str, str]
    modelled: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal kinds."""
        return self.layout.form, self.dtype.name, *self.codecs.items()

    def to_object(self) -> list[Any]:
        """The kind as it stands in the index, keys sorted."""
        fields: dict[str, Any] = {}
        if self.layout.name != _USUAL_LAYOUT or self.codecs != _USUAL_ARRAYS:
            fields["arrays"] = dict(self.codecs)
        if self.layout.name != _USUAL_LAYOUT:
            fields["layout"] = self.layout.name
        return [self.dtype.name, fields] if fields else [self.dtype.name]


def numbers_of(kinds: Iterable[Kind]) -> dict[tuple[object, ...], int]:
    """The number in an index of each kind, by `key`, in the order in which they come.

    Raises:
        LimitError: there are more than an index can have.
    """
    numbers: dict[tuple[object, ...], int] = {}
    for kind in kinds:
        numbers.setdefault(kind.key, len(numbers))
    if len(numbers) > MAX_INDEX_ARRAY:
        most = f"a file has at most {MAX_INDEX_ARRAY:,} of them"
        raise LimitError(
            "kind-count", f"the tensors are of {len(numbers):,} kinds, of dtype, layout and codecs: {most}"
        )
    return numbers


def decode_kinds(kinds: Any, strict: bool) -> list[Kind]:
    """The kinds of an index, checked. `strict`: whether keys that this version does not know are refused."""
    expect_type(kinds, list, "kinds")
    decoded = []
    for number, kind in enumerate(kinds):
        try:
            decoded.append(_decode_kind(kind, strict))
        except SparsefmtError as error:
            raise type(error)(error.code, f"kind {number}: {error.message}") from None
    return decoded


def is_left_out(layout: Layout, array: str, codec: str) -> bool:
    """Whether an array that is coded takes no byte, since it follows from others."""
    return array in layout.derived and CODECS[codec].leaves_out_derived


def _decode_kind(kind: Any, strict: bool) -> Kind:
    fields = fields_of(kind, 1, "it")
    expect_keys(fields, _KEYS, strict)
    dtype, layout_name = _dtype(kind[0]), fields.get("layout", _USUAL_LAYOUT)
    if "arrays" not in fields and layout_name != _USUAL_LAYOUT:
        raise FormatError("index-key", "it lacks 'arrays'")
    arrays = fields.get("arrays", _USUAL_ARRAYS)
    expect_type(arrays, dict, "arrays")
    layout = _layout(layout_name, arrays)
    expect_sorted(arrays, "the arrays")
    if layout_name == _USUAL_LAYOUT and ("layout" in fields or fields.get("arrays") == _USUAL_ARRAYS):
        raise FormatError("index-not-canonical", "it says what it must leave out, of layout 'dense' and codec 'raw'")
    for array, codec in arrays.items():
        expect_type(codec, str, f"the codec of array {array!r}")
    optional = {NEGATIVE_ZEROS} if layout.sparse and dtype.negative_zero else set()
    if not set(layout.arrays) <= set(arrays) <= set(layout.arrays) | optional:
        raise FormatError(
            "array-set", f"layout {layout.name!r} has arrays {', '.join(layout.arrays)}, not {', '.join(arrays)}"
        )
    for array, codec in arrays.items():
        if codec not in CODECS:
            raise UnsupportedError("codec-unknown", f"codec {codec!r} of array {array!r} is not known to this version")
    modelled = (
        array for array, codec in arrays.items() if CODECS[codec].has_models and not is_left_out(layout, array, codec)
    )
    return Kind(layout, dtype, MappingProxyType(arrays), tuple(modelled))


def _layout(name: Any, arrays: dict[str, Any]) -> Layout:
    expect_type(name, str, "layout")
    layout = layout_of(name, arrays)
    if layout is None:
        raise UnsupportedError("layout-unknown", f"layout {name!r} is not known to this version")
    return layout


def _dtype(name: Any) -> DType:
    expect_type(name, str, "dtype")
    dtype = DTYPES.get(name)
    if dtype is None:
        raise UnsupportedError("dtype-unknown", f"dtype {name!r} is not known to this version")
    return dtype
