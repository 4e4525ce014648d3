"""Faults of arrays (SPEC.md, section 4)."""

from __future__ import annotations

import numpy as np

from tools.taken_apart import TakenApart
from tools.vectors.faults.changes import BASES, array, both, faults, fields, item, saved, weight

faults("bool-invalid", "bool", {"2": array("values", "u1", item(0, 2)), "255": array("values", "u1", item(-1, 255))})
faults("values-padding", "packed", {"bit": array("values", "u1", item(-1, lambda values: values[-1] | 0x80))})
for _rows, _layout in (8, "bitmask"), (9, "bitmask"), (24, "bitmask"), (25, "bitmask"), (24, "permuted"), (24, "gaps"):
    faults("ok", f"{_rows} rows {_layout}", {"last slice": lambda file: None})
for _base, _row, _dtype in (
    ("bitmask raw", 4, "u1"),  # of the last slice: the first that does not exist
    ("9 rows bitmask", 9, "u2"),
    ("25 rows bitmask", 9, "u2"),
):
    faults(
        "mask-padding",
        _base,
        {
            "next row": array("mask", _dtype, item(-70, lambda mask, row=_row: mask[-70] | 1 << row)),
            "last": array("mask", "u1", item(-1, lambda mask: mask[-1] | 0x80)),
        },
    )


def add_values(count: int):
    """Of them, or take them away from the end."""

    def change(file: TakenApart):
        values = file.array("values", "u4")
        file.put("values", values[:count] if count < 0 else np.append(values, values[:count]))
        file.entry()["nnz"] += count

    return change


def bit_in_another_slice(mask: np.ndarray) -> None:
    """A bit less in the first slice, and one more in the last."""
    mask[0] &= mask[0] - 1
    at = int(np.flatnonzero(mask[-70:] < 15)[0]) - 70
    mask[at] |= mask[at] + 1


faults(
    "slice-offsets",
    "positive bitmask",
    {
        "mask, one bit more": array("mask", "u1", item(0, lambda mask: mask[0] | mask[0] + 1)),
        "mask, one bit less": array("mask", "u1", item(0, lambda mask: mask[0] & mask[0] - 1)),
        "mask, a bit in another slice": array("mask", "u1", bit_in_another_slice),
        "first": array("slice_offsets", "u4", item(0, 1)),
        "second": array("slice_offsets", "u4", item(1, lambda offsets: offsets[1] + 1)),
        "last": array("slice_offsets", "u4", item(-1, 2**32 - 1)),
        "one value less": add_values(-1),
        "one value more": add_values(1),
    },
)
for _base in "bitmask raw", "permuted raw", "gaps raw":
    faults("stored-zero", _base, {"+0": array("values", "u4", item(0, 0)), "-0": array("values", "u4", item(0, 2**31))})


def equal_counts_out_of_order(file: TakenApart) -> None:
    counts, permutation = file.array("row_counts", "u4"), file.array("row_permutation", "u2")
    at = int(np.flatnonzero(counts[1:] == counts[:-1])[0])
    permutation[[at, at + 1]] = permutation[[at + 1, at]]
    file.put("row_permutation", permutation)


def last_column_beyond(file: TakenApart) -> None:
    count = int(file.array("row_counts", "u4")[0])
    array("columns", "u2", item(16 * (count - 1), 70))(file)


def one_slot_more(file: TakenApart) -> None:
    for name, dtype in ("columns", "u2"), ("values", "u4"):
        array(name, dtype, lambda content: np.append(content, np.zeros(16, content.dtype)))(file)


def lane_without_element(file: TakenApart) -> None:
    """In the last slot of the first slice: its last row has fewer elements than its first."""
    counts = file.array("row_counts", "u4")
    assert counts[15] < counts[0]
    array("values", "u4", item(16 * int(counts[0]) - 1, 1))(file)


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
        "twice": array("columns", "u2", item(16, lambda columns: columns[0])),
        "swapped": array("columns", "u2", item([0, 16], lambda columns: columns[[16, 0]])),
    },
)
faults(
    "slot-padding",
    "permuted raw",
    {
        "value": array("values", "u4", item(-1, 1)),
        "-0": array("values", "u4", item(-1, 2**31)),
        "column": array("columns", "u2", item(-1, 1)),
        "of a row": lane_without_element,
    },
)
BASES["permuted of 64 bits"] = saved("permuted", "raw", w=weight().astype(np.float64))
faults(
    "slot-padding",
    "permuted of 64 bits",
    {
        "low half": array("values", "u8", item(-1, 1)),
        "high half": array("values", "u8", item(-1, 1 << 32)),
        "-0": array("values", "u8", item(-1, 1 << 63)),
    },
)


