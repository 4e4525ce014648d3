"""Frequencies of symbols: integers that sum to a power of two, as rANS wants them, and how models write them down."""

from __future__ import annotations

from itertools import product
from math import log2
from operator import mul

import numpy as np

from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter, bit_lengths
from sparsefmt.errors import FormatError

MIN_PRECISION, MAX_PRECISION = 8, 15
"""Bits of the sum of all frequencies. 15, so that a frequency always fits 16 bits."""

_PRECISION_NBITS = 3

BYTES = 256

POPCOUNTS = np.bitwise_count(np.arange(BYTES, dtype=np.uint8)).astype(np.int64)
"""Set bits of each byte."""

BYTES_OF_POPCOUNT = np.bincount(POPCOUNTS)
"""Bytes that have 0, 1, … 8 set bits."""

_OF_EACH = BYTES_OF_POPCOUNT.tolist()

_WORTH_A_CHANGE = 1e-6
"""Bits of all bytes that a change of frequencies must save, so that rounding never makes it go to and fro."""

_MAX_SHIFT = 16
"""Bits by which the widths of two bins next to each other count as different."""


def normalised(counts: np.ndarray, precision: int) -> np.ndarray:
    """Frequencies that sum to 2^precision, about as the counts are to each other, at least 1 where there is a count.

    At most 2^precision counts are not zero, and one is not. The change that costs least is made until the sum is right.
    """
    counts = counts.astype(np.float64)
    used, total = counts > 0, 1 << precision
    frequencies = np.maximum(np.rint(counts * (total / counts.sum())), used).astype(np.int64)
    excess = int(frequencies.sum()) - total
    while excess:
        step = -1 if excess > 0 else 1
        changed = frequencies + step
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = counts * np.log2(frequencies / changed)
        cost[~used | (changed < 1)] = np.inf
        # several at a time while there are many to go
        order = np.argsort(cost, kind="stable")[: max(1, min(abs(excess), int(used.sum()) // 8))]
        order = order[np.isfinite(cost[order])]
        frequencies[order] += step
        excess += step * order.size
    return frequencies


def normalised_popcounts(counts: np.ndarray, precision: int) -> np.ndarray | None:
    """The frequency of each byte with 0, 1, … 8 set bits, given how many bytes have as many; None if they do not fit.

    Multiplied by how many bytes there are of each, they sum to 2^precision. That of no set bits makes up for the
    others, which are rounded, and then changed by one as long as that makes the bytes shorter.
    """
    occurrences, total = counts.tolist(), 1 << precision
    scale = total / max(sum(occurrences), 1)
    found = [
        max(round(count * scale / many), int(count > 0)) for count, many in zip(occurrences, _OF_EACH, strict=True)
    ]
    left, least = total - sum(map(mul, found[1:], _OF_EACH[1:])), int(occurrences[0] > 0)
    # rounded up, they may be too many together
    for popcount in range(8, 0, -1):
        while left < least and found[popcount] > (occurrences[popcount] > 0):
            found[popcount] -= 1
            left += _OF_EACH[popcount]
    if left < least:
        return None
    improved = True
    while improved:
        improved = False
        for popcount, step in product([popcount for popcount in range(1, 9) if occurrences[popcount]], (1, -1)):
            rest, changed = left - step * _OF_EACH[popcount], found[popcount] + step
            if rest < least or changed < 1:
                continue
            saved = occurrences[popcount] * (log2(changed) - log2(found[popcount]))
            saved += occurrences[0] * (log2(rest) - log2(left)) if least else 0.0
            if saved > _WORTH_A_CHANGE:
                found[popcount], left, improved = changed, rest, True
    return np.array([left, *found[1:]])


def entropy_cost(counts: np.ndarray) -> float:
    """Bits that symbols take, by themselves, if coded as well as possible."""
    counts = counts[counts > 0].astype(np.float64)
    return float((counts * np.log2(counts.sum() / counts)).sum()) if counts.size else 0.0


def write_precision(writer: BitWriter, precision: int) -> None:
    writer.write(precision - MIN_PRECISION, _PRECISION_NBITS)


def read_precision(reader: BitReader) -> int:
    return MIN_PRECISION + reader.read(_PRECISION_NBITS)


def write_frequencies(
    writer: BitWriter, frequencies: np.ndarray, precision: int, widths: np.ndarray | None = None
) -> None:
    """Frequencies that sum to 2^precision; those that are 0 are marked by a bit, and the last other one is left out.

    widths: int64, of the bin of each symbol, in bits, which tell what to expect.
    """
    used = frequencies > 0
    writer.write_bits(used)
    widths = np.zeros(frequencies.size, np.int64) if widths is None else widths
    write_positive(writer, frequencies[used], precision, widths[used])


def read_frequencies(reader: BitReader, symbols: int, precision: int) -> np.ndarray:
    """Frequencies (symbols,), some of which may be 0."""
    from sparsefmt.codecs.rans.jitted import models

    frequencies = np.empty(symbols, np.int64)
    reader.run(models.get_frequencies, precision, np.zeros(symbols, np.int64), frequencies)
    return frequencies


def write_positive(writer: BitWriter, frequencies: np.ndarray, precision: int, widths: np.ndarray) -> None:
    """Frequencies of at least 1 that sum to 2^precision, as differences to what the one before and the widths of their
    bins make likely; the last, which follows from the others, is left out."""
    total = 1 << precision
    before = np.append(max(total // frequencies.size, 1), frequencies[:-2])[: frequencies.size - 1]
    shifts = np.clip(np.append(0, np.diff(widths[:-1])), -_MAX_SHIFT, _MAX_SHIFT)[: before.size]
    likely = np.clip((before << np.maximum(shifts, 0)) >> np.maximum(-shifts, 0), 1, total - 1)
    differences = frequencies[:-1] - likely
    folded = np.where(differences >= 0, 2 * differences, -2 * differences - 1)
    writer.write_numbers(folded, np.maximum(bit_lengths(likely) - 2, 0))


def write_popcounts(writer: BitWriter, frequencies: np.ndarray) -> None:
    """Frequencies of bytes with 8, 7, … 1 set bits; 0 set bits have what is left."""
    numbers = frequencies[:0:-1]
    writer.write_numbers(numbers, bit_lengths(np.append(0, numbers[:-1])))


def read_popcounts(reader: BitReader, precision: int) -> np.ndarray:
    """The frequency of each byte with 0, 1, … 8 set bits: int64 (9,)."""
    found, left, before = np.zeros(9, np.int64), 1 << precision, 0
    for popcount in range(8, 0, -1):
        found[popcount] = before = reader.read_number(before.bit_length())
        left -= before * _OF_EACH[popcount]
        if left < 0:
            raise FormatError("rans-model", "the frequencies of a model do not sum to what they must")
    found[0] = left
    return found


def read_tables(reader: BitReader, tables: int, precision: int, widths: np.ndarray) -> np.ndarray:
    """Frequencies (tables, symbols): of one table as `write_positive` does it, of several as `write_frequencies`."""
    from sparsefmt.codecs.rans.jitted import models

    found = np.empty((tables, widths.size), np.int64)
    if tables == 1:
        reader.run(models.get_positive, precision, widths, found[0])
    else:
        for table in found:
            reader.run(models.get_frequencies, precision, widths, table)
    return found


def read_byte_tables(reader: BitReader, tables: int, precision: int) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies (tables, 256), whether each is one of popcounts), as a bit before each of them says."""
    found, by_popcount = np.empty((tables, BYTES), np.int64), np.empty(tables, np.bool_)
    for number, table in enumerate(found):
        by_popcount[number] = reader.read(1)
        table[:] = (
            read_popcounts(reader, precision)[POPCOUNTS]
            if by_popcount[number]
            else read_frequencies(reader, BYTES, precision)
        )
    return found, by_popcount
