"""The layouts, by name and form. Fixed tables: nothing in a file is looked up anywhere else."""

from __future__ import annotations

from collections.abc import Container

from sparsefmt.layouts.bitmask import Bitmask
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.dense import Dense
from sparsefmt.layouts.gaps import Gaps
from sparsefmt.layouts.permuted import Columns

FORMS: dict[str, Layout] = {layout.form: layout for layout in (Dense(), Bitmask(), Columns(), Gaps())}
"""Each layout in each of its forms: `permuted` has two."""

LAYOUTS = tuple(dict.fromkeys(layout.name for layout in FORMS.values()))
"""The names that files and users have."""


_FORMS_OF = {name: [layout for layout in FORMS.values() if layout.name == name] for name in LAYOUTS}


def layout_of(name: str, arrays: Container[str] = ()) -> Layout | None:
    """The layout of this name that has these arrays, perhaps among others; None if no layout has the name.

    Of a name with several forms, it is the first one if the arrays are those of none.
    """
    named = _FORMS_OF.get(name)
    if named is None:
        return None
    return next((layout for layout in named if all(array in arrays for array in layout.arrays)), named[0])
