"""`sparsefmt warmup`: compile the kernels now rather than at the first product."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import click

DTYPES = ("F32", "BF16", "F16")
"""Element types whose kernels are compiled unless others are named. All other types use the kernels of F32."""

TOKENS = (1, 2, 3, 5, 7, 12, 16, 32, 64, 128)
"""A number of tokens for each kernel. SPARSEFMT_ISA and the processor decide how many kernels there are."""


@click.command(
    short_help="Compile the kernels ahead of their first use.",
    epilog="""\b
Examples:
  sparsefmt warmup
  sparsefmt warmup --dtype F32 --dtype F64
""",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice([*DTYPES, "F64"], case_sensitive=False),
    help=f"Element type of weights to come.  [default: {', '.join(DTYPES)}]",
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def command(dtypes: tuple[str, ...], quiet: bool) -> None:
    """Compile what loading, saving and multiplying need, and keep the machine code on disk.

    Each kernel takes a second or two to compile, once for a processor and a version of this package: after that, the
    first product of a process starts at once. Useful while building an image, or as the user who will run it. The cache
    lies in the user's cache folder, or in NUMBA_CACHE_DIR.
    """
    from sparsefmt.cli import output

    started = time.perf_counter()
    steps = list(_steps(dtypes or DTYPES))
    with output.progress_bar("compiling", len(steps), quiet, in_bytes=False, compiling_is_news=False) as progress:
        for step in steps:
            step()
            if progress:
                progress(1)
    if not quiet:
        from sparsefmt.isa import ISA

        elapsed = time.perf_counter() - started
        output.say(f"Kernels for {', '.join(dtypes or DTYPES)} are ready ({ISA}), after {elapsed:.1f} s.")


def _steps(dtypes: tuple[str, ...]) -> Iterator[Callable[[], object]]:
    """Functions that each do a small piece of work, and together compile everything."""
    import numpy as np

    from sparsefmt import SparseTensor, linear, load, save
    from sparsefmt.dtypes import DTYPES as ALL
    from sparsefmt.layouts import LAYOUTS

    for name in dtypes:
        dtype = ALL[name.upper()].numpy
        array = np.zeros((16, 288), np.float32)
        array[:, ::3] = 1.5
        array = array.astype(dtype)
        array[0, 1] = -0.0
        # so far apart that `permuted` has columns, and not gaps
        far = np.zeros((16, 4096), dtype)
        far[:, ::2047] = array[0, 0]
        of_x = np.dtype(np.float64 if name.upper() == "F64" else np.float32)

        def storing(array: np.ndarray = array, far: np.ndarray = far) -> None:
            for layout, codec in itertools.product(LAYOUTS, ("raw", "auto", "rans")):
                for some in (array, far):
                    data = save({"w": some}, layout=layout, codec=codec)
                    for other in LAYOUTS:
                        load(data, layout=other)

        def multiplying(w: SparseTensor, tokens: int, dtype: np.dtype = of_x) -> None:
            some = np.ones((tokens, w.shape[1]), dtype)
            linear(some, w, threads=1)
            w @ np.ascontiguousarray(some.T)
            some[0, 0] = np.inf
            linear(some, w, threads=1)  # not finite: another kernel

        def coding(dtype: np.dtype = dtype) -> None:
            # long enough for streams of every kind; rows and columns differ enough to have classes
            rng = np.random.default_rng(0)
            shape = 640, 1024
            sizes = np.exp2(rng.integers(-2, 3, (shape[0], 1)) + rng.integers(-2, 3, shape[1]))
            values = (rng.standard_normal(shape) * sizes).astype(dtype)
            sparse = {f"{zeros}": values * (rng.random(shape) >= zeros).astype(dtype) for zeros in (0.5, 0.98)}
            alike = rng.standard_normal((128, 1024)).astype(dtype)
            load(save({**sparse, "dense": values, "alike": alike}, codec="rans"))

        yield storing
        yield coding
        weights = [SparseTensor.from_dense(array, layout) for layout in LAYOUTS]
        for w in (*weights, SparseTensor.from_dense(far, "permuted")):
            for tokens in TOKENS:
                yield lambda w=w, tokens=tokens, run=multiplying: run(w, tokens)  # type: ignore[misc]
