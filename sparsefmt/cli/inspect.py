"""`sparsefmt inspect`: the content of a file, from its index alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.scales import scales_in
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.cli import options
from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.envelope import MAJOR
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS

JSON_VERSION = 1
"""Raised when a key of the --json output changes its meaning or is removed. New keys do not count."""


@click.command(
    short_help="List the tensors of a file; reads its index alone.",
    epilog="""\b
Examples:
  sparsefmt inspect model.sparsefmt
  sparsefmt inspect llama-pruned-sparsefmt/
  sparsefmt inspect model.sparsefmt --json | jq '.files[0].tensors[].name'

\b
With --json, one object:
  json_version         1
  files                one object for each file:
    path, nbytes       name and size of the file
    format_version     "1.0"
    index_nbytes       size of its index, as it is stored
    index_is_coded     whether that is coded by zstd
    chunks             number of chunks
    metadata           text by text
    tensors            sorted by name, each {"name", "alias_of"}, {"name", "copy_of"} or
      name, dtype, shape, layout
      nnz              values stored; null in layout dense
      codecs           codec by array
      row_dims         how many dimensions make rows: 1, or more for a stack of matrices
      tiles, tile_rows number of tiles, rows in each
      stored_nbytes, dense_nbytes
      array_nbytes     of these, the stored bytes of each array
      model_nbytes     what its models for codec rans take in the index, before that is coded
      stored_bits      bits that an element takes, of a scaled weight with its scales; null without elements
      negative_zeros   whether signs of zero are kept beside
      negative_zeros_dropped   how many were dropped
  index                what the index of a folder says beside its weight map; null without one
  total                nbytes, tensors, chunks, stored_nbytes, dense_nbytes; tied tensors count once
