"""Faults of codec `rans` (SPEC.md, section 5.3)."""

from __future__ import annotations

import struct

import numpy as np

from tools.taken_apart import TakenApart
from tools.vectors.faults import rans_files
from tools.vectors.faults.changes import BASES, array, arrays, both, changed, faults, fields, item, saved


def coded(array: str, raw: int, chunk: bytes | None = None, model: bytes | None = None, **entry):
    """Give an array codec `rans`, a chunk of so many bytes raw, a model, and its entry other fields."""

    def change(file: TakenApart):
        file.entry()["arrays"][array] = "rans"
        file.entry().update(entry)
        if model is not None:
            file.entry()["models"] = {array: model}
        if chunk is not None:
            file.chunks[file.number(array)] = (chunk, raw)

    return change


def bits_of(*parts: str | bytes) -> bytes:
    """Bits in the order in which they are read, then bytes from the next whole byte on."""
    bits = "".join(part for part in parts if isinstance(part, str))
    return rans_files.BitsOut(bits).done() + b"".join(part for part in parts if isinstance(part, bytes))


NUMBER_OF_128 = "1" + "000000"  # as expected of the first of two frequencies of precision 8: the number 0 of order 6
CLASSES = "00000" + "00000"  # one of rows, one of columns
HEAD = "00" + "0" + "000000" + "000" + CLASSES  # first lag, folded, shift, precision
TWO_BINS = "1" * 15 + "01" * 2 + "00" * 14  # of 16 bits: keys 0 and 1, keys 2 and 3
ELEMENTS = [0, 3, 2, 0, 1] * 20


def number(value: int, order: int) -> str:
    out = rans_files.BitsOut()
    out.number(value, order)
    return "".join(map(str, out.bits))


def elements(model: bytes, chunk: bytes | None = None):
    """100 elements of 16 bits."""
    if chunk is None:
        bins, offsets = [element // 2 for element in ELEMENTS], [element % 2 for element in ELEMENTS]
        chunk = rans_files.encode_elements(bins, offsets, [1, 1], [(8, [128, 128])] * 100)
    return coded("values", 200, chunk, model)


def elements_changed(value):
    """A chunk that was valid: 8 bytes, 16 bytes of offset bits of which 100 are used, a state, words."""

    def change(file: TakenApart):
        elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128))(file)
        chunk, raw = file.chunks[0]
        file.chunks[0] = (value(chunk), raw)

    return change


def full_tree(bins: int) -> tuple[bytes, bytes]:
    """A model of 4096 bins of 16 bits, or of one more, and a chunk."""
    widths = [3, 3, *[4] * 4095] if bins > 4096 else [4] * 4096
    tree = ""
    for level in range(4096):  # the inner nodes before each leaf are the bits that have become 0, and at first all
        tree += "1" * (12 if level == 0 else (level & -level).bit_length() - 1)
        tree += "1" + "01" * 2 if bins > 4096 and level == 0 else "01"
    frequencies = [7] * (bins - 1)
    frequencies.append(2**15 - sum(frequencies))
    out = rans_files.BitsOut("00" + "0" + "000000" + "111" + CLASSES + tree)
    rans_files.put_bins(out, frequencies, widths, 15)
    return out.done(), rans_files.encode_elements([bins - 1] * 100, [5] * 100, widths, [(15, frequencies)] * 100)


def narrow_bins() -> tuple[bytes, bytes]:
    """A model of 16 bits of three bins, the second one far narrower than the first, of frequency 1; and a chunk."""
    # keys 0 to 0x7FFF, 0x8000, and 0x8002 with 0x8003
    tree, widths = "1" + "01" + "1" * 15 + "1" + "0" + "01" + "00" * 13, [15, 0, 1]
    frequencies = [240, 1, 15]
    out = rans_files.BitsOut("00" + "0" + "000000" + "000" + CLASSES + tree)
    rans_files.put_bins(out, frequencies, widths, 8)
    bins = [0, 2, 1, 2, 2] * 20
    chunk = rans_files.encode_elements(bins, [0x1234, 1, 0, 0, 1] * 20, widths, [(8, frequencies)] * 100)
    return out.done(), chunk


def wide_bins() -> tuple[bytes, bytes]:
    """A chunk, and a model of 64 bits whose bins have widths of 32, 32, 33, 40 and 63."""
    kept, widths = {32, 33, 40, 63}, [32, 32, 33, 40, 63]
    tree = "1" * 32 + "01" + "".join("01" if width in kept else "00" for width in range(32, 64))
    frequencies = [100, 100, 50, 4, 2]
    out = rans_files.BitsOut("00" + "0" + "000000" + "000" + CLASSES + tree)
    rans_files.put_bins(out, frequencies, widths, 8)
    bins = [0, 1, 2, 0, 3, 1, 4, 0, 1, 0] * 10
    offsets = [0x9E3779B97F4A7C15 * n % 2**64 >> (64 - widths[of_bin]) for n, of_bin in enumerate(bins)]
    offsets[:7] = [(1 << widths[of_bin]) - 1 for of_bin in bins[:7]]
    return rans_files.encode_elements(bins, offsets, widths, [(8, frequencies)] * 100), out.done()


