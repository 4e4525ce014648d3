"""sparsefmt.torch against safetensors.torch: the same calls, the same results, and the same refusals."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.utils.prune
from helpers import CODECS, arrays, check_signature, examples, peak_of, random_bits, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_helpers import raw, same, same_state

import sparsefmt.torch
from sparsefmt import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.adapters.torch import TORCH_DTYPES
from sparsefmt.dtypes import DTYPES, as_bits
from sparsefmt.torch import SharedTensorsError

twin = sparsefmt.torch

VERBS = ["save", "save_file", "load", "load_file", "save_model", "load_model"]
WHOLE_BYTES = [DTYPES[name] for name in TORCH_DTYPES if name != "F4"]


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same bits, made in another way than the library does."""
    dtype = next(dtype for dtype in WHOLE_BYTES if dtype.numpy == array.dtype)
    if not array.size:
        return torch.empty(array.shape, dtype=TORCH_DTYPES[dtype.name])
    return torch.frombuffer(bytearray(array.tobytes()), dtype=TORCH_DTYPES[dtype.name]).reshape(array.shape)


def sparse_weight(rows: int = 60, cols: int = 80, seed: int = 0) -> torch.Tensor:
    return to_torch(weights(np.random.default_rng(seed), (rows, cols), np.float32, 0.8, True))


def test_torch_has_all_types_that_safetensors_gives_it():
    assert set(DTYPES) - set(TORCH_DTYPES) == {"F6_E2M3", "F6_E3M2"}
    for name, dtype in safetensors.torch._TYPES.items():
        assert TORCH_DTYPES[name] == dtype


@pytest.mark.parametrize("name", VERBS)
def test_signatures_are_those_of_safetensors(name):
    """Whatever can be passed there can be passed here; what there is besides can only be passed by keyword."""
    of_its_own = ("fold_masks",) if "save" in name else ("max_decoded_bytes",)
    of_its_own += ("storage_options",) if name in ("save_file", "load_file", "save_model", "load_model") else ()
    check_signature(getattr(twin, name), getattr(safetensors.torch, name), of_its_own)


@settings(max_examples=examples(100), deadline=None)
@given(tensors=st.lists(arrays(WHOLE_BYTES), max_size=4))
def test_any_tensors_come_back(tensors):
    tensors = {f"tensor {number}": to_torch(array) for number, array in enumerate(tensors)}
    loaded = twin.load(twin.save(tensors))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same(loaded[name], tensor), name
        assert loaded[name].untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_dtype_as_safetensors_and_numpy_have_it(codec, backend, tmp_path):
    rng = np.random.default_rng(0)
    numpy_arrays = {dtype.name: random_bits(rng, (9, 14), dtype) for dtype in WHOLE_BYTES}
    tensors = {name: to_torch(array) for name, array in numpy_arrays.items()}
    twin.save_file(tensors, tmp_path / "ours", {"key": "text"}, codec=codec)
    safetensors.torch.save_file(tensors, tmp_path / "theirs")
    ours = twin.load_file(tmp_path / "ours", "cpu", backend=backend)
    theirs = safetensors.torch.load_file(tmp_path / "theirs")
    from_numpy = sparsefmt.load_file(tmp_path / "ours", layout="dense")
    assert ours.keys() == theirs.keys()
    for name, tensor in tensors.items():
        assert same(ours[name], tensor), name
        assert same(theirs[name], tensor), name
        assert same_bits(from_numpy[name], numpy_arrays[name]), name
        assert not ours[name].requires_grad
    assert twin.save(tensors, {"key": "text"}, codec=codec) == (tmp_path / "ours").read_bytes()


