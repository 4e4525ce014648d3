"""load_into: fills a model from .sparsefmt files. Its sparse layers stay compressed, the rest is dense."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from sparsefmt.adapters import torch as adapter
from sparsefmt.api import open_file
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.container import file_objects
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.sources import Backend
from sparsefmt.errors import in_file, in_tensor
from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import compute_dtype as computing
from sparsefmt.torch.compute_dtype import ComputeDtype
from sparsefmt.torch.dense_layers import is_conv1d
from sparsefmt.torch.derived import transposed
from sparsefmt.torch.layers import Holder, Patterns, expect_cpu, is_linear, modules_with_names, replace
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.selection import MIN_SPARSITY, Selection, why_dense
from sparsefmt.torch.summary import Summary, summary_of
from sparsefmt.torch.widened import SIXTEEN_BITS, note, pass_on

_log = logging.getLogger("sparsefmt")


class LoadResult(NamedTuple):
    """What `load_into` did. Its text is a line: how much is compressed, and what is not and why.

    Attributes:
        sparse: names of the layers that are SparseLinear now, with weights from the file.
        missing_keys: names of the model that the files do not have.
        unexpected_keys: names of the files that the model does not have, or could not use.
        dense: names of the linear layers that are dense, and why; and of tensors of other modules, if they are stored
            sparse.
        summary: of the whole model.
    """

    sparse: list[str]
    missing_keys: list[str]
    unexpected_keys: list[str]
    dense: dict[str, str]
    summary: Summary

    def __str__(self) -> str:
        return str(self.summary)


def load_into(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    layout: str = "auto",
    min_sparsity: float = MIN_SPARSITY,
    include: Patterns = None,
    exclude: Patterns = None,
    min_size: int | None = None,
    compute_dtype: ComputeDtype = None,
    backend: Backend = "mmap",
    threads: int | None = None,
    max_decoded_bytes: int | None = None,
) -> LoadResult:
    """Load a model from a .sparsefmt file, or a folder of them. Layers whose weights are pruned are compressed.

    Each torch.nn.Linear, and each Conv1D of transformers, whose weight is pruned as `sparsify` sees it is replaced by a
    SparseLinear with the dtype of the file. A SparseLinear that is there already is filled. Everything else is loaded
    dense: copied into what the model has, or, where that is on device "meta", taken with the dtype of the file.

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
        min_sparsity: part of a weight that must be zero for its layer to become a SparseLinear, 0.0 to 1.0.
        include: patterns of module names, such as "*.mlp.*": other layers are loaded dense. None for all.
        exclude: patterns of module names: these layers are loaded dense.
        min_size: elements that a weight must have; 0 for layers of any size. By default 131,072 (`MIN_SIZE`), since
            smaller ones are slower than dense, or 0 if `layout` or `include` are given.
        compute_dtype: "float32" or torch.float32 for a bfloat16 or float16 model that shall compute in float32: the
            compressed weights keep the 16 bits of the file, and all other parameters and buffers of 16 bits become
            float32. See docs/pytorch.md, "Weights in 16 bits, activations in float32". None changes no dtype.
        backend: "mmap" maps the file, where its file system can, else reads it; "pread" reads into memory.
        threads: how many may decode; by default all usable cores.
        max_decoded_bytes: of all tensors of each file together, as in `sparsefmt.load_file`: raise it for files that
            you trust.

    Returns:
        which layers are sparse, which names were missing and unexpected, and why other layers are dense; `print` it for
        a line.

    Raises:
        ValueError: another layout or `compute_dtype`, or a sparsity or size out of range.
        TypeError: patterns that are not text.
        RuntimeError: missing or unexpected names, or a shape that differs, as `load_state_dict` says it, with the file;
            a layer that is to be sparse on another device. The model has not been changed then.
        FormatError, ChecksumError, UnsupportedError, LimitError, OSError: as `sparsefmt.load_file`; the files disagree
            with the index, or one is missing.

    Cost: the compressed layers, the dense rest, and one tensor more while it is loaded. Weights that are stored sparse,
    and of layers that will be so, are never dense. Files stored raw are mapped, and not copied.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import load_into
        >>> with torch.device("meta"):
        ...     model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> result = load_into(model, "model.sparsefmt")
    """
    selection = Selection.of(layout, min_sparsity, include, exclude, min_size)
    in_float32 = computing.checked(compute_dtype) is not None
    with ExitStack() as stack:
        stored = _open(path, backend, threads, max_decoded_bytes, stack)
        plan = _planned(model, stored, selection)
        plan.noting = in_float32
        _raise_if_it_does_not_fit(model, plan, path, strict)
        # biases first: the layers that will be replaced hold them
        _load_dense(plan)
        _WeightLoader(model, plan, selection).load_all()
    if in_float32:
        computing.widen(model)
    elif text := computing.hint(model, 'load_into(..., compute_dtype="float32")'):
        _log.warning(text)
    dense = dict(sorted(plan.reasons.items()))
    return LoadResult(sorted(plan.sparse), plan.missing, plan.unexpected, dense, summary_of(model, selection, dense))


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
        return self.path, self.file.reader.index.tied.get(self.name, self.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return adapter.shape_of(self.file.tensor(self.name))

    def dense(self) -> torch.Tensor:
        return adapter.tensor_of(self.file.tensor(self.name))


@dataclass
class _Plan:
    """What goes where, and what stands against it.

    Attributes:
        weights: of linear layers, with the holders of each: compressed if they are pruned.
        dense: other tensors, with the holders of each.
        sparse: names of layers that are a SparseLinear once all is loaded.
        reasons: names of what is dense, and why.
        noting: whether float32 tensors that are filled with 16 bits shall be stored in these again.
    """

    weights: list[tuple[_Stored, list[Holder]]] = field(default_factory=list)
    dense: list[tuple[_Stored, list[Holder]]] = field(default_factory=list)
    sparse: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    noting: bool = False


def _open(
    path: str | os.PathLike[str],
    backend: Backend,
    threads: int | None,
    max_decoded_bytes: int | None,
    stack: ExitStack,
) -> dict[str, _Stored]:
    """All tensors by name. Whatever is wrong with index and shards together is found before anything is loaded."""
    if not file_objects.is_path(path):
        raise TypeError(
            f"load_into takes a path, not {type(path).__name__}: sparsefmt.torch.load_model takes an open file"
        )
    with Checkpoint(path, ["sparsefmt"]) as checkpoint:
        paths = [file.path for file in checkpoint.files]
    stored = {}
    for file_path in paths:
        with in_file(file_path):
            file = stack.enter_context(
                open_file(file_path, backend=backend, threads=threads, max_decoded_bytes=max_decoded_bytes)
            )
        file.count_together()
        stored.update({name: _Stored(file, file_path, name) for name in file})
    return stored


def _planned(model: torch.nn.Module, stored: dict[str, _Stored], selection: Selection) -> _Plan:
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
        reasons = {} if _is_sparse(holders[0]) else why_dense(holders, selection)
        if reasons:
            plan.dense.append((tensor, holders))
            plan.reasons |= {
                name: reason for name, reason in reasons.items() if _is_worth_a_word(name, tensor, holders)
            }
        else:
            plan.weights.append((tensor, holders))
    for holders in not_found:
        sharing = [others for _, others in plan.weights if _share_weights(others[0].module, holders[0].module)]
        if sharing and holders[0].attribute == "weight":
            sharing[0].extend(holders)
        else:
            plan.missing += [holder.key for holder in holders]
            for holder in holders:
                if holder.attribute == "weight" and is_linear(holder.module) and not _is_sparse(holder):
                    plan.reasons[holder.layer] = "its weight is not in the file"
    plan.unexpected += [name for name in stored if name not in used]
    plan.missing.sort()
    plan.unexpected.sort()
    return plan


def _is_worth_a_word(name: str, stored: _Stored, holders: list[Holder]) -> bool:
    """Whether to say why a tensor is dense: linear layers always, parameters of others if they are stored sparse."""
    if any(holder.key == name for holder in holders):
        return stored.entry.layout.sparse and holders[0].attribute in holders[0].module._parameters
    return True


def _holders(model: torch.nn.Module) -> list[list[Holder]]:
    """All names that `state_dict` of the dense model would have, those of one tensor together."""
    groups: dict[int, list[Holder]] = {}
    for layer, module in modules_with_names(model):
        tensors: dict[str, torch.Tensor | None] = dict(module._parameters)
        if isinstance(module, SparseLinear):
            groups.setdefault(id(module), []).append(Holder(layer, module, "weight"))
        else:
            persistent = module._buffers.keys() - module._non_persistent_buffers_set
            tensors |= {name: module._buffers[name] for name in module._buffers if name in persistent}
        for name, tensor in tensors.items():
            if tensor is not None:
                groups.setdefault(id(tensor), []).append(Holder(layer, module, name))
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


def _is_sparse(holder: Holder) -> bool:
    """Whether this is the weight of a layer that is a SparseLinear already."""
    return isinstance(holder.module, SparseLinear) and holder.attribute == "weight"


def _expected_shape(holder: Holder) -> tuple[int, ...]:
    module = holder.module
    if isinstance(module, SparseLinear) and _is_sparse(holder):
        shape = module.out_features, module.in_features
        return shape[::-1] if module.transposed else shape
    return tuple(_held(holder).shape)


def _held(holder: Holder) -> torch.Tensor:
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
    for _, holders in plan.weights:
        for holder in holders:
            if not isinstance(holder.module, SparseLinear):
                expect_cpu(holder.key, _held(holder), "meta")


def _load_dense(plan: _Plan) -> None:
    """Fill what is dense in any case. Empties the list, which would keep modules alive that are replaced later."""
    while plan.dense:
        tensor, holders = plan.dense.pop()
        with in_file(tensor.path):
            _fill(holders, tensor.dense(), plan.noting)


class _WeightLoader:
    """Fills the layers that are SparseLinear, replaces those that are pruned, and fills the others."""

    def __init__(self, model: torch.nn.Module, plan: _Plan, selection: Selection) -> None:
        self._model, self._plan, self._selection = model, plan, selection
        self._loaded: dict[tuple[Path, str, bool], SparseLinear] = {}
        """Layers by what they have from the files."""

    def load_all(self) -> None:
        """Load the weights of the plan. Empties its list, so that nothing here keeps a dense weight after its layer has
        been replaced."""
        self._plan.weights.reverse()
        while self._plan.weights:
            self._load(*self._plan.weights.pop())

    def _load(self, stored: _Stored, holders: list[Holder]) -> None:
        """Load the weight of the linear layers that share it."""
        weight = None
        if any((*stored.identity, _is_transposed(holder.module)) not in self._loaded for holder in holders):
            with in_file(stored.path):
                weight = _read(stored, holders, self._selection)
        if isinstance(weight, _Dense):
            _fill(holders, weight.tensor, self._plan.noting)
            self._plan.reasons |= {holder.layer: weight.reason for holder in holders}
            return
        self._plan.sparse |= {holder.layer for holder in holders}
        own: dict[bool, SparseLinear] = {}
        for name, module in {id(holder.module): (holder.layer, holder.module) for holder in holders}.values():
            layer = module if isinstance(module, SparseLinear) else _empty_like(module)
            same = (*stored.identity, layer.transposed)
            if layer.transposed in own:
                layer.share_weight(own[layer.transposed])
            elif same in self._loaded:
                # tied in the file, and not in the model
                layer.share_memory_with(self._loaded[same])
            else:
                assert weight is not None
                layer.set_weight(transposed(weight, self._selection.layout) if layer.transposed else weight)
            self._loaded[same] = own[layer.transposed] = layer
            layer.name = name
            if layer is not module:
                replace(self._model, module, layer)


def _is_transposed(module: torch.nn.Module) -> bool:
    return module.transposed if isinstance(module, SparseLinear) else is_conv1d(module)


class _Dense(NamedTuple):
    """A weight that is not compressed."""

    tensor: torch.Tensor
    reason: str


def _read(stored: _Stored, holders: list[Holder], selection: Selection) -> SparseTensor | _Dense:
    """The weight of linear layers: compressed, or dense with the reason."""
    entry, filled = stored.entry, any(_is_sparse(holder) for holder in holders)
    trainable = not filled and any(_held(holder).requires_grad for holder in holders)
    if entry.layout.sparse:
        reason = selection.why_not_worth(stored.file.reader.in_memory.filling(entry), trainable=trainable)
        if filled or reason is None:
            weight = stored.file.load(stored.name, selection.layout)
            assert isinstance(weight, SparseTensor)
            return weight
        return _Dense(stored.dense(), reason)
    tensor = stored.dense()
    if not filled and not tensor.is_floating_point():
        return _Dense(tensor, f"its weight has dtype {tensor.dtype}")
    with in_tensor(stored.name):
        matrix = adapter.rows_of(tensor)
    if not filled:
        reason = selection.why_not_worth(matrix.filling(matrix.survey()), trainable=trainable)
        if reason is not None:
            return _Dense(tensor, reason)
    return SparseTensor.from_dense(matrix, selection.layout)


def _empty_like(module: torch.nn.Module) -> SparseLinear:
    """A SparseLinear for a layer, with its bias and without weights."""
    rows, cols = module._parameters["weight"].shape  # type: ignore[union-attr]
    swapped = is_conv1d(module)
    in_features, out_features = (rows, cols) if swapped else (cols, rows)
    made = SparseLinear(in_features, out_features, bias=False, device="cpu", transposed=swapped)
    made.bias = module._parameters.get("bias")
    pass_on(module, made, ["bias"])
    made.weight_requires_grad = module._parameters["weight"].requires_grad  # type: ignore[union-attr]
    return made.train(module.training)


def _fill(holders: list[Holder], tensor: torch.Tensor, noting: bool) -> None:
    """Copy a tensor into what the model has, or, where that is on device "meta", put it in its place."""
    held = _held(holders[0])
    if held.device.type != "meta":
        if noting and held.dtype == torch.float32 and tensor.dtype in SIXTEEN_BITS:
            for holder in holders:
                note(holder.module, holder.attribute, tensor.dtype)
        with torch.no_grad():
            held.copy_(tensor)
        return
    if isinstance(held, torch.nn.Parameter):
        tensor = torch.nn.Parameter(tensor, requires_grad=held.requires_grad)
    for holder in holders:
        if holder.attribute in holder.module._parameters:
            assert isinstance(tensor, torch.nn.Parameter)
            holder.module._parameters[holder.attribute] = tensor
        else:
            holder.module._buffers[holder.attribute] = tensor
