"""SafeSlice: a tensor in a file opened by `safe_open`, indexed like a tensor of the framework."""

from __future__ import annotations

from typing import Any

from sparsefmt.framework_file import FrameworkFile


class SafeSlice:
    """A tensor in an open file, to be indexed like a tensor of the framework. It keeps the file open."""

    def __init__(self, held: FrameworkFile, name: str) -> None:
        self._held = held
        self._name = name

    def get_shape(self) -> list[int]:
        """Shape of the tensor, as `get_tensor` gives it."""
        return list(self._held.adapter.shape_of(self._held.stored(self._name)))

    def get_dtype(self) -> str:
        """Name of the dtype, as in safetensors: "F32", "BF16" …"""
        return self._held.stored(self._name).dtype.name

    def __getitem__(self, key: Any) -> Any:
        """`get_tensor(name)[key]`, contiguous and with its own memory.

        Args:
            key: whatever the framework takes as an index.

        Raises:
            IndexError, ValueError, TypeError: the framework does not take the index.
            FormatError, ChecksumError: the file is damaged or forged.

        Cost: reads the tiles of the rows that are asked for. An index with None, or with lists or arrays in a place
        other than the first, reads and holds the whole tensor.
        """
        return self._held.part(self._name, _without_ellipsis(key, len(self.get_shape())))

    # element-wise, as for the tensor; `is` compares slices as objects
    def __eq__(self, other: object) -> Any:
        return self[...] == other

    def __ne__(self, other: object) -> Any:
        return self[...] != other

    __hash__ = object.__hash__


def _without_ellipsis(key: Any, ndim: int) -> Any:
    """Replace the ellipsis of an index of integers and slices by slices, to see which rows the index asks for.

    Other indices stay as they are.
    """
    parts = key if isinstance(key, tuple) else (key,)
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    others = [part for part in parts if part is not Ellipsis]
    simple = all(isinstance(part, (int, slice)) and not isinstance(part, bool) for part in others)
    if len(places) != 1 or not simple or len(others) > ndim:
        return key
    (place,) = places
    return (*parts[:place], *[slice(None)] * (ndim - len(others)), *parts[place + 1 :])