""",
)
@click.argument("path", type=options.PATH, metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, described below.")
def command(path: Path, as_json: bool) -> None:
    """List the tensors of a .sparsefmt file, or of a folder of them. Reads no tensor."""
    with Checkpoint(path, ["sparsefmt"]) as checkpoint:
        files = [file for file in checkpoint.files if isinstance(file, SparsefmtFile)]
        if as_json:
            click.echo(json.dumps(_as_object(checkpoint, files), indent=2))
        else:
            _print_tables(checkpoint, files)


def _as_object(checkpoint: Checkpoint, files: list[SparsefmtFile]) -> dict[str, Any]:
    described = [_file_as_object(file) for file in files]
    tensors = [tensor for file in described for tensor in file["tensors"] if "layout" in tensor]
    return {
        "json_version": JSON_VERSION,
        "files": described,
        "index": checkpoint.index.fields if checkpoint.index else None,
        "total": {
            "nbytes": sum(file["nbytes"] for file in described),
            "tensors": len(tensors),
            "chunks": sum(file["chunks"] for file in described),
            "stored_nbytes": sum(tensor["stored_nbytes"] for tensor in tensors),
            "dense_nbytes": sum(tensor["dense_nbytes"] for tensor in tensors),
        },
    }


def _file_as_object(file: SparsefmtFile) -> dict[str, Any]:
    index = file.reader.index
    tensors: list[dict[str, Any]] = []
    bits = _stored_bits(file)
    for name in index.names:
        if name in index.aliases:
            tensors.append({"name": name, "copy_of" if name in index.copies else "alias_of": index.aliases[name]})
            continue
        entry = index.tensors[name]
        tensors.append(
            {
                "name": name,
                "dtype": entry.dtype.name,
                "shape": list(entry.shape),
                "layout": entry.layout.name,
                "nnz": entry.nnz,
                "codecs": dict(entry.codecs),
                "row_dims": entry.row_dims,
                "tiles": entry.tiles,
                "tile_rows": entry.tile_rows,
                "stored_nbytes": index.stored_nbytes(entry),
                "dense_nbytes": entry.dense_nbytes,
                "array_nbytes": {array: index.array_nbytes(entry, array) for array in entry.codecs},
                "model_nbytes": sum(map(len, entry.models.values())),
                "stored_bits": bits.get(name),
                "negative_zeros": NEGATIVE_ZEROS in entry.codecs,
                "negative_zeros_dropped": entry.negative_zeros_dropped,
            }
        )
    return {
        "path": str(file.path),
        "nbytes": file.nbytes,
        "format_version": _format_version(file),
        "index_nbytes": file.reader.index_size,
        "index_is_coded": file.reader.index_is_coded,
        "chunks": len(index.chunks),
        "metadata": index.metadata,
        "tensors": tensors,
    }


def _format_version(file: SparsefmtFile) -> str:
    return f"{MAJOR}.{file.reader.minor}"


def _print_tables(checkpoint: Checkpoint, files: list[SparsefmtFile]) -> None:
    from sparsefmt.cli import output

    total_stored = total_dense = total_tensors = 0
    for file in files:
        index = file.reader.index
        columns = ("tensor", "shape", "dtype", "layout", "codecs", "zeros", "dense", "stored", "ratio", "bits")
        bits = _stored_bits(file)
        table = output.table(*columns, left=5)
        stored = dense = 0
        for name in index.names:
            if name in index.aliases:
                what = "a copy of " if name in index.copies else ""
                output.add_row(table, f"{name} = {what}{index.aliases[name]}")
                continue
            entry = index.tensors[name]
            entry_stored = index.stored_nbytes(entry)
            stored += entry_stored
            dense += entry.dense_nbytes
            output.add_row(
                table,
                name,
                output.shape(entry.shape, entry.row_dims),
                entry.dtype.name,
                _layout(entry),
                _codecs(entry),
                output.percent(entry.elements - entry.nnz, entry.elements) if entry.nnz is not None else "-",
                output.size(entry.dense_nbytes),
                output.size(entry_stored),
                output.ratio(entry.dense_nbytes, entry_stored),
                f"{bits[name]:.2f}" if name in bits else "-",
            )
        output.print_table(table)
        output.say()
        output.say(
            f"{file.path}: format {_format_version(file)}, {output.size(file.nbytes)}, index "
            f"{output.size(file.reader.index_size)}{', coded' if file.reader.index_is_coded else ''}, "
            f"{output.plural(len(index.names), 'tensor')}, {output.plural(len(index.chunks), 'chunk')}, dense "
            f"{output.size(dense)}, stored {output.size(stored)}, {output.ratio(dense, stored)} smaller"
        )
        for line in (*_metadata(file.metadata), *_signs(index.tensors.values())):
            output.say(line)
        output.say()
        total_stored, total_dense = total_stored + stored, total_dense + dense
        total_tensors += len(index.names)
    if len(files) > 1:
        output.say(
            f"all {len(files)} files: {output.plural(total_tensors, 'tensor')}, {output.size(checkpoint.nbytes)}, "
            f"dense {output.size(total_dense)}, stored {output.size(total_stored)}, "
            f"{output.ratio(total_dense, total_stored)} smaller"
        )


def _stored_bits(file: SparsefmtFile) -> dict[str, float]:
    """Bits that an element takes in the file, by name; of a scaled weight, with those of its scales."""
    index = file.reader.index
    nbytes = {name: index.stored_nbytes(index.entry(name)) for name in index.names}
    for weight, scale in scales_in(file.metadata, index.names).items():
        nbytes[weight] += nbytes[scale]
    return {name: 8 * nbytes[name] / entry.elements for name, entry in index.tensors.items() if entry.elements}


def _layout(entry: TensorEntry) -> str:
    """The layout, and the form of one that has several."""
    layout = entry.layout
    return layout.name if layout.form == layout.name else f"{layout.name}, {layout.form}"


def _codecs(entry: TensorEntry) -> str:
    """The codecs of the arrays, the most frequent first. The JSON says which array has which."""
    return ", ".join(codec for codec, _ in Counter(entry.codecs.values()).most_common())


def _metadata(metadata: dict[str, str]) -> Iterator[str]:
    for key, value in metadata.items():
        yield f"  {key}: {value}"


def _signs(entries: Any) -> Iterator[str]:
    kept = sum(NEGATIVE_ZEROS in entry.codecs for entry in entries)
    dropped = sum(entry.negative_zeros_dropped for entry in entries)
    if kept:
        yield f"  the signs of negative zeros are kept in {kept:,} of the tensors"
    if dropped:
        yield f"  {dropped:,} negative zeros were stored as 0.0"
