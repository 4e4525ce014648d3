"""load_into: fills a model from .sparsefmt files. Its sparse layers stay compressed, the rest is dense."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from sparsefmt.api import open_file
from sparsefmt.checkpoints import huggingface
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.quantized_files import QuantizedFiles
from sparsefmt.checkpoints.scales import scaled_in
from sparsefmt.container import file_objects
from sparsefmt.container.remote_path import Place, place_of
from sparsefmt.container.sources import Backend
from sparsefmt.errors import in_file
from sparsefmt.sparse_file import SparseFile
from sparsefmt.torch import compute_dtype as computing
from sparsefmt.torch import notebook
from sparsefmt.torch.compute_dtype import ComputeDtype
from sparsefmt.torch.filling import WeightLoader, load_dense
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.loading_plan import expect_activations, expect_fit, names_of, planned
from sparsefmt.torch.selection import MIN_SPARSITY, Patterns, Selection
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.stored_experts import under_names_of
from sparsefmt.torch.stored_tensors import Stored, StoredInFile, StoredInSeveral
from sparsefmt.torch.summary import Quantizing, Summary, summary_of

_log = logging.getLogger("sparsefmt")


class LoadResult(NamedTuple):
    """What `load_into` did. Its text is a line: how much is compressed, and what is not and why.

    Attributes:
        sparse: names of the layers that are SparseLinear now, with weights from the file, and of the weights of
            experts and attention that are a SparseStack.
        missing_keys: names of the model that the files do not have.
        unexpected_keys: names of the files that the model does not have, or could not use.
        dense: names of the linear layers and convolutions that are dense, and why; and of tensors of other modules, if
            they are stored sparse.
        summary: of the whole model.
        layers: what `sparse` names.
    """

    sparse: list[str]
    missing_keys: list[str]
    unexpected_keys: list[str]
    dense: dict[str, str]
    summary: Summary
    layers: dict[str, SparseLinear | SparseStack]

    def __str__(self) -> str:
        return str(self.summary)

    def _repr_html_(self) -> str:
        """What notebooks show: the line, tables of the compressed layers and of those that are dense, and why, and
        names that only one of model and files has."""
        keys = (("missing in the files", self.missing_keys), ("unexpected in the files", self.unexpected_keys))
        return notebook.of_model(self.summary, self.layers, self.dense, dict(keys))


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
    values: str | None = None,
    group_size: int | None = None,
    scale: str = "absmax",
    activations: str | None = None,
    backend: Backend = "mmap",
    threads: int | None = None,
    max_decoded_bytes: int | None = None,
) -> LoadResult:
    """Load a model from a .sparsefmt file, or a folder of them. Layers whose weights are pruned are compressed.

    Each torch.nn.Linear, and each Conv1D of transformers, whose weight is pruned as `sparsify` sees it is replaced by a
    SparseLinear with the dtype of the file, and convolutions by SparseConv1d and SparseConv2d, where `sparsify` would
    do that. What is compressed already is filled. Everything else is loaded dense: copied into what the model has, or,
    where that is on device "meta", taken with the dtype of the file.

    A parameter that has several names in the model needs one of them in the file, and keeps them all. So an output
    layer tied to an embedding stays a Linear and stays tied: the embedding needs its table dense. Linear layers that
    share their weights, in the model or in the file, share the compressed ones. Subclasses of Linear are loaded dense,
    since others use their weights. Hooks of replaced layers are left behind.

    Where config.json beside the files says that compressed-tensors has quantized the weights, layers are loaded as it
    says, from safetensors too. What is not known of it is refused with the reason.

    Scaled weights, as `save_model` writes them and `sparsefmt convert --values`, make scaled SparseLinear layers,
    however few of their elements are zero. Where something stands against that, they are multiplied out: in embeddings,
    in layers that are excluded, and, still compressed, in a Conv1D.

    Weights of experts that the model has in one Parameter may be in a tensor for each expert, under the names that
    checkpoints of transformers have. They are merged, and never dense where they are pruned: see docs/pytorch.md,
    "Mixtures of experts".

    Buffers that no file has (persistent=False) stay as they are, on device "meta" too.

    Args:
        model: the model, on the CPU or on device "meta". Changed in place.
        path: a file; or a folder with model.sparsefmt.index.json and shards, as `sparsefmt convert` writes them; or
            that index. Of a checkpoint that compressed-tensors has quantized, the same of safetensors.
        strict: raise an error for missing and unexpected names, instead of returning them.
        layout: "auto", "bitmask" or "permuted", for sparse layers: as in `sparsefmt.load_file`.
        min_sparsity, include, exclude, min_size, compute_dtype: as in `sparsify`; layers that do not become a
            SparseLinear are loaded dense.
        values, group_size, scale: as in `sparsify`, for weights that are not scaled in the file.
        activations: None for what the files say of each layer, as `save_model` writes it; "int8" to round activations
            to eight bits wherever weights are scaled elements of int8; "float" to round none.
        backend, threads: as in `sparsefmt.load_file`.
        max_decoded_bytes: as in `sparsefmt.load_file`, of all tensors of each file together.

    Returns:
        which layers are sparse, which names were missing and unexpected, and why other layers are dense; `print` it for
        a line.

    Raises:
        ValueError: another layout, `compute_dtype`, `values` or the like, or a sparsity or size out of range;
            `activations` for a file without scaled elements of int8.
        TypeError: patterns that are not text.
        RuntimeError: missing or unexpected names, or a shape that differs, as `load_state_dict` says it, with the file;
            a layer that is to be sparse on another device. The model has not been changed then.
        FormatError, ChecksumError, UnsupportedError, LimitError, OSError: as `sparsefmt.load_file`; the files disagree
            with the index, or one is missing; a weight and its scales do not fit; a weight that cannot be quantized.

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
    selection = selection.quantizing(values, group_size, scale, activations)
    in_float32 = computing.checked(compute_dtype) is not None
    with ExitStack() as stack:
        stored = _open(path, _Opening(backend, threads, max_decoded_bytes), stack)
        plan = planned(model, under_names_of(model, names_of(model), stored), selection)
        plan.noting = in_float32
        plan.quantizing = None if selection.quantization is None else Quantizing({}, {})
        expect_fit(model, plan, path, strict)
        expect_activations(plan, selection)
        # biases first: the layers that will be replaced hold them
        load_dense(plan)
        WeightLoader(model, plan, selection).load_all()
    if in_float32:
        computing.widen(model)
    elif text := computing.hint(model, 'load_into(..., compute_dtype="float32")'):
        _log.warning(text)
    dense = dict(sorted(plan.reasons.items()))
    summary = summary_of(model, selection, dense, plan.quantizing)
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in sorted(plan.sparse)}
    return LoadResult(list(layers), plan.missing, plan.unexpected, dense, summary, layers)


