"""Every fault that SPEC.md, section 7, has readers reject, in a file that has no other.

A table of faults for each part of the format. `tools/vectors/make.py` writes them to spec/vectors/bad/; tests go
through them too.
"""

from tools.vectors.faults import container, entries, layouts, near_misses, rans, zstd
from tools.vectors.faults.changes import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "container", "entries", "layouts", "near_misses", "rans", "zstd"]
