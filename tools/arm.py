"""What an ARM processor computes, in an emulator, compared bit by bit with what this machine does.

    python -m tools.arm                     every layout, type of values and way of multiplying; takes minutes
    python -m tools.arm --cpu neoverse-v1

Kernels, what arranges activations for them, and what moves elements between dense rows and layouts (`arm_moves.py`),
are compiled for that processor by numba's LLVM (`cycles_code.py`), linked into a small program, and run by qemu-aarch64
on an image of the memory that they have.

Needs Debian's packages qemu-user, gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
"""

from __future__ import annotations

import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from tools import arm_moves
from tools.arm_moves import Moves

EMULATOR, COMPILER = "qemu-aarch64", "aarch64-linux-gnu-gcc"
PACKAGES = "qemu-user, gcc-aarch64-linux-gnu, libc6-dev-arm64-cross"

ROOM_BEHIND = 128
"""Bytes behind each array: kernels read up to 64 of them."""


@dataclass
class Case:
    """A product: an operand taken apart, activations, and the result that is expected.

    Attributes:
        matrix: fields of `operand.Matrix`.
        arrays: those of the only tile, in the order in which kernels find them.
        x: (tokens, cols); of int8 for integers of eight bits, with zeros up to a multiple of four columns.
        scales: (groups, rows), if there are several groups of columns.
    """

    matrix: tuple[Any, ...]
    arrays: list[np.ndarray]
    pieces: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scales: np.ndarray | None = None

    @property
    def name(self) -> str:
        form, dtype, rows, cols, _, groups = self.matrix[1:]
        by_groups = f", {groups} groups" if groups > 1 else ""
        return f"{form} {dtype} {rows}x{cols}{by_groups} {len(self.x)} tokens of {self.x.dtype}"


def missing() -> list[str]:
    """What of the system's programs is not there."""
    return [name for name in (EMULATOR, COMPILER) if shutil.which(name) is None]


