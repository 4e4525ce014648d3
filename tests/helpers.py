"""Checks that every layout, codec and dtype goes through, and the tensors to put through them."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import prod
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from click.testing import Result as CliResult
from hypothesis import strategies as st

import sparsefmt
from sparsefmt import compiling, isa
from sparsefmt.cli import main
from sparsefmt.codecs.contract import ArrayInfo, Chunk, Codec, Each
from sparsefmt.dtypes import DTYPES, DType, as_bits, dtype_of
from sparsefmt.layouts import FORMS, LAYOUTS, heights
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling

ROOT = Path(__file__).parent.parent
SPARSE = [name for name in LAYOUTS if name != "dense"]
SPARSE_FORMS = [form for form, layout in FORMS.items() if layout.sparse]
CODECS = ["raw", "zstd", "rans", "auto"]
PRUNABLE = [dtype for dtype in DTYPES.values() if dtype.prunable]
THOROUGH = bool(os.environ.get("SPARSEFMT_THOROUGH"))
WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 130]


def first_always(values: Iterable[Any], count: int = 1, *, several: bool = False) -> list[Any]:
    """Parameters of a test that always runs with the first ones, `count` of them, and with all in thorough runs.

    `several`: each value is a tuple, for several arguments of the test.
    """
    values = list(values)
    groups = values if several else [(value,) for value in values]
    return values[:count] + [pytest.param(*group, marks=pytest.mark.thorough) for group in groups[count:]]


def examples(count: int) -> int:
    """How many examples hypothesis makes: so many in thorough runs, else a third."""
    return count if THOROUGH else count // 3


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Elements of every bit pattern that the dtype has, NaN payloads and subnormals included."""
    if dtype.name == "BOOL":
        return rng.integers(0, 2, shape).astype(np.bool_)
    high = 1 << min(dtype.nbits, 64)
    bits = rng.integers(0, high, shape, dtype=np.uint64).astype(dtype.bits_dtype)
    return bits.view(dtype.numpy)


def pruned(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, sparsity: float, negative_zeros: bool = False
) -> np.ndarray:
    """Any bit patterns, of which about `sparsity` are zero, half of the zeros -0.0 if asked for."""
    array = random_bits(rng, shape, dtype)
    zeros = rng.random(shape) < sparsity
    bits = as_bits(array, dtype).copy()
    bits[zeros] = 0
    if negative_zeros:
        bits[zeros & (rng.random(shape) < 0.5)] = dtype.negative_zero
    return bits.view(dtype.numpy)


def weights(
    rng: np.random.Generator, shape: tuple[int, ...], numpy_dtype: object, sparsity: float, negative_zeros: bool = False
) -> np.ndarray:
    """Finite Gaussian weights as pruning leaves them."""
    values = rng.standard_normal(shape).astype(np.float32)
    if np.dtype(numpy_dtype).kind in "iu":
        values = np.abs(values) * 40 if np.dtype(numpy_dtype).kind == "u" else values * 40
    mask = rng.random(shape) >= sparsity
    values = values * mask if negative_zeros else np.where(mask, values, 0)
    return values.astype(numpy_dtype)


