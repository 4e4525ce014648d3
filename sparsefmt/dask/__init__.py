"""Dask for checkpoints that are too large for one machine: converted by a cluster, verified by it, read in parts.

    import sparsefmt.dask
    sparsefmt.dask.convert("llama-pruned", "llama-pruned-sparsefmt", client)
    faults = sparsefmt.dask.verify("llama-pruned-sparsefmt", client, against="llama-pruned")
    sparsefmt.dask.report("llama-pruned", "llama.html", client)
    w = sparsefmt.dask.from_file("model.sparsefmt", "layers.0.weight")
    y = (x @ w.T).compute()

Needs dask and distributed: pip install 'sparsefmt[dask]'. `import sparsefmt` does not import them.
"""

from __future__ import annotations

try:
    import distributed as _distributed  # noqa: F401
except ImportError as error:
    raise ImportError("sparsefmt.dask needs dask and distributed: pip install 'sparsefmt[dask]'") from error

from sparsefmt.dask.arrays import FileArray, from_file
from sparsefmt.dask.conversion import convert
from sparsefmt.dask.reporting import report
from sparsefmt.dask.verification import verify

__all__ = ["FileArray", "convert", "from_file", "report", "verify"]
