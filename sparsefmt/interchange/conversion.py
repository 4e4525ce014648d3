"""Turns checkpoints of one format into the other, file by file, tile by tile.

A converted folder has a file X.sparsefmt for each X.safetensors, or the other way round, and an index with the same
metadata if there was one or there are several files. The index is written after them. What else belongs to a model of
Hugging Face is copied after that, and config.json comes last; see `huggingface`. Where an index file is given instead
of its folder, the weights alone are converted.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sparsefmt.container.atomic import replacing
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.index import Index
from sparsefmt.intake import Intake, Survey
from sparsefmt.interchange import huggingface
from sparsefmt.interchange.checkpoints import Checkpoint, Kind, index_name
from sparsefmt.interchange.contract import TensorFile, naming
from sparsefmt.interchange.safetensors import write_safetensors
from sparsefmt.interchange.sparse import SparsefmtFile
from sparsefmt.layouts.contract import NEGATIVE_ZEROS
from sparsefmt.saving import NegativeZeros, TensorWriter

Progress = Callable[[int], object]
"""Called with the dense bytes of each tile done."""


@dataclass(frozen=True)
class Settings:
    """How to write .sparsefmt files; as the arguments of `sparsefmt.save_file`."""

    layout: str = "auto"
    codec: str = "auto"
    negative_zeros: NegativeZeros = "keep"
    threads: int | None = None


@dataclass(frozen=True)
class ConvertedTensor:
    """What became of one tensor.

    Attributes:
        survey: its zeros, as they were.
        stored_nbytes: of all its chunks.
        sign_nbytes: of those, what the signs of negative zeros take.
    """

    entry: TensorEntry
    survey: Survey
    stored_nbytes: int
    sign_nbytes: int


def convert_checkpoint(
    source: Checkpoint,
    destination: Path,
    settings: Settings,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[ConvertedTensor]:
    """Convert safetensors to .sparsefmt: a file to the file `destination`, a folder to that folder.

    Holds a few tiles in memory. On failure, no file is there that was not there before; with `overwrite`, each old file
    of a folder is whole, old or new.

    Raises:
        FileExistsError: the destination exists, and not `overwrite`.
        SparsefmtError: a tensor that cannot be stored, a damaged source, or a config.json that says that the weights
            are quantized.
        OSError: the disk is full, a file cannot be read, the destination is the source, ….
    """
    converted: list[ConvertedTensor] = []

    def write(file: TensorFile, path: Path) -> list[str]:
        tensors = convert_file(file, path, settings, progress)
        converted.extend(tensors)
        return [tensor.entry.name for tensor in tensors]

    _write_checkpoint(source, destination, "safetensors", "sparsefmt", overwrite, write)
    return converted


def export_checkpoint(
    source: Checkpoint,
    destination: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Convert .sparsefmt to safetensors; otherwise as `convert_checkpoint`. Tied tensors are written in full, each.

    Raises:
        LimitError: a file would become larger than `max_decoded_bytes` of the checkpoint.
        as `convert_checkpoint`.
    """

    def write(file: TensorFile, path: Path) -> list[str]:
        intakes = {name: file.intake(name) for name in file.names}
        if isinstance(file, SparsefmtFile):
            file.reader.budget.expect(sum(intake.dense_nbytes for intake in intakes.values()))
        with replacing(path) as sink:
            write_safetensors(sink, intakes, file.metadata, progress=progress, threads=threads)
        return list(intakes)

    _write_checkpoint(source, destination, "sparsefmt", "safetensors", overwrite, write)


def convert_file(
    source: TensorFile, destination: Path, settings: Settings, progress: Progress | None = None
) -> list[ConvertedTensor]:
    """Convert one file, its tensors in the order of the source. Each is read twice: to count zeros, then to store."""
    surveys: dict[str, Survey] = {}
    with replacing(destination) as sink:
        writer = TensorWriter(
            sink,
            source.metadata,
            layout=settings.layout,
            codec=settings.codec,
            negative_zeros=settings.negative_zeros,
            threads=settings.threads,
            progress=progress,
        )
        for name in source.names:
            intake = _SurveyedIntake(source.intake(name))
            surveys[name] = intake.survey(settings.threads)
            writer.add(name, intake)
        index = writer.finish()
    return [
        ConvertedTensor(entry := index.entry(name), survey, index.stored_nbytes(entry), _sign_nbytes(index, entry))
        for name, survey in surveys.items()
    ]