def skewed(seed: int, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """A tensor whose rows have equally many nonzeros, or very different ones: which, the seed decides."""
    rng = np.random.default_rng(seed)
    rows, cols = shape[0], prod(shape[1:])
    share = rng.choice([0.0, 0.01, 0.05, 0.2, 0.3, 0.5, 0.75, 0.95, 1.0])
    shares = {
        "even": np.full(rows, share),
        "few full rows": np.where(rng.random(rows) < 0.1, 1.0, share / 10),
        "one full row": np.where(np.arange(rows) == rng.integers(rows), 1.0, 0.0),
        "any": rng.random(rows) ** rng.integers(1, 10),
    }[rng.choice(["even", "few full rows", "one full row", "any"])]
    bits = as_bits(random_bits(rng, (rows, cols), dtype), dtype) | 1
    bits[rng.random((rows, cols)) >= shares[:, None]] = 0
    return bits.view(dtype.numpy).reshape(shape)


def layout_nbytes(tensor: sparsefmt.SparseTensor | np.ndarray) -> int:
    """Bytes of all arrays of a tensor but `negative_zeros`."""
    if isinstance(tensor, np.ndarray):
        return tensor.nbytes
    tiles = tensor.operand().tiles
    return sum(array.nbytes for tile in tiles for array in tile.arrays.values())


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal dtype, shape and bits."""
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the bit, as results of products; NaNs need only be NaNs."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    unsigned = f"u{actual.dtype.itemsize}"
    same = (actual.view(unsigned) == expected.view(unsigned)) | (np.isnan(actual) & np.isnan(expected))
    assert same.all(), f"{np.count_nonzero(~same)} of {same.size} elements differ"


def dense(tensor: sparsefmt.SparseTensor | np.ndarray) -> np.ndarray:
    return tensor.todense() if isinstance(tensor, sparsefmt.SparseTensor) else tensor


def in_form(array: np.ndarray, form: str, tile_rows: int = 0) -> sparsefmt.SparseTensor:
    """A matrix in a layout's form, which need not be the one that is chosen for it, in tiles of so many rows."""
    dtype, (rows, cols) = dtype_of(array.dtype), array.shape
    tiling = Tiling(dtype, array.shape, FORMS[form], tile_rows or heights.sparse_tile_rows(rows, cols))
    bits = as_bits(array, dtype)
    parts = [bits[slice(*tiling.tile_range(number))] for number in range(tiling.tiles)]
    return sparsefmt.SparseTensor(tiling, [Tile.from_dense(FORMS[form], part, dtype) for part in parts])


def check_layout_round_trip(array: np.ndarray, dtype: DType, layout: str) -> None:
    """One tile: laid out, checked, back to the same bits as a whole and by rows, and in every other form.

    layout: by its form.
    """
    bits = as_bits(array, dtype).reshape(array.shape[0], -1)
    rows, cols = bits.shape
    tile = Tile.from_dense(FORMS[layout], bits, dtype)
    assert tile.shape == (rows, cols)
    tile.check_sizes()
    tile.check()
    for begin, end in ((0, rows), (rows // 3, rows - rows // 4), (rows - 1, rows)):
        assert np.array_equal(tile.to_dense(begin, end), bits[begin:end])
    for other in SPARSE_FORMS if dtype.prunable else ["dense"]:
        check_same_tiles(tile.to_layout(FORMS[other]), Tile.from_dense(FORMS[other], bits, dtype))


def check_same_tiles(left: Tile, right: Tile) -> None:
    """Equal layout, dtype, shape and arrays, `negative_zeros` included; read-only arrays."""
    assert (left.layout, left.dtype, left.shape) == (right.layout, right.dtype, right.shape)
    assert left.all_arrays().keys() == right.all_arrays().keys()
    for name, data in right.all_arrays().items():
        assert same_bits(left[name], data), name
        assert not left[name].flags.writeable, name


def each_of(*chunks: Chunk) -> Each:
    """What `Codec.fit` is given, for an array of these chunks."""

    class Given(Each):
        def chunk(self, number: int) -> Chunk:
            return chunks[number]

    return Given(len(chunks), 1)


def check_codec_round_trip(codec: Codec, raw: np.ndarray, info: ArrayInfo) -> None:
    """One tile: encoding changes neither input nor bits, and decoding by the stored model gives it back."""
    before = raw.copy()
    model, fitted = codec.fit(info, each_of(Chunk(raw, range(info.rows), None)))
    assert fitted is not None
    coder = codec.coder(model, info)
    encoded = np.frombuffer(fitted.encode(raw, None), np.uint8)
    assert bytes(coder.encode(raw, None)) == encoded.tobytes()  # the model says all that was found out
    assert np.array_equal(raw, before)
    out = np.full(raw.size, 0xAA, np.uint8)
    if codec.name == "raw":
        out[:] = encoded  # a chunk as long as the raw bytes is used as it is
    else:
        coder.decode(encoded, None, out)
    assert np.array_equal(out, raw)


def check_file_round_trip(tensors: dict[str, np.ndarray], layout: str = "auto", codec: str = "auto") -> bytes:
    """Saved and loaded in every way, all tensors come back to the bit. Returns the file."""
    data = sparsefmt.save(tensors, {"key": "text"}, layout=layout, codec=codec)
    for loaded_as in ("auto", "dense", *SPARSE):
        loaded = sparsefmt.load(data, layout=loaded_as)
        assert list(loaded) == sorted(tensors)
        for name, array in tensors.items():
            expected = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).reshape(array.shape)
            assert same_bits(dense(loaded[name]), expected), name
    return data


def peak_of(call: Callable[[], Any]) -> tuple[Any, int]:
    """What call() returns, and the most bytes that Python and numpy held at a time meanwhile."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def in_threads(work: Callable[[Any], object], items: Iterable[Any]) -> None:
    """work(item) for all items at once, each in a thread of its own. Raises what the first that failed has raised."""
    each = list(items)
    with ThreadPoolExecutor(len(each)) as pool:
        for done in [pool.submit(work, item) for item in each]:
            done.result()


def run_command(*arguments: object) -> CliResult:
    """What `sparsefmt` does with these arguments. Any exception but an exit is a failure."""
    # whether it would say that it compiles depends on what this process has compiled before
    compiling.watch._told = True
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def check_progress(steps: list[int], total: int) -> None:
    """Progress goes forward only, never beyond the total, and ends there; `steps` are what each call added to it."""
    assert total > 0
    assert min(steps) >= 0
    assert sum(steps) == total


def succeed(*arguments: object) -> str:
    """What a command that succeeds prints; nothing on stderr."""
    result = run_command(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def fail(code: int, *arguments: object) -> str:
    """The one line on stderr with which a command fails."""
    result = run_command(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    prefix, message = result.stderr.rstrip("\n").split("sparsefmt: error: ")
    assert prefix == ""
    return message


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """What a fresh process prints that runs the code with these arguments, and with these environment variables."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pretend(monkeypatch: pytest.MonkeyPatch, **found: Any) -> None:
    """Let the library find other instructions, `ISA="avx2"` and the like, where it asks for them as it runs.

    What asks for them once, as it is imported, is imported before: else this process, and the cache of compiled code,
    would have functions that do not fit together.
    """
    for package in ("kernels", "layouts", "positions", "codecs"):
        folder = Path(sparsefmt.__file__).parent / package
        for module in walk_packages([str(folder)], f"sparsefmt.{package}."):
            importlib.import_module(module.name)
    for name, value in found.items():
        monkeypatch.setattr(isa, name, value)


def open_below(folder: Path) -> list[str]:
    """The files of a folder that this process has open, removed ones too, each as often as it is open.

    All descriptors of the process would not do: threads that other tests have left open and close theirs at any time.
    Empty where the system does not say what is open.
    """
    opened, beginning = [], f"{os.path.realpath(folder)}{os.sep}"
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        with suppress(OSError):  # closed meanwhile
            opened.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(name for name in opened if name.startswith(beginning))


def names_in(folder: Path) -> list[str]:
    """All that is in a folder, hidden files too, sorted."""
    return sorted(os.listdir(folder))


def check_signature(ours: Callable, theirs: Callable, of_its_own: tuple[str, ...] = ()) -> None:
    """A twin takes what its original takes, in the same way; what it takes besides, by keyword, as `save_file` does."""
    expected, found = inspect.signature(theirs).parameters, inspect.signature(ours).parameters
    extra = ["layout", "codec", "negative_zeros"] if "save" in ours.__name__ else []
    assert list(found) == [*expected, *extra, *of_its_own]
    assert all(found[keyword].kind is inspect.Parameter.KEYWORD_ONLY for keyword in of_its_own)
    for parameter in expected.values():
        assert (found[parameter.name].kind, found[parameter.name].default) == (parameter.kind, parameter.default)
    for keyword in extra:
        assert found[keyword].kind is inspect.Parameter.KEYWORD_ONLY
        assert found[keyword].default == inspect.signature(sparsefmt.save_file).parameters[keyword].default


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """0-d, empty, vectors, and matrices whose widths are around what layouts and vectors care about."""
    side = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 17])
    return st.one_of(
        st.just(()),
        st.tuples(side),
        st.tuples(side, st.sampled_from([0, *WIDTHS])),
        st.tuples(st.sampled_from(WIDTHS), side),
        st.tuples(side, st.sampled_from([1, 2, 5]), st.sampled_from([1, 3]), st.sampled_from([0, 1, 3])),
    )


