"""SparsefmtQuantizer: what transformers asks while it builds, loads and saves a model of compressed layers."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch
from transformers import modeling_utils
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils import logging

from sparsefmt.adapters.torch import TORCH_DTYPES
from sparsefmt.checkpoints.experts import expect_whole
from sparsefmt.checkpoints.huggingface import METHOD
from sparsefmt.checkpoints.quantized_files import QuantizedFiles
from sparsefmt.container import budget
from sparsefmt.errors import in_file
from sparsefmt.layouts.memory import give_back
from sparsefmt.torch.compute_dtype import hint, narrow, widen
from sparsefmt.torch.expert_kinds import count_of_experts, has_experts
from sparsefmt.torch.layers import Holder
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.mapped_files import MappedFiles
from sparsefmt.torch.models import SparsifyResult
from sparsefmt.torch.selection import Selection
from sparsefmt.torch.summary import summary_of
from sparsefmt.torch.to_dense import make_dense
from sparsefmt.torch.widened import SIXTEEN_BITS
from sparsefmt.transformers import replace_layers
from sparsefmt.transformers.compress import Compress
from sparsefmt.transformers.config import SparsefmtConfig, replace_dtype
from sparsefmt.transformers.files import SUFFIX
from sparsefmt.transformers.lazy_tensors import ARGUMENT, CompressedFile

_logger = logging.get_logger("transformers.sparsefmt")

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Device maps that leave to us where layers lie."""

_IN_FLOAT32 = 'from_pretrained(..., quantization_config=SparsefmtConfig(compute_dtype="float32"))'


@register_quantizer(METHOD)
class SparsefmtQuantizer(HfQuantizer):
    """Keeps pruned weights of linear layers compressed. Made by transformers for a SparsefmtConfig.

    Weights stored sparse in .sparsefmt files stay so; those of other files are compressed one by one as they are
    loaded, where they are pruned. `model.dequantize()` gives back ordinary layers.

    Attributes:
        result: once the model is loaded, its layers that are sparse, and what stays dense and why.
    """

    quantization_config: SparsefmtConfig
    requires_calibration = False

    def __init__(self, quantization_config: SparsefmtConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # dtypes are then cast as for any model; some versions would leave renamed tensors of quantized ones as they are
        self.pre_quantized = False
        self.result = SparsifyResult({}, {})
        self._compress = True
        self._dtype: torch.dtype | None = None
        self._shapes: dict[str, torch.Size] = {}
        self._mismatched: set[str] = set()
        self._files = MappedFiles()
        self._quantized: QuantizedFiles | None = None
        self._model: weakref.ref[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # of a copy, it would be the model that was copied
        return {**self.__dict__, "_model": None}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse devices other than the CPU, as a whole or for a part of the model."""
        device_map = kwargs.get("device_map")
        places = device_map.values() if isinstance(device_map, dict) else [device_map]
        for place in places:
            if place is not None and place not in _MAPS and not _is_cpu(place):
                raise ValueError(
                    f"sparsefmt computes on the CPU: device_map must be 'cpu', 'auto' or None, and has {str(place)!r}"
                )

    def update_device_map(self, device_map: Any) -> Any:
        return {"": torch.device("cpu")} if isinstance(device_map, str) else device_map

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that the weights are loaded in: as ever, since what is widened for `compute_dtype` is so later.

        Raises:
            ValueError: a dtype that contradicts `compute_dtype`.
        """
        if self._in_float32 and dtype not in (*SIXTEEN_BITS, torch.float32):
            raise ValueError(
                f"dtype={dtype} contradicts compute_dtype='float32', which is for weights of 16 bits: give"
                " dtype=torch.bfloat16, or leave compute_dtype out"
            )
        self._dtype = dtype
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Say that the matrices of .sparsefmt files, and quantized weights of any, shall stay compressed."""
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        paths = kwargs.get("checkpoint_files")
        if paths and (self._is_quantized or all(path.endswith(SUFFIX) for path in paths)):
            self._quantized = self._open_quantized(paths) if self._is_quantized else None
            paths[:] = [CompressedFile(path, self.quantization_config, self._quantized) for path in paths]
            self._compress = False
            if any(has_experts(module) for module in model.modules()):
                _expect_experts(paths, count_of_experts(model))
        if self._in_float32 and self._dtype == torch.float32:
            _expect_float32(paths or [])
        return model

    @property
    def _is_quantized(self) -> bool:
        return self.quantization_config.compressed_tensors is not None

    def _open_quantized(self, paths: list[str]) -> QuantizedFiles:
        """The files of a checkpoint whose weights are quantized, with all that belongs to a weight found."""
        config = self.quantization_config
        quantization = config.quantization
        assert quantization is not None
        if others := [path for path in paths if not path.endswith((SUFFIX, ".safetensors"))]:
            raise ValueError(
                f"weights that compressed-tensors has quantized are read from safetensors, not {others[0]}"
            )
        with budget.calling_it(ARGUMENT):
            return QuantizedFiles(paths, quantization, max_decoded_bytes=config.max_decoded_bytes)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Whether a tensor is to be compressed. transformers asks again if a shape differs, before it says so."""
        if param_name in self._mismatched:
            return False
        module, attribute = get_module_from_name(model, param_name)
        name = param_name.removesuffix(f".{attribute}")
        return self._compress and self._selection.why_not_held(Holder(name, module, attribute)) is None

    def get_quantize_ops(self) -> ConversionOps:
        return Compress(self._selection, self._mismatched, self._files)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self._check_shapes(model)
        with budget.calling_it(ARGUMENT):
            self.result = replace_layers.settle(model, self._selection)
        if self._quantized is not None:
            self._quantized.close()
            if any(weight.scheme.activations == "fp8" for weight in self._quantized.weights.values()):
                _logger.info(
                    "sparsefmt: activations are not rounded to eight-bit floats, which the config says they are"
                )
            self.quantization_config.hold_by_rows()
        if self._in_float32:
            widen(model)
            replace_dtype(model.config, self._dtype, torch.float32)
            self.result = self.result._replace(
                summary=summary_of(model, self._selection, self.result.dense, self.result.quantizing)
            )
        self._files.release(model)
        give_back()
        self._model = weakref.ref(model)
        self._say_what_became_of_it(model)
        return model

    def _say_what_became_of_it(self, model: Any) -> None:
        """A line in the log of transformers, which shows warnings unless it is told to show more."""
        summary = self.result.summary
        if summary is not None:
            log = _logger.warning if summary.surprises or summary.quantizing is not None else _logger.info
            log(f"sparsefmt: {summary}")
        text = None if self._in_float32 else hint(model, _IN_FLOAT32)
        if text is not None:
            _logger.warning(f"sparsefmt: {text}")

    def _check_shapes(self, model: Any) -> None:
        """Find what versions of transformers before 5.24 overlook in quantized models."""
        wrong = [
            f"size mismatch for {name}: the shape in the checkpoint is {tuple(parameter.shape)}, in the model"
            f" {tuple(self._shapes[name])}"
            for name, parameter in model.named_parameters()
            if parameter.shape != self._shapes.get(name, parameter.shape)
        ]
        if wrong:
            raise RuntimeError("\n    ".join([f"Error(s) in loading the weights of {type(model).__name__}:", *wrong]))

    @property
    def _selection(self) -> Selection:
        return self.quantization_config.selection

    @property
    def _in_float32(self) -> bool:
        return self.quantization_config.compute_dtype is not None

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        dtype = _dtype_named(dtype) if isinstance(dtype, str) else dtype
        make_dense(model, dtype)
        if self._in_float32 and dtype in SIXTEEN_BITS:
            narrow(model, dtype)
            replace_dtype(model.config, torch.float32, dtype)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any] | None, dict[str, str]]:
        """No tensors, as `saving` writes them; None, for transformers to find them, where it saves adapters."""
        return None if getattr(model, "_hf_peft_config_loaded", False) else {}, {}

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether a Trainer takes a model with adapters."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether a Trainer takes a model without adapters: it asks when it is made, for evaluating alone, too.

        Weights that stay as they are while the rest is trained are a trap, so the log says which.
        """
        model = None if self._model is None else self._model()
        frozen = 0 if model is None or _has_adapters(model) else sum(map(_is_frozen, model.modules()))
        if frozen:
            _logger.warning(
                f"sparsefmt: a Trainer of this model evaluates and predicts. The weights of {frozen:,} SparseLinear"
                " layers are not trained: train() changes the other parameters alone. To train all, call"
                " model.dequantize() first; docs/pytorch.md has more ways"
            )
        return True


def _expect_experts(paths: list[str], experts: int | None) -> None:
    """Refuse files in which an expert is missing or has another shape, by name. Raises FormatError.

    experts: how many the model has in each layer, if that is known.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        tensors = modeling_utils.load_state_dict(path, map_location="meta")
        shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with in_file(Path(paths[0]).parent):
        expect_whole(shapes, experts)


