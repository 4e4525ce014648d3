"""Faults of arrays (SPEC.md, section 4)."""

from __future__ import annotations

import numpy as np

from tools.taken_apart import TakenApart
from tools.vectors.faults.changes import array, faults, item

faults("bool-invalid", "bool", {"2": array("values", "u1", item(0, 2)), "255": array("values", "u1", item(-1, 255))})
faults("values-padding", "packed", {"bit": array("values", "u1", item(-1, lambda values: values[-1] | 0x80))})
faults(
    "mask-padding",
    "bitmask raw",
    {
        "next column": array("mask", "u1", item(8, lambda mask: mask[8] | 0x40)),
        "last": array("mask", "u1", item(-1, 0x80)),
    },
)


def one_value_less(file: TakenApart) -> None:
    file.put("values", file.array("values")[:-4])
    file.entry()["nnz"] -= 1


faults(
    "row-offsets",
    "positive bitmask",
    {
        "mask": array("mask", "u1", item(0, lambda mask: mask[0] ^ 1)),
        "first": array("row_offsets", "u4", item(0, 1)),
        "one": array("row_offsets", "u4", item(5, lambda offsets: offsets[5] + 1)),
        "values": one_value_less,
        "last": array("row_offsets", "u4", item(-1, 2**32 - 1)),
    },
)
for _base in "bitmask raw", "permuted raw":
    faults("stored-zero", _base, {"+0": array("values", "u4", item(0, 0)), "-0": array("values", "u4", item(0, 2**31))})


def equal_counts_out_of_order(file: TakenApart) -> None:
    counts, permutation = file.array("row_counts", "u4"), file.array("row_permutation", "u2")
    at = int(np.flatnonzero(counts[1:] == counts[:-1])[0])
    permutation[[at, at + 1]] = permutation[[at + 1, at]]
    file.put("row_permutation", permutation)


def last_column_beyond(file: TakenApart) -> None:
    count = int(file.array("row_counts", "u4")[0])
    array("columns", "u2", item(8 * (count - 1), 70))(file)


def one_slot_more(file: TakenApart) -> None:
    for name, dtype in ("columns", "u2"), ("values", "u4"):
        array(name, dtype, lambda content: np.append(content, np.zeros(8, content.dtype)))(file)


faults(
    "row-permutation",
    "permuted raw",
    {
        "twice": array("row_permutation", "u2", item(0, lambda rows: rows[1])),
        "no row": array("row_permutation", "u2", item(0, 20)),
        "equal counts": equal_counts_out_of_order,
    },
)
faults(
    "row-counts",
    "permuted raw",
    {
        "ascending": array("row_counts", "u4", item(1, lambda counts: counts[0] + 1)),
        "over columns": array("row_counts", "u4", item(0, 71)),
        "huge": array("row_counts", "u4", item(0, 2**32 - 1)),
    },
)
faults(
    "slice-offsets",
    "permuted raw",
    {
        "first": array("slice_offsets", "u4", item(0, 1)),
        "last": array("slice_offsets", "u4", item(-1, 2**32 - 1)),
        "second": array("slice_offsets", "u4", item(1, lambda slots: slots[1] + 1)),
        "one slot more": one_slot_more,
    },
)
faults("column-range", "permuted raw", {"last of a row": last_column_beyond})
faults(
    "column-order",
    "permuted raw",
    {
        "twice": array("columns", "u2", item(8, lambda columns: columns[0])),
        "swapped": array("columns", "u2", item([0, 8], lambda columns: columns[[8, 0]])),
    },
)
faults(
    "slot-padding",
    "permuted raw",
    {
        "value": array("values", "u4", item(-1, 1)),
        "-0": array("values", "u4", item(-1, 2**31)),
        "column": array("columns", "u2", item(-1, 1)),
    },
)


def add_negative_zeros(file: TakenApart) -> None:
    file.entry()["arrays"]["negative_zeros"] = "raw"
    size = (int(np.prod(file.entry()["shape"])) - file.entry()["nnz"] + 7) // 8
    file.chunks.insert(file.number("negative_zeros"), (bytes(size), size))


for _base in "bitmask zstd", "permuted raw":
    faults("negative-zeros-empty", _base, {"cleared": array("negative_zeros", "u1", lambda signs: signs * 0)})
    faults(
        "negative-zeros-padding",
        _base,
        {"last bit": array("negative_zeros", "u1", item(-1, lambda signs: signs[-1] | 0x80))},
    )
for _base in "positive bitmask", "positive permuted", "full":
    faults("negative-zeros-empty", _base, {"added": add_negative_zeros})
