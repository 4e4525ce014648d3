"""What is wrapped in transformers: once, and only where it fits."""

from __future__ import annotations

import pytest
import transformers
from transformers import (
    modeling_utils,
)

from sparsefmt.errors import UnsupportedError
from sparsefmt.transformers import patches

pytestmark = pytest.mark.usefixtures("small_layers")


def test_hooks_are_installed_once_and_only_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = modeling_utils.load_state_dict
    patches.install()
    assert modeling_utils.load_state_dict is before
    monkeypatch.setattr(modeling_utils, "load_state_dict", lambda path: None)
    with pytest.raises(UnsupportedError, match=f"{transformers.__version__} has no load_state_dict"):
        patches.install()
    monkeypatch.delattr(modeling_utils, "_get_resolved_checkpoint_files")
    with pytest.raises(UnsupportedError, match="has no _get_resolved_checkpoint_files"):
        patches.install()