EVERY_BYTE = "1" + "010" + "11" * 7  # table: popcounts, all frequencies 1
POSITIONS = "000" + "00000" + "1" + "00000"  # precision; one class of rows; copies; one class of columns
TWO_ROW_SYMBOLS = "11" + "1" + "0" * 10  # of the same frequency


def positions(rows=(0, 1, 0, 0, 1), groups=(((0, 0), 1),), nnz=2, model=None, value=lambda chunk: chunk):
    """A mask of 5 x 70; of the bytes of 5 rows and 9 groups those that are not 0."""
    row_table, byte_table = (12, [2048, 2048]), (8, [1] * 256)
    content = [dict(groups).get((row, group), 0) for group in range(9) for row in range(5)]
    head = rans_files.encode_stream(rows, [row_table] * 5)
    chunk = struct.pack("<I", len(head)) + head + rans_files.encode_stream(content, [byte_table] * 45)
    model = bits_of(POSITIONS, EVERY_BYTE * 2, TWO_ROW_SYMBOLS) if model is None else model

    def change(file: TakenApart):
        coded("mask", 70, value(chunk), model, nnz=nnz)(file)
        file.entry()["arrays"]["slice_offsets"] = "rans"
        file.chunks[file.number("slice_offsets")] = (b"", 8)
        file.put("values", b"\1" * nnz)

    return change


BASES["u16"] = saved("auto", "raw", w=np.arange(100, dtype=np.uint16))
BASES["u64"] = saved("auto", "raw", w=np.arange(100, dtype=np.uint64))
BASES["5 x 70"] = saved("bitmask", "raw", w=np.zeros((5, 70), np.uint8))
BASES["wide"] = saved("bitmask", "raw", w=np.zeros((1, 2**20 + 1), np.uint8))
faults(
    "ok",
    "u16",
    {
        "two bins": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128)),
        "4096 bins": elements(*full_tree(4096)),
        "expected frequency raised to 1": elements(*narrow_bins()),
        "any model without coded chunks": coded("values", 200, model=b"any"),
        "no model without coded chunks": coded("values", 200, model=b""),
    },
)
faults("ok", "u64", {"bins of 32 to 63 bits": coded("values", 800, *wide_bins())})
faults("ok", "5 x 70", {"copies": positions()})
faults(
    "rans-model",
    "u16",
    {
        "nothing": elements(b""),
        "cut": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128)[:-1]),
        "bit behind": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128, "1")),
        "byte behind": elements(bits_of(HEAD, TWO_BINS, NUMBER_OF_128, b"\0")),
        "lag": elements(bits_of("11", HEAD[2:], TWO_BINS, NUMBER_OF_128)),
        "shift": elements(bits_of("00" + "0" + "000010" + "000" + CLASSES, "1")),
        "no bins": elements(bits_of(HEAD, "00")),
        "4097 bins": elements(*full_tree(4097)),
        "endless tree": elements(bits_of(HEAD, "1" * 2**15)),
        "frequency 0": elements(bits_of(HEAD, TWO_BINS, number(2 * 128 - 1, 6))),
        "last frequency 0": elements(bits_of(HEAD, TWO_BINS, number(2 * 128, 6))),
        "negative frequency": elements(bits_of(HEAD, TWO_BINS, number(2 * 1000 - 1, 6))),
        "33 bits 0": elements(bits_of(HEAD, TWO_BINS, "0" * 33 + "1" + "0" * 39)),
        "largest number": elements(bits_of(HEAD, TWO_BINS, "0" * 32 + "1" * 39)),
    },
)
faults("rans-model", "u64", {"bin of 64 bits": coded("values", 800, bytes(100), bits_of(HEAD, "01"))})
faults(
    "rans-model",
    "5 x 70",
    {
        "no symbols": positions(model=bits_of(POSITIONS, "0" * 257, EVERY_BYTE, TWO_ROW_SYMBOLS)),
        "no row symbols": positions(model=bits_of(POSITIONS, EVERY_BYTE * 2, "00")),
        "popcounts": positions(model=bits_of(POSITIONS, "1" + number(2, 0) + number(1, 2) + "11" * 6, EVERY_BYTE)),
        "huge popcounts": positions(model=bits_of(POSITIONS, "1" + "0" * 32 + "1" * 2000)),
        "byte behind": positions(model=bits_of(POSITIONS, EVERY_BYTE * 2, TWO_ROW_SYMBOLS, b"\0")),
        "cut": positions(model=bits_of(POSITIONS, EVERY_BYTE)),
    },
)
CLASSES_OF_COLUMNS = "000" + "00000" + "0" + "10000" + "0" + EVERY_BYTE + TWO_ROW_SYMBOLS  # these for columns


