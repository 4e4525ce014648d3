"""The twin of safetensors.torch: it takes and gives dense tensors, and changing the import is the whole migration.

It has more than safetensors.torch: SparseLinear, load_into and sparsify make models that compute on compressed weights.
"""

from __future__ import annotations

import importlib
import warnings

from sparsefmt.torch import onnx_export, sharing
from sparsefmt.torch.convolution import SparseConv1d, SparseConv2d
from sparsefmt.torch.counts import ParameterCount, parameter_count
from sparsefmt.torch.files import load, load_file, save, save_file
from sparsefmt.torch.keep_zeros import keep_zeros
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.loading import LoadResult, load_into
from sparsefmt.torch.model_files import load_model, save_model
from sparsefmt.torch.models import SparsifyResult, sparsify
from sparsefmt.torch.sharing import SharedTensorsError, storage_ptr, storage_size
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.state import tensors_of
from sparsefmt.torch.to_dense import make_dense
from sparsefmt.torch.to_trainable import make_sparse, make_trainable
from sparsefmt.torch.trainable import TrainableSparseLinear
from sparsefmt.torch.weight import SparseWeight
from sparsefmt.torch.when_imported import when_imported

__all__ = [
    "LoadResult",
    "ParameterCount",
    "SharedTensorsError",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseStack",
    "SparseWeight",
    "SparsifyResult",
    "TrainableSparseLinear",
    "keep_zeros",
    "load",
    "load_file",
    "load_into",
    "load_model",
    "make_dense",
    "make_sparse",
    "make_trainable",
    "parameter_count",
    "save",
    "save_file",
    "save_model",
    "sparsify",
    "storage_ptr",
    "storage_size",
    "tensors_of",
]

# other libraries use these of safetensors.torch, private as their names are
_end_ptr = sharing.end_ptr
_find_shared_tensors = sharing.find_shared_tensors
_is_complete = sharing.is_complete
_remove_duplicate_names = sharing.remove_duplicate_names


def _register_with_peft() -> None:
    """Have PEFT put its adapters on SparseLinear layers. `import peft` succeeds in any case."""
    try:
        importlib.import_module("sparsefmt.peft")
    except Exception as error:
        warnings.warn(f"PEFT will not know SparseLinear layers: {error}", stacklevel=2)


when_imported("peft", _register_with_peft)
onnx_export.install()
