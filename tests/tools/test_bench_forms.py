"""The benchmark of the two forms of `permuted` runs, and has tensors of both."""

from __future__ import annotations

import numpy as np
import pytest

from sparsefmt.isa import ISA
from tools.bench import forms

pytestmark = pytest.mark.slow


def test_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(forms.harness, "hold_to", lambda isa: None)
    monkeypatch.setenv("COLUMNS", "200")
    forms.main.main(["--side", "48", "--zeros", "0.9", "--turns", "4"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert f"{ISA}, 1 thread" in shown
    assert shown.count("48 x 48, in the caches") == len(forms.DTYPES)


def test_both_have_the_same_elements() -> None:
    found = forms.matrices(40, np.dtype(np.float32), 0.8, 2)
    for columns, gaps in zip(found["columns"], found["gaps"], strict=True):
        assert columns.layout == gaps.layout == "permuted"
        assert gaps.nbytes < columns.nbytes
        assert np.array_equal(columns.todense(), gaps.todense())
