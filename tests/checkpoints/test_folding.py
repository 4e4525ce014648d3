"""Checkpoints that spell one tensor in several: read as the one, to the bit, and refused where they do not fit."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import PRUNABLE, pruned, random_bits, run_command, same_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt
from sparsefmt import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.adapters import ArrayRows, Rows
from sparsefmt.checkpoints.bitmasks import BitmaskRows
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.conversion import Settings, convert_file
from sparsefmt.checkpoints.folding import Group, foldable, folded, folded_files
from sparsefmt.checkpoints.masks import MaskedRows, masked_pairs
from sparsefmt.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.dtypes import DTYPES
from sparsefmt.layouts import auto

Arrays = dict[str, np.ndarray]


class Memory(TensorFile):
    """Arrays as an open file, which remembers what was read of them."""

    def __init__(self, arrays: Arrays, name: str = "file") -> None:
        self.arrays = arrays
        self.path = Path(name)
        self.names = list(arrays)
        self.metadata = {"key": "text"}
        self.nbytes = 1
        self.closed = False
        self.read: list[tuple[str, int, int]] = []

    def rows_of(self, name: str) -> Rows:
        inner = ArrayRows(self.arrays[name])
        bits = inner.bits

        def remembering(begin: int, end: int) -> np.ndarray:
            assert 0 <= begin <= end <= inner.rows
            self.read.append((name, begin, end))
            return bits(begin, end)

        inner.bits = remembering  # type: ignore[method-assign]
        return inner

    def close(self) -> None:
        self.closed = True


def spelled(array: np.ndarray, stem: str = "w") -> Arrays:
    """The "sparse-bitmask" spelling of an array: naively, row by row."""
    bits = np.ascontiguousarray(array).view(f"u{array.itemsize}")
    rows = bits.reshape(prod(array.shape[:-1]), array.shape[-1])
    mask = np.zeros((len(rows), -(-array.shape[-1] // 8)), np.uint8)
    values = []
    for row, elements in enumerate(rows):
        for column, element in enumerate(elements):
            if element:
                mask[row, column // 8] |= 1 << (column % 8)
                values.append(element)
    counts = (rows != 0).sum(axis=1).reshape(array.shape[:-1])
    offsets = np.cumsum(counts, axis=0) - counts if counts.ndim else np.int64(0)
    return {
        f"{stem}.shape": np.array(array.shape, np.int64),
        f"{stem}.bitmask": mask.reshape(*array.shape[:-1], mask.shape[1]),
        f"{stem}.compressed": np.array(values, bits.dtype).view(array.dtype),
        f"{stem}.row_offsets": np.asarray(offsets, np.int64),
    }


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


def dense(file: TensorFile, name: str) -> np.ndarray:
    matrix = file.rows_of(name)
    return matrix.bits(0, matrix.rows).view(matrix.dtype.numpy).reshape(matrix.shape)


class TestBitmask:
    @settings(max_examples=150, deadline=None)
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
        monkeypatch.setattr(auto, "TILE_POSITIONS", 64)
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
            convert_file(file, tmp_path / "w.sparsefmt", Settings(codec="zstd"))
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


class TestMasks:
    @settings(max_examples=100, deadline=None)
    @given(
        dtype=st.sampled_from([DTYPES[name] for name in ("F32", "F16", "BF16", "F64", "I8", "U16", "I64", "BOOL")]),
        mask_dtype=st.sampled_from([np.float32, np.bool_, ml_dtypes.bfloat16, np.int64]),
        shape=st.sampled_from([(), (5,), (0,), (9, 14), (3, 4, 5)]),
        seed=st.integers(0, 1 << 32),
    )
    def test_the_product(self, dtype, mask_dtype, shape, seed):
        rng = np.random.default_rng(seed)
        original = random_bits(rng, shape, dtype)
        keep = rng.random(shape) < 0.5
        file = folded(Memory({"w_mask": np.asarray(keep).astype(mask_dtype), "w_orig": original}))
        assert file.names == ["w"]
        result = dense(file, "w")
        bits, expected = (np.ascontiguousarray(array).view(f"u{dtype.numpy.itemsize}") for array in (result, original))
        assert np.array_equal(bits[keep.reshape(bits.shape)], expected[keep.reshape(bits.shape)])
        if dtype.name in ("F32", "F16", "BF16", "F64"):
            with np.errstate(invalid="ignore"):
                finite = np.isfinite(original)
            zeros = ~keep & finite
            assert (result[zeros] == 0).all()
            assert np.array_equal(np.signbit(result[zeros]), np.signbit(original[zeros]))
            assert np.isnan(result[~keep & ~finite]).all()
        else:
            assert not result[~keep].any()

    def test_the_same_as_torch(self, tmp_path):
        import torch
        from torch.nn.utils import prune

        import sparsefmt.torch

        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            model = torch.nn.Linear(60, 40, dtype=dtype)
            prune.l1_unstructured(model, "weight", 0.7)
            sparsefmt.torch.save_file(model.state_dict(), tmp_path / "w")
            with folded(SparsefmtFile(tmp_path / "w")) as file:
                matrix = file.rows_of("weight")
                computed = model.weight.detach().view(torch.int16 if dtype.itemsize == 2 else torch.int32).numpy()
                assert np.array_equal(matrix.bits(0, 40), computed.view(matrix.dtype.bits_dtype))

    def test_masks_of_other_numbers_are_multiplied_with(self):
        original, mask = np.float32([1, 2, -3]), np.float32([0.5, 1, 2])
        assert dense(folded(Memory({"w_orig": original, "w_mask": mask})), "w").tolist() == [0.5, 2, -6]

    def test_shapes_that_differ(self):
        file = folded(Memory({"a.w_orig": np.ones((2, 3)), "a.w_mask": np.ones((3, 2))}))
        with pytest.raises(FormatError, match=r"tensor 'a\.w': .*\[3, 2\].*\[2, 3\]"):
            file.rows_of("a.w")

    def test_pairs_by_name(self):
        names = ["b_mask", "a_orig", "a_mask", "b", "c_orig", "_orig", "_mask", "d.x_orig", "d.x_mask"]
        names += ["e._orig", "e._mask"]
        assert masked_pairs(names) == {"a": ("a_orig", "a_mask"), "d.x": ("d.x_orig", "d.x_mask")}
        assert masked_pairs([]) == {}

    def test_tiles_are_products_of_tiles(self):
        array = weights(np.random.default_rng(0), (40, 30), np.float32, 0.0)
        memory = Memory({"w_orig": array, "w_mask": (array > 0).astype(np.float32)})
        assert np.array_equal(folded(memory).rows_of("w").bits(5, 9).view(np.float32), (array * (array > 0))[5:9])
        assert memory.read == [("w_orig", 5, 9), ("w_mask", 5, 9)]
        assert isinstance(folded(memory).rows_of("w"), MaskedRows)


class TestNames:
    def test_of_the_first_versions_and_of_later_ones(self):
        old = [f"layer.{name}.{part}" for name in ("weight", "bias") for part in ("shape", "bitmask", "compressed")]
        assert [group.name for group in foldable(old)] == ["layer.weight", "layer.bias"]
        mixed = [*old, *(f"tensor.{part}" for part in ("shape", "bitmask", "compressed", "row_offsets"))]
        assert [group.name for group in foldable(mixed)] == ["layer.weight", "layer.bias", "tensor"]
        new = [f"layer.{part}" for part in ("row_offsets", "shape", "bitmask", "compressed")]
        assert foldable(new) == [
            Group(
                "layer.weight",
                "sparse-bitmask",
                ("layer.compressed", "layer.bitmask", "layer.shape", "layer.row_offsets"),
            )
        ]
        assert foldable(new[1:])[0].spelling == "sparse-24-bitmask"
        assert foldable(["x_orig", "x_mask"]) == [Group("x", "mask", ("x_orig", "x_mask"))]

    def test_what_is_no_group(self):
        names = ["x_orig", "y_mask", "a.shape", "a.row_offsets", "b.bitmask", "c.compressed", "weight"]
        assert foldable(names) == []
        memory = Memory({name: np.ones(2) for name in names})
        assert folded(memory) is memory

    def test_the_place_in_the_file_is_that_of_the_first_part(self):
        arrays = {"a": np.ones(2), **spelled(np.eye(3, dtype=np.float32), "m"), "z": np.ones(3)}
        file = folded(Memory(arrays))
        assert file.names == ["a", "m.weight", "z"]
        assert (file.path, file.metadata, file.nbytes) == (Path("file"), {"key": "text"}, 1)
        assert same_bits(dense(file, "z"), np.ones(3))
        for name in ("m.compressed", "m.shape", "nothing"):
            with pytest.raises(KeyError):
                file.rows_of(name)

    def test_it_is_closed_with_the_file(self):
        memory = Memory(spelled(np.eye(3)))
        with folded(memory):
            assert not memory.closed
        assert memory.closed

    @pytest.mark.parametrize("missing", ["shape", "bitmask", "compressed"])
    def test_groups_that_lack_a_part(self, missing):
        arrays = spelled(np.eye(3), "a.b")
        del arrays[f"a.b.{missing}"]
        assert foldable(arrays) == []
        with pytest.raises(FormatError, match=rf"tensor 'a\.b': .*'a\.b\.{missing}' is not") as caught:
            folded(Memory(arrays))
        assert caught.value.code == "fold-incomplete"

    def test_names_that_are_taken(self):
        for arrays in (
            {**spelled(np.eye(3), "a"), "a.weight": np.ones(3)},
            {"a_orig": np.ones(3), "a_mask": np.ones(3), "a": np.ones(3)},
            {**spelled(np.eye(3), "a"), "a.weight_orig": np.ones(3), "a.weight_mask": np.ones(3)},
        ):
            with pytest.raises(FormatError, match="it is there beside") as caught:
                folded(Memory(arrays))
            assert caught.value.code == "fold-name"


class TestShards:
    def test_parts_in_several_files(self):
        array = weights(np.random.default_rng(0), (30, 40), np.float32, 0.8)
        parts = spelled(array, "layer")
        mask = (np.arange(4) % 2).astype(np.float32)
        first = Memory({"layer.bitmask": parts["layer.bitmask"], "x_orig": np.ones(4, np.float32)}, "1")
        second = Memory({name: part for name, part in parts.items() if "bitmask" not in name}, "2")
        third = Memory({"x_mask": mask, "other": np.ones(2)}, "3")
        files = folded_files([first, second, third])
        assert [file.names for file in files] == [["x"], ["layer.weight"], ["other"]]
        assert [file.path for file in files] == [Path("1"), Path("2"), Path("3")]
        assert same_bits(dense(files[1], "layer.weight"), array)
        assert same_bits(dense(files[0], "x"), mask)
        with pytest.raises(FormatError, match="fold-incomplete"):
            folded(second)

    def test_without_groups(self):
        files = [Memory({"a": np.ones(2)}), Memory({"b": np.ones(2)})]
        assert folded_files(files) == files
        assert folded_files([]) == []


class TestCommands:
    """`--fold` of convert, verify and diff."""

    def test_a_folder_whose_groups_lie_in_two_shards(self, tmp_path):
        array = weights(np.random.default_rng(0), (64, 96), np.float32, 0.8)
        original, mask = np.random.default_rng(1).standard_normal((2, 8, 16)) > [[[0.0]], [[0.5]]]
        first = {**spelled(array, "a"), "b.weight_orig": original.astype(np.float32)}
        second = {"b.weight_mask": mask.astype(np.float32), "b.bias": np.ones(8, np.float32)}
        second["a.bitmask"] = first.pop("a.bitmask")
        folder, out = tmp_path / "model", tmp_path / "out"
        folder.mkdir()
        for number, arrays in enumerate((first, second), 1):
            safetensors.numpy.save_file(arrays, folder / f"model-0000{number}-of-00002.safetensors")
        files = {name: f"model-0000{n}-of-00002.safetensors" for n, part in ((1, first), (2, second)) for name in part}
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        sparsity = {"format": "sparse-bitmask"}
        method = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
        (folder / "config.json").write_text(json.dumps({"model_type": "x", "quantization_config": method}))

        assert "--fold" in run(1, "convert", folder, out, "--quiet")
        run(0, "convert", folder, out, "--fold")
        written = json.loads((out / "model.sparsefmt.index.json").read_text())
        assert written["weight_map"] == {
            "a.weight": "model-00001-of-00002.sparsefmt",
            "b.bias": "model-00002-of-00002.sparsefmt",
            "b.weight": "model-00001-of-00002.sparsefmt",
        }
        assert written["metadata"]["total_size"] == 4 * (64 * 96 + 8 * 16 + 8)
        assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "sparsefmt"
        loaded = sparsefmt.load_file(out / "model-00001-of-00002.sparsefmt", layout="dense")
        assert same_bits(loaded["a.weight"], array)
        assert np.array_equal(loaded["b.weight"], original * mask.astype(np.float32))

        assert "of both" in run(1, "diff", folder, out)
        assert "equal" in run(0, "diff", folder, out, "--fold")
        run(0, "verify", out, "--against", folder, "--fold")

    def test_without_it_there_is_a_hint(self, tmp_path):
        path = tmp_path / "model.safetensors"
        tensors = {"weight_orig": np.ones((4, 4), np.float32), "weight_mask": np.eye(4, dtype=np.float32)}
        safetensors.numpy.save_file(tensors, path)
        assert "--fold stores each as one" in run(0, "convert", path)
        assert sorted(sparsefmt.load_file(path.with_suffix(".sparsefmt"))) == ["weight_mask", "weight_orig"]
        assert "1 group of tensors" in run(0, "convert", path, "--fold", "--force")
        assert list(sparsefmt.load_file(path.with_suffix(".sparsefmt"))) == ["weight"]


def run(code: int, *arguments: object) -> str:
    result = run_command(*arguments)
    assert result.exit_code == code, result.output
    return result.output
