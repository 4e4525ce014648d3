"""`sparsefmt bench`: what it measures, how it adds up, and that it sees a wrong product."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import helpers
import ml_dtypes
import numpy as np
import pytest
from helpers import run_command
from safetensors_files import SHARDS, save_shards

import sparsefmt
from sparsefmt.cli.benchmark import libraries, measuring
from sparsefmt.cli.benchmark.libraries import Product
from sparsefmt.layouts import auto


@pytest.fixture(autouse=True)
def border(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `auto` takes another layout, which depends on the processor."""
    monkeypatch.setattr(auto, "PERMUTED_FROM", {isa: dict.fromkeys((1, 2, 4, 8), 0.7) for isa in auto.PERMUTED_FROM})
    monkeypatch.setattr(auto, "PERMUTED_FROM_IF_SMALL", {})
    monkeypatch.setattr(auto, "PERMUTED_FROM_IF_NARROW", {})


@pytest.fixture(autouse=True)
def absent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules that the command does not find: what is installed matters only where a test takes them out."""
    names = {"torch", "threadpoolctl"}

    def import_module(name: str) -> ModuleType:
        if name in names:
            raise ImportError(name)
        return importlib.import_module(name)

    # not by way of sys.modules: torch cannot be imported twice
    monkeypatch.setattr(libraries, "importlib", SimpleNamespace(import_module=import_module))
    monkeypatch.delenv("SPARSEFMT_NUM_THREADS", raising=False)
    return names


run = partial(run_command, "bench")
succeed = partial(helpers.succeed, "bench")


def fail(code: int, *arguments: object) -> str:
    return helpers.fail(code, "bench", *arguments)


def as_json(*arguments: object) -> dict[str, Any]:
    return json.loads(succeed(*arguments, "--json"))


def exactly(rows: int, cols: int, zeros: float, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """A matrix with that part of zeros."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(1, 2, rows * cols) * rng.choice([-1, 1], rows * cols)
    weight[rng.permutation(weight.size)[: round(zeros * weight.size)]] = 0
    return weight.reshape(rows, cols).astype(dtype)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Five matrices of which three are alike, and two tensors that stay dense."""
    return {
        **{f"layers.{n}.up.weight": exactly(64, 96, 0.8, n) for n in range(2)},
        "layers.0.down.weight": exactly(96, 64, 0.8),
        "layers.1.down.weight": exactly(96, 64, 0.5),
        "layers.0.gate.weight": exactly(64, 96, 0.8, 9),
        "embedding": exactly(32, 16, 0),
        "bias": np.ones(96, np.float32),
    }


@pytest.fixture
def model(tensors: dict[str, np.ndarray], tmp_path: Path) -> Path:
    path = tmp_path / "model.sparsefmt"
    sparsefmt.save_file(tensors, path)
    return path


class Clock:
    """Time that passes when something is multiplied: ours and numpy's products take as long as they are told."""

    def __init__(self, ours: Callable[[np.ndarray], float], numpy: Callable[[np.ndarray], float]) -> None:
        self.now = 0.0
        self._ours, self._numpy = ours, numpy
        self._linear = sparsefmt.linear

    def linear(self, x: np.ndarray, w: Any, **options: Any) -> np.ndarray:
        self.now += self._ours(x)
        return self._linear(x, w, **options)

    def numpy_product(self, weight: np.ndarray) -> Callable[[np.ndarray], Product]:
        def of(x: np.ndarray) -> Product:
            def product() -> None:
                self.now += self._numpy(x)

            return product

        return of

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measuring, "_clock", lambda: self.now)
        monkeypatch.setattr(libraries, "_numpy_product", self.numpy_product)
        monkeypatch.setattr(sparsefmt, "linear", self.linear)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes a millisecond for every token, numpy's four and one for every hundred columns."""
    Clock(lambda x: 1e-3 * len(x), lambda x: 4e-3 + 1e-5 * x.shape[1]).install(monkeypatch)


# what is measured


