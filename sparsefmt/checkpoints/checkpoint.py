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
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from sparsefmt.adapters import Rows
from sparsefmt.checkpoints import foreign
from sparsefmt.checkpoints.contract import TensorFile, expect_regular_file
from sparsefmt.checkpoints.folding import Group, foldable, folded_files
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.checkpoints.safetensors_header import dict_of_distinct_keys
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.checkpoints.staging import is_unfinished
from sparsefmt.errors import FormatError, in_file

FileFormat = Literal["safetensors", "sparsefmt", "torch"]

_SUFFIXES: dict[FileFormat, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "sparsefmt": (".sparsefmt",),
    "torch": (".bin", ".pt", ".pth"),
}
_CALLED: dict[FileFormat, str] = {
    "safetensors": "safetensors",
    "sparsefmt": "a .sparsefmt file",
    "torch": "a PyTorch checkpoint",
}
_INDEX = ".index.json"
_WITH_RECIPES = (".gguf", ".onnx", ".h5", ".keras", ".npz", *_SUFFIXES["safetensors"], *_SUFFIXES["torch"])
"""Files that make a folder without weights of the formats asked for understood."""

_SHARD_NUMBER = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_MAX_INDEX_BYTES = 1 << 28


@dataclass(frozen=True)
class CheckpointIndex:
    """The content of an index file.

    Attributes:
        path: where it is.
        fields: everything in it but the weight map, "metadata" among it.
        weight_map: file name of each tensor.
    """

    path: Path
    fields: dict[str, Any]
    weight_map: dict[str, str]


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
            indexes = [entry for entry in entries if _is_index(entry.name, file_format)]
            if len(indexes) > 1:
                names = ", ".join(entry.name for entry in indexes)
                raise FormatError("checkpoint-index", f"{self.path}: it has several indexes, give one of them: {names}")
            if indexes:
                self.index = read_index(indexes[0])
                return _shard_paths(self.index, file_format), file_format
            files = [entry for entry in entries if entry.suffix in _SUFFIXES[file_format]]
            if file_format == "torch":
                files = _weights_of_torch(files)
            if files:
                whole = self.path / f"model.{file_format}"
                if whole in files and (self.path / "config.json").exists():
                    return [whole], file_format
                _check_numbering(files)
                return files, file_format
        wanted = _or(suffix for file_format in formats for suffix in _SUFFIXES[file_format])
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


def _is_index(name: str, file_format: FileFormat) -> bool:
    return name.endswith(tuple(suffix + _INDEX for suffix in _SUFFIXES[file_format]))


def _or(texts: Iterable[str]) -> str:
    *others, last = texts
    return f"{', '.join(others)} or {last}" if others else last


def _weights_of_torch(files: list[Path]) -> list[Path]:
    """Of the files with the suffixes of torch, those that are the model: others hold the state of a training.

    Raises:
        FormatError: there are several, none of a name that transformers gives to the weights of a model.
    """
    whole = [path for path in files if path.name == "pytorch_model.bin"]
    shards = [
        path for path in files if (match := _SHARD_NUMBER.fullmatch(path.stem)) and match["stem"] == "pytorch_model"
    ]
    if whole or shards or len(files) < 2:
        return whole or shards or files
    names = ", ".join(path.name for path in files)
    raise FormatError("checkpoint-index", f"{files[0].parent}: which is the model? Give one of its files: {names}")


def read_index(path: Path) -> CheckpointIndex:
    """Read an index file. Raises FormatError if it is not an index, or names a file that is not beside it."""

    def invalid(message: str) -> FormatError:
        return FormatError("checkpoint-index", f"{path}: {message}")

    expect_regular_file(path)
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise invalid("it is too large for an index")
    try:
        fields = json.loads(path.read_text("utf-8"), object_pairs_hook=dict_of_distinct_keys)
    except (ValueError, RecursionError) as error:
        raise invalid(f"it is no JSON: {error}") from None
    weight_map = fields.pop("weight_map", None) if isinstance(fields, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise invalid('it has no "weight_map": is it the index of a checkpoint?')
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_file_name(shard):
            raise invalid(f"tensor {name!r} is in {shard!r}, which is not the plain name of a file beside the index")
    return CheckpointIndex(path, fields, weight_map)


def saved_weights(folder: Path) -> list[Path]:
    """What conversions and `save_pretrained` have left in a folder, if it is there: weights, then indexes.

    safetensors and .sparsefmt are looked for. Known are files that the indexes list, and names: model.sparsefmt,
    model.safetensors, and numbered shards. Files of other names may be anybody's.
    """
    if not folder.is_dir():
        return []
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and not entry.is_dir())
    formats: tuple[FileFormat, ...] = ("safetensors", "sparsefmt")
    indexes = [entry for entry in entries if any(_is_index(entry.name, file_format) for file_format in formats)]
    listed: set[str] = set()
    for index in indexes:
        with suppress(FormatError):  # a damaged one
            listed.update(read_index(index).weight_map.values())

    def is_saved(entry: Path) -> bool:
        name_is_known = entry.stem == "model" or _SHARD_NUMBER.fullmatch(entry.stem) or entry.name in listed
        return entry.suffix.removeprefix(".") in formats and bool(name_is_known)

    return [*filter(is_saved, entries), *indexes]


def index_name(path: Path, old: FileFormat, new: FileFormat) -> str:
    """Name of an index file for the same checkpoint in another format."""
    for suffix in _SUFFIXES[old]:
        if old != "torch" and f"{suffix}." in path.name:
            return path.name.replace(f"{suffix}.", f".{new}.")
    return f"model.{new}{_INDEX}"


def _is_plain_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def expect_format(path: Path, formats: Sequence[FileFormat]) -> FileFormat:
    """What a file is, where it may be several things: what it starts with decides, not its name.

    Damaged files and files of unknown formats are taken for the first, so that opening them says what is wrong.

    Raises:
        FormatError: it is whole, and of a format that is not among these (`file-foreign`); the message says what to do.
    """
    expect_regular_file(path)
    expected = _or(dict.fromkeys(_CALLED[file_format] for file_format in formats))
    if foreign.is_sparsefmt(path):
        if "sparsefmt" in formats:
            return "sparsefmt"
        raise FormatError(foreign.FOREIGN, f"{path}: it is a .sparsefmt file already, not {expected}")
    found = foreign.format_of(path)
    if found is None:
        return formats[0]
    for file_format in formats:
        if _CALLED[file_format] == found:
            return file_format
    raise foreign.foreign(path, found, expected)


def _format_of_shards(index: CheckpointIndex, formats: Sequence[FileFormat]) -> FileFormat:
    suffixes = {Path(shard).suffix for shard in index.weight_map.values()}
    for file_format in formats:
        # of torch, too, all shards have one suffix: converted, two of one stem would have one name
        if len(suffixes) == 1 and suffixes <= set(_SUFFIXES[file_format]):
            return file_format
    wanted = _or(suffix for file_format in formats for suffix in _SUFFIXES[file_format])
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
        if match := _SHARD_NUMBER.fullmatch(path.stem):
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
