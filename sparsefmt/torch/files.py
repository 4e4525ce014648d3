"""Files of dense tensors, as safetensors.torch has them.

Tensors are moved as bits, whatever their dtype. As in safetensors, `save_file` refuses tensors that share memory or are
not contiguous, since loading would bring back something else; `save_model` and `load_model` are for models that have
such.

Tied tensors of a file that others made, with `sparsefmt convert` for instance, come as tensors of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from sparsefmt import api
from sparsefmt.container.sources import Memory
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.frameworks import sharing
from sparsefmt.frameworks.contract import Converted, all_tensors
from sparsefmt.frameworks.pytorch import TorchFramework, dtype_of, intake_of
from sparsefmt.frameworks.sharing import SharedTensorsError
from sparsefmt.opened import Backend, SparseFile
from sparsefmt.saving import NegativeZeros


def save(
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
) -> bytes:
    """The bytes that `save_file` writes, for the same arguments."""
    return api.save(_checked(tensors), metadata, layout=layout, codec=codec, negative_zeros=negative_zeros)


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
) -> None:
    """Save tensors to a .sparsefmt file. It depends on names and elements, not on the order of the dict.

    Args:
        tensors: name to strided, contiguous tensor on any device. Conjugated and negated views are stored as the
            elements they have.
        filename: where to, usually ending in .sparsefmt. An old file is replaced once the new one is whole.
        metadata: texts to keep with the tensors.
        layout: "auto", "dense", "bitmask" or "permuted", as in `sparsefmt.save_file`.
        codec: "auto" (the smallest), "rans", "zstd" or "raw".
        negative_zeros: "keep" every bit, or "drop" the sign of zeros.

    Raises:
        SharedTensorsError: tensors share memory; it is a RuntimeError too. `save_model` is for such.
        UnsupportedError: a dtype that the format does not have; a tensor that is not strided or not contiguous.
        SparsefmtError: a name, shape or metadata that cannot be stored. Where safetensors raises SafetensorError,
            TypeError, KeyError or ValueError, this is what is raised, and it is a ValueError.
        NotImplementedError: a tensor of device "meta", which has no data; torch's own, and a RuntimeError.
        OSError: the disk is full, the folder not writable, ….

    Cost: holds a few tiles beside the tensors, and one tensor at a time of those on other devices.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import save_file
        >>> save_file({"weight": torch.eye(64, dtype=torch.bfloat16)}, "model.sparsefmt")
    """
    api.save_file(_checked(tensors), filename, metadata, layout=layout, codec=codec, negative_zeros=negative_zeros)


def load(data: bytes) -> dict[str, torch.Tensor]:
    """Load all tensors from the bytes of a file, on the CPU; otherwise like `load_file`."""
    return all_tensors(SparseFile(Memory(data)), TorchFramework())


def load_file(
    filename: str | os.PathLike[str], device: Any = "cpu", *, backend: Backend = "mmap"
) -> dict[str, torch.Tensor]:
    """Load all tensors of a .sparsefmt file as dense tensors, each with memory of its own, in the order of the file.

    Args:
        filename: the file.
        device: where tensors are wanted: whatever torch takes for a device.
        backend: "mmap" maps the file; "pread" reads into memory.

    Raises:
        FormatError, ChecksumError: the file is damaged, forged, or no .sparsefmt file, where safetensors raises
            SafetensorError.
        UnsupportedError: it needs a newer version of the library, or has a dtype that torch does not have.
        LimitError: it is beyond the limits of SPEC.md, or of memory.
        RuntimeError, AssertionError: torch's own, for a device that does not exist or is not there.
        ValueError: another backend.
        OSError: it cannot be read.

    Cost: the dense tensors, and one tile per thread while a tensor is read; for other devices, one tensor at a time on
    the CPU.

    Example:
        >>> from sparsefmt.torch import load_file
        >>> weight = load_file("model.sparsefmt", device="cpu")["weight"]
    """
    with api.open_file(filename, backend=backend) as file:
        return all_tensors(file, TorchFramework(device))


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
) -> None:
    """Save the state of a model, tensors that share memory once.

    Of the names of such tensors, the first whose tensor covers the memory is kept. Each other is left out and noted in
    the metadata as {name: name that was kept}, unless the metadata has that name already. `load_model` needs no such
    notes.

    Args:
        model: the model.
        filename, metadata, layout, codec, negative_zeros: as in `save_file`. The metadata given is not changed.
        force_contiguous: store tensors in other memory orders as contiguous ones, instead of refusing them.

    Raises:
        SharedTensorsError: tensors of which none covers the memory that torch holds for them, parts of a larger tensor
            for instance; it is a RuntimeError too.
        as `save_file`.

    Cost: as `save_file`; one tensor at a time is made contiguous.

    Example:
        >>> from sparsefmt.torch import load_model, save_model
        >>> save_model(torch.nn.Linear(64, 64), "model.sparsefmt")
        >>> missing, unexpected = load_model(torch.nn.Linear(64, 64), "model.sparsefmt")
    """
    state = dict(model.state_dict())
    _check_kinds(state)
    notes = dict(metadata or {})
    for kept, dropped in sharing.remove_duplicate_names(state).items():
        for name in dropped:
            notes.setdefault(name, kept)
            del state[name]
    if not force_contiguous:
        try:
            _check_contiguous(state)
        except UnsupportedError as error:
            remedy = f"{error.message}; or use save_model(..., force_contiguous=True)"
            raise UnsupportedError(error.code, remedy, tensor=error.tensor) from None
    tensors = Converted(state, intake_of)
    api.save_file(tensors, filename, notes, layout=layout, codec=codec, negative_zeros=negative_zeros)


def load_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    strict: bool = True,
    device: Any = "cpu",
    *,
    backend: Backend = "mmap",
) -> tuple[list[str], list[str]]:
    """Load the state of a model from a file that `save_model` or `save_file` wrote.

    Of names whose tensors share memory in the model, one in the file is enough, whichever it is. Two are one too many,
    unless they are tied in the file.

    Args:
        model: the model to load into. It stays on its device and keeps its dtypes.
        filename: the file.
        strict: raise an error for missing and unexpected names, instead of returning them.
        device: where tensors are loaded to before they are copied into the model.
        backend: as in `load_file`.

    Returns:
        (missing, unexpected): names in the model that the file does not have, and names in the file that the model does
        not have or could not use.

    Raises:
        RuntimeError: missing or unexpected names, or a shape that differs, as `load_state_dict` says it, with the file.
        as `load_file`.

    Cost: the dense tensors beside the model.
    """
    with api.open_file(filename, backend=backend) as file:
        state = all_tensors(file, TorchFramework(device))
        stored_as = {name: file.reader.index.aliases.get(name, name) for name in state}
    shared = sharing.remove_duplicate_names(model.state_dict(), preferred_names=state)
    try:
        missing, unexpected = map(list, model.load_state_dict(state, strict=False))
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n    in the file {os.fspath(filename)!r}") from None
    for kept, others in shared.items():
        for name in others:
            if name in missing:
                missing.remove(name)
            elif stored_as.get(name) != stored_as.get(kept):
                unexpected.append(name)
    if strict and (missing or unexpected):
        lines = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
        for what, names in (("Missing", missing), ("Unexpected", unexpected)):
            if names:
                lines.append(f"{what} key(s) in state_dict: " + ", ".join(f'"{name}"' for name in sorted(names)))
        lines.append(f"in the file {os.fspath(filename)!r}")
        raise RuntimeError("\n    ".join(lines))
    return missing, unexpected


def _checked(tensors: Mapping[str, torch.Tensor]) -> Converted:
    """The tensors as they are to be stored, made one by one. Raises what stands against storing any."""
    converted = Converted(tensors, intake_of)
    _check_kinds(tensors)
    _check_contiguous(tensors)
    shared = [sorted(names) for names in sharing.find_shared_tensors(tensors) if len(names) > 1]
    if shared:
        groups = "; ".join(", ".join(map(repr, names)) for names in shared)
        raise SharedTensorsError(
            "tensors-shared",
            f"these tensors share memory, which loading would not bring back: {groups}. save_model keeps one name of"
            " each group; .clone() makes a tensor with memory of its own",
        )
    return converted


def _check_kinds(tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise FormatError("tensors-invalid", f"tensor {name!r} is no torch.Tensor but {type(tensor)}")
        if tensor.layout != torch.strided:
            raise UnsupportedError(
                "tensor-not-strided", f"a tensor of layout {tensor.layout}: call .to_dense() on it first", tensor=name
            )
        dtype_of(name, tensor)


def _check_contiguous(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise UnsupportedError(
                "tensor-not-contiguous",
                f"strides {tuple(tensor.stride())} of shape {list(tensor.shape)} are not contiguous: call"
                " .contiguous() on it first",
                tensor=name,
            )
