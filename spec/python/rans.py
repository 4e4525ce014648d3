"""Codec `rans` of the strict reader, for study: laid out as section 5.3 of SPEC.md.

Models are made of their bytes, and decode chunks. Faults of either are `Invalid`. Made to be read, not to be fast.
"""

from __future__ import annotations

import itertools
import math
import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np


class Invalid(ValueError):
    """A model or a chunk that is not as section 5.3 says."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Invalid(message)


# --------------------------------------------------------------------------------------------------------- 5.3.1 Bits


class Bits:
    """A bit string of a model, read from its front."""

    def __init__(self, data: bytes):
        self.bits = (np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little") + ord("0")).tobytes()  # digits
        self.at = 0

    def field(self, n: int) -> int:
        field = self.bits[self.at : self.at + n]
        require(len(field) == n, "bits missing")
        self.at += n
        return int(b"0" + field[::-1], 2)

    def number(self, k: int) -> int:
        """A number of order k."""
        z = 0
        while self.field(1) == 0:
            z += 1
            require(z <= 32, "number of more than 32 zero bits")
        high = (1 << z) + self.field(z) - 1
        return (high << k) + self.field(k)

    def end(self) -> int:
        """The byte at which the bit string ends, behind its zero bits."""
        end = -(-self.at // 8)
        require(b"1" not in self.bits[self.at : 8 * end], "bits behind the last field not zero")
        return end


# ------------------------------------------------------------------------------------------------------ 5.3.2 Streams


class Table(NamedTuple):
    precision: int
    frequencies: list[int]
    starts: list[int]
    symbols: list[int]  # of each slot


def table_of(precision: int, frequencies: list[int]) -> Table:
    symbols = [symbol for symbol, frequency in enumerate(frequencies) for _ in range(frequency)]
    return Table(precision, frequencies, [0, *itertools.accumulate(frequencies)], symbols)


def decode_stream(stream: bytes, count: int, tables: Iterable[Table]) -> array:
    """So many symbols, at least one, each with the next of the tables."""
    n = 1 if count < 1024 else 8 if count < 65536 else 32
    require(len(stream) >= 4 * n and len(stream) % 2 == 0, f"stream of {len(stream)} bytes")
    states = list(struct.unpack_from(f"<{n}I", stream))
    require(min(states) >= 1 << 16, "state below 2^16")
    words = iter(np.frombuffer(stream, "<u2")[2 * n :].tolist())
    symbols = array("H")
    for i, (precision, frequencies, starts, symbol_at) in enumerate(tables):
        x = states[i % n]
        slot = x & ((1 << precision) - 1)
        symbol = symbol_at[slot]
        x = frequencies[symbol] * (x >> precision) + slot - starts[symbol]
        if x < 1 << 16:
            word = next(words, None)
            if word is None:
                raise Invalid(f"stream that ends before symbol {i} of {count}")
            x = (x << 16) + word
        states[i % n] = x
        symbols.append(symbol)
    require(all(x == 1 << 16 for x in states), "state that is not 2^16 in the end")
    require(next(words, None) is None, "words behind the last symbol")
    return symbols


# -------------------------------------------------------------------------------------------------- 5.3.3 Frequencies


def frequencies_of_bins(bits: Bits, widths: list[int], precision: int) -> list[int]:
    whole = 1 << precision
    frequencies: list[int] = []
    for number in range(len(widths) - 1):
        expected = whole // len(widths)
        if number > 0:
            d = max(-16, min(widths[number] - widths[number - 1], 16))
            expected = (frequencies[-1] << 16) >> (16 - d)
        expected = max(1, min(expected, whole - 1))
        v = bits.number(max(0, expected.bit_length() - 2))
        frequencies.append(expected + v // 2 if v % 2 == 0 else expected - (v + 1) // 2)
        require(frequencies[-1] >= 1, "frequency below 1")
    frequencies.append(whole - sum(frequencies))
    require(frequencies[-1] >= 1, f"frequencies over 2^{precision}")
    return frequencies


def frequencies_of_used_bins(bits: Bits, widths: list[int], precision: int) -> list[int]:
    """A bit for each bin, and then the frequencies of those whose bit is 1; of the others it is 0."""
    used = [bits.field(1) for _ in widths]
    require(any(used), "table without symbols")
    frequencies = iter(frequencies_of_bins(bits, list(itertools.compress(widths, used)), precision))
    return [next(frequencies) if bit else 0 for bit in used]


def frequencies_of_symbols(bits: Bits, alphabet: int, precision: int) -> list[int]:
    return frequencies_of_used_bins(bits, [0] * alphabet, precision)


def frequencies_of_popcounts(bits: Bits, precision: int) -> list[int]:
    f = [0] * 10
    for k in range(8, 0, -1):
        f[k] = bits.number(f[k + 1].bit_length())
    f[0] = (1 << precision) - sum(math.comb(8, k) * f[k] for k in range(1, 9))
    require(f[0] >= 0, f"frequencies over 2^{precision}")
    return [f[byte.bit_count()] for byte in range(256)]


# --------------------------------------------------------------------- 5.3.4 to 5.3.6 Classes of rows and of columns


def read_table_numbers(bits: Bits, sums: int) -> list[int]:
    """The number of the table of each sum of classes, from 0 on."""
    return list(itertools.accumulate((bits.field(1) for _ in range(sums - 1)), initial=0))


def read_classes(
    bits: Bits, model: bytes, row_symbols: int, column_classes: int, c: int
) -> tuple[Table | None, np.ndarray]:
    """The end of a model: the table of row symbols, if there are several, and the class of each column."""
    row_table = None
    if row_symbols > 1:
        row_table = table_of(12, frequencies_of_symbols(bits, row_symbols, 12))
    if column_classes == 1:
        require(bits.end() == len(model), "bytes behind the model")
        return row_table, np.zeros(0, int)  # of none of the columns, which may be very many
    require(c <= 1 << 20, f"classes of {c} columns")
    table = table_of(12, frequencies_of_symbols(bits, column_classes, 12))
    classes = decode_stream(model[bits.end() :], c, itertools.repeat(table, c))
    return row_table, np.array(classes, int)


def read_rows(chunk: bytes, row_table: Table | None, r: int) -> tuple[np.ndarray, bytes]:
    """The symbol of each row, and the rest of the chunk."""
    if row_table is None:
        return np.zeros(r, int), chunk
    end = 4 + int.from_bytes(chunk[:4], "little")
    require(len(chunk) >= 4 and end <= len(chunk), f"rows up to byte {end} of {len(chunk)}")
    return np.array(decode_stream(chunk[4:end], r, itertools.repeat(row_table, r)), int), chunk[end:]


# ----------------------------------------------------------------------------------------------- 5.3.4, 5.3.5 Elements


class ElementModel:
    def __init__(self, model: bytes, element_bits: int, c: int | None):
        """5.3.4: of elements that lie in c columns, or that have no rows and columns"""
        self.element_bits = element_bits
        bits = Bits(model)
        lag, self.folded, self.shift, precision = bits.field(2), bits.field(1), bits.field(6), 8 + bits.field(3)
        require(lag < 3, "lag 3")
        require(self.shift < element_bits, f"{self.shift} bits of {element_bits} left out")
        self.lag = (0, 1, 16)[lag]
        row_classes, column_classes = 1 + bits.field(5), 1 + bits.field(5)
        self.has_classes = row_classes > 1 or column_classes > 1
        require(c is not None or not self.has_classes, "classes of rows or columns that there are not")
        numbers = read_table_numbers(bits, row_classes + column_classes - 1)
        lows, widths = [], []
        nodes = [(0, element_bits - self.shift)]  # low and width; the next one last
        while nodes:
            low, width = nodes.pop()
            if width > 0 and bits.field(1):
                nodes += [(low + (1 << (width - 1)), width - 1), (low, width - 1)]
            elif bits.field(1):
                lows.append(low)
                widths.append(width)
                require(width <= 63 and len(lows) <= 4096, "bin too wide, or one too many")
        require(len(lows) > 0, "no bins")
        self.lows, self.widths = np.array(lows, np.uint64), np.array(widths, np.uint64)
        of_table = frequencies_of_bins if numbers[-1] == 0 else frequencies_of_used_bins
        tables = [table_of(precision, of_table(bits, widths, precision)) for _ in range(numbers[-1] + 1)]
        self.tables = [tables[number] for number in numbers]  # of each sum of classes
        self.row_table, self.column_classes = read_classes(bits, model, row_classes, column_classes, c or 0)

    def decode(self, chunk: bytes, m: int, r: int, positions: tuple[np.ndarray, np.ndarray] | None) -> bytes:
        """5.3.5: m elements of a tile of r rows; the row and the column of each if there are classes."""
        q = int.from_bytes(chunk[:8], "little")
        end = 8 + 8 * -(-q // 64)
        require(end <= len(chunk), f"{q} offset bits in {len(chunk)} bytes")
        row_classes, stream = read_rows(chunk[end:], self.row_table, r)
        tables: Iterable[Table] = itertools.repeat(self.tables[0], m)
        if positions is not None:
            sums = row_classes[positions[0]]
            if len(self.column_classes) > 0:
                sums += self.column_classes[positions[1]]
            tables = map(self.tables.__getitem__, sums.tolist())
        bins = decode_stream(stream, m, tables)
        keys = self.lows[bins] + read_offsets(chunk[8:end], q, self.widths[bins])
        elements = (keys >> self.folded) << self.shift
        if self.folded:
            elements |= (keys & 1) << (self.element_bits - 1)
        if self.lag:
            differences = np.pad(elements, (0, -m % self.lag)).reshape(-1, self.lag)
            elements = np.cumsum(differences, axis=0, dtype=np.uint64).reshape(-1)[:m]  # modulo 2^64
        return elements.astype(f"<u{self.element_bits // 8}").tobytes()  # modulo 2^element_bits


def read_offsets(offset_bits: bytes, q: int, widths: np.ndarray) -> np.ndarray:
    """Fields of these widths, at most 63, of a bit string of q bits."""
    require(int(widths.sum()) == q, f"{q} offset bits for bins of {widths.sum()}")
    words = np.frombuffer(offset_bits + bytes(16), "<u8")
    require(int(words[q // 64]) >> q % 64 == 0, "bits behind the offset bits not zero")
    at = np.cumsum(widths) - widths
    word, bit = at // 64, at % 64
    from_there = words[word] >> bit | words[word + 1] << 1 << (63 - bit)
    return from_there & ((1 << widths) - 1)


# ----------------------------------------------------------------------------------------------------- 5.3.6 Positions


class PositionModel:
    def __init__(self, model: bytes, c: int):
        """5.3.6: of c columns"""
        self.c, self.g = c, -(-c // 8)
        bits = Bits(model)
        precision, self.row_classes = 8 + bits.field(3), 1 + bits.field(5)
        copies, column_classes = bits.field(1), 1 + bits.field(5)
        numbers = read_table_numbers(bits, self.row_classes + column_classes - 1)
        tables = [read_byte_table(bits, precision) for _ in range(numbers[-1] + 1 + copies)]
        self.tables, self.copy_table = [tables[number] for number in numbers], tables[-1]
        self.row_table, classes = read_classes(bits, model, self.row_classes + copies, column_classes, c)
        self.order = self.group_classes = None  # if all columns have class 0
        if column_classes > 1:
            runs = np.pad(classes, (0, -c % 64), constant_values=-1).reshape(-1, 64)  # -1: does not exist
            first = 64 * np.arange(len(runs))[:, None]
            self.order = (first + np.argsort(-runs, axis=1, kind="stable")).reshape(-1)[: 8 * self.g]
            groups = runs.reshape(-1)[self.order].reshape(-1, 8)
            e, s = (groups >= 0).sum(axis=1), np.where(groups >= 0, groups, 0).sum(axis=1)
            self.group_classes = ((2 * s + e) // (2 * e)).tolist()

    def decode(self, chunk: bytes, r: int) -> np.ndarray:
        """The mask of r rows: 1 where a position is not pruned, else 0."""
        symbols, stream = read_rows(chunk, self.row_table, r)
        copies = symbols == self.row_classes
        require(not copies[0], "first row that is a copy")
        slices = [symbols[first : first + 16].tolist() for first in range(0, r, 16)]
        coded = decode_stream(stream, r * self.g, itertools.chain.from_iterable(map(self.tables_of_slice, slices)))
        of_slices = np.split(np.array(coded, np.uint8), np.arange(16, r, 16) * self.g)
        groups = np.concatenate([of_slice.reshape(self.g, -1).T for of_slice in of_slices])  # row by row
        bits = np.unpackbits(groups, axis=1, bitorder="little")
        require(not bits[:, self.c :].any(), "bits of columns that do not exist")  # they come last in the order
        for row in np.flatnonzero(copies):
            bits[row] ^= bits[row - 1]
        mask = np.empty((r, self.c), np.uint8)
        mask[:, slice(None) if self.order is None else self.order[: self.c]] = bits[:, : self.c]
        return mask

    def tables_of_slice(self, symbols: list[int]) -> Iterator[Table]:
        """The table of each byte, group by group, given the symbols of the rows of the slice."""
        for group in range(self.g):
            group_class = 0 if self.group_classes is None else self.group_classes[group]
            for symbol in symbols:
                yield self.copy_table if symbol == self.row_classes else self.tables[symbol + group_class]


def read_byte_table(bits: Bits, precision: int) -> Table:
    if bits.field(1):
        return table_of(precision, frequencies_of_popcounts(bits, precision))
    return table_of(precision, frequencies_of_symbols(bits, 256, precision))
