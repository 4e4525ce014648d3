"""The files of one model: a single file, or a folder of shards with an index, as Hugging Face writes them.

    model.safetensors.index.json   {"metadata": {…}, "weight_map": {tensor name: file name}}
    model-00001-of-00002.safetensors, model-00002-of-00002.safetensors

The same for .sparsefmt, with that word in place of "safetensors", and for files of torch, with pytorch_model.bin in
place of model.safetensors. Loaders trust the index and have been seen to leave
tensors uninitialised where index and shards disagree, so the two are compared in both directions before anything else.

`find_files.py` says which files these are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.compressed_tensors import Quantization
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.find_files import FoundFiles, find_files
from sparsefmt.checkpoints.folding import Group, foldable, folded_files
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.checkpoints.index_file import CheckpointIndex
from sparsefmt.checkpoints.quantized import quantized_weights
from sparsefmt.checkpoints.quantizing import DequantizedFile
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.container.remote_path import Place, RemotePath, can_list, place_of
from sparsefmt.errors import FormatError, in_file
from sparsefmt.quantizing.quantization import Quantization as QuantizationWanted
from sparsefmt.urls import Url

_MOST_OPENING = 8
"""Files behind URLs that are opened at a time."""


class Checkpoint:
    """The open files of one model. Every tensor is in exactly one of them.

    Attributes:
        path: what was opened: a file, an index file or a folder; as a text, for messages.
        is_folder: whether it is more than a single file.
        file_format: what the files are.
        files: in order of their names.
        index: the index, or None if there is none.
        holder: which file has a tensor, by its name.
        folded: groups of tensors that are read as one each.
        quantization: how a conversion quantizes pruned weights (`quantizing`), which loses something; None to keep
            every bit.

    Args:
        path: a file, an index file (*.index.json), or a folder with an index file or without; by a path or a URL.
        formats: what the files may be; in a folder that has several formats, the first of them.
        max_decoded_bytes: of each .sparsefmt file, as in `sparsefmt.load_file`.

    Raises:
        FileNotFoundError: nothing of these formats is there.
        FormatError: index and files disagree, a tensor is in two files, or a file is damaged.
        OSError: a file cannot be read.
    """

    def __init__(
        self, path: str | os.PathLike[str] | Url, formats: Sequence[FileFormat], max_decoded_bytes: int | None = None
    ) -> None:
        place = place_of(path)
        self.path: Place = place.looked_at() if isinstance(place, RemotePath) else place
        self.is_folder = self.path.is_dir() or self.path.suffix == ".json"
        found = find_files(self.path, formats)
        self.file_format, self.index = found.file_format, found.index
        with ExitStack() as stack:
            self.files = [stack.enter_context(file) for file in _opened(found, max_decoded_bytes)]
            self.holder = _holders(self.files)
            self.folded: list[Group] = []
            self.quantization: QuantizationWanted | None = None
            if self.index is not None:
                _check_index(self.index, self.files)
            self._stack = stack.pop_all()

    def fold(self) -> None:
        """From now on, have one tensor for each group of tensors that spell it together; see `folding`.

        Raises:
            FormatError: a group lacks a part, or its name is taken; it names the tensor.
        """
        self.folded = foldable(self.holder)
        self.files = folded_files(self.files)
        self.holder = _holders(self.files)
        if self.folded and self.index is not None and isinstance(self.index.fields.get("metadata"), dict):
            # the size of what was folded
            metadata = {**self.index.fields["metadata"], "total_size": self.dense_nbytes}
            self.index = replace(self.index, fields={**self.index.fields, "metadata": metadata})

    def dequantize(self) -> None:
        """From now on, have elements times scales, in float32, for each scaled weight, and no scales.

        Raises:
            FormatError: a weight and its scales do not fit.
        """
        self.files = [_dequantized(file) for file in self.files]
        self.holder = _holders(self.files)

    def check_quantized(self, quantization: Quantization) -> None:
        """Check that quantized weights have all that belongs to them, folded or not.

        Raises:
            as `quantized_weights`, and as reading scales (`QuantizedWeight.check`).
        """
        for weight in quantized_weights(_holders(folded_files(self.files)), quantization).values():
            weight.check()

    @property
    def folder(self) -> Place:
        """Where the files are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self.holder)

    @property
    def nbytes(self) -> int:
        """Size of all files."""
        return sum(file.nbytes for file in self.files)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of all tensors when dense, tied ones counted each."""
        return sum(self.rows_of(name).dense_nbytes for name in self.holder)

    @property
    def unlisted(self) -> list[Place]:
        """Files of the same format in the folder that are not part of the checkpoint, where it can be listed."""
        if not self.is_folder or not can_list(self.folder):
            return []
        suffix = self.files[0].path.suffix
        listed = {file.path.name for file in self.files}
        return sorted(entry for entry in self.folder.iterdir() if entry.suffix == suffix and entry.name not in listed)

    def rows_of(self, name: str) -> Rows:
        """A tensor, to be read a run of rows at a time."""
        return self.holder[name].rows_of(name)

    def expect(self, times: int = 1) -> None:
        """Hint that all tensors will be read soon, each so many times."""
        for file in self.files:
            file.expect(file.names, times)

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _dequantized(file: TensorFile) -> DequantizedFile:
    with in_file(file.path):
        return DequantizedFile(file)


def _opened(found: FoundFiles, max_decoded_bytes: int | None) -> list[TensorFile]:
    """All files, opened. Of URLs several at a time, since each takes as long as a few answers do."""

    def opened(path: Place) -> TensorFile | Exception:
        try:
            return open_tensor_file(path, found.file_format, max_decoded_bytes)
        except FileNotFoundError as error:
            if found.index is None:
                return error
            return FormatError("checkpoint-shard-missing", f"{found.index.path}: file {path.name!r} is missing")
        except Exception as error:
            return error

    remote = any(isinstance(path, RemotePath) for path in found.paths)
    with ThreadPoolExecutor(_MOST_OPENING if remote else 1) as pool:
        files = list(pool.map(opened, found.paths) if remote else map(opened, found.paths))
    for failed in files:
        if isinstance(failed, Exception):
            for file in files:
                if isinstance(file, TensorFile):
                    file.close()
            raise failed
    return [file for file in files if isinstance(file, TensorFile)]


def open_tensor_file(place: Place, file_format: FileFormat, max_decoded_bytes: int | None = None) -> TensorFile:
    """One file of a checkpoint alone. Its errors name it.

    Raises:
        as `Checkpoint`.
    """
    with in_file(place):
        return _open(place, file_format, max_decoded_bytes)


def _open(path: Place, file_format: FileFormat, max_decoded_bytes: int | None) -> TensorFile:
    if file_format == "safetensors":
        return SafetensorsFile(path)
    if file_format == "sparsefmt":
        return SparsefmtFile(path, max_decoded_bytes)
    from sparsefmt.checkpoints.pytorch_file import TorchFile

    return TorchFile(path)


def _holders(files: Sequence[TensorFile]) -> dict[str, TensorFile]:
    holders: dict[str, TensorFile] = {}
    for file in files:
        for name in file.names:
            if name in holders:
                raise FormatError(
                    "checkpoint-tensor-duplicate",
                    f"it is in two files, {holders[name].path.name!r} and {file.path.name!r}",
                    tensor=name,
                )
            holders[name] = file
    return holders


def _check_index(index: CheckpointIndex, files: Sequence[TensorFile]) -> None:
    """Compare the weight map with what the shards hold, in both directions."""
    present = {file.path.name: set(file.names) for file in files}
    for name, shard in index.weight_map.items():
        if name not in present[shard]:
            raise FormatError(
                "checkpoint-tensor-missing", f"{index.path}: file {shard!r} should have it, and has not", tensor=name
            )
    for shard, names in present.items():
        for name in sorted(names):
            if name not in index.weight_map:
                raise FormatError(
                    "checkpoint-tensor-unlisted", f"file {shard!r} has it, and {index.path} does not", tensor=name
                )