def test_signalling_nans_and_subnormals():
    patterns = {
        torch.float32: [0x7F800001, 0xFFC01234, 0x00000001, 0x80000000],
        torch.float64: [0x7FF0000000000001, 0x8000000000000001],
    }
    for dtype, bits in patterns.items():
        array = np.array(bits, "u4" if dtype == torch.float32 else "u8")
        tensor = torch.from_numpy(array.view("i4" if dtype == torch.float32 else "i8").copy()).view(dtype)
        assert raw(twin.load(twin.save({"w": tensor}))["w"]) == array.tobytes()


class TestPairs:
    """float4_e2m1fn_x2: two elements of the file in one of torch."""

    tensor = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 5), np.uint8)).view(torch.float4_e2m1fn_x2)

    def test_round_trip(self, tmp_path):
        tensors = {"w": self.tensor, "v": self.tensor.view(torch.uint8)[0].clone().view(torch.float4_e2m1fn_x2)}
        twin.save_file(tensors, tmp_path / "t")
        for name, tensor in twin.load_file(tmp_path / "t").items():
            assert same(tensor, tensors[name])

    def test_elements_are_those_of_safetensors(self, tmp_path):
        safetensors.torch.save_file({"w": self.tensor}, tmp_path / "theirs.safetensors")
        twin.save_file({"w": self.tensor}, tmp_path / "ours")
        from sparsefmt.checkpoints.safetensors_file import SafetensorsFile

        with SafetensorsFile(tmp_path / "theirs.safetensors") as theirs, sparsefmt.open_file(tmp_path / "ours") as ours:
            assert ours.get_slice("w").get_shape() == [6, 10]
            assert np.array_equal(
                as_bits(ours.get_tensor("w"), DTYPES["F4"]), theirs.rows_of("w").bits(0, 6).reshape(6, 10)
            )

    def test_slices(self, tmp_path):
        twin.save_file({"w": self.tensor}, tmp_path / "t")
        with sparsefmt.safe_open(tmp_path / "t", "pt") as f:
            assert f.get_slice("w").get_shape() == [6, 5]
            for key in (slice(1, 4), (slice(None), slice(2, 4)), 3, [1, 2]):
                expected = self.tensor.view(torch.uint8)[key].contiguous().view(torch.float4_e2m1fn_x2)
                assert same(f.get_slice("w")[key], expected)
            with pytest.raises(IndexError):
                f.get_slice("w")[:, 5]

    def test_several_tiles_and_pieces(self, monkeypatch):
        monkeypatch.setattr("sparsefmt.adapters.torch_indexing._PAIRS_AT_ONCE", 1000)
        tensor = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (701, 33), np.uint8))
        tensor = tensor.view(torch.float4_e2m1fn_x2)
        assert same(twin.load(twin.save({"w": tensor}))["w"], tensor)
        empty = torch.empty((0, 4), dtype=torch.float4_e2m1fn_x2)
        assert twin.load(twin.save({"w": empty}))["w"].shape == (0, 4)

    def test_what_has_no_pairs(self):
        with pytest.raises(UnsupportedError, match=r"'w'.*without a dimension"):
            twin.save({"w": torch.zeros((), dtype=torch.uint8).view(torch.float4_e2m1fn_x2)})
        data = sparsefmt.save({"w": random_bits(np.random.default_rng(0), (4, 3), DTYPES["F4"])})
        with pytest.raises(UnsupportedError, match=r"'w'.*pairs"):
            twin.load(data)


