"""The index file of a checkpoint: which tensor is in which of its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sparsefmt.checkpoints.contract import expect_regular_file
from sparsefmt.checkpoints.safetensors_header import dict_of_distinct_keys
from sparsefmt.container.remote import is_plain_name
from sparsefmt.container.remote_path import Place, RemotePath
from sparsefmt.errors import FormatError

_MAX_INDEX_BYTES = 1 << 28

UNFINISHED = "sparsefmt_unfinished"
"""The key of an index that stands in a folder while others of its files are written, and that all readers refuse."""


@dataclass(frozen=True)
class CheckpointIndex:
    """The content of an index file.

    Attributes:
        path: where it is.
        fields: everything in it but the weight map, "metadata" among it.
        weight_map: file name of each tensor.
    """

    path: Place
    fields: dict[str, Any]
    weight_map: dict[str, str]


def read_index(path: Place) -> CheckpointIndex:
    """Read an index file. Raises FormatError if it is not an index, or names a file that is not beside it."""

    def invalid(message: str) -> FormatError:
        return FormatError("checkpoint-index", f"{path}: {message}")

    expect_regular_file(path)
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise invalid("it is too large for an index")
    try:
        fields = json.loads(path.read_text("utf-8"), object_pairs_hook=dict_of_distinct_keys)
    except (ValueError, RecursionError) as error:
        raise invalid(f"it is not JSON: {error}") from None
    if isinstance(fields, dict) and UNFINISHED in fields:
        raise invalid("the conversion is not finished, or was cut off: convert again, with --force")
    weight_map = fields.pop("weight_map", None) if isinstance(fields, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise invalid('it has no "weight_map": is it the index of a checkpoint?')
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_file_name(shard, path):
            raise invalid(f"tensor {name!r} is in {shard!r}, which is not the plain name of a file beside the index")
    return CheckpointIndex(path, fields, weight_map)


def _is_plain_file_name(name: str, index: Place) -> bool:
    # of URLs, also what stands for another character, begins a query, or names a revision
    return is_plain_name(name) and not (isinstance(index, RemotePath) and set(name) & set("%?#@"))
