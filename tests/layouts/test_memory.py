"""Memory for arrays: aligned, readable behind its end, in huge pages for large tensors; scratches are taken again."""

from __future__ import annotations

import gc
import mmap
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from helpers import weights
from torch.nn.utils import prune

import sparsefmt.numpy
import sparsefmt.torch
from sparsefmt import SparseTensor, load, load_file, save, save_file
from sparsefmt.dtypes import DTYPES
from sparsefmt.kernels.scratch import KEPT_BYTES, room
from sparsefmt.layouts import FORMS, memory
from sparsefmt.layouts.memory import ALIGNMENT, HUGE_PAGE, OVERREAD, Arena
from sparsefmt.layouts.tile import Tile
from sparsefmt.torch.weight_tensors import to_tensors

needs_huge_pages = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="a system without huge pages to ask for"
)

needs_mappings = pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="a system without mappings of no file")


def tile(*sizes: int) -> Tile:
    rng = np.random.default_rng(0)
    arrays = {f"array{number}": rng.integers(0, 256, size, dtype=np.uint8) for number, size in enumerate(sizes)}
    return Tile(FORMS["dense"], DTYPES["U8"], (1, sum(sizes)), arrays)


@needs_huge_pages
def test_an_arena_keeps_arrays_behind_each_other():
    arena = Arena(memory.WORTH_HUGE_PAGES)
    tiles = [tile(1, 0, 64, 100_001) for _ in range(3)]
    kept = [arena.keep(one) for one in tiles]
    addresses = []
    for before, after in zip(tiles, kept, strict=True):
        assert before.arrays.keys() == after.arrays.keys()
        for name, array in after.arrays.items():
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
    assert Arena(memory.WORTH_A_MAPPING - 1).keep(one) is one
    monkeypatch.delattr(mmap, "MAP_ANONYMOUS", raising=False)
    assert Arena(1 << 40).keep(one) is one


@needs_mappings
def test_without_huge_pages_arrays_still_lie_together(monkeypatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    for expected in (memory.WORTH_A_MAPPING, memory.WORTH_HUGE_PAGES):
        before = tile(1000, 2000)
        after = Arena(expected).keep(before)
        assert all(np.array_equal(after[name], before[name]) for name in before.arrays)
        assert 0 < after["array1"].ctypes.data - after["array0"].ctypes.data < 2000


@needs_mappings
@pytest.mark.parametrize("layout", ["bitmask", "permuted"])
@pytest.mark.parametrize("codec", ["raw", "zstd", "rans"])
def test_what_is_loaded_is_not_copied_into_a_layer(layout, codec):
    """A copy would leave the first one's pages behind, in the middle of what stays."""
    array = weights(np.random.default_rng(3), (512, 512), np.float32, 0.8)
    found = [SparseTensor.from_dense(array, layout), load(save({"w": array}, codec=codec), layout=layout)["w"]]
    found.append(found[0].to_layout("bitmask" if layout == "permuted" else "permuted"))
    for tensor in found:
        assert tensor.nbytes > memory.WORTH_A_MAPPING
        held = to_tensors(tensor).arrays
        begin, end = held.data_ptr(), held.data_ptr() + held.numel()
        for part in (part for one in tensor._tiles for part in one.all_arrays().values()):
            assert begin <= part.ctypes.data < part.ctypes.data + part.nbytes <= end


needs_glibc = pytest.mark.skipif(memory._trim() is None, reason="another C library than glibc")


@needs_glibc
def test_what_was_freed_is_given_back():
    code = """if True:
        from pathlib import Path
        import numpy as np
        from sparsefmt.layouts.memory import give_back

        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        taken = [np.ones(5000, np.uint8) for _ in range(10_000)]
        last = np.ones(5000, np.uint8)  # the heap cannot shrink below it
        del taken
        before = resident()
        give_back()
        assert before - resident() > 40_000_000, (before, resident())
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_glibc_nothing_is_given_back(monkeypatch):
    monkeypatch.setattr(memory, "_trim", lambda: None)
    memory.give_back()


class TestGivingBack:
    """Whoever loads, or compresses, much at a time gives back the buffers that it took for that."""

    @pytest.fixture
    def calls(self, monkeypatch):
        made: list[int] = []
        for module in ("sparsefmt.sparse_file", "sparsefmt.torch.models"):
            monkeypatch.setattr(f"{module}.give_back", lambda: made.append(1))
        monkeypatch.setattr("sparsefmt.sparse_file.WORTH_GIVING_BACK", 20_000)
        return made

    def test_loading(self, calls, tmp_path):
        array = weights(np.random.default_rng(3), (64, 512), np.float32, 0.8)
        path = tmp_path / "w.sparsefmt"
        save_file({"w": array}, path)
        readers = [load_file, sparsefmt.numpy.load_file, sparsefmt.torch.load_file]
        of_bytes = [load, sparsefmt.numpy.load, sparsefmt.torch.load]
        for number, read in enumerate([*readers, *of_bytes], 1):
            read(path.read_bytes() if read in of_bytes else path)
            assert len(calls) == number

    def test_little_is_not_worth_it(self, calls, tmp_path):
        save_file({"w": np.ones((4, 4), np.float32)}, tmp_path / "w.sparsefmt")
        load_file(tmp_path / "w.sparsefmt")
        assert not calls

    @pytest.mark.usefixtures("small_layers")
    def test_sparsify(self, calls):
        model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        sparsefmt.torch.sparsify(model)
        assert not calls
        prune.l1_unstructured(model[0], "weight", amount=0.9)
        assert sparsefmt.torch.sparsify(model).sparse
        assert calls == [1]


@needs_huge_pages
def test_a_claim_reserves_no_more_than_a_region():
    arena = Arena(1 << 60)
    one = tile(5)
    assert np.array_equal(arena.keep(one)["array0"], one["array0"])
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
            assert {name: part.tobytes() for name, part in ours.all_arrays().items()} == {
                name: part.tobytes() for name, part in theirs.all_arrays().items()
            }


class TestScratch:
    def test_the_same_memory_again(self):
        first, again = room("test", 4000), room("test", 2000)
        assert again.address == first.address == first.array.ctypes.data
        assert again.address % ALIGNMENT == 0
        more = room("test", 400_000)
        assert more.array.nbytes >= 400_000
        assert room("other", 40).address != more.address

    def test_each_thread_has_its_own(self):
        mine, theirs = room("test", 4000), []
        other = threading.Thread(target=lambda: theirs.append(room("test", 4000)))
        other.start()
        other.join()
        assert not np.may_share_memory(mine.array, theirs[0].array)

    def test_large_ones_are_not_kept(self):
        one, other = room("test", KEPT_BYTES + 1), room("test", KEPT_BYTES + 1)
        assert not np.may_share_memory(one.array, other.array)
