"""save_pretrained of a model with SparseLinear layers: config as ever, weights as .sparsefmt."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import logging

from sparsefmt import cost_of_signs
from sparsefmt.adapters.torch import rows_of
from sparsefmt.checkpoints import cards, scales
from sparsefmt.checkpoints.huggingface import SENTENCE_TRANSFORMERS
from sparsefmt.checkpoints.staging import StagedFolder
from sparsefmt.container.atomic import replacing
from sparsefmt.made_on_demand import MadeOnDemand
from sparsefmt.save_options import NegativeZeros
from sparsefmt.tensor import SparseTensor
from sparsefmt.tensor_writer import TensorWriter
from sparsefmt.torch.layers import joined, modules_with_names
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.scaled_state import scaled_weights
from sparsefmt.torch.stack import SparseStack
from sparsefmt.torch.stacking import stacked
from sparsefmt.torch.state import tensors_and_stacks_of
from sparsefmt.torch.widened import as_stored, stored_dtypes
from sparsefmt.transformers import placing
from sparsefmt.transformers.compressed_parameter import ScalesOf, StandIn
from sparsefmt.transformers.compressed_stack import StackStandIn
from sparsefmt.transformers.config import SparsefmtConfig, replace_dtype
from sparsefmt.transformers.files import SUFFIX
from sparsefmt.transformers.given_state import compressed_state
from sparsefmt.writing import write_all

_logger = logging.get_logger("transformers.sparsefmt")


def is_ours(model: Any) -> bool:
    """Whether a model shall be saved as .sparsefmt: it has SparseLinear layers, or was loaded with a SparsefmtConfig.

    One with adapters is transformers' own to save: it saves the adapters alone.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        return False
    config = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    return isinstance(config, SparsefmtConfig) or any(isinstance(module, SparseLinear) for module in model.modules())


def save_pretrained(
    original: Callable[..., Any],
    model: Any,
    save_directory: str | os.PathLike[str],
    *,
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "50GB",
    variant: str | None = None,
    save_original_format: bool = True,
    negative_zeros: NegativeZeros = "keep",
    **others: Any,
) -> None:
    """Save a model to a folder that `from_pretrained` loads. Weights of SparseLinear layers are never dense.

    What is float32 for `compute_dtype` is stored in the 16 bits that it had, unless it has been changed to what these
    cannot hold. What an earlier save left there goes: see `placing`. README.md gets a section that says how the folder
    is loaded.

    Args:
        original: PreTrainedModel.save_pretrained, which writes everything but the weights.
        model, save_directory, is_main_process, max_shard_size, variant, save_original_format, others: as in
            save_pretrained. Sizes of shards are those in memory, before the entropy coding.
        negative_zeros: "keep" every bit, or "drop" the signs of zeros, as in `sparsefmt.save_file`.
        state_dict: what to save in place of the model's own state: what `model.state_dict()` has, or some of it.
        push_to_hub: not supported; `model.push_to_hub` is.

    Raises:
        ValueError: what is not supported; a state_dict with a part of a compressed weight.
        SparsefmtError: a tensor that cannot be stored.
        OSError: the disk is full, ….
    """
    if push_to_hub:
        raise ValueError("push_to_hub=True is not supported for .sparsefmt weights: call model.push_to_hub instead")
    if os.path.isfile(save_directory):
        raise NotADirectoryError(f"{os.fspath(save_directory)!r} is a file, and a folder is needed")
    if getattr(model.config, "quantization_config", None) is None:
        model.config.quantization_config = SparsefmtConfig()
    _note_activations(model)
    if not is_main_process:
        original(model, save_directory, is_main_process=False, state_dict={}, **others)
        return
    folder = Path(save_directory)
    with StagedFolder(folder, None, overwrite=True) as staged:
        _write_weights(_state(model, save_original_format, state_dict), staged, max_shard_size, variant, negative_zeros)
        with staged.filling() as inner, _no_progress_bar():
            original(model, inner, is_main_process=True, state_dict={}, **others)
            _write_stored_dtype(model, inner)
        config, sentences = model.config.to_dict(), (folder / SENTENCE_TRANSFORMERS).is_file()
        card = cards.with_section(placing.card_of(folder), config, sentences=sentences)
        _write(staged, folder / cards.README, card)
        placing.take_places(staged, "sparsefmt", variant)


