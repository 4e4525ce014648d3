"""Patterns of zeros: what was pruned, and how.

`mask.py` reads a tensor once and keeps a bit for each element, `find.py` compares the mask with each pattern, and
`pattern.py` is the result. `change.py` compares two tensors, and
`magnitudes.py` counts magnitudes.
"""

from sparsefmt.patterns.change import Change, change_of
from sparsefmt.patterns.find import pattern_of
from sparsefmt.patterns.magnitudes import Magnitudes, have_magnitudes
from sparsefmt.patterns.mask import Mask, is_looked_at, mask_of_rows, mask_of_runs
from sparsefmt.patterns.pattern import Pattern
from sparsefmt.patterns.thumbnail import thumbnail

__all__ = [
    "Change",
    "Magnitudes",
    "Mask",
    "Pattern",
    "change_of",
    "have_magnitudes",
    "is_looked_at",
    "mask_of_rows",
    "mask_of_runs",
    "pattern_of",
    "thumbnail",
]
