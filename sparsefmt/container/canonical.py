"""Canonical msgpack: one encoding for one content, and checks of the types that an index has. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgpack

from sparsefmt.errors import FormatError, LimitError
from sparsefmt.limits import MAX_INDEX_ARRAY, MAX_INDEX_DEPTH

_MAX_INT = (1 << 63) - 1

BYTES_FOR_AN_ARRAY = 3
"""An index has at most one array in so many bytes, or it is not an index of ours: a tensor has two in at least seven.
An array of one element is two bytes there and 64 in memory: so memory is in proportion to the index."""

_ARRAYS_FOR_A_MAP = 3
"""A map of one pair takes about as much memory as so many arrays. It counts as such."""

_SMALL_INDEX = 1 << 22
"""Bytes of an index that may be anything."""


def encode(value: object) -> bytes:
    """Canonical msgpack, if keys are sorted."""
    return msgpack.packb(value, use_bin_type=True)


def decode(data: bytes) -> list[Any]:
    """Decode an array, and refuse anything that `encode` would have written otherwise, or not at all."""
    hooks = _counting_hooks(len(data) // BYTES_FOR_AN_ARRAY) if len(data) > _SMALL_INDEX else {}
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_INDEX_ARRAY,
            max_ext_len=0,
            ext_hook=_refuse_extension,
            **hooks,
        )
        canonical = encode(value) == data
    except LimitError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        # duplicate keys, unlike the rest, decode; they fail the comparison
        raise FormatError("index-malformed", f"the index is not the msgpack it should be: {error}") from None
    except MemoryError:
        raise LimitError("memory", "the index does not fit in memory") from None
    if not canonical:
        _refuse_floats(value)
        raise FormatError("index-not-canonical", "the index is not in canonical form")
    expect_type(value, list, "the index")
    return value


class Keys(NamedTuple):
    """The keys of a kind of map.

    Attributes:
        what: the map, for errors.
        level: how many levels deep it stands in the index.
        required, optional: the keys, those that are required sorted.
    """

    what: str
    level: int
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


_NO_FIELDS: dict[str, Any] = {}


def fields_of(value: Any, always: int, what: str) -> dict[str, Any]:
    """The map behind the elements that are always there, of an index, a kind or an entry; an empty one if there is
    none. The keys are not checked yet.

    Raises:
        FormatError: it is not an array, or one of fewer or of more elements, or the last of them is not a map, or
            empty.
    """
    if type(value) is list:
        if len(value) == always:
            return _NO_FIELDS
        if len(value) == always + 1:
            fields = value[always]
            expect_type(fields, dict, f"element {always} of {what}")
            if not fields:
                raise FormatError(
                    "index-not-canonical", f"element {always} of {what} is empty; it must be left out then"
                )
            return fields
        raise FormatError("index-key", f"{what} has {len(value):,} elements, not {always} or {always + 1}")
    raise FormatError("index-type", f"{what} must be list, not {type(value).__name__}")


def expect_keys(mapping: dict[str, Any], keys: Keys, strict: bool) -> None:
    """Check the keys of a map. Unknown ones are refused, or, not `strict`, ignored."""
    if tuple(mapping) == keys.required:  # the usual case, and the fastest
        return
    what = keys.what
    _expect_text_keys(mapping, f"the keys of {what}")
    for key in keys.required:
        if key not in mapping:
            raise FormatError("index-key", f"{what} lacks {key!r}")
    for key, value in mapping.items():
        if key not in keys.required and key not in keys.optional:
            if strict:
                raise FormatError("index-key", f"{what} has an unknown key {key!r}")
            expect_possible(value, f"the value of unknown key {key!r}", keys.level + 1)
    expect_sorted(mapping, f"the keys of {what}")


def expect_sorted(mapping: Mapping[str, Any], what: str) -> None:
    _expect_text_keys(mapping, what)
    keys = list(mapping)
    if keys != sorted(keys):
        raise FormatError("index-not-canonical", f"{what} are not sorted")


def expect_type(value: object, kind: type, what: str) -> None:
    if type(value) is not kind:
        raise FormatError("index-type", f"{what} must be {kind.__name__}, not {type(value).__name__}")


def expect_ints(values: Iterable[object], what: str) -> None:
    for value in values:
        if type(value) is not int or not 0 <= value <= _MAX_INT:
            raise FormatError("index-type", f"{what} must have integers from 0 to 2**63 - 1, not {value!r}")


def expect_possible(value: Any, what: str, level: int) -> None:
    """Refuse a value that no index has, for which this version has no use.

    What a later minor version added is not read, but has to be in canonical form like all of the index.
    """
    if type(value) in (dict, list) and level > MAX_INDEX_DEPTH:
        raise FormatError("index-malformed", f"{what} has over {MAX_INDEX_DEPTH} levels of maps and arrays")
    if type(value) is dict:
        expect_sorted(value, f"the keys of {what}")
        value = list(value.values())
    if type(value) is list:
        for inner in value:
            expect_possible(inner, what, level + 1)
    elif type(value) not in (str, bytes, int) or (type(value) is int and value < 0):
        raise FormatError("index-type", f"{what} has a value of a type that an index cannot have: {value!r:.80}")


def _refuse_floats(value: Any) -> None:
    """Of what is not in canonical form, floats of 32 bits are the wrong type, as all floats are."""
    if type(value) is float:
        raise FormatError("index-type", f"the index has a float, {value!r}")
    if type(value) in (dict, list):
        for inner in value.values() if type(value) is dict else value:
            _refuse_floats(inner)


def _expect_text_keys(mapping: Mapping[Any, Any], what: str) -> None:
    if not all(type(key) is str for key in mapping):
        raise FormatError("index-malformed", f"{what} must be text")


def _counting_hooks(limit: int) -> dict[str, Callable[[Any], Any]]:
    """Hooks for msgpack that end decoding at a number of maps and arrays; see _ARRAYS_FOR_A_MAP."""
    left = limit

    def count(container: Any) -> Any:
        nonlocal left
        left -= 1 if type(container) is list else _ARRAYS_FOR_A_MAP
        if left < 0:
            raise LimitError("memory", "the index has too many maps and arrays for its size")
        return container

    return {"object_hook": count, "list_hook": count}


def _refuse_extension(code: int, data: bytes) -> None:
    """Those of no bytes, which have no other limit."""
    raise ValueError(f"it has an extension type, {code}")
