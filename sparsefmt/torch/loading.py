"""load_into: a model from .sparsefmt files, its sparse layers compressed and the rest dense."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from sparsefmt.api import open_file
from sparsefmt.container.entry import TensorEntry
from sparsefmt.frameworks.pytorch import TorchFramework
from sparsefmt.interchange.checkpoints import Checkpoint
from sparsefmt.interchange.contract import naming
from sparsefmt.opened import Backend, SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import transposed
from sparsefmt.torch.layers import (
    Patterns,
    expect_cpu,
    is_replaceable,
    joined,
    matcher,
    matches,
    modules_with_names,
    replace,
)
from sparsefmt.torch.linear import SparseLinear, is_conv1d


class LoadResult(NamedTuple):
    """What `load_into` did.

    Attributes:
        sparse: names of the layers that are SparseLinear now, with weights from the file.
        missing_keys: names of the model that the files do not have.
        unexpected_keys: names of the files that the model does not have, or could not use.
    """

    sparse: list[str]
    missing_keys: list[str]
    unexpected_keys: list[str]


def load_into(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    layout: str = "auto",
    include: Patterns = None,
    backend: Backend = "mmap",
    threads: int | None = None,
) -> LoadResult:
    """Load a model from a .sparsefmt file, or a folder of them. Layers whose weights are stored sparse stay compressed.

    Each torch.nn.Linear, and each Conv1D of transformers, whose weight is stored sparse is replaced by a SparseLinear
    with the dtype of the file. A SparseLinear that is there already is filled. Everything else is loaded dense: copied
    into what the model has, or, where that is on device "meta", taken with the dtype of the file.

    A parameter that has several names in the model needs one of them in the file, and keeps them all. So an output
    layer tied to an embedding stays a Linear and stays tied: the embedding needs its table dense. Linear layers that
    share their weights, in the model or in the file, share the compressed ones. Subclasses of Linear are loaded dense,
    since others use their weights: torch.nn.MultiheadAttention for one. Hooks of replaced layers are left behind.

    Buffers that no file has (persistent=False) stay as they are, on device "meta" too.

    Args:
        model: the model, on the CPU or on device "meta". Changed in place.
        path: a file; or a folder with model.sparsefmt.index.json and shards, as `sparsefmt convert` writes them; or
            that index.
        strict: raise an error for missing and unexpected names, instead of returning them.
        layout: "auto", "bitmask" or "permuted", for sparse layers: as in `sparsefmt.load_file`.
        include: patterns of module names, such as "*.mlp.*": other layers are loaded dense.
        backend: "mmap" maps the file; "pread" reads into memory.
        threads: how many may decode; by default all usable cores.

    Returns:
        which layers are sparse, and which names were missing and unexpected.

    Raises:
        RuntimeError: missing or unexpected names, or a shape that differs, as `load_state_dict` says it, with the file;
            a layer that is to be sparse on another device. The model has not been changed then.
        FormatError, ChecksumError, UnsupportedError, LimitError, OSError: as `sparsefmt.load_file`; the files disagree
            with the index, or one is missing.

    Cost: the compressed layers, the dense rest, and one tensor more while it is loaded. Weights of sparse layers are
    never dense. Files stored raw are mapped, and not copied.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import load_into
        >>> with torch.device("meta"):
        ...     model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> result = load_into(model, "model.sparsefmt")
    """
    if layout not in ("auto", "bitmask", "permuted"):
        raise ValueError(f"layout must be 'auto', 'bitmask' or 'permuted', not {layout!r}")
    patterns = matcher(include)
    with ExitStack() as stack:
        stored = _open(path, backend, threads, stack)
        plan = _planned(model, stored, patterns)
        _raise_if_it_does_not_fit(model, plan, path, strict)
        # biases first: the layers that will be replaced hold them
        _load_dense(plan)
        _load_sparse(model, plan, layout)
    sparse = sorted({holder.layer for _, holders in plan.sparse for holder in holders})
    return LoadResult(sparse, plan.missing, plan.unexpected)


class _Stored(NamedTuple):
    """A tensor in one of the files."""

    file: SparseFile
    path: Path
    name: str

    @property
    def entry(self) -> TensorEntry:
        return self.file.reader.index.entry(self.name)

    @property
    def identity(self) -> tuple[Path, str]:
        """The same for names that are tied in the file."""
        return self.path, self.file.reader.index.aliases.get(self.name, self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return TorchFramework().shape(self.file, self.name)


class _Holder(NamedTuple):
    """A module that holds a tensor under a name."""

    key: str
    layer: str
    module: torch.nn.Module
    attribute: str


@dataclass
class _Plan:
    """What goes where, and what stands against it.

    Attributes:
        sparse: holders of weights that will be compressed; those of one parameter together.
        dense: holders of dense tensors, likewise.
    """

    sparse: list[tuple[_Stored, list[_Holder]]] = field(default_factory=list)
    dense: list[tuple[_Stored, list[_Holder]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)


def _open(path: str | os.PathLike[str], backend: Backend, threads: int | None, stack: ExitStack) -> dict[str, _Stored]:
    """All tensors by name. Whatever is wrong with index and shards together is found before anything is loaded."""
    with Checkpoint(path, ["sparsefmt"]) as checkpoint:
        paths = [file.path for file in checkpoint.files]
    stored = {}
    for file_path in paths:
        with naming(file_path):
            file = stack.enter_context(open_file(file_path, backend=backend, threads=threads))
        stored.update({name: _Stored(file, file_path, name) for name in file})
    return stored


def _planned(model: torch.nn.Module, stored: dict[str, _Stored], patterns: list[str]) -> _Plan:
    plan = _Plan()
    used = set()
    not_found = []
    for holders in _holders(model):
        found = [stored[holder.key] for holder in holders if holder.key in stored]
        used |= {tensor.name for tensor in found}
        if not found:
            not_found.append(holders)
            continue
        tensor = found[0]
        # a second tensor for the same parameter has no place, unless it is the same one
        plan.unexpected += [other.name for other in found if other.identity != tensor.identity]
        expected = _expected_shape(holders[0])
        if tensor.shape != expected:
            plan.mismatches.append(
                f"size mismatch for {tensor.name}: copying a param with shape {torch.Size(tensor.shape)} from"
                f" {str(tensor.path)!r}, the shape in current model is {torch.Size(expected)}."
            )
            continue
        can_be_sparse = all(_takes_sparse(holder, patterns) for holder in holders)
        is_sparse = isinstance(holders[0].module, SparseLinear) and holders[0].attribute == "weight"
        if is_sparse or (can_be_sparse and tensor.entry.layout.sparse):
            plan.sparse.append((tensor, holders))
        else:
            plan.dense.append((tensor, holders))
    for holders in not_found:
        sharing = [others for _, others in plan.sparse if _share_weights(others[0].module, holders[0].module)]
        if sharing and holders[0].attribute == "weight":
            sharing[0].extend(holders)
        else:
            plan.missing += [holder.key for holder in holders]
    plan.unexpected += [name for name in stored if name not in used]
    plan.missing.sort()
    plan.unexpected.sort()
    return plan


def _holders(model: torch.nn.Module) -> list[list[_Holder]]:
    """All names that `state_dict` of the dense model would have, those of one tensor together."""
    groups: dict[int, list[_Holder]] = {}
    for layer, module in modules_with_names(model):
        tensors: dict[str, torch.Tensor | None] = dict(module._parameters)
        if isinstance(module, SparseLinear):
            groups.setdefault(id(module), []).append(_Holder(joined(layer, "weight"), layer, module, "weight"))
        else:
            persistent = module._buffers.keys() - module._non_persistent_buffers_set
            tensors |= {name: module._buffers[name] for name in module._buffers if name in persistent}
        for name, tensor in tensors.items():
            if tensor is not None:
                groups.setdefault(id(tensor), []).append(_Holder(joined(layer, name), layer, module, name))
    return list(groups.values())


def _share_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether these are two sparse layers with the same weights."""
    return (
        isinstance(first, SparseLinear)
        and isinstance(second, SparseLinear)
        and first.has_weight
        and first.weight_arrays is second.weight_arrays
        and first.transposed == second.transposed
    )