class TestDtypesThatAreNotThere:
    @pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32])
    @pytest.mark.filterwarnings("ignore:ComplexHalf")
    def test_in_the_format(self, dtype, tmp_path):
        with pytest.raises(UnsupportedError, match=r"tensor 'layer\.w'.*torch\.complex") as caught:
            twin.save_file({"layer.w": torch.zeros(3, dtype=dtype)}, tmp_path / "t")
        assert caught.value.code == "dtype-unknown"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_quantised(self):
        with pytest.raises(UnsupportedError, match=r"tensor 'w'.*qint8"):
            twin.save({"w": torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)})

    @pytest.mark.parametrize("name", ["F6_E2M3", "F6_E3M2"])
    def test_in_torch(self, name, tmp_path):
        array = random_bits(np.random.default_rng(0), (4, 4), DTYPES[name])
        sparsefmt.save_file({"layer.w": array, "ok": np.ones(2)}, tmp_path / "t")
        with pytest.raises(UnsupportedError, match=rf"tensor 'layer\.w'.*{name}"):
            twin.load_file(tmp_path / "t")
        with sparsefmt.safe_open(tmp_path / "t", "pt") as f:
            assert f.get_tensor("ok").tolist() == [1, 1]
            with pytest.raises(UnsupportedError, match=name):
                f.get_slice("layer.w")[0]

    def test_in_an_older_torch(self, monkeypatch):
        monkeypatch.delitem(TORCH_DTYPES, "U16")
        data = sparsefmt.save({"w": np.ones(3, np.uint16)})
        with pytest.raises(UnsupportedError, match="U16"):
            twin.load(data)


class TestWhatIsSaved:
    def test_parameters(self):
        loaded = twin.load(twin.save({"w": torch.nn.Parameter(sparse_weight())}))
        assert type(loaded["w"]) is torch.Tensor
        assert same(loaded["w"], sparse_weight())

    def test_conjugated_and_negated_views_are_their_elements(self):
        tensor = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
        negated = tensor[:1].clone().conj().imag
        assert tensor.conj().is_conj()
        assert negated.is_neg()
        loaded = twin.load(twin.save({"conjugated": tensor.conj(), "negated": negated}))
        assert loaded["conjugated"].tolist() == [1 - 2j, 3 + 4j]
        assert loaded["negated"].tolist() == [-2.0]
        theirs = safetensors.torch.load(safetensors.torch.save({"conjugated": tensor.conj()}))
        assert theirs["conjugated"].tolist() == [1 + 2j, 3 - 4j]

    def test_the_tensors_stay_what_they_are(self):
        weight = sparse_weight()
        twin.save({"w": weight}, negative_zeros="drop")
        assert same(weight, sparse_weight())

    @pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
    @pytest.mark.filterwarnings("ignore:Sparse")
    def test_other_layouts_are_the_dense_tensors_that_they_stand_for(self, layout, tmp_path):
        weight = sparse_weight() + 0
        tensors = {"sparse": weight.to_sparse(layout=layout), "strided": sparse_weight(seed=1)}
        twin.save_file(tensors, tmp_path / "t")
        assert same(twin.load_file(tmp_path / "t")["sparse"], weight)
        assert twin.save(tensors) == twin.save({**tensors, "sparse": weight})

    def test_order_does_not_matter(self):
        tensors = {name: sparse_weight(seed=ord(name)) for name in "cab"}
        assert twin.save(tensors) == twin.save(dict(sorted(tensors.items())))

    def test_disjoint_parts_of_one_memory(self):
        whole = torch.arange(20.0).reshape(4, 5)
        loaded = twin.load(twin.save({"first": whole[:1], "rest": whole[1:]}))
        assert torch.equal(loaded["first"], whole[:1])
        assert torch.equal(loaded["rest"], whole[1:])

    def test_single_elements_with_odd_strides(self):
        whole = torch.arange(20.0).reshape(4, 5)
        loaded = twin.load(twin.save({"element": whole[1:2, 2:3], "row": whole[3:, :], "column": whole[:1, ::5]}))
        assert loaded["element"].tolist() == [[7.0]]
        assert loaded["row"].tolist() == [[15.0, 16.0, 17.0, 18.0, 19.0]]
        assert loaded["column"].tolist() == [[0.0]]

    def test_unaligned_memory(self):
        data = bytearray(401)
        tensor = torch.frombuffer(data, dtype=torch.float32, offset=1, count=100)
        tensor.copy_(torch.arange(100.0))
        assert torch.equal(twin.load(twin.save({"w": tensor}))["w"], torch.arange(100.0))


