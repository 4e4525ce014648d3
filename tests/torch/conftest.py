"""A pruned model and its file."""

from __future__ import annotations

import pytest
from torch_models import pruned_model

from sparsefmt.torch import compute_dtype, save_model


@pytest.fixture
def saved(tmp_path):
    """A model and its file."""
    model = pruned_model()
    save_model(model, tmp_path / "model.sparsefmt")
    return model, tmp_path / "model.sparsefmt"


@pytest.fixture(autouse=True)
def no_hint(monkeypatch):
    """Whatever the processor, no test but those of the hint has it among its messages."""
    monkeypatch.setattr(compute_dtype, "_hinted", {"given"})