def _takes_sparse(holder: _Holder, patterns: list[str]) -> bool:
    # the model itself cannot be replaced
    return (
        holder.attribute == "weight"
        and bool(holder.layer)
        and is_replaceable(holder.module)
        and matches(holder.layer, patterns)
    )


def _expected_shape(holder: _Holder) -> tuple[int, ...]:
    module = holder.module
    if isinstance(module, SparseLinear) and holder.attribute == "weight":
        shape = module.out_features, module.in_features
        return shape[::-1] if module.transposed else shape
    return tuple(_held(holder).shape)


def _held(holder: _Holder) -> torch.Tensor:
    """The tensor that a module holds. Not by getattr: a module may have a property of that name."""
    parameter = holder.module._parameters.get(holder.attribute)
    tensor = holder.module._buffers[holder.attribute] if parameter is None else parameter
    assert tensor is not None
    return tensor


def _raise_if_it_does_not_fit(model: torch.nn.Module, plan: _Plan, path: str | os.PathLike[str], strict: bool) -> None:
    lines = []
    if strict:
        for what, names in (("Unexpected", plan.unexpected), ("Missing", plan.missing)):
            if names:
                lines.append(f"{what} key(s) in state_dict: " + ", ".join(f'"{name}"' for name in names) + ".")
    lines += plan.mismatches
    if lines:
        first = f"Error(s) in loading state_dict for {type(model).__name__}:"
        raise RuntimeError("\n    ".join([first, *lines, f"in {os.fspath(path)!r}"]))
    for _, holders in plan.sparse:
        for holder in holders:
            if not isinstance(holder.module, SparseLinear):
                expect_cpu(holder.key, _held(holder), "meta")


