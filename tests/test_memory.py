"""Memory for arrays: aligned, readable behind its end, in huge pages for large tensors; scratches are taken again."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref

import numpy as np
import pytest
from helpers import weights

from sparsefmt import SparseTensor, load, save
from sparsefmt.kernels import scratch as scratches
from sparsefmt.kernels.scratch import scratch
from sparsefmt.layouts import memory
from sparsefmt.layouts.memory import ALIGNMENT, HUGE_PAGE, OVERREAD, Arena

needs_huge_pages = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without huge pages to ask for"
)


def tile(*sizes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"array{number}": rng.integers(0, 256, size, dtype=np.uint8) for number, size in enumerate(sizes)}


@needs_huge_pages
def test_an_arena_keeps_arrays_behind_each_other():
    arena = Arena(memory.WORTH_HUGE_PAGES)
    tiles = [tile(1, 0, 64, 100_001) for _ in range(3)]
    kept = [arena.keep(one) for one in tiles]
    addresses = []
    for before, after in zip(tiles, kept, strict=True):
        assert before.keys() == after.keys()
        for name, array in after.items():
            assert np.array_equal(array, before[name])
            assert array.dtype == before[name].dtype
            assert not array.flags.writeable
            assert array.ctypes.data % ALIGNMENT == 0
            # what kernels may read behind it is there, and nobody else's
            behind = np.lib.stride_tricks.as_strided(array, (array.size + OVERREAD,))[array.size :]
            assert not behind.any()
            addresses.append((array.ctypes.data, array.nbytes))
    assert addresses[0][0] % HUGE_PAGE == 0
    assert sorted(addresses) == addresses
    assert addresses[-1][0] - addresses[0][0] < 4 * 100_001


@needs_huge_pages
def test_an_arena_that_was_guessed_too_small_takes_more(monkeypatch):
    monkeypatch.setattr(memory, "WORTH_HUGE_PAGES", 1)
    arena = Arena(1)
    tiles = [tile(3 * HUGE_PAGE), tile(100), tile(5 * HUGE_PAGE)]
    for before, after in [(one, arena.keep(one)) for one in tiles]:
        assert np.array_equal(after["array0"], before["array0"])


def test_small_tensors_and_other_systems_keep_what_they_have(monkeypatch):
    one = tile(10)
    assert Arena(memory.WORTH_HUGE_PAGES - 1).keep(one) is one
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert Arena(1 << 40).keep(one) is one


@needs_huge_pages
def test_a_claim_reserves_no_more_than_a_region():
    arena = Arena(1 << 60)
    assert np.array_equal(arena.keep({"a": np.arange(5)})["a"], np.arange(5))
    assert arena._room.nbytes < 2 * memory._REGION


@needs_huge_pages
def test_memory_goes_with_the_last_array():
    arena = Arena(memory.WORTH_HUGE_PAGES)
    array = arena.keep(tile(1000))["array0"]
    del arena
    base = array
    while base.base is not None and isinstance(base.base, np.ndarray):
        base = base.base
    region = weakref.ref(base.base.obj if isinstance(base.base, memoryview) else base.base)
    assert array.sum() > 0
    del array, base
    gc.collect()
    assert region() is None


@needs_huge_pages
@pytest.mark.parametrize("layout", ["dense", "bitmask", "permuted"])
def test_tensors_in_an_arena_are_the_same_tensors(layout, monkeypatch):
    array = weights(np.random.default_rng(3), (300, 5000), np.float32, 0.7, negative_zeros=True)
    expected = SparseTensor.from_dense(array, layout)
    monkeypatch.setattr(memory, "WORTH_HUGE_PAGES", 1)
    data = save({"w": array}, layout=layout)
    found = [
        SparseTensor.from_dense(array, layout),
        expected.to_layout("bitmask" if layout == "permuted" else "permuted").to_layout(layout),
    ]
    if layout != "dense":
        found.append(load(data, layout=layout)["w"])
    for tensor in found:
        assert tensor.todense().tobytes() == array.tobytes()
        assert tensor.nbytes == expected.nbytes
        for ours, theirs in zip(tensor._tiles, expected._tiles, strict=True):
            assert {name: part.tobytes() for name, part in ours.items()} == {
                name: part.tobytes() for name, part in theirs.items()
            }


class TestScratch:
    def test_the_same_memory_again(self):
        first = scratch("test", 1000, np.dtype(np.float32))
        again = scratch("test", 500, np.dtype(np.float64))
        assert again.ctypes.data == first.ctypes.data
        assert again.ctypes.data % ALIGNMENT == 0
        assert (first.size, again.size, again.dtype) == (1000, 500, np.float64)
        more = scratch("test", 100_000, np.dtype(np.float32))
        assert more.size == 100_000
        assert scratch("other", 10, np.dtype(np.float32)).ctypes.data != more.ctypes.data

    def test_each_thread_has_its_own(self):
        mine, theirs = scratch("test", 1000, np.dtype(np.float32)), []
        other = threading.Thread(target=lambda: theirs.append(scratch("test", 1000, np.dtype(np.float32))))
        other.start()
        other.join()
        assert not np.may_share_memory(mine, theirs[0])

    def test_large_ones_are_not_kept(self):
        length = scratches.KEPT_BYTES // 4 + 1
        one, other = scratch("test", length, np.dtype(np.float32)), scratch("test", length, np.dtype(np.float32))
        assert not np.may_share_memory(one, other)
