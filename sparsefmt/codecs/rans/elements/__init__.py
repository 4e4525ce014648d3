"""Elements of any type as rANS codes them: a bin by rANS, the place in the bin as it is.

keys and bins: how the bits of an element are seen, and the best tree of bins     bins.py
differences to elements before, where they ascend                                 lags.py
elements to bins and places in them, and back                                     splitting.py
a model's bits, written and read                                                  model.py
a chunk                                                                           coder.py
the model for a tensor: lag, keys, bins                                           fit.py, counting.py
where rows and columns differ in how large their elements are: their classes      fit_classes.py, contexts.py
"""

from sparsefmt.codecs.rans.elements.coder import ElementCoder
from sparsefmt.codecs.rans.elements.fit import fit
from sparsefmt.codecs.rans.elements.model import read_model, write_model

__all__ = ["ElementCoder", "fit", "read_model", "write_model"]
