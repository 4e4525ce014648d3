"""Checkpoints that are converted and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsefmt.checkpoints import conversion
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.conversion import convert_checkpoint, export_checkpoint
from sparsefmt.save_options import SaveOptions


def convert(source: Path, target: Path, **settings: Any) -> list[conversion.ConvertedTensor]:
    with Checkpoint(source, ["safetensors"]) as checkpoint:
        return convert_checkpoint(checkpoint, target, SaveOptions(**settings))


def export(source: Path, target: Path, overwrite: bool = False) -> None:
    with Checkpoint(source, ["sparsefmt"]) as checkpoint:
        export_checkpoint(checkpoint, target, overwrite=overwrite)
