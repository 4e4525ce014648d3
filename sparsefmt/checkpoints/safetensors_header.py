"""The header of a safetensors file: what is in it, and what is wrong with it, in words for who has such a file.

    0  8  length n of the header u64
    8  n  header: JSON, padded with spaces to a multiple of 8
    8+n   the tensors, dense, little-endian, row-major, without gaps

The safetensors library says of most faults that the header is invalid. What it refuses is refused here before, so that
a file that was cut off, by far the most frequent accident, says so.
"""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from typing import Any, NamedTuple

from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError

METADATA = "__metadata__"
"""The one key of the header that is not a tensor."""

MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library reads at most."""

LENGTH_BYTES = 8
"""Before the header: its length, u64."""


class Field(NamedTuple):
    """What the header says of a tensor; `begin` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a header says. `nbytes`: of the header itself, its length included."""

    metadata: dict[str, str]
    fields: dict[str, Field]
    nbytes: int


def check_length(length: int, file_bytes: int) -> None:
    """Refuse a file that ends inside its header, before the header is read.

    Args:
        length: what the first 8 bytes say.
    """
    if length > MAX_HEADER_BYTES:
        raise _invalid(f"its header would have {length:,} bytes, and safetensors reads {MAX_HEADER_BYTES:,} at most")
    missing = LENGTH_BYTES + length - file_bytes
    if missing > 0:
        raise _invalid(
            f"it is cut off inside its header: of {length:,} bytes {missing:,} are missing, and all tensors with them."
            " Download or copy it again"
        )


def decode_header(text: bytes, file_bytes: int) -> Header:
    """Read a header, and check that the tensors fill the rest of the file.

    Args:
        text: the header, as long as the first 8 bytes of the file say.
        file_bytes: size of the file.

    Raises:
        FormatError: the safetensors format does not allow it, or the file is too short or too long for it.
    """
    content = _parsed(text)
    metadata = _metadata(content.pop(METADATA, None))
    fields = {name: _field(name, said) for name, said in content.items()}
    header = Header(metadata, fields, LENGTH_BYTES + len(text))
    _check_places(header, file_bytes)
    return header


def dict_of_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: a dict, or a ValueError if a key is there twice, which parsers settle in different ways."""
    content = dict(pairs)
    if len(content) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} is there twice")
    return content


def _invalid(message: str, tensor: str | None = None) -> FormatError:
    return FormatError("safetensors-invalid", message, tensor=tensor)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode(), object_pairs_hook=dict_of_distinct_keys)
    except UnicodeDecodeError as error:
        raise _invalid(f"its header is not UTF-8 at byte {LENGTH_BYTES + error.start:,}") from None
    except json.JSONDecodeError as error:
        raise _invalid(
            f"its header is damaged, which shows at byte {LENGTH_BYTES + error.pos:,}: {error.msg}"
        ) from None
    except RecursionError:
        raise _invalid("its header is nested too deep") from None
    except ValueError as error:
        raise _invalid(f"its header is ambiguous: {error}") from None
    if not isinstance(content, dict):
        raise _invalid("its header is not a JSON object")
    return content


def _metadata(said: Any) -> dict[str, str]:
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise _invalid(f"its {METADATA} must map texts to texts, and is {_short(said)}")
    for key, value in said.items():
        if not isinstance(value, str):
            raise _invalid(f"its {METADATA} must map texts to texts, and {key!r} is {_short(value)}")
    return said


def _field(name: str, said: Any) -> Field:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise _invalid(f"the tensor name {name!r} is not valid Unicode") from None
    if not isinstance(said, dict):
        raise _invalid(f"its header has {_short(said)} in place of a dtype, a shape and data_offsets", name)
    for key in ("dtype", "shape", "data_offsets"):
        if key not in said:
            raise _invalid(f"its header lacks the {key}", name)
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str):
        raise _invalid(f"its dtype is {_short(dtype)}, which is not a string", name)
    if not _are_counts(shape):
        raise _invalid(f"its shape is {_short(shape)}, which is not a list of whole numbers", name)
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _invalid(f"its data_offsets are {_short(offsets)}, which is not a beginning and an end", name)
    # what dtypes there are, the library knows best
    if dtype in DTYPES:
        nbits = prod(shape) * DTYPES[dtype].nbits
        if nbits % 8:
            raise _invalid(f"shape {shape} of {dtype} takes {nbits:,} bits, which are not whole bytes", name)
        if nbits // 8 != offsets[1] - offsets[0]:
            raise _invalid(
                f"shape {shape} of {dtype} takes {nbits // 8:,} bytes, and its data_offsets give it"
                f" {offsets[1] - offsets[0]:,}",
                name,
            )
    return Field(dtype, tuple(shape), *offsets)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(part) is int and part >= 0 for part in value)


def _check_places(header: Header, file_bytes: int) -> None:
    """Check that tensors lie one after the other, from the end of the header to the end of the file."""
    due, before = 0, ""
    for begin, end, name in sorted((field.begin, field.end, name) for name, field in header.fields.items()):
        what = f"{before!r} ends" if before else "the data begins"
        if begin > due:
            raise _invalid(
                f"it begins at byte {begin:,} of the data, and {what} at {due:,}: what lies between"
                " belongs to no tensor",
                name,
            )
        if begin < due:
            raise _invalid(f"it begins at byte {begin:,} of the data, and {what} at {due:,}: they overlap", name)
        due, before = end, name
    size = header.nbytes + due
    if file_bytes < size:
        raise _invalid(f"it is cut off: of {size:,} bytes {size - file_bytes:,} are missing. Download or copy it again")
    if file_bytes > size:
        raise _invalid(
            f"it is too long: by its header it ends after {size:,} bytes, and {file_bytes - size:,} more follow"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
