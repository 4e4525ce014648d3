"""What a file of tensors is, of whatever format: names, metadata, and the rows for each tensor."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from sparsefmt.adapters import Rows


class TensorFile(ABC):
    """An open file of named tensors, of which only the index has been read. Safe to use from many threads.

    Attributes:
        path: where it is.
        names: of all tensors.
        metadata: the user's texts.
        nbytes: size of the file.
        aliases: which of the names are the tensor of another name, that of one that comes before.
        notes: sentences on what was taken of the file, where that is not all of it.
    """

    path: Path
    names: list[str]
    metadata: dict[str, str]
    nbytes: int
    aliases: Mapping[str, str] = MappingProxyType({})
    notes: Sequence[str] = ()

    @abstractmethod
    def rows_of(self, name: str) -> Rows:
        """A tensor, to be read a run of rows at a time. Raises KeyError, or a SparsefmtError that names the tensor."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def expect_regular_file(path: str | os.PathLike[str]) -> None:
    """Refuse a folder, a pipe or a device: opening some of them would wait forever.

    Raises:
        OSError: it is not a regular file, or does not exist.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", os.fspath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
