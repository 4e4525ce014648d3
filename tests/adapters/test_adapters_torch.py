"""Tensors of torch that people have, in `save_file`, `from_dense` and the twin: to the bit, and never dense whole."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as prune
from helpers import PRUNABLE, examples, peak_of, pruned, random_bits, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

import sparsefmt
import sparsefmt.torch
from sparsefmt import FormatError, SparseTensor, UnsupportedError
from sparsefmt.adapters import rows_of
from sparsefmt.adapters.torch import TORCH_DTYPES
from sparsefmt.dtypes import DTYPES
from sparsefmt.torch import SharedTensorsError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of")

WHOLE_BYTES = [DTYPES[name] for name in TORCH_DTYPES if name != "F4"]
LAYOUTS = ["coo", "coo, shuffled", "csr", "csc", "bsr", "bsc"]


def to_torch(array: np.ndarray) -> torch.Tensor:
    dtype = next(dtype for dtype in WHOLE_BYTES if dtype.numpy == array.dtype)
    if not array.size:
        return torch.empty(array.shape, dtype=TORCH_DTYPES[dtype.name])
    return torch.frombuffer(bytearray(array.tobytes()), dtype=TORCH_DTYPES[dtype.name]).reshape(array.shape)


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def sparse(array: np.ndarray, layout: str, seed: int = 0) -> torch.Tensor:
    """A sparse tensor with every element stored that is not all zero bits, made from its parts."""
    rows, cols = np.nonzero(bits(array))
    if layout.startswith("coo"):
        order = np.random.default_rng(seed).permutation(len(rows)) if "shuffled" in layout else np.arange(len(rows))
        indices = torch.from_numpy(np.stack([rows[order], cols[order]]))
        return torch.sparse_coo_tensor(indices, to_torch(array[rows[order], cols[order]]), array.shape)
    height, width = (2, 3) if layout.startswith("b") else (1, 1)
    grid_rows, grid_cols = array.shape[0] // height, array.shape[1] // width
    blocks = array.reshape(grid_rows, height, grid_cols, width).transpose(0, 2, 1, 3)
    filled = bits(blocks).any(axis=(2, 3))
    by_column = layout.endswith("c")
    outer, inner = np.nonzero(filled.T if by_column else filled)
    values = blocks[inner, outer] if by_column else blocks[outer, inner]
    starts = np.concatenate([[0], np.cumsum(filled.sum(axis=0 if by_column else 1))])
    make = getattr(torch, f"sparse_{layout}_tensor")
    if height == 1:
        values = values.reshape(-1)
    return make(torch.from_numpy(starts), torch.from_numpy(inner), to_torch(values), array.shape)


def saved(tensor: object, **options: object) -> np.ndarray:
    return sparsefmt.load(sparsefmt.save({"w": tensor}, **options), layout="dense")["w"]


class TestSparse:
    @settings(max_examples=examples(150), deadline=None)
    @given(
        layout=st.sampled_from(LAYOUTS),
        dtype=st.sampled_from(WHOLE_BYTES),
        grid=st.tuples(st.integers(0, 12), st.integers(0, 12)),
        sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        seed=st.integers(0, 1 << 32),
    )
    def test_any_bits_in_any_layout(self, layout, dtype, grid, sparsity, seed):
        rng = np.random.default_rng(seed)
        shape = (2 * grid[0], 3 * grid[1])
        if dtype in PRUNABLE:
            array = pruned(rng, shape, dtype, sparsity, negative_zeros=True)
        else:
            array = random_bits(rng, shape, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor = sparse(array, layout, seed)
        assert same_bits(saved(tensor), array)
        assert same_bits(SparseTensor.from_dense(tensor).todense(), array)
        assert sparsefmt.torch.save({"w": tensor}) == sparsefmt.save({"w": array})

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_several_tiles(self, layout):
        array = weights(np.random.default_rng(1), (2600, 900), np.float32, 0.97, negative_zeros=True)
        array[bits(array) == 0] = 0
        tensor = sparse(array, layout)
        assert same_bits(saved(tensor), array)
        assert sparsefmt.save({"w": tensor}) == sparsefmt.save({"w": array})
        assert same_bits(SparseTensor.from_dense(tensor, "permuted").todense(), array)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64])
    def test_elements_at_one_place_are_summed_as_torch_does(self, dtype):
        rng = np.random.default_rng(0)
        indices = torch.from_numpy(rng.integers(0, 4, (2, 60)))
        values = torch.from_numpy(rng.standard_normal(60) * 20).to(dtype)
        tensor = torch.sparse_coo_tensor(indices, values, (4, 5))
        assert not tensor.is_coalesced()
        expected = tensor.coalesce().to_dense()
        assert sparsefmt.torch.load(sparsefmt.torch.save({"w": tensor}))["w"].equal(expected)
        assert not tensor.is_coalesced()

    def test_what_torch_cannot_sum(self):
        indices = torch.tensor([[1, 1, 0], [2, 2, 0]])
        values = torch.ones(3).to(torch.float8_e4m3fn)
        with pytest.raises(UnsupportedError, match=r"tensor 'w'.*one place") as caught:
            sparsefmt.save({"w": torch.sparse_coo_tensor(indices, values, (2, 3))})
        assert caught.value.code == "tensor-duplicates"
        alone = torch.sparse_coo_tensor(indices[:, 1:], values[1:], (2, 3))
        assert saved(alone).tolist() == [[1, 0, 0], [0, 0, 1]]

    def test_parameters_of_a_module(self, tmp_path):
        weight = torch.eye(6)
        weight[2, 5] = -1.5
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(weight.to_sparse_csr())
        model.tied = torch.nn.Parameter(torch.ones(3))
        model.also = model.tied
        sparsefmt.torch.save_model(model, tmp_path / "m")
        loaded = sparsefmt.torch.load_file(tmp_path / "m")
        assert sorted(loaded) == ["also", "weight"]
        assert loaded["weight"].equal(weight)

    @pytest.mark.parametrize("shape", [(7,), (4, 3, 5), (2, 3, 1, 4)])
    @pytest.mark.parametrize("dense_dims", [0, 1, 2])
    def test_other_numbers_of_dimensions(self, shape, dense_dims):
        if dense_dims >= len(shape):
            pytest.skip("no sparse dimension")
        dense = to_torch(weights(np.random.default_rng(0), shape, np.float16, 0.7))
        for tensor in (dense.to_sparse(len(shape) - dense_dims), dense.to_sparse(len(shape) - dense_dims).coalesce()):
            assert same_bits(saved(tensor), dense.numpy() + np.float16(0))

    @pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc])
    def test_batches_and_dense_dimensions(self, layout):
        rng = np.random.default_rng(0)
        dense = torch.from_numpy(rng.standard_normal((2, 3, 4, 5, 6)).astype(np.float32))
        # as many elements in each matrix of the batch
        dense[:, :, ::2, 1:3] = 0
        tensor = dense.to_sparse(layout=layout, dense_dim=1)
        assert tensor.values().shape == (2, 3, 16, 6)
        assert same_bits(saved(tensor), dense.numpy())
        for part in (dense[0, 0], dense[0, 0, :, :, 0], dense[:, 0, :, :, 0]):
            assert same_bits(saved(part.to_sparse(layout=layout, dense_dim=int(part.shape[-1] == 6))), part.numpy())

    @pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (3, 5)])
    def test_without_elements(self, shape):
        for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
            assert same_bits(saved(torch.zeros(shape).to_sparse(layout=layout)), np.zeros(shape, np.float32))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: torch.ones(2, 4, 6).to_sparse_bsr((2, 3)),
            lambda: torch.ones(4, 6, 2).to_sparse_bsc((2, 3), dense_dim=1),
            lambda: torch.sparse_coo_tensor(torch.zeros((0, 1), dtype=torch.int64), torch.ones(1, 3), (3,)),
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
            lambda: torch.ones(2, 3).to_mkldnn(),
        ],
    )
    def test_kinds_that_are_refused(self, make, tmp_path):
        tensor = make()
        for save_file in (sparsefmt.save_file, sparsefmt.torch.save_file):
            with pytest.raises(UnsupportedError, match=r"tensor 'layer\.w'") as caught:
                save_file({"layer.w": tensor}, tmp_path / "t")
            assert caught.value.code in ("tensor-layout", "tensor-subclass")
        assert list(tmp_path.iterdir()) == []

    def test_dtypes_that_are_refused(self):
        with pytest.raises(UnsupportedError, match=r"tensor 'w'.*torch\.complex128"):
            sparsefmt.torch.save({"w": torch.eye(3, dtype=torch.complex128).to_sparse_csr()})

    @pytest.mark.parametrize(
        ("starts", "columns", "match"),
        [
            ([0, 1, 2], [0, 3], "index in dimension 1, 3, is not within 0 to 2"),
            ([0, 1, 2], [0, -1], "-1"),
            ([0, 3, 2], [0, 1], "pointers"),
            ([0, 1, 1], [0, 1], "pointers"),
            ([1, 1, 2], [0, 1], "pointers"),
        ],
    )
    def test_indices_that_torch_does_not_check(self, starts, columns, match):
        tensor = torch.sparse_csr_tensor(
            torch.tensor(starts), torch.tensor(columns), torch.ones(2), (2, 3), check_invariants=False
        )
        with pytest.raises(FormatError, match=f"tensor 'w'.*{match}") as caught:
            sparsefmt.torch.save({"w": tensor})
        assert caught.value.code == "indices-invalid"

    def test_blocks_that_torch_does_not_check(self):
        starts, columns = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
        for shape, values in (
            ((5, 6), torch.ones(2, 2, 3)),
            ((4, 7), torch.ones(2, 2, 3)),
            ((4, 6), torch.ones(3, 2, 3)),
        ):
            tensor = torch.sparse_bsr_tensor(starts, columns, values, shape, check_invariants=False)
            with pytest.raises(FormatError, match="indices-invalid"):
                sparsefmt.save({"w": tensor})

    def test_batches_that_torch_does_not_check(self):
        starts, columns = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1], [0, 1]])
        tensor = torch.sparse_csr_tensor(starts, columns, torch.ones(2, 2), (2, 2, 3), check_invariants=False)
        with pytest.raises(FormatError, match="indices-invalid"):
            sparsefmt.save({"w": tensor})

    def test_models_that_have_sparse_parameters(self, tmp_path):
        """What a file has is dense: torch says what it makes of that."""
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.eye(6).to_sparse_csr())
        sparsefmt.torch.save_model(model, tmp_path / "m")
        with pytest.raises(RuntimeError, match="weight"):
            sparsefmt.torch.load_model(model, tmp_path / "m")

    def test_coordinates_that_torch_does_not_check(self):
        for indices in ([[0, 5], [0, 1]], [[0, 1], [0, -2]]):
            for coalesced in (True, False):
                tensor = torch.sparse_coo_tensor(
                    torch.tensor(indices), torch.ones(2), (2, 3), check_invariants=False, is_coalesced=coalesced
                )
                with pytest.raises(FormatError, match="indices-invalid"):
                    sparsefmt.save({"w": tensor})

    @pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
    def test_memory_is_that_of_the_elements_stored(self, layout):
        """A matrix of 400 MB when dense."""
        rng = np.random.default_rng(0)
        size, stored = 10_000, 50_000
        places = np.sort(rng.choice(size * size, stored, replace=False))
        tensor = torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([places // size, places % size])), torch.ones(stored), (size, size)
        ).coalesce()
        tensor = tensor.to_sparse(layout=getattr(torch, f"sparse_{layout}"))
        sparsefmt.save({"w": torch.eye(64).to_sparse_csr()}, codec="raw", threads=1)
        weight, peak = peak_of(lambda: SparseTensor.from_dense(tensor, threads=1))
        assert weight.nnz == stored
        assert peak < 40e6


class TestSemiStructured:
    """2:4 as CUTLASS has it. torch makes such tensors on a GPU alone; here they are made of their parts."""

    @staticmethod
    def pruned(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        dense = rng.standard_normal(shape)
        group = 2 if dtype == torch.float32 else 4
        groups = dense.reshape(-1, group)
        groups[np.arange(len(groups)), rng.integers(0, group, len(groups))] = 0
        if group == 4:
            groups[np.arange(len(groups)), np.argmin(np.abs(groups) + (groups == 0) * 9, axis=1)] = 0
        return torch.from_numpy(dense * 30).to(dtype)

    @staticmethod
    def made(dense: torch.Tensor) -> torch.Tensor:
        packed, meta = sparse_semi_structured_from_dense_cutlass(dense)
        return SparseSemiStructuredTensorCUTLASS(dense.shape, packed, meta, None, None, None)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
    @pytest.mark.parametrize("shape", [(32, 128), (96, 256), (2080, 640)])
    def test_round_trip(self, dtype, shape):
        dense = self.pruned(shape, dtype)
        tensor = self.made(dense)
        assert type(tensor) is SparseSemiStructuredTensorCUTLASS
        for loaded in (
            sparsefmt.torch.load(sparsefmt.torch.save({"w": tensor}))["w"],
            sparsefmt.torch.load(sparsefmt.save({"w": torch.nn.Parameter(tensor, requires_grad=False)}))["w"],
        ):
            assert loaded.dtype == dtype
            assert loaded.equal(dense)
        rows = rows_of(tensor).bits(5, 29)
        assert rows.tobytes() == dense[5:29].view(torch.uint8).numpy().tobytes()

    def test_bits(self):
        carried = np.zeros((32, 64), np.uint16)
        carried[:, ::4] = np.random.default_rng(0).integers(0, 1 << 16, (32, 16))
        carried[:, 3::4] = 0x7F81
        marked = to_torch((carried != 0).astype(np.float16)).to(torch.bfloat16)
        marked[:, ::4] = 1
        _, meta = sparse_semi_structured_from_dense_cutlass(marked)
        packed = torch.from_numpy(carried.reshape(32, 16, 4)[:, :, [0, 3]].reshape(32, 32).view(np.int16))
        tensor = SparseSemiStructuredTensorCUTLASS((32, 64), packed.view(torch.bfloat16), meta, None, None, None)
        loaded = sparsefmt.torch.load(sparsefmt.torch.save({"w": tensor}))["w"]
        assert np.array_equal(loaded.view(torch.int16).numpy().view(np.uint16), carried)

    def test_other_orders_are_refused(self):
        packed, meta = sparse_semi_structured_from_dense_cutlass(self.pruned((64, 128), torch.float16))
        swizzled = torch.zeros(4)
        for tensor in (
            SparseSemiStructuredTensorCUSPARSELT((64, 128), packed, None, None, None, None),
            SparseSemiStructuredTensorCUTLASS((64, 128), packed, meta, packed, meta, swizzled),
            SparseSemiStructuredTensorCUTLASS((128, 64), None, None, packed, meta, None),
        ):
            with pytest.raises(UnsupportedError, match=r"tensor 'w'.*to_dense") as caught:
                sparsefmt.torch.save({"w": tensor})
            assert caught.value.code == "tensor-layout"


class TestStrided:
    """Given to sparsefmt itself."""

    @settings(max_examples=60, deadline=None)
    @given(
        dtype=st.sampled_from(WHOLE_BYTES),
        shape=st.sampled_from([(), (5,), (0,), (9, 14), (3, 4, 5), (0, 3)]),
        seed=st.integers(0, 1 << 32),
    )
    def test_every_dtype(self, dtype, shape, seed):
        array = random_bits(np.random.default_rng(seed), shape, dtype)
        tensor = to_torch(array)
        assert same_bits(saved(tensor), array)
        assert same_bits(SparseTensor.from_dense(tensor).todense(), array)

    def test_views_and_parameters(self):
        array = weights(np.random.default_rng(0), (40, 60), np.float32, 0.5)
        tensor = to_torch(array)
        assert same_bits(saved(tensor.T), array.T.copy())
        assert same_bits(saved(tensor[::2, 1::3]), array[::2, 1::3].copy())
        assert same_bits(saved(tensor.expand(2, 40, 60)), np.stack([array, array]))
        assert same_bits(saved(torch.nn.Parameter(tensor)), array)
        assert same_bits(saved(torch.complex(tensor, tensor).conj()), (array + 1j * array).conj())
        assert same_bits(saved(torch.complex(tensor, tensor).conj().imag), -array)

    def test_pairs_of_four_bits(self):
        carried = np.random.default_rng(0).integers(0, 256, (6, 5), np.uint8)
        tensor = torch.from_numpy(carried).view(torch.float4_e2m1fn_x2)
        assert saved(tensor).shape == (6, 10)
        assert (
            saved(tensor).view(np.uint8).tolist() == np.stack([carried & 15, carried >> 4], -1).reshape(6, 10).tolist()
        )

    def test_names_of_one_tensor_share_it(self):
        weight = to_torch(weights(np.random.default_rng(0), (40, 60), np.float32, 0.5))
        sparse = weight.to_sparse_csr()
        tensors = {"a": weight, "b": weight.detach(), "c": weight[:20], "d": weight.T, "e": sparse, "f": sparse}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = sparsefmt.save(tensors)
        loaded = sparsefmt.load(data)
        assert loaded["a"] is loaded["b"]
        assert loaded["e"] is loaded["f"]
        assert len({id(tensor) for tensor in loaded.values()}) == 4
        loaded = sparsefmt.load(sparsefmt.save({"a": torch.zeros(0), "b": torch.zeros(0)}))
        assert loaded["a"] is not loaded["b"]

    def test_views_of_one_memory_with_other_elements(self):
        tensor = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
        loaded = sparsefmt.load(sparsefmt.save({"a": tensor, "b": tensor.conj()}))
        assert loaded["b"].tolist() == [1 - 2j, 3 + 4j]

    def test_tensors_without_data(self):
        with torch.device("meta"):
            sparse = torch.sparse_coo_tensor(torch.zeros((2, 1), dtype=torch.int64), torch.zeros(1), (2, 2))
        for tensor in (torch.zeros(3, device="meta"), sparse):
            for save in (sparsefmt.save, sparsefmt.torch.save):
                with pytest.raises(NotImplementedError, match=r"'layer\.w'"):
                    save({"layer.w": tensor})

    def test_subclasses(self):
        class Plain(torch.Tensor):
            pass

        class Scaled(torch.Tensor):
            @classmethod
            def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
                raise AssertionError("not to be called")

        assert saved(torch.ones(3).as_subclass(Plain)).tolist() == [1, 1, 1]
        wrapper = torch.Tensor._make_wrapper_subclass(Scaled, (2, 3))
        for save in (sparsefmt.save, sparsefmt.torch.save):
            with pytest.raises(UnsupportedError, match=r"tensor 'w'.*Scaled.*plain torch\.Tensor"):
                save({"w": wrapper})

    def test_progress_counts_dense_bytes(self):
        calls = []
        tensors = {"a": torch.zeros(10, 20), "b": torch.eye(10, dtype=torch.float64).to_sparse()}
        sparsefmt.save(tensors, progress=lambda done, total: calls.append((done, total)))
        assert calls == [(800, 1600), (1600, 1600)]

    def test_torch_is_not_imported_for_what_is_not_its(self):
        code = (
            "import sys, numpy, scipy.sparse, sparsefmt; sparsefmt.save({'a': numpy.ones(3),"
            " 'b': scipy.sparse.eye_array(3)}); print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(30, 20)
        self.b = torch.nn.Linear(20, 10)


class TestMasks:
    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        model = Net()
        prune.l1_unstructured(model.a, "weight", 0.8)
        prune.random_unstructured(model.a, "bias", 0.5)
        return model

    def test_both_are_kept_unless_asked(self, model, tmp_path):
        sparsefmt.torch.save_model(model, tmp_path / "m")
        state = model.state_dict()
        loaded = sparsefmt.torch.load_file(tmp_path / "m")
        assert loaded.keys() == state.keys()
        assert all(loaded[name].equal(tensor) for name, tensor in state.items())
        torch.manual_seed(1)
        other = Net()
        prune.identity(other.a, "weight")
        prune.identity(other.a, "bias")
        assert sparsefmt.torch.load_model(other, tmp_path / "m") == ([], [])
        x = torch.ones(3, 30)
        assert other.a(x).equal(model.a(x))

    def test_folded(self, model, tmp_path):
        sparsefmt.torch.save_model(model, tmp_path / "m", fold_masks=True)
        loaded = sparsefmt.torch.load_file(tmp_path / "m")
        assert sorted(loaded) == ["a.bias", "a.weight", "b.bias", "b.weight"]
        for name, computed in (("a.weight", model.a.weight), ("a.bias", model.a.bias), ("b.weight", model.b.weight)):
            assert loaded[name].numpy().tobytes() == computed.detach().numpy().tobytes(), name
        other = Net()
        assert sparsefmt.torch.load_model(other, tmp_path / "m") == ([], [])
        prune.remove(model.a, "weight")
        assert other.a.weight.equal(model.a.weight)
        model = Net()
        prune.identity(model.a, "bias")
        with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"a\.bias_mask"'):
            sparsefmt.torch.load_model(model, tmp_path / "m")

    def test_the_same_with_the_other_verbs(self, model, tmp_path):
        state = model.state_dict()
        sparsefmt.torch.save_file(state, tmp_path / "f", fold_masks=True)
        sparsefmt.torch.save_model(model, tmp_path / "m", fold_masks=True)
        assert (tmp_path / "f").read_bytes() == (tmp_path / "m").read_bytes()
        assert sparsefmt.torch.save(state, fold_masks=True) == (tmp_path / "f").read_bytes()
        assert sparsefmt.torch.save({}, fold_masks=True) == sparsefmt.torch.save({})

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("mask_dtype", [torch.float32, torch.bool, torch.bfloat16])
    def test_it_is_the_product(self, dtype, mask_dtype):
        special = torch.tensor([1.5, -2.0, float("inf"), float("-inf"), float("nan"), -0.0, 0.0, 1e-40])
        original = special.repeat(2).to(dtype)
        mask = torch.tensor([0, 1]).repeat_interleave(8).to(mask_dtype)
        loaded = sparsefmt.torch.load(sparsefmt.torch.save({"w_orig": original, "w_mask": mask}, fold_masks=True))["w"]
        expected = mask.to(dtype=original.dtype) * original
        assert loaded.view(torch.uint8).equal(expected.view(torch.uint8))
        assert loaded[:2].signbit().tolist() == [False, True]
        assert loaded[2:5].isnan().all()
        assert loaded[8:10].tolist() == [1.5, -2.0]

    def test_tied_modules_stay_one(self, model, tmp_path):
        model.c = model.a
        sparsefmt.torch.save_model(model, tmp_path / "m", fold_masks=True)
        with sparsefmt.open_file(tmp_path / "m") as file:
            assert file.keys() == ["a.bias", "a.weight", "b.bias", "b.weight"]
            assert file.metadata() == {"c.bias": "a.bias", "c.weight": "a.weight"}
        with pytest.raises(SharedTensorsError, match=r"'a\.weight', 'c\.weight'"):
            sparsefmt.torch.save(model.state_dict(), fold_masks=True)

    def test_one_original_with_two_masks(self, tmp_path):
        model = Net()
        model.c = torch.nn.Linear(30, 20)
        model.c.weight = model.a.weight
        for name, amount in (("a", 0.5), ("c", 0.9)):
            prune.l1_unstructured(getattr(model, name), "weight", amount)
        sparsefmt.torch.save_model(model, tmp_path / "m", fold_masks=True)
        loaded = sparsefmt.torch.load_file(tmp_path / "m")
        assert loaded["a.weight"].equal(model.a.weight)
        assert loaded["c.weight"].equal(model.c.weight)

    def test_the_original_of_another_name(self, tmp_path):
        """A tied weight that is pruned in one place only."""
        model = Net()
        model.c = torch.nn.Linear(30, 20)
        model.c.weight = model.a.weight
        prune.l1_unstructured(model.c, "weight", 0.9)
        sparsefmt.torch.save_model(model, tmp_path / "m", fold_masks=True)
        loaded = sparsefmt.torch.load_file(tmp_path / "m")
        assert loaded["a.weight"].equal(model.a.weight)
        assert loaded["c.weight"].equal(model.c.weight)

    def test_what_is_no_pair(self):
        tensors = {"x_orig": torch.ones(2), "y_mask": torch.ones(3), "_orig": torch.ones(4)}
        assert sparsefmt.torch.load(sparsefmt.torch.save(tensors, fold_masks=True)).keys() == tensors.keys()
        with pytest.raises(FormatError, match=r"tensor 'w'.*\[3\].*\[2\]") as caught:
            sparsefmt.torch.save({"w_orig": torch.ones(2), "w_mask": torch.ones(3)}, fold_masks=True)
        assert caught.value.code == "mask-shape"
        with pytest.raises(FormatError, match=r"tensor 'w'.*'w_orig'") as caught:
            sparsefmt.torch.save(
                {"w": torch.ones(2), "w_orig": torch.ones(2), "w_mask": torch.ones(2)}, fold_masks=True
            )
        assert caught.value.code == "mask-name"
        with pytest.raises(FormatError, match=r"type is int, not torch\.Tensor"):
            sparsefmt.torch.save({"w_orig": torch.ones(2), "w_mask": 1}, fold_masks=True)
        with pytest.raises(FormatError, match="dict"):
            sparsefmt.torch.save([torch.ones(2)], fold_masks=True)
