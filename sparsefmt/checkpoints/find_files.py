"""Which files are the model, of those in a folder: by their index, their numbers, and the names that they have.

In the folder of a model (one with a config.json) that has no index, model.safetensors is the one file, if it is there;
others beside it are older forms, or parts, that transformers would not load either.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsefmt.checkpoints import foreign
from sparsefmt.checkpoints.formats import SHARD_NUMBER, SUFFIXES, FileFormat, expect_format, is_index, joined_by_or
from sparsefmt.checkpoints.index_file import CheckpointIndex, read_index
from sparsefmt.checkpoints.staging import is_unfinished
from sparsefmt.container.remote_path import Place, can_list
from sparsefmt.errors import FormatError

_WITH_RECIPES = (".gguf", ".onnx", ".h5", ".keras", ".npz", *SUFFIXES["safetensors"], *SUFFIXES["torch"])
"""Files that make a folder without weights of the formats asked for understood."""


@dataclass(frozen=True)
class FoundFiles:
    """The files of a model, in order of their names; the index, if there is one."""

    paths: list[Place]
    file_format: FileFormat
    index: CheckpointIndex | None = None


def find_files(path: Place, formats: Sequence[FileFormat]) -> FoundFiles:
    """The files of a model. Reads the index if there is one.

    Args:
        path: a file, an index file, or a folder.
        formats: what the files may be; of several in a folder, the first.

    Raises:
        FileNotFoundError: nothing of these formats is there.
        FormatError: it is not clear which files they are, or one is missing.
        OSError: the folder or the index cannot be read.
    """
    if path.is_dir():
        return _in_folder(path, formats)
    if path.suffix != ".json":
        return FoundFiles([path], expect_format(path, formats))
    index = read_index(path)
    return _listed(index, _format_of_shards(index, formats))


def _in_folder(folder: Place, formats: Sequence[FileFormat]) -> FoundFiles:
    entries: list[Place] = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for file_format in formats:
        indexes = [entry for entry in entries if is_index(entry.name, file_format)]
        if len(indexes) > 1:
            names = ", ".join(entry.name for entry in indexes)
            raise FormatError("checkpoint-index", f"{folder}: it has several indexes, give one of them: {names}")
        if indexes:
            return _listed(read_index(indexes[0]), file_format)
        files = [entry for entry in entries if entry.suffix in SUFFIXES[file_format]]
        if file_format == "torch":
            files = _weights_of_torch(files)
        if files:
            whole: Place = folder / f"model.{file_format}"
            if whole in files and (folder / "config.json").exists():
                return FoundFiles([whole], file_format)
            _check_numbering(files)
            return FoundFiles(files, file_format)
    wanted = joined_by_or(suffix for file_format in formats for suffix in SUFFIXES[file_format])
    raise FileNotFoundError(errno.ENOENT, f"the folder has no {wanted} file{_instead(folder, entries)}", str(folder))


def _instead(folder: Place, entries: Sequence[Place]) -> str:
    """What a folder without weights has in their place, and what to do."""
    if is_unfinished(folder):
        return "; it is being written, or was not finished: convert again"
    for path in entries:
        if path.suffix in _WITH_RECIPES and path.is_file() and (file_format := foreign.format_of(path)):
            return f", but {path.name}, {file_format}: {foreign.recipe(path, file_format)}"
    if not can_list(folder):
        return "; a web server may not list its files: give the URL of a file, or of an index (*.index.json)"
    return ""


def _weights_of_torch(files: list[Place]) -> list[Place]:
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


def _listed(index: CheckpointIndex, file_format: FileFormat) -> FoundFiles:
    """The files that an index lists."""
    _format_of_shards(index, [file_format])
    paths: list[Place] = [index.path.with_name(shard) for shard in sorted(set(index.weight_map.values()))]
    for path in paths:
        # of others, opening says so
        if isinstance(path, Path) and not path.exists():
            raise FormatError("checkpoint-shard-missing", f"{index.path}: file {path.name!r} is missing")
    return FoundFiles(paths, file_format, index)


def _check_numbering(files: Sequence[Place]) -> None:
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
