"""The folder of a model that is to be converted."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import CONFIG, COPIED, HIDDEN, LEFT_OUT, save_config, write
from safetensors_files import SHARDS, save_shards


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as it comes from the hub, of two shards."""
    folder = save_shards(tmp_path / "model", SHARDS)
    save_config(folder, CONFIG)
    write(folder, COPIED | dict.fromkeys([*LEFT_OUT, *HIDDEN], b"not to be copied"))
    return folder