def sum_of_gaps(file: TakenApart) -> None:
    """Of the first row, one more than there are columns."""
    count, gaps = int(file.array("row_counts", "u4")[0]), file.array("gaps", "u1")
    gaps[16 * (count - 1)] += 70 - int(gaps[: 16 * count : 16].sum())
    file.put("gaps", gaps)


def one_slot_of_gaps_more(file: TakenApart) -> None:
    for name, dtype in ("gaps", "u1"), ("values", "u4"):
        array(name, dtype, lambda content: np.append(content, np.zeros(16, content.dtype)))(file)


def without_gaps(file: TakenApart) -> None:
    del file.chunks[file.number("gaps")]
    del file.entry()["arrays"]["gaps"]


def gaps_and_columns(file: TakenApart) -> None:
    size = 2 * file.array("gaps", "u1").size
    file.chunks.insert(file.number("gaps"), (bytes(size), size))
    file.entry()["arrays"]["columns"] = "raw"


faults(
    "slice-offsets",
    "gaps raw",
    {
        "second": array("slice_offsets", "u4", item(1, lambda slots: slots[1] + 1)),
        "one slot more": one_slot_of_gaps_more,
    },
)
faults("column-range", "gaps raw", {"last of a row": sum_of_gaps, "255": array("gaps", "u1", item(16, 255))})
faults("column-order", "gaps raw", {"0 in the second slot": array("gaps", "u1", item(16, 0))})
faults(
    "slot-padding",
    "gaps raw",
    {
        "value": array("values", "u4", item(-1, 1)),
        "-0": array("values", "u4", item(-1, 2**31)),
        "gap": array("gaps", "u1", item(-1, 1)),
        "filler": array("gaps", "u1", item(-1, 255)),
        "of a row": lane_without_element,
    },
)
# a filler by its column, in the form that has none
BASES["column 255"] = saved("permuted", "raw", w=np.eye(1, 400, 255, np.float32) + np.eye(1, 400, 300, np.float32))
faults("stored-zero", "column 255", {"+0": array("values", "u4", item(0, 0))})
# the first row has gaps 5 255 255 1 255 255 1 (fillers: the third, fifth and sixth), the second 255 255 255 235
faults(
    "stored-zero",
    "fillers",
    {
        "an element": array("values", "u4", item(0, 0)),
        "an element of gap 1": array("values", "u4", item(16 * 3, 0)),
        "-0 in a filler": array("values", "u4", item(16 * 2, 2**31)),
        "filler of gap 254": array("gaps", "u1", lambda gaps: gaps.__setitem__([32, 48], [254, 2])),
        "filler at the end of a row": both(
            array("values", "u4", item(16 * 3 + 1, 0)), array("gaps", "u1", item(16 * 3 + 1, 255))
        ),
    },
)
faults(
    "column-order",
    "fillers",
    {"filler before a rest of 0": array("gaps", "u1", item(16 * 3, 0))},
)
faults("column-range", "fillers", {"by fillers": array("gaps", "u1", item(0, 255))})
faults("column-range", "wide gaps", {"over 16 bits": array("gaps", "u1", item(-16, 200))})
faults("nnz", "fillers", {"fillers counted": fields(nnz=12 - 1)})
faults(
    "slice-offsets",
    "fillers",
    {"rows counted without fillers": array("row_counts", "u4", lambda counts: counts.__setitem__([0, 1], [4, 1]))},
)
faults(
    "array-size",
    "fillers and signs",
    {"negative_zeros without fillers": array("negative_zeros", "u1", lambda signs: signs[:-1])},
)
faults("array-set", "fillers", {"no gaps": without_gaps, "gaps and columns": gaps_and_columns})


def add_negative_zeros(file: TakenApart) -> None:
    file.entry()["arrays"]["negative_zeros"] = "raw"
    size = (int(np.prod(file.entry()["shape"])) - file.entry()["nnz"] + 7) // 8
    file.chunks.insert(file.number("negative_zeros"), (bytes(size), size))


for _base in "bitmask zstd", "permuted raw", "fillers and signs":
    faults("negative-zeros-empty", _base, {"cleared": array("negative_zeros", "u1", lambda signs: signs * 0)})
    faults(
        "negative-zeros-padding",
        _base,
        {"last bit": array("negative_zeros", "u1", item(-1, lambda signs: signs[-1] | 0x80))},
    )
for _base in "positive bitmask", "positive permuted", "positive gaps", "full":
    faults("negative-zeros-empty", _base, {"added": add_negative_zeros})
