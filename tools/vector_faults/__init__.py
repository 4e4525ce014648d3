"""Every fault that SPEC.md, section 7, has readers reject, in a file that has no other.

A table of faults for each part of the format. `tools/make_vectors.py` writes them to spec/vectors/bad/; tests go
through them too.
"""

from vector_faults import container, layouts, rans, zstd
from vector_faults.changes import FAULTS, Fault
from vector_faults.taken_apart import TakenApart

__all__ = ["FAULTS", "Fault", "TakenApart", "container", "layouts", "rans", "zstd"]
