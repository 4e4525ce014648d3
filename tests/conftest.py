"""A numba cache of the tests' own, new whenever jitted sources change: numba does not see edits across files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _jitted_sources_digest() -> str:
    digest = hashlib.sha256()
    for folder in ("kernels", "layouts/passes"):
        for source in sorted((ROOT / "sparsefmt" / folder).glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


# before anything imports numba; subprocesses inherit it
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".cache" / f"numba-{_jitted_sources_digest()}"))
