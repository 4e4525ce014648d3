"""Machine code that numba keeps on disk for the next process: where it is, and which sources it belongs to.

It is in the user's cache folder, or in NUMBA_CACHE_DIR. It is not beside the sources, where it would stay behind when
the package is uninstalled, and Python would take the remaining folders for a package.

numba notices when the file of a function is edited. An intrinsic, a jitted function or a constant of another file is
compiled into the function too. Therefore the name of its code contains a digest of its file, of
all files of this package that it imports from, and of the instruction set. Two versions of the package, or two
instruction sets, have different names, and can use one folder at the same time.

There is one file for each function, types of arguments and constants. numba's own cache has an index for each function:
of two processes that add code at the same time, one can lose its entry, or get the code of the other under it.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import platformdirs
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator
from numba.core.runtime import rtsys

from sparsefmt.isa import ISA
from sparsefmt.jit_library import Use, rebuilt

PACKAGE = Path(__file__).parent

SUFFIX = ".nbc"
"""Of files with code; numba writes them under longer names first."""

UNUSED_DAYS = 90
"""Days after which code that nobody has read or written is removed, when other code is added."""

_IMPORT = re.compile(r"^from sparsefmt([\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)


def folder() -> Path:
    """The folder in which machine code is kept. It may not exist, or not be writable."""
    folder = config.CACHE_DIR
    return Path(folder) / "sparsefmt" if folder else Path(platformdirs.user_cache_dir("sparsefmt", False)) / "kernels"


@cache
def _is_writable(path: Path) -> bool:
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return False
    return True


def _imported_files(source: str) -> Iterator[Path]:
    """Files of this package that a source imports from at its head."""
    for module, names in _IMPORT.findall(source):
        path = PACKAGE.joinpath(*module.split("."))
        for candidate in (path, *(path / name for name in re.findall(r"\w+", names))):
            for file in (candidate.with_suffix(".py"), candidate / "__init__.py"):
                if file.is_file():
                    yield file


@cache
def _source(file: Path) -> tuple[bytes, list[Path]]:
    """A digest of a source file, and the files that it imports. Files of kernels mostly import the same ones.

    Raises:
        OSError: the source is not a file.
    """
    source = file.read_bytes()
    return hashlib.sha256(source).digest(), list(_imported_files(source.decode()))


@cache
def digest(file: Path) -> str:
    """A digest of a source file, of all files that it imports, and of the compiler.

    Raises:
        OSError: the sources are not files.
    """
    seen, waiting = {}, [file]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen[path], imported = _source(path)
            waiting += imported
    whole = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {ISA}".encode())
    for path in sorted(seen):
        whole.update(seen[path])
    return whole.hexdigest()[:16]


class _Locator(_CacheLocator):
    """Tells numba the folder for the code of a function, and what its file name has to contain."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file, self._line = file, function.__code__.co_firstlineno
        self._digest = digest(Path(file))

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _Locator | None:
        try:
            return cls(py_func, py_file) if _is_writable(folder()) else None
        except OSError:
            return None

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return self._digest

    def get_disambiguator(self) -> str:
        return f"{self._line}-{self._digest}"


class _Found(CompileResultCacheImpl):
    _locator_classes = (_Locator,)

    def rebuild(self, target_context: Any, payload: Any) -> Any:
        return rebuilt(target_context, payload)


class _Files(IndexDataCacheFile):
    """The files of one function. Safe to use from many processes: each is replaced as a whole.

    A key says all that the code depends on, besides the digest: types, processor, bytecode, constants.
    """

    def save(self, key: Any, data: Any) -> None:
        """Raises OSError."""
        self._save_data(self._name_of(key), (key, data))

    def load(self, key: Any) -> Any | None:
        """None if there is no code, or none that can be read."""
        try:
            found, code = self._load_data(self._name_of(key))
        except Exception:  # a damaged file may raise anything; the code is compiled again then
            return None
        return code if found == key else None

    def _name_of(self, key: Any) -> str:
        return self._data_name_pattern.format(number=int(hashlib.sha256(repr(key).encode()).hexdigest()[:15], 16))


class Cache(FunctionCache):
    """The code of one function.

    Attributes:
        use: what code that is asked for, or kept, is for.

    Raises:
        RuntimeError: there is no place for it.
    """

    _impl_class = _Found

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.use = Use.PYTHON
        base, stamp = self._impl.filename_base, self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any | None:
        """The code for a signature; None if it is not there.

        numba would load all that it needs to compile, which takes longer than all else, before it looks.
        """
        rtsys.initialize(target_context)  # which jitted code takes memory from
        code = self._load_overload(sig, target_context)
        if code is not None:
            code.library.use = self.use
        return code

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code for a signature, unless the disk is full or the folder is gone."""
        with suppress(OSError):
            _remove_unused(folder())
            super().save_overload(sig, data)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return super()._index_key(sig, codegen), int(self.use)


@cache
def _remove_unused(path: Path) -> None:
    """Done once in a process. Without it, code of former versions would be kept forever."""
    limit = time.time() - UNUSED_DAYS * 24 * 3600
    for entry in os.scandir(path):
        with suppress(OSError):
            state = entry.stat()
            if SUFFIX in entry.name and max(state.st_atime, state.st_mtime) < limit:
                os.unlink(entry)
