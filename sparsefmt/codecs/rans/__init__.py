"""Codec `rans`: entropy coding with a model of the whole tensor. SPEC.md, "Codec rans", has the format.

A tile's mask is coded as groups of eight positions, every other array as elements. Both are turned into symbols, and
the symbols are coded by rANS with frequencies that the model holds:

    element = bin (a symbol) and its place in the bin (bits as they are)      elements/
    eight positions of a mask = a byte (a symbol)                             masks/
    frequencies depend on the class of the row plus that of the column        classes.py, frequencies.py
    symbols of a chunk = interleaved rANS states                              streams.py
    a model = bits in the index                                               bitstring.py

Writers find classes with class_search.py. `codec.py` tells masks from elements, and `jitted/` holds what numba
compiles.
"""

from sparsefmt.codecs.rans.codec import Rans

__all__ = ["Rans"]
