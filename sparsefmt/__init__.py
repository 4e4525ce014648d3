"""sparsefmt: a file format for pruned neural networks, smaller on disk, smaller in memory, multiplied as stored."""

from sparsefmt.api import linear, load, load_file, open_file, save, save_file
from sparsefmt.errors import ChecksumError, FormatError, LimitError, SparsefmtError, UnsupportedError
from sparsefmt.opened import SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.threads import set_num_threads

__version__ = "0.1.0"

__all__ = [
    "ChecksumError",
    "FormatError",
    "LimitError",
    "SparseFile",
    "SparseTensor",
    "SparsefmtError",
    "UnsupportedError",
    "linear",
    "load",
    "load_file",
    "open_file",
    "save",
    "save_file",
    "set_num_threads",
]
