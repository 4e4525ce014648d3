"""tools/bench/map.py: measures, counts what is slower than dense, shows, keeps and draws it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from tools.bench import map as bench
from tools.bench.harness import HELD, held_to
from tools.bench.map import Cell

CELL = Cell("a processor", "avx2", 1, "f32", 2048, 2048, 0.5, 8, "auto", "gaps", 100.0, 50.0, 0.1)


def test_it_measures_shows_and_keeps(tmp_path):
    path = tmp_path / "map.csv"
    options = ["--shape", "64x128", "--sparsity", "0.5", "--tokens", "1", "--tokens", "3", "--turns", "4"]
    done = CliRunner().invoke(bench.main, [*options, "--layout", "bitmask", "--csv", str(path)])
    assert done.exit_code == 0, done.output
    cells = bench.read_csv(path)
    assert [(cell.dtype, cell.tokens) for cell in cells] == [("f32", 1), ("f32", 3), ("bf16", 1), ("bf16", 3)]
    assert all((cell.rows, cell.cols, cell.layout) == (64, 128, "bitmask") for cell in cells)
    assert all(cell.dense_us > 0 and cell.sparse_us > 0 for cell in cells)
    again = CliRunner().invoke(bench.main, ["--from-csv", str(path)])
    assert again.exit_code == 0
    assert f"{cells[0].ratio:.2f}" in again.output


def test_it_draws(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.svg"
    bench.draw([CELL, replace(CELL, sparse_us=200.0, tokens=16), replace(CELL, dtype="bf16")], path)
    assert path.read_text().count("gaps") >= 1


def test_what_is_slower_than_dense():
    assert not CELL.slow
    assert replace(CELL, sparse_us=104.0).slow
    assert not replace(CELL, sparse_us=102.0).slow
    small = replace(CELL, rows=64, cols=64)
    assert not replace(small, sparse_us=103.5).slow
    assert replace(small, sparse_us=105.0).slow


def test_the_title_counts_them():
    cells = [CELL, replace(CELL, sparse_us=200.0, tokens=16)]
    ((key, found),) = bench.by_table(cells).items()
    assert "1 of 2 cells slower than dense; geometric mean 1.00" in bench.title_of(key, found)


@pytest.mark.parametrize("arguments", [["--shape", "abc"], ["--layout", "csr"], ["--isa", "sse"], ["--tokens", "0"]])
def test_wrong_arguments_are_named(arguments):
    done = CliRunner().invoke(bench.main, arguments)
    assert done.exit_code == 2
    assert arguments[1] in done.output


def test_more_threads_than_cores():
    done = CliRunner().invoke(bench.main, ["--threads", "5000"])
    assert done.exit_code == 1
    assert "there are" in done.output


def test_everybody_is_held_to_the_same_instructions(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "SkylakeX")
    assert "OPENBLAS_CORETYPE" not in held_to(None)
    for isa, variables in HELD.items():
        environment = held_to(isa)
        assert environment["SPARSEFMT_ISA"] == isa
        assert variables.items() <= environment.items()
