"""Signs of pruned zeros stay in the file until somebody asks for them, and come back to the bit whenever that is."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SPARSE, same_bits, weights

import sparsefmt.torch
from sparsefmt import SparseTensor, load, load_file, open_file, save, save_file
from sparsefmt.container import stored_signs
from sparsefmt.container.stored_signs import StoredSigns
from sparsefmt.errors import ChecksumError, FormatError
from sparsefmt.torch import SparseLinear, load_into, save_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="files that are open cannot be replaced there")

SHAPE = (700, 2000)
"""Two tiles, and 157 KB of signs."""


@pytest.fixture(scope="module")
def array() -> np.ndarray:
    return weights(np.random.default_rng(5), SHAPE, np.float32, 0.9, negative_zeros=True)


@pytest.fixture(params=["raw", "zstd", "rans"])
def path(request: pytest.FixtureRequest, array: np.ndarray, tmp_path: Path) -> Path:
    save_file({"w": array}, tmp_path / "w.sparsefmt", codec=request.param)
    return tmp_path / "w.sparsefmt"


def read(path: Path, **how: Any) -> SparseTensor:
    tensor = load_file(path, **how)["w"]
    assert isinstance(tensor, SparseTensor)
    assert isinstance(tensor.signs, StoredSigns)
    return tensor


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("layout", ["auto", *SPARSE])
def test_every_way_to_the_elements(layout: str, backend: Any, path: Path, array: np.ndarray) -> None:
    tensor = read(path, layout=layout, backend=backend)
    held = SparseTensor.from_dense(array, tensor.layout)
    assert tensor.nbytes < held.nbytes - 0.85 * array.size / 8
    path.unlink()
    assert same_bits(tensor.todense(), array)
    assert same_bits(tensor[5:650:7], array[5:650:7])
    assert same_bits(tensor[:, 100:200], array[:, 100:200])
    assert same_bits(np.asarray(tensor), array)
    for other in ("dense", *SPARSE):
        assert same_bits(tensor.to_layout(other).todense(), array)
    again = pickle.loads(pickle.dumps(tensor))
    assert again.signs is None
    assert same_bits(again.todense(), array)
    assert same_bits(copy.deepcopy(tensor).todense(), array)
    assert (tensor.to_scipy() != held.to_scipy()).nnz == 0
    # the bytes of a file are the same wherever the signs were
    for codec in ("raw", "zstd", "rans"):
        assert save({"w": tensor}, codec=codec) == save({"w": held}, codec=codec)
    dropped = save({"w": tensor}, negative_zeros="drop")
    assert dropped == save({"w": held}, negative_zeros="drop")


def test_products_do_not_read_them(path: Path, array: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = read(path)
    monkeypatch.setattr(StoredSigns, "tile", None)
    x = np.random.default_rng(1).standard_normal((3, SHAPE[1])).astype(np.float32)
    expected = sparsefmt.linear(x, SparseTensor.from_dense(array, tensor.layout))
    assert same_bits(sparsefmt.linear(x, tensor), expected)


def test_saved_over_the_file_that_they_are_in(path: Path, array: np.ndarray) -> None:
    tensor = read(path)
    save_file({"w": tensor}, path)
    assert same_bits(tensor.todense(), array)
    assert same_bits(read(path).todense(), array)
    save_file({"w": np.zeros((3, 3), np.float32)}, path)
    assert same_bits(tensor.todense(), array)


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_the_file_stays_open_as_long_as_the_tensor(backend: Any, path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("the system does not say what is open")

    def opened() -> int:
        return sum(os.path.samefile(path, link) for link in folder.iterdir() if link.exists())

    # what others left need not be looked at again
    gc.freeze()
    tensor = read(path, backend=backend)
    assert opened() >= 1
    tensor = tensor.to_layout("bitmask" if tensor.layout == "permuted" else "permuted")
    gc.collect()
    assert opened() >= 1
    del tensor
    gc.collect()
    assert opened() == 0


def test_few_signs_and_those_of_bytes_are_kept(
    array: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(save({"w": array}))["w"].signs is None  # type: ignore[union-attr]
    save_file({"w": array[:100]}, tmp_path / "few.sparsefmt")
    few = load_file(tmp_path / "few.sparsefmt")["w"]
    assert few.signs is None  # type: ignore[union-attr]
    assert same_bits(np.asarray(few), array[:100])
    save_file({"w": np.abs(array)}, tmp_path / "none.sparsefmt")
    assert load_file(tmp_path / "none.sparsefmt")["w"].signs is None  # type: ignore[union-attr]


def flip(path: Path, at: int) -> None:
    """Change a file in place, as nobody should."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def place_of_signs(path: Path) -> int:
    with open_file(path) as file:
        entry = file.reader.index.entry("w")
        return int(file.reader.index.chunk(entry, 1, "negative_zeros")["offset"]) + 100


def test_damage_is_noticed_on_load(path: Path) -> None:
    flip(path, place_of_signs(path))
    with pytest.raises(ChecksumError, match="negative_zeros"):
        load_file(path)


