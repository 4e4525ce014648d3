"""The program that compares sizes: its bounds, that contenders are verified, and what it prints where peers lack."""

import csv
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers import PRUNABLE, pruned
from safetensors.numpy import save_file

from sparsefmt.codecs import CODECS
from sparsefmt.dtypes import DTYPES

pytestmark = pytest.mark.slow

bench_sizes = importlib.import_module("tools.bench.sizes")
bench_bounds = importlib.import_module("tools.bench.sizes_bounds")
bench_tensors = importlib.import_module("tools.bench.sizes_tensors")
contenders = importlib.import_module("tools.bench.sizes_contenders")
memory = importlib.import_module("tools.bench.sizes_memory")

CONTENDERS = {contender.name: contender for contender in contenders.all_contenders(threads=1)}


def bounds(array: np.ndarray) -> tuple[float, float]:
    """In bits."""
    found = bench_bounds.bounds({"w": array})
    return 8 * found[bench_bounds.INDEPENDENT], 8 * found[bench_bounds.BY_DENSITY]


def columns_kept(dtype: Any) -> np.ndarray:
    """16 x 16, its left half four numbers equally often, its right half zero."""
    numbers = np.tile(np.array([1, -1, 2, -2], np.float32), (16, 2))
    return np.hstack([numbers, np.zeros((16, 8), np.float32)]).astype(dtype)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.int8, ml_dtypes.float8_e5m2])
def test_bounds_of_columns(dtype: Any) -> None:
    """Two bits for each of 128 nonzeros; a bit for each of 256 positions, but none where the column tells it."""
    assert bounds(columns_kept(dtype)) == pytest.approx((256 + 256, 256))
    assert bounds(columns_kept(dtype).T.copy()) == pytest.approx((256 + 256, 256))


def test_bounds_charge_what_they_do_not_model() -> None:
    floats = columns_kept(np.float32)
    assert bounds(floats) == pytest.approx((256 + 256 + 16 * 128, 256 + 16 * 128))
    floats.view(np.uint32)[:, 8::2] |= 1 << 31  # -0.0: another bit for each of 128 zeros
    assert bounds(floats) == pytest.approx((256 + 256 + 16 * 128 + 128, 256 + 16 * 128 + 128))
    assert bounds(floats[:, :8].copy()) == pytest.approx((256 + 16 * 128,) * 2)  # no zeros: elements only
    assert bounds(columns_kept(np.int64)) == pytest.approx((256 + 256, 256))


def test_bounds_of_a_vector_do_not_see_its_elements() -> None:
    independent, by_density = bounds(columns_kept(ml_dtypes.bfloat16)[0])
    assert independent == by_density == 16 + 8 * 2


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_give_back_every_bit(name: str, threads: int) -> None:
    contender = replace(CONTENDERS[name], threads=threads)
    if contender.needs:
        pytest.importorskip(contender.needs)
    rng = np.random.default_rng(0)
    tensors = {dtype.name: pruned(rng, (24, 40), dtype, 0.6, negative_zeros=True) for dtype in PRUNABLE}
    tensors |= {"dense": pruned(rng, (24, 40), DTYPES["BF16"], 0.0), "vector": np.arange(7, dtype=np.float32)}
    tensors |= {"scalar": np.array(3, np.int32), "zeros": np.zeros((2, 3, 4), np.float16)}
    if contender.exact:
        tensors["bool"] = np.eye(3, dtype=np.bool_)
    contender = contender.tuned(tensors, quick=False)
    decoded = contender.decode(contender.encode(tensors), tensors)
    contenders.verify(contender, decoded, tensors)


def test_verify_sees_one_bit() -> None:
    tensors = {"w": np.zeros((2, 3), np.float32)}
    contenders.verify(CONTENDERS["safetensors"], {"w": tensors["w"].copy()}, tensors)
    for wrong in ({}, {"w": -tensors["w"]}, {"w": np.zeros((2, 3), np.int32)}, {"w": np.zeros(6, np.float32)}):
        with pytest.raises(ValueError, match="does not give back"):
            contenders.verify(CONTENDERS["safetensors"], wrong, tensors)


