"""Signs of zeros that compressed weights have left in their file: who has them, and whether state_dict asks for them.

The weights of a SparseLinear are in memory, and the signs of their zeros mostly are not: no product needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

from sparsefmt.container.stored_signs import Signs
from sparsefmt.tensor import SparseTensor

_with_signs: ContextVar[bool] = ContextVar("with_signs", default=True)


@contextmanager
def leaving_signs() -> Iterator[None]:
    """Have state_dict leave signs of zeros in their file, for who asks for tensors and not for what is in memory."""
    token = _with_signs.set(False)
    try:
        yield
    finally:
        _with_signs.reset(token)


def with_signs() -> bool:
    """Whether state_dict has what is in memory: False within `leaving_signs`."""
    return _with_signs.get()


class SignsOf(NamedTuple):
    """Signs of zeros that are not among the arrays of weights, and the table of these weights."""

    table: torch.Tensor
    signs: Signs

    def put_on(self, tensor: SparseTensor, table: torch.Tensor) -> SparseTensor:
        """The tensor with them, unless somebody has given the module other buffers meanwhile."""
        return tensor.with_signs(self.signs) if torch.equal(self.table.cpu(), table) else tensor
