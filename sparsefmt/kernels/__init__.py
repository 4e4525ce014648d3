"""Products on compressed weights: `linear.py` and `multiply.py` in front, then a file for each order of additions.

`plans/` chooses a kernel for the tokens at hand and lays x out for it, by `activations.py`. The kernels of
`permuted.py` add in one chain per row, those of `bitmask_and_dense.py` in sixteen partial sums. Both are written with
the vectors of `simd.py`; `expand.py` puts masked values at their columns.

Imported on first use, since numba takes a second to load. Kernels release the GIL, trust their arguments, and add in
the order that SPEC.md, "Products", fixes, so that the bits of a result depend neither on threads nor on batch size nor
on the machine. They see arrays of a checked tile only.
"""