@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="the system does not tell peaks")
def test_peaks_are_over_what_was_there_before() -> None:
    tensors = {"w": np.tile(np.float32([0, 1]), (2000, 500))}  # 8 MB
    peaks = memory.peaks_in_fresh_process(CONTENDERS["bitmap + nonzeros"], tensors)
    assert 4e6 < peaks.encode < 60e6
    assert 8e6 < peaks.decode < 60e6


@pytest.mark.parametrize("case", bench_tensors.CASES)
def test_synthetic_matrices_are_pruned_as_named(case: str) -> None:
    dtype, method = case.split("-", 1)
    weight = bench_tensors.synthetic_tensors(case, 32)["weight"]
    share = {"dense": 0.0, "2of4": 0.5}.get(method)
    if share is None:
        share = int(method.rpartition("-")[2]) / 100
    assert weight.dtype == bench_tensors.VALUE_DTYPES[dtype]
    assert np.mean(weight == 0) == pytest.approx(share, abs=0.02)
    assert weight.tobytes() == bench_tensors.synthetic_tensors(case, 32)["weight"].tobytes()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(bench_sizes.main, [str(argument) for argument in arguments])


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    mask = rng.random((40, 60)) < 0.3
    tensors = {name: mask * rng.standard_normal((40, 60), np.float32) for name in ("a.weight", "b.weight")}
    save_file({**tensors, "a.bias": rng.standard_normal(40, np.float32)}, path)
    return path


def test_program_without_peers(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in contenders.INSTALLED_BY:
        monkeypatch.setitem(sys.modules, module, None)
    table = model_path.with_suffix(".csv")
    result = run("--all", "--quick", "--csv", table, model_path)
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert all(name in line for name in ("pip install", *contenders.INSTALLED_BY.values()))
    with open(table, newline="") as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
    assert {f"sparsefmt {codec}" for codec in (*CODECS, "auto")} < set(rows)
    assert "pcodec dense" not in rows
    assert all(name in result.stdout for name in rows)
    assert int(rows["safetensors"]["bytes"]) == model_path.stat().st_size
    for name, row in rows.items():
        assert float(row["bits_per_element"]) == pytest.approx(8 * float(row["bytes"]) / (2 * 40 * 60 + 40)), name
        assert bool(row["decode_mb_per_s"]) == (row["kind"] != "bound")
        assert bool(row["encode_mb_per_s"]) == (row["kind"] != "bound" and ", into" not in name)
    assert "sparsefmt auto: " in result.stdout


def test_program_takes_pruned_tensors_of_several_files_and_draws(model_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other, table, picture = (model_path.with_suffix(suffix) for suffix in (".other", ".csv", ".png"))
    other.write_bytes(model_path.read_bytes())
    options = ("--only", "sparsefmt", "--only", "bitmap + nonzeros", "--repeats", 1, "--csv", table, "--plot", picture)
    result = run(*options, "--case", "f32-2of4", "--side", 32, model_path, other)
    assert result.exit_code == 0, result.output
    assert "synthetic" in result.stdout
    with open(table, newline="") as file:
        files = {row["file"]: (row["tensors"], row["elements"]) for row in csv.DictReader(file)}
    assert files == {str(model_path): ("2", "4800"), str(other): ("2", "4800"), "f32-2of4": ("1", "1024")}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_refusals(model_path: Path) -> None:
    assert run("--only", "no such contender", model_path).exit_code == 2
    assert run("--case", "no such case").exit_code == 2
    assert run(model_path.with_name("missing")).exit_code == 2
    dense = model_path.with_name("dense.safetensors")
    save_file({"w": np.ones((3, 4), np.float32)}, dense)
    model_path.write_bytes(b"text")
    for path in (dense, model_path):
        result = run("--quick", path)
        errors = [line for line in result.stderr.splitlines() if not line.startswith("left out, not installed")]
        assert (result.exit_code, len(errors)) == (1, 1), result.output
