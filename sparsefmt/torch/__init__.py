"""The twin of safetensors.torch: the same functions, dense tensors in and out. Change the import, and that is all."""

from __future__ import annotations

from sparsefmt.frameworks import sharing
from sparsefmt.frameworks.sharing import SharedTensorsError, storage_ptr, storage_size
from sparsefmt.torch.files import load, load_file, load_model, save, save_file, save_model

__all__ = [
    "SharedTensorsError",
    "load",
    "load_file",
    "load_model",
    "save",
    "save_file",
    "save_model",
    "storage_ptr",
    "storage_size",
]

# other libraries use these of safetensors.torch, private as their names are
_end_ptr = sharing.end_ptr
_find_shared_tensors = sharing.find_shared_tensors
_is_complete = sharing.is_complete
_remove_duplicate_names = sharing.remove_duplicate_names
