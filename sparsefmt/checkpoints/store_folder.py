"""A folder in a store, which has no renames: each object appears whole, and an index says when all of them are there.

model.sparsefmt.index.json     {"sparsefmt_unfinished": …}, first of all: readers refuse the folder
the weights, then all other files
model.sparsefmt.index.json     as it shall be, last of all; or nothing, if there is one file of weights
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType

from sparsefmt.checkpoints.index_file import UNFINISHED
from sparsefmt.container.file_objects import destination
from sparsefmt.container.remote_path import Place, RemotePath, is_same

_WHY = "files of this folder are being written by sparsefmt, or that was cut off: it is no checkpoint yet"


class StoreFolder:
    """A folder of a store to be filled, or filled anew. After an error, what was new in it is removed.

    Args:
        path: the folder.
        source: the folder that is read meanwhile.
        overwrite: whether the folder may have something in it.
        key: names what is to be written. New files stay after a failure then, in a folder that readers refuse, and the
            next one with this key goes on there.

    Raises:
        OSError: it is a file, or the source; or it has something in it, and not `overwrite`.
    """

    def __init__(self, path: RemotePath, source: Place, overwrite: bool, key: str | None = None) -> None:
        if is_same(source, path):
            raise shutil.SameFileError(errno.EINVAL, "is the source itself", str(path))
        if path.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "is a file; several files need a folder", str(path))
        there = list(path.iterdir())
        self._key = key
        if there and not overwrite and not any(map(self._is_same_conversion, there)):
            raise FileExistsError(errno.EEXIST, "exists already, and is not empty", str(path))
        self.path = path
        self._there = {entry for entry in there if entry.is_file()}
        self._written: dict[RemotePath, object] = {}
        self._index: RemotePath | None = None
        self._old_index: bytes | None = None

    def announce(self, index: Place) -> None:
        """Say in the place of an index that the folder is not whole. It is the last to be written."""
        assert isinstance(index, RemotePath)
        self._old_index = index.read_bytes() if index in self._there else None
        self._index = index
        self._write(index, json.dumps({UNFINISHED: _WHY, "key": self._key}).encode() + b"\n")

    @contextmanager
    def writing(self, file: Place) -> Iterator[Place]:
        """Where to write what will be `file`: there."""
        assert isinstance(file, RemotePath)
        self._written[file] = file.identity() if file in self._there else None
        yield file

    def commit(self, weights: Sequence[Place], indexes: Sequence[Place], obsolete: Sequence[Place]) -> None:
        """Remove what an earlier model leaves behind. All new files are there, the index as the last of them.

        Args:
            weights, indexes: of the files written, those that hold weights, and those that say which these are.
            obsolete: files of the folder that are to go.
        """
        for path in obsolete:
            path.unlink(missing_ok=True)
        if self._index is not None and self._index not in indexes:
            self._index.unlink(missing_ok=True)

    def _is_same_conversion(self, index: RemotePath) -> bool:
        """Whether an index says that the same was to be written here."""
        if self._key is None or not index.name.endswith(".index.json"):
            return False
        try:
            said = json.loads(index.read_bytes())
        except ValueError:
            return False
        return isinstance(said, dict) and UNFINISHED in said and said.get("key") == self._key

    def _write(self, path: RemotePath, content: bytes) -> None:
        with destination(path) as sink:
            sink.write(content)

    def __enter__(self) -> StoreFolder:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self._index is None or self._key is not None:
            return
        is_mixed = True
        with suppress(OSError):  # the error itself is worth more; an index that is left says what the folder is
            is_mixed = any(before is not None and path.identity() != before for path, before in self._written.items())
            for path, before in self._written.items():
                if before is None and path != self._index:
                    path.unlink(missing_ok=True)
            if not is_mixed and self._old_index is not None:
                self._write(self._index, self._old_index)
            elif not is_mixed:
                self._index.unlink(missing_ok=True)
        if is_mixed and isinstance(error, OSError) and error.strerror:
            error.strerror = f"{error.strerror}; {self.path} is incomplete now"
