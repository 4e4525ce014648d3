"""Tensors with the same elements are stored once, and stay several tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from helpers import CODECS, same_bits, weights

import sparsefmt
import sparsefmt.numpy
import sparsefmt.torch
from sparsefmt import SparseTensor, cli
from sparsefmt.container.sources import Memory
from sparsefmt.sparse_file import SparseFile

MATRIX = weights(np.random.default_rng(0), (64, 96), np.float32, 0.8)


def copies_of(data: bytes) -> dict[str, str]:
    index = SparseFile(Memory(data)).reader.index
    return {name: index.aliases[name] for name in sorted(index.copies)}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", ["auto", "dense", "bitmask", "permuted"])
def test_they_are_found_and_come_back_separately(codec, layout):
    ones = np.ones(1000, np.float32)
    tensors = {
        "a": MATRIX,
        "b": MATRIX.copy(),
        "c": np.asfortranarray(MATRIX),
        "d": ones,
        "e": ones.copy(),
        "f": MATRIX,
    }
    data = sparsefmt.save(tensors, codec=codec, layout=layout)
    assert copies_of(data) == {"b": "a", "c": "a", "e": "d"}
    single = sparsefmt.save({"a": MATRIX, "d": ones}, codec=codec, layout=layout)
    assert len(data) < len(single) + 150
    for load in (sparsefmt.load, sparsefmt.numpy.load):
        loaded = load(data)
        assert loaded.keys() == tensors.keys()
        for name, array in loaded.items():
            assert same_bits(array.todense() if isinstance(array, SparseTensor) else array, tensors[name])
    loaded = sparsefmt.numpy.load(data)
    assert not np.shares_memory(loaded["a"], loaded["b"])
    loaded["b"][:] = 1
    assert same_bits(loaded["a"], MATRIX)
    dense = sparsefmt.load(data, layout="dense")
    assert not np.shares_memory(dense["d"], dense["e"])
    assert not np.shares_memory(dense["a"], dense["b"])


def test_in_torch_tied_tensors_share_memory_and_equal_ones_do_not():
    tied = torch.arange(5000.0)
    loaded = sparsefmt.torch.load(sparsefmt.save({"a": tied, "b": tied, "c": tied.clone()}))
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr() != loaded["c"].data_ptr()
    loaded["c"].zero_()
    assert torch.equal(loaded["a"], tied)


def test_what_differs_is_not_taken_for_equal():
    """In a sign of zero, in the payload of NaN, in dtype, in shape, in the last element."""
    base = np.zeros((40, 200), np.float32)
    base[::3] = 1.5
    signed, payload, last = base.copy(), base.copy(), base.copy()
    signed[1, 0] = -0.0
    payload[0, 0] = np.nan
    other = payload.copy()
    other.view(np.uint32)[0, 0] ^= 1
    last[-1, -1] = 7
    tensors = {
        "base": base,
        "signed": signed,
        "payload": payload,
        "other": other,
        "last": last,
        "dtype": base.view(np.int32),
        "shape": base.reshape(200, 40),
    }
    data = sparsefmt.save(tensors)
    assert copies_of(data) == {}
    for name, array in sparsefmt.numpy.load(data).items():
        assert same_bits(array, tensors[name])


def test_one_that_differs_behind_what_is_fingerprinted():
    """The first rows and the counts of zeros are equal: the elements themselves are compared."""
    large = np.ones((600, 1000), np.uint16)
    other = large.copy()
    other[-1, -1] = 2
    data = sparsefmt.save({"a": large, "b": other, "c": large.copy(), "d": other.copy()})
    assert copies_of(data) == {"c": "a", "d": "b"}
    assert same_bits(sparsefmt.numpy.load(data)["d"], other)


def test_small_tensors_are_left_alone():
    assert copies_of(sparsefmt.save({"a": np.ones(8), "b": np.ones(8)})) == {}


class Changing(Mapping[str, Any]):
    """Values that are other ones each time they are asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __getitem__(self, name: str) -> np.ndarray:
        self.asked += 1
        return np.full(1000, 1.0 if self.asked < 3 else 2.0)

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    def __len__(self) -> int:
        return 2


def test_a_mapping_that_gives_other_values_is_stored_as_it_was():
    loaded = sparsefmt.load(sparsefmt.save(Changing()))
    assert loaded["a"].tolist() == [1.0] * 1000
    assert loaded["b"].tolist() == [1.0] * 1000


def test_the_budget_counts_each():
    ones = np.ones(100_000, np.float32)
    data = sparsefmt.save({f"{number}": ones.copy() for number in range(16)})
    for load in (sparsefmt.load, sparsefmt.numpy.load, sparsefmt.torch.load):
        with pytest.raises(sparsefmt.LimitError):
            load(data, max_decoded_bytes=8 * ones.nbytes)
        assert len(load(data, max_decoded_bytes=17 * ones.nbytes)) == 16


def test_the_command_line(tmp_path):
    tensors = {"first": MATRIX, "second": MATRIX.copy(), "third": MATRIX + 1}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert "1 tensor with the same elements as another: stored once" in run(
        "convert", tmp_path / "a.safetensors", tmp_path / "a.sparsefmt"
    )
    assert "second = a copy of first" in run("inspect", tmp_path / "a.sparsefmt")
    listed = json.loads(run("inspect", tmp_path / "a.sparsefmt", "--json"))["files"][0]["tensors"]
    assert listed[1] == {"name": "second", "copy_of": "first"}
    run("verify", tmp_path / "a.sparsefmt", "--strict", "--against", tmp_path / "a.safetensors")
    run("export", tmp_path / "a.sparsefmt", tmp_path / "b.safetensors")
    back = safetensors.numpy.load_file(tmp_path / "b.safetensors")
    assert all(same_bits(back[name], array) for name, array in tensors.items())