def _load_sparse(model: torch.nn.Module, plan: _Plan, layout: str) -> None:
    """Fill the layers that are SparseLinear, and replace those that are to be."""
    layers: dict[torch.nn.Module, SparseLinear] = {}
    loaded: dict[tuple[Path, str, bool], SparseLinear] = {}
    for tensor, holders in plan.sparse:
        for holder in holders:
            module = holder.module
            if module in layers:
                continue
            layer = layers[module] = module if isinstance(module, SparseLinear) else _empty_like(module)
            same = (*tensor.identity, layer.transposed)
            if same in loaded:
                layer.share_weight(loaded[same])
            else:
                with naming(tensor.path):
                    layer.set_weight(_compressed(tensor, layer, layout))
                loaded[same] = layer
            if layer is not module:
                replace(model, module, layer)


def _empty_like(module: torch.nn.Module) -> SparseLinear:
    """A SparseLinear for a layer, with its bias and without weights."""
    rows, cols = module._parameters["weight"].shape  # type: ignore[union-attr]
    swapped = is_conv1d(module)
    in_features, out_features = (rows, cols) if swapped else (cols, rows)
    made = SparseLinear(in_features, out_features, bias=False, device="cpu", transposed=swapped)
    made.bias = module._parameters.get("bias")
    return made.train(module.training)


def _compressed(stored: _Stored, layer: SparseLinear, layout: str) -> SparseTensor:
    weight = stored.file.load(stored.name, layout)
    if not isinstance(weight, SparseTensor):
        # stored dense, for a layer that was made sparse before
        weight = SparseTensor.from_dense(weight, layout)
    return transposed(weight, layout) if layer.transposed else weight


def _load_dense(plan: _Plan) -> None:
    framework = TorchFramework()
    for stored, holders in plan.dense:
        with naming(stored.path):
            tensor = framework.tensor(stored.file, stored.name)
        held = _held(holders[0])
        if held.device.type != "meta":
            with torch.no_grad():
                held.copy_(tensor)
            continue
        if isinstance(held, torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=held.requires_grad)
        for holder in holders:
            _put(holder, tensor)


def _put(holder: _Holder, tensor: torch.Tensor) -> None:
    """Replace a tensor on device "meta"."""
    if holder.attribute in holder.module._parameters:
        assert isinstance(tensor, torch.nn.Parameter)
        holder.module._parameters[holder.attribute] = tensor
    else:
        holder.module._buffers[holder.attribute] = tensor