class TestRefused:
    def check(self, tensors, kind, code, match, tmp_path):
        for call in (lambda: twin.save_file(tensors, tmp_path / "t"), lambda: twin.save(tensors)):
            with pytest.raises(kind, match=match) as caught:
                call()
            assert isinstance(caught.value, ValueError)
            assert isinstance(caught.value, SparsefmtError)
            assert caught.value.code == code
        assert list(tmp_path.iterdir()) == []

    def test_shared_tensors(self, tmp_path):
        w = torch.arange(6.0).reshape(2, 3)
        for other in (w, w[:1], w[1:], w.view(-1), w.detach(), torch.nn.Parameter(w)):
            tensors = {"layer.a": w, "layer.b": other, "alone": torch.ones(2)}
            with pytest.raises(RuntimeError):
                safetensors.torch.save(tensors)
            self.check(tensors, RuntimeError, "tensors-shared", r"'layer\.a', 'layer\.b'.*save_model", tmp_path)

    def test_a_part_between_others_is_noticed(self, tmp_path):
        w = torch.arange(10.0)
        tensors = {"whole": w, "begin": w[1:2], "end": w[5:7]}
        self.check(tensors, SharedTensorsError, "tensors-shared", "'begin', 'end', 'whole'", tmp_path)

    def test_tensors_that_are_not_contiguous(self, tmp_path):
        for tensor in (torch.ones(2, 3).T, torch.ones(4, 4)[:, ::2], torch.ones(3).expand(2, 3)):
            with pytest.raises(ValueError, match="contiguous"):
                safetensors.torch.save({"layer.w": tensor})
            self.check({"layer.w": tensor}, UnsupportedError, "tensor-not-contiguous", r"'layer\.w'", tmp_path)

    @pytest.mark.parametrize("value", [{"some": "thing"}, np.ones(3), None, 1.0, [torch.ones(2)]])
    def test_what_is_no_tensor(self, value, tmp_path):
        self.check({"layer.w": value}, FormatError, "tensors-invalid", r"'layer\.w'", tmp_path)

    @pytest.mark.parametrize("value", ["notadict", [torch.ones(2)], None])
    def test_what_is_no_dict(self, value, tmp_path):
        self.check(value, FormatError, "tensors-invalid", "dict", tmp_path)

    def test_names_and_metadata(self, tmp_path):
        self.check({1: torch.ones(2), "a": torch.ones(2)}, FormatError, "name-invalid", "name", tmp_path)
        with pytest.raises(FormatError, match="metadata"):
            twin.save_file({}, tmp_path / "t", {"a": 1})

    def test_tensors_without_data(self, tmp_path):
        with pytest.raises(RuntimeError, match=r"'layer\.w'.*Cannot copy out of meta tensor"):
            twin.save_file({"layer.w": torch.zeros(3, device="meta")}, tmp_path / "t")
        assert list(tmp_path.iterdir()) == []