def _expect_float32(paths: list[str]) -> None:
    """Refuse files with weights of 16 bits that would be loaded as float32. Raises ValueError."""
    for path in paths:
        for name, tensor in modeling_utils.load_state_dict(path, map_location="meta").items():
            if tensor.dim() == 2 and tensor.dtype in SIXTEEN_BITS:
                raise ValueError(
                    f"dtype=torch.float32 makes float32 of the weights ({name!r} is {tensor.dtype} in the file), and"
                    f" compute_dtype='float32' keeps them in 16 bits: give dtype={tensor.dtype}, or leave"
                    " compute_dtype out"
                )


def _dtype_named(name: str) -> torch.dtype:
    """The dtype of a config that was saved. By a table: torch imports modules of its own for some other names."""
    named = {str(dtype): dtype for dtype in TORCH_DTYPES.values()}
    dtype = named.get(name if name.startswith("torch.") else f"torch.{name}")
    if dtype is None:
        raise ValueError(f"the dtype of the model's config is {name!r}, which is not a dtype of torch")
    return dtype


def _has_adapters(model: torch.nn.Module) -> bool:
    """Whether PEFT has put adapters into a model."""
    kinds = {type(module) for module in model.modules()}
    return any(base.__module__.partition(".")[0] == "peft" for kind in kinds for base in kind.__mro__)


def _is_frozen(module: torch.nn.Module) -> bool:
    """Whether this is a SparseLinear whose weights are not trained."""
    if not isinstance(module, SparseLinear):
        return False
    return not any(name != "bias" and tensor.requires_grad for name, tensor in module.named_parameters())


def _is_cpu(place: Any) -> bool:
    try:
        return torch.device(place).type == "cpu"
    except (RuntimeError, TypeError):
        return False
