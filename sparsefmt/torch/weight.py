"""SparseWeight: what code that asks a layer for its `weight` gets, where there is no dense one.

What most code asks a weight for, its shape, dtype and device, is known without elements. For everything else that a
torch.Tensor has, and for torch's functions, a dense tensor stands in for as long as the operation takes; so models
whose code uses the weight of a layer without calling the layer give the dense model's results, if slower. What changes
the weight in place is written back to the layer, or refused where that cannot be done: no change is lost silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsefmt.adapters.torch import as_torch
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.dense_on_demand import INSPECTIONS, DenseOnDemand, computed, words
from sparsefmt.torch.operator import dense_op
from sparsefmt.torch.scaled_operator import dequantized, scaled_dense_op

if TYPE_CHECKING:
    from sparsefmt.torch.linear import SparseLinear


_WITHOUT_ELEMENTS = words(
    """
    is_floating_point is_complex is_signed element_size itemsize nbytes stride is_contiguous nelement ndimension
    storage_offset is_sparse is_sparse_csr is_quantized is_mkldnn is_nested is_conj is_neg is_inference is_leaf layout
    names grad_fn output_nr dim_order has_names
    """
)
"""What a tensor without elements knows as well."""

_DEVICES = words("is_cpu is_cuda is_meta is_xpu is_mps is_mtia is_ipu is_xla is_maia is_vulkan")

_REFUSED = words(
    """
    data_ptr untyped_storage storage storage_type set_ resize_ resize_as_ register_hook retain_grad backward is_set_to
    register_post_accumulate_grad_hook share_memory_ pin_memory rename_
    """
)
"""What has no meaning for a dense tensor that is gone after the operation."""

_ITSELF = frozenset({"detach", "detach_", "contiguous"})
"""What gives a tensor with the same memory."""


class SparseWeight(DenseOnDemand):
    """The weight of a SparseLinear. Not a torch.Tensor, though it has what one has.

    shape, dtype, device and the like are those of the dense weight; of scaled weights, that is the elements times their
    scales, rounded to the dtype that the layer has for them. `torch.nn.functional.linear` computes on the
    compressed weight. For everything else, operators, methods and functions of torch, a dense tensor is made for the
    time of the operation: the results are right, and cost O(rows * cols) time and memory each time, which a warning
    says once for each layer if it happens in computing rather than in looking at weights.

    Changes in place, such as `weight.mul_(2)` and `weight[0] = 0`, compress the changed weight anew and give it to the
    layer. Where that cannot be, they raise RuntimeError: on views of the weight, on a weight that layers share, and on
    scaled weights, which would have to be rounded again.

    `weight == 0` and other comparisons are element-wise, as for tensors; weights are told apart by `is`, and hashed by
    identity.

    Attributes:
        tensor: the SparseTensor (out_features, in_features); of scaled weights, the elements without their scales.
    """

    __slots__ = ("__weakref__", "_layer")
    __hash__ = object.__hash__

    def __init__(self, layer: SparseLinear) -> None:
        self._layer = layer

    @property
    def tensor(self) -> SparseTensor:
        return self._layer.sparse_tensor()

    @property
    def shape(self) -> torch.Size:
        """(out_features, in_features); the other way round for the weight of what was a Conv1D, as that has it; and of
        a convolution, with its window."""
        return self._layer.weight_shape

    @property
    def dtype(self) -> torch.dtype:
        """That of the elements; float32 in a model that computes in float32 with weights of 16 bits.

        Scaled weights have the dtype that their layer has for them.
        """
        return self._layer.weight_dtype

    @property
    def device(self) -> torch.device:
        return self._layer.weight_arrays.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def is_shared(self) -> bool:
        return self._layer.weight_arrays.is_shared()

    def is_pinned(self, device: Any = None) -> bool:
        return False

    @property
    def requires_grad(self) -> bool:
        """False: weights of a SparseLinear are not trained."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> SparseWeight:
        if requires_grad:
            raise RuntimeError(
                f"{self._called} is compressed, and not trained: make the model dense first, with"
                " sparsefmt.torch.make_dense(model), or model.dequantize() in transformers"
            )
        return self

    @property
    def grad(self) -> None:
        return None

    @grad.setter
    def grad(self, value: None) -> None:
        if value is not None:
            raise RuntimeError(f"{self._called} is compressed, and has no gradient")

    @property
    def data(self) -> SparseWeight:
        return self

    @data.setter
    def data(self, value: Any) -> None:
        if value is not self:
            self.write(value.to_dense() if isinstance(value, SparseWeight) else value)

    def to_dense(self) -> torch.Tensor:
        """The weights as a dense tensor of torch, bit for bit (or widened, see `dtype`), in memory of its own.

        Scaled weights are multiplied by their scales in float32, and rounded to `dtype`.
        """
        layer = self._layer
        features, scale = (layer.out_features, layer.in_features), layer.weight_scale
        if torch.compiler.is_compiling():
            weights = layer.weight_arrays, layer.weight_table
            if scale is None:
                dense = dense_op(*weights, layer._dtype, *features).to(self.dtype)
            else:
                dense = scaled_dense_op(*weights, scale, self.dtype, *features)
        else:
            dense = as_torch(self.tensor.todense(), self.tensor.operand().dtype).to(self.device)
            dense = dense.to(self.dtype) if scale is None else dequantized(dense, scale, self.dtype)
        return layer.as_stored(dense)

    def __repr__(self) -> str:
        return f"SparseWeight({self.tensor!r})" if self._layer.has_weight else "SparseWeight(none yet)"

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(computed(torch.Tensor.unbind, (self,), {}))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """What `numpy.asarray(weight)` is: the dense weight, bit for bit, bfloat16 as ml_dtypes has it."""
        if self._layer.weight_scale is not None:
            return np.asarray(SparseTensor.from_dense(self.to_dense().cpu(), "dense").todense(), dtype)
        if dtype is None and self._layer.weight_dtype != self._layer._dtype:
            dtype = np.dtype(np.float32)
        dense = self.tensor.__array__(dtype, copy)
        return np.ascontiguousarray(dense.T) if self._layer.transposed else dense.reshape(self.shape)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(torch.Tensor, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in _REFUSED:
            raise TypeError(f"{self._called} is compressed, and has no {name}: call .to_dense() on it first")
        if name in _ITSELF:
            return lambda *args, **kwargs: self
        if name in _WITHOUT_ELEMENTS:
            return getattr(torch.empty(self.shape, dtype=self.dtype, device="meta"), name)
        if name in _DEVICES:
            return self.device.type == name.removeprefix("is_")
        attribute = getattr(torch.Tensor, name)
        if not callable(attribute):
            return computed(attribute.__get__, (self,), {})
        return lambda *args, **kwargs: computed(attribute, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return computed(function, args, kwargs or {})

    @property
    def _called(self) -> str:
        """How messages call it."""
        name = self._layer.name
        return "the weight of a SparseLinear" if name is None else f"the weight of SparseLinear {name!r}"

    def write(self, value: torch.Tensor) -> None:
        """Give the layer another weight."""
        if not isinstance(value, torch.Tensor) or value.shape != self.shape:
            what = f"one of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{self._called} has shape {tuple(self.shape)}, and cannot become {what}")
        if self._layer.is_tied:
            raise RuntimeError(
                f"{self._called} is shared with other layers, and cannot be changed for one: make the model dense"
                " first, with sparsefmt.torch.make_dense(model), or model.dequantize() in transformers"
            )
        if self._layer.weight_scale is not None:
            raise RuntimeError(
                f"{self._called} is {self.tensor.dtype} times scales, and what is written to it would be rounded again:"
                " make the model dense first, with sparsefmt.torch.make_dense(model), or model.dequantize() in"
                " transformers"
            )
        was_sparse = self.tensor.layout != "dense"
        self._layer.compress(self._layer.as_matrix(value.detach()))
        if was_sparse and self.tensor.layout == "dense":
            warnings.warn(
                f"{self._called} has been changed, and is {self.tensor.sparsity:.0%} zero now: it is not compressed any"
                " more, and multiplied slower than by a torch.nn.Linear. sparsefmt.torch.make_dense(model) makes those",
                UserWarning,
                stacklevel=4,
            )

    def linear(self, input: Any, bias: Any) -> torch.Tensor | None:
        """torch.nn.functional.linear on the compressed weight; None if it is transposed, or a convolution's."""
        layer = self._layer
        if layer.transposed or self.ndim != 2:
            return None
        return layer.product(input, bias)

    def without_elements(self) -> torch.Tensor:
        """A tensor of this shape, dtype and device that takes no memory, and is not to be read."""
        return torch.empty((), dtype=self.dtype, device=self.device).expand(self.shape)

    def say_that_it_is_slow(self, operation: str) -> None:
        layer = self._layer
        if layer.warned or operation.strip("_") in INSPECTIONS:
            return
        layer.warned = True
        pattern = "a pattern of its name" if layer.name is None else repr("*." + layer.name.rpartition(".")[2])
        sizes = " x ".join(f"{size:,}" for size in self.shape)
        warnings.warn(
            f"{operation}() needs the elements of {self._called}, {sizes}, which are"
            " made dense for it each time: right, but slower than a dense layer. Keep such layers dense: give sparsify,"
            f" load_into or SparsefmtConfig exclude={pattern}, or an include= without them",
            UserWarning,
            stacklevel=4,
        )


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(torch.Tensor, name)

    def operator(self: SparseWeight, *others: Any) -> Any:
        return computed(function, (self, *others), {})

    operator.__name__ = name
    return operator


_OPERATORS = words(
    """
    eq ne lt le gt ge bool float int index complex contains getitem setitem invert neg pos abs
    add radd iadd sub rsub isub mul rmul imul matmul rmatmul truediv rtruediv itruediv floordiv rfloordiv ifloordiv
    mod rmod imod pow rpow ipow and rand iand or ror ior xor rxor ixor lshift rlshift ilshift rshift rrshift irshift
    """
)
for _name in _OPERATORS:
    setattr(SparseWeight, f"__{_name}__", _operator(f"__{_name}__"))
