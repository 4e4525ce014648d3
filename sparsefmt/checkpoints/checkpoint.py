"""The files of one model: a single file, or a folder of shards with an index, as Hugging Face writes them.

    model.safetensors.index.json   {"metadata": {…}, "weight_map": {tensor name: file name}}
    model-00001-of-00002.safetensors, model-00002-of-00002.safetensors

The same for .sparsefmt, with that word in place of "safetensors", and for files of torch, with pytorch_model.bin in
place of model.safetensors. Loaders trust the index and have been seen to leave
tensors uninitialised where index and shards disagree, so the two are compared in both directions before anything else.

In the folder of a model (one with a config.json) that has no index, model.safetensors is the one file, if it is there;
others beside it are older forms, or parts, that transformers would not load either.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints import foreign
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.folding import Group, foldable, folded_files
from sparsefmt.checkpoints.formats import SHARD_NUMBER, SUFFIXES, FileFormat, expect_format, is_index, joined_by_or
from sparsefmt.checkpoints.index_file import CheckpointIndex, read_index
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.staging import is_unfinished
from sparsefmt.errors import FormatError, in_file

_WITH_RECIPES = (".gguf", ".onnx", ".h5", ".keras", ".npz", *SUFFIXES["safetensors"], *SUFFIXES["torch"])
"""Files that make a folder without weights of the formats asked for understood."""


class Checkpoint:
    """The open files of one model. Every tensor is in exactly one of them.

    Attributes:
        path: what was opened: a file, an index file or a folder.
        is_folder: whether it is more than a single file.
        file_format: what the files are.
        files: in order of their names.
        index: the index, or None if there is none.
        holder: which file has a tensor, by its name.
        folded: groups of tensors that are read as one each.

    Args:
        path: a file, an index file (*.index.json), or a folder with an index file or without.
        formats: what the files may be; in a folder that has several formats, the first of them.
        max_decoded_bytes: of each .sparsefmt file, as in `sparsefmt.load_file`.

    Raises:
        FileNotFoundError: nothing of these formats is there.
        FormatError: index and files disagree, a tensor is in two files, or a file is damaged.
        OSError: a file cannot be read.
    """

    def __init__(
        self, path: str | os.PathLike[str], formats: Sequence[FileFormat], max_decoded_bytes: int | None = None
    ) -> None:
        self.path = Path(path)
        self.index: CheckpointIndex | None = None
        self.is_folder = self.path.is_dir() or self.path.suffix == ".json"
        if self.is_folder:
            paths, self.file_format = self._find_files(formats)
        else:
            paths, self.file_format = [self.path], expect_format(self.path, formats)
        with ExitStack() as stack:
            self.files: list[TensorFile] = []
            for file_path in paths:
                with in_file(file_path):
                    self.files.append(stack.enter_context(_open(file_path, self.file_format, max_decoded_bytes)))
            self.holder = _holders(self.files)
            self.folded: list[Group] = []
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

    @property
    def folder(self) -> Path:
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
    def unlisted(self) -> list[Path]:
        """Files of the same format in the folder that are no part of the checkpoint."""
        if not self.is_folder:
            return []
        suffix = self.files[0].path.suffix
        listed = {file.path.name for file in self.files}
        return sorted(entry for entry in self.folder.iterdir() if entry.suffix == suffix and entry.name not in listed)

    def rows_of(self, name: str) -> Rows:
        """A tensor, to be read a run of rows at a time."""
        return self.holder[name].rows_of(name)

    def close(self) -> None:
        """Let go of the files."""
        self._stack.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _find_files(self, formats: Sequence[FileFormat]) -> tuple[list[Path], FileFormat]:
        """Paths of the files, and their format. Reads the index if there is one."""
        if not self.path.is_dir():
            self.index = read_index(self.path)
            file_format = _format_of_shards(self.index, formats)
            return _shard_paths(self.index, file_format), file_format
        entries = sorted(entry for entry in self.path.iterdir() if not entry.name.startswith("."))
        for file_format in formats:
            indexes = [entry for entry in entries if is_index(entry.name, file_format)]
            if len(indexes) > 1:
                names = ", ".join(entry.name for entry in indexes)
                raise FormatError("checkpoint-index", f"{self.path}: it has several indexes, give one of them: {names}")
            if indexes:
                self.index = read_index(indexes[0])
                return _shard_paths(self.index, file_format), file_format
            files = [entry for entry in entries if entry.suffix in SUFFIXES[file_format]]
            if file_format == "torch":
                files = _weights_of_torch(files)
            if files:
                whole = self.path / f"model.{file_format}"
                if whole in files and (self.path / "config.json").exists():
                    return [whole], file_format
                _check_numbering(files)
                return files, file_format
        wanted = joined_by_or(suffix for file_format in formats for suffix in SUFFIXES[file_format])
        raise FileNotFoundError(
            errno.ENOENT, f"the folder has no {wanted} file{self._instead(entries)}", str(self.path)
        )

    def _instead(self, entries: Sequence[Path]) -> str:
        """What a folder without weights has in their place, and what to do."""
        if is_unfinished(self.path):
            return "; it is being written, or was not finished: convert again"
        for path in entries:
            if path.suffix in _WITH_RECIPES and path.is_file() and (file_format := foreign.format_of(path)):
                return f", but {path.name}, {file_format}: {foreign.recipe(path, file_format)}"
        return ""


def _open(path: Path, file_format: FileFormat, max_decoded_bytes: int | None) -> TensorFile:
    if file_format == "safetensors":
        return SafetensorsFile(path)
    if file_format == "sparsefmt":
        return SparsefmtFile(path, max_decoded_bytes)
    from sparsefmt.checkpoints.pytorch_file import TorchFile

    return TorchFile(path)


def _weights_of_torch(files: list[Path]) -> list[Path]:
    """Of the files with the suffixes of torch, those that are the model: others hold the state of a training.

    Raises:
        FormatError: there are several, none of a name that transformers gives to the weights of a model.
    """
    whole = [path for path in files if path.name == "pytorch_model.bin"]
    shards = [
        path for path in files if (match := SHARD_NUMBER.fullmatch(path.stem)) and match["stem"] == "pytorch_model"
    ]
    if whole or shards or len(files) < 2:
        return whole or shards or files
    names = ", ".join(path.name for path in files)
    raise FormatError("checkpoint-index", f"{files[0].parent}: which is the model? Give one of its files: {names}")


def _format_of_shards(index: CheckpointIndex, formats: Sequence[FileFormat]) -> FileFormat:
    suffixes = {Path(shard).suffix for shard in index.weight_map.values()}
    for file_format in formats:
        # of torch, too, all shards have one suffix: converted, two of one stem would have one name
        if len(suffixes) == 1 and suffixes <= set(SUFFIXES[file_format]):
            return file_format
    wanted = joined_by_or(suffix for file_format in formats for suffix in SUFFIXES[file_format])
    found = ", ".join(sorted(suffix or "no suffix" for suffix in suffixes))
    raise FormatError("checkpoint-index", f"{index.path}: its files have {found}, not {wanted}")


def _shard_paths(index: CheckpointIndex, file_format: FileFormat) -> list[Path]:
    _format_of_shards(index, [file_format])
    paths = [index.path.with_name(shard) for shard in sorted(set(index.weight_map.values()))]
    for path in paths:
        if not path.exists():
            raise FormatError("checkpoint-shard-missing", f"{index.path}: file {path.name!r} is missing")
    return paths


def _check_numbering(files: Sequence[Path]) -> None:
    """Refuse a folder without index of whose numbered shards some are missing."""
    present: dict[tuple[str, int], set[int]] = {}
    for path in files:
        if match := SHARD_NUMBER.fullmatch(path.stem):
            present.setdefault((match["stem"], int(match["count"])), set()).add(int(match["number"]))
    for (stem, count), numbers in present.items():
        missing = min(set(range(1, count + 1)) - numbers, default=None)
        if missing is not None:
            raise FormatError(
                "checkpoint-shard-missing",
                f"{files[0].parent}: file '{stem}-{missing:05d}-of-{count:05d}{files[0].suffix}' is missing",
            )


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
