"""Pruned models of transformers and their folders, made once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers_models import CONFIGS, convert, kind_of, prune

from sparsefmt.torch import compute_dtype


@pytest.fixture(scope="module", params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    """A pruned model of each kind."""
    torch.manual_seed(0)
    made = {}
    for name, config in CONFIGS.items():
        made[name] = prune(kind_of(name).from_config(config), embeddings=name == "tied")
    return made


@pytest.fixture(scope="session")
def folders(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The folders of each, as safetensors and as .sparsefmt. Not to be changed."""
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(root / name)
        convert(root / name, root / f"{name}-sparsefmt")
    return {name: (root / name, root / f"{name}-sparsefmt") for name in models}


@pytest.fixture
def llama(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    """A .sparsefmt folder that may be changed."""
    target = tmp_path / "llama"
    target.mkdir()
    for path in folders["llama"][1].iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What transformers logs."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, logger = Collector(), logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # other tests may have silenced it
    yield found
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor, no test but those of the hint has it among its messages."""
    monkeypatch.setattr(compute_dtype, "_hinted", {"given"})
