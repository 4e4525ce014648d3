"""`sparsefmt bench`: how fast the tensors of a file are multiplied, next to dense ones."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
from click.core import ParameterSource

from sparsefmt.cli import Failure, options, printable
from sparsefmt.container.entry import TensorEntry
from sparsefmt.interchange.checkpoints import Checkpoint
from sparsefmt.interchange.contract import naming
from sparsefmt.interchange.sparse import SparsefmtFile
from sparsefmt.layouts import LAYOUTS
from sparsefmt.threads import ENVIRONMENT_VARIABLE

if TYPE_CHECKING:
    from sparsefmt.opened import SparseFile

JSON_VERSION = 1
"""Raised when a key of the --json output changes its meaning or goes; new keys do not count."""

MOST_ROWS = 40
"""Rows of a table; of more groups, the largest are shown."""

SECONDS = 1.0
"""For the turns of one tensor and batch size: after these, turns end, unless they are fewer than LEAST_REPEATS."""

LEAST_REPEATS = 3
TOKENS_TO_CHECK = 16
"""Rows of activations, at least, whose outputs are searched for the largest: a single one may be near 0 by chance."""

TOLERANCE = 1e-4
"""Of the largest output. float32 sums of a few thousand terms in another order differ by about a hundredth of that."""

OURS = "sparsefmt"
Product = Callable[[], Any]
"""x @ weight.T, of arrays that it knows."""

_clock = time.perf_counter


@click.command(
    short_help="Time the products of a file's tensors, next to dense ones.",
    epilog="""\b
Examples:
  sparsefmt bench model.sparsefmt
  sparsefmt bench model.sparsefmt --batch 1 --batch 128 --threads 1
  sparsefmt bench model.sparsefmt --layout bitmask --name 'layers.*.mlp.*'
  sparsefmt bench llama-pruned-sparsefmt/ --json | jq '.total.products[].speed'

\b
With --json, one object, times in seconds:
  json_version         1
  path, threads        what was measured, with how many threads
  libraries            version of each that makes dense products
  left_out             tensors stored dense, which are not measured
  groups               one object for tensors that are alike, of which one was measured:
    shape, dtype, layout, zeros (in percent)
    count, tensors     how many, and their names
    nbytes, dense_nbytes   of one, in memory
    not_finite         whether some outputs are Inf or NaN, which were not compared
    products           one object for each batch size:
      batch, repeats
      seconds, spread  median, and quartile distance over median
      dense_seconds    median of the fastest dense product
      speed            dense_seconds / seconds
      dense            all of them, the fastest first: library, threads (null: its own number),
                       seconds, spread
  total                groups times count: tensors, nbytes, dense_nbytes, products (batch, seconds,
                       dense_seconds, speed)
  faults               a sentence for each product that was wrong
""",
)
@click.argument("path", type=options.PATH, metavar="FILE")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 32),
    metavar="N",
    help="Rows of activations; may be given several times.  [default: 1 and 32]",
)
@options.threads
@click.option(
    "--layout",
    type=click.Choice(["auto", *(name for name, layout in LAYOUTS.items() if layout.sparse)]),
    default="auto",
    show_default=True,
    help="The layout to multiply in, as in load_file.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=LEAST_REPEATS),
    default=21,
    show_default=True,
    metavar="N",
    help=f"Times that each product is timed; fewer, but at least {LEAST_REPEATS}, where that takes long.",
)
@click.option(
    "--name",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Only tensors of such a name, * standing for anything; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, described below.")
@click.pass_context
def command(
    ctx: click.Context,
    path: Path,
    batches: tuple[int, ...],
    threads: int,
    layout: str,
    repeats: int,
    patterns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Time `sparsefmt.linear` on the tensors of a .sparsefmt file, or of a folder of them, next to dense products.

    Dense are the same weights in float32, multiplied by numpy, and by torch if it is installed, on as many threads and
    on one; the fastest counts. All take turns, compiling is not timed, and the outputs are compared: exit code 1 if
    they differ. Tensors alike in shape, dtype, layout and percent of zeros are measured once and counted as often as
    they occur; tied ones count once. Tensors that are stored dense are left out. Needs the memory of the largest
    tensor, dense in float32.
    """
    from sparsefmt.cli import output

    given = ctx.get_parameter_source("threads") == ParameterSource.COMMANDLINE or ENVIRONMENT_VARIABLE in os.environ
    with ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(path, ["sparsefmt"]))
        groups, left_out = _groups(checkpoint, patterns, layout, threads, stack)
        libraries = stack.enter_context(_dense_libraries(threads)) if groups else []
        total = sum(group.dense_nbytes for group in groups)
        with output.progress_bar("measuring", total, quiet=False) as progress:
            for group in groups:
                _measure(group, list(dict.fromkeys(batches)), libraries, threads, repeats)
                if progress:
                    progress(group.dense_nbytes)
    faults = [fault for group in groups for fault in group.faults]
    if as_json:
        click.echo(json.dumps(_as_object(path, groups, libraries, threads, left_out, faults), indent=2))
    elif groups:
        _print_tables(groups)
        for line in _notes(groups, libraries, threads, given):
            output.say(line)
    if not as_json:
        for line in _left_out(path, left_out, bool(groups)):
            output.say(line)
    for fault in faults:
        click.echo(f"sparsefmt: error: {printable(fault)}", err=True)
    if faults:
        ctx.exit(1)


