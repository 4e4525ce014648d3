"""What conversions and `save_pretrained` have left in a folder."""

from __future__ import annotations

from contextlib import suppress

from sparsefmt.checkpoints.formats import SHARD_NUMBER, FileFormat, is_index
from sparsefmt.checkpoints.index_file import read_index
from sparsefmt.container.remote_path import Place
from sparsefmt.errors import FormatError


def saved_weights(folder: Place) -> list[Place]:
    """What conversions and `save_pretrained` have left in a folder, if it is there: weights, then indexes.

    safetensors and .sparsefmt are looked for. Known are files that the indexes list, and names: model.sparsefmt,
    model.safetensors, and numbered shards. Files of other names may be anybody's.
    """
    if not folder.is_dir():
        return []
    entries: list[Place] = sorted(
        entry for entry in folder.iterdir() if not entry.name.startswith(".") and not entry.is_dir()
    )
    formats: tuple[FileFormat, ...] = ("safetensors", "sparsefmt")
    indexes = [entry for entry in entries if any(is_index(entry.name, file_format) for file_format in formats)]
    listed: set[str] = set()
    for index in indexes:
        with suppress(FormatError):  # a damaged one
            listed.update(read_index(index).weight_map.values())

    def is_saved(entry: Place) -> bool:
        name_is_known = entry.stem == "model" or SHARD_NUMBER.fullmatch(entry.stem) or entry.name in listed
        return entry.suffix.removeprefix(".") in formats and bool(name_is_known)

    return [*filter(is_saved, entries), *indexes]
