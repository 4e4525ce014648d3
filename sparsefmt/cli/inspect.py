"""`sparsefmt inspect`: the tensors of a model. Of a .sparsefmt file, it reads the index alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.contract import TensorFile
from sparsefmt.checkpoints.folding import foldable
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.cli import cluster as on_cluster
from sparsefmt.cli import options
from sparsefmt.cli.failures import Failure
from sparsefmt.cli.listing import ORDERS, Listed, Listing
from sparsefmt.container.envelope import MAJOR
from sparsefmt.container.remote_path import Place
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS

MOST_FILES = 8
"""Files of which each has a line of its own."""

JSON_VERSION = 1
"""Raised when a key of the --json output changes its meaning or is removed. New keys do not count."""


@click.command(
    short_help="List the tensors of a model, and what was pruned.",
    epilog="""\b
Examples:
  sparsefmt inspect model.sparsefmt
  sparsefmt inspect llama-pruned/ --patterns
  sparsefmt inspect llama-pruned/ --patterns --dask tcp://scheduler:8786
  sparsefmt inspect s3://bucket/llama-pruned --storage-option anon=true
  sparsefmt inspect model.safetensors --all --sort bytes --name '*.mlp.*'
  sparsefmt inspect model.sparsefmt --json | jq '.files[0].tensors[].name'

\b
With --json, one object:
  json_version         1
  files                one object for each file:
    path, nbytes       name and size of the file
    format             "sparsefmt", "safetensors" or "torch"
    metadata           text by text
    tensors            sorted by name; of all formats, name, alias_of, dtype, shape,
                       dense_nbytes and, with --patterns, pattern
  and for each .sparsefmt file
    format_version     "1.0"
    index_nbytes       size of its index, as it is stored
    index_is_coded     whether that is coded by zstd
    chunks             number of chunks
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
      pattern          with --patterns: kind, sizes, along, share, label, and counts of
                       elements, zeros, negative_zeros, nans, infinities, zero_rows,
                       zero_columns; null for types that are not pruned
  index                what the index of a folder says beside its weight map; null without one
  total                nbytes, tensors, chunks, stored_nbytes, dense_nbytes; tied tensors count once
