"""Files of models, as safetensors.torch has them: tensors that share memory are stored once, and shared again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch

from sparsefmt import api, dense_files
from sparsefmt.adapters import torch as adapter
from sparsefmt.checkpoints import scales
from sparsefmt.container import file_objects
from sparsefmt.container.sources import Backend
from sparsefmt.errors import UnsupportedError, in_file
from sparsefmt.made_on_demand import MadeOnDemand
from sparsefmt.save_options import NegativeZeros, SaveOptions
from sparsefmt.torch import sharing
from sparsefmt.torch.scaled_state import rounded_weights, scaled_weights, take_scaled
from sparsefmt.torch.signs import leaving_signs
from sparsefmt.torch.state import layers_by_memory, tensors_of
from sparsefmt.torch.storable import (
    Widened,
    check_contiguous,
    check_kinds,
    folded,
    rows_of,
    strided,
    tied_pairs,
)
from sparsefmt.torch.widened import stored_dtypes
from sparsefmt.urls import as_place
from sparsefmt.writing import write_file


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str] | BinaryIO,
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
    fold_masks: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Save the state of a model, tensors that share memory once. The weights of SparseLinear layers stay compressed.

    Scaled weights are stored as their elements and their scales, and the metadata says which belong together, under
    "sparsefmt.scales", and whose activations are rounded to eight bits, under "sparsefmt.activations". What `load_into`
    or `sparsify` made float32 for `compute_dtype` is stored in its 16 bits again, unless it has been changed to what
    these cannot hold.

    Of the names of such tensors, the first whose tensor covers the memory is kept. Each other is left out and noted in
    the metadata as {name: name that was kept}, unless the metadata has that name already. `load_model` needs no such
    notes.

    Args:
        model: the model.
        filename, metadata, layout, codec, negative_zeros, fold_masks, storage_options: as in `save_file`. The metadata
            given is not changed.
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
    state = tensors_of(model)
    if fold_masks:
        state = folded(state)
    check_kinds(state)
    notes = dict(metadata or {})
    pairs = scaled_weights(model)
    for kept, dropped in (sharing.remove_duplicate_names(strided(state)) | tied_pairs(state)).items():
        for name in dropped:
            notes.setdefault(name, kept)
            del state[name]
            pairs.pop(name, None)
            pairs.update({weight: kept for weight, scale in pairs.items() if scale == name})
    notes |= scales.as_metadata(pairs, rounded_weights(model) & pairs.keys())
    if not force_contiguous:
        try:
            check_contiguous(state)
        except UnsupportedError as error:
            remedy = f"{error.message}; or use save_model(..., force_contiguous=True)"
            raise UnsupportedError(error.code, remedy, tensor=error.tensor) from None
    stored = stored_dtypes(model)
    widened = {
        name: Widened(tensor, stored[name])
        for name, tensor in state.items()
        if name in stored and isinstance(tensor, torch.Tensor)
    }
    tensors = MadeOnDemand({**state, **widened}, rows_of)
    write_file(as_place(filename, storage_options), tensors, notes, SaveOptions(layout, codec, negative_zeros))


def load_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str] | BinaryIO,
    strict: bool = True,
    device: Any = "cpu",
    *,
    backend: Backend = "mmap",
    max_decoded_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[list[str], list[str]]:
    """Load the state of a model from a file that `save_model` or `save_file` wrote.

    Linear layers whose weights are scaled in the file become SparseLinear, in place, where nothing stands against it,
    and round activations to eight bits if the file says so; elsewhere, scaled weights are multiplied out.

    Of names whose tensors share memory in the model, one in the file is enough, whichever it is. Two are one too many,
    unless they are tied in the file.

    Args:
        model: the model to load into. It stays on its device and keeps its dtypes.
        filename: the file, or a binary file object, as in `sparsefmt.load_file`.
        strict: raise an error for missing and unexpected names, instead of returning them.
        device: where tensors are loaded to before they are copied into the model.
        backend, max_decoded_bytes, storage_options: as in `load_file`.

    Returns:
        (missing, unexpected): names in the model that the file does not have, and names in the file that the model does
        not have or could not use.

    Raises:
        RuntimeError: missing or unexpected names, or a shape that differs, as `load_state_dict` says it, with the file.
        as `load_file`.

    Cost: the dense tensors beside the model.
    """
    place = as_place(filename, storage_options)
    with in_file(filename), api.open_file(place, backend=backend, max_decoded_bytes=max_decoded_bytes) as file:
        state = dense_files.all_tensors(file, adapter, device)
        stored_as = {name: file.reader.index.tied.get(name, name) for name in state}
        scaled = scales.scaled_in(file.metadata(), state, file.reader.index.tied)
        stored_as |= {scales.scale_name(weight): stored_as[beside.scale] for weight, beside in scaled.items()}
        take_scaled(model, state, scaled)
    with leaving_signs():
        shared = sharing.remove_duplicate_names(strided(model.state_dict()), preferred_names=state)
    sparse = layers_by_memory(model)
    try:
        missing, unexpected = map(list, model.load_state_dict(state, strict=False))
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n    in the file {file_objects.name_of(filename)}") from None
    for layers in sparse:
        # a SparseLinear takes other memory, where what is copied into a parameter reaches all that share it
        loaded = [layer for name, layer in layers if f"{name}.weight" in state]
        first = next((f"{name}.weight" for name, _ in layers if f"{name}.weight" in state), "")
        for name, layer in layers:
            weight = f"{name}.weight"
            if loaded and (weight not in state or stored_as[weight] == stored_as[first]):
                layer.follow(loaded[0])
                missing = [key for key in missing if key not in (f"{name}.weight_arrays", f"{name}.weight_table")]
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
        lines.append(f"in the file {file_objects.name_of(filename)}")
        raise RuntimeError("\n    ".join(lines))
    return missing, unexpected
