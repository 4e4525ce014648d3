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
        rounds: whether it rounds weights and activations to bfloat16. It is a peer, and not what dense means.
    """

    name: str
    version: str
    set_threads: Callable[[int], Any] | None
    product: Callable[[np.ndarray], Callable[[np.ndarray], Product]]
    threads: list[int | None]
    rounds: bool = False

    def prepare(self, threads: int | None) -> None:
        if self.set_threads and threads is not None:
            self.set_threads(threads)


@contextmanager
def dense_libraries(threads: int) -> Iterator[list[Library]]:
    """numpy, and torch if it is installed, in float32 and in bfloat16. Numbers of threads are restored at the end.

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
            named = "torch", str(torch.__version__), torch.set_num_threads
            libraries.append(Library(*named, _torch_product, counts))
            libraries.append(Library(*named, _torch_product_in_bfloat16, counts, rounds=True))
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


def _torch_product_in_bfloat16(weight: np.ndarray) -> Callable[[np.ndarray], Product]:
    """Activations are rounded before: those of a model in bfloat16 are so."""
    from_numpy = importlib.import_module("torch").from_numpy
    rounded = from_numpy(weight).bfloat16()

    def of(x: np.ndarray) -> Product:
        activations = from_numpy(x).bfloat16()
        return lambda: activations @ rounded.T

    return of