class _Contender(NamedTuple):
    """Who multiplies: OURS or a library, and on how many threads; None: its own number."""

    library: str
    threads: int | None


@dataclass
class _Timing:
    """The products of one group with one batch size.

    Attributes:
        ours, dense: seconds of each repeat.
    """

    batch: int
    ours: list[float]
    dense: dict[_Contender, list[float]]

    @property
    def seconds(self) -> float:
        return statistics.median(self.ours)

    @property
    def ranking(self) -> list[_Contender]:
        """The dense products, the fastest first."""
        return sorted(self.dense, key=lambda who: statistics.median(self.dense[who]))

    @property
    def dense_seconds(self) -> float:
        return statistics.median(self.dense[self.ranking[0]])


def _spread(times: list[float]) -> float:
    """Quartile distance over the median."""
    first, median, third = statistics.quantiles(times, n=4)
    return (third - first) / median if median else 0.0


@dataclass
class _Group:
    """Tensors that are alike, of which the first is measured for all.

    Attributes:
        zeros: percent, rounded.
        file: has the first tensor.
        path: its name.
        nbytes: of the first tensor in memory.
        not_finite: whether its dense product has Inf or NaN, which cannot be compared.
        faults: a sentence for each product that was wrong.
    """

    layout: str
    zeros: int
    file: SparseFile
    path: Path
    entries: list[TensorEntry] = field(default_factory=list)
    nbytes: int = 0
    timings: list[_Timing] = field(default_factory=list)
    not_finite: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def first(self) -> TensorEntry:
        return self.entries[0]

    @property
    def dense_nbytes(self) -> int:
        """Of one tensor, in its own dtype."""
        return self.first.dense_nbytes


def _groups(
    checkpoint: Checkpoint, patterns: tuple[str, ...], layout: str, threads: int, stack: ExitStack
) -> tuple[list[_Group], int]:
    """What is to be measured, in the order of the files, and how many tensors are left out because they are dense.

    Files are opened again, as users open them: mapped where the checkpoint reads.
    """
    from sparsefmt import open_file

    groups: dict[object, _Group] = {}
    left_out = 0
    for part in checkpoint.files:
        assert isinstance(part, SparsefmtFile)
        index = part.reader.index
        wanted = {index.aliases.get(name, name) for name in index.names if _matches(name, patterns)}
        with naming(part.path):
            file = stack.enter_context(open_file(part.path, threads=threads))
        for entry in index.tensors.values():
            if entry.name not in wanted:
                continue
            if not entry.layout.sparse:
                left_out += 1
                continue
            assert entry.nnz is not None
            # the layout that loading will choose, so that its rule is in one place and nothing has to be loaded for it
            in_memory = file.layout_to_compute(entry) if layout == "auto" else layout
            zeros = round(100 * (1 - entry.nnz / entry.elements))
            key = (entry.shape, entry.dtype, in_memory, zeros)
            groups.setdefault(key, _Group(in_memory, zeros, file, part.path)).entries.append(entry)
    if patterns and not groups and not left_out:
        raise Failure(f"{checkpoint.path}: it has no tensor of a name like {' or '.join(map(repr, patterns))}", 2)
    return list(groups.values()), left_out


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # a name may have brackets, which mean something else in a pattern
    return not patterns or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class _Library:
    """What dense products are made with.

    Attributes:
        set_threads: lets it use so many from now on; None if nobody here can.
        product: from weights to a function of activations to what is to be timed.
        threads: the numbers of threads to time it on.
    """

    name: str
    version: str
    set_threads: Callable[[int], Any] | None
    product: Callable[[np.ndarray], Callable[[np.ndarray], Product]]
    threads: list[int | None]

    def prepare(self, threads: int | None) -> None:
        if self.set_threads and threads is not None:
            self.set_threads(threads)


