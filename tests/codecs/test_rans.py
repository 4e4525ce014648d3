"""Codec `rans`: streams as a naive decoder reads them, sizes near what entropy allows, any bytes refused or decoded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import naive
import numpy as np
import pytest
from helpers import check_file_round_trip, each_of, examples, peak_of, pretend, pruned, random_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsefmt
from sparsefmt import isa
from sparsefmt.codecs import CODECS
from sparsefmt.codecs.contract import ArrayInfo, Chunk, Coder
from sparsefmt.codecs.rans import frequencies as freq
from sparsefmt.codecs.rans.bitstring import BitReader, BitWriter
from sparsefmt.codecs.rans.classes import Classes
from sparsefmt.codecs.rans.elements import ElementCoder, read_model
from sparsefmt.codecs.rans.elements.bins import Keys
from sparsefmt.codecs.rans.elements.counting import counted
from sparsefmt.codecs.rans.elements.model import Model, write_model
from sparsefmt.codecs.rans.elements.splitting import Splitter
from sparsefmt.codecs.rans.jitted import eight_lanes, measuring, models
from sparsefmt.codecs.rans.streams import Tables
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError
from sparsefmt.layouts.memory import empty
from sparsefmt.positions import Positions, masks

RANS = CODECS["rans"]


def model_of(*tiles: np.ndarray) -> bytes:
    """The model of elements that have no rows and columns."""
    chunks = [Chunk(tile.view(np.uint8), range(1), None) for tile in tiles]
    return RANS.fit(ArrayInfo(tiles[0].itemsize, 1, 1), each_of(*chunks))[0]


def coder_of(model: bytes, width: int) -> Coder:
    """The coder of such elements."""
    return RANS.coder(model, ArrayInfo(width, 1, 1))


def frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


class TestBits:
    @settings(deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 2**33 - 2), st.integers(0, 16)), max_size=20), st.integers(0, 7))
    def test_numbers_come_back(self, numbers, ahead):
        writer = BitWriter()
        writer.write(0, ahead)
        writer.write_numbers(*np.array(numbers, np.int64).reshape(-1, 2).T)
        for read in (lambda reader, order: reader.run(models.get_number, order), BitReader.read_number):
            reader = BitReader(writer.tobytes() + b"rest")
            assert reader.read(ahead) == 0
            assert [read(reader, order) for _, order in numbers] == [value for value, _ in numbers]
            assert reader.rest() == b"rest"

    def test_short_for_what_is_expected(self):
        writer = BitWriter()
        writer.write_numbers(np.arange(32, 96), np.full(64, 5))
        assert len(writer.tobytes()) <= 64

    @pytest.mark.parametrize("data", [b"", b"\0", bytes(40)])
    def test_numbers_that_do_not_end(self, data):
        with pytest.raises(FormatError, match="model"):
            BitReader(data).run(models.get_number, 3)
        with pytest.raises(FormatError, match="model"):
            BitReader(data).read_number(3)

    def test_unused_bits_must_be_zero(self):
        reader = BitReader(b"\x03")
        reader.read(1)
        with pytest.raises(FormatError, match="unused bits"):
            reader.rest()


@st.composite
def counts(draw: st.DrawFn, least: int = 1, most: int = 200) -> np.ndarray:
    """Occurrences of symbols, some of them 0, not all."""
    size = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = np.floor(np.exp(rng.standard_normal(size) * draw(st.sampled_from([0.1, 2, 5])))).astype(np.int64)
    found[rng.random(size) < draw(st.sampled_from([0, 0.5, 0.95]))] = 0
    found[rng.integers(size)] += 1
    return found


class TestFrequencies:
    @settings(deadline=None)
    @given(counts(), st.integers(freq.MIN_PRECISION, freq.MAX_PRECISION))
    def test_sum_and_cover(self, occurrences, precision):
        frequencies = freq.normalised(occurrences, precision)
        assert frequencies.sum() == 1 << precision
        assert np.array_equal(frequencies > 0, occurrences > 0)

    @settings(deadline=None)
    @given(counts())
    def test_cost_little(self, occurrences):
        frequencies = freq.normalised(occurrences, 15)
        ideal, used = freq.entropy_cost(occurrences), occurrences > 0
        bits = (occurrences[used] * (15 - np.log2(frequencies[used]))).sum()
        assert bits <= ideal * 1.01 + occurrences.sum() * 0.02

    @settings(deadline=None)
    @given(counts(9, 9), st.integers(11, 15))
    def test_popcounts(self, occurrences, precision):
        frequencies = freq.normalised_popcounts(occurrences, precision)
        assert frequencies is not None
        assert (frequencies * freq.BYTES_OF_POPCOUNT).sum() == 1 << precision
        assert (frequencies >= (occurrences > 0)).all()
        writer = BitWriter()
        freq.write_popcounts(writer, frequencies)
        assert np.array_equal(freq.read_popcounts(BitReader(writer.tobytes()), precision), frequencies)

    @settings(deadline=None)
    @given(counts(), st.integers(freq.MIN_PRECISION, freq.MAX_PRECISION), st.data())
    def test_come_back(self, occurrences, precision, data):
        frequencies = freq.normalised(occurrences, precision)
        writer = BitWriter()
        freq.write_frequencies(writer, frequencies, precision)
        assert np.array_equal(
            freq.read_frequencies(BitReader(writer.tobytes()), occurrences.size, precision), frequencies
        )
        positive = frequencies[frequencies > 0]
        widths = np.array(data.draw(st.lists(st.integers(0, 63), min_size=positive.size, max_size=positive.size)))
        writer = BitWriter()
        freq.write_positive(writer, positive, precision, widths)
        reader = BitReader(writer.tobytes())
        assert np.array_equal(freq.read_tables(reader, 1, precision, widths)[0], positive)

    @settings(deadline=None)
    @given(st.binary(max_size=60), st.integers(8, 15), st.integers(1, 40))
    def test_any_bits_make_a_table_or_an_error(self, data, precision, symbols):
        for read in (
            lambda: freq.read_frequencies(BitReader(data), symbols, precision),
            lambda: freq.read_tables(BitReader(data), 1, precision, np.arange(symbols)),
            lambda: freq.read_tables(BitReader(data), 2, precision, np.arange(symbols)),
            lambda: freq.read_byte_tables(BitReader(data), 2, precision)[0],
        ):
            with suppress(FormatError):
                frequencies = read()
                assert (frequencies.sum(-1) == 1 << precision).all()
                assert (frequencies >= 0).all()


class TestStreams:
    @pytest.mark.parametrize("count", [1, 7, 8, 9, 1023, 1024, 1025, 5001, 65535, 65536, 65537 + 9])
    def test_as_a_naive_decoder_reads_them(self, count, monkeypatch):
        rng = np.random.default_rng(count)
        precision = 8 + count % 8
        tables = np.array(
            [freq.normalised(rng.integers(0, 9, 20) ** 3 + (np.arange(20) == 3), precision) for _ in "abc"]
        )
        contexts = rng.integers(0, 3, count).astype(np.uint8)
        symbols = np.array([rng.choice(np.flatnonzero(tables[context])) for context in contexts], np.uint16)
        coder = Tables(tables, precision)
        stream = coder.encode(symbols, contexts)
        assert naive.rans_symbols(stream, count, tables.tolist(), precision, contexts.tolist()) == symbols.tolist()
        assert np.array_equal(coder.decode(np.frombuffer(stream, np.uint8), count, contexts), symbols)
        pretend(monkeypatch, ISA="portable")
        assert coder.encode(symbols, contexts) == stream
        assert np.array_equal(coder.decode(np.frombuffer(stream, np.uint8), count, contexts), symbols)

    @pytest.mark.parametrize("precision", [8, 11, 12, 13, 15])
    @pytest.mark.parametrize("instructions", ["portable", isa.ISA])
    def test_of_any_frequencies(self, precision, instructions, monkeypatch):
        """Quotients by reciprocals are exact: for 1, powers of two and what is next to them, and the largest ones."""
        pretend(monkeypatch, ISA=instructions)
        rng = np.random.default_rng(precision)
        total = 1 << precision
        for common in (1, total // 2 - 1, total // 2, total // 2 + 1, total - 9, total - 8):
            some = [1, 2, 3, 1, 1]
            frequencies = np.array([*some, common, total - common - sum(some), 0])
            used = np.flatnonzero(frequencies)
            # rare symbols often, and runs of each
            symbols = np.concatenate([rng.choice(used, 70_000), np.repeat(used, 200)]).astype(np.uint8)
            coder = Tables(frequencies, precision)
            stream = np.frombuffer(coder.encode(symbols), np.uint8)
            assert np.array_equal(coder.decode(stream, symbols.size), symbols)

    @pytest.mark.parametrize("instructions", ["portable", isa.ISA])
    @pytest.mark.parametrize("count", [100, 5000, 70_000])
    def test_of_what_has_no_frequency(self, count, instructions, monkeypatch):
        """A tensor that changes while it is saved must not become a stream of something else."""
        pretend(monkeypatch, ISA=instructions)
        coder = Tables(np.array([[1000, 24, 0], [1000, 0, 24]]), 10)
        contexts, symbols = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
        contexts[count // 2 :] = 1
        for place, bad in ((0, 2), (count // 3, 2), (count - 1, 1)):
            changed = symbols.copy()
            changed[place] = bad
            with pytest.raises(FormatError, match="changed"):
                coder.encode(changed, contexts)

    def test_of_a_large_alphabet(self):
        frequencies = np.full(1000, 8)
        frequencies[-1] += (1 << 13) - 8000
        symbols = np.random.default_rng(1).integers(0, 1000, 70_000).astype(np.uint16)
        coder = Tables(frequencies, 13)
        assert np.array_equal(coder.decode(np.frombuffer(coder.encode(symbols), np.uint8), symbols.size), symbols)

    def test_of_one_symbol_takes_its_states_only(self):
        frequencies = np.array([0, 1 << 15])
        assert len(Tables(frequencies, 15).encode(np.ones(5000, np.uint8))) == 8 * 4

    def test_none(self):
        coder = Tables(np.array([1 << 12]), 12)
        assert coder.encode(np.empty(0, np.uint8)) == b""
        assert coder.decode(np.empty(0, np.uint8), 0).size == 0


class TestElements:
    @settings(max_examples=examples(150), deadline=None)
    @given(
        st.sampled_from([1, 2, 4, 8]),
        st.integers(1, 2500),
        st.sampled_from(["any", "few", "normal", "ascending", "constant", "high", "lanes"]),
        st.integers(0, 2**32 - 1),
    )
    def test_any_come_back(self, width, count, kind, seed):
        rng = np.random.default_rng(seed)
        bits = rng.integers(0, 1 << 64, count, np.uint64)
        values = {
            "any": bits,
            "few": bits[rng.integers(0, min(count, 5), count)],
            "normal": rng.standard_normal(count).view(np.uint64),
            "ascending": np.cumsum(bits % np.uint64(7), dtype=np.uint64),
            "constant": np.full(count, bits[0]),
            "high": bits << np.uint64(8 * width // 2) if width < 8 else bits & ~np.uint64(0xFFFF),
            "lanes": np.cumsum(np.resize(bits % np.uint64(5), (count // 8 + 1, 8)), 0, np.uint64).ravel()[:count],
        }[kind]
        if kind == "normal" and width < 8:
            values >>= np.uint64(64 - 8 * width)
        tiles = [frozen(part) for part in np.array_split(values.astype(f"u{width}"), 3)]
        model = model_of(*tiles)
        assert len(model) < 40 + count * width * 2
        coder = coder_of(model, width)
        for tile in tiles:
            out = np.empty_like(tile)
            if tile.size:
                stored = coder.encode(tile.view(np.uint8), None)
                coder.decode(np.frombuffer(stored, np.uint8), None, out.view(np.uint8))
            assert np.array_equal(out, tile)

    def size(self, array: np.ndarray) -> int:
        array = frozen(array)
        model = model_of(array)
        return len(model) + len(coder_of(model, array.itemsize).encode(array.view(np.uint8), None))

    def entropy(self, array: np.ndarray) -> float:
        return freq.entropy_cost(np.unique(array, return_counts=True)[1]) / 8

    def test_pruned_bfloat16_takes_its_joint_entropy(self):
        rng = np.random.default_rng(1)
        weights = rng.standard_normal(1 << 19).astype(np.float32)
        kept = (weights[np.abs(weights) > 0.7].view(np.uint32) >> 16).astype(np.uint16)
        assert self.size(kept) < 1.003 * self.entropy(kept)

    def test_bfloat16_in_float32_takes_no_more_than_as_bfloat16(self):
        rng = np.random.default_rng(2)
        bits = rng.standard_normal(100_000).astype(np.float32).view(np.uint32) & 0xFFFF0000
        assert self.size(bits) <= self.size((bits >> 16).astype(np.uint16)) + 10

    def test_few_values_take_their_numbers(self):
        rng = np.random.default_rng(3)
        palette = rng.standard_normal(16).astype(np.float32).view(np.uint32)
        assert self.size(palette[rng.integers(0, 16, 100_000)]) < 50_000 + 400

    def test_float32_takes_its_upper_half_s_entropy(self):
        rng = np.random.default_rng(4)
        bits = rng.standard_normal(1 << 18).astype(np.float32).view(np.uint32)
        assert self.size(bits) < 1.001 * (self.entropy(bits >> 16) + 2 * bits.size)

    def test_ascending_numbers_take_their_steps(self):
        assert self.size(np.arange(100_000, dtype=np.int64).view(np.uint64)) < 300

    def test_what_the_model_never_saw(self):
        model = model_of(np.full(100, 5, np.uint16))
        with pytest.raises(FormatError, match="changed"):
            coder_of(model, 2).encode(np.full(100, 6, np.uint16).view(np.uint8), None)

    @pytest.mark.parametrize("masked", [False, True])
    def test_classes_of_rows_alone_take_no_memory_for_each_column(self, masked):
        """A file may claim 32 of them for a matrix of any width."""
        cols, classes = 1 << 20, Classes(32, np.arange(32, dtype=np.uint8) // 31, np.full(32, 1 << 7), None)
        keys, tables = Keys(8, 0, False), np.array([[1 << 10, 1 << 10], [1, (1 << 11) - 1]])
        model = write_model(
            Model(keys, 0, np.array([0, 128], np.uint64), np.array([7, 7]), 11, classes, tables),
        )
        elements, mask = np.random.default_rng(5).integers(0, 256, 2 * cols, np.uint8), None
        if masked:
            mask = frozen(np.where(np.arange(cols) % 8 < 7, np.uint16(3), np.uint16(0))[None])
            elements = elements[: 2 * cols * 7 // 8]
        positions, info, out = Positions(2, cols, mask), ArrayInfo(1, 2, cols), np.empty_like(elements)
        stored = np.frombuffer(RANS.coder(model, info).encode(elements, positions), np.uint8)
        RANS.coder(model, info).decode(stored, positions, out)  # compiled
        _, peak = peak_of(lambda: RANS.coder(model, info).decode(stored, positions, out))
        assert np.array_equal(out, elements)
        assert peak < 8 * elements.nbytes


def mask_of(kept: np.ndarray) -> np.ndarray:
    """uint16 (slices, cols)."""
    rows, cols = kept.shape
    padded = np.zeros((-(-rows // 16) * 16, cols), np.uint16)
    padded[:rows] = kept
    return frozen((padded.reshape(-1, 16, cols) << np.arange(16, dtype=np.uint16)[:, None]).sum(1, dtype=np.uint16))


def mask_bytes(kept: np.ndarray) -> np.ndarray:
    raw = empty(masks.mask_bytes(*kept.shape), np.dtype(np.uint8))
    masks.put_slices(mask_of(kept), len(kept), raw)
    return raw


def in_slice_order(matrix: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The kept elements, slice by slice, column by column."""
    slices = [slice(first, first + 16) for first in range(0, len(kept), 16)]
    return frozen(np.concatenate([matrix[part].T[kept[part].T] for part in slices]))


