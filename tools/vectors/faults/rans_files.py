"""Chunks and models of codec `rans`, by an encoder written from section 5.3 of SPEC.md alone.

What the library writes uses few of the models that the format allows; those drawn at random here use them all.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

Frequencies = list[int]
Table = tuple[int, Frequencies]  # precision first


DIGITS = bytes.maketrans(b"01", b"\0\1")


class BitsOut:
    """5.3.1"""

    def __init__(self, bits: str = "") -> None:
        self.bits = bytearray(int(bit) for bit in bits)  # in the order in which they are read

    def field(self, value: int, n: int) -> None:
        digits = f"{value & (1 << n) - 1 | 1 << n:b}"  # 1, and the n bits from the highest on
        self.bits += digits[:0:-1].encode().translate(DIGITS)

    def number(self, value: int, k: int) -> None:
        high = (value >> k) + 1
        z = high.bit_length() - 1
        self.field(1 << z, z + 1)
        self.field(high - (1 << z), z)
        self.field(value, k)

    def done(self) -> bytes:
        return np.packbits(np.frombuffer(self.bits, np.uint8), bitorder="little").tobytes()


def encode_stream(symbols: Sequence[int], tables: Sequence[Table]) -> bytes:
    """5.3.2: each symbol with the table at its place."""
    starts = {id(f): np.cumsum([0, *f]).tolist() for _, f in tables}
    states = [1 << 16] * (1 if len(symbols) < 1024 else 8 if len(symbols) < 65536 else 32)
    words = []
    for i in range(len(symbols) - 1, -1, -1):
        (n, frequencies), symbol, x = tables[i], symbols[i], states[i % len(states)]
        f, start = frequencies[symbol], starts[id(frequencies)][symbol]
        if x >> (32 - n) >= f:
            words.append(x & 0xFFFF)
            x >>= 16
        states[i % len(states)] = ((x // f) << n) + x % f + start
    return struct.pack(f"<{len(states)}I{len(words)}H", *states, *words[::-1])


def put_bins(out: BitsOut, frequencies: Frequencies, widths: Sequence[int], precision: int) -> None:
    """5.3.3"""
    for number, f in enumerate(frequencies[:-1]):
        expected = 2**precision // len(frequencies)
        if number > 0:
            d = min(max(widths[number] - widths[number - 1], -16), 16)
            expected = math.floor(frequencies[number - 1] * 2.0**d)
        expected = min(max(expected, 1), 2**precision - 1)
        v = 2 * (f - expected) if f >= expected else 2 * (expected - f) - 1
        out.number(v, max(0, expected.bit_length() - 2))


def put_used_bins(out: BitsOut, frequencies: Frequencies, widths: Sequence[int], precision: int) -> None:
    """5.3.4: of a table of several"""
    for f in frequencies:
        out.field(f > 0, 1)
    used = [number for number, f in enumerate(frequencies) if f > 0]
    put_bins(out, [frequencies[number] for number in used], [widths[number] for number in used], precision)


def put_symbols(out: BitsOut, frequencies: Frequencies, precision: int) -> None:
    put_used_bins(out, frequencies, [0] * len(frequencies), precision)


def put_popcounts(out: BitsOut, f: Frequencies) -> None:
    above = 0
    for k in range(8, 0, -1):
        out.number(f[k], above.bit_length())
        above = f[k]


def encode_elements(
    bins: Sequence[int], offsets: Sequence[int], widths: Sequence[int], tables: Sequence[Table], rows: bytes = b""
) -> bytes:
    """5.3.5: each element with the table at its place; the parts with the classes of rows as they are."""
    out = BitsOut()
    for number, offset in zip(bins, offsets, strict=True):
        out.field(offset, widths[number])
    packed = out.done()
    packed += bytes(-len(packed) % 8)
    return struct.pack("<Q", len(out.bits)) + packed + rows + encode_stream(bins, tables)


# -------------------------------------------------------------------------------------------------------- at random


def some_frequencies(rng: np.random.Generator, count: int, precision: int) -> Frequencies:
    """So many, at least 1, that sum to 2^precision; all alike, or not."""
    weights = rng.random(count) ** rng.choice([0, 1, 5, 50]) + 1e-9
    f = 1 + np.floor(weights / weights.sum() * (2**precision - count)).astype(int)
    f[rng.integers(count)] += 2**precision - f.sum()
    return f.tolist()


def shares(frequencies: Frequencies) -> tuple[np.ndarray, np.ndarray]:
    """Up to each symbol, the sum of the shares of symbols: as often as the frequencies say, and all alike."""
    weights = np.array(frequencies, float)
    often, alike = (weights / weights.sum()).cumsum(), ((weights > 0) / np.count_nonzero(weights)).cumsum()
    return often / often[-1], alike / alike[-1]


def some_symbols(rng: np.random.Generator, sums: tuple[np.ndarray, np.ndarray], count: int) -> list[int]:
    """Symbols that occur, in one of the shares of `shares`."""
    return sums[0 if rng.random() < 0.8 else 1].searchsorted(rng.random(count), side="right").tolist()


class SomeClasses:
    """Classes of rows and of columns, as a model of elements or of positions has them."""

    def __init__(self, rng: np.random.Generator, most: int = 32):
        self.rng = rng
        self.rows, self.columns = (min(most, int(rng.choice([1, 2, 5, 32]))) for _ in range(2))
        self.steps = (rng.random(self.rows + self.columns - 2) < rng.choice([0, 0.5, 1])).astype(int).tolist()
        self.table_of_sum = np.cumsum([0, *self.steps]).tolist()
        self.tables = self.table_of_sum[-1] + 1

    def end(self, out: BitsOut, c: int, copies: int = 0) -> bytes:
        """The model, of which all is there but its end."""
        self.row_table = (12, some_frequencies(self.rng, self.rows + copies, 12))
        if self.rows + copies > 1:
            put_symbols(out, self.row_table[1], 12)
        if self.columns == 1:
            self.of_columns = [0] * c
            return out.done()
        table = (12, some_frequencies(self.rng, self.columns, 12))
        put_symbols(out, table[1], 12)
        self.of_columns = some_symbols(self.rng, shares(table[1]), c)
        return out.done() + encode_stream(self.of_columns, [table] * c)

    def of_rows(self, r: int) -> tuple[list[int], bytes]:
        """Symbols of the rows of a tile, the first of which is no copy, and how a chunk says them."""
        rows = some_symbols(self.rng, shares(self.row_table[1]), r)
        rows[0] %= self.rows
        if len(self.row_table[1]) == 1:
            return rows, b""
        stream = encode_stream(rows, [self.row_table] * r)
        return rows, struct.pack("<I", len(stream)) + stream


def some_elements(rng: np.random.Generator, bits: int, c: int = 0) -> tuple[bytes, Callable[..., bytes]]:
    """5.3.4: a model of elements of so many bits, with classes if they have c columns; what makes a chunk of elements.

    Those are given as the row and the column of each, and the number of rows.
    """
    out, precision, classes = BitsOut(), int(rng.integers(8, 16)), SomeClasses(rng, 32 if c else 1)
    shift = int(rng.integers(bits)) if rng.random() < 0.3 else 0
    for value, n in (int(rng.integers(3)), 2), (int(rng.integers(2)), 1), (shift, 6), (precision - 8, 3):
        out.field(value, n)
    out.field(classes.rows - 1, 5)
    out.field(classes.columns - 1, 5)
    out.bits.extend(classes.steps)
    deep, used = rng.choice([0.3, 0.6, 0.8, 0.95]), rng.choice([0.2, 0.7, 1])
    most = min(int(rng.choice([1, 2, 30, 256, 4096])), 2**precision)
    nodes, widths = [bits - shift], []
    while nodes:
        width = nodes.pop()
        inner = width > 0 and (width == 64 or (rng.random() < deep and len(widths) + len(nodes) + 2 <= most))
        if width > 0:
            out.field(inner, 1)
        if inner:
            nodes += [width - 1, width - 1]
            continue
        last_chance = not nodes and not widths
        is_bin = width < 64 and len(widths) < most and bool(rng.random() < used or last_chance)
        out.field(is_bin, 1)
        widths += [width] * is_bin
    tables = []
    for _ in range(classes.tables):
        occurs = rng.random(len(widths)) < (0.5 if classes.tables > 1 else 2)
        occurs[rng.integers(len(widths))] = True
        frequencies = np.zeros(len(widths), int)
        frequencies[occurs] = some_frequencies(rng, int(occurs.sum()), precision)
        (put_used_bins if classes.tables > 1 else put_bins)(out, frequencies.tolist(), widths, precision)
        tables.append((precision, frequencies.tolist()))
    model = classes.end(out, c)

    def chunk(rows: Sequence[int], columns: Sequence[int], r: int) -> bytes:
        of_rows, head = classes.of_rows(r)
        number = [0] * len(rows)
        if c:
            sums = [of_rows[row] + classes.of_columns[column] for row, column in zip(rows, columns, strict=True)]
            number = [classes.table_of_sum[z] for z in sums]
        bins = np.zeros(len(rows), int)
        for table in set(number):
            here = np.array(number) == table
            bins[here] = some_symbols(rng, shares(tables[table][1]), int(here.sum()))
        offsets = [int(rng.integers(1 << widths[b])) for b in bins]
        return encode_elements(bins.tolist(), offsets, widths, [tables[n] for n in number], head)

    return model, chunk


def some_byte_table(rng: np.random.Generator, out: BitsOut, precision: int) -> Table:
    """5.3.6; of byte 0 too"""
    popcounts = bool(rng.random() < 0.4)
    out.field(popcounts, 1)
    if popcounts:
        f = [0] + [int(rng.integers(3 if precision > 9 else 2)) for _ in range(8)]
        f[0] = 2**precision - sum(math.comb(8, k) * f[k] for k in range(1, 9))
        put_popcounts(out, f)
        return precision, [f[byte.bit_count()] for byte in range(256)]
    occurs = rng.random(256) < rng.choice([0, 0.05, 0.5, 1])
    occurs[0] = True
    of_bytes = np.zeros(256, int)
    of_bytes[occurs] = some_frequencies(rng, int(occurs.sum()), precision)
    put_symbols(out, of_bytes.tolist(), precision)
    return precision, of_bytes.tolist()


def some_positions(rng: np.random.Generator, c: int) -> tuple[bytes, Callable[[int], tuple[bytes, np.ndarray]]]:
    """5.3.6: a model of c columns, and what makes a chunk of so many rows, and their mask."""
    out, precision, classes, copies = BitsOut(), int(rng.integers(8, 16)), SomeClasses(rng), int(rng.integers(2))
    for value, n in (precision - 8, 3), (classes.rows - 1, 5), (copies, 1), (classes.columns - 1, 5):
        out.field(value, n)
    out.bits.extend(classes.steps)
    tables = [some_byte_table(rng, out, precision) for _ in range(classes.tables + copies)]
    model = classes.end(out, c, copies)
    order = sorted(range(c), key=lambda column: (column // 64, -classes.of_columns[column], column))
    groups = [order[at : at + 8] for at in range(0, c, 8)]
    means = [math.floor(sum(classes.of_columns[j] for j in group) / len(group) + 0.5) for group in groups]

    def chunk(r: int) -> tuple[bytes, np.ndarray]:
        rows, head = classes.of_rows(r)
        mask, coded, used = np.zeros((r, c), bool), [], []
        of_tables = [shares(frequencies) for _, frequencies in tables]
        slices = [range(first, min(first + 16, r)) for first in range(0, r, 16)]
        for rows_of_slice in slices:
            for (group, mean), row in product(zip(groups, means, strict=True), rows_of_slice):
                copy = rows[row] == classes.rows
                number = -1 if copy else classes.table_of_sum[rows[row] + mean]
                table = tables[number]
                (byte,) = some_symbols(rng, of_tables[number], 1)
                byte = byte if byte >> len(group) == 0 else 0
                for j, column in enumerate(group):
                    mask[row, column] = (byte >> j & 1) ^ (copy and mask[row - 1, column])
                coded.append(byte)
                used.append(table)
        return head + encode_stream(coded, used), mask

    return model, chunk
