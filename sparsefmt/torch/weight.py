"""SparseWeight: what code that asks a layer for its `weight` gets, where there is no dense one.

What most code asks a weight for, its shape, dtype and device, is known without elements. For everything else that a
torch.Tensor has, and for torch's functions, a dense tensor stands in for as long as the operation takes; so models
whose code uses the weight of a layer without calling the layer give the dense model's results, if slower. What changes
the weight in place is written back to the layer, or refused where that cannot be done: no change is lost silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map

from sparsefmt.adapters.torch import as_torch
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.operator import dense_op, linear_op

if TYPE_CHECKING:
    from sparsefmt.torch.linear import SparseLinear


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INSPECTIONS = _words(
    """
    eq ne lt le gt ge equal allclose isclose isnan isinf isfinite any all count_nonzero nonzero argwhere abs absolute
    sum mean std var norm min max amin amax numpy tolist contains bool float int
    """
)
"""Operations by which people look at weights. They need no warning that they are slow."""

_WITHOUT_ELEMENTS = _words(
    """
    is_floating_point is_complex is_signed element_size itemsize nbytes stride is_contiguous nelement ndimension
    storage_offset is_sparse is_sparse_csr is_quantized is_mkldnn is_nested is_conj is_neg is_inference is_leaf layout
    names grad_fn output_nr dim_order has_names
    """
)
"""What a tensor without elements knows as well."""

_LIKE = _words(
    """
    new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like rand_like randn_like
    is_same_size
    """
)
"""What asks for shape, dtype and device of its first argument alone."""

_AS_OTHER = _words("type_as expand_as view_as reshape_as to is_same_size")
"""What asks for the same of its second argument."""

_DEVICES = _words("is_cpu is_cuda is_meta is_xpu is_mps is_mtia is_ipu is_xla is_maia is_vulkan")

_REFUSED = _words(
    """
    data_ptr untyped_storage storage storage_type set_ resize_ resize_as_ register_hook retain_grad backward is_set_to
    register_post_accumulate_grad_hook share_memory_ pin_memory rename_
    """
)
"""What has no meaning for a dense tensor that is gone after the operation."""

_ITSELF = frozenset({"detach", "detach_", "contiguous"})
"""What gives a tensor with the same memory."""


class SparseWeight:
    """The weight of a SparseLinear. Not a torch.Tensor, though it has what one has.

    shape, dtype, device and the like are those of the dense weight. `torch.nn.functional.linear` computes on the
    compressed weight. For everything else, operators, methods and functions of torch, a dense tensor is made for the
    time of the operation: the results are right, and cost O(rows * cols) time and memory each time, which a warning
    says once for each layer if it happens in computing rather than in looking at weights.

    Changes in place, such as `weight.mul_(2)` and `weight[0] = 0`, compress the changed weight anew and give it to the
    layer. Where that cannot be, they raise RuntimeError: on views of the weight, and on a weight that layers share.

    `weight == 0` and other comparisons are element-wise, as for tensors; weights are told apart by `is`, and hashed by
    identity.

    Attributes:
        tensor: the SparseTensor (out_features, in_features).
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
        """(out_features, in_features); the other way round for the weight of what was a Conv1D, as that has it."""
        shape = self._layer.out_features, self._layer.in_features
        return torch.Size(shape[::-1] if self._layer.transposed else shape)

    @property
    def dtype(self) -> torch.dtype:
        """That of the elements; float32 in a model that computes in float32 with weights of 16 bits."""
        return self._layer.weight_dtype

    @property
    def device(self) -> torch.device:
        return self._layer.weight_arrays.device

    @property
    def ndim(self) -> int:
        return 2

    def dim(self) -> int:
        return 2

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
            self._write(value.to_dense() if isinstance(value, SparseWeight) else value)

    def to_dense(self) -> torch.Tensor:
        """The weights as a dense tensor of torch, bit for bit (or widened, see `dtype`), in memory of its own."""
        layer = self._layer
        if torch.compiler.is_compiling():
            weights = layer.weight_arrays, layer.weight_table
            dense = dense_op(*weights, layer._dtype, layer.out_features, layer.in_features).to(self.dtype)
        else:
            dense = as_torch(self.tensor.todense(), self.tensor.operand().dtype).to(self.device, self.dtype)
        return dense.t().contiguous() if layer.transposed else dense

    def __repr__(self) -> str:
        return f"SparseWeight({self.tensor!r})" if self._layer.has_weight else "SparseWeight(none yet)"

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(_computed(torch.Tensor.unbind, (self,), {}))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """What `numpy.asarray(weight)` is: the dense weight, bit for bit, bfloat16 as ml_dtypes has it."""
        if dtype is None and self._layer.weight_dtype != self._layer._dtype:
            dtype = np.dtype(np.float32)
        dense = self.tensor.__array__(dtype, copy)
        return np.ascontiguousarray(dense.T) if self._layer.transposed else dense

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
            return _computed(attribute.__get__, (self,), {})
        return lambda *args, **kwargs: _computed(attribute, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(function, args, kwargs or {})

    @property
    def _called(self) -> str:
        """How messages call it."""
        name = self._layer.name
        return "the weight of a SparseLinear" if name is None else f"the weight of SparseLinear {name!r}"

    def _write(self, value: torch.Tensor) -> None:
        """Give the layer another weight."""
        if not isinstance(value, torch.Tensor) or value.shape != self.shape:
            what = f"one of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{self._called} has shape {tuple(self.shape)}, and cannot become {what}")
        if self._layer.is_tied:
            raise RuntimeError(
                f"{self._called} is shared with other layers, and cannot be changed for one: make the model dense"
                " first, with sparsefmt.torch.make_dense(model), or model.dequantize() in transformers"
            )
        was_sparse = self.tensor.layout != "dense"
        self._layer.compress(value.detach().t() if self._layer.transposed else value.detach())
        if was_sparse and self.tensor.layout == "dense":
            warnings.warn(
                f"{self._called} has been changed, and is {self.tensor.sparsity:.0%} zero now: it is not compressed any"
                " more, and multiplied slower than by a torch.nn.Linear. sparsefmt.torch.make_dense(model) makes those",
                UserWarning,
                stacklevel=4,
            )

    def _without_elements(self) -> torch.Tensor:
        """A tensor of this shape, dtype and device that takes no memory, and is not to be read."""
        return torch.empty((), dtype=self.dtype, device=self.device).expand(self.shape)

    def _say_that_it_is_slow(self, operation: str) -> None:
        layer = self._layer
        if layer.warned or operation.strip("_") in _INSPECTIONS:
            return
        layer.warned = True
        pattern = "a pattern of its name" if layer.name is None else repr("*." + layer.name.rpartition(".")[2])
        warnings.warn(
            f"{operation}() needs the elements of {self._called}, {self.shape[0]:,} x {self.shape[1]:,}, which are made"
            " dense for it each time: right, but slower than a dense layer. Keep such layers dense: give sparsify,"
            f" load_into or SparsefmtConfig exclude={pattern}, or an include= without them",
            UserWarning,
            stacklevel=4,
        )


