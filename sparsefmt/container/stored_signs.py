"""Signs of pruned zeros, left where they are until somebody asks for them.

No product reads them, and half of the zeros of weights that were multiplied by a mask are -0.0: one bit for each pruned
position, which no codec makes much smaller. They are verified when a tensor is loaded, like all its arrays, and then
forgotten. Whoever makes dense elements of the tensor reads and verifies them again, from the file that was opened, even
if another file has its name by then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsefmt.errors import SparsefmtError
from sparsefmt.layouts.memory import frozen, padded_copy

WORTH_LEAVING = 1 << 15
"""Bytes of a tensor's signs from which on they are left in the file. That keeps it open as long as the tensor."""


class Signs(ABC):
    """The array `negative_zeros` of each tile of a tensor."""

    @abstractmethod
    def tile(self, number: int) -> np.ndarray:
        """That of one tile: uint8, read-only."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Signs:
        """Itself: it cannot change."""
        return self


class HeldSigns(Signs):
    """Signs in memory: copies of those given."""

    def __init__(self, tiles: list[np.ndarray]) -> None:
        # what restores signs reads some bytes beyond the end of an array
        self._tiles = [frozen(padded_copy(tile)) for tile in tiles]

    def tile(self, number: int) -> np.ndarray:
        return self._tiles[number]


class SignsOfMatrix(Signs):
    """Of a stack, the signs of one matrix.

    Args:
        signs: of the whole stack.
        tiles: those of the matrix.
    """

    def __init__(self, signs: Signs, tiles: range) -> None:
        self._signs, self._tiles = signs, tiles

    def tile(self, number: int) -> np.ndarray:
        return self._signs.tile(self._tiles[number])

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldSigns, ([np.array(self.tile(number)) for number in range(len(self._tiles))],)


class StoredSigns(Signs):
    """Signs in a file, which stays open for them.

    Args:
        name: of the tensor, for errors.
        count: number of tiles.
        path: of the file, for errors.
        read: reads and verifies the array of a tile.
    """

    def __init__(self, name: str, count: int, path: str | None, read: Callable[[int], np.ndarray]) -> None:
        self._name = name
        self._path = path
        self._count = count
        self._read = read

    def tile(self, number: int) -> np.ndarray:
        """
        Raises:
            ChecksumError, FormatError: the file has been changed in place since the tensor was loaded.
            OSError: it cannot be read any more.
        """
        try:
            return self._read(number)
        except SparsefmtError as error:
            named = error.within(self._name, self._path)
            named.add_note("signs of zeros are read when they are asked for: was the file changed in place?")
            raise named from None

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldSigns, ([np.array(self.tile(number)) for number in range(self._count)],)
