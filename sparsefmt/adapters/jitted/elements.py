"""Passes over elements and their places. Values are bits; rows and columns are uint32 once they are checked."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit


@jit
def narrow(indices: np.ndarray, size: int, out: np.ndarray) -> bool:
    """Copy indices of any kind, each read once; False if one is not in range(size)."""
    good = np.uint8(1)
    for place in range(np.uint64(indices.shape[0])):
        index = np.int64(indices[place])
        out[place] = index
        good &= np.uint8((index >= 0) & (index < size))
    return good != 0


@jit
def count(rows: np.ndarray, counts: np.ndarray) -> None:
    """Add to zeroed `counts` (rows,) how many elements each row has."""
    for place in range(rows.shape[0]):
        counts[rows[place]] += 1


@jit
def ascend(begins: np.ndarray, counts: np.ndarray, columns: np.ndarray) -> bool:
    """Whether the columns of each row ascend strictly."""
    good = np.uint8(1)
    for row in range(counts.shape[0]):
        first = np.uint64(begins[row])
        for place in range(first + np.uint64(1), first + np.uint64(counts[row])):
            good &= np.uint8(columns[place] > columns[place - np.uint64(1)])
    return good != 0


@jit
def move(rows, cursors, columns, values, out_columns, out_values):
    """Put elements where their rows are, in the order in which they come. cursors: where each row begins, and then
    ends."""
    for place in range(rows.shape[0]):
        row = rows[place]
        at = cursors[row]
        cursors[row] = at + 1
        out_columns[at] = columns[place]
        out_values[at] = values[place]


@jit
def survey(begins, counts, columns, values, negative_zero, nonzeros, fillers):
    """Write to `nonzeros` and zeroed `fillers` (rows,) what each row has of them; return how many -0.0 there are.

    A type without negative zero passes 0 for it. The columns of a row ascend.
    """
    negatives = 0
    for row in range(counts.shape[0]):
        found, last = 0, np.int64(0)
        for place in range(begins[row], begins[row] + counts[row]):
            value = values[place]
            if value == 0:
                continue
            if value == negative_zero:
                negatives += 1
                continue
            found += 1
            column = np.int64(columns[place])
            if column - last > 255:
                fillers[row] += (column - last - 1) // 255
            last = column
        nonzeros[row] = found
    return negatives


@jit
def of_dense(bits, negative_zero, values, columns):
    """Fill `values` and `columns` with the nonzeros of dense rows, in order, and no more than there is room for."""
    at, size = np.uint64(0), np.uint64(values.shape[0])
    for row in range(bits.shape[0]):
        for col in range(bits.shape[1]):
            value = bits[row, col]
            if at == size:
                return
            # each is stored, and overwritten by the next if it was zero: no branch to mispredict
            values[at] = value
            columns[at] = col
            at += np.uint64((value != 0) & (value != negative_zero))


@jit
def look_up(places, table, out):
    """out[i] = table[places[i]]. The table has an element for each number that a place can be."""
    for number in range(np.uint64(places.shape[0])):
        out[number] = table[places[number]]