def save_dense(
    original: Callable[..., Any],
    model: Any,
    save_directory: str | os.PathLike[str],
    *,
    variant: str | None = None,
    **others: Any,
) -> Any:
    """Save an ordinary model to a folder that has .sparsefmt weights: it takes their place.

    Args:
        original: PreTrainedModel.save_pretrained, which writes everything.
        model, save_directory, variant, others: as in save_pretrained.
    """
    folder = Path(save_directory)
    with StagedFolder(folder, None, overwrite=True) as staged:
        with staged.filling() as inner:
            result = original(model, inner, variant=variant, **others)
        if not any(placing.is_saved_name(path.name, "safetensors", variant) for path in staged.files):
            # an adapter, for which the weights are still needed
            staged.commit([], [], [])
            return result
        card = placing.card_of(folder)
        rest = cards.without_section(card)
        if rest != card:
            _write(staged, folder / cards.README, rest)
        placing.take_places(staged, "safetensors", variant)
        if card and not rest:
            (folder / cards.README).unlink(missing_ok=True)
    return result


def _write_weights(
    state: dict[str, torch.Tensor],
    staged: StagedFolder,
    max_shard_size: int | str,
    variant: str | None,
    negative_zeros: NegativeZeros,
) -> None:
    stem = "model" if variant is None else f"model.{variant}"
    shards = split_state_dict_into_shards_factory(
        state, get_storage_size=_nbytes, filename_pattern=f"{stem}{{suffix}}{SUFFIX}", max_shard_size=max_shard_size
    )
    sign_bytes = written = 0
    in_files: dict[str, str] = {}
    for name, tensors in logging.tqdm(shards.filename_to_tensors.items(), desc="Writing model shards"):
        scaled = {tensor: found for tensor in tensors if (found := getattr(state[tensor], "scales", None)) is not None}
        parts = {part: value for tensor in tensors for part, value in _parts(tensor, state[tensor]).items()}
        in_files |= dict.fromkeys(parts, name)
        rounded = [tensor for tensor, found in scaled.items() if found.activations is not None]
        pairs = {tensor: scales.scale_name(tensor) for tensor in scaled}
        metadata = {"format": "pt", **scales.as_metadata(pairs, rounded)}
        stored = MadeOnDemand(parts, _stored)
        with staged.writing(staged.path / name) as path, replacing(path) as sink:
            writer = TensorWriter(sink, metadata, negative_zeros=negative_zeros)
            content = write_all(writer, stored)
        sign_bytes += sum(map(content.sign_nbytes, content.tensors.values()))
        written += writer.written
    if text := cost_of_signs.note(sign_bytes, written, 'save_pretrained(..., negative_zeros="drop")'):
        _logger.warning(f"{staged.path}: {text}")
    if shards.is_sharded:
        weight_map = {"metadata": shards.metadata, "weight_map": in_files}
        encoded = (json.dumps(weight_map, indent=2, sort_keys=True) + "\n").encode()
        _write(staged, staged.path / placing.index_name("sparsefmt", variant), encoded)


def _write(staged: StagedFolder, file: Path, content: bytes) -> None:
    with staged.writing(file) as path, replacing(path) as sink:
        sink.write(content)