def test_alike_tensors_are_one_group(model: Path, tensors: dict[str, np.ndarray]) -> None:
    content = as_json(model, "--repeats", 3)
    assert (content["json_version"], content["path"], content["left_out"]) == (1, str(model), 2)
    groups = {(tuple(group["shape"]), group["zeros"]): group for group in content["groups"]}
    assert {key: group["count"] for key, group in groups.items()} == {
        ((64, 96), 80): 3,
        ((96, 64), 80): 1,
        ((96, 64), 50): 1,
    }
    up = groups[(64, 96), 80]
    assert up["tensors"] == ["layers.0.gate.weight", "layers.0.up.weight", "layers.1.up.weight"]
    assert (up["dtype"], up["layout"], groups[(96, 64), 50]["layout"]) == ("F32", "permuted", "bitmask")
    assert up["dense_nbytes"] == 64 * 96 * 4
    loaded = sparsefmt.load_file(model)
    for group in content["groups"]:
        for name in group["tensors"]:
            assert loaded[name].layout == group["layout"]
        assert group["nbytes"] == loaded[group["tensors"][0]].nbytes
        assert [product["batch"] for product in group["products"]] == [1, 32]
        assert all(product["repeats"] >= 3 and product["seconds"] > 0 for product in group["products"])


def test_percent_dtype_and_layout_make_groups(tmp_path: Path) -> None:
    tensors = {
        "a": exactly(100, 100, 0.80),
        "b": exactly(100, 100, 0.804),
        "c": exactly(100, 100, 0.806),
        "d": exactly(100, 100, 0.80, dtype=ml_dtypes.bfloat16),
        # 70 % as well, on both sides of where another layout begins
        "e": exactly(100, 100, 0.698),
        "f": exactly(100, 100, 0.702),
        "g": exactly(100, 100, 0.80).reshape(100, 50, 2),
    }
    sparsefmt.save_file(tensors, tmp_path / "a.sparsefmt")
    groups = as_json(tmp_path / "a.sparsefmt", "--repeats", 3)["groups"]
    assert [group["tensors"] for group in groups] == [["a", "b"], ["c"], ["d"], ["e"], ["f"], ["g"]]
    assert [group["zeros"] for group in groups] == [80, 81, 80, 70, 70, 80]
    assert [group["layout"] for group in groups[3:5]] == ["bitmask", "permuted"]
    assert groups[5]["shape"] == [100, 50, 2]


@pytest.mark.parametrize("layout", ["bitmask", "permuted"])
def test_layout_is_the_one_asked_for(model: Path, layout: str) -> None:
    content = as_json(model, "--layout", layout, "--repeats", 3)
    loaded = sparsefmt.load_file(model, layout=layout)
    for group in content["groups"]:
        assert (group["layout"], group["nbytes"]) == (layout, loaded[group["tensors"][0]].nbytes)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["layers.*.up.weight"], ["layers.0.up.weight", "layers.1.up.weight"]),
        (["layers.1.*"], ["layers.1.down.weight", "layers.1.up.weight"]),
        (["*.gate.*", "layers.0.down.weight"], ["layers.0.down.weight", "layers.0.gate.weight"]),
    ],
)
def test_names_are_patterns(model: Path, patterns: list[str], expected: list[str]) -> None:
    options = [option for pattern in patterns for option in ("--name", pattern)]
    content = as_json(model, "--repeats", 3, *options)
    assert sorted(name for group in content["groups"] for name in group["tensors"]) == expected
    assert (content["total"]["tensors"], content["left_out"]) == (2, 0)


def test_name_with_brackets_and_tied_name(tmp_path: Path) -> None:
    shared = exactly(64, 64, 0.8)
    sparsefmt.save_file({"w[0]": exactly(64, 96, 0.8), "in": shared, "out": shared}, tmp_path / "a.sparsefmt")
    assert as_json(tmp_path / "a.sparsefmt", "--name", "w[0]")["groups"][0]["tensors"] == ["w[0]"]
    for options in ([], ["--name", "out"]):
        content = as_json(tmp_path / "a.sparsefmt", "--repeats", 3, *options)
        assert ["in"] in [group["tensors"] for group in content["groups"]]
        assert content["total"]["tensors"] == len(content["groups"])


def test_folder_of_shards(tmp_path: Path) -> None:
    source = save_shards(tmp_path / "model", SHARDS)
    assert run_command("convert", source, "--quiet").exit_code == 0
    content = as_json(tmp_path / "model-sparsefmt", "--repeats", 3)
    assert sorted(name for group in content["groups"] for name in group["tensors"]) == ["a", "b", "c"]


# what it adds up to


