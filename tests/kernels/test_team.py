"""Products on threads of PyTorch's OpenMP runtime: the same bits, after a fork and from many threads at once, too."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest
from helpers import run_python, weights

from sparsefmt import SparseTensor, linear
from sparsefmt.kernels import multiply, team
from sparsefmt.threads import is_worker, share

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def every_product_in_threads(monkeypatch):
    monkeypatch.setattr(multiply, "WORTH_A_THREAD", 1)


@pytest.fixture
def teams(monkeypatch) -> list[int]:
    """Threads of each team that was asked for."""
    runtime = team._openmp()
    if runtime is None:
        pytest.skip("this PyTorch has loaded no OpenMP runtime with GOMP_parallel")
    asked = []

    def counted(function, shared, count, flags):
        asked.append(count)
        runtime.parallel(function, shared, count, flags)

    monkeypatch.setattr(team, "_openmp", lambda: runtime._replace(parallel=counted))
    return asked


def case(layout: str, dtype: type, tokens: int) -> tuple[SparseTensor, np.ndarray]:
    rng = np.random.default_rng(tokens)
    w = SparseTensor.from_dense(weights(rng, (333, 200), dtype, 0.6), layout)
    return w, rng.standard_normal((tokens, 200)).astype(np.float64 if dtype is np.float64 else np.float32)


@pytest.mark.parametrize("layout", ["dense", "bitmask", "permuted"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("tokens", [1, 5, 100])
def test_the_bits_of_one_thread(layout, dtype, tokens, teams):
    w, x = case(layout, dtype, tokens)
    alone = linear(x, w, threads=1)
    assert not teams
    for threads in (2, 3, 8):
        assert np.array_equal(linear(x, w, threads=threads), alone)
    assert teams
    assert set(teams) <= {2, 3, 8}
    with_infinity = x.copy()
    with_infinity[0, 3] = np.inf
    expected = linear(with_infinity, w, threads=1)
    assert np.array_equal(linear(with_infinity, w, threads=2), expected, equal_nan=True)


@pytest.mark.parametrize("layout", ["dense", "bitmask", "permuted"])
@pytest.mark.parametrize("most_arranged", [0, 1 << 30], ids=["together", "each for itself"])
def test_activations_are_arranged_in_threads(layout, most_arranged, teams, monkeypatch):
    """They are arranged, multiplied when all are, and put in place when all sums are there; by columns, too."""
    monkeypatch.setattr(team, "_MOST_ARRANGED", most_arranged)
    w, _ = case(layout, np.float32, 1)
    x = np.random.default_rng(3).standard_normal((700, 200)).astype(np.float32)
    for tokens in (2, 33, 700):
        expected = linear(x[:tokens], w, threads=1)
        for _ in range(20):
            assert np.array_equal(linear(x[:tokens], w, threads=4), expected)
        assert np.array_equal((w @ x[:tokens].T).T, expected)
    x[650, 7] = np.nan
    expected[650] = linear(x[650:651], w, threads=1)
    assert np.array_equal(linear(x, w, threads=4), expected, equal_nan=True)
    assert teams


def test_other_dtypes_take_the_pool(teams):
    """Their values are widened in Python."""
    w, x = case("bitmask", np.int16, 4)
    assert np.array_equal(linear(x, w, threads=2), linear(x, w, threads=1))
    assert not teams


def test_work_within_the_pool_has_no_team(teams):
    w, x = case("bitmask", np.float32, 4)
    expected = linear(x, w, threads=1)
    both, results = threading.Barrier(2, timeout=60), {}

    def multiply_once(number):
        both.wait()  # so that this thread does not take both numbers
        results[is_worker()] = linear(x, w, threads=2)

    share(multiply_once, 2, 2)
    # this thread has a team; the pool's thread has none
    assert len(teams) == 1
    assert np.array_equal(results[False], expected)
    assert np.array_equal(results[True], expected)


def test_many_threads_at_once(teams):
    cases = [case(layout, np.float32, tokens) for layout in ("dense", "bitmask", "permuted") for tokens in (1, 40)]
    expected = [linear(x, w, threads=1) for w, x in cases]
    wrong = []

    def multiply_all():
        for _ in range(20):
            for (w, x), result in zip(cases, expected, strict=True):
                if not np.array_equal(linear(x, w, threads=2), result):
                    wrong.append(w.layout)

    threads = [threading.Thread(target=multiply_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_after_a_fork():
    """The runtime of the child would wait for threads that it does not have."""
    found = run_python(
        """
import os, numpy as np, torch
from sparsefmt import SparseTensor, linear
from sparsefmt.kernels import multiply
multiply.WORTH_A_THREAD = 1
w, x = SparseTensor.from_dense(np.eye(300, dtype=np.float32), "bitmask"), np.ones((2, 300), np.float32)
linear(x, w, threads=2)
child = os.fork()
if not child:
    os._exit(0 if (linear(x, w, threads=2) == 1).all() else 1)
print(os.waitpid(child, 0)[1])
"""
    )
    assert found == "0"


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(team.ENVIRONMENT_VARIABLE, "0")
    monkeypatch.setattr(team, "_found", {})
    assert team._openmp() is None
    w, x = case("permuted", np.float32, 3)
    assert np.array_equal(linear(x, w, threads=2), linear(x, w, threads=1))


def test_without_a_runtime(monkeypatch):
    monkeypatch.setattr(team, "_found", {})
    monkeypatch.setattr(team, "_loaded_runtimes", lambda: ["/nowhere/libgomp.so.1", sys.executable])
    assert team._openmp() is None
    monkeypatch.setattr(team, "_found", {})
    monkeypatch.delitem(sys.modules, "torch")
    assert team._openmp() is None
