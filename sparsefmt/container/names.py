"""What names and metadata a file can have: checked alike when writing and when reading. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sparsefmt.errors import FormatError, LimitError
from sparsefmt.limits import MAX_METADATA_BYTES, MAX_NAME_BYTES

_MOST_UTF8_BYTES = 4  # of a character


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


def check_names(names: Collection[str]) -> None:
    """`check_name` for each of many texts that were decoded from UTF-8, mostly without a look at each."""
    if names and (
        not all(names)
        or max(map(len, names)) * _MOST_UTF8_BYTES > MAX_NAME_BYTES
        or any("\0" in name for name in names)
    ):
        for name in names:
            check_name(name)


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