@st.composite
def far_apart(draw: st.DrawFn) -> np.ndarray:
    """Matrices with few nonzeros in a row, at distances that gaps of 8 bits reach, and do not reach; -0.0 between."""
    dtype = draw(st.sampled_from(PRUNABLE))
    rows = draw(st.sampled_from([1, 2, 3, 15, 16, 17, 33]))
    distance = st.sampled_from([1, 2, 100, 127, 128, 129, 254, 255, 256, 257, 509, 510, 511, 512, 765, 766, 1100])
    distances = [draw(st.lists(distance, max_size=5)) for _ in range(min(rows, 5))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cols = max(map(sum, distances)) + draw(st.sampled_from([0, 1, 255, 256]))
    bits = np.zeros((rows, max(cols, 1)), dtype.bits_dtype)
    if dtype.negative_zero and draw(st.booleans()):
        bits[rng.random(bits.shape) < 0.05] = dtype.negative_zero
    for row in range(rows):
        of_row = rng.permutation(distances[row % len(distances)])
        # the last column of all may be one
        columns = np.cumsum(of_row).astype(np.int64) - draw(st.sampled_from([0, 1])) if len(of_row) else []
        bits[row, np.minimum(columns, bits.shape[1] - 1).astype(np.int64)] = 3
    return bits.view(dtype.numpy)


def arrays(dtypes: list[DType] | None = None) -> st.SearchStrategy[np.ndarray]:
    """Arrays of any dtype, shape, sparsity, with any bits."""

    def build(dtype: DType, shape: tuple[int, ...], sparsity: float, negative: bool, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if not dtype.prunable:
            return random_bits(rng, shape, dtype)
        return pruned(rng, shape, dtype, sparsity, negative)

    return st.builds(
        build,
        st.sampled_from(dtypes or list(DTYPES.values())),
        shapes(),
        st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95, 1.0]),
        st.booleans(),
        st.integers(0, 2**32 - 1),
    )