def positions_of_columns(value=lambda classes: classes):
    """A mask of 5 x 70 whose columns have classes; the stream of these may be changed."""
    classes = rans_files.encode_stream([0, 1] * 35, [(12, [2048, 2048])] * 70)
    chunk = rans_files.encode_stream([1] + [0] * 44, [(8, [1] * 256)] * 45)

    def change(file: TakenApart):
        coded("mask", 70, chunk, bits_of(CLASSES_OF_COLUMNS, value(classes)), nnz=1)(file)
        file.put("slice_offsets", struct.pack("<II", 0, 1))
        file.put("values", b"\1")

    return change


def last_group(file: TakenApart) -> None:
    """A mask of 5 x 70: the mean class of the six columns of its last group is 1/2, which is rounded up."""
    every, few = [1] * 256, [100, 100, 0, 56, *[0] * 252]  # frequencies of groups of class 0, and of class 1
    out = rans_files.BitsOut("000" + "00000" + "0" + "10000" + "1" + EVERY_BYTE + "0")
    rans_files.put_symbols(out, few, 8)
    out.bits += rans_files.BitsOut(TWO_ROW_SYMBOLS).bits
    classes = rans_files.encode_stream([0, 1] * 35, [(12, [2048, 2048])] * 70)
    tables = [(8, few)] * 20 + [(8, every)] * 20 + [(8, few)] * 5  # group by group, of five rows each
    coded_bytes = [0, 3, 1, 0, 1] * 4 + [0, 0x81, 0, 0, 2] * 4 + [1, 3, 0, 1, 0]
    nnz = sum(byte.bit_count() for byte in coded_bytes)
    coded("mask", 70, rans_files.encode_stream(coded_bytes, tables), out.done() + classes, nnz=nnz)(file)
    file.put("slice_offsets", struct.pack("<II", 0, nnz))
    file.put("values", b"\1" * nnz)


faults("ok", "5 x 70", {"mean class of a short group": last_group})
faults("ok", "5 x 70", {"classes of columns": positions_of_columns()})
faults(
    "rans-model",
    "5 x 70",
    {
        "word less of columns": positions_of_columns(lambda classes: classes[:-2]),
        "word more of columns": positions_of_columns(lambda classes: classes + b"\0\0"),
        "no classes of columns": positions_of_columns(lambda classes: b""),
    },
)
faults(
    "rans-model",
    "wide",
    {"columns": coded("mask", 2**20 + 1, bytes(1000), bits_of(CLASSES_OF_COLUMNS, bytes(2**18)))},
)
BASES["permuted u16"] = saved("permuted", "raw", w=np.ones((10, 10), np.uint16))
BASES["bitmask u16"] = saved("bitmask", "raw", w=np.ones((10, 10), np.uint16))
BASES["wide u16"] = saved("dense", "raw", w=np.ones((1, 2**20 + 1), np.uint16))
ROW_CLASSES = HEAD[:12] + "10000" + "00000" + "0" + TWO_BINS + NUMBER_OF_128 + TWO_ROW_SYMBOLS
COLUMN_CLASSES = HEAD[:12] + "00000" + "10000" + "0" + TWO_BINS + NUMBER_OF_128 + TWO_ROW_SYMBOLS


def elements_of_rows(count: int = 100, value=lambda rows: rows):
    """So many elements of 16 bits in 10 rows, which have classes; the rows may be changed."""
    rows = rans_files.encode_stream([0, 1] * 5, [(12, [2048, 2048])] * 10)
    head = value(struct.pack("<I", len(rows)) + rows)
    chunk = rans_files.encode_elements([0] * count, [1] * count, [1, 1], [(8, [128, 128])] * count, head)
    return coded("values", 2 * count, chunk, bits_of(ROW_CLASSES))


