"""What a framework does: turn tensors of an open file, or parts of them, into its own.

Rules: the result has memory of its own, is contiguous, and has the bits that were stored. Before memory is taken, the
file's budget is asked. Only the tiles that are asked for are read, and beside the result no more than a few of them are
held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor_writer import expect_tensors


class Framework(ABC):
    """A library of dense tensors, and the device on which they are wanted.

    Attributes:
        ties: whether names that are tied in a file get one tensor: where such tensors are shared in memory, as those of
            a model are. Else each name gets memory of its own, and all of it is counted.
    """

    ties: bool

    @abstractmethod
    def tensor(self, file: SparseFile, name: str) -> Any:
        """The whole tensor `name`."""

    @abstractmethod
    def part(self, file: SparseFile, name: str, key: Any) -> Any:
        """`tensor(file, name)[key]`, indexed as the framework does it."""

    def nbytes(self, file: SparseFile, name: str) -> int:
        """Bytes that `tensor` allocates for the result."""
        return file.reader.decoded_bytes(file.reader.index.entry(name), "dense")

    def shape(self, file: SparseFile, name: str) -> tuple[int, ...]:
        """The shape that `tensor` has."""
        return file.get_slice(name).shape


class Converted(Mapping[str, Any]):
    """A mapping in order of names, so that a file does not depend on the order of a dict; values are made on demand.

    Args:
        convert: called as convert(name, value) each time a value is asked for.
    """

    def __init__(self, tensors: Mapping[str, Any], convert: Callable[[str, Any], Any]) -> None:
        expect_tensors(tensors, "tensor")
        self._tensors = tensors
        self._convert = convert

    def __getitem__(self, name: str) -> Any:
        return self._convert(name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        # names that are no text have no order; writing them says what is wrong with them
        return iter(sorted(self._tensors, key=str))

    def __len__(self) -> int:
        return len(self._tensors)


def offset_keys(file: SparseFile) -> list[str]:
    """All names, in the order in which their tensors lie in the file: tied names one after the other, and first the
    empty tensors, which lie nowhere."""
    index = file.reader.index

    def place(name: str) -> tuple[int, str]:
        entry = index.entry(name)
        return (entry.first_chunk if entry.tiles else -1), name

    return sorted(index.names, key=place)


def all_tensors(file: SparseFile, framework: Framework) -> dict[str, Any]:
    """Every tensor in the order of `offset_keys`. Names that are tied in the file are one tensor, or one each.

    Raises:
        LimitError: all of them together take more than `max_decoded_bytes`. Nothing has been read then.
    """
    aliases = file.reader.index.aliases if framework.ties else {}
    file.reader.budget.expect(sum(framework.nbytes(file, name) for name in file if name not in aliases))
    made: dict[str, Any] = {}
    tensors = {}
    for name in offset_keys(file):
        target = aliases.get(name, name)
        if target not in made:
            made[target] = framework.tensor(file, target)
        tensors[name] = made[target]
    return tensors
