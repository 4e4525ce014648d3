"""How a tensor is cut into tiles: its matrix view, its layout, and the height of a tile."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sparsefmt.dtypes import DType
from sparsefmt.layouts.contract import Arrays, Layout
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.layouts.tile import Tile
from sparsefmt.shapes import matrix_view


@dataclass(slots=True)
class Tiling:
    """A tensor's dtype and shape, and how it is laid out. Not frozen, since that takes twice as long to make; nobody
    changes one.

    Attributes:
        layout: of every tile.
        tile_rows: rows in every tile but the last, which may have fewer. 0 if the tensor has no elements. Of a stack, a
            divisor of the rows of a matrix: no tile has rows of two.
        row_dims: how many leading dimensions make rows: 1, or more if it is a stack of matrices.
        rows, cols: of its matrix view.
    """

    dtype: DType
    shape: tuple[int, ...]
    layout: Layout
    tile_rows: int
    row_dims: int = field(default=1, kw_only=True)
    rows: int = field(init=False)
    cols: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.cols = matrix_view(self.shape, self.row_dims)

    @property
    def matrix_rows(self) -> int:
        """Rows of a matrix of a stack; of any other tensor, all rows."""
        return self.shape[self.row_dims - 1] if self.shape else 1

    @property
    def elements(self) -> int:
        return self.rows * self.cols

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the dense tensor, sub-byte types packed."""
        return self.dtype.nbytes(self.elements)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        # tile_rows is 0 exactly where there are no elements
        return -(-self.rows // self.tile_rows) if self.tile_rows else 0

    def tile_range(self, number: int) -> tuple[int, int]:
        """First row of tile `number`, and the row after its last."""
        return number * self.tile_rows, min(self.rows, (number + 1) * self.tile_rows)

    def height(self, number: int) -> int:
        """Rows of tile `number`."""
        return min(self.tile_rows, self.rows - number * self.tile_rows)

    def tile_elements(self, number: int) -> int:
        """Elements of tile `number`, pruned or not."""
        return self.height(number) * self.cols

    def tile(self, number: int, arrays: Arrays) -> Tile:
        """Tile `number` with these arrays, `negative_zeros` among them if it has one. Nothing is checked."""
        signs = None
        if NEGATIVE_ZEROS in arrays:
            arrays = dict(arrays)
            signs = arrays.pop(NEGATIVE_ZEROS)
        return Tile(self.layout, self.dtype, (self.height(number), self.cols), arrays, signs)

    def with_layout(self, layout: Layout) -> Tiling:
        """The same tiles in another layout."""
        return replace(self, layout=layout)