def cases(tokens: tuple[int, ...] = (1, 6, 13, 40)) -> Iterator[Case]:
    """Products of all layouts and types that kernels widen themselves, with odd numbers of rows and columns."""
    import ml_dtypes

    import sparsefmt
    from sparsefmt.kernels.operand import _ARRAYS

    rng = np.random.default_rng(0)
    for layout, density in (("bitmask", 0.5), ("dense", 0.9), ("permuted", 0.4), ("permuted", 0.002)):
        floats = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)
        for dtype in (*floats, np.int8, np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
            rows, cols = (37, 301) if density > 0.01 else (40, 3000)
            if dtype in floats:
                dense = rng.standard_normal((rows, cols)).astype(dtype)
                # subnormal halves, and the largest
                dense[0, :3] = 6e-8, -3e-7, 6e4
            else:
                dense = rng.integers(0, 256, (rows, cols), dtype=np.uint8).view(dtype)
                dense[~np.isfinite(dense.astype(np.float32))] = 1
            dense[rng.random(dense.shape) >= density] = 0
            operand = sparsefmt.SparseTensor.from_dense(dense, layout=layout).operand()
            (tile,) = operand.tiles
            arrays = [np.array(tile[name]) for name in _ARRAYS[operand.matrix.form]]
            for count in tokens:
                x = rng.standard_normal((count, cols)).astype(np.float64 if dtype is np.float64 else np.float32)
                y = np.empty((count, rows), x.dtype)
                sparsefmt.linear(x, sparsefmt.SparseTensor.from_dense(dense, layout=layout), out=y)
                yield Case(tuple(operand.matrix), arrays, operand.whole.pieces.copy(), x, y)


def eight_bit_cases(tokens: tuple[int, ...] = (1, 3, 13)) -> Iterator[Case]:
    """Products of weights and activations of eight bits, whose sums are integers there."""
    import sparsefmt
    from sparsefmt.kernels.operand import _ARRAYS
    from sparsefmt.kernels.recipe import rows_of_dots

    rng = np.random.default_rng(0)
    for rows, cols, groups in ((37, 301, 1), (40, 1160, 1), (37, 280, 7)):
        dense = rng.integers(-128, 128, (rows, cols), dtype=np.int8)
        dense[rng.random(dense.shape) < 0.5] = 0
        # the largest sums
        dense[0] = -128
        scales = None if groups == 1 else rng.random((groups, rows)).astype(np.float32)
        w = sparsefmt.SparseTensor.from_dense(dense, layout="bitmask")
        (tile,) = w.operand().tiles
        for count in tokens:
            x = np.zeros((count, rows_of_dots(cols)), np.int8)
            x[:, :cols] = rng.integers(-127, 128, (count, cols))
            x[-1, :cols] = -127
            # what is not the kernels' is left out: these activations stay what they are, and have a scale of 1
            y = sparsefmt.linear(
                x[:, :cols].astype(np.float32),
                w,
                scale=None if scales is None else np.ascontiguousarray(scales.T),
                activations="int8",
                input_scale=1,
            )
            arrays = [np.array(tile[name]) for name in _ARRAYS["bitmask"]]
            matrix = w.operand().matrix._replace(groups=groups)
            yield Case(tuple(matrix), arrays, w.operand().whole.pieces.copy(), x, y, scales)


class Image:
    """Memory of a product, with the places of the addresses in it: they count from its beginning.

    Attributes:
        functions: places where the address of a function stands, and its number in the program.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.addresses: list[int] = []
        self.functions: list[tuple[int, int]] = []

    def put(self, array: np.ndarray | bytes | int) -> int:
        """Add an array, or so many bytes, in lines of their own. Returns where it begins."""
        content = bytes(array) if isinstance(array, int) else np.frombuffer(array, np.uint8).tobytes()
        self.data += bytes(-len(self.data) % 64)
        begin = len(self.data)
        self.data += content + bytes(ROOM_BEHIND)
        return begin

    def numbers(self, numbers: list[int], addresses: set[int]) -> int:
        """Add integers, those at some indices being addresses."""
        begin = self.put(np.array(numbers, np.int64).tobytes())
        self.addresses += [begin + 8 * index for index in sorted(addresses)]
        return begin


@dataclass
class _Function:
    """In place of the address of a kernel's machine code."""

    kernel: Any


def write_image(case: Case, path: Path, number_of: Callable[[Any], int]) -> None:
    """The image of a case, and what is to be called. In the process that compiles.

    Args:
        number_of: the number of a function in the program.
    """
    from sparsefmt.kernels import expand
    from sparsefmt.kernels.job import BYTES
    from sparsefmt.kernels.kinds import DOTS, F32, F64
    from sparsefmt.kernels.operand import LINE, SCALES, Matrix
    from sparsefmt.kernels.plans import PLANS, bitmask_and_dense
    from sparsefmt.kernels.plans.contract import NOT_ACROSS, Step
    from sparsefmt.kernels.recipe import kind_of

    matrix, image = Matrix(*case.matrix), Image()
    summed = DOTS if case.x.dtype == np.int8 else F64 if case.y.dtype == np.float64 else F32
    kind = kind_of(matrix.dtype, summed).values
    places = [image.put(array.tobytes()) for array in case.arrays]
    line, in_line = [0, matrix.rows, *places], set(range(2, 2 + len(places)))
    line += [0] * (LINE // 8 - len(line))
    if case.scales is not None:
        line[SCALES] = image.put(case.scales.tobytes())
        in_line.add(SCALES)
    table = image.numbers(line, in_line)
    pieces, x, y = image.put(case.pieces.tobytes()), image.put(case.x.tobytes()), image.put(case.y.nbytes)
    calls = []
    # where a kernel calls another one, there is no address of it yet
    bitmask_and_dense.native = _Function  # type: ignore[assignment]
    for plan in PLANS[matrix.layout](matrix, kind, len(case.x), NOT_ACROSS):
        arranged, sums, scratch = (image.put(size) for size in (plan.arranged, plan.sums, plan.scratch))
        own, addresses = list(plan.own), {0, 1, 2, 3, 7, 9}
        if matrix.layout == "bitmask" and expand.tables(kind) in own and expand.tables(kind):
            place = own.index(expand.tables(kind))
            own[place] = image.put(expand._TABLES[kind].tobytes())
            addresses.add(13 + place)
        called = {13 + place: one.kernel for place, one in enumerate(own) if isinstance(one, _Function)}
        own = [0 if isinstance(one, _Function) else one for one in own]
        pitch = case.x.shape[1]
        job = [
            *(table, pieces),
            arranged if plan.arranged else x + plan.first * pitch * case.x.itemsize,
            sums if plan.sums else y + plan.first * matrix.rows * case.y.itemsize,
            *(matrix.cols, plan.tokens, matrix.rows, x, pitch, y, matrix.rows, plan.first, 0, *own),
        ]
        job_at = image.numbers(job + [0] * (BYTES // 8 - len(job)), addresses)
        image.functions += [(job_at + 8 * place, number_of(kernel)) for place, kernel in called.items()]
        for step in (plan.before, Step(plan.kernel, len(case.pieces)), plan.behind):
            if step is not None:
                calls.append((number_of(step.run), job_at, step.units, scratch))
    head = [len(image.data), y, case.y.nbytes, len(image.addresses), len(image.functions), *image.addresses]
    numbers = [*head, *(number for pair in image.functions for number in pair), len(calls)]
    numbers += [number for call in calls for number in call]
    path.write_bytes(struct.pack(f"<{len(numbers)}q", *numbers) + image.data)


def write_moves(case: Moves, path: Path, number_of: Callable[[Any], int]) -> None:
    """The same of a case of what moves elements: one step."""
    from tools.arm_moves import ROUNDS, step

    image = Image()
    places = [image.put(array.tobytes()) for array in case.arrays]
    y = image.put(case.y.nbytes)
    job_at = image.numbers([*places, y], set(range(len(places) + 1)))
    head = [len(image.data), y, case.y.nbytes, len(image.addresses), 0, *image.addresses]
    numbers = [*head, 1, number_of(step(case.width)), job_at, ROUNDS, 0]
    path.write_bytes(struct.pack(f"<{len(numbers)}q", *numbers) + image.data)


def compile_cases(cpu: str, folder: Path) -> None:
    """In a process of its own: objects and images of the cases that lie in a folder."""
    from tools.bench.cycles_code import compile_for, library_of_job

    compile_for(cpu)
    symbols: dict[Any, str] = {}

    def number_of(function: Any) -> int:
        if function not in symbols:
            symbol, library = library_of_job(function)
            (folder / f"step{len(symbols)}.o").write_bytes(library._codegen._tm.emit_object(library._final_module))
            symbols[function] = symbol
        return list(symbols).index(function)

    for number, case in enumerate(pickle.loads((folder / "cases.pickle").read_bytes())):
        write = write_moves if isinstance(case, Moves) else write_image
        write(case, folder / f"{number}.image", number_of)
    signature = "(void **, void **, int64_t, int64_t, int64_t, int64_t)"
    lines = [f'int32_t step{number}{signature} __asm__("{symbol}");' for number, symbol in enumerate(symbols.values())]
    names = ", ".join(f"step{number}" for number in range(len(symbols)))
    (folder / "steps.h").write_text("\n".join([*lines, f"static int32_t (*const STEPS[]){signature} = {{{names}}};"]))


def differences(cpu: str, wanted: Sequence[Case | Moves]) -> list[str]:
    """Names of the cases whose results differ in a bit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cases.pickle").write_bytes(pickle.dumps(list(wanted)))
        subprocess.run([sys.executable, "-m", "tools.arm", "--cpu", cpu, "--compile", name], check=True)
        source, program = Path(__file__).with_name("arm_run.c"), folder / "run"
        objects = sorted(folder.glob("*.o"))
        subprocess.run([COMPILER, "-O1", "-static", f"-I{name}", source, *objects, "-o", program], check=True)
        found = []
        for number, case in enumerate(wanted):
            result = folder / "result"
            # all that LLVM may use of these processors
            command = [EMULATOR, "-cpu", "max", program, folder / f"{number}.image", result]
            done = subprocess.run(command, check=False)
            if done.returncode or result.read_bytes() != case.y.tobytes():
                found.append(case.name)
        return found


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cpu", default="cortex-a76", show_default=True)
@click.option("--compile", "folder", type=click.Path(path_type=Path), hidden=True)
def main(cpu: str, folder: Path | None) -> None:
    if folder is not None:
        compile_cases(cpu, folder)
        return
    if missing():
        raise click.ClickException(f"{' and '.join(missing())} not found; install Debian's packages {PACKAGES}")
    wanted = [*arm_moves.cases(), *cases(), *eight_bit_cases()]
    found = differences(cpu, wanted)
    click.echo(f"{len(wanted)} cases, {len(found)} with other bits")
    for name in found:
        click.echo(f"differs: {name}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