class _SurveyedIntake(Intake):
    """An intake that is surveyed once, however often it is asked."""

    def __init__(self, inner: Intake) -> None:
        super().__init__(inner.dtype, inner.shape)
        self._inner = inner
        self._survey: Survey | None = None

    def bits(self, begin: int, end: int) -> np.ndarray:
        return self._inner.bits(begin, end)

    def survey(self, threads: int | None = None) -> Survey:
        if self._survey is None:
            self._survey = super().survey(threads)
        return self._survey


def _sign_nbytes(index: Index, entry: TensorEntry) -> int:
    if NEGATIVE_ZEROS not in entry.codecs:
        return 0
    return sum(int(index.chunk(entry, tile, NEGATIVE_ZEROS)["stored"]) for tile in range(entry.tiles))


def _write_checkpoint(
    source: Checkpoint,
    destination: Path,
    old: Kind,
    new: Kind,
    overwrite: bool,
    write: Callable[[TensorFile, Path], list[str]],
) -> None:
    """Have each file of the source written where it belongs, then write the index. On failure, undo what is new.

    Args:
        write: writes one file and returns the names of the tensors that it then has.
    """
    if not source.is_folder:
        _expect_free(destination, source.files[0].path, overwrite)
        with naming(source.path):
            write(source.files[0], destination)
        return
    targets = {file.path: destination / f"{file.path.stem}.{new}" for file in source.files}
    index_path = destination / (index_name(source.index.path, old, new) if source.index else f"model.{new}.index.json")
    model = huggingface.read_model_folder(source.path, destination) if source.path.is_dir() else None
    config = _config(model, new, bool(source.folded))
    with _Folder(destination, source.folder, overwrite) as folder:
        for path, target in targets.items():
            _expect_free(target, path, overwrite)
        if model is not None:
            for path in (*model.companions, Path(huggingface.CONFIG)):
                _expect_free(destination / path, model.path / path, overwrite)
        # an old index would vouch for what is half replaced
        index_path.unlink(missing_ok=True)
        weight_map: dict[str, str] = {}
        for file in source.files:
            target = folder.add(targets[file.path])
            with naming(file.path):
                weight_map.update(dict.fromkeys(write(file, target), target.name))
        if source.index is not None or len(source.files) > 1:
            fields = source.index.fields if source.index else {"metadata": {"total_size": source.dense_nbytes}}
            content = {**fields, "weight_map": dict(sorted(weight_map.items()))}
            _write_whole(folder.add(index_path), _encode_index(content))
        if model is not None:
            for path in model.companions:
                huggingface.copy_file(model.path / path, folder.add(destination / path))
            _write_whole(folder.add(destination / huggingface.CONFIG), config)


def _config(model: huggingface.ModelFolder | None, new: Kind, folded: bool) -> bytes:
    if model is None:
        return b""
    return model.config_for_sparsefmt(folded) if new == "sparsefmt" else model.config_for_safetensors()


def _write_whole(path: Path, content: bytes) -> None:
    with replacing(path) as sink:
        sink.write(content)


def _encode_index(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _expect_free(destination: Path, source: Path, overwrite: bool) -> None:
    if not os.path.lexists(destination):
        return
    if destination.exists() and os.path.samefile(source, destination):
        raise shutil.SameFileError(errno.EINVAL, "is the source itself", str(destination))
    if destination.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name the file to write", str(destination))
    if not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already", str(destination))


class _Folder:
    """A folder to write to. On failure, the files and folders that were added are removed again.

    Raises:
        OSError: it is a file, or the source; or it has something in it, and not `overwrite`.
    """

    def __init__(self, path: Path, source: Path, overwrite: bool) -> None:
        if path.exists():
            if not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "is a file; several files need a folder", str(path))
            if os.path.samefile(source, path):
                raise shutil.SameFileError(errno.EINVAL, "is the source itself", str(path))
            if not overwrite and any(path.iterdir()):
                raise FileExistsError(errno.EEXIST, "exists already, and is not empty", str(path))
        self.path = path
        self._made: list[Path] = []

    def add(self, file: Path) -> Path:
        """The same path, of a file that may now be written: its folder is there."""
        if not file.exists():
            self._made.append(file)
        self._make_folder(file.parent)
        return file

    def _make_folder(self, path: Path) -> None:
        missing = [folder for folder in (path, *path.parents) if self.path in (folder, *folder.parents)]
        self._made += [folder for folder in missing if not folder.exists()][::-1]
        path.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> _Folder:
        self._make_folder(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        folders = [path for path in self._made if path.is_dir() and not path.is_symlink()]
        for path in self._made:
            if path not in folders:
                path.unlink(missing_ok=True)
        for path in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):
                path.rmdir()
