"""A folder whose new files are written aside, and take their places together when all of them are whole.

    DESTINATION/.converting-<random>.sparsefmt-tmp/     new files, by their paths below DESTINATION

Until then the folder is what it was; a failure removes the folder within it. The next process that writes to the same
folder removes what a killed one has left: the inner folder is locked for as long as its writer lives. A writer that can
go on where it was cut off names the inner folder by what it writes, and finds there what it had finished. The files
take their places in an order of which every beginning is either the old model or a folder that readers refuse: see
`commit`.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from sparsefmt.container.atomic import TEMPORARY_SUFFIX
from sparsefmt.container.remote_path import Place

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\.converting-[0-9a-f]{16}" + re.escape(TEMPORARY_SUFFIX))


class StagedFolder:
    """A folder to be filled, or filled anew. It is as it was unless `commit` is called.

    Args:
        path: the folder; it is made if it is not there.
        source: the folder that is read meanwhile; None if none is.
        overwrite: whether the folder may have something in it.
        key: 16 hex digits that name what is to be written. New files stay aside after a failure then, and are there
            again for the next one with this key.

    Raises:
        OSError: it is a file, or the source; or it has something in it, and not `overwrite`.
    """

    def __init__(self, path: Path, source: Path | None, overwrite: bool, key: str | None = None) -> None:
        self.path, self._key = path, key
        self._inner = path / f".converting-{key or secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        if path.exists():
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "is a file; several files need a folder", str(path))
            if source is not None and os.path.samefile(source, path):
                raise shutil.SameFileError(errno.EINVAL, "is the source itself", str(path))
            _remove_abandoned(path, self._inner)
            if not overwrite and any(entry != self._inner for entry in path.iterdir()):
                raise FileExistsError(errno.EEXIST, "exists already, and is not empty", str(path))
        self._lock = -1
        self._is_done = self._is_others = False
        self._is_new = not path.exists()
        self._staged: list[Path] = []

    def announce(self, index: Path) -> None:
        """Nothing has to be said of what is written aside: `index` is what `StoreFolder.announce` takes."""

    @contextmanager
    def writing(self, file: Path) -> Iterator[Path]:
        """Where to write what will become `file`, a path below the folder. Errors have the name `file`."""
        inner = self._aside(file)
        try:
            inner.parent.mkdir(parents=True, exist_ok=True)
            yield inner
        except OSError as error:
            if error.filename is not None and os.fspath(error.filename) == str(inner):
                error.filename = str(file)
            raise
        self._staged.append(file)

    @contextmanager
    def filling(self) -> Iterator[Path]:
        """A folder for others to write to: all files that are there afterwards belong to the new ones."""
        yield self._inner
        for inner in sorted(self._inner.rglob("*")):
            file = self.path / inner.relative_to(self._inner)
            if not inner.is_dir() and file not in self._staged:
                _sync(inner)
                self._staged.append(file)

    @property
    def files(self) -> list[Path]:
        """The new files, by the paths that they will have."""
        return list(self._staged)

    def switch(self, weights: Sequence[Path], indexes: Sequence[Path], config: Path, obsolete: Sequence[Path]) -> None:
        """Put the new files in their places where `config` is what says which weights are the model.

        A process that is killed in between leaves the old model or the new one: until the new config is there, nobody
        looks at the new weights, and afterwards, nobody at the old ones.

        Args:
            weights, indexes, config: of the files written.
            obsolete: files of the folder that are to go, once the new config is there.
        """
        last = (*weights, *indexes, config)
        for path in (*weights, *indexes, *(path for path in self._staged if path not in last), config):
            if path in self._staged:
                self._put(path)
        _sync(self.path)
        for path in obsolete:
            path.unlink(missing_ok=True)
        _sync(self.path)

    def commit(self, weights: Sequence[Path], indexes: Sequence[Path], obsolete: Sequence[Path]) -> None:
        """Put the new files in their places, and remove what an earlier model leaves behind.

        The old weights go first, while the old index still names them; then the new index comes, which names files that
        are not there yet; the new weights come last. A process that is killed in between leaves a folder of which a
        file is missing.

        Args:
            weights, indexes: of the files written, those that hold weights, and those that say which these are.
            obsolete: files of the folder that are to go.
        """
        old_indexes = [path for path in obsolete if path.suffix == ".json"]
        is_whole = True
        try:
            for path in (*(path for path in obsolete if path not in old_indexes), *weights):
                path.unlink(missing_ok=True)
                is_whole = False
            for path in indexes:
                self._put(path)
            for path in old_indexes:
                path.unlink(missing_ok=True)
            for path in self._staged:
                if path not in indexes and path not in weights:
                    self._put(path)
            for path in weights:
                self._put(path)
        except OSError as error:
            if not is_whole:
                error.strerror = f"{error.strerror}; {self.path} is incomplete now"
            raise
        self._is_done = True
        for folder in {self.path, *(path.parent for path in self._staged)}:
            _sync(folder)

    def _aside(self, file: Path) -> Path:
        return self._inner / file.relative_to(self.path)

    def _put(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # there is no old file, or the system does not allow it
            old = os.stat(file)
            os.chmod(self._aside(file), stat.S_IMODE(old.st_mode))
            if hasattr(os, "chown"):
                os.chown(self._aside(file), old.st_uid, old.st_gid)
        os.replace(self._aside(file), file)

    def __enter__(self) -> StagedFolder:
        try:
            self._begin()
        except BaseException as error:  # an interrupt may come between any two steps
            self.__exit__(type(error), error, None)
            raise
        return self

    def _begin(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._inner.mkdir(exist_ok=self._key is not None)
        except OSError as error:
            error.filename = str(self.path)
            raise
        if fcntl is not None:
            self._lock = os.open(self._inner, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                self._lock = -1
                self._is_others = True
                words = "another process is converting the same to it"
                raise BlockingIOError(errno.EAGAIN, words, str(self.path)) from None
            except OSError:
                return  # the file system has no locks

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if (self._key is None or self._is_done) and not self._is_others:
            shutil.rmtree(self._inner, ignore_errors=True)
        elif not self._is_others:
            with suppress(OSError):  # there is something to go on with
                self._inner.rmdir()
        if self._lock >= 0:
            os.close(self._lock)
        if error is not None and self._is_new:
            with suppress(OSError):
                self.path.rmdir()


def is_unfinished(folder: Place) -> bool:
    """Whether somebody is filling a folder, or was killed while doing so."""
    return any(_NAME.fullmatch(entry.name) for entry in folder.iterdir())


def _remove_abandoned(folder: Path, own: Path) -> None:
    if fcntl is None:
        return
    for entry in folder.iterdir():
        if entry != own and _NAME.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            with suppress(OSError):
                descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _sync(path: Path) -> None:
    """Make the content of a file, or the renames in a folder, durable, where the system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
