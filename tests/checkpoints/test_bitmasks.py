"""Tensors that compressed-tensors spells as a bitmask and values: read as the one, to the bit, or refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from helpers import PRUNABLE, examples, pruned, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_groups import Arrays, Memory, dense, spelled

import sparsefmt
from sparsefmt import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.adapters import ArrayRows
from sparsefmt.checkpoints.bitmasks import BitmaskRows
from sparsefmt.checkpoints.conversion import convert_file
from sparsefmt.checkpoints.folding import folded
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
from sparsefmt.checkpoints.safetensors_writing import write_safetensors
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.layouts import heights
from sparsefmt.save_options import SaveOptions


def spelled_24(array: np.ndarray, stem: str = "w") -> Arrays:
    """The "sparse-24-bitmask" spelling of a matrix with two of four elements not zero."""
    arrays = spelled(array, stem)
    del arrays[f"{stem}.row_offsets"]
    arrays[f"{stem}.shape"] = arrays[f"{stem}.shape"].reshape(-1, 1)
    arrays[f"{stem}.compressed"] = arrays[f"{stem}.compressed"].reshape(len(array), -1)
    return arrays


def two_of_four(rows: int, cols: int, dtype: object = np.float32) -> np.ndarray:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((rows * cols // 4, 4)) + 9
    array[np.arange(len(array))[:, None], rng.permuted(np.tile(np.arange(4), (len(array), 1)), axis=1)[:, :2]] = 0
    return array.reshape(rows, cols).astype(dtype)


class TestBitmask:
    @settings(max_examples=examples(150), deadline=None)
    @given(
        dtype=st.sampled_from(PRUNABLE),
        shape=st.sampled_from([(1,), (8,), (21,), (0,), (1, 1), (5, 7), (3, 64), (4, 65), (0, 3), (3, 0), (2, 3, 9)]),
        sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        seed=st.integers(0, 1 << 32),
        data=st.data(),
    )
    def test_any_bits_and_any_rows(self, dtype, shape, sparsity, seed, data):
        array = pruned(np.random.default_rng(seed), shape, dtype, sparsity)
        file = folded(Memory(spelled(array, "layer.weight")))
        assert file.names == ["layer.weight"]
        matrix = file.rows_of("layer.weight")
        assert (matrix.dtype, matrix.shape) == (dtype, shape)
        assert same_bits(dense(file, "layer.weight"), array)
        begin = data.draw(st.integers(0, matrix.rows))
        end = data.draw(st.integers(begin, matrix.rows))
        part = matrix.bits(begin, end)
        assert part.flags.c_contiguous
        assert np.array_equal(part, ArrayRows(array).bits(begin, end))

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
    def test_two_of_four(self, dtype):
        array = two_of_four(12, 32, dtype)
        file = folded(Memory(spelled_24(array, "layer")))
        assert same_bits(dense(file, "layer.weight"), array)
        matrix = file.rows_of("layer.weight")
        assert np.array_equal(matrix.bits(3, 8), ArrayRows(array).bits(3, 8))

    @pytest.mark.parametrize("shape", [(1003,), (37, 21), (9, 5, 11)])
    def test_masks_are_read_in_runs(self, shape, monkeypatch):
        monkeypatch.setattr(heights, "TILE_POSITIONS", 64)
        array = np.ones(shape, np.float32)
        memory = Memory(spelled(array, "layer"))
        assert same_bits(dense(folded(memory), "layer.weight"), array)
        assert len([name for name, _, _ in memory.read if name == "layer.bitmask"]) > 2

    def test_marked_zeros_stay(self):
        """2:4 marks two of four, zero or not."""
        arrays = spelled_24(two_of_four(4, 8))
        arrays["w.compressed"][1, 2] = -0.0
        arrays["w.compressed"][2, 1] = 0.0
        result = dense(folded(Memory(arrays)), "w.weight")
        assert np.signbit(result[1]).any()
        assert (result != 0).sum() == 14

    def test_converted(self, tmp_path):
        array = weights(np.random.default_rng(0), (2600, 900), ml_dtypes.bfloat16, 0.9)
        other = two_of_four(64, 128)
        arrays = {**spelled(array, "a"), **spelled_24(other, "b"), "a.bias": np.ones(5), "c.scale": np.zeros((3, 4))}
        path = tmp_path / "w.safetensors"
        with open(path, "wb") as sink:
            write_safetensors(sink, {name: ArrayRows(part) for name, part in arrays.items()})
        with folded(SafetensorsFile(path)) as file:
            names = file.names
            assert sorted(file.names) == ["a.bias", "a.weight", "b.weight", "c.scale"]
            convert_file(file, tmp_path / "w.sparsefmt", SaveOptions(codec="zstd"))
        expected = {"a.weight": array, "b.weight": other, "a.bias": np.ones(5), "c.scale": np.zeros((3, 4))}
        assert (tmp_path / "w.sparsefmt").read_bytes() == sparsefmt.save(
            {name: expected[name] for name in names}, codec="zstd"
        )

    def test_from_a_sparsefmt_file(self, tmp_path):
        array = weights(np.random.default_rng(0), (300, 200), np.float32, 0.9)
        sparsefmt.save_file(spelled(array, "layer.weight"), tmp_path / "w")
        with folded(SparsefmtFile(tmp_path / "w")) as file:
            assert same_bits(dense(file, "layer.weight"), array)

    def test_a_run_of_rows_reads_what_it_needs(self):
        array = weights(np.random.default_rng(0), (400, 80), np.float32, 0.9)
        memory = Memory(spelled(array, "layer.weight"))
        matrix = folded(memory).rows_of("layer.weight")
        matrix.bits(0, 1)
        memory.read.clear()
        part = matrix.bits(100, 120)
        assert same_bits(part.view(np.float32), array[100:120])
        first = int((array[:100] != 0).sum())
        count = int((array[100:120] != 0).sum())
        assert memory.read == [
            ("layer.weight.bitmask", 100, 120),
            ("layer.weight.compressed", first, first + count),
        ]


class TestBitmasksThatDoNotFit:
    """Each is noticed before an element is made of it, and named."""

    array = weights(np.random.default_rng(0), (6, 11), np.float32, 0.5)

    def check(self, match: str, kind: type = FormatError, array: np.ndarray | None = None, **changes: object) -> None:
        arrays = spelled(self.array if array is None else array, "layer.weight")
        for part, change in changes.items():
            name = f"layer.weight.{part}"
            arrays[name] = change(arrays[name].copy()) if callable(change) else change
        memory = Memory(arrays)
        with pytest.raises(kind, match=rf"tensor 'layer\.weight': .*{match}"):
            folded(memory).rows_of("layer.weight").bits(0, 1)
        assert all(0 <= begin <= end for _, begin, end in memory.read)

    def test_shapes(self):
        self.check("shape is F32", shape=np.ones(2, np.float32))
        self.check(r"shape is I64 \[\]", shape=np.int64(3))
        self.check(r"shape is I64 \[2, 2\]", shape=np.ones((2, 2), np.int64))
        self.check(r"shape is I64 \[0\]", shape=np.ones(0, np.int64))
        self.check(r"shape is I64 \[100\]", shape=np.ones(100, np.int64))
        self.check(r"shape says \[6, -11\]", shape=np.array([6, -11]))
        self.check("bits", SparsefmtError, shape=np.array([1 << 40, 1 << 40]))
        self.check(r"bitmask is U8 \[6, 2\], .* should be U8 \[7, 2\]", shape=np.array([7, 11]))
        self.check(r"bitmask is U8 \[6, 2\], .* should be U8 \[6, 3\]", shape=np.array([6, 17]))
        self.check(r"bitmask is U8 \[6, 2\], .* should be U8 \[2\]", shape=np.array([11]))

    def test_bitmasks(self):
        self.check(r"bitmask is I8 \[6, 2\]", bitmask=lambda mask: mask.view(np.int8))
        self.check(r"bitmask is U8 \[12\]", bitmask=lambda mask: mask.reshape(-1))

        def with_unused_bit(mask: np.ndarray) -> np.ndarray:
            mask[4, 1] |= 0x80
            return mask

        self.check("bits set after the last column of row 4", bitmask=with_unused_bit)

        def with_one_more(mask: np.ndarray) -> np.ndarray:
            mask[2, 0] = 255
            return mask

        self.check(r"marks \d+ elements, and compressed has \d+", bitmask=with_one_more)

    def test_unused_bits_in_one_dimension(self):
        array = np.ones(11, np.float32)

        def with_unused_bit(mask: np.ndarray) -> np.ndarray:
            mask[1] |= 0x10
            return mask

        self.check("bits set after the last column", array=array, bitmask=with_unused_bit)

    def test_elements(self):
        for change in (lambda values: values[:-1], lambda values: np.append(values, values[:1])):
            self.check(r"marks \d+ elements, and compressed has \d+", compressed=change)
        self.check("compressed is", array=np.zeros((3, 0), np.float32), compressed=np.ones(2, np.float32))
        self.check("F4", UnsupportedError, compressed=np.zeros(40, ml_dtypes.float4_e2m1fn))

    def test_row_offsets(self):
        self.check(r"row_offsets is I64 \[7\]", row_offsets=lambda offsets: np.append(offsets, 3))
        self.check(r"row_offsets is I32", row_offsets=lambda offsets: offsets.astype(np.int32))

        def with_another(offsets: np.ndarray) -> np.ndarray:
            offsets[3] += 1
            return offsets

        self.check("row_offsets has .* for row 3", row_offsets=with_another)
        self.check("row_offsets has 5 for row 0", array=np.ones(4, np.float32), row_offsets=np.int64(5))

    def test_rows_that_a_file_claims_without_having_them(self):
        """A shape without columns has no bytes, however many rows it has."""
        parts = spelled_24(two_of_four(4, 8))
        parts["w.shape"] = np.array([[1 << 50], [0]])
        parts["w.bitmask"] = np.zeros((0, 0), np.uint8)
        with pytest.raises(FormatError, match="bitmask is"):
            folded(Memory(parts)).rows_of("w.weight")
        empty = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1 << 50, 0), (0, 0))
        matrices = [ArrayRows(np.array([1 << 50, 0])), ArrayRows(empty), ArrayRows(np.ones(0, np.float32))]
        assert BitmaskRows("w", *matrices).bits(5, 7).shape == (2, 0)
