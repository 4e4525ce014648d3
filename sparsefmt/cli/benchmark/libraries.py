"""The libraries that make dense products, and their threads."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

Product = Callable[[], Any]
"""Computes x @ weight.T for arrays that it holds."""


@dataclass(frozen=True)
class Library:
    """A library that makes dense products.

    Attributes:
        set_threads: sets its number of threads; None if that is not possible here.
        product: takes weights, and gives a function that takes activations and gives the product to be timed.
        threads: the numbers of threads on which it is timed.
    """

    name: str
    version: str
    set_threads: Callable[[int], Any] | None
    product: Callable[[np.ndarray], Callable[[np.ndarray], Product]]
    threads: list[int | None]

    def prepare(self, threads: int | None) -> None:
        if self.set_threads and threads is not None:
            self.set_threads(threads)


@contextmanager
def dense_libraries(threads: int) -> Iterator[list[Library]]:
    """numpy, and torch if it is installed. Their own numbers of threads are restored at the end.

    Each is timed on one thread too, since small products are faster that way. Where another process takes a core,
    libraries whose threads wait for each other may be a hundred times slower, which would flatter us.
    """
    counts: list[int | None] = [*dict.fromkeys([threads, 1])]
    with ExitStack() as stack:
        set_threads = _set_numpy_threads(stack)
        # before torch comes, whose pools are not numpy's
        libraries = [Library("numpy", np.__version__, set_threads, _numpy_product, counts if set_threads else [None])]
        with suppress(ImportError, OSError):  # OSError: one of its shared libraries does not load
            # imported by name, here and below: the package does not need it, and type checkers need not find it
            torch = importlib.import_module("torch")
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            libraries.append(Library("torch", str(torch.__version__), torch.set_num_threads, _torch_product, counts))
        yield libraries


def _set_numpy_threads(stack: ExitStack) -> Callable[[int], None] | None:
    """A function that sets the threads of numpy's BLAS; None if threadpoolctl is not installed or does not know it."""
    with suppress(ImportError):
        threadpoolctl = importlib.import_module("threadpoolctl")
        pools = threadpoolctl.ThreadpoolController().select(user_api="blas")
        if pools.lib_controllers:
            stack.enter_context(pools.limit(limits=1))  # restored when the stack is closed

            def set_threads(threads: int) -> None:
                for pool in pools.lib_controllers:
                    pool.set_num_threads(threads)

            return set_threads
    return None


def _numpy_product(weight: np.ndarray) -> Callable[[np.ndarray], Product]:
    return lambda x: lambda: x @ weight.T


def _torch_product(weight: np.ndarray) -> Callable[[np.ndarray], Product]:
    from_numpy = importlib.import_module("torch").from_numpy
    wrapped = from_numpy(weight)

    def of(x: np.ndarray) -> Product:
        activations = from_numpy(x)
        return lambda: activations @ wrapped.T

    return of
