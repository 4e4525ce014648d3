"""Puts a saved model into its folder, which holds the old model or the new one at any moment.

Everything is written aside first; see `sparsefmt.checkpoints.staging`. config.json says whether the weights are
.sparsefmt or safetensors, so nobody sees a mixture while a folder changes from one to the other. Where shards replace
shards of the same format, a process that is killed at that moment leaves a folder in which a shard is missing. Such a
folder is refused.

Only weights and indexes of an earlier save are removed. They are known by the names that `save_pretrained` and
`sparsefmt convert` give them, or by the index beside them. Weights of another variant stay, and so does everything
else.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from transformers.utils import logging

from sparsefmt.checkpoints import cards, huggingface
from sparsefmt.checkpoints.formats import FileFormat
from sparsefmt.checkpoints.index_file import read_index
from sparsefmt.checkpoints.staging import StagedFolder
from sparsefmt.errors import FormatError

_OTHER: dict[FileFormat, FileFormat] = {"safetensors": "sparsefmt", "sparsefmt": "safetensors"}
_logger = logging.get_logger("transformers.sparsefmt")


def saved_weights(folder: Path, file_format: FileFormat, variant: str | None) -> list[Path]:
    """Weights and indexes of one format that an earlier save of a variant has left in a folder."""
    names = {path.name for path in folder.iterdir() if not path.is_dir()}
    found = {name for name in names if is_saved_name(name, file_format, variant)}
    with suppress(FormatError, OSError):  # no index, or a damaged one
        listed = set(read_index(folder / index_name(file_format, variant)).weight_map.values())
        found |= {name for name in listed & names if Path(name).suffix == f".{file_format}"}
    return [folder / name for name in sorted(found)]


def is_saved_name(name: str, file_format: FileFormat, variant: str | None) -> bool:
    """Whether a file of this name is weights, or the index of weights, of a variant."""
    stem = "model" if variant is None else f"model.{variant}"
    weights = re.escape(stem) + r"(-\d{5}-of-\d{5})?" + re.escape(f".{file_format}")
    return name == index_name(file_format, variant) or re.fullmatch(weights, name) is not None


def index_name(file_format: FileFormat, variant: str | None) -> str:
    """The name that an index has. transformers puts a variant elsewhere than we do."""
    if variant is None:
        return f"model.{file_format}.index.json"
    if file_format == "sparsefmt":
        return f"model.{variant}.sparsefmt.index.json"
    return f"model.{file_format}.index.{variant}.json"


def is_concerned(folder: Path, variant: str | None) -> bool:
    """Whether a folder has something of ours that a save of dense weights would leave behind."""
    return folder.is_dir() and bool(saved_weights(folder, "sparsefmt", variant) or cards.has_section(card_of(folder)))


def card_of(folder: Path) -> bytes:
    """README.md of a folder; b"" if there is none."""
    path = folder / cards.README
    return path.read_bytes() if path.is_file() else b""


def take_places(staged: StagedFolder, file_format: FileFormat, variant: str | None) -> None:
    """Let the files that were written aside, a model with weights of that format, take the place of what was there."""
    folder, new, other = staged.path, set(staged.files), _OTHER[file_format]
    files = [path for path in staged.files if is_saved_name(path.name, file_format, variant)]
    weights = [path for path in files if path.suffix != ".json"]
    indexes = [path for path in files if path.suffix == ".json"]
    old = {either: saved_weights(folder, either, variant) for either in _OTHER}
    same_format = [path for path in old[file_format] if path not in new]
    is_sparse = huggingface.is_method(folder) or not old["safetensors"]
    if is_sparse == (file_format == "safetensors"):
        # config.json says that the other format is the model: these are not looked at
        for path in same_format:
            path.unlink(missing_ok=True)
        staged.switch(weights, indexes, folder / huggingface.CONFIG, old[other])
    elif same_format or indexes:
        staged.commit(weights, indexes, [*same_format, *old[other]])
    else:
        staged.switch(weights, indexes, folder / huggingface.CONFIG, old[other])
    if old[other]:
        names = ", ".join(path.name for path in old[other])
        _logger.warning(f"{folder}: removed, of the model that was there: {names}")
