"""What an adapter is: a module of this folder."""

from __future__ import annotations

from typing import Any, Protocol

from sparsefmt.adapters.rows import Rows
from sparsefmt.file_tensor import FileTensor


class Adapter(Protocol):
    """A module of this folder for a library whose tensors are also made from files: they go both ways.

    Of other libraries, a module has `rows_of` alone. The functions stand in this order in each.

    What is made of a tensor in a file has memory of its own, is contiguous, and has the bits that were stored. Before
    memory is taken, the `FileTensor` is asked, which keeps to the budget of its file. Only the tiles that are asked for
    are read, and beside the result no more than a few of them are held.

    Attributes:
        SHARES_TIED: whether names that are tied in a file get one tensor, where such tensors are shared in memory, as
            those of a network are. Else each name gets memory of its own, and all of it is counted.
    """

    SHARES_TIED: bool

    def rows_of(self, tensor: Any, /) -> Rows:
        """A tensor as it is to be stored."""

    def identity_of(self, tensor: Any, /) -> object:
        """Equal for two that are one object, or the same elements of the same memory."""

    def device_of(self, device: Any) -> Any:
        """The device that the library knows by that name. Raises what the library raises for what is none."""

    def shape_of(self, stored: FileTensor) -> tuple[int, ...]:
        """The shape that `tensor_of` gives."""

    def nbytes_of(self, stored: FileTensor) -> int:
        """Bytes that `tensor_of` allocates for the result."""

    def tensor_of(self, stored: FileTensor, device: Any = "cpu") -> Any:
        """A tensor in a file as one of the library, on a device."""

    def part_of(self, stored: FileTensor, key: Any, device: Any = "cpu") -> Any:
        """`tensor_of(stored, device)[key]`, indexed as the library does it, reading only the tiles that it takes."""