class WeightView(torch.Tensor):
    """A view of the dense tensor that stood in for a SparseWeight, such as `weight.t()`: a tensor like any other, which
    cannot be changed in place, since that would change nothing but itself.
    """

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            views = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, WeightView)]
            versions = [view._version for view in views]
            made = function(*args, **kwargs)
            if [view._version for view in views] != versions:
                raise RuntimeError(
                    f"{_name_of(function)} changes a view of the weight of a SparseLinear, which would be lost:"
                    " change the weight itself (layer.weight.mul_(2), layer.weight[0] = 0), or a clone of the view"
                )
            return _marked(made, views)


def _computed(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a function of torch, with dense tensors for the SparseWeights among its arguments."""
    if function is torch.nn.functional.linear:
        made = _linear(*args, **kwargs)
        if made is not None:
            return made
    if torch.compiler.is_compiling():
        return _traced(function, args, kwargs)
    weights = {id(value): value for value in tree_flatten((args, kwargs))[0] if isinstance(value, SparseWeight)}
    name = _name_of(function)
    if name in _LIKE or (name in _AS_OTHER and not isinstance(args[0], SparseWeight)):
        without = {key: weight._without_elements() for key, weight in weights.items()}
        return function(*_replaced(args, without), **_replaced(kwargs, without))
    # tensors of inference mode do not count how often they are changed
    with torch.inference_mode(False):
        dense = {key: weight.to_dense() for key, weight in weights.items()}
    versions = {key: tensor._version for key, tensor in dense.items()}
    for weight in weights.values():
        weight._say_that_it_is_slow(name)
    made = function(*_replaced(args, dense), **_replaced(kwargs, dense))
    for key, weight in weights.items():
        if dense[key]._version != versions[key]:
            weight._write(dense[key])
            if made is dense[key]:
                return weight
    return _marked(made, dense.values())


def _traced(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same while torch.compile or torch.export trace: an operator makes the weight dense. Changes are refused."""
    name = _name_of(function)
    if name in _CHANGING or "out" in kwargs or (name.endswith("_") and not name.endswith("__")):
        raise RuntimeError(f"{name} changes the weight of a SparseLinear, which cannot be compiled: do it before")
    return function(*_traced_arguments(args), **_traced_arguments(kwargs))


def _traced_arguments(value: Any) -> Any:
    if isinstance(value, SparseWeight):
        return value.to_dense()
    if type(value) in (tuple, list):
        return type(value)([_traced_arguments(part) for part in value])
    if type(value) is dict:
        return {key: _traced_arguments(part) for key, part in value.items()}
    return value


def _replaced(value: Any, dense: dict[int, torch.Tensor]) -> Any:
    """Arguments with tensors, by id, for the SparseWeights among them."""
    return tree_map(lambda leaf: dense[id(leaf)] if isinstance(leaf, SparseWeight) else leaf, value)


def _linear(input: Any, weight: Any, bias: Any = None) -> torch.Tensor | None:
    """torch.nn.functional.linear, with its names of arguments, on a compressed weight; None where that cannot be."""
    if not isinstance(weight, SparseWeight) or weight._layer.transposed:
        return None
    if isinstance(input, SparseWeight) or isinstance(bias, SparseWeight):
        return None
    layer = weight._layer
    return linear_op(input, layer.weight_arrays, layer.weight_table, bias, layer.out_features, layer.in_features)


def _marked(made: Any, sources: Iterable[torch.Tensor]) -> Any:
    """A result in which nothing can be changed in place that shares the memory of a dense tensor that stood in."""
    memory = {source.untyped_storage().data_ptr() for source in sources} - {0}

    def mark(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        elif isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type != "meta":
            return value.as_subclass(WeightView) if value.untyped_storage().data_ptr() in memory else value
        return value

    return tree_map(mark, made)


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", str(function))
    # of a property, the getter
    return getattr(getattr(function, "__self__", None), "__name__", name) if name == "__get__" else name


def _operator(name: str) -> Callable[..., Any]:
    function = getattr(torch.Tensor, name)

    def operator(self: SparseWeight, *others: Any) -> Any:
        return _computed(function, (self, *others), {})

    operator.__name__ = name
    return operator


_CHANGING = _words(
    """
    __setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__
    __ilshift__ __irshift__
    """
)
_OPERATORS = _words(
    """
    eq ne lt le gt ge bool float int index complex contains getitem setitem invert neg pos abs
    add radd iadd sub rsub isub mul rmul imul matmul rmatmul truediv rtruediv itruediv floordiv rfloordiv ifloordiv
    mod rmod imod pow rpow ipow and rand iand or ror ior xor rxor ixor lshift rlshift ilshift rshift rrshift irshift
    """
)
for _name in _OPERATORS:
    setattr(SparseWeight, f"__{_name}__", _operator(f"__{_name}__"))
