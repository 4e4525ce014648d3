"""What a file of tensors is, of whatever format: names, metadata, and the rows for each tensor."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self

from sparsefmt.adapters import Rows
from sparsefmt.container.remote_path import Place, RemotePath


class TensorFile(ABC):
    """An open file of named tensors, of which only the index has been read. Safe to use from many threads.

    Attributes:
        path: where it is; as a text, for messages.
        names: of all tensors.
        metadata: the user's texts.
        nbytes: size of the file.
        aliases: which of the names are the tensor of another name, that of one that comes before.
        notes: sentences on what was taken of the file, where that is not all of it.
    """

    path: Place
    names: list[str]
    metadata: dict[str, str]
    nbytes: int
    aliases: Mapping[str, str] = MappingProxyType({})
    notes: Sequence[str] = ()

    @abstractmethod
    def rows_of(self, name: str) -> Rows:
        """A tensor, to be read a run of rows at a time. Raises KeyError, or a SparsefmtError that names the tensor."""

    def expect(self, names: Iterable[str], times: int = 1) -> None:  # noqa: B027
        """Hint that these tensors will be read soon: what lies together is asked for together. If they will be several
        times, it is kept until `forget`."""

    def forget(self, names: Iterable[str]) -> None:  # noqa: B027
        """Hint that these tensors will hardly be read again."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def expect_regular_file(path: str | os.PathLike[str] | RemotePath) -> None:
    """Refuse a folder, a pipe or a device: opening some of them would wait forever. Stores have none, and opening says
    of their folders what they are.

    Raises:
        OSError: it is not a regular file, or does not exist.
    """
    if isinstance(path, RemotePath):
        return
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", os.fspath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
