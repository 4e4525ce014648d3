"""Everything that is replaced in transformers, once, when `sparsefmt.transformers` is imported.

A quantizer decides what becomes of tensors. In no version of transformers can it say where they come from or where they
are saved: transformers looks only for model.safetensors and pytorch_model.bin, and writes only the former. So four
functions of transformers.modeling_utils, and one of its quantizers, get a wrapper. For everything that is not ours, the
wrapper calls what was there:

    _get_resolved_checkpoint_files                   finds the .sparsefmt files of a folder, or of a repository on the
                                                     Hub
    load_state_dict                                  reads one of them
    PreTrainedModel.save_pretrained                  of a model with SparseLinear layers, writes .sparsefmt files
    PreTrainedModel.resize_token_embeddings          of a model whose output layer is compressed, resizes that too
    AutoHfQuantizer.merge_quantization_configs       takes the SparsefmtConfig that a caller gives for such a folder,
                                                     where transformers would warn that it ignores it, and for a folder
                                                     that compressed-tensors has quantized

They are there in all versions from 5.0 to 5.24.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import modeling_utils
from transformers.quantizers.auto import AutoHfQuantizer

from sparsefmt.checkpoints import compressed_tensors, huggingface
from sparsefmt.errors import UnsupportedError
from sparsefmt.transformers import files, lazy_tensors, placing, resizing, saving
from sparsefmt.transformers.config import SparsefmtConfig

_NAMES = {
    "_get_resolved_checkpoint_files": (
        "pretrained_model_name_or_path",
        "variant",
        "gguf_file",
        "download_kwargs",
    ),
    "load_state_dict": ("checkpoint_file", "map_location"),
}
"""The functions, and the arguments that are looked at."""

_MARK = "_of_sparsefmt"


def install() -> None:
    """Put the wrappers where they belong. Once: a second call does nothing.

    Raises:
        UnsupportedError: this version of transformers has no such functions, or other arguments.
    """
    if hasattr(modeling_utils.load_state_dict, _MARK):
        return
    for name, arguments in _NAMES.items():
        function = getattr(modeling_utils, name, None)
        if function is None or not set(arguments) <= inspect.signature(function).parameters.keys():
            raise UnsupportedError(
                "transformers-version",
                f"sparsefmt.transformers needs transformers 5.0 to 5.24, or one like them: {transformers.__version__}"
                f" has no {name} with arguments {', '.join(arguments)}",
            )
    _wrap(modeling_utils, "_get_resolved_checkpoint_files", _find_files)
    _wrap(modeling_utils, "load_state_dict", _read_file)
    _wrap(modeling_utils.PreTrainedModel, "save_pretrained", _save)
    _wrap(modeling_utils.PreTrainedModel, "resize_token_embeddings", resizing.resize_token_embeddings)

    merge = AutoHfQuantizer.merge_quantization_configs

    def merged(cls: type, quantization_config: Any, quantization_config_from_args: Any) -> Any:
        return _merge(merge, quantization_config, quantization_config_from_args)

    setattr(AutoHfQuantizer, "merge_quantization_configs", classmethod(merged))  # noqa: B010


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function by `wrapper`, which gets it as its first argument."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)


def _find_files(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    name = given.get("pretrained_model_name_or_path")
    if name is None or given.get("gguf_file") is not None:
        return original(*args, **kwargs)
    how = given.get("download_kwargs") or {}
    folder = Path(os.fspath(name), how.get("subfolder") or "")
    variant = given.get("variant")
    ours = huggingface.is_method(folder)
    found = files.weight_files(folder, variant) if ours else None
    if found is not None:
        return found, None
    try:
        # other weights come first where config.json does not name us, as they would without us
        return original(*args, **kwargs)
    except OSError as error:
        if ours:
            raise OSError(
                f"{folder}: config.json says that the weights are .sparsefmt files, and there is no"
                f" {files.file_name(variant)} nor an index of shards"
            ) from error
        if folder.is_dir():
            found = files.weight_files(folder, variant)
        elif not os.path.exists(name):
            found = files.downloaded_files(os.fspath(name), variant, how)
        if found is None:
            raise
        return found, None


def _merge(original: Callable[..., Any], of_the_model: Any, given: Any) -> Any:
    """What holds of the two: the one that the caller gave, where both are ours. How weights are quantized, the model
    says, whether it has been converted or not."""
    found = of_the_model if isinstance(of_the_model, dict) else of_the_model.to_dict()
    method = found.get("quant_method")
    if isinstance(given, SparsefmtConfig) and method in (huggingface.METHOD, compressed_tensors.METHOD):
        return given.with_schemes(found if method == compressed_tensors.METHOD else found.get(huggingface.SCHEMES))
    return original(of_the_model, given)


def _read_file(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(original).bind(*args, **kwargs)
    given.apply_defaults()
    path = given.arguments["checkpoint_file"]
    if not os.fspath(path).endswith(files.SUFFIX):
        return original(*args, **kwargs)
    return lazy_tensors.state_dict(path, given.arguments["map_location"])


def _save(original: Callable[..., Any], model: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(original).bind(model, save_directory, *args, **kwargs)
    others = given.arguments.pop("kwargs", {})
    arguments = {**given.arguments, **others}
    if saving.is_ours(model):
        return saving.save_pretrained(original, arguments.pop("self"), **arguments)
    is_local = arguments.get("is_main_process", True) and not arguments.get("push_to_hub")
    if is_local and placing.is_concerned(Path(save_directory), arguments.get("variant")):
        return saving.save_dense(original, arguments.pop("self"), **arguments)
    return original(model, save_directory, *args, **kwargs)