class TestDevices:
    @pytest.fixture
    def path(self, tmp_path):
        twin.save_file({"w": sparse_weight()}, tmp_path / "t")
        return tmp_path / "t"

    @pytest.mark.parametrize("device", ["cpu", None, torch.device("cpu"), "cpu:0"])
    def test_the_cpu(self, path, device):
        assert same(twin.load_file(path, device)["w"], sparse_weight())
        assert twin.load_file(path, device=device)["w"].device == torch.device("cpu")

    def test_the_default_device_has_no_say(self, path):
        with torch.device("meta"):
            assert same(twin.load_file(path)["w"], sparse_weight())
            assert same(twin.load(path.read_bytes())["w"], sparse_weight())
            with sparsefmt.safe_open(path, "pt") as f:
                assert same(f.get_slice("w")[3:5, :4], sparse_weight()[3:5, :4])
                assert same(f.get_slice("w")[[1, 2]], sparse_weight()[[1, 2]])

    @pytest.mark.parametrize("device", ["cuda", "cuda:1", 0, "mps", "xpu"])
    def test_devices_that_are_not_there(self, path, device):
        """The error is torch's own, whatever it is."""
        try:
            torch.ones(1).to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            expected = error
        else:
            pytest.skip("a device that is there")
        with pytest.raises(type(expected)) as caught:
            twin.load_file(path, device=device)
        assert str(caught.value) == str(expected)

    def test_a_file_can_be_looked_into_without_the_device(self, path):
        if torch.cuda.is_available():
            pytest.skip("a device that is there")
        with sparsefmt.safe_open(path, "pt", device="cuda") as f:
            assert f.keys() == ["w"]
            assert f.get_slice("w").get_shape() == [60, 80]
            with pytest.raises(AssertionError, match="CUDA"):
                f.get_slice("w")[0]

    @pytest.mark.parametrize("device", ["nonsense", "", -1, 1.5])
    def test_what_is_no_device(self, path, device):
        with pytest.raises((RuntimeError, TypeError)):
            twin.load_file(path, device)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_a_gpu(self, path, tmp_path):
        loaded = twin.load_file(path, "cuda:0")["w"]
        assert loaded.device == torch.device("cuda:0")
        assert same(loaded.cpu(), sparse_weight())
        twin.save_file({"w": loaded}, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_loading_holds_the_tensor_and_a_few_tiles(tmp_path, codec):
    weight = sparse_weight(4096, 4096)
    twin.save_file({"w": weight}, tmp_path / "w", codec=codec)
    with sparsefmt.open_file(tmp_path / "w") as file:
        tile = weight.numel() * 4 // file.reader.index.tensors["w"].tiles
    loaded, peak = peak_of(lambda: twin.load_file(tmp_path / "w"))
    assert same(loaded["w"], weight)
    assert peak < weight.numel() * 4 + 2 * (sparsefmt.threads.num_threads() + 1) * tile


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(20, 20)
        self.b = self.a


class Separate(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(20, 20)
        self.b = torch.nn.Linear(20, 20)


class Transposed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(20, 20)
        self.a.weight = torch.nn.Parameter(torch.randn(20, 20).T)


@pytest.mark.parametrize("backend", ["mmap", "pread"])
class TestModels:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "model.sparsefmt"

    def test_tied_weights_are_stored_once_and_noted(self, path, backend):
        model, other = Tied(), Tied()
        twin.save_model(model, str(path))
        with sparsefmt.safe_open(path, "pt") as f:
            assert f.keys() == ["a.bias", "a.weight"]
            assert f.metadata() == {"b.bias": "a.bias", "b.weight": "a.weight"}
        assert twin.load_model(other, str(path), backend=backend) == ([], [])
        assert same_state(model, other)
        assert other.a.weight is other.b.weight

    def test_the_users_metadata_stays(self, path, backend):
        metadata = {"b.bias": "mine", "made by": "me"}
        before = dict(metadata)
        twin.save_model(Tied(), path, metadata)
        assert metadata == before
        with sparsefmt.safe_open(path, "np", backend=backend) as f:
            assert f.metadata() == {"b.bias": "mine", "b.weight": "a.weight", "made by": "me"}

    def test_the_file_may_have_the_other_name(self, path, backend):
        model, other = Tied(), Tied()
        state = model.state_dict()
        del state["a.weight"], state["a.bias"]
        twin.save_file(state, path)
        assert twin.load_model(other, path, backend=backend) == ([], [])
        assert same_state(model, other)

    def test_both_names_are_one_too_many_unless_they_are_tied(self, path, backend):
        twin.save_model(Separate(), path)
        with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "b\.bias", "b\.weight"') as caught:
            twin.load_model(Tied(), path, backend=backend)
        assert str(path) in str(caught.value)
        missing, unexpected = twin.load_model(Tied(), path, strict=False)
        assert (missing, sorted(unexpected)) == ([], ["b.bias", "b.weight"])
        model, other = Tied(), Tied()
        weight, bias = (parameter.detach().numpy() for parameter in model.a.parameters())
        sparsefmt.save_file({"a.weight": weight, "b.weight": weight, "a.bias": bias, "b.bias": bias}, path)
        assert twin.load_model(other, path) == ([], [])
        assert same_state(model, other)

    def test_missing_and_unexpected_names(self, path, backend):
        twin.save_model(Tied(), path)
        with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "b\.bias", "b\.weight"') as caught:
            twin.load_model(Separate(), path, backend=backend)
        assert "loading state_dict for Separate" in str(caught.value)
        assert "Unexpected" not in str(caught.value)
        missing, unexpected = twin.load_model(Separate(), path, False, "cpu")
        assert (sorted(missing), unexpected) == (["b.bias", "b.weight"], [])
        twin.save_file({"more": torch.ones(2)}, path)
        missing, unexpected = twin.load_model(Tied(), path, strict=False)
        assert unexpected == ["more"]
        assert sorted(missing) == ["a.bias", "a.weight"]

    @pytest.mark.parametrize("strict", [True, False])
    def test_the_same_as_safetensors(self, path, backend, strict, tmp_path):
        """What is missing and unexpected, for any pair of these models."""
        for source in (Tied, Separate, Transposed):
            twin.save_model(source(), path)
            safetensors.torch.save_model(source(), str(tmp_path / "theirs"))
            for target in (Tied, Separate, Transposed):
                results = []
                for load_model, name in ((twin.load_model, path), (safetensors.torch.load_model, tmp_path / "theirs")):
                    try:
                        missing, unexpected = load_model(target(), name, strict, backend=backend)
                        results.append((sorted(missing), sorted(unexpected)))
                    except RuntimeError:
                        results.append(RuntimeError)
                assert results[0] == results[1], (source, target)

    def test_shapes_that_differ(self, path, backend):
        twin.save_model(torch.nn.Linear(3, 4), path)
        with pytest.raises(RuntimeError, match="size mismatch for weight") as caught:
            twin.load_model(torch.nn.Linear(5, 4), path, strict=False, backend=backend)
        assert str(path) in str(caught.value)

    def test_other_memory_orders(self, path, backend):
        model, other = Transposed(), Transposed()
        with pytest.raises(ValueError, match=r"tensor 'a\.weight'.*save_model\(\.\.\., force_contiguous=True\)"):
            twin.save_model(model, path, force_contiguous=False)
        twin.save_model(model, path)
        twin.load_model(other, path, backend=backend)
        assert same_state(model, other)
        assert not other.a.weight.is_contiguous()

    def test_parts_of_a_larger_memory(self, path, backend):
        model = torch.nn.Linear(4, 4, bias=False)
        model.weight = torch.nn.Parameter(torch.randn(8, 4)[:4])
        with pytest.raises(RuntimeError):
            safetensors.torch.save_model(model, str(path))
        with pytest.raises(SharedTensorsError, match=r"'weight'.*clone"):
            twin.save_model(model, path)

    def test_states_that_are_no_tensors(self, path, backend):
        class Odd(torch.nn.Linear):
            def get_extra_state(self):
                return {"step": 1}

        with pytest.raises(FormatError, match="'_extra_state'"):
            twin.save_model(Odd(2, 2), path)

    def test_pruned_models_become_smaller(self, path, backend):
        model = torch.nn.Linear(500, 400)
        torch.nn.utils.prune.l1_unstructured(model, "weight", 0.9)
        torch.nn.utils.prune.remove(model, "weight")
        twin.save_model(model, path)
        assert path.stat().st_size < 0.2 * 500 * 400 * 4
        other = torch.nn.Linear(500, 400)
        twin.load_model(other, path, backend=backend)
        assert same_state(model, other)
        twin.save_model(model, path, layout="permuted", codec="raw", negative_zeros="drop")
        with sparsefmt.open_file(path) as file:
            assert file.reader.index.tensors["weight"].layout.name == "permuted"
            assert file.reader.index.tensors["weight"].negative_zeros_dropped > 0


class TestSharing:
    """The helpers that other libraries take from safetensors.torch."""

    @staticmethod
    def groups(tensors) -> list[set[str]]:
        return twin._find_shared_tensors(tensors)

    @settings(max_examples=examples(200), deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 11), st.integers(1, 12)), max_size=6))
    def test_groups_are_what_overlaps(self, parts):
        memories = [torch.zeros(12) for _ in range(3)]
        tensors, bytes_of = {}, {}
        for number, (memory, begin, length) in enumerate(parts):
            name = f"t{number}"
            tensors[name] = memories[memory][begin : begin + length]
            bytes_of[name] = {(memory, index) for index in range(begin, min(12, begin + length))}
        groups = [{name} for name in tensors]
        for name in tensors:
            touched = [group for group in groups if any(bytes_of[name] & bytes_of[other] for other in group)]
            groups = [group for group in groups if group not in touched] + [set().union(*touched)]
        assert sorted(map(sorted, self.groups(tensors))) == sorted(map(sorted, groups))

    def test_what_safetensors_misses(self):
        w = torch.zeros(10)
        tensors = {"whole": w, "begin": w[1:2], "end": w[5:7]}
        assert self.groups(tensors) == [{"whole", "begin", "end"}]
        assert safetensors.torch._find_shared_tensors(tensors) == [{"whole", "begin"}, {"end"}]

    def test_without_data(self):
        meta = torch.zeros(3, device="meta")
        assert self.groups({"a": meta, "b": meta, "c": torch.zeros(0), "d": torch.zeros(0)}) == []
        assert twin._is_complete(meta)

    def test_ends_and_sizes(self):
        w = torch.zeros(6, 4, dtype=torch.float16)
        for view, end in ((w, 48), (w.T, 48), (w[:, ::2], 46), (w[1], 16)):
            assert twin._end_ptr(view) - twin.storage_ptr(w) == end
            assert twin.storage_size(view) == 48
        assert twin._is_complete(w)
        assert twin._is_complete(w.T)
        assert not twin._is_complete(w[:3])

    def test_which_name_is_kept(self):
        w = torch.zeros(3, 3)
        tensors = {"c": w, "b": w, "a": w[:1], "other": torch.zeros(2)}
        keep = twin._remove_duplicate_names
        assert keep(tensors) == {"b": ["a", "c"]}
        assert keep(tensors, preferred_names=["c", "a"]) == {"c": ["a", "b"]}
        assert keep(tensors, discard_names=["b"]) == {"c": ["a", "b"]}
        assert keep(tensors, discard_names=["b", "c"]) == {"b": ["a", "c"]}
        assert keep(tensors, preferred_names=["b"], discard_names=["b"]) == {"b": ["a", "c"]}
        for options in ({}, {"preferred_names": ["c", "a"]}, {"discard_names": ["b"]}, {"discard_names": ["b", "c"]}):
            assert keep(tensors, **options) == dict(safetensors.torch._remove_duplicate_names(tensors, **options))

    def test_errors_survive_a_pickle(self):
        with pytest.raises(SharedTensorsError) as caught:
            twin._remove_duplicate_names({"a": torch.zeros(4)[:2]})
        for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
            assert isinstance(again, SharedTensorsError)
            assert str(again) == str(caught.value)


def test_files_of_another_format(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(FormatError, match="sparsefmt convert"):
        twin.load_file(tmp_path / "w.safetensors")
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(FormatError, match="PyTorch"):
        twin.load_file(tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError):
        twin.load_file(tmp_path / "missing")
    with pytest.raises(ValueError, match="backend"):
        twin.load_file(tmp_path / "w.pt", backend="ftp")