def check_totals(content: dict[str, Any]) -> None:
    """The total is groups times count."""
    groups, total = content["groups"], content["total"]
    assert total["tensors"] == sum(group["count"] for group in groups)
    for key in ("nbytes", "dense_nbytes"):
        assert total[key] == sum(group["count"] * group[key] for group in groups)
    for number, product in enumerate(total["products"]):
        for key in ("seconds", "dense_seconds"):
            expected = sum(group["count"] * group["products"][number][key] for group in groups)
            assert product[key] == pytest.approx(expected, rel=1e-9)
        assert product["speed"] == pytest.approx(product["dense_seconds"] / product["seconds"])


def test_total_of_real_times(model: Path) -> None:
    content = as_json(model, "--repeats", 5, "--batch", 2, "--batch", 1, "--batch", 2)
    assert [product["batch"] for product in content["total"]["products"]] == [2, 1]
    check_totals(content)


def test_total_of_known_times(model: Path, clock: None) -> None:
    content = as_json(model, "--batch", 2, "--batch", 8)
    check_totals(content)
    assert [group["products"][0]["repeats"] for group in content["groups"]] == [21, 21, 21]
    few, many = content["total"]["products"]
    assert few["seconds"] == pytest.approx(5 * 2e-3)
    assert many["seconds"] == pytest.approx(5 * 8e-3)
    dense = 3 * (4e-3 + 96e-5) + 2 * (4e-3 + 64e-5)
    assert [few["dense_seconds"], many["dense_seconds"]] == pytest.approx([dense, dense])


def test_tables_of_known_times(model: Path, clock: None) -> None:
    out = succeed(model, "--batch", 2, "--batch", 8)
    lines = [line.split() for line in out.splitlines()]
    memory, products = (
        [line for line in lines if line and line[0] == name] for name in ("layers.*.up.weight", "total")
    )
    assert memory[0][:8] == ["layers.*.up.weight", "64x96", "F32", "permuted", "x", "2", "80.0%", "49.2"]
    # two products of 2 ms and of 4.96 ms; then of 8 ms
    up = ["2", "4.00", "ms", "9.92", "ms", "2.48x", "0%", "16.00", "ms", "9.92", "ms", "0.62x", "0%"]
    assert memory[1] == ["layers.*.up.weight", "permuted", "x", *up]
    assert products[0][:5] == ["total", "mixed", "F32", "mixed", "x"]
    total = ["5", "10.00", "ms", "24.16", "ms", "2.42x", "0%", "40.00", "ms", "24.16", "ms", "0.60x", "0%"]
    assert products[1] == ["total", "mixed", "x", *total]
    # tensors whose names differ in numbers only share a row, if their layout is the same
    names = [line[0] for line in lines if line and line[0].startswith("layers.")]
    assert names == 2 * [f"layers.{name}.weight" for name in ("0.down", "0.gate", "*.up", "1.down")]
    slower = "layers.*.up.weight (2), layers.0.down.weight, layers.0.gate.weight and 1 more"
    assert f"With batch 8, 5 of 5 tensors are slower than dense: {slower}." in out
    assert "With batch 2, none of 5 tensors is slower than dense." in out
    assert "bfloat16" not in out
    assert "Medians of 21 products" in out
    assert "Measured: 3 of 5 tensors" in out
    assert "Left out: 2 tensors stored dense" in out
    assert f"the fastest of numpy {np.__version__} (on its own number of threads), in float32; torch is not" in out


def test_many_groups_stay_readable(tmp_path: Path, clock: None) -> None:
    names = [first + second for first in "abcdefg" for second in "abcdefg"]
    tensors = {name: exactly(64, 64 + 8 * n, 0.8) for n, name in enumerate(names)}
    sparsefmt.save_file(tensors, tmp_path / "a.sparsefmt")
    lines = succeed(tmp_path / "a.sparsefmt", "--batch", 1, "--repeats", 3).splitlines()
    assert len(lines) < 2 * 50
    rest = [line for line in lines if line.startswith("10 smaller groups")]
    assert len(rest) == 2
    assert rest[1].split()[3:8] == ["permuted", "x", "10", "10.00", "ms"]
    assert [line for line in lines if line.startswith("total")][1].split()[1:6] == [
        "permuted",
        "x",
        "49",
        "49.00",
        "ms",
    ]
    assert any(line.startswith("gg ") for line in lines)
    assert not any(line.startswith("aa ") for line in lines)


