"""The layouts, by name. A fixed table: nothing in a file is looked up anywhere else."""

from __future__ import annotations

from sparsefmt.layouts.bitmask import Bitmask
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.dense import Dense
from sparsefmt.layouts.permuted import Permuted

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (Dense(), Bitmask(), Permuted())}