class _Opening(NamedTuple):
    """How files are opened: arguments of `load_into`."""

    backend: Backend
    threads: int | None
    max_decoded_bytes: int | None


def _open(path: str | os.PathLike[str], opening: _Opening, stack: ExitStack) -> dict[str, Stored]:
    """All tensors by name. Whatever is wrong with index and shards together is found before anything is loaded."""
    if not file_objects.is_path(path):
        raise TypeError(
            f"load_into takes a path, not {type(path).__name__}: sparsefmt.torch.load_model takes an open file"
        )
    quantization = huggingface.quantization_beside(place_of(path))
    with Checkpoint(path, ["sparsefmt"] if quantization is None else ["sparsefmt", "safetensors"]) as checkpoint:
        paths, is_ours = [file.path for file in checkpoint.files], checkpoint.file_format == "sparsefmt"
    in_files: dict[str, StoredInFile] = {}
    for file_path in paths if is_ours else ():
        with in_file(file_path):
            file = stack.enter_context(open_file(file_path, **opening._asdict()))
            in_files.update(_stored(file, file_path))
        file.count_together()
    if quantization is None:
        return {**in_files}
    files = QuantizedFiles(paths, quantization, opening.max_decoded_bytes)
    stack.callback(files.close)
    return {
        name: in_files[name]
        if name in in_files and name not in files.weights
        else StoredInSeveral(files, file_path, name, in_files.get(name))
        for file_path in paths
        for name in files.names_in(file_path)
    }


def _stored(file: SparseFile, path: Place) -> dict[str, StoredInFile]:
    """The tensors of a file by name, scales with their weights."""
    scaled = scaled_in(file.metadata(), file, file.reader.index.tied)
    others = {name for beside in scaled.values() for name in beside.names}
    return {name: StoredInFile(file, path, name, scaled.get(name)) for name in file if name not in others}