@contextmanager
def _dense_libraries(threads: int) -> Iterator[list[_Library]]:
    """numpy, and torch if it is installed; their own numbers of threads come back at the end.

    Each is timed on one thread too: small products are faster so, and where somebody else takes a core, those whose
    threads wait for each other may be a hundred times slower, which would flatter us.
    """
    counts: list[int | None] = [*dict.fromkeys([threads, 1])]
    with ExitStack() as stack:
        set_threads = _set_numpy_threads(stack)
        # before torch comes, whose pools are not numpy's
        libraries = [_Library("numpy", np.__version__, set_threads, _numpy_product, counts if set_threads else [None])]
        with suppress(ImportError, OSError):  # OSError: one of its shared libraries does not load
            # by name, here as below: the package does without, and type checkers need not find it
            torch = importlib.import_module("torch")
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            libraries.append(_Library("torch", str(torch.__version__), torch.set_num_threads, _torch_product, counts))
        yield libraries


def _set_numpy_threads(stack: ExitStack) -> Callable[[int], None] | None:
    """A function that sets the threads of numpy's BLAS; None where threadpoolctl is not there, or does not know it."""
    with suppress(ImportError):
        threadpoolctl = importlib.import_module("threadpoolctl")
        pools = threadpoolctl.ThreadpoolController().select(user_api="blas")
        if pools.lib_controllers:
            stack.enter_context(pools.limit(limits=1))  # to have it undone

            def set_threads(threads: int) -> None:
                for pool in pools.lib_controllers:
                    pool.set_num_threads(threads)

            return set_threads
    return None


def _numpy_product(weight: np.ndarray) -> Callable[[np.ndarray], Product]:
    return lambda x: lambda: x @ weight.T


def _torch_product(weight: np.ndarray) -> Callable[[np.ndarray], Product]:
    from_numpy = importlib.import_module("torch").from_numpy
    wrapped = from_numpy(weight)

    def of(x: np.ndarray) -> Product:
        activations = from_numpy(x)
        return lambda: activations @ wrapped.T

    return of


def _measure(group: _Group, batches: list[int], libraries: list[_Library], threads: int, repeats: int) -> None:
    """Load the first tensor of a group, time its products, compare them."""
    from sparsefmt import SparseTensor, linear

    entry = group.first
    with naming(group.path):
        tensor = group.file.load(entry.name, group.layout)
    assert isinstance(tensor, SparseTensor)
    group.nbytes = tensor.nbytes
    # weights may be beyond float32, or not finite: that is no fault of theirs
    with np.errstate(all="ignore"):
        dense = tensor.todense(threads).astype(np.float32, copy=False).reshape(entry.rows, entry.cols)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((max(TOKENS_TO_CHECK, *batches), entry.cols), np.float32)
        reference = x @ dense.T
        scale = float(np.abs(reference[np.isfinite(reference)]).max(initial=0))
        group.not_finite = not np.isfinite(reference).all()
        products = [(library, library.product(dense)) for library in libraries]
        for batch in batches:
            part = x[:batch]

            def ours(part: np.ndarray = part) -> np.ndarray:
                return linear(part, tensor, threads=threads)

            difference = _difference(ours(), part @ dense.T)  # also compiles, and fills caches
            # float32 goes no lower than the last term
            if not difference <= TOLERANCE * scale + np.finfo(np.float32).tiny:
                group.faults.append(
                    f"{group.path}: tensor {entry.name!r}, batch {batch}: the product is not numpy's; it differs by "
                    f"{difference:.3g}, and the largest output is {scale:.3g}"
                )
            contenders: dict[_Contender, tuple[Callable[[], Any], Product]] = {
                _Contender(OURS, threads): (lambda: None, ours)
            }
            for library, product in products:
                run = product(part)
                for count in library.threads:
                    contenders[_Contender(library.name, count)] = (partial(library.prepare, count), run)
            times = _interleaved(contenders, repeats)
            group.timings.append(_Timing(batch, times.pop(_Contender(OURS, threads)), times))


