"""sparsefmt: a file format for pruned neural networks, smaller on disk, smaller in memory, multiplied as stored."""

from typing import TYPE_CHECKING

from sparsefmt.api import linear, load, load_file, open_file, save, save_file
from sparsefmt.errors import ChecksumError, FormatError, LimitError, SparsefmtError, UnsupportedError
from sparsefmt.layouts.expected_tokens import set_expected_tokens
from sparsefmt.safe_open import safe_open
from sparsefmt.scales import Scales
from sparsefmt.serialization import deserialize, serialize, serialize_file
from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.tensor_writer import TensorWriter
from sparsefmt.threads import set_num_threads

__version__ = "0.1.0"

__all__ = [
    "ChecksumError",
    "FormatError",
    "LimitError",
    "Scales",
    "SparseFile",
    "SparseTensor",
    "SparsefmtError",
    "TensorWriter",
    "UnsupportedError",
    "deserialize",
    "linear",
    "load",
    "load_file",
    "open_file",
    "safe_open",
    "save",
    "save_file",
    "serialize",
    "serialize_file",
    "set_expected_tokens",
    "set_num_threads",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """`sparsefmt.numpy` and `sparsefmt.torch`, imported when they are first used: torch takes seconds."""
        if name in ("numpy", "torch"):
            from importlib import import_module

            return import_module(f"sparsefmt.{name}")
        raise AttributeError(f"module 'sparsefmt' has no attribute {name!r}")
