"""Kinds of tensors: what tensors of the same layout, dtype and codecs have in common, said once. No I/O.

{"arrays": {name: codec}, "dtype", "layout"}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sparsefmt.codecs import CODECS
from sparsefmt.container.canonical import Keys, expect_keys, expect_sorted, expect_type
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.errors import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.layouts import layout_of
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS

_KEYS = Keys("it", 3, ("arrays", "dtype", "layout"))


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

    def to_object(self) -> dict[str, Any]:
        """The kind as it stands in the index, keys sorted."""
        return {"arrays": dict(self.codecs), "dtype": self.dtype.name, "layout": self.layout.name}


def names_of(kinds: Iterable[Kind]) -> dict[tuple[object, ...], str]:
    """The name in an index for each kind, by `key`: numbers, in the order in which they come."""
    names: dict[tuple[object, ...], str] = {}
    for kind in kinds:
        names.setdefault(kind.key, str(len(names)))
    return names


def decode_kinds(kinds: Any, strict: bool) -> dict[str, Kind]:
    """The kinds of an index, by name, checked. `strict`: whether keys that this version does not know are refused."""
    expect_type(kinds, dict, "kinds")
    expect_sorted(kinds, "the kinds")
    decoded = {}
    for name, kind in kinds.items():
        try:
            decoded[name] = _decode_kind(kind, strict)
        except SparsefmtError as error:
            raise type(error)(error.code, f"kind {name!r}: {error.message}") from None
    return decoded


def is_left_out(layout: Layout, array: str, codec: str) -> bool:
    """Whether an array that is coded takes no byte, since it follows from others."""
    return array in layout.derived and CODECS[codec].leaves_out_derived


def _decode_kind(kind: Any, strict: bool) -> Kind:
    expect_type(kind, dict, "it")
    expect_keys(kind, _KEYS, strict)
    arrays, dtype = kind["arrays"], _dtype(kind["dtype"])
    expect_type(arrays, dict, "arrays")
    layout = _layout(kind["layout"], arrays)
    expect_sorted(arrays, "the arrays")
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
