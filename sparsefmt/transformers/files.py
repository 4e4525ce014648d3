"""The .sparsefmt files of a model: found in its folder, or downloaded, and compared with their index."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from transformers.utils import logging
from transformers.utils.hub import cached_file

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.index_file import read_index
from sparsefmt.errors import FormatError

SUFFIX = ".sparsefmt"

_DOWNLOAD_OPTIONS = (
    "cache_dir",
    "force_download",
    "proxies",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
)
_logger = logging.get_logger("transformers.sparsefmt")


def file_name(variant: str | None) -> str:
    """Name of the file of a model that has one."""
    return f"model{SUFFIX}" if variant is None else f"model.{variant}{SUFFIX}"


def weight_files(folder: Path, variant: str | None) -> list[str] | None:
    """Paths of the .sparsefmt files of a model; None if the folder has none.

    Args:
        variant: if given, model.VARIANT.sparsefmt or its shards, and no others.

    Raises:
        OSError: a shard is missing, or cannot be read.
        FormatError: a damaged file, or an index that disagrees with the files.
    """
    if variant is None:
        has_some = any(SUFFIX in entry.suffixes for entry in folder.iterdir())
        return _checked(folder) if has_some else None
    for path in (folder / file_name(variant), folder / _index_name(variant)):
        if path.exists():
            return _checked(path)
    return None


def downloaded_files(repository: str, variant: str | None, how: dict[str, Any]) -> list[str] | None:
    """Paths in the cache of the .sparsefmt files of a repository on the Hub; None if it has none.

    Args:
        how: revision, cache_dir, token and the like, as transformers downloads with.

    Raises:
        as `weight_files`.
    """
    options = {name: how[name] for name in _DOWNLOAD_OPTIONS if name in how}

    def fetch(name: str) -> Path | None:
        found = cached_file(
            repository,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **options,
        )
        return None if found is None else Path(found)

    whole = fetch(file_name(variant))
    if whole is not None:
        return _checked(whole)
    index = fetch(_index_name(variant))
    if index is None:
        return None
    for shard in sorted(set(read_index(index).weight_map.values())):
        fetch(shard)
    return _checked(index)


def _index_name(variant: str | None) -> str:
    return f"{file_name(variant)}.index.json"


def _checked(path: Path) -> list[str]:
    """The files of a file, index or folder. Index and shards are compared before anything is loaded."""
    try:
        with Checkpoint(path, ["sparsefmt"]) as checkpoint:
            if checkpoint.unlisted and path.is_dir():
                names = ", ".join(file.name for file in checkpoint.unlisted)
                _logger.warning(f"{path}: these files are not part of the model, and are not loaded: {names}")
            return [str(file.path) for file in checkpoint.files]
    except FormatError as error:
        if error.code == "checkpoint-shard-missing":
            raise OSError(errno.ENOENT, error.message) from None
        raise
