"""Frequencies of symbols: integers that sum to a power of two, as rANS wants them, and how models write them down."""

from __future__ import annotations

import numpy as np

from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter

MIN_PRECISION, MAX_PRECISION = 8, 15
"""Bits of the sum of all frequencies. 15, so that a frequency always fits 16 bits."""

_PRECISION_BITS = 3

BYTES = 256

POPCOUNTS = np.bitwise_count(np.arange(BYTES, dtype=np.uint8)).astype(np.int64)
"""Set bits of each byte."""

BYTES_OF_POPCOUNT = np.bincount(POPCOUNTS)
"""Bytes that have 0, 1, … 8 set bits."""


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

    Multiplied by how many bytes there are of each, they sum to 2^precision.
    """
    from sparsefmt.codecs.rans.jitted import frequencies as jitted

    found = np.empty(9, np.int64)
    fits = jitted.normalise_popcounts(counts.astype(np.int64), BYTES_OF_POPCOUNT, precision, found)
    return found if fits else None


def entropy_bits(counts: np.ndarray) -> float:
    """Bits that symbols take, by themselves, if coded as well as possible."""
    counts = counts[counts > 0].astype(np.float64)
    return float((counts * np.log2(counts.sum() / counts)).sum()) if counts.size else 0.0


def write_precision(writer: BitWriter, precision: int) -> None:
    writer.write(precision - MIN_PRECISION, _PRECISION_BITS)


def read_precision(reader: BitReader) -> int:
    return MIN_PRECISION + reader.read(_PRECISION_BITS)


def write_frequencies(
    writer: BitWriter, frequencies: np.ndarray, precision: int, widths: np.ndarray | None = None
) -> None:
    """Frequencies that sum to 2^precision; those that are 0 are marked by a bit, and the last other one is left out.

    widths: int64, of the bin of each symbol, in bits, which tell what to expect.
    """
    from sparsefmt.codecs.rans.jitted import models

    widths = np.zeros(frequencies.size, np.int64) if widths is None else widths
    most = frequencies.size * (1 + models.MOST_BITS)
    writer.run(models.put_frequencies, most, precision, widths, frequencies)


def read_frequencies(reader: BitReader, symbols: int, precision: int) -> np.ndarray:
    """Frequencies (symbols,), some of which may be 0."""
    from sparsefmt.codecs.rans.jitted import models

    frequencies = np.empty(symbols, np.int64)
    reader.run(models.get_frequencies, precision, np.zeros(symbols, np.int64), frequencies)
    return frequencies


def write_positive(writer: BitWriter, frequencies: np.ndarray, precision: int, widths: np.ndarray) -> None:
    """Frequencies of at least 1 that sum to 2^precision, as differences to what their bins' widths make likely."""
    from sparsefmt.codecs.rans.jitted import models

    writer.run(models.put_positive, frequencies.size * models.MOST_BITS, precision, widths, frequencies)


def write_popcounts(writer: BitWriter, frequencies: np.ndarray) -> None:
    """Frequencies of bytes with 8, 7, … 1 set bits; 0 set bits have what is left."""
    from sparsefmt.codecs.rans.jitted import models

    writer.run(models.put_popcounts, 8 * models.MOST_BITS, frequencies)


def read_tables(reader: BitReader, tables: int, precision: int, widths: np.ndarray) -> np.ndarray:
    """Frequencies (tables, symbols): of one table as `write_positive` does it, of several as `write_frequencies`."""
    from sparsefmt.codecs.rans.jitted import models

    found = np.empty((tables, widths.size), np.int64)
    if tables == 1:
        reader.run(models.get_positive, precision, widths, found[0])
    else:
        reader.run(models.get_tables, precision, widths, found)
    return found


def read_byte_tables(reader: BitReader, tables: int, precision: int) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies (tables, 256), whether each is one of popcounts), as a bit before each of them says."""
    from sparsefmt.codecs.rans.jitted import models

    found, by_popcount = np.empty((tables, BYTES), np.int64), np.empty(tables, np.bool_)
    reader.run(models.get_byte_tables, precision, by_popcount, found)
    return found, by_popcount
