"""Products on compressed weights: `linear.py` and `multiply.py` in front, then a file for each order of additions.

`permuted.py` has one chain per row, `bitmask_and_dense.py` sixteen partial sums. Both are
written with the vectors of `simd.py`; `expand.py` puts masked values at their columns, `activations.py` lays x out.

Imported on first use, since numba takes a second to load. Kernels release the GIL, trust their arguments, and add in
the order that SPEC.md, "Products", fixes, so that the bits of a result depend neither on threads nor on batch size nor
on the machine. They see arrays of a checked tile only.
"""
