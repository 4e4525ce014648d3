"""`sparsefmt demo`: prune, convert, load and multiply a small model, without a download."""

from __future__ import annotations

import errno
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from sparsefmt.cli.benchmark.measuring import TOLERANCE
from sparsefmt.cli.failures import Failure

WIDTHS = (1024, 4096, 4096, 1024)
"""Features between the layers. They make 25 million weights, more than a CPU cache holds."""

SPARSITY = 0.8
BATCHES = (1, 16)
ROUNDS = 11

Weights = dict[str, np.ndarray]
Forward = Callable[[np.ndarray], np.ndarray]


@click.command(short_help="Prune, convert, load and multiply a small network.")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Prune a small network, convert, load and multiply it; print sizes and times next to numpy's and scipy's.

    A network of 25 million weights, 80 % of them pruned, in float32 and in bfloat16. Everything is compared: the
    tensors bit for bit, the outputs with numpy's. Needs a few seconds, longer the first time, when the kernels are
    compiled, and 300 MB in the folder for temporary files, where nothing stays. Exit code 1 if anything differs.
    """
    import ml_dtypes

    from sparsefmt.cli import output
    from sparsefmt.threads import num_threads

    widths = "-".join(map(str, WIDTHS))
    output.say(f"A {widths} network, {SPARSITY:.0%} of its weights pruned by magnitude, {num_threads()} threads.")
    faults: list[str] = []
    pruned = _pruned_weights()
    with _room(), tempfile.TemporaryDirectory(prefix="sparsefmt-demo-") as folder, output.telling_of_compiling():
        for title, dtype in (("float32", np.dtype(np.float32)), ("bfloat16", np.dtype(ml_dtypes.bfloat16))):
            output.say()
            weights = {name: array.astype(dtype, copy=False) for name, array in pruned.items()}
            _demonstrate(Path(folder), title, weights, faults)
    output.say()
    if faults:
        for fault in faults:
            click.echo(f"sparsefmt: error: {fault}", err=True)
        ctx.exit(1)
    output.say(f"All tensors came back bit for bit. All outputs agree with numpy's to {TOLERANCE:g} of the largest.")


@contextmanager
def _room() -> Iterator[None]:
    """Say what the demo needs, if the folder for temporary files is full or cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        needed = "the demo needs 300 MB for temporary files; TMPDIR names another folder"
        raise Failure(f"{where}{error.strerror}: {needed}", 2) from error


def _pruned_weights() -> Weights:
    """Weights and biases of each layer. The smallest weights are +0.0."""
    rng = np.random.default_rng(0)
    weights: Weights = {}
    for layer, (cols, rows) in enumerate(pairwise(WIDTHS)):
        weight = rng.standard_normal((rows, cols), np.float32) * np.float32((2 / cols / (1 - SPARSITY)) ** 0.5)
        magnitudes = np.abs(weight)
        pruned = int(weight.size * SPARSITY)
        weight[magnitudes < np.partition(magnitudes, pruned, axis=None)[pruned]] = 0
        weights[f"layer{layer}.weight"] = weight
        weights[f"layer{layer}.bias"] = rng.standard_normal(rows, np.float32) * np.float32(0.1)
    return weights


def _demonstrate(folder: Path, title: str, weights: Weights, faults: list[str]) -> None:
    """Save, load and multiply in one dtype. Prints two tables, and adds to `faults`."""
    from sparsefmt import load_file
    from sparsefmt.cli import output

    files = _write_files(folder, title, weights)
    dense_size = files["safetensors"].stat().st_size
    table = output.table(f"{title}: on disk", "bytes", "ratio")
    for label, path in files.items():
        nbytes = path.stat().st_size
        output.add_row(table, label, output.size(nbytes), output.ratio(dense_size, nbytes))
    output.print_table(table)
    output.say()

    wide = {name: array.astype(np.float32, copy=False) for name, array in weights.items()}
    contenders: dict[str, tuple[int, Forward]] = {"numpy, dense float32": (_nbytes(wide), _numpy_forward(wide))}
    with suppress(ImportError):
        contenders["scipy, CSR float32"] = _scipy_contender(wide)
    for label, path, layout in (
        ("sparsefmt, bitmask", files["sparsefmt, codec auto"], "bitmask"),
        ("sparsefmt, permuted", files["sparsefmt, codec auto"], "permuted"),
        ("sparsefmt, as mapped", files["sparsefmt, codec raw"], "auto"),
    ):
        loaded = load_file(path, layout=layout)
        faults += [
            f"{title}, {label}: tensor {name!r} is not what was saved"
            for name, array in weights.items()
            if np.asarray(loaded[name]).tobytes() != array.tobytes()
        ]
        contenders[label] = (_nbytes(loaded), _sparse_forward(loaded))
    _race(title, contenders, faults)


