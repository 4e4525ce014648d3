"""AsArray: what numpy's operators and functions take for the dense array that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

_PRODUCTS = tuple(getattr(np, name) for name in ("matmul", "vecdot", "matvec", "vecmat") if hasattr(np, name))
"""Products of matrices, which would be slow on dense arrays."""


class AsArray(NDArrayOperatorsMixin):
    """The half of SparseTensor that numpy sees. Whatever numpy does with one, it does with what `todense` gives."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """Elements of the dense array."""
        raise NotImplementedError

    def todense(self) -> np.ndarray:
        """The dense array."""
        raise NotImplementedError

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The array of `numpy.asarray(w)`: `todense()`, cast to `dtype` if one is given. O(rows * cols).

        Raises:
            ValueError: copy=False. The dense array has to be made.
        """
        if copy is False:
            raise ValueError("a SparseTensor cannot become a numpy array without a copy")
        dense = self.todense()
        return dense if dtype is None else dense.astype(dtype, copy=False)

    # dicts and sets cannot use an element-wise `==`
    __hash__ = object.__hash__

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **kwargs: Any) -> Any:
        """The result of an operator or an element-wise function of numpy, on the dense array. O(rows * cols).

        Raises:
            TypeError: it is a product of matrices, which would be slow that way; or the result is to be written into a
                SparseTensor, which cannot change.
        """
        if ufunc in _PRODUCTS:
            raise TypeError(
                f"numpy.{ufunc.__name__} does not take a SparseTensor: `w @ x` and `sparsefmt.linear(x, w)`, which is"
                " x @ w.T, compute on it as it is; w.todense() is a numpy array for all else"
            )
        if method == "at" or any(isinstance(array, AsArray) for array in out):
            raise TypeError("a SparseTensor cannot change: change the array that w.todense() gives")
        dense = [value.todense() if isinstance(value, AsArray) else value for value in inputs]
        if out:
            kwargs["out"] = out
        return getattr(ufunc, method)(*dense, **kwargs)

    def __bool__(self) -> bool:
        """The truth of the only element, as in numpy; an error if there are more."""
        if self.size == 1:
            return bool(self.todense().reshape(-1)[0])
        raise ValueError(
            f"a SparseTensor of {self.size:,} elements is neither true nor false: say w.nnz > 0, (w == 0).all(), or"
            " w is not None"
        )

    def __contains__(self, value: object) -> bool:
        """Whether an element is equal to the value, as in numpy."""
        return value in self.todense()

    def __getattr__(self, name: str) -> Any:
        hint = ": call todense(), whose result has it" if not name.startswith("_") and hasattr(np.ndarray, name) else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}", name=name, obj=self)
