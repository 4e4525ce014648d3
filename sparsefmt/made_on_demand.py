"""MadeOnDemand: a mapping of names to tensors, which are made one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sparsefmt.adapters.mistakes import expect_tensors
from sparsefmt.errors import in_tensor


class MadeOnDemand(Mapping[str, Any]):
    """A mapping in order of names, so that a file does not depend on the order of a dict; values are made on demand.

    Args:
        make: called with a tensor each time it is asked for. Its errors name the tensor.
    """

    def __init__(self, tensors: Mapping[str, Any], make: Callable[[Any], Any]) -> None:
        expect_tensors(tensors, "tensor")
        self._tensors = tensors
        self._make = make

    def __getitem__(self, name: str) -> Any:
        value = self._tensors[name]
        with in_tensor(name):
            return self._make(value)

    def __iter__(self) -> Iterator[str]:
        # names that are not text have no order; writing them says what is wrong with them
        return iter(sorted(self._tensors, key=str))

    def __len__(self) -> int:
        return len(self._tensors)
