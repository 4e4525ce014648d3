"""Functions of torch on what stands for a dense tensor, which is made for as long as the operation takes.

What is changed in place is written back, or refused where that cannot be done: no change is lost silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_map


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


INSPECTIONS = words(
    """
    eq ne lt le gt ge equal allclose isclose isnan isinf isfinite any all count_nonzero nonzero argwhere abs absolute
    sum mean std var norm min max amin amax numpy tolist contains bool float int
    """
)
"""Operations by which people look at weights. They need no warning that they are slow."""

_LIKE = words(
    """
    new_zeros new_ones new_empty new_full new_tensor zeros_like ones_like empty_like full_like rand_like randn_like
    is_same_size
    """
)
"""What asks for shape, dtype and device of its first argument alone."""

_AS_OTHER = words("type_as expand_as view_as reshape_as to is_same_size")
"""What asks for the same of its second argument."""

_CHANGING = words(
    """
    __setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__
    __ilshift__ __irshift__
    """
)


class DenseOnDemand:
    """What torch's functions take for a dense tensor, and what can be made one."""

    __slots__ = ()

    def to_dense(self) -> torch.Tensor:
        """The dense tensor, in memory of its own."""
        raise NotImplementedError

    def without_elements(self) -> torch.Tensor:
        """A tensor of this shape, dtype and device that takes no memory, and is not to be read."""
        raise NotImplementedError

    def write(self, value: torch.Tensor) -> None:
        """Become this dense tensor. Raises RuntimeError where that cannot be."""
        raise NotImplementedError

    def linear(self, input: Any, bias: Any) -> torch.Tensor | None:
        """torch.nn.functional.linear with this as its weight, as it is; None where it has to be dense for that."""
        raise NotImplementedError

    def say_that_it_is_slow(self, operation: str) -> None:
        """Warn, once, unless the operation is one by which people look at weights (`INSPECTIONS`)."""
        raise NotImplementedError


def computed(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a function of torch, with dense tensors for the DenseOnDemands among its arguments."""
    if function is torch.nn.functional.linear:
        made = _linear(*args, **kwargs)
        if made is not None:
            return made
    if torch.compiler.is_compiling():
        return _traced(function, args, kwargs)
    weights = {id(value): value for value in tree_flatten((args, kwargs))[0] if isinstance(value, DenseOnDemand)}
    name = _name_of(function)
    if name in _LIKE or (name in _AS_OTHER and not isinstance(args[0], DenseOnDemand)):
        without = {key: weight.without_elements() for key, weight in weights.items()}
        return function(*_replaced(args, without), **_replaced(kwargs, without))
    # tensors of inference mode do not count how often they are changed
    with torch.inference_mode(False):
        dense = {key: weight.to_dense() for key, weight in weights.items()}
    versions = {key: tensor._version for key, tensor in dense.items()}
    for weight in weights.values():
        weight.say_that_it_is_slow(name)
    made = function(*_replaced(args, dense), **_replaced(kwargs, dense))
    for key, weight in weights.items():
        if dense[key]._version != versions[key]:
            weight.write(dense[key])
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
    if isinstance(value, DenseOnDemand):
        return value.to_dense()
    if type(value) in (tuple, list):
        return type(value)([_traced_arguments(part) for part in value])
    if type(value) is dict:
        return {key: _traced_arguments(part) for key, part in value.items()}
    return value


def _replaced(value: Any, dense: dict[int, torch.Tensor]) -> Any:
    """Arguments with tensors, by id, for the DenseOnDemands among them."""
    return tree_map(lambda leaf: dense[id(leaf)] if isinstance(leaf, DenseOnDemand) else leaf, value)


def _linear(input: Any, weight: Any, bias: Any = None) -> torch.Tensor | None:
    """torch.nn.functional.linear, with its names of arguments; None where the weight has to be dense for that."""
    if not isinstance(weight, DenseOnDemand) or isinstance(input, DenseOnDemand) or isinstance(bias, DenseOnDemand):
        return None
    return weight.linear(input, bias)


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