def _state(model: Any, original_format: bool, given: dict[str, Any] | None) -> dict[str, torch.Tensor]:
    """What the dense model's checkpoint has, a StandIn for each compressed weight.

    Of a model that computes in float32 with weights of 16 bits, the rest is there a second time, in 16 bits.

    given: a state dict to save in place of the model's own.
    """
    if given is None:
        state = tensors_and_stacks_of(model)
        layers = {
            joined(name, "weight"): layer
            for name, layer in modules_with_names(model)
            if isinstance(layer, SparseLinear)
        }
        for name, scale in scaled_weights(model).items():
            # they come with their weights, whatever these are called in the end
            state.pop(scale, None)
            state.pop(scales.input_scale_name(name), None)
    else:
        state, layers = compressed_state(model, given)
    for key in model._keys_to_ignore_on_save or ():
        state.pop(key, None)
    compressed: dict[str, torch.Tensor] = {
        name: _stand_in(tensor, layers.get(name)) for name, tensor in state.items() if isinstance(tensor, SparseTensor)
    }
    compressed |= {name: _stack_stand_in(stack) for name, stack in state.items() if isinstance(stack, SparseStack)}
    dense = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    stored = stored_dtypes(model)
    kept = {
        name: as_stored(tensor, stored[name]) if name in stored else tensor
        for name, tensor in remove_tied_weights_from_state_dict(dense, model).items()
    }
    checkpoint = {**kept, **compressed}
    return revert_weight_conversion(model, checkpoint) if original_format else checkpoint


def _stand_in(tensor: SparseTensor, layer: SparseLinear | None) -> StandIn:
    if layer is None or layer.weight_scale is None:
        return StandIn(tensor)
    of_input = None if layer.input_scale is None else float(layer.input_scale)
    return StandIn(tensor, ScalesOf(layer.weight_scale, of_input, layer.activations), layer.weight_dtype)


def _stack_stand_in(stack: SparseStack) -> torch.Tensor:
    if stack.ndim == 2 or stack.by_heads:
        return StandIn(stack.tensor())
    return StackStandIn([layer.sparse_tensor() for layer in stack.layers], stack.transposed)


def _parts(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor under its name; a scaled weight with its scales."""
    made = {name: tensor}
    if isinstance(tensor, StandIn) and tensor.scales is not None:
        made[scales.scale_name(name)] = tensor.scales.of_weight
        if tensor.scales.of_input is not None:
            made[scales.input_scale_name(name)] = torch.tensor(tensor.scales.of_input)
    return made


def _note_activations(model: Any) -> None:
    """Let config.json say that activations are rounded to eight bits, where all layers do so. Each file says of which.

    What the config of a quantized checkpoint says is not said again, and cannot be contradicted.
    """
    config = model.config.quantization_config
    if not isinstance(config, SparsefmtConfig):
        return
    known, unknown, contradicting = config.quantization, [], 0
    for name, layer in modules_with_names(model):
        if not isinstance(layer, SparseLinear) or layer.weight_scale is None:
            continue
        scheme = None if known is None else known.scheme_of(name)
        if scheme is not None and scheme.activations in ("int8", "int8-static"):
            contradicting += layer.activations is None
        elif layer.input_scale is None and layer.weight.tensor.dtype == np.int8:
            unknown.append(layer.activations)
    config.activations = "int8" if unknown and None not in unknown else None
    if contradicting:
        _logger.warning(
            f"activations are not rounded to eight bits in {contradicting:,} layers, and will be when the folder is"
            " loaded, since the config of the quantized checkpoint says so: load it with"
            ' quantization_config=SparsefmtConfig(activations="float")'
        )


def _write_stored_dtype(model: Any, folder: Path) -> None:
    """Write config.json once more where the model computes in float32: with the dtype that it is stored in."""
    stored = stored_dtypes(model)
    dtype = next(
        (stored.get(name, tensor.dtype) for name, tensor in model.named_parameters() if tensor.is_floating_point()),
        None,
    )
    if dtype is None or dtype == model.dtype:
        return
    config = copy.deepcopy(model.config)
    replace_dtype(config, model.dtype, dtype)
    config.save_pretrained(folder)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without that of transformers, which has no weights to write."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _nbytes(tensor: torch.Tensor) -> int:
    if isinstance(tensor, StackStandIn):
        return sum(matrix.nbytes for matrix in tensor.matrices)
    if not isinstance(tensor, StandIn):
        return tensor.numel() * tensor.element_size()
    return tensor.compressed.nbytes + (0 if tensor.scales is None else tensor.scales.of_weight.nbytes)


def _stored(tensor: torch.Tensor) -> Any:
    if isinstance(tensor, StackStandIn):
        return stacked(tensor.oriented())
    return tensor.compressed if isinstance(tensor, StandIn) else rows_of(tensor)
