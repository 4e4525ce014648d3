"""Checkpoints that spell one tensor in several: found by their names, in one file or several, and converted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers import run_command, same_bits, weights
from tensor_groups import Memory, dense, spelled

import sparsefmt
from sparsefmt import FormatError
from sparsefmt.checkpoints.folding import Group, foldable, folded, folded_files


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
