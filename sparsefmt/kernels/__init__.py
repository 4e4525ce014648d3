"""Products on compressed weights: `linear.py` and `multiply.py` in front, then a file for each layout.

`plans/` takes a kernel for the tokens at hand and says how `activations.py` lays x out for it; `recipe.py` makes of
that what runs in one call. The kernels of `bitmask.py`, `dense.py` and `permuted.py` are for one or few tokens; those
of `permuted.py` for many tokens, too. For many tokens, the other two make panels of their weights, which `panel.py`
multiplies. All are written with the vectors of `simd.py`; `permuted_slots.py`, `expand.py` and `transposed.py`
put what a slot, a mask's column or a column of dense rows has into the lanes of its rows, and `llvm.py` is what all
these are made of.

Every kernel adds a row in one chain of fused multiply-adds, in ascending order of columns. So the bits are the same in
every layout.

Imported on first use (`tensor.products`), since numba takes a second to load. Kernels release the GIL, trust their
arguments, and add in the order that SPEC.md, "Products", fixes, so that the bits of a result depend neither on threads
nor on batch size nor on the machine. They see arrays of a checked tile only.
"""
