"""The .sparsefmt files of a model folder as transformers wants weights: paths, and a dict of tensors to be read."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging
from transformers.utils.hub import cached_file

from sparsefmt.adapters import torch as adapter
from sparsefmt.api import open_file
from sparsefmt.checkpoints.checkpoint import Checkpoint, read_index
from sparsefmt.container import budget
from sparsefmt.errors import FormatError, in_file
from sparsefmt.file_tensor import FileTensor
from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.transformers.compressed_parameter import StandIn
from sparsefmt.transformers.config import SparsefmtConfig

SUFFIX = ".sparsefmt"

ARGUMENT = "SparsefmtConfig(max_decoded_bytes=...)"
"""What raises the limit of `from_pretrained`, given as its quantization_config."""

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


class CompressedFile(str):
    """A path of a file whose sparse matrices shall stay compressed.

    Attributes:
        config: how the file is read, and in which layout they are held.
    """

    config: SparsefmtConfig

    def __new__(cls, path: str, config: SparsefmtConfig) -> CompressedFile:
        made = super().__new__(cls, path)
        made.config = config
        return made


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
                _logger.warning(f"{path}: these files are no part of the model, and are not loaded: {names}")
            return [str(file.path) for file in checkpoint.files]
    except FormatError as error:
        if error.code == "checkpoint-shard-missing":
            raise OSError(errno.ENOENT, error.message) from None
        raise


def state_dict(path: str, map_location: Any = "cpu") -> dict[str, Any]:
    """The tensors of one file by name, each read when it is indexed, as slices of safetensors are.

    Args:
        path: a CompressedFile, or a file of which all tensors are wanted dense.
        map_location: "meta" for tensors without data.
    """
    config = path.config if isinstance(path, CompressedFile) else SparsefmtConfig()
    with in_file(path):
        file = open_file(path, backend=config.backend, max_decoded_bytes=config.max_decoded_bytes)
    file.count_together()
    slices = {name: LazyTensor(file, path, name) for name in file}
    if str(map_location) == "meta":
        return {name: part.without_data() for name, part in slices.items()}
    return slices


class LazyTensor:
    """A tensor in an open file, with what transformers calls on a slice of safetensors."""

    def __init__(self, file: SparseFile, path: str, name: str) -> None:
        self._file = file
        self._path = path
        self._name = name

    @property
    def _tensor(self) -> FileTensor:
        return self._file.tensor(self._name)

    def get_shape(self) -> list[int]:
        return list(adapter.shape_of(self._tensor))

    def get_dtype(self) -> str:
        return self._tensor.dtype.name

    def without_data(self) -> torch.Tensor:
        """The same on device "meta"."""
        return torch.empty(self.get_shape(), dtype=adapter.torch_dtype_of(self._tensor), device="meta")

    def __getitem__(self, key: Any) -> torch.Tensor:
        with in_file(self._path), budget.calling_it(ARGUMENT):
            if key is not Ellipsis:
                return adapter.part_of(self._tensor, key)
            if isinstance(self._path, CompressedFile) and len(self.get_shape()) == 2:
                tensor = self._file.load(self._name, self._path.config.layout)
                if isinstance(tensor, SparseTensor):
                    return StandIn(tensor)
            return adapter.tensor_of(self._tensor)
