"""max_decoded_bytes: what a file claims is compared with it before memory is taken."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import PRUNABLE, SPARSE, SPARSE_FORMS, peak_of, same_bits, skewed
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sparsefmt
import sparsefmt.torch
from sparsefmt.adapters import Rows
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.container import budget
from sparsefmt.container.in_progress import Contents
from sparsefmt.container.sources import Memory
from sparsefmt.container.writer import Writer
from sparsefmt.dtypes import DTYPES, DType, as_bits
from sparsefmt.layouts import FORMS
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Little on disk, 2 GiB when dense, 64 MiB of masks."""
    path = tmp_path_factory.mktemp("budget") / "zeros.sparsefmt"
    sparsefmt.save_file({"w": scipy.sparse.csr_array((1 << 14, 1 << 14), dtype=np.float64)}, path, layout="bitmask")
    assert path.stat().st_size < budget.FLOOR / budget.RATIO
    return path


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(sparsefmt.LimitError, match="max_decoded_bytes") as caught:
        call()
    assert caught.value.code == "decoded-bytes"


def test_a_budget_compares_each_call_and_a_shared_one_the_sum():
    limit = budget.Budget(1000, 100)
    for _ in range(3):
        limit.ask(100)
    refused(lambda: limit.ask(101))
    assert limit.allows(100)
    assert not limit.allows(101)
    together = limit.together()
    together.ask(60)
    refused(lambda: together.ask(41))
    together.ask(40)
    together.give_back(60)
    together.ask(60)
    assert together.together() is together
    limit.with_limit(101).ask(101)
    assert limit.with_limit(None) is limit
    budget.NO_BUDGET.with_limit(1).ask(1 << 60)


def test_an_attempt_that_takes_too_much_gives_everything_back():
    shared = budget.Budget(1000, 100).together()
    for most in (80, 120):
        attempt = budget.Attempt(shared, "w", most)
        attempt.ask(80)
        with pytest.raises(budget.TooMuchError):
            attempt.ask(30)
        attempt.give_up()
        with pytest.raises(budget.TooMuchError):
            attempt.ask(0)
    attempt = budget.Attempt(shared, "w", None)
    attempt.ask(100)
    refused(lambda: attempt.ask(1))


def test_default(zeros):
    refused(lambda: sparsefmt.load_file(zeros, layout="dense"))
    refused(lambda: sparsefmt.numpy.load_file(zeros))
    refused(lambda: sparsefmt.load(zeros.read_bytes(), layout="dense"))
    with sparsefmt.open_file(zeros) as file:
        refused(lambda: file.get_tensor("w"))
        refused(lambda: file.get_slice("w")[...])
        assert not file.get_slice("w")[5:7].any()
    weight = sparsefmt.load_file(zeros)["w"]
    assert weight.nnz == 0


def test_a_loaded_tensor_remembers_it(zeros):
    weight = sparsefmt.load_file(zeros)["w"]
    for tensor in (weight, weight.to_layout("permuted"), copy.copy(weight)):
        refused(tensor.todense)
        refused(lambda tensor=tensor: np.asarray(tensor))
        refused(lambda tensor=tensor: tensor[:])
        refused(lambda tensor=tensor: tensor[::-1, :-1])
        assert not tensor[::-1, :1].any()  # only these columns are made dense
        assert tensor.to_scipy().nnz == 0  # takes nothing for zeros
        refused(lambda tensor=tensor: tensor.todense(max_decoded_bytes=(1 << 31) - 1))
        assert not tensor[100:102].any()
    weight = sparsefmt.load_file(zeros, max_decoded_bytes=1 << 31)["w"]
    refused(lambda: weight.todense(max_decoded_bytes=1 << 30))
    assert weight[::4, :2].shape == (1 << 12, 2)


