"""Before anything is imported: no test asks a server for a model."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def small_layers() -> Iterator[None]:
    """Layers of any size become sparse by default, so that tests can have models of tiny ones."""
    from sparsefmt.torch import choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "MIN_SIZE", 0)
        yield