def coded_mask(kept: np.ndarray, tile_rows: int) -> int:
    """Bytes of the model and of all tiles, each of which comes back."""
    rows = [range(begin, min(begin + tile_rows, len(kept))) for begin in range(0, len(kept), tile_rows)]
    cols = kept.shape[1]
    tiles = [Chunk(mask_bytes(kept[part.start : part.stop]), part, Positions(len(part), cols, None)) for part in rows]
    info = ArrayInfo(1, *kept.shape, is_mask=True)
    model, _ = RANS.fit(info, each_of(*tiles))
    coder, size = RANS.coder(model, info), len(model)
    for tile in tiles:
        coded = coder.encode(tile.raw, tile.positions)
        out = empty(tile.raw.size, np.dtype(np.uint8))
        out.fill(0xAA)
        coder.decode(np.frombuffer(coded, np.uint8), tile.positions, out)
        assert np.array_equal(out, tile.raw)
        size += len(coded)
    return size


def entropy(kept: np.ndarray) -> float:
    """Bytes of as many independent positions."""
    return freq.entropy_cost(np.bincount(kept.ravel().astype(np.int64))) / 8


class TestPositions:
    @settings(max_examples=examples(150), deadline=None)
    @given(
        st.sampled_from([1, 2, 3, 8, 17, 60, 300]),
        st.sampled_from([1, 2, 7, 8, 9, 63, 64, 65, 130, 200, 520]),
        st.sampled_from(["any", "uneven", "copies", "none", "all", "blocks"]),
        st.sampled_from([1, 8, 64]),
        st.integers(0, 2**32 - 1),
    )
    def test_any_come_back(self, rows, cols, kind, tile_rows, seed):
        rng = np.random.default_rng(seed)
        kept = {
            "any": lambda: rng.random((rows, cols)) < rng.random(),
            "uneven": lambda: rng.random((rows, cols)) < rng.random((rows, 1)) ** 3 * rng.random(cols) ** 2,
            "copies": lambda: (rng.random((1, cols)) < 0.4) ^ (rng.random((rows, cols)) < 0.02),
            "none": lambda: np.zeros((rows, cols), bool),
            "all": lambda: np.ones((rows, cols), bool),
            "blocks": lambda: (
                np.kron(rng.random((rows // 4 + 1, cols // 4 + 1)) < 0.3, np.ones((4, 4)))[:rows, :cols] > 0
            ),
        }[kind]()
        coded_mask(kept, tile_rows)

    def test_independent_positions_take_their_entropy(self):
        rng = np.random.default_rng(1)
        for sparsity in (0.5, 0.8, 0.95, 0.99):
            kept = rng.random((512, 2048)) >= sparsity
            assert coded_mask(kept, 128) < 1.006 * entropy(kept) + 100

    def test_densities_of_rows_and_columns_are_used(self):
        rng = np.random.default_rng(2)
        odds = 1.5 * rng.standard_normal((512, 1)) + 1.5 * rng.standard_normal(1024)
        share = 1 / (1 + np.exp(-odds))
        kept = rng.random(share.shape) < share
        bound = float(-(share * np.log2(share) + (1 - share) * np.log2(1 - share)).sum()) / 8
        assert bound < 0.8 * entropy(kept)
        # the bound knows every share; the model has to learn and to write down some
        assert coded_mask(kept, 128) < 1.06 * bound

    def test_two_of_four(self):
        rng = np.random.default_rng(3)
        kept = (np.argsort(rng.random((256, 256, 4)), 2) < 2).reshape(256, 1024)
        assert coded_mask(kept, 64) < kept.size / 8 * np.log2(6) / 4 * 1.005 + 100

    @pytest.mark.parametrize("block", [(4, 4), (16, 1), (8, 4)])
    def test_blocks(self, block):
        rng = np.random.default_rng(4)
        chosen = rng.random((512 // block[0], 1024 // block[1])) < 0.4
        kept = np.kron(chosen, np.ones(block)) > 0
        assert coded_mask(kept, 128) < 1.05 * entropy(chosen) + 200

    def test_what_the_model_never_saw(self):
        info = ArrayInfo(1, 50, 80, is_mask=True)
        everywhere = Positions(50, 80, None)
        model, _ = RANS.fit(info, each_of(Chunk(mask_bytes(np.zeros((50, 80), bool)), range(50), everywhere)))
        with pytest.raises(FormatError, match="changed"):
            RANS.coder(model, info).encode(mask_bytes(np.ones((50, 80), bool)), everywhere)


class TestMeasuring:
    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([1, 8, 9, 16, 40]),
        st.sampled_from([1, 3, 4, 1023, 1024, 1030, 2050]),
        st.booleans(),
        st.integers(0, 63),
        st.integers(0, 2**32 - 1),
    )
    def test_sizes_by_row_and_column(self, width, rows, cols, folded, shift, seed):
        rng = np.random.default_rng(seed)
        keys = Keys(8 * width, shift % (8 * width), folded)
        dtype = np.dtype(f"u{width}")
        matrix = (
            rng.integers(0, 1 << 8 * width, (rows, cols), dtype) >> dtype.type(keys.shift) << dtype.type(keys.shift)
        )
        kept = rng.random((rows, cols)) < rng.random()
        prefixes = keys.of(matrix) >> dtype.type(keys.key_nbits - keys.prefix_nbits)
        sizes = prefixes.astype(np.int64)
        sizes = sizes >> 1 if folded else np.minimum(sizes, (1 << keys.prefix_nbits) - 1 - sizes)
        some, shuffles = frozen(matrix), eight_lanes.APART[: 0 if isa.ISA == "portable" else None]
        found = [np.zeros(size, kind) for size in (rows, cols) for kind in (np.int64, np.uint32)]
        ways = [(np.ones_like(kept), lambda: measuring.measure_rows(some.ravel(), *keys.sizes, *found))]
        values, mask = in_slice_order(matrix, kept), mask_of(kept)
        for with_x86 in (shuffles, shuffles[:0]):
            ways.append((kept, lambda some=with_x86: measuring.measure_slices(mask, values, *keys.sizes, some, *found)))
        for measured, measure in ways:
            for array in found:
                array[:] = 0
            squares, expected = measure(), np.where(measured, sizes, 0)
            for axis, (sums, counts) in enumerate((found[:2], found[2:])):
                assert np.array_equal(sums, expected.sum(1 - axis))
                assert np.array_equal(counts, np.count_nonzero(expected, 1 - axis))
            assert squares == (expected**2).sum()

    @pytest.mark.skipif(not isa.MOVES_BYTES, reason="it takes AVX-512 with VBMI")
    @pytest.mark.parametrize("width", [1, 2, 4])
    @pytest.mark.parametrize(("bins", "place_nbits"), [(1, 3), (63, 2), (64, 0), (65, 1), (127, 1), (200, 1)])
    def test_registers_split_as_tables_do(self, width, bins, place_nbits):
        rng, nbits = np.random.default_rng(bins), 8 * width
        keys = Keys(nbits, 3 if width == 4 else 0, width > 1)
        left_out = keys.key_nbits - keys.prefix_nbits
        bins = min(bins, (1 << keys.prefix_nbits) >> place_nbits)
        numbers = np.sort(rng.permutation((1 << keys.prefix_nbits) >> place_nbits)[:bins]).astype(np.uint64)
        widths = np.full(bins, place_nbits + left_out)
        splitter = Splitter(keys, numbers << np.uint64(place_nbits + left_out), widths)
        assert splitter._tables_in_registers or bins == 200
        of_bins = rng.integers(0, bins, 3001)
        places = rng.integers(0, 1 << place_nbits + left_out, of_bins.size).astype(np.uint64)
        found = (numbers[of_bins] << np.uint64(place_nbits + left_out)) + places
        if keys.folded:
            found = (found >> np.uint64(1)) << np.uint64(keys.shift) | (found & np.uint64(1)) << np.uint64(nbits - 1)
        elements = found.astype(f"u{width}")
        for count in (0, 1, 63, 64, 65, 1024, 1027, 3001):
            some = frozen(elements[:count])
            symbols, offsets, offset_nbits = splitter.split(some)
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(isa, "MOVES_BYTES", False)
                plain_symbols, plain, plain_nbits = splitter.split(some)
            assert offset_nbits == plain_nbits == count * (place_nbits + left_out)
            words = -(-offset_nbits // 64)
            assert np.array_equal(offsets[:words], plain[:words])
            assert np.array_equal(symbols, plain_symbols)
            assert np.array_equal(symbols, of_bins[:count])
            assert np.array_equal(splitter.symbols(some), symbols)

    @settings(deadline=None)
    @given(st.sampled_from([1, 2, 4, 8]), st.booleans(), st.integers(0, 63), st.sampled_from([50, 9000]))
    def test_prefixes_follow_from_the_highest_bits(self, width, folded, shift, count):
        keys, dtype = Keys(8 * width, shift % (8 * width), folded), np.dtype(f"u{width}")
        elements = np.random.default_rng(shift).integers(0, 1 << 8 * width, count, dtype)
        elements = frozen(elements >> dtype.type(keys.shift) << dtype.type(keys.shift))
        every, tops, counts = counted(elements)
        assert every == np.bitwise_or.reduce(elements)
        found = np.bincount(keys.prefixes_of_tops(tops), counts)
        expected, counts = np.unique(
            keys.of(elements) >> dtype.type(keys.key_nbits - keys.prefix_nbits), return_counts=True
        )
        assert np.array_equal(np.flatnonzero(found), expected)
        assert np.array_equal(found[found > 0], counts)


def outcome(decode: Callable[[], np.ndarray]) -> str:
    """What became of it: "decoded", or the code of a FormatError."""
    try:
        decode()
    except FormatError as error:
        return error.code
    return "decoded"


def changed_bytes(data: bytes) -> Iterator[bytes]:
    """Each byte changed in three ways, and every truncation, and something behind the end."""
    for position in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= flip
            yield bytes(changed)
    yield from (data[:size] for size in range(len(data)))
    yield from (data + b"\0\0", data + b"\1", data + data)


class TestDamage:
    """No checksum guards what is given to a codec here."""

    def arrays(self) -> Iterator[tuple[ArrayInfo, np.ndarray, Positions | None]]:
        """What to code."""
        rng = np.random.default_rng(1)
        share = rng.random((40, 1)) * rng.random(90)
        kept = rng.random((40, 90)) < share
        kept[8:16] = kept[7]
        yield ArrayInfo(1, 40, 90, is_mask=True), mask_bytes(kept), Positions(40, 90, None)
        even = np.argsort(rng.random((40, 90)), 1) < 30
        yield ArrayInfo(1, 40, 90, is_mask=True), mask_bytes(even), Positions(40, 90, None)
        # of rows and columns that differ in size
        sizes = np.exp2(rng.integers(0, 12, (40, 1)) + rng.integers(0, 12, 90)) * rng.standard_normal((40, 90))
        sizes = (sizes.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        kept = rng.random((40, 90)) < 0.7
        yield ArrayInfo(2, 40, 90), frozen(sizes).view(np.uint8).ravel(), Positions(40, 90, None)
        yield ArrayInfo(2, 40, 90), in_slice_order(sizes, kept).view(np.uint8), Positions(40, 90, mask_of(kept))
        for width in (1, 2, 4, 8):
            values = rng.standard_normal(1200).view(np.uint64) >> np.uint64(64 - 8 * width)
            yield ArrayInfo(width, 30, 40), frozen(values.astype(f"u{width}")).view(np.uint8), Positions(30, 40, None)
        yield ArrayInfo(8, 1, 300), frozen(np.arange(300, dtype=np.uint64)).view(np.uint8), Positions(1, 300, None)

    @pytest.mark.thorough
    def test_any_changed_byte_is_refused_or_decodes_within_its_size(self):
        seen, unnoticed_in_masks = {"rans-stream": 0, "rans-model": 0, "decoded": 0}, 0
        for info, raw, positions in self.arrays():
            model, _ = RANS.fit(info, each_of(Chunk(raw, range(info.rows), positions)))
            stored = RANS.coder(model, info).encode(raw, positions)
            guarded = np.full(raw.size + 128, 0xEE, np.uint8)
            out = guarded[64:-64]

            def decode(
                stored: bytes,
                model: bytes,
                info: ArrayInfo = info,
                positions: Positions | None = positions,
                out: np.ndarray = out,
            ) -> np.ndarray:
                RANS.coder(model, info).decode(np.frombuffer(stored, np.uint8), positions, out)
                return out

            assert np.array_equal(decode(stored, model), raw)
            for damaged in changed_bytes(stored):
                seen[outcome(lambda damaged=damaged, model=model: decode(damaged, model))] += 1
            for damaged in changed_bytes(model):
                seen[outcome(lambda damaged=damaged, stored=stored: decode(stored, damaged))] += 1
            assert (guarded[:64] == 0xEE).all()
            assert (guarded[-64:] == 0xEE).all()
            if info.is_mask:
                unnoticed_in_masks = seen["decoded"]
        assert all(seen.values())
        # a stream ends in known states: hardly a change goes unnoticed, but offsets in bins can be any
        assert unnoticed_in_masks < 100

    @settings(max_examples=examples(200), deadline=None)
    @given(st.binary(max_size=200), st.binary(max_size=60), st.sampled_from([1, 2, 4, 8]))
    def test_any_bytes(self, stored, model, width):
        data, out = np.frombuffer(stored, np.uint8), np.empty(64 * 100, np.uint8)
        cols = out.size // width
        for info, positions in (
            (ArrayInfo(width, 1, cols), Positions(1, cols, None)),
            (ArrayInfo(1, 512, 100, is_mask=True), Positions(512, 100, None)),
        ):
            found = outcome(lambda info=info, positions=positions: RANS.coder(model, info).decode(data, positions, out))
            assert found in ("rans-stream", "rans-model", "decoded")


class TestFiles:
    @pytest.mark.parametrize("layout", ["dense", "bitmask"])
    @pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "I8", "F8_E4M3"])
    @pytest.mark.parametrize("instructions", ["portable", isa.ISA])
    def test_values_of_rows_and_columns_that_differ(self, layout, dtype, instructions, monkeypatch):
        pretend(monkeypatch, ISA=instructions)
        rng = np.random.default_rng(6)
        scale = np.exp2(rng.standard_normal((5000, 1)) + rng.standard_normal(330))
        array = (rng.standard_normal(scale.shape) * (rng.random(scale.shape) < 0.6) * scale).clip(-100, 100)
        array = array.astype(DTYPES[dtype].numpy)
        data = check_file_round_trip({"w": array}, layout=layout, codec="rans")
        index = sparsefmt.container.reader.Reader(sparsefmt.container.sources.Memory(data)).index
        entry = index.tensors["w"]
        assert entry.tiles > 1
        coder = ElementCoder(
            read_model(entry.models["values"], 8 * array.itemsize, 330), ArrayInfo(array.itemsize, 5000, 330)
        )
        assert coder.model.classes.rows > 1
        assert coder.model.classes.columns is not None
        # what it would take without classes
        bits = array.view(f"u{array.itemsize}").ravel()
        plain = model_of(bits[bits != 0] if layout == "bitmask" else bits)
        kept = frozen(bits[(bits != 0) & (bits != DTYPES[dtype].negative_zero)] if layout == "bitmask" else bits)
        size = len(coder_of(plain, array.itemsize).encode(kept.view(np.uint8), None))
        stored = sum(int(index.chunk(entry, tile, "values")["stored"]) for tile in range(entry.tiles))
        assert stored < 0.995 * size

    def test_slice_offsets_take_no_byte(self, tmp_path):
        array = pruned(np.random.default_rng(1), (300, 500), DTYPES["U16"], 0.8)
        sparsefmt.save_file({"w": array}, tmp_path / "w", codec="rans")
        with sparsefmt.open_file(tmp_path / "w") as file:
            entry = file.reader.index.tensors["w"]
            assert entry.codecs == {"mask": "rans", "slice_offsets": "rans", "values": "raw"}
            assert int(file.reader.index.chunk(entry, 0, "slice_offsets")["stored"]) == 0
            assert set(entry.models) == {"mask"}

    def test_auto_is_the_smallest(self):
        rng = np.random.default_rng(2)
        array = rng.standard_normal((256, 512)).astype(np.float32) * (rng.random((256, 512)) < 0.3)
        sizes = {codec: len(sparsefmt.save({"w": array}, codec=codec)) for codec in ("raw", "zstd", "rans", "auto")}
        assert sizes["auto"] == min(sizes.values())
        assert sizes["rans"] < sizes["zstd"] < sizes["raw"]

    def test_what_repeats_is_left_to_zstd(self):
        """No sample shows that the second half of a tile is the first one again."""
        rng = np.random.default_rng(2)
        half = rng.standard_normal((128, 2048)).astype(np.float32)
        sizes = {}
        for codec in ("rans", "zstd", "auto"):
            sizes[codec] = len(sparsefmt.save({"w": np.concatenate([half, half])}, codec=codec))
        assert sizes["zstd"] < 0.7 * sizes["rans"]
        assert sizes["auto"] <= 1.001 * sizes["zstd"]

    def test_the_same_bytes_for_any_number_of_threads(self):
        array = pruned(np.random.default_rng(3), (3000, 1100), DTYPES["F32"], 0.8, negative_zeros=True)
        assert sparsefmt.save({"w": array}, codec="rans", threads=1) == sparsefmt.save(
            {"w": array}, codec="rans", threads=3
        )

    def test_noise_is_stored_as_it_is(self):
        array = random_bits(np.random.default_rng(4), (100, 100), DTYPES["F32"])
        assert len(sparsefmt.save({"w": array}, codec="rans")) <= len(sparsefmt.save({"w": array}, codec="raw"))

    def test_loading_takes_little_more_than_what_is_loaded(self, tmp_path):
        rng = np.random.default_rng(5)
        array = rng.standard_normal((2048, 4096)).astype(np.float32) * (rng.random((2048, 4096)) < 0.3)
        sparsefmt.save_file({f"w{number}": array * np.float32(number) for number in (1, 2, 3)}, tmp_path / "w")
        code = """
import sys, sparsefmt
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10
with sparsefmt.open_file(sys.argv[1]) as file:
    file.get_tensor("w1")  # compiles, and fills caches
open("/proc/self/clear_refs", "w").write("5")
before = peak()
loaded = sparsefmt.load_file(sys.argv[1])
print(peak() - before, sum(tensor.nbytes for tensor in loaded.values()))
"""
        if not Path("/proc/self/clear_refs").exists():
            pytest.skip("needs Linux's peak of resident memory")
        run = [sys.executable, "-c", code, str(tmp_path / "w")]
        peak, loaded = map(int, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
        assert peak < 1.15 * loaded + (64 << 20)
