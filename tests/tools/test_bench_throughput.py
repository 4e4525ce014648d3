"""Everything that moves weights is about as fast for every form: ratios within one run, of the processor's time."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from sparsefmt.threads import num_threads, set_num_threads
from tools.bench import throughput

pytestmark = pytest.mark.slow

FAR_BELOW = 10
"""A form that is so many times below the median of its row is no accident of a busy machine."""


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    before = num_threads()
    yield
    set_num_threads(before)


def test_no_form_falls_far_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "moves.csv"
    forms = [word for form in ("50", "50-", "80", "2:4", "dense") for word in ("--zeros", form)]
    throughput.main.main(["--quick", "--turns", "3", *forms, "--csv", str(path)], standalone_mode=False)
    shown = capsys.readouterr().out
    with path.open(newline="") as file:
        head, *lines = csv.reader(file)
    rows = {line[0]: {form: float(cell) for form, cell in zip(head[1:], line[1:], strict=True)} for line in lines}
    assert len(rows) >= 20
    assert all(name in shown for name in rows)
    for name, row in rows.items():
        for dtype in {form.split()[0] for form in row}:
            of_dtype = {form: found for form, found in row.items() if form.startswith(dtype)}
            assert not throughput.slow(of_dtype, FAR_BELOW), name


def test_what_is_slow():
    assert throughput.slow({"a": 10.0, "b": 9.0, "c": 4.0, "d": 11.0}) == {"c"}
    assert throughput.slow({"a": 10.0, "b": 9.0, "c": 4.0, "d": 11.0}, 3) == set()


def test_forms():
    for name, dtype in throughput.DTYPES.items():
        for zeros in throughput.ZEROS:
            array = throughput.pruned(np.dtype(dtype), zeros, (64, 128))
            if array is None:
                assert (name, zeros[-1]) == ("int8", "-")
                continue
            share = np.mean(array == 0)
            expected = {"2:4": 0.5, "4x4": 0.8, "rows": 0.5, "dense": 0.0, "zero": 1.0}.get(zeros)
            assert abs(share - (int(zeros.rstrip("-")) / 100 if expected is None else expected)) < 0.15, (name, zeros)
            assert np.signbit(array.astype(np.float64)[array == 0]).any() == zeros.endswith("-"), (name, zeros)
