"""Turns checkpoints of one format into the other, file by file, tile by tile.

A converted folder has a file X.sparsefmt for each X.safetensors, or the other way round, and an index with the same
metadata if there was one or there are several files. What else belongs to a model of Hugging Face is copied; see
`huggingface`. Where an index file is given instead of its folder, the weights alone are converted. Nothing takes its
place before all of it is whole; see `staging`. Weights that an earlier model has left in the folder are removed then.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsefmt.adapters import Rows, Survey
from sparsefmt.checkpoints import cards, huggingface
from sparsefmt.checkpoints.checkpoint import Checkpoint, FileFormat, index_name, saved_weights
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.safetensors_file import write_safetensors
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.staging import StagedFolder
from sparsefmt.container.atomic import replacing
from sparsefmt.container.entry import TensorEntry
from sparsefmt.errors import in_file
from sparsefmt.layouts.entries import Entries
from sparsefmt.tensor_writer import NegativeZeros, TensorWriter

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
        name: of the tensor.
        entry: in the index; of a copy, that of what it is a copy of.
        survey: its zeros, as they were.
        is_copy: whether it has the elements of another tensor, and is stored as a copy of that.
        stored_nbytes: of all its chunks; 0 for a copy.
        sign_nbytes: of those, what the signs of negative zeros take.
    """

    name: str
    entry: TensorEntry
    survey: Survey
    is_copy: bool
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
    """Convert safetensors, or files of torch, to .sparsefmt: a file to the file `destination`, a folder to that folder.

    Holds a few tiles in memory. On failure, all files are what they were. With `overwrite`, a folder holds no other
    model afterwards: weights and indexes of an earlier one are removed. Files that may be anybody's are left alone.

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
        return file.names

    _write_checkpoint(source, destination, "sparsefmt", overwrite, write)
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
        matrices = {name: file.rows_of(name) for name in file.names}
        if isinstance(file, SparsefmtFile):
            file.reader.budget.ask(sum(matrix.dense_nbytes for matrix in matrices.values()))
        with replacing(path) as sink:
            write_safetensors(sink, matrices, file.metadata, progress=progress, threads=threads)
        return file.names

    _write_checkpoint(source, destination, "safetensors", overwrite, write)


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
            again=source.rows_of,
            progress=progress,
        )
        for name in source.names:
            if name in source.aliases:
                writer.add_alias(name, source.aliases[name])
                if progress:
                    progress(source.rows_of(name).dense_nbytes)
                continue
            matrix = _SurveyedRows(source.rows_of(name))
            surveys[name] = matrix.survey(settings.threads)
            writer.add(name, matrix)
        index = writer.finish()

    def converted(name: str) -> ConvertedTensor:
        entry, is_copy = index.entry(name), name in index.copies
        sizes = (0, 0) if is_copy else (index.stored_nbytes(entry), index.sign_nbytes(entry))
        return ConvertedTensor(name, entry, surveys[name], is_copy, *sizes)

    return [converted(name) for name in surveys]


class _SurveyedRows(Rows):
    """Rows that are surveyed once, however often it is asked."""

    def __init__(self, inner: Rows) -> None:
        super().__init__(inner.dtype, inner.shape)
        self._inner = inner
        self.is_sparse = inner.is_sparse
        self._survey: Survey | None = None
        super().stack(inner.row_dims)

    def stack(self, row_dims: int) -> None:
        super().stack(row_dims)
        self._inner.stack(row_dims)
        self._survey = None

    def bits(self, begin: int, end: int) -> np.ndarray:
        return self._inner.bits(begin, end)

    def entries(self, begin: int, end: int) -> Entries:
        return self._inner.entries(begin, end)

    def survey(self, threads: int | None = None) -> Survey:
        if self._survey is None:
            self._survey = self._inner.survey(threads)
        return self._survey


def targets_of(source: Checkpoint, destination: Path, new: FileFormat) -> dict[Path, Path]:
    """Which file each file of a checkpoint is written to, a single file to `destination` itself."""
    if not source.is_folder:
        return {source.files[0].path: destination}
    # transformers has two names for the files of a model, by what they are
    stems = {file.path: re.sub(r"^pytorch_model(?=-|$)", "model", file.path.stem) for file in source.files}
    return {path: destination / f"{stem}.{new}" for path, stem in stems.items()}


def _write_checkpoint(
    source: Checkpoint,
    destination: Path,
    new: FileFormat,
    overwrite: bool,
    write: Callable[[TensorFile, Path], list[str]],
) -> None:
    """Have each file of the source written where it belongs, and for a folder, what else belongs to it.

    Args:
        write: writes one file and returns the names of the tensors that it then has.
    """
    targets = targets_of(source, destination, new)
    if not source.is_folder:
        _expect_free(destination, source.files[0].path, overwrite)
        with in_file(source.path):
            write(source.files[0], destination)
        return
    model = huggingface.read_model_folder(source.path, destination) if source.path.is_dir() else None
    config = _config(model, new, bool(source.folded))
    with StagedFolder(destination, source.folder, overwrite) as folder:
        obsolete = _obsolete(source, destination, new)
        others = unlisted_files(source, destination, new, obsolete)
        for path, target in targets.items():
            _expect_free(target, path, overwrite)
        if model is not None:
            for path in (*model.companions, Path(huggingface.CONFIG)):
                _expect_free(destination / path, model.path / path, overwrite)
            _expect_writable(destination / model.card)
        weight_map: dict[str, str] = {}
        for file in source.files:
            target = targets[file.path]
            with in_file(file.path), folder.writing(target) as path:
                weight_map.update(dict.fromkeys(write(file, path), target.name))
        indexes = []
        # where readers would take others for a part of the model, an index says that they are not
        if source.index is not None or len(source.files) > 1 or others:
            fields = source.index.fields if source.index else {"metadata": {"total_size": source.dense_nbytes}}
            content = {**fields, "weight_map": dict(sorted(weight_map.items()))}
            name = index_name(source.index.path, source.file_format, new) if source.index else f"model.{new}.index.json"
            indexes.append(destination / name)
            with folder.writing(indexes[0]) as path:
                _write_whole(path, _encode_index(content))
        if model is not None:
            for companion in model.companions:
                if companion != model.card:
                    with folder.writing(destination / companion) as path:
                        huggingface.copy_file(model.path / companion, path)
            card = _card(model, destination, new)
            if card is not None:
                with folder.writing(destination / model.card) as path:
                    _write_whole(path, card)
            elif (destination / model.card).is_file():
                obsolete.append(destination / model.card)
            with folder.writing(destination / huggingface.CONFIG) as path:
                _write_whole(path, config)
        folder.commit(list(targets.values()), indexes, [path for path in obsolete if path not in indexes])


def _obsolete(source: Checkpoint, destination: Path, new: FileFormat) -> list[Path]:
    """What of an earlier model is in the folder to be written to, and is not written anew: weights and indexes.

    Raises:
        SameFileError: the source is made of links to one of them.
        PermissionError: one is write-protected.
    """
    targets = targets_of(source, destination, new)
    sources = [*targets, *([source.index.path] if source.index else [])]
    obsolete = [path for path in saved_weights(destination) if path not in targets.values()]
    for path in obsolete:
        if path.exists() and any(os.path.samefile(file, path) for file in sources):
            raise shutil.SameFileError(errno.EINVAL, "is the source itself", str(path))
        _expect_writable(path)
    return obsolete


def unlisted_files(source: Checkpoint, destination: Path, new: FileFormat, obsolete: Sequence[Path] = ()) -> list[Path]:
    """Files of the new format in the folder `destination` that may be anybody's, and are no part of the model there."""
    known = {*targets_of(source, destination, new).values(), *obsolete}
    return sorted(path for path in destination.iterdir() if path.suffix == f".{new}" and path not in known)


def _config(model: huggingface.ModelFolder | None, new: FileFormat, folded: bool) -> bytes:
    if model is None:
        return b""
    return model.config_for_sparsefmt(folded) if new == "sparsefmt" else model.config_for_safetensors()


def _card(model: huggingface.ModelFolder, destination: Path, new: FileFormat) -> bytes | None:
    """README.md of the new folder: made of that of the source, or of the one that is there; None if there is none."""
    # one that is a link to nowhere is an error, as for any other file
    from_source = model.card in model.companions
    path = (model.path if from_source else destination) / model.card
    old = path.read_bytes() if from_source or path.is_file() else b""
    if new == "sparsefmt":
        return model.card_for_sparsefmt(old)
    kept = cards.without_section(old)
    return kept if kept or (from_source and not old) else None


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
    _expect_writable(destination)


def _expect_writable(path: Path) -> None:
    """Refuse to replace or remove what its owner has protected, though its folder is not."""
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "is write-protected", str(path))
