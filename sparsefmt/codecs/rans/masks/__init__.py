"""Masks as rANS codes them: eight positions as one symbol, by tables for how dense their row and their columns are.

Rows and columns of a pruned matrix differ in density, and that is what makes its mask shorter than independent bits
would be. Each column of a tensor has a class, which the model holds, and each row of a tile has one, which the chunk
holds. Within each word of 64 columns, the columns are sorted by class, so that the eight of a group are about equally
dense; the class of the row and that of the group together say which table the group's byte is coded with. A row may
instead be coded as what differs from the row above: in block-pruned matrices, most of its bytes are then zero.

A table has a frequency for each byte, or only for each number of set bits.

    the order of columns, and the bytes of a mask in it     groups.py
    a model's bits, written and read                        model.py
    a chunk                                                 coder.py
    the model for a tensor: what is tried, the best of it   fit.py, candidate.py
"""

from sparsefmt.codecs.rans.masks.coder import MaskCoder
from sparsefmt.codecs.rans.masks.fit import fit
from sparsefmt.codecs.rans.masks.model import read_model, write_model

__all__ = ["MaskCoder", "fit", "read_model", "write_model"]
