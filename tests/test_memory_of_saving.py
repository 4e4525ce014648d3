"""Saving takes memory for a few tiles and 16 bytes for each row and column, whatever the shape; sparse input, for its
elements and rows. Under a limit of address space, so that what is over it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited as Linux does it")

PROGRAM = """
import json, resource, sys
import numpy as np, scipy.linalg, scipy.sparse, sparsefmt  # numba loads scipy.linalg, whose BLAS waits for memory
from sparsefmt.adapters import rows_of
from sparsefmt.tensor_writer import TensorWriter

def dense(shape, sparsity):
    array = np.empty(shape, np.float16)
    flat = array.reshape(-1)
    for begin in range(0, flat.size, 1 << 20):
        part = flat[begin : begin + (1 << 20)]
        part[:] = rng.standard_normal(part.size)
        part[rng.random(part.size, np.float32) < sparsity] = 0
    return array

def sparse(shape, count):
    places = [rng.integers(0, size, count) for size in shape]
    return scipy.sparse.csr_array((rng.standard_normal(count).astype(np.float32), places), shape=shape)

class Nowhere:
    def write(self, data):
        pass

def save(tensor, codec):
    writer = TensorWriter(Nowhere(), codec=codec, threads=1)
    writer.add("w", tensor)
    writer.finish()

def size():
    (line,) = [line for line in open("/proc/self/status") if "VmSize" in line]
    return int(line.split()[1]) << 10

rng = np.random.default_rng(0)
make = {"dense": dense, "sparse": sparse}[sys.argv[1]]
cases = json.loads(sys.argv[2])
# what is compiled and loaded on the first use is not what is measured
for codec in {codec for _, _, codec in cases}:
    for small in (dense((4, 70_000), 0.5), dense((300, 300), 0.7), sparse((3000, 3000), 5000)):
        save(small, codec)
for shape, amount, codec in cases:
    tensor = make(tuple(shape), amount)
    matrix = rows_of(tensor)
    if make is dense:
        tile = matrix.tile_rows("bitmask") * matrix.cols * matrix.dtype.nbits // 8
        allowed = 6 * tile + 16 * (matrix.rows + matrix.cols) + (32 << 20)
    else:
        allowed = 64 * tensor.nnz + 24 * matrix.rows + (48 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (size() + allowed, -1))
    try:
        save(tensor, codec)
        print(shape, codec, "good")
    except (MemoryError, sparsefmt.LimitError) as error:
        print(shape, codec, "takes more than", allowed, error)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""


def check(kind: str, cases: list[tuple[tuple[int, ...], float, str]]) -> None:
    command = [sys.executable, "-c", PROGRAM, kind, json.dumps(cases)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(cases)
    assert [line for line in lines if not line.endswith("good")] == []


def test_dense_tensors_of_any_shape():
    """A stack of matrices has all of a matrix as columns; a convolution has few rows; an embedding has many."""
    shapes = [(4, 512, 1024), (2, 3, 1 << 18), (1, 1 << 21), (8, 300_000), (1 << 19, 8), (3, 3, 512, 512)]
    cases = [(shape, 0.6, "auto") for shape in shapes]
    cases += [(shape, 0.6, codec) for codec in ("zstd", "raw") for shape in shapes[:2]]
    cases += [((4, 512, 1024), 0.0, "auto"), ((4, 256, 1024), 0.97, "auto")]
    check("dense", cases)


def test_sparse_matrices():
    """A million rows and columns, and a single row of a hundred million, as well as small ones."""
    shapes = [((1_000_000, 1_000_000), 300_000), ((50_000, 50_000), 500_000), ((1, 10**8), 1), ((10**6, 40), 1000)]
    cases = [(shape, count, codec) for codec in ("auto", "raw") for shape, count in shapes]
    check("sparse", cases)