def test_slow_products_are_repeated_less(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a turn is two runs of each: over 20 s for 10 tokens, a quarter for 1
    Clock(lambda x: 10.0 if len(x) == 10 else 1 / 16, lambda x: 1 / 16).install(monkeypatch)
    content = as_json(model, "--batch", 1, "--batch", 10)
    for group in content["groups"]:
        assert [product["repeats"] for product in group["products"]] == [5, 3]
    out = succeed(model, "--batch", 1, "--batch", 10)
    assert "Medians of 3 to 5 products" in out


def test_median_and_spread(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the check, then for each turn a run that is not timed
    times = iter([99, *(time for timed in (3, 1, 2, 5, 4) for time in (99, timed))])
    Clock(lambda x: next(times), lambda x: 6.0).install(monkeypatch)
    monkeypatch.setattr(measuring, "SECONDS", 1e9)
    content = as_json(model, "--batch", 1, "--repeats", 5, "--name", "layers.*.up.weight")
    [product] = content["groups"][0]["products"]
    assert (product["seconds"], product["speed"]) == (3, 2)
    assert product["spread"] == pytest.approx((4.5 - 1.5) / 3)
    assert product["dense"] == [{"library": "numpy", "threads": None, "seconds": 6, "spread": 0}]


# against whom


def test_threads_of_numpy_are_mentioned_when_they_matter(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "numpy can be given another number of threads"
    assert sentence not in succeed(model, "--repeats", 3)
    out = succeed(model, "--repeats", 3, "--threads", 1)
    assert sentence in out
    assert "in turns, on 1 thread." in out
    monkeypatch.setenv("SPARSEFMT_NUM_THREADS", "3")
    out = succeed(model, "--repeats", 3)
    assert sentence in out
    assert "in turns, on 3 threads." in out


def test_threadpoolctl_is_used_and_left_as_it_was(model: Path, absent: set[str]) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    absent.remove("threadpoolctl")

    def pools() -> list[int]:
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    before = pools()
    if not before:
        pytest.skip("threadpoolctl does not know numpy's BLAS")
    content = as_json(model, "--repeats", 3, "--threads", 2)
    for group in content["groups"]:
        for product in group["products"]:
            assert sorted(dense["threads"] for dense in product["dense"]) == [1, 2]
    assert pools() == before
    out = succeed(model, "--repeats", 3, "--threads", 1)
    assert f"numpy {np.__version__} (on 1 thread), in float32; torch is not installed" in out
    assert "numpy can be given" not in out


def test_torch_takes_part(model: Path, absent: set[str]) -> None:
    torch = pytest.importorskip("torch")
    absent.remove("torch")
    before = torch.get_num_threads()
    content = as_json(model, "--repeats", 3, "--threads", 2)
    assert content["libraries"] == {"numpy": np.__version__, "torch": torch.__version__}
    for group in content["groups"]:
        for product in group["products"]:
            who = {(dense["library"], dense["threads"]) for dense in product["dense"]}
            assert who == {("numpy", None), ("torch", 2), ("torch", 1)}
            seconds = [dense["seconds"] for dense in product["dense"]]
            assert product["dense_seconds"] == seconds[0] == min(seconds)
            assert {(dense["library"], dense["threads"]) for dense in product["bfloat16"]} == {
                ("torch", 2),
                ("torch", 1),
            }
    for number, product in enumerate(content["total"]["products"]):
        seconds = [group["count"] * group["products"][number]["bfloat16"][0]["seconds"] for group in content["groups"]]
        assert product["bfloat16_seconds"] == pytest.approx(sum(seconds))
    assert torch.get_num_threads() == before
    check_totals(content)
    weight, x = exactly(24, 16, 0.5), exactly(3, 16, 0)
    assert np.allclose(np.asarray(libraries._torch_product(weight)(x)()), x @ weight.T, atol=1e-4)
    rounded = libraries._torch_product_in_bfloat16(weight)(x)()
    assert rounded.dtype == torch.bfloat16
    assert np.allclose(rounded.float().numpy(), x @ weight.T, atol=0.2)
    out = succeed(model, "--threads", 2)
    assert f"and torch {torch.__version__} (on 2 threads and on 1), in float32." in out
    assert re.search(r"With batch 32, dense bfloat16 is faster than sparsefmt for \d of 5 tensors\.", out)
    assert len([word for word in out.split() if word == "bf16"]) == 2


def test_bfloat16_is_no_part_of_dense(model: Path, absent: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products take half of what ours take, and those in float32 twice that."""
    pytest.importorskip("torch")
    absent.remove("torch")
    clock = Clock(lambda x: 1.0, lambda x: 2.0)
    clock.install(monkeypatch)

    def rounded(weight: np.ndarray) -> Callable[[np.ndarray], Product]:
        def product() -> None:
            clock.now += 0.5

        return lambda x: product

    monkeypatch.setattr(libraries, "_torch_product", clock.numpy_product)
    monkeypatch.setattr(libraries, "_torch_product_in_bfloat16", rounded)
    out = succeed(model, "--repeats", 3, "--batch", 4)
    assert "With batch 4, none of 5 tensors is slower than dense." in out
    assert "With batch 4, dense bfloat16 is faster than sparsefmt for 5 of 5 tensors." in out
    total = [line for line in out.splitlines() if line.startswith("total")][1].split()
    assert total[-7:] == ["5,000", "ms", "10,000", "ms", "2.00x", "0.50x", "0%"]


def test_products_run_on_the_threads_they_are_said_to(
    model: Path, absent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    absent.remove("torch")
    seen = []
    monkeypatch.setattr(
        libraries, "_torch_product", lambda weight: lambda x: lambda: seen.append(torch.get_num_threads())
    )
    succeed(model, "--repeats", 3, "--batch", 1, "--threads", 2, "--name", "*.up.*")
    assert seen == 3 * [2, 2, 1, 1]


# outputs are compared


@pytest.mark.parametrize("wrong", [1e-2, np.nan])
def test_wrong_product_is_a_fault(model: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    linear = sparsefmt.linear

    def inexact(x: np.ndarray, w: sparsefmt.SparseTensor, **options: Any) -> np.ndarray:
        y = linear(x, w, **options)
        if len(x) == 32 and w.shape == (64, 96):
            y[0, 3] += wrong * np.abs(y).max()
        return y

    monkeypatch.setattr(sparsefmt, "linear", inexact)
    message = fail(1, model, "--repeats", 3)
    assert message.startswith(f"{model}: tensor 'layers.0.gate.weight', batch 32: the product is not numpy's")
    result = run(model, "--repeats", 3, "--json")
    assert result.exit_code == 1
    [fault] = json.loads(result.stdout)["faults"]
    assert fault.startswith(f"{model}: tensor 'layers.0.gate.weight', batch 32: ")


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.int8, np.int64]
)
def test_every_kind_of_dtype_agrees(tmp_path: Path, dtype: Any) -> None:
    sparsefmt.save_file({"w": exactly(64, 200, 0.8, dtype=dtype)}, tmp_path / "a.sparsefmt", layout="bitmask")
    content = as_json(tmp_path / "a.sparsefmt", "--repeats", 3)
    assert (content["faults"], content["groups"][0]["not_finite"]) == ([], False)


def test_odd_values_are_no_faults(tmp_path: Path) -> None:
    infinite, wide, nothing = exactly(64, 96, 0.8), exactly(32, 96, 0.8, dtype=np.float64), exactly(16, 96, 1)
    infinite[3, :2], infinite[5, 7] = np.inf, np.nan
    tensors = {"infinite": infinite, "huge": wide * 1e300, "tiny": wide[:16] * 1e-300, "nothing": nothing}
    sparsefmt.save_file(tensors, tmp_path / "a.sparsefmt")
    out = succeed(tmp_path / "a.sparsefmt", "--repeats", 3)
    assert "Inf or NaN is among the outputs of 2 of those measured" in out
    groups = {group["tensors"][0]: group for group in as_json(tmp_path / "a.sparsefmt", "--repeats", 3)["groups"]}
    finite = {name: not group["not_finite"] for name, group in groups.items()}
    assert finite == {"infinite": False, "huge": False, "tiny": True, "nothing": True}


def test_single_output_near_zero_is_no_fault(tmp_path: Path) -> None:
    # orthogonal, but for rounding, to the first row of activations
    x = np.random.default_rng(0).standard_normal((16, 512), np.float32)[0]
    weight = exactly(1, 512, 0.5)
    stored = weight[0] != 0
    weight[0, stored] -= (weight[0] @ x / (x[stored] @ x[stored])) * x[stored]
    assert abs(float(weight[0].astype(np.float64) @ x)) < 1e-4
    sparsefmt.save_file({"w": weight}, tmp_path / "a.sparsefmt", layout="bitmask")
    succeed(tmp_path / "a.sparsefmt", "--batch", 1, "--repeats", 3)


# nothing to measure, and what goes wrong


def test_no_sparse_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.sparsefmt"
    sparsefmt.save_file({"bias": np.ones(8, np.float32), "embedding": exactly(16, 16, 0)}, path)
    assert succeed(path) == f"{path}: nothing to measure: no sparse tensors, 2 tensors stored dense\n"
    content = as_json(path)
    assert (content["groups"], content["left_out"], content["libraries"]) == ([], 2, {})
    assert content["total"] == {"tensors": 0, "nbytes": 0, "dense_nbytes": 0, "products": []}
    sparsefmt.save_file({}, path)
    assert "nothing to measure" in succeed(path)


def test_no_sparse_tensors_of_that_name(model: Path) -> None:
    assert "nothing to measure: no sparse tensors, 1 tensor stored dense" in succeed(model, "--name", "bi*")
    message = fail(2, model, "--name", "decoder.*", "--name", "Layers*")
    assert message == f"{model}: it has no tensor of a name like 'decoder.*' or 'Layers*'"


def test_damaged_file(model: Path) -> None:
    intact = model.read_bytes()
    with sparsefmt.open_file(model) as file:
        index = file.reader.index
        place = int(index.chunk(index.tensors["layers.0.down.weight"], 0, "values")["offset"])
    damaged = bytearray(intact)
    damaged[place] ^= 1
    model.write_bytes(damaged)
    message = fail(1, model, "--repeats", 3)
    assert message.startswith(f"{model}: tensor 'layers.0.down.weight': ")
    assert "chunk-checksum" in message
    succeed(model, "--repeats", 3, "--name", "*.up.*")
    model.write_bytes(intact[:-1])
    assert "cut off" in fail(1, model)


def test_missing_and_other_files(tmp_path: Path) -> None:
    assert fail(2, tmp_path / "none") == f"{tmp_path / 'none'}: No such file or directory"
    source = save_shards(tmp_path / "in", SHARDS)
    assert "the folder has no .sparsefmt file" in fail(2, source)
    [file, *_] = source.glob("*.safetensors")
    assert "convert it with `sparsefmt convert`" in fail(2, file)


@pytest.mark.parametrize(
    "options",
    [
        ["--batch", 0],
        ["--batch", "many"],
        ["--threads", 0],
        ["--layout", "dense"],
        ["--repeats", 2],
        ["--quiet"],
    ],
)
def test_wrong_usage(model: Path, options: list[object]) -> None:
    result = run(model, *options)
    assert result.exit_code == 2
    assert str(options[0]) in result.stderr
    assert result.stdout == ""


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    sparsefmt.save_file({"w\x1b[2J\n[red]": exactly(64, 96, 0.8)}, tmp_path / "a.sparsefmt")
    out = succeed(tmp_path / "a.sparsefmt", "--repeats", 3)
    assert "\x1b" not in out
    # in both tables; verdicts may name it, too
    assert out.partition("With batch")[0].count("w\\x1b[2J\\n[red]") == 2


def test_help_loads_no_numba() -> None:
    program = (
        "import sys; from sparsefmt.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "bench", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    imported = set(result.stderr.split())
    assert "sparsefmt.cli.bench" in imported
    heavy = ("numba", "llvmlite", "torch", "scipy", "threadpoolctl")
    assert not {name for name in imported if name.split(".")[0] in heavy}
    assert not {name for name in imported if name.startswith(("sparsefmt.kernels", "sparsefmt.layouts.jitted"))}


def test_the_layout_is_the_one_in_memory(tmp_path: Path) -> None:
    """Where few rows are full, loading finds that `permuted` would be padded too much. The index does not tell that."""
    weight = np.zeros((64, 4096), np.float32)
    weight[::16] = 1.5
    sparsefmt.save_file({"w": weight}, tmp_path / "w.sparsefmt", layout="bitmask", codec="zstd")
    with sparsefmt.open_file(tmp_path / "w.sparsefmt") as file:
        assert file.layout_to_compute(file.reader.index.tensors["w"]) != file["w"].layout
        (found,) = as_json(tmp_path / "w.sparsefmt", "--batch", "1")["groups"]
        assert found["layout"] == file["w"].layout
