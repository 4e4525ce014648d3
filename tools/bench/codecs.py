"""What the zstd codec does to the arrays of pruned weights: with and without byte planes, by level, one core.

    python -m tools.bench.codecs                      Gaussian weights, 2048 x 2048
    python -m tools.bench.codecs model.safetensors    all two-dimensional float tensors of a file

Prints stored over raw bytes and encode and decode speed in MB of the array per second, for each array of layout
`bitmask`, over all tensors together.
"""

from __future__ import annotations

import time
from collections import defaultdict

import click
import ml_dtypes
import numpy as np
import zstandard
from rich.table import Table

from sparsefmt import SparseTensor
from sparsefmt.codecs import zstd
from sparsefmt.codecs.contract import ArrayInfo
from tools.bench.harness import wide_console

LEVELS = (1, 3, 9, 19)
SPARSITIES = (0.5, 0.8, 0.9)


def weights(path: str | None) -> list[np.ndarray]:
    """The matrices to prune."""
    if path is None:
        return [np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)]
    import safetensors

    with safetensors.safe_open(path, framework="np") as file:
        tensors = [file.get_tensor(name) for name in file.keys() if "embed" not in name]  # noqa: SIM118
    return [tensor.astype(np.float32) for tensor in tensors if tensor.ndim == 2 and tensor.dtype.kind == "f"]


def measure(raw: np.ndarray, width: int, level: int) -> tuple[int, float, float]:
    """(stored bytes, seconds to encode, seconds to decode) of one array with byte planes of `width`."""
    zstd._contexts.compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
    coder, out = zstd.Zstd().coder(b"", ArrayInfo(width, 1, raw.size // width)), np.empty_like(raw)
    start = time.perf_counter()
    stored = coder.encode(raw, None)
    encoded = time.perf_counter()
    coder.decode(np.frombuffer(stored, np.uint8), None, out)
    return len(stored), encoded - start, time.perf_counter() - encoded


@click.command(help=__doc__.replace("\n\n    ", "\n\n\b\n    "))  # its lines stay lines
@click.argument("path", required=False, type=click.Path(exists=True, dir_okay=False))
def main(path: str | None) -> None:
    matrices = weights(path)
    table = Table(title=f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}: stored / raw, and encode / decode in MB/s")
    for heading in ("zeros", "dtype", "array", "planes", *(f"level {level}" for level in LEVELS)):
        table.add_column(heading, justify="right")
    for sparsity in SPARSITIES:
        for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
            arrays: dict[str, list[np.ndarray]] = defaultdict(list)
            for matrix in matrices:
                keep = np.abs(matrix) > np.quantile(np.abs(matrix), sparsity)
                tensor = SparseTensor.from_dense(np.where(keep, matrix, 0).astype(dtype), "bitmask")
                for tile in tensor.operand().tiles:
                    for name, data in tile.all_arrays().items():
                        arrays[name].append(data)
            for name, parts in arrays.items():
                for planes in (False, True) if parts[0].itemsize > 1 else (False,):
                    cells = [f"{sparsity:.0%}", str(dtype), name, "yes" if planes else "no"]
                    for level in LEVELS:
                        results = [
                            measure(data.view(np.uint8), data.itemsize if planes else 1, level) for data in parts
                        ]
                        stored, encode, decode = (sum(column) for column in zip(*results, strict=True))
                        raw = sum(data.nbytes for data in parts)
                        cells.append(f"{stored / raw:.3f}  {raw / encode / 1e6:.0f}/{raw / decode / 1e6:.0f}")
                    table.add_row(*cells)
    wide_console().print(table)


if __name__ == "__main__":
    main()
