"""Frequencies of symbols: integers that sum to a power of two, as rANS wants them, and how models write them down."""

from __future__ import annotations

from math import inf, log2
from operator import mul

import numpy as np

from sparsefmt.codecs.bitstring import BitReader, BitWriter
from sparsefmt.errors import FormatError

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

    Multiplied by how many bytes there are of each, they sum to 2^precision. That of no set bits makes up for the
    others, which are rounded, and then changed by one as long as that makes the bytes shorter.
    """
    total, multiplicity = 1 << precision, BYTES_OF_POPCOUNT
    used = counts > 0
    ideal = counts * (total / max(int(counts.sum()), 1)) / multiplicity
    rest = np.maximum(np.rint(ideal), used).astype(np.int64)

    of_rest = multiplicity[1:].tolist()
    weights, needed = counts.tolist(), used.tolist()

    def cost(frequencies: list[int]) -> float:
        first = total - sum(map(mul, frequencies[1:], of_rest))
        if first < needed[0]:
            return inf
        bits = -weights[0] * log2(first) if weights[0] else 0.0
        for weight, frequency in zip(weights[1:], frequencies[1:], strict=True):
            if weight:
                if frequency < 1:
                    return inf
                bits -= weight * log2(frequency)
        return bits

    found = rest.tolist()
    # rounded up, they may be too many together
    for number in range(8, 0, -1):
        while found[number] > needed[number] and cost(found) == inf:
            found[number] -= 1
    best = cost(found)
    if best == inf:
        return None
    improved = True
    while improved:
        improved = False
        for number in range(1, 9):
            for step in (1, -1):
                found[number] += step
                if needed[number] and (tried := cost(found)) < best:
                    best, improved = tried, True
                else:
                    found[number] -= step
    found[0] = total - sum(map(mul, found[1:], of_rest))
    return np.array(found, np.int64)


def entropy_bits(counts: np.ndarray) -> float:
    """Bits that symbols take, by themselves, if coded as well as possible."""
    counts = counts[counts > 0].astype(np.float64)
    return float((counts * np.log2(counts.sum() / counts)).sum()) if counts.size else 0.0


def write_precision(writer: BitWriter, precision: int) -> None:
    writer.write(precision - MIN_PRECISION, _PRECISION_BITS)


def read_precision(reader: BitReader) -> int:
    return MIN_PRECISION + reader.read(_PRECISION_BITS)


def write_frequencies(
    writer: BitWriter, frequencies: np.ndarray, precision: int, widths: list[int] | None = None
) -> None:
    """Frequencies that sum to 2^precision; those that are 0 are marked by a bit, and the last other one is left out."""
    for frequency in frequencies.tolist():
        writer.write(int(frequency > 0), 1)
    used = frequencies > 0
    write_positive(writer, frequencies[used], precision, _widths_of(used, widths))


def read_frequencies(reader: BitReader, symbols: int, precision: int, widths: list[int] | None = None) -> np.ndarray:
    used = reader.read_flags(symbols)
    frequencies = np.zeros(symbols, np.int64)
    frequencies[used] = read_positive(reader, int(used.sum()), precision, _widths_of(used, widths))
    return frequencies


def _widths_of(used: np.ndarray, widths: list[int] | None) -> list[int]:
    return (
        [0] * int(used.sum())
        if widths is None
        else [width for width, is_used in zip(widths, used, strict=True) if is_used]
    )


def _expected(before: int, shift: int, precision: int) -> int:
    """What a frequency is likely to be near, given the one before and how many times wider, in bits, its bin is."""
    scaled = before << shift if shift >= 0 else before >> -shift
    return min(max(scaled, 1), (1 << precision) - 1)


def write_positive(writer: BitWriter, frequencies: np.ndarray, precision: int, widths: list[int]) -> None:
    """Frequencies of at least 1 that sum to 2^precision, as differences to what their bins' widths make likely."""
    before, width_before = _first_expected(len(frequencies), precision), widths[0] if widths else 0
    for frequency, width in zip(frequencies.tolist()[:-1], widths, strict=False):
        expected = _expected(before, max(min(width - width_before, 16), -16), precision)
        difference = frequency - expected
        folded = 2 * difference if difference >= 0 else -2 * difference - 1
        writer.write_number(folded, max(expected.bit_length() - 2, 0))
        before, width_before = frequency, width


def read_positive(reader: BitReader, count: int, precision: int, widths: list[int]) -> np.ndarray:
    if not count:
        raise FormatError("rans-model", "a table of a model has no symbol")
    frequencies, left = [], 1 << precision
    before, width_before = _first_expected(count, precision), widths[0]
    for width in widths[: count - 1]:
        expected = _expected(before, max(min(width - width_before, 16), -16), precision)
        folded = reader.read_number(max(expected.bit_length() - 2, 0))
        before, width_before = expected + (folded >> 1 if not folded & 1 else -(folded >> 1) - 1), width
        left -= before
        if before < 1 or left < 1:
            raise FormatError("rans-model", f"frequencies of a model do not sum to {1 << precision:,}")
        frequencies.append(before)
    return np.array([*frequencies, left], np.int64)


def _first_expected(count: int, precision: int) -> int:
    return max((1 << precision) // max(count, 1), 1)


def write_popcounts(writer: BitWriter, frequencies: np.ndarray) -> None:
    """Frequencies of bytes with 8, 7, … 1 set bits; 0 set bits have what is left."""
    before = 0
    for frequency in frequencies.tolist()[:0:-1]:
        writer.write_number(frequency, before.bit_length())
        before = frequency


def read_popcounts(reader: BitReader, precision: int) -> np.ndarray:
    """Frequency of each of the 256 bytes."""
    frequencies, before = np.zeros(9, np.int64), 0
    for number in range(8, 0, -1):
        before = reader.read_number(before.bit_length())
        if before > 1 << precision:
            raise FormatError("rans-model", f"frequencies of a model do not sum to {1 << precision:,}")
        frequencies[number] = before
    frequencies[0] = (1 << precision) - int((frequencies * BYTES_OF_POPCOUNT).sum())
    if frequencies[0] < 0:
        raise FormatError("rans-model", f"frequencies of a model do not sum to {1 << precision:,}")
    return frequencies[POPCOUNTS]


def entries(frequencies: np.ndarray) -> np.ndarray:
    """What a decoder wants of each symbol, uint64: frequency << 16 | the sum of the frequencies before it.

    frequencies: (symbols,) or (tables, symbols); the result is flat.
    """
    starts = np.cumsum(frequencies, axis=-1) - frequencies
    return (frequencies << 16 | starts).astype(np.uint64).ravel()


def slots(frequencies: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The symbol at each of the 2^precision slots, flat for several tables."""
    rows = np.atleast_2d(frequencies)
    return np.concatenate([np.repeat(np.arange(row.size, dtype=dtype), row) for row in rows])
