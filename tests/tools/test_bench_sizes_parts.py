"""tools/bench/sizes_parts.py: every byte of a file is counted once, and models of others are tried."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

import sparsefmt
from tools.bench import sizes_parts


def weights() -> dict[str, np.ndarray]:
    """Two matrices whose rows and columns differ in how many elements they keep, and a vector."""
    rng = np.random.default_rng(0)
    made: dict[str, np.ndarray] = {}
    for number in range(2):
        array = rng.standard_normal((192, 192)) * np.exp(rng.normal(0, 1, 192)) * np.exp(rng.normal(0, 1, (192, 1)))
        array[np.abs(array) < np.quantile(np.abs(array), 0.8)] = 0
        made[f"w{number}"] = array.astype(np.float16)
    return made | {"bias": rng.standard_normal(64).astype(np.float16)}


def test_every_byte_is_counted_once():
    data = sparsefmt.save(weights())
    found, coded = sizes_parts.parts_of(data)
    assert sum(found.values()) == len(data)
    assert set(found) <= set(sizes_parts.PARTS)
    assert found[sizes_parts.ROW_CLASSES] > 0
    assert found[sizes_parts.COLUMN_CLASSES] > 0
    assert {(item.name, item.array) for item in coded} >= {("w0", "mask"), ("w1", "mask"), ("w0", "values")}


def test_a_model_of_the_same_tensor_saves_itself():
    """Without its model, an array is that much smaller: what names it costs less."""
    same = weights()["w0"]
    data = sparsefmt.save({"a": same, "b": np.concatenate([same[16:], same[:16]])})
    gains, counts = sizes_parts.gains_by_sharing(data, sizes_parts.parts_of(data)[1])
    assert counts["mask"] == 1
    assert gains["mask"] > 50


@pytest.mark.parametrize("options", [[], ["--all", "--shared"]])
def test_the_tool(tmp_path, options):
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(weights(), path)
    result = CliRunner().invoke(sizes_parts.main, [*options, str(path)], catch_exceptions=False)
    assert "classes of columns" in result.output
    assert ("models of mask" in result.output) == bool(options)
