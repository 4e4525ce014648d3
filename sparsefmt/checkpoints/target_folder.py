"""Where converted files go: to one file, or into a folder with all that belongs to a model.

A converted folder has a file X.sparsefmt for each X.safetensors, or the other way round, and an index with the same
metadata if there was one or there are several files. What else belongs to a model of Hugging Face is copied; see
`huggingface`. Where an index file is given instead of its folder, the weights alone are converted. Nothing takes its
place before all of it is whole; see `staging`, and `store_folder` for stores, which have no renames. Weights that an
earlier model has left in the folder are removed then.
"""

from __future__ import annotations

import errno
import json
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
from sparsefmt.checkpoints.store_folder import StoreFolder
from sparsefmt.container.file_objects import destination as writing
from sparsefmt.container.remote_path import Place, RemotePath, is_protected, is_same, is_there
from sparsefmt.errors import in_file


def targets_of(source: Checkpoint, destination: Place, new: FileFormat) -> dict[Place, Place]:
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

    def __init__(self, write: Callable[[TensorFile, Place], list[str]]) -> None:
        """`write` writes one file and returns the names of the tensors that it then has."""
        self._write = write

    def __call__(self, files: Sequence[tuple[TensorFile, Place]]) -> Iterable[list[str]]:
        """Write each file to its place, and give the names of its tensors, in order."""
        for file, place in files:
            with in_file(file.path):
                yield self._write(file, place)


def write_checkpoint(
    source: Checkpoint, destination: Place, new: FileFormat, overwrite: bool, write: FilesWriter
) -> None:
    """Have each file of the source written where it belongs, and for a folder, what else belongs to it.

    Args:
        write: called once, with all files.

    Raises:
        OSError: what is there is in the way, or cannot be written.
        as `write`, and as reading the source.
    """
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
    with _folder(source, destination, overwrite, write.key) as folder:
        obsolete = _obsolete(source, destination, new)
        others = unlisted_files(source, destination, new, obsolete)
        if isinstance(folder, StagedFolder):  # an object of a store is not protected, and is no folder
            for path, target in targets.items():
                _expect_free(target, path, overwrite)
            if model is not None:
                for path in (*model.companions, Path(huggingface.CONFIG)):
                    _expect_free(destination / path, model.path / path, overwrite)
                _expect_writable(destination / model.card)
        name = index_name(source.index.path, source.file_format, new) if source.index else f"model.{new}.index.json"
        index: Place = destination / name
        folder.announce(index)
        weight_map: dict[str, str] = {}
        with ExitStack() as stack:
            places = [(file, stack.enter_context(folder.writing(targets[file.path]))) for file in source.files]
            for file, names in zip(source.files, write(places), strict=True):
                weight_map.update(dict.fromkeys(names, targets[file.path].name))
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
        indexes: list[Place] = []
        # where readers would take others for a part of the model, an index says that they are not
        if source.index is not None or len(source.files) > 1 or others:
            fields = source.index.fields if source.index else {"metadata": {"total_size": source.dense_nbytes}}
            indexes.append(index)
            with folder.writing(index) as path:
                _write_whole(path, _encode_index({**fields, "weight_map": dict(sorted(weight_map.items()))}))
        folder.commit(list(targets.values()), indexes, [path for path in obsolete if path not in indexes])


def _folder(source: Checkpoint, destination: Place, overwrite: bool, key: str | None) -> Any:
    """A StagedFolder, or a StoreFolder, which has the same methods."""
    if isinstance(destination, RemotePath):
        return StoreFolder(destination, source.folder, overwrite, key)
    return StagedFolder(destination, source.folder if isinstance(source.folder, Path) else None, overwrite, key)


def _obsolete(source: Checkpoint, destination: Place, new: FileFormat) -> list[Place]:
    """What of an earlier model is in the folder to be written to, and is not written anew: weights and indexes.

    Raises:
        SameFileError: the source is made of links to one of them.
        PermissionError: one is write-protected.
    """
    targets = targets_of(source, destination, new)
    sources = [*targets, *([source.index.path] if source.index else [])]
    obsolete = [path for path in saved_weights(destination) if path not in targets.values()]
    for path in obsolete:
        if (isinstance(path, RemotePath) or path.exists()) and any(is_same(file, path) for file in sources):
            raise shutil.SameFileError(errno.EINVAL, "is the source itself", str(path))
        _expect_writable(path)
    return obsolete


def unlisted_files(
    source: Checkpoint, destination: Place, new: FileFormat, obsolete: Sequence[Place] = ()
) -> list[Place]:
    """Files of the new format in the folder `destination` that may be anybody's: they are not part of the model."""
    known = {*targets_of(source, destination, new).values(), *obsolete}
    return sorted(path for path in destination.iterdir() if path.suffix == f".{new}" and path not in known)


def _config(model: huggingface.ModelFolder | None, new: FileFormat, folded: bool) -> bytes:
    if model is None:
        return b""
    return model.config_for_sparsefmt(folded) if new == "sparsefmt" else model.config_for_safetensors()


def _card(model: huggingface.ModelFolder, destination: Place, new: FileFormat) -> bytes | None:
    """README.md of the new folder: made of that of the source, or of the one that is there; None if there is none."""
    # one that is a link to nowhere is an error, as for any other file
    from_source = model.card in model.companions
    path = (model.path if from_source else destination) / model.card
    old = path.read_bytes() if from_source or path.is_file() else b""
    if new == "sparsefmt":
        return model.card_for_sparsefmt(old)
    kept = cards.without_section(old)
    return kept if kept or (from_source and not old) else None


def _write_whole(path: Place, content: bytes) -> None:
    with writing(path) as sink:
        sink.write(content)


def _encode_index(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _expect_free(destination: Place, source: Place, overwrite: bool) -> None:
    if not is_there(destination):
        return
    if destination.exists() and is_same(source, destination):
        raise shutil.SameFileError(errno.EINVAL, "is the source itself", str(destination))
    if destination.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name the file to write", str(destination))
    if not overwrite:
        raise FileExistsError(errno.EEXIST, "exists already", str(destination))
    _expect_writable(destination)


def _expect_writable(path: Place) -> None:
    """Refuse to replace or remove what its owner has protected, though its folder is not."""
    if is_protected(path):
        raise PermissionError(errno.EACCES, "is write-protected", str(path))