def _difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest one, where the reference is finite: which of several overflows comes first is open elsewhere."""
    finite = np.isfinite(reference)
    return float(np.abs(ours[finite] - reference[finite].astype(np.float64)).max(initial=0))


def _interleaved(
    contenders: dict[_Contender, tuple[Callable[[], Any], Product]], repeats: int
) -> dict[_Contender, list[float]]:
    """Seconds of each: in turns, so that whatever else the machine does hits all alike.

    A turn is two runs, of which the second counts. Threads of BLAS and OpenMP go on spinning for a while after a
    product, at the cost of whoever comes next: timed at once, numpy after torch is several times slower than alone.

    Args:
        contenders: what each does before its turn, and its product.
    """
    times: dict[_Contender, list[float]] = {who: [] for who in contenders}
    began = _clock()
    for turn in range(repeats):
        if turn >= LEAST_REPEATS and _clock() - began > SECONDS:
            break
        for who, (prepare, run) in contenders.items():
            prepare()
            run()
            started = _clock()
            run()
            times[who].append(_clock() - started)
    return times


def _as_object(
    path: Path, groups: list[_Group], libraries: list[_Library], threads: int, left_out: int, faults: list[str]
) -> dict[str, Any]:
    everything = _Row("total", [(entry, group) for group in groups for entry in group.entries])
    return {
        "json_version": JSON_VERSION,
        "path": str(path),
        "threads": threads,
        "libraries": {library.name: library.version for library in libraries},
        "left_out": left_out,
        "groups": [_group_as_object(group) for group in groups],
        "total": {
            "tensors": len(everything.members),
            "nbytes": everything.nbytes,
            "dense_nbytes": everything.dense_nbytes,
            "products": [
                {"batch": batch, "seconds": ours, "dense_seconds": dense, "speed": dense / ours if ours else None}
                for batch, ours, dense, _ in everything.products()
            ],
        },
        "faults": faults,
    }


def _group_as_object(group: _Group) -> dict[str, Any]:
    return {
        "shape": list(group.first.shape),
        "dtype": group.first.dtype.name,
        "layout": group.layout,
        "zeros": group.zeros,
        "count": len(group.entries),
        "tensors": [entry.name for entry in group.entries],
        "nbytes": group.nbytes,
        "dense_nbytes": group.dense_nbytes,
        "not_finite": group.not_finite,
        "products": [
            {
                "batch": timing.batch,
                "repeats": len(timing.ours),
                "seconds": timing.seconds,
                "spread": _spread(timing.ours),
                "dense_seconds": timing.dense_seconds,
                "speed": timing.dense_seconds / timing.seconds if timing.seconds else None,
                "dense": [
                    {
                        "library": who.library,
                        "threads": who.threads,
                        "seconds": statistics.median(timing.dense[who]),
                        "spread": _spread(timing.dense[who]),
                    }
                    for who in timing.ranking
                ],
            }
            for timing in group.timings
        ],
    }


@dataclass
class _Row:
    """Tensors of one row of the tables, each with the group whose numbers are its own."""

    label: str
    members: list[tuple[TensorEntry, _Group]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for _, group in self.members)

    @property
    def dense_nbytes(self) -> int:
        return sum(entry.dense_nbytes for entry, _ in self.members)

    def products(self) -> list[tuple[int, float, float, float]]:
        """By batch size: it, seconds of all products, ours and dense, and the largest spread of ours."""
        columns = zip(*(group.timings for _, group in self.members), strict=True)
        return [
            (
                timings[0].batch,
                sum(timing.seconds for timing in timings),
                sum(timing.dense_seconds for timing in timings),
                max(_spread(timing.ours) for timing in timings),
            )
            for timings in columns
        ]

    def _layout(self) -> str:
        return _common(group.layout for _, group in self.members)

    def _count(self) -> str:
        return f"x {len(self.members):,}"

    def memory_cells(self) -> list[str]:
        from sparsefmt.cli import output

        entries = [entry for entry, _ in self.members]
        elements = sum(entry.elements for entry in entries)
        return [
            self.label,
            _common(output.shape(entry.shape) for entry in entries),
            _common(entry.dtype.name for entry in entries),
            self._layout(),
            self._count(),
            output.percent(elements - sum(entry.nnz or 0 for entry in entries), elements),
            output.size(self.dense_nbytes),
            output.size(self.nbytes),
            output.ratio(self.dense_nbytes, self.nbytes),
        ]

    def product_cells(self) -> list[str]:
        cells = [self.label, self._layout(), self._count()]
        for _, ours, dense, spread in self.products():
            cells += [_milliseconds(ours), _milliseconds(dense)]
            cells += [f"{dense / ours:.2f}x" if ours else "-", f"{100 * spread:.0f}%"]
        return cells


def _common(texts: Iterator[str]) -> str:
    distinct = set(texts)
    return distinct.pop() if len(distinct) == 1 else "mixed"


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.{3 if value < 1 else 2 if value < 100 else 0}f} ms"


def _rows(groups: list[_Group]) -> list[_Row]:
    """Tensors whose names differ in numbers only, and that have one dtype, shape and layout."""
    from sparsefmt.cli import output

    rows: dict[object, _Row] = {}
    for group in groups:
        for entry in group.entries:
            label = output.pattern(entry.name)
            key = (label, entry.dtype, entry.shape, group.layout)
            rows.setdefault(key, _Row(label)).members.append((entry, group))
    for row in rows.values():
        if len(row.members) == 1:
            row.label = row.members[0][0].name
    if len(rows) <= MOST_ROWS:
        return list(rows.values())
    by_size = sorted(rows, key=lambda key: rows[key].dense_nbytes, reverse=True)
    smaller = {key: rows.pop(key) for key in by_size[MOST_ROWS - 1 :]}
    rest = _Row(f"{len(smaller)} smaller groups", [member for row in smaller.values() for member in row.members])
    return [*rows.values(), rest]


def _print_tables(groups: list[_Group]) -> None:
    from sparsefmt.cli import output

    rows = _rows(groups)
    total = _Row("total", [member for row in rows for member in row.members])
    memory = output.table("in memory", "shape", "dtype", "layout", "n", "zeros", "dense", "bytes", "ratio", left=4)
    headings = [
        heading for timing in groups[0].timings for heading in (f"batch {timing.batch}", "dense", "speed", "spread")
    ]
    products = output.table("products", "layout", "n", *headings, left=2)
    for row in rows:
        output.add_row(memory, *row.memory_cells())
        output.add_row(products, *row.product_cells())
    for table, cells in ((memory, total.memory_cells()), (products, total.product_cells())):
        table.add_section()
        output.add_row(table, *cells)
        output.console().print(table)
        output.say()


def _notes(groups: list[_Group], libraries: list[_Library], threads: int, given: bool) -> Iterator[str]:
    """What the columns mean, and what a user might not expect."""
    from sparsefmt.cli import output

    repeats = [len(timing.ours) for group in groups for timing in group.timings]
    times = f"{min(repeats)}" if min(repeats) == max(repeats) else f"{min(repeats)} to {max(repeats)}"
    yield (
        f"Bytes and times of a row are those of its n tensors together. Medians of {times} products, in turns, on "
        f"{output.plural(threads, 'thread')}."
    )
    yield "speed: times faster than dense. spread: quartile distance over median, the largest of the row."
    names = " and ".join(f"{library.name} {library.version} ({_on(library)})" for library in libraries)
    missing = "" if len(libraries) > 1 else "; torch is not installed"
    yield f"dense: the fastest of {names}, in float32{missing}. Dense bytes: in the tensor's own dtype."
    if given and libraries[0].set_threads is None:
        yield "numpy can be given another number of threads where threadpoolctl is installed and knows its BLAS."
    tensors = sum(len(group.entries) for group in groups)
    yield (
        f"Measured: {len(groups):,} of {output.plural(tensors, 'tensor')}; those alike in shape, dtype, layout and "
        "percent of zeros are measured once."
    )
    not_finite = sum(group.not_finite for group in groups)
    if not_finite:
        yield f"Inf or NaN is among the outputs of {not_finite:,} of those measured; it was not compared."


def _on(library: _Library) -> str:
    from sparsefmt.cli import output

    counts = [count for count in library.threads if count is not None]
    if not counts:
        return "on its own number of threads"
    return f"on {output.plural(counts[0], 'thread')}{' and on 1' if len(counts) > 1 else ''}"


def _left_out(path: Path, count: int, measured: bool) -> Iterator[str]:
    from sparsefmt.cli import output

    tensors = output.plural(count, "tensor")
    if measured and count:
        yield f"Left out: {tensors} stored dense, which a dense product multiplies just as well."
    elif not measured:
        yield f"{path}: nothing to measure: no sparse tensors, {tensors} stored dense"