""",
)
@click.argument("path", type=options.PATH, metavar="MODEL")
@click.option("--patterns", is_flag=True, help="Read the tensors: find N:M, blocks, whole rows …, and all zeros.")
@click.option("--all", "show_all", is_flag=True, help="A row for each tensor, however many there are.")
@click.option("--name", "globs", multiple=True, metavar="GLOB", help="Only names like this; may be repeated.")
@click.option("--sort", "order", type=click.Choice(ORDERS), default="name", help="By what rows are sorted.")
@options.fold
@on_cluster.option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, described below.")
@options.max_decoded_bytes
@options.threads
@options.storage
def command(
    path: Place, patterns: bool, show_all: bool, globs: tuple[str, ...], order: str, as_json: bool, **others: Any
) -> None:
    """List the tensors of a model: a file or folder of .sparsefmt, safetensors or PyTorch.

    Without --patterns, it reads no tensor: the zeros are those that the index of a .sparsefmt file counts. If there are
    many tensors, those whose names differ in numbers only are one row.
    """
    from sparsefmt.cli import output

    if others["cluster"] is not None and not patterns:
        raise click.UsageError("--dask is for --patterns: without it, no tensor is read")
    with Checkpoint(path, ["sparsefmt", "safetensors", "torch"], others["max_decoded_bytes"]) as checkpoint:
        if others["fold"]:
            if checkpoint.file_format == "sparsefmt":
                raise Failure(f"{path}: --fold is for checkpoints that were not converted yet", 2)
            checkpoint.fold()
        listing = Listing(checkpoint, globs)
        if globs and not listing.tensors:
            raise Failure(f"{path}: no tensor has a name like {' or '.join(globs)}", 2)
        if patterns:
            with output.progress_bar("reading", listing.nbytes_to_read, as_json) as progress:
                find = on_cluster.pattern_finder(others["cluster"], checkpoint, progress, others["threads"])
                listing.find_patterns(find)
        if as_json:
            click.echo(json.dumps(_as_object(checkpoint, listing, patterns), indent=2))
        else:
            _print(checkpoint, listing, show_all, order)


def _as_object(checkpoint: Checkpoint, listing: Listing, patterns: bool) -> dict[str, Any]:
    described = [_file_as_object(file, checkpoint, listing, patterns) for file in checkpoint.files]
    tensors = [tensor for file in described for tensor in file["tensors"] if "dtype" in tensor]
    return {
        "json_version": JSON_VERSION,
        "files": described,
        "index": checkpoint.index.fields if checkpoint.index else None,
        "total": {
            "nbytes": sum(file["nbytes"] for file in described),
            "tensors": len(tensors),
            "chunks": sum(file.get("chunks", 0) for file in described),
            "stored_nbytes": sum(tensor.get("stored_nbytes", tensor["dense_nbytes"]) for tensor in tensors),
            "dense_nbytes": sum(tensor["dense_nbytes"] for tensor in tensors),
        },
    }


def _file_as_object(file: TensorFile, checkpoint: Checkpoint, listing: Listing, patterns: bool) -> dict[str, Any]:
    tensors: list[dict[str, Any]] = []
    for listed in listing.of_file(file):
        if listed.same_as:
            tensors.append({"name": listed.name, "copy_of" if listed.is_copy else "alias_of": listed.same_as})
            continue
        tensors.append(_tensor_as_object(file, listed))
        if patterns:
            tensors[-1]["pattern"] = listed.pattern.as_object() if listed.pattern else None
    found: dict[str, Any] = {
        "path": str(file.path),
        "nbytes": file.nbytes,
        "format": checkpoint.file_format,
        "metadata": file.metadata,
        "tensors": tensors,
    }
    if isinstance(file, SparsefmtFile):
        found |= {
            "format_version": _format_version(file),
            "index_nbytes": file.reader.index_size,
            "index_is_coded": file.reader.index_is_coded,
            "chunks": len(file.reader.index.chunks),
        }
    return found


def _tensor_as_object(file: TensorFile, listed: Listed) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": listed.name,
        "dtype": listed.dtype,
        "shape": list(listed.shape),
        "dense_nbytes": listed.dense_nbytes,
    }
    entry = listed.entry
    if entry is not None and isinstance(file, SparsefmtFile):
        index = file.reader.index
        found |= {
            "layout": entry.layout.name,
            "nnz": entry.nnz,
            "codecs": dict(entry.codecs),
            "row_dims": entry.row_dims,
            "tiles": entry.tiles,
            "tile_rows": entry.tile_rows,
            "stored_nbytes": listed.stored_nbytes,
            "array_nbytes": {array: index.array_nbytes(entry, array) for array in entry.codecs},
            "model_nbytes": sum(map(len, entry.models.values())),
            "stored_bits": listed.stored_bits,
            "negative_zeros": NEGATIVE_ZEROS in entry.codecs,
            "negative_zeros_dropped": entry.negative_zeros_dropped,
        }
    return found


def _format_version(file: SparsefmtFile) -> str:
    return f"{MAJOR}.{file.reader.minor}"


def _print(checkpoint: Checkpoint, listing: Listing, show_all: bool, order: str) -> None:
    from sparsefmt.cli import output

    output.print_table(listing.table(show_all, order))
    output.say()
    files = checkpoint.files
    if len(files) <= MOST_FILES:
        for file in files:
            output.say(_sentence_on(file, listing))
            entries = [listed.entry for listed in listing.of_file(file) if listed.entry is not None]
            for line in (*_metadata(file.metadata), *_signs(entries), *(f"  {note}" for note in file.notes)):
                output.say(line)
    if len(files) > 1:
        output.say(
            f"all {len(files):,} files: {output.plural(len(listing.tensors), 'tensor')}, "
            f"{output.size(checkpoint.nbytes)}, {_sizes(listing.tensors)}"
        )
    for line in listing.notes():
        output.say(line)
    if checkpoint.file_format != "sparsefmt" and not checkpoint.folded and (groups := foldable(checkpoint.names)):
        output.say(
            f"{groups[0].name!r} and {output.plural(len(groups) - 1, 'other')} are spelled in several tensors: --fold "
            "shows each as the one that it stands for."
        )


def _sentence_on(file: TensorFile, listing: Listing) -> str:
    from sparsefmt.cli import output

    tensors = listing.of_file(file)
    parts = [output.size(file.nbytes)]
    if isinstance(file, SparsefmtFile):
        index = output.size(file.reader.index_size)
        parts = [f"format {_format_version(file)}", *parts, f"index {index}"]
        parts += ["coded"] if file.reader.index_is_coded else []
    parts.append(output.plural(len(tensors), "tensor"))
    if isinstance(file, SparsefmtFile):
        parts.append(output.plural(len(file.reader.index.chunks), "chunk"))
    return f"{file.path}: {', '.join(parts)}, {_sizes(tensors)}"


def _sizes(tensors: list[Listed]) -> str:
    """Bytes dense and, where they are not the same, stored."""
    from sparsefmt.cli import output

    dense = sum(listed.dense_nbytes for listed in tensors if not listed.same_as)
    stored = [listed.stored_nbytes for listed in tensors if listed.stored_nbytes is not None]
    if not stored:
        return f"dense {output.size(dense)}"
    return f"dense {output.size(dense)}, stored {output.size(sum(stored))}, {output.ratio(dense, sum(stored))} smaller"


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