@pytest.mark.parametrize("layout", ["bitmask", "permuted"])
def test_to_scipy_takes_more_than_the_tensor(layout, tmp_path):
    """8 bytes for each value of 2, and 4 for each row."""
    array = np.where(np.arange(90_000).reshape(300, 300) % 3, 0, 1).astype(np.float16)
    sparsefmt.save_file({"w": array}, tmp_path / "w.sparsefmt", layout=layout)
    weight = sparsefmt.load_file(tmp_path / "w.sparsefmt", max_decoded_bytes=240_000)["w"]
    refused(weight.to_scipy)
    weight = sparsefmt.load_file(tmp_path / "w.sparsefmt", max_decoded_bytes=250_000)["w"]
    assert weight.to_scipy().nnz == 30_000


def test_a_tensor_of_ones_own_has_none():
    assert sparsefmt.SparseTensor.from_dense(np.eye(9)).todense(max_decoded_bytes=1).any()


def test_raised_and_lowered(zeros):
    with sparsefmt.open_file(zeros, max_decoded_bytes=1 << 32) as file:
        file.expect_budget("dense")
    for layout in ("auto", "bitmask", "permuted"):
        loads = sparsefmt.load_file(zeros, layout=layout)
        refused(lambda layout=layout: sparsefmt.load_file(zeros, layout=layout, max_decoded_bytes=100_000))
        assert loads["w"].shape == (1 << 14, 1 << 14)


def test_together(tmp_path):
    """Each tensor is within the budget, and all of them are not."""
    tensors = {str(number): np.zeros((64, 64), np.float32) for number in range(4)}
    data = sparsefmt.save(tensors, layout="dense", codec="rans")
    assert len(sparsefmt.load(data, max_decoded_bytes=4 * 16384)) == 4
    refused(lambda: sparsefmt.load(data, max_decoded_bytes=4 * 16384 - 1))
    path = tmp_path / "a.sparsefmt"
    path.write_bytes(data)
    with sparsefmt.open_file(path, max_decoded_bytes=16384) as file:
        assert all(not tensor.any() for tensor in file.values())


def test_what_stays_mapped_is_free(tmp_path):
    path = tmp_path / "a.sparsefmt"
    weight = np.eye(500, dtype=np.float32)
    sparsefmt.save_file({"w": weight}, path, layout="permuted", codec="raw")
    assert sparsefmt.load_file(path, max_decoded_bytes=0)["w"].nnz == 500
    refused(lambda: sparsefmt.load_file(path, layout="bitmask", max_decoded_bytes=0))


def test_rows_for_other_formats(tmp_path, monkeypatch):
    """A tensor of few rows that are long."""
    path = tmp_path / "a.sparsefmt"
    sparsefmt.save_file({"w": np.zeros((1, 1 << 16), np.float32)}, path, layout="permuted", codec="rans")
    monkeypatch.setattr(budget, "FLOOR", 1 << 17)
    monkeypatch.setattr(budget, "RATIO", 1)
    with SparsefmtFile(path) as file:
        refused(lambda: file.rows_of("w").bits(0, 1))