def _write_files(folder: Path, title: str, weights: Weights) -> dict[str, Path]:
    """Save with the safetensors library, then convert as `sparsefmt convert` does. Gives the path for each label."""
    from safetensors.numpy import save

    from sparsefmt.checkpoints.conversion import convert_file
    from sparsefmt.checkpoints.safetensors_file import SafetensorsFile
    from sparsefmt.container.atomic import replacing
    from sparsefmt.save_options import SaveOptions

    files = {"safetensors": folder / f"{title}.safetensors"}
    with replacing(files["safetensors"]) as sink:  # a full disk gives an OSError
        sink.write(save(weights))
    for codec in ("raw", "auto"):
        path = files[f"sparsefmt, codec {codec}"] = folder / f"{title}-{codec}.sparsefmt"
        with SafetensorsFile(files["safetensors"]) as source:
            convert_file(source, path, SaveOptions(codec=codec))
    return files


def _race(title: str, contenders: dict[str, tuple[int, Forward]], faults: list[str]) -> None:
    """Time forward passes, and print times and bytes in memory."""
    from sparsefmt.cli import output

    headings = [heading for batch in BATCHES for heading in (f"batch {batch}", "vs numpy")]
    table = output.table(f"{title}: in memory", "bytes", "ratio", *headings)
    times = []
    for batch in BATCHES:
        x = np.random.default_rng(1).standard_normal((batch, WIDTHS[0]), np.float32)
        outputs = [forward(x) for _, forward in contenders.values()]  # also compiles, and fills caches
        for label, y in zip(contenders, outputs, strict=True):
            if not np.abs(y - outputs[0]).max() <= TOLERANCE * np.abs(outputs[0]).max():
                faults.append(f"{title}, {label}, batch {batch}: the output is not numpy's")
        times.append(_interleaved_medians([forward for _, forward in contenders.values()], x))
    dense_nbytes = next(iter(contenders.values()))[0]
    for number, (label, (nbytes, _)) in enumerate(contenders.items()):
        cells = [
            cell
            for medians in times
            for cell in (f"{1000 * medians[number]:.2f} ms", f"{medians[0] / medians[number]:.2f}x")
        ]
        is_slower = any(medians[number] > medians[0] for medians in times)
        style = output.WARNING if is_slower and label.startswith("sparsefmt") else ""
        output.add_row(table, label, output.size(nbytes), output.ratio(dense_nbytes, nbytes), *cells, style=style)
    output.print_table(table)


def _interleaved_medians(forwards: Sequence[Forward], x: np.ndarray) -> list[float]:
    """Seconds of each. They take turns, so that other work of the machine affects all of them alike."""
    times: list[list[float]] = [[] for _ in forwards]
    for _ in range(ROUNDS):
        for forward, taken in zip(forwards, times, strict=True):
            started = time.perf_counter()
            forward(x)
            taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


def _numpy_forward(weights: Weights) -> Forward:
    return _layers(lambda layer, x: x @ weights[f"layer{layer}.weight"].T + weights[f"layer{layer}.bias"])


def _scipy_contender(weights: Weights) -> tuple[int, Forward]:
    import scipy.sparse

    biases = {name: array for name, array in weights.items() if array.ndim == 1}
    matrices = {name: scipy.sparse.csr_array(array) for name, array in weights.items() if array.ndim == 2}
    nbytes = _nbytes(biases) + sum(
        part.nbytes for matrix in matrices.values() for part in (matrix.data, matrix.indices, matrix.indptr)
    )
    return nbytes, _layers(lambda layer, x: (matrices[f"layer{layer}.weight"] @ x.T).T + biases[f"layer{layer}.bias"])


def _sparse_forward(weights: dict) -> Forward:
    from sparsefmt import linear

    return _layers(lambda layer, x: linear(x, weights[f"layer{layer}.weight"], weights[f"layer{layer}.bias"]))


def _layers(apply: Callable[[int, np.ndarray], np.ndarray]) -> Forward:
    """The function of the network: its layers, with ReLU between them."""

    def forward(x: np.ndarray) -> np.ndarray:
        last = len(WIDTHS) - 2
        for layer in range(last):
            x = np.maximum(apply(layer, x), 0)
        return apply(last, x)

    return forward


def _nbytes(tensors: dict) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
