"""The formats that files of a model can have: suffixes, what they are called, and how a file tells which it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from sparsefmt.checkpoints import foreign
from sparsefmt.checkpoints.contract import expect_regular_file
from sparsefmt.container.remote_path import Place
from sparsefmt.errors import FormatError

FileFormat = Literal["safetensors", "sparsefmt", "torch"]
SUFFIXES: dict[FileFormat, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "sparsefmt": (".sparsefmt",),
    "torch": (".bin", ".pt", ".pth"),
}
CALLED: dict[FileFormat, str] = {
    "safetensors": "safetensors",
    "sparsefmt": "a .sparsefmt file",
    "torch": "a PyTorch checkpoint",
}
INDEX = ".index.json"
"""How the name of an index file ends, behind the suffix of its files."""

SHARD_NUMBER = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})")


def is_index(name: str, file_format: FileFormat) -> bool:
    """Whether a file of this name is an index of files of the format."""
    return name.endswith(tuple(suffix + INDEX for suffix in SUFFIXES[file_format]))


def joined_by_or(texts: Iterable[str]) -> str:
    """ "a, b or c"."""
    *others, last = texts
    return f"{', '.join(others)} or {last}" if others else last


def index_name(path: Place, old: FileFormat, new: FileFormat) -> str:
    """Name of an index file for the same checkpoint in another format."""
    for suffix in SUFFIXES[old]:
        if old != "torch" and f"{suffix}." in path.name:
            return path.name.replace(f"{suffix}.", f".{new}.")
    return f"model.{new}{INDEX}"


def expect_format(path: Place, formats: Sequence[FileFormat]) -> FileFormat:
    """What a file is, where it may be several things: what it starts with decides, not its name.

    Damaged files and files of unknown formats are taken for the first, so that opening them says what is wrong.

    Raises:
        FormatError: it is whole, and of a format that is not among these (`file-foreign`); the message says what to do.
    """
    expect_regular_file(path)
    expected = joined_by_or(dict.fromkeys(CALLED[file_format] for file_format in formats))
    if foreign.is_sparsefmt(path):
        if "sparsefmt" in formats:
            return "sparsefmt"
        raise FormatError(foreign.FOREIGN, f"{path}: it is a .sparsefmt file already, not {expected}")
    found = foreign.format_of(path)
    if found is None:
        return formats[0]
    for file_format in formats:
        if CALLED[file_format] == found:
            return file_format
    raise foreign.foreign(path, found, expected)
