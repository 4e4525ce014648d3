"""Products on compressed weights: one file per layout, `linear.py` in front of them.

Imported on first use, since numba takes a second to load. Kernels release the GIL, trust their arguments, and add in
the order that SPEC.md, "Products", fixes, so that the bits of a result depend neither on threads nor on batch size nor
on the machine. They see arrays of a checked tile only.

numba's on-disk cache notices an edit to the file of a function, not to files that it calls: after changing `simd.py`,
touch the kernels too (the test suite keeps a cache per version of the sources).
"""