ALIASES = [f"n{number:02}" for number in range(16)]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tensor of 64 KiB under 16 names, and a file that is much smaller."""
    path = tmp_path_factory.mktemp("budget") / "tied.sparsefmt"
    weight = np.zeros((64, 256), np.float32)
    weight[3, 4] = 1
    sparsefmt.save_file(dict.fromkeys(ALIASES, weight), path, layout="dense", codec="rans")
    return path


ONE = 64 * 256 * 4


def loads_of_torch(path: Path, budget: int) -> list[Callable[[], dict[str, torch.Tensor]]]:
    return loads_of(sparsefmt.torch, "pt", path, budget)


def loads_of_numpy(path: Path, budget: int) -> list[Callable[[], dict[str, np.ndarray]]]:
    return loads_of(sparsefmt.numpy, "np", path, budget)


def loads_of(twin: ModuleType, framework: str, path: Path, budget: int) -> list[Callable[[], dict[str, Any]]]:
    def get_tensors() -> dict[str, Any]:
        with sparsefmt.safe_open(path, framework, max_decoded_bytes=budget) as file:
            return file.get_tensors()

    return [
        lambda: twin.load_file(path, max_decoded_bytes=budget),
        lambda: twin.load(path.read_bytes(), max_decoded_bytes=budget),
        get_tensors,
    ]


class TestTiedNames:
    """What is allocated is counted: once where names share a tensor, and for each name where they do not."""

    def test_torch_shares_one_tensor(self, tied):
        for load in loads_of_torch(tied, ONE):
            loaded = load()
            assert list(loaded) == ALIASES
            assert len({tensor.data_ptr() for tensor in loaded.values()}) == 1
            assert loaded["n07"][3, 4] == 1
        for load in loads_of_torch(tied, ONE - 1):
            refused(load)

    def test_numpy_has_an_array_for_each_name_and_counts_it(self, tied):
        for load in loads_of_numpy(tied, 16 * ONE):
            loaded = load()
            assert len({array.ctypes.data for array in loaded.values()}) == 16
        for load in [*loads_of_numpy(tied, 2 * ONE), *loads_of_numpy(tied, 16 * ONE - 1)]:
            refused(load)

    def test_what_is_refused_takes_no_memory(self, tied, tmp_path):
        path = tmp_path / "large.sparsefmt"
        sparsefmt.save_file(dict.fromkeys(ALIASES, np.zeros((1024, 4096), np.float32)), path)
        for load in loads_of_numpy(path, 2 << 24):
            assert peak_of(lambda load=load: refused(load))[1] < 1 << 20
        for load in loads_of_torch(path, 2 << 24):
            assert peak_of(load)[1] < 3 << 24

    @pytest.mark.parametrize("layout", ["auto", "dense", *SPARSE])
    def test_the_verbs_share(self, tied, layout):
        loaded = sparsefmt.load_file(tied, layout=layout, max_decoded_bytes=ONE)
        assert len({id(tensor) for tensor in loaded.values()}) == 1
        refused(lambda: sparsefmt.load_file(tied, layout=layout, max_decoded_bytes=ONE - 1))

    def test_load_model(self, tied):
        """Each name is a parameter of its own: what the file adds is one tensor."""
        model = torch.nn.ParameterDict({name: torch.zeros(64, 256) for name in ALIASES})
        sparsefmt.torch.load_model(model, tied, max_decoded_bytes=ONE)
        assert len({parameter.data_ptr() for parameter in model.values()}) == 16
        assert all(parameter[3, 4] == 1 for parameter in model.values())
        refused(lambda: sparsefmt.torch.load_model(model, tied, max_decoded_bytes=ONE - 1))

    def test_load_into_counts_what_each_parameter_takes(self, tied):
        def model() -> torch.nn.Module:
            with torch.device("meta"):
                return torch.nn.ParameterDict({name: torch.zeros(64, 256) for name in ALIASES})

        sparsefmt.torch.load_into(model(), tied, max_decoded_bytes=16 * ONE)
        refused(lambda: sparsefmt.torch.load_into(model(), tied, max_decoded_bytes=16 * ONE - 1))


class TestPairs:
    """F4 of torch: half a byte for each element, in memory too."""

    @pytest.fixture(params=[(64, 8192), (1 << 19,)], ids=["matrix", "vector"])
    def pairs(self, request, tmp_path):
        path = tmp_path / "w.sparsefmt"
        elements = np.zeros(request.param, ml_dtypes.float4_e2m1fn)
        elements[..., 4] = 1
        sparsefmt.save_file({"w": elements, "v": elements[..., :64].copy()}, path, codec="raw")
        return path

    def test_a_tensor_asks_for_what_it_takes(self, pairs):
        with sparsefmt.safe_open(pairs, "pt", max_decoded_bytes=1 << 18) as file:
            tensor = file.get_tensor("w")
            assert tensor.numel() == 1 << 18
        with sparsefmt.safe_open(pairs, "pt", max_decoded_bytes=(1 << 18) - 1) as file:
            refused(lambda: file.get_tensor("w"))
            refused(lambda: file.get_slice("w")[:])
            refused(lambda: file.get_slice("w")[...])
            refused(lambda: file.get_slice("w")[[True] * file.get_slice("w").get_shape()[0]])
        total = (1 << 18) + sparsefmt.torch.load_file(pairs)["v"].numel()
        assert len(sparsefmt.torch.load_file(pairs, max_decoded_bytes=total)) == 2
        refused(lambda: sparsefmt.torch.load_file(pairs, max_decoded_bytes=total - 1))

    def test_a_part_is_read_in_part(self, pairs):
        whole = sparsefmt.torch.load_file(pairs)["w"].view(torch.uint8)
        with sparsefmt.safe_open(pairs, "pt", max_decoded_bytes=1 << 16) as file:
            part = file.get_slice("w")
            rows = part.get_shape()[0]
            keys = [slice(3, 5), slice(1, 7), 0, -1, rows - 1, slice(rows - 2, None), (slice(2, 4), ...), slice(9, 9)]
            keys += [slice(None, None, rows // 3)] if len(part.get_shape()) == 1 else [(2, slice(1, 9)), [1, 1, -1]]
            for key in keys:
                assert torch.equal(part[key].view(torch.uint8), whole[key]), key
            refused(lambda: part[:])

    def test_a_claim_that_is_beyond_memory(self, tmp_path):
        """Zeros take next to nothing: 32 GiB of pairs in some hundred kilobytes."""

        class Zeros(Rows):
            def bits(self, begin: int, end: int) -> np.ndarray:
                return np.zeros((end - begin, self.cols), np.uint8)

        path = tmp_path / "w.sparsefmt"
        with path.open("wb") as file:
            writer = Writer(file, codec="rans")
            zeros = Zeros(DTYPES["F4"], (1 << 7, 1 << 20))
            tiling = Tiling(zeros.dtype, zeros.shape, FORMS["dense"], 8)
            writer.add("w", tiling, Contents(zeros.tile_maker(tiling)))
            writer.finish()
        assert path.stat().st_size < 1 << 15
        for key in (slice(None), ..., (slice(None), 5)):
            with sparsefmt.safe_open(path, "pt", max_decoded_bytes=1 << 20) as file:
                for call in (
                    lambda file=file, key=key: file.get_slice("w")[key],
                    lambda file=file: file.get_tensor("w"),
                ):
                    assert peak_of(lambda call=call: refused(call))[1] < 1 << 20


def test_numbers_of_rows_take_no_memory(tmp_path):
    """A tensor of many rows that are narrow: eight bytes for the number of each would be many times the rows."""
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": np.zeros((1 << 22, 1), np.uint8)}, path)
    with sparsefmt.open_file(path, max_decoded_bytes=1 << 22, threads=1) as file:
        part = file.get_slice("w")
        part[0]  # what has to be compiled for that is compiled now
        for key in (3, -1, slice(7, 9), slice(None, None, 1 << 20), [5, -5], slice(9, 3, -2)):
            found, peak = peak_of(lambda key=key: part[key])
            assert not found.any()
            assert peak < 3 << 20, key  # a tile is a MiB
        for key in (slice(None), slice(None, None, -1), ...):
            found, peak = peak_of(lambda key=key: part[key])
            assert found.shape == (1 << 22, 1)
            assert peak < 8 << 20, key
        with pytest.raises(IndexError, match=f"index {1 << 22} is out of bounds for axis 0 with size {1 << 22}"):
            part[1 << 22]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 600),
    st.sampled_from(PRUNABLE),
    st.sampled_from(SPARSE_FORMS),
    st.sampled_from([1, 3, 8, 40]),
    st.booleans(),
)
@example(1, 8, 4096, DTYPES["F32"], "bitmask", 8, False)
def test_loads_take_what_they_ask_for(seed, rows, cols, dtype, stored, tile_rows, signs):
    """Files as nobody would write them, tiles of one row among them: what a load takes is what it is charged, to the
    byte, whatever layout they are loaded into."""
    array = skewed(seed, (rows, cols), dtype)
    if signs and dtype.negative_zero:
        bits = as_bits(array, dtype).copy()
        bits[(bits == 0) & (np.random.default_rng(seed).random(bits.shape) < 0.1)] = dtype.negative_zero
        array = bits.view(dtype.numpy)
    data = in_tiles(array, dtype, stored, min(tile_rows, rows))
    for layout in ("auto", "dense", *SPARSE):
        file = sparsefmt.SparseFile(Memory(data), threads=2)
        tensor = file.load("w", layout)
        assert same_bits(np.asarray(tensor), array)
        taken = decoded_nbytes(tensor, file)
        # no tile may take more by itself, either
        enough = max(taken, largest_tile(file))
        assert sparsefmt.load(data, layout=layout, max_decoded_bytes=enough).keys() == {"w"}
        if taken and (layout != "auto" or getattr(tensor, "layout", "dense") == FORMS[stored].name):
            refused(lambda layout=layout, taken=taken: sparsefmt.load(data, layout=layout, max_decoded_bytes=taken - 1))
        elif taken:
            # with less, it may stay as it is stored
            file = sparsefmt.SparseFile(Memory(data), max_decoded_bytes=taken - 1)
            with contextlib.suppress(sparsefmt.LimitError):
                assert decoded_nbytes(file.load("w"), file) < taken


def test_other_layouts_of_a_loaded_tensor_ask_too():
    """One row of eight is full: sixteen times the memory as `permuted`."""
    array = np.zeros((8, 4096), np.float32)
    array[3] = 1
    tensor = sparsefmt.load(sparsefmt.save({"w": array}), max_decoded_bytes=100_000)["w"]
    assert tensor.layout == "bitmask"
    refused(lambda: tensor.to_layout("permuted"))
    larger = sparsefmt.load(sparsefmt.save({"w": array}), max_decoded_bytes=400_000)["w"]
    assert larger.to_layout("permuted").nbytes > 16 * 4096 * 5


def in_tiles(array: np.ndarray, dtype: DType, layout: str, tile_rows: int) -> bytes:
    """A file with one tensor in tiles of any height."""
    bits = as_bits(array, dtype)
    tiles = [
        Tile.from_dense(FORMS[layout], bits[begin : begin + tile_rows], dtype)
        for begin in range(0, len(bits), tile_rows)
    ]
    buffer = io.BytesIO()
    writer = Writer(buffer, codec="zstd")
    nnz = sum(tile.nnz for tile in tiles)
    signs = any(tile.has_negative_zeros for tile in tiles)
    tiling = Tiling(dtype, array.shape, FORMS[layout], tile_rows)
    writer.add("w", tiling, Contents(tiles.__getitem__, nnz=nnz, negative_zeros=signs))
    writer.finish()
    return buffer.getvalue()


def largest_tile(file: sparsefmt.SparseFile) -> int:
    """Most bytes that the coded arrays of a tile decode to, in a file of one tensor."""
    chunks, arrays = file.reader.index.chunks, len(file.reader.index.entry("w").codecs)
    decoded = np.where(chunks["stored"] < chunks["raw"], chunks["raw"], 0)
    return int(decoded.reshape(-1, arrays).sum(axis=1).max(initial=0))


def decoded_nbytes(tensor: sparsefmt.SparseTensor | np.ndarray, file: sparsefmt.SparseFile) -> int:
    """Bytes of the arrays of a tensor that are not those of the file."""
    if isinstance(tensor, np.ndarray):
        return tensor.nbytes
    whole = file.reader._source.read(0, file.reader.size)
    arrays = [array for tile in tensor.operand().tiles for array in tile.all_arrays().values()]
    return sum(array.nbytes for array in arrays if not np.may_share_memory(array, whole))
