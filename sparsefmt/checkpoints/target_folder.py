"""Where converted files go: to one file, or into a folder with all that belongs to a model.

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
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sparsefmt.checkpoints import cards, huggingface
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.formats import FileFormat, index_name
from sparsefmt.checkpoints.saved_weights import saved_weights
from sparsefmt.checkpoints.staging import StagedFolder
from sparsefmt.container.atomic import replacing
from sparsefmt.errors import in_file


def targets_of(source: Checkpoint, destination: Path, new: FileFormat) -> dict[Path, Path]:
    """Which file each file of a checkpoint is written to, a single file to `destination` itself."""
    if not source.is_folder:
        return {source.files[0].path: destination}
    # transformers has two names for the files of a model, by what they are
    stems = {file.path: re.sub(r"^pytorch_model(?=-|$)", "model", file.path.stem) for file in source.files}
    return {path: destination / f"{stem}.{new}" for path, stem in stems.items()}


class FilesWriter:
    """Writes the files of a checkpoint, one after the other.

    Attributes:
        key: as of a StagedFolder.
    """

    key: str | None = None

    def __init__(self, write: Callable[[TensorFile, Path], list[str]]) -> None:
        """`write` writes one file and returns the names of the tensors that it then has."""
        self._write = write

    def __call__(self, files: Sequence[tuple[TensorFile, Path]]) -> Iterable[list[str]]:
        """Write each file to its path, and give the names of its tensors, in order."""
        for file, path in files:
            with in_file(file.path):
                yield self._write(file, path)


def write_checkpoint(
    source: Checkpoint, destination: Path, new: FileFormat, overwrite: bool, write: FilesWriter
) -> None:
    """Have each file of the source written where it belongs, and for a folder, what else belongs to it."""
    targets = targets_of(source, destination, new)
    if not source.is_folder:
        _expect_free(destination, source.files[0].path, overwrite)
        for _ in write([(source.files[0], destination)]):
            pass
        return
    model = huggingface.read_model_folder(source.path, destination) if source.path.is_dir() else None
    config = _config(model, new, bool(source.folded))
    if new == "sparsefmt" and model is not None and model.quantization is not None:
        source.check_quantized(model.quantization)
    with StagedFolder(destination, source.folder, overwrite, write.key) as folder:
        obsolete = _obsolete(source, destination, new)
        others = unlisted_files(source, destination, new, obsolete)
        for path, target in targets.items():
            _expect_free(target, path, overwrite)
        if model is not None:
            for path in (*model.companions, Path(huggingface.CONFIG)):
                _expect_free(destination / path, model.path / path, overwrite)
            _expect_writable(destination / model.card)
        weight_map: dict[str, str] = {}
        with ExitStack() as stack:
            places = [(file, stack.enter_context(folder.writing(targets[file.path]))) for file in source.files]
            for file, names in zip(source.files, write(places), strict=True):
                weight_map.update(dict.fromkeys(names, targets[file.path].name))
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
    """Files of the new format in the folder `destination` that may be anybody's: they are not part of the model."""
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
