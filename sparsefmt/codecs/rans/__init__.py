"""Codec `rans`: entropy coding with a model of the whole tensor. SPEC.md, "Codec rans", has the format.

A tile's mask is coded as positions, every other array as elements. Both are turned into symbols, and the symbols are
coded by rANS with frequencies that the model holds:

    element = bin (a symbol) and its place in the bin (bits as they are)      elements.py, bins.py
    eight positions of a mask = a byte (a symbol)                             positions.py
    frequencies depend on the class of the row plus that of the column        classes.py, frequencies.py
    symbols of a chunk = interleaved rANS states                              streams.py
    a model = bits in the index                                               bitstring.py

`codec.py` chooses between the two, and `jitted/` holds what numba compiles.
"""

from sparsefmt.codecs.rans.codec import Rans

__all__ = ["Rans"]