faults("ok", "bitmask u16", {"classes of rows": elements_of_rows()})
faults("rans-model", "permuted u16", {"classes of rows": elements_of_rows(160)})
faults(
    "rans-model",
    "wide u16",
    {"columns": coded("values", 2**21 + 2, bytes(10**5), bits_of(COLUMN_CLASSES, bytes(2**18)))},
)
faults(
    "rans-stream",
    "bitmask u16",
    {
        "rows beyond the chunk": elements_of_rows(value=lambda rows: b"\xff" * 4 + rows[4:]),
        "no rows": elements_of_rows(value=lambda rows: b""),
        "word less of rows": elements_of_rows(value=lambda rows: struct.pack("<I", len(rows) - 6) + rows[4:-2]),
    },
)
faults(
    "slice-offsets",
    "bitmask u16",
    {"classes of rows": both(elements_of_rows(), array("mask", "u2", item(0, 0x3FE)))},
)
faults(
    "mask-padding",
    "bitmask u16",
    {"classes of rows": both(elements_of_rows(), array("mask", "u2", item(0, 0x7FE)))},
)
faults(
    "rans-stream",
    "u16",
    {
        "7 bytes": elements_changed(lambda chunk: chunk[:7]),
        "without states": elements_changed(lambda chunk: chunk[:26]),
        "offset bits behind the chunk": elements_changed(lambda chunk: struct.pack("<Q", 64 * 5) + chunk[8:44]),
        "most offset bits": elements_changed(lambda chunk: b"\xff" * 8 + chunk[8:]),
        "one offset bit less": elements_changed(lambda chunk: bytes([99]) + chunk[1:]),
        "one offset bit more": elements_changed(lambda chunk: bytes([101]) + chunk[1:]),
        "bit behind the offset bits": elements_changed(lambda chunk: changed(chunk, 8 + 100 // 8, 1 << 100 % 8)),
        "state": elements_changed(lambda chunk: chunk[:24] + b"\xff\xff\0\0" + chunk[28:]),
        "state in the end": elements(
            bits_of(HEAD, "1" * 15 + "01" + "00" * 15),
            changed(rans_files.encode_elements([0] * 100, [1] * 100, [1], [(8, [256])] * 100), -4, 1),
        ),
        "word less": elements_changed(lambda chunk: chunk[:-2]),
        "word more": elements_changed(lambda chunk: chunk + b"\0\0"),
        "half a word more": elements_changed(lambda chunk: chunk + b"\0"),
    },
)
faults(
    "rans-stream",
    "5 x 70",
    {
        "first row is a copy": positions(rows=(1, 0, 0, 0, 0)),
        "3 bytes": positions(value=lambda chunk: chunk[:3]),
        "rows behind the chunk": positions(value=lambda chunk: b"\xff" * 4 + chunk[4:]),
        "word more of rows": positions(value=lambda c: bytes([c[0] + 2]) + c[1 : 4 + c[0]] + b"\0\0" + c[4 + c[0] :]),
        "word less": positions(value=lambda chunk: chunk[:-2]),
    },
)
faults(
    "rans-stream",
    "5 x 70",
    {
        "column that does not exist": positions(groups=[((0, 8), 64)], nnz=0),
        "column that does not exist, in a copy": positions(groups=[((1, 8), 64)], nnz=0),
        "last column that does not exist": positions(groups=[((4, 8), 128)], nnz=0),
    },
)
faults("stored-zero", "5 x 70", {"coded mask": both(positions(), lambda file: file.put("values", b"\1\0"))})
faults(
    "chunk-size",
    "u16",
    {
        "ratio of rans": coded("values", 262146, b"a", b"", shape=[131073]),
        "nothing": coded("values", 200, b"", b""),
    },
)
faults(
    "chunk-size",
    "5 x 70",
    {"slice_offsets": both(positions(), lambda file: file.chunks.__setitem__(1, (b"four", 8)))},
)
faults("chunk-size", "permuted raw", {"slice_offsets of no bytes": coded("slice_offsets", 12, b"", b"")})
faults(
    "model-set",
    "u16",
    {"none": arrays(values="rans"), "of raw": fields(models={"values": b""}), "of none": fields(models={"x": b""})},
)
faults("model-set", "bitmask raw", {"slice_offsets": coded("slice_offsets", 12, model=b"")})
faults("model-set", "permuted raw", {"slice_offsets": arrays(slice_offsets="rans")})
faults("ok", "bitmask raw", {"slice_offsets by themselves": arrays(slice_offsets="rans")})
faults("ok", "permuted raw", {"slice_offsets as they are": coded("slice_offsets", 12, model=b"")})
faults("model-size", "u16", {"limit": coded("values", 200, model=bytes(2**20 + 1))})
faults("rans-model", "u16", {"at the limit": elements(bytes(2**20))})
faults(
    "index-type",
    "u16",
    {"models": fields(models=5), "model": both(arrays(values="rans"), fields(models={"values": ""}))},
)
faults("index-not-canonical", "u16", {"models that are empty": fields(models={})})
