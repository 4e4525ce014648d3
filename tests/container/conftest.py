"""A file that a save must leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import names_in
from saving_helpers import SMALL

import sparsefmt


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A good file alone in its folder, which is there and alone afterwards, too."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "w.sparsefmt"
    sparsefmt.save_file(SMALL, path)
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert names_in(folder) == ["w.sparsefmt"]
