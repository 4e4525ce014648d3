"""The program that times what a product costs beside its arithmetic: that it runs, and where it says threads pay."""

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner

from sparsefmt.kernels import multiply
from tools.bench import overhead as bench_overhead

pytestmark = pytest.mark.slow


@pytest.mark.thorough
def test_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_overhead, "QUICK", bench_overhead.QUICK._replace(sides=(64, 128)))
    path, worth = tmp_path / "overhead.csv", multiply.WORTH_A_THREAD
    result = CliRunner().invoke(bench_overhead.main, ["--quick", "--repeats", "2", "--csv", str(path)])
    assert result.exit_code == 0, result.output
    for text in ("import sparsefmt", "first product, warm cache", "first product, empty cache", "linear, dense"):
        assert text in result.output
    assert "batch 32: 2 threads " in result.output
    assert f"WORTH_A_THREAD = {worth:,} " in result.output
    assert worth == multiply.WORTH_A_THREAD

    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [row["measured"] for row in rows]
    assert measured.count("import") == 2
    assert measured.count("threads") == 2 * 2 * len(bench_overhead.QUICK.sides)
    assert {row["threads"] for row in rows if row["measured"] == "threads"} == {"1", "2"}
    assert all(float(row["median_s"]) > 0 and float(row["spread"]) >= 0 and int(row["repeats"]) == 2 for row in rows)
    assert all(int(row["multiply_adds"]) > 0 for row in rows if row["measured"] == "threads")


def test_only_what_is_asked_for() -> None:
    result = CliRunner().invoke(bench_overhead.main, ["--quick", "--repeats", "2", "--only", "call"])
    assert result.exit_code == 0, result.output
    assert "linear, permuted" in result.output
    assert "import" not in result.output
    assert "WORTH_A_THREAD" not in result.output


@pytest.mark.parametrize(
    ("gains", "size"),
    [
        ([0.5, 0.5, 0.5, 1.0], None),
        ([1.5, 1.5, 1.5, 0.9], None),
        ([1.1, 1.2, 1.3, 1.4], 0),
        ([0.5, 0.5, 2.0, 2.0], 200),
        ([0.5, 2.0, 1.0, 2.0], 400),
        ([0.5, 1.0, 1.1, 1.1], 100),
    ],
)
def test_pays_from(gains: list[float], size: float | None) -> None:
    """From the last crossing of 1 on, between two sizes by logarithms."""
    assert bench_overhead.pays_from([10, 100, 400, 1600], gains) == (size if size is None else pytest.approx(size))