def test_a_file_that_is_changed_in_place_is_an_error_and_no_crash(path: Path, array: np.ndarray) -> None:
    tensor = load_file(path, backend="pread")["w"]
    at = place_of_signs(path)
    flip(path, at)
    with pytest.raises(ChecksumError, match=r"tensor 'w'.*negative_zeros") as raised:
        tensor.todense()  # type: ignore[union-attr]
    assert raised.value.path == str(path)
    assert "changed in place" in raised.value.__notes__[0]
    # the first tile is whole
    assert same_bits(tensor[:10], array[:10])  # type: ignore[index]
    os.truncate(path, at)
    with pytest.raises(FormatError, match="cut off"):
        tensor.todense()  # type: ignore[union-attr]
    shutil.copyfile(Path(__file__), path)
    with pytest.raises(FormatError):
        pickle.dumps(tensor)
    assert tensor @ np.ones(SHAPE[1], np.float32) is not None


class TestLayers:
    @pytest.fixture
    def model(self, path: Path, array: np.ndarray) -> torch.nn.Module:
        dense = torch.nn.Sequential(torch.nn.Linear(SHAPE[1], SHAPE[0]))
        dense[0].weight.data = torch.from_numpy(array)
        save_model(dense, path)
        with torch.device("meta"):
            made = torch.nn.Sequential(torch.nn.Linear(SHAPE[1], SHAPE[0]))
        assert load_into(made, path).sparse == ["0"]
        assert isinstance(made[0].sparse_tensor().signs, StoredSigns)
        return made

    def check(self, model: Any, array: np.ndarray) -> None:
        assert isinstance(model[0], SparseLinear)
        assert same_bits(model[0].weight.to_dense().numpy(), array)

    def test_they_take_no_memory(self, model: Any, array: np.ndarray) -> None:
        held = SparseLinear.from_tensor(SparseTensor.from_dense(array, model[0].sparse_tensor().layout))
        assert model[0].weight_arrays.nbytes < held.weight_arrays.nbytes - 0.85 * array.size / 8
        self.check(model, array)

    def test_copies(self, model: Any, array: np.ndarray) -> None:
        self.check(copy.deepcopy(model), array)
        self.check(pickle.loads(pickle.dumps(model)), array)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        self.check(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False), array)
        shared = SparseLinear(SHAPE[1], SHAPE[0], bias=False)
        shared.share_weight(model[0])
        assert same_bits(shared.weight.to_dense().numpy(), array)
        assert same_bits(model[0].to(torch.float64).weight.to_dense().numpy(), array.astype(np.float64))

    @pytest.mark.parametrize("assign", [False, True])
    def test_state_dict(self, assign: bool, model: Any, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        other = torch.nn.Sequential(SparseLinear(SHAPE[1], SHAPE[0]))
        other.load_state_dict(state, assign=assign)
        self.check(other, array)
        # and on from there
        third = torch.nn.Sequential(SparseLinear(SHAPE[1], SHAPE[0]))
        third.load_state_dict(copy.deepcopy(other).state_dict(), assign=assign)
        self.check(third, array)
        wide = torch.nn.Sequential(SparseLinear(SHAPE[1], SHAPE[0], dtype=torch.float64))
        # torch notes in a state that it was assigned
        wide.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        self.check(wide, array.astype(np.float64))

    def test_damaged_signs_are_refused(self, model: Any) -> None:
        state = model.state_dict()
        other = torch.nn.Sequential(SparseLinear(SHAPE[1], SHAPE[0]))
        for wrong in (state["0.weight_signs"][:-1], torch.cat([state["0.weight_signs"]] * 2)):
            with pytest.raises(RuntimeError, match=r"0\.weight"):
                other.load_state_dict({**state, "0.weight_signs": wrong})

    def test_other_weights_do_not_get_them(self, model: Any, array: np.ndarray) -> None:
        other = SparseTensor.from_dense(np.abs(array) * (np.arange(SHAPE[1]) % 2))
        model[0].set_weight(other)
        assert same_bits(model[0].weight.to_dense().numpy(), other.todense())
        assert "0.weight_signs" not in model.state_dict()

    def test_saved_again(self, model: Any, array: np.ndarray, path: Path, tmp_path: Path) -> None:
        before = path.read_bytes()
        save_model(model, tmp_path / "again.sparsefmt", codec="auto")
        assert same_bits(load_file(tmp_path / "again.sparsefmt", layout="dense")["0.weight"], array)
        assert (tmp_path / "again.sparsefmt").read_bytes() == before
        sparsefmt.torch.make_dense(model)
        assert same_bits(model[0].weight.detach().numpy(), array)

    def test_export_and_compile_see_buffers_alone(self, model: Any) -> None:
        x = torch.randn(2, SHAPE[1])
        program = torch.export.export(model, (x,))
        assert torch.equal(program.module()(x), model(x))
        assert {name for name, _ in model.named_buffers()} == {"0.weight_arrays", "0.weight_table"}
        assert torch.equal(torch.func.functional_call(model, model.state_dict(), (x,)), model(x))


def test_worth(monkeypatch: pytest.MonkeyPatch, array: np.ndarray, tmp_path: Path) -> None:
    """With a threshold of one byte, all that small models have."""
    monkeypatch.setattr("sparsefmt.container.reader.WORTH_LEAVING", 1)
    assert stored_signs.WORTH_LEAVING > 1
    for rows in (1, 9, 70):
        save_file(
            {"w": array[:rows, :70], "v": array[:rows].reshape(rows, 20, 100)},
            tmp_path / "w.sparsefmt",
            layout="bitmask",
        )
        loaded = load_file(tmp_path / "w.sparsefmt")
        assert same_bits(np.asarray(loaded["w"]), array[:rows, :70])
        assert same_bits(np.asarray(loaded["v"]), array[:rows].reshape(rows, 20, 100))
