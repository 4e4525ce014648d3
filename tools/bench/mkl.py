"""MKL's sparse products, called by ctypes. Imported by `kernels.py`, not a program."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import click
import numpy as np
import scipy.sparse


class Mkl:
    """MKL's sparse products (int32 indices, inspector and executor), from the shared library of the package `mkl`.

    PyTorch has another MKL inside, whose symbols are its own; both run on the one OpenMP library that PyTorch has
    loaded, so that only one set of threads is there to spin.
    """

    OPERATION_NON_TRANSPOSE, INDEX_BASE_ZERO, LAYOUT_ROW_MAJOR = 10, 0, 101
    GNU_THREADING = 3
    CALLS = 1000
    """How many products the hints promise."""

    class Description(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int)]

    GENERAL = Description(20, 40, 50)

    def __init__(self, path: str) -> None:
        # its own symbols first, whatever other MKL is in the process
        self.library = ctypes.CDLL(path, mode=os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0))
        self.library.MKL_Set_Threading_Layer(self.GNU_THREADING)

    def set_threads(self, threads: int) -> None:
        self.library.MKL_Set_Num_Threads(ctypes.c_int(threads))

    def version(self) -> str:
        text = ctypes.create_string_buffer(200)
        self.library.MKL_Get_Version_String(text, 200)
        return text.value.decode().strip()

    def call(self, function: str, *arguments: object) -> None:
        status = getattr(self.library, f"mkl_sparse_{function}")(*arguments)
        if status:
            raise click.ClickException(f"MKL's {function} failed with status {status}")

    def product(self, csr: scipy.sparse.csr_array, x: np.ndarray) -> Callable[[], np.ndarray]:
        """A function that gives csr @ x, (rows, tokens), always in the same memory.

        The analysis is for the number of threads set at the time. x: (cols, tokens), contiguous.
        """
        (rows, cols), tokens = csr.shape, x.shape[1]
        y = np.empty((rows, tokens), np.float32)
        starts = csr.indptr.ctypes.data
        handle = ctypes.c_void_p()
        self.call(
            "s_create_csr",
            ctypes.byref(handle),
            ctypes.c_int(self.INDEX_BASE_ZERO),
            ctypes.c_int(rows),
            ctypes.c_int(cols),
            ctypes.c_void_p(starts),
            ctypes.c_void_p(starts + csr.indptr.itemsize),
            ctypes.c_void_p(csr.indices.ctypes.data),
            ctypes.c_void_p(csr.data.ctypes.data),
        )
        operation, calls = ctypes.c_int(self.OPERATION_NON_TRANSPOSE), ctypes.c_int(self.CALLS)
        layout, width = ctypes.c_int(self.LAYOUT_ROW_MAJOR), ctypes.c_int(tokens)
        if tokens == 1:
            self.call("set_mv_hint", handle, operation, self.GENERAL, calls)
        else:
            self.call("set_mm_hint", handle, operation, self.GENERAL, layout, width, calls)
        self.call("optimize", handle)

        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        x_data, y_data = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data)
        if tokens == 1:
            function = self.library.mkl_sparse_s_mv
            arguments: tuple[Any, ...] = (operation, one, handle, self.GENERAL, x_data, zero, y_data)
        else:
            function = self.library.mkl_sparse_s_mm
            arguments = (operation, one, handle, self.GENERAL, layout, x_data, width, width, zero, y_data, width)

        def multiply(alive: tuple[object, ...] = (csr, x)) -> np.ndarray:
            if function(*arguments):
                raise click.ClickException("MKL's product failed")
            return y

        weakref.finalize(multiply, self.library.mkl_sparse_destroy, handle)
        return multiply


@cache
def find_mkl() -> Mkl | None:
    """The library of the package `mkl`, if that is installed."""
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.startswith("libmkl_rt.so"):
            return Mkl(str(file.locate()))
    return None
