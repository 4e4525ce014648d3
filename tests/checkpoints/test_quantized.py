"""Checkpoints with quantized weights: converted to the bit, folded or not, and refused where parts do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers import fail, same_bits, succeed
from quantized_checkpoints import (
    INPUT_SCALE,
    KINDS,
    LEFT,
    SPELLED,
    WEIGHTS,
    Kind,
    checkpoint,
    save_file,
    save_folder,
    two_of_four,
)
from safetensors_files import read_back
from tensor_groups import Arrays, Memory

import sparsefmt
from sparsefmt import FormatError, SparsefmtError, UnsupportedError
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.compressed_tensors import parse
from sparsefmt.checkpoints.folding import folded
from sparsefmt.checkpoints.quantized import QuantizedWeight, quantized_weights

NEEDS_FOLD = ("int8-bitmask", "fp8-two-of-four")


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def quantization_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def stored(folder: Path) -> Arrays:
    """All tensors of the .sparsefmt files of a folder."""
    with Checkpoint(folder, ["sparsefmt"]) as opened:
        paths = [file.path for file in opened.files]
    return {name: array for path in paths for name, array in sparsefmt.load_file(path, layout="dense").items()}


class TestConverting:
    @pytest.mark.parametrize("name", [name for name in KINDS if name not in NEEDS_FOLD])
    @pytest.mark.parametrize("shards", [1, 3])
    def test_there_and_back_to_the_bit(self, tmp_path: Path, name: str, shards: int) -> None:
        kind = KINDS[name]
        folder = save_folder(tmp_path / "model", checkpoint(kind), kind.config(), shards)
        sparse = tmp_path / "model-sparsefmt"
        succeed("convert", folder)
        succeed("verify", sparse, "--against", folder, "--strict")
        assert {name: array.dtype for name, array in stored(sparse).items()} == {
            name: array.dtype for name, array in checkpoint(kind).items()
        }
        quantization = quantization_of(sparse)
        assert quantization["quant_method"] == "sparsefmt"
        assert quantization["compressed_tensors"] == kind.config()
        succeed("export", sparse, tmp_path / "back")
        for path in folder.iterdir():
            if path.suffix == ".safetensors":
                assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "back" / "config.json").read_bytes() == (folder / "config.json").read_bytes()

    @pytest.mark.parametrize("name", SPELLED)
    @pytest.mark.parametrize("shards", [1, 3])
    def test_folded(self, tmp_path: Path, name: str, shards: int) -> None:
        """Elements of one byte, the rest as it was; and a checkpoint that is quantized so when it is exported."""
        kind = KINDS[name]
        folder = save_folder(tmp_path / "model", checkpoint(kind), kind.config(), shards)
        sparse = tmp_path / "model-sparsefmt"
        if name in NEEDS_FOLD:
            assert "--fold reads" in fail(1, "convert", folder)
        succeed("convert", folder, "--fold")
        succeed("verify", sparse, "--against", folder, "--fold")
        expected = dict(LEFT)
        for layer, weight in WEIGHTS.items():
            expected[f"{layer}.weight"], expected[f"{layer}.weight_scale"] = kind.quantized(weight)
        found = stored(sparse)
        assert found.keys() == expected.keys()
        assert all(same_bits(np.asarray(found[name]), array) for name, array in expected.items())
        succeed("export", sparse, tmp_path / "back")
        plain = Kind("int-quantized" if "packed" in name else kind.format, kind.weights, kind.inputs)
        exported = parse(quantization_of(tmp_path / "back"), "back")
        assert exported == parse(plain.config(), "plain")

    def test_verify_looks_at_what_config_json_names(self, tmp_path: Path) -> None:
        kind = KINDS["int8"]
        succeed("convert", save_folder(tmp_path / "model", checkpoint(kind), kind.config()))
        sparse = tmp_path / "model-sparsefmt"
        path, tensors = sparse / "model.sparsefmt", stored(sparse)
        tensors["model.a.weight_scale"] = np.full_like(tensors["model.a.weight_scale"], np.nan)
        sparsefmt.save_file(tensors, path)
        assert "'model.a.weight': " in fail(1, "verify", sparse)
        del tensors["model.a.weight_scale"]
        sparsefmt.save_file(tensors, path)
        for against in ([], ["--against", sparse]):
            printed = fail(1, "verify", sparse, *against)
            assert "'model.a.weight': its scales, 'model.a.weight_scale', are not there" in printed

    @pytest.mark.parametrize("name", SPELLED)
    def test_a_file_alone(self, tmp_path: Path, name: str) -> None:
        save_file(tmp_path / "w.safetensors", checkpoint(KINDS[name]))
        out = succeed("convert", tmp_path / "w.safetensors")
        assert ("with a byte for each element" in out) == ("packed" in name)
        succeed("verify", tmp_path / "w.sparsefmt", "--against", tmp_path / "w.safetensors")
        succeed("convert", tmp_path / "w.safetensors", tmp_path / "f.sparsefmt", "--fold")
        elements, _ = KINDS[name].quantized(WEIGHTS["model.a"])
        assert same_bits(sparsefmt.load_file(tmp_path / "f.sparsefmt", layout="dense")["model.a.weight"], elements)

    def test_pruned_elements_are_stored_sparse(self, tmp_path: Path) -> None:
        for name in ("int8", "fp8-two-of-four", "packed"):
            save_file(tmp_path / "w.safetensors", KINDS[name].tensors("layer", two_of_four(256, 256)))
            succeed("convert", tmp_path / "w.safetensors", "--fold", "--force")
            tensor = sparsefmt.load_file(tmp_path / "w.sparsefmt")["layer.weight"]
            assert isinstance(tensor, sparsefmt.SparseTensor)
            assert tensor.sparsity == 0.5

    def test_what_the_config_does_not_say_well_is_refused(self, tmp_path: Path) -> None:
        kind = KINDS["int8"]
        config = kind.config()
        config["config_groups"]["group_0"]["weights"]["symmetric"] = False
        folder = save_folder(tmp_path / "model", checkpoint(kind), config)
        assert "the weights of 'group_0' are not symmetric" in fail(1, "convert", folder)
        folder = save_folder(tmp_path / "model", checkpoint(kind), kind.config(ignore=["lm_head", "model.a"]))
        assert "'model.a.weight_scale', are there, and no group" in fail(1, "convert", folder)
        arrays = checkpoint(kind)
        del arrays["model.b.weight_scale"]
        folder = save_folder(tmp_path / "model", arrays, kind.config())
        assert "'model.b.weight': its scales, 'model.b.weight_scale', are not there" in fail(1, "convert", folder)
        assert not (tmp_path / "model-sparsefmt").exists()
        # the weights alone are files like any other
        succeed("convert", folder / "model.safetensors")


class TestWeights:
    def test_what_belongs_together(self, kind: Kind) -> None:
        weights = found(kind, checkpoint(kind))
        assert list(weights) == ["model.a.weight", "model.b.weight"]
        for layer, array in WEIGHTS.items():
            weight = weights[f"{layer}.weight"]
            elements, scales = kind.quantized(array)
            rows = weight.rows()
            assert same_bits(rows.bits(0, rows.rows).view(rows.dtype.numpy), elements)
            assert same_bits(weight.scales(), scales.astype(np.float32))
            is_static = weight.scheme.activations == "int8-static"
            assert weight.input_scale() == (float(INPUT_SCALE[0]) if is_static else None)
            expected = {f"{layer}.weight_scale"} | ({f"{layer}.input_scale"} & checkpoint(kind).keys())
            assert set(weight.others) == expected

    def test_shapes_of_scales(self) -> None:
        for name, shapes in (
            ("int8", [(48,), (48, 1)]),
            ("int8-static", [(), (1,), (1, 1)]),
            ("int8-groups", [(48, 2)]),
        ):
            for shape in shapes:
                arrays = checkpoint(KINDS[name]) | {"model.a.weight_scale": np.ones(shape, np.float16)}
                assert found(KINDS[name], arrays)["model.a.weight"].scales().shape == shape

    def test_zero_points_that_are_zero_and_scales_that_are(self) -> None:
        more = {
            "model.a.weight_zero_point": np.zeros((48, 1), np.int8),
            "model.a.input_zero_point": np.array([-0.0], ml_dtypes.float8_e4m3fn),
            "model.b.weight_scale": np.zeros((16, 1), np.float32),
        }
        weights = found(KINDS["int8"], checkpoint(KINDS["int8"]) | more)
        assert set(weights["model.a.weight"].others) == {"model.a.weight_scale", *list(more)[:2]}
        assert not weights["model.b.weight"].scales().any()

    def test_layers_that_are_left_out(self) -> None:
        kind = KINDS["int8"]
        arrays = checkpoint(kind) | {"lm_head.weight": np.ones((8, 64), np.int8)}
        # what is neither one byte nor has scales is what it is, whatever a group is for
        arrays["model.c.weight"] = np.ones((8, 8), np.float32)
        assert list(found(kind, arrays)) == ["model.a.weight", "model.b.weight"]


class TestWhatDoesNotFit:
    """Each is an error that names both tensors."""

    def check(
        self,
        match: str,
        error: type[SparsefmtError] = FormatError,
        kind: str = "int8",
        missing: str | None = None,
        **changes: Any,
    ) -> None:
        """changes: tensors of model.a, by the last part of their names."""
        arrays = checkpoint(KINDS[kind]) | {f"model.a.{part}": array for part, array in changes.items()}
        arrays.pop(f"model.a.{missing}", None)
        with pytest.raises(error, match=match) as caught:
            found(KINDS[kind], arrays)["model.a.weight"].check()
        parts = {missing, *changes} - {None, "weight"}
        assert "'model.a.weight'" in str(caught.value)
        assert all(f"'model.a.{part}'" in str(caught.value) for part in parts or {"weight_scale"})

    def test_halves(self) -> None:
        self.check("are there, and the weight is not", missing="weight")
        self.check("are not there", missing="weight_scale")
        self.check("are not there", kind="fp8", missing="weight_scale")
        self.check("is not there", kind="int8-static", missing="input_scale")
        for kind in ("int8", "int8-groups"):
            self.check("no static ones", kind=kind, input_scale=INPUT_SCALE)

    def test_dtypes(self) -> None:
        self.check("it is F32, and by group 'group_0' should be I8", weight=np.ones((48, 64), np.float32))
        self.check("should be F8_E4M3", kind="fp8", weight=np.ones((48, 64), ml_dtypes.float8_e5m2))
        self.check("are F64, none of F32", weight_scale=np.ones((48, 1)))
        self.check("are I8", weight_scale=np.ones((48, 1), np.int8))
        self.check(r"is I32 \[1\]", kind="int8-static", input_scale=np.ones(1, np.int32))

    def test_shapes(self) -> None:
        scales = {"int8": (1, 48), "int8-static": (2,), "int8-groups": (48, 4), "packed": (2, 48), "fp8": (48, 2)}
        for kind, shape in scales.items():
            self.check(r"they should be \[", kind=kind, weight_scale=np.ones(shape, np.float32))
        self.check(r"scale of its inputs, .* is F32 \[2\]", kind="int8-static", input_scale=np.ones(2, np.float32))
        self.check(
            "60 columns do not divide into groups of 32",
            kind="int8-groups",
            weight=np.ones((48, 60), np.int8),
        )
        self.check("not of two dimensions", UnsupportedError, weight=np.ones((2, 24, 64), np.int8))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
    def test_values(self, value: float) -> None:
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            scales = np.ones((48, 1), dtype)
            scales[7] = value
            self.check("1 of its 48 scales", weight_scale=scales)
        self.check("the scale of its inputs", kind="int8-static", input_scale=np.array([value], np.float32))

    def test_inputs_cannot_be_divided_by_zero(self) -> None:
        self.check("the scale of its inputs", kind="int8-static", input_scale=np.zeros(1, np.float32))

    def test_more_than_elements_and_scales(self) -> None:
        point = np.zeros((48, 1), np.int8)
        point[40] = 1
        self.check("zero points other than 0", UnsupportedError, weight_zero_point=point)
        self.check("zero points other than 0", UnsupportedError, input_zero_point=point)
        self.check("another order", UnsupportedError, weight_g_idx=np.zeros(64, np.int32))
        self.check("have a scale", UnsupportedError, weight_global_scale=np.ones(1, np.float32))


def found(kind: Kind, arrays: Arrays) -> dict[str, QuantizedWeight]:
    file = folded(Memory(arrays))
    return quantized_weights(dict.fromkeys(file.names, file), parse(kind.config(), "config.json"))


def test_the_checkpoints_of_these_tests_have_the_names_of_the_format(tmp_path: Path) -> None:
    save_file(tmp_path / "w.safetensors", checkpoint(KINDS["packed"]))
    assert {name: (dtype, shape) for name, (dtype, shape, _) in read_back(tmp_path / "w.safetensors").items()} == {
        "lm_head.weight": ("F32", [8, 64]),
        "model.norm.weight": ("F32", [64]),
        "model.a.weight_packed": ("I32", [48, 8]),
        "model.a.weight_shape": ("I64", [2]),
        "model.a.weight_scale": ("BF16", [48, 2]),
        "model.b.weight_packed": ("I32", [16, 12]),
        "model.b.weight_shape": ("I64", [2]),
        "model.b.weight_scale": ("BF16", [16, 3]),
    }
