"""What the tensors of a file take in memory, and in which layout, going by the index alone. No I/O."""

from __future__ import annotations

import numpy as np

from sparsefmt.container.entry import TensorEntry
from sparsefmt.container.index import Index
from sparsefmt.layouts import FORMS, auto
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.layouts.sizes import Filling, Stored


class InMemory:
    """The tensors of an index as they would be in memory."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def nbytes(self, entry: TensorEntry, layout: Layout) -> int:
        """Memory that a tensor takes in a layout, going by the index: nothing for what stays mapped.

        To the byte, except that it is the least for a sparse layout that is not the stored one: how much `permuted` is
        padded, and has fillers, shows only when the tiles are laid out so.
        """
        if not layout.sparse:
            return self.dense_bytes(entry)
        if layout.form == entry.layout.form:
            chunks = self._chunks(entry, range(entry.tiles))
            # what is not all raw is moved to lie together
            return _coded_bytes(chunks) if self.is_raw(entry) else sum(chunks["raw"].tolist())
        return self.filling(entry).nbytes(layout) + self.sign_bytes(entry)

    @staticmethod
    def dense_bytes(entry: TensorEntry) -> int:
        """Bytes of all elements as numpy holds them."""
        return entry.elements * entry.dtype.numpy.itemsize

    def sign_bytes(self, entry: TensorEntry) -> int:
        """Bytes that `negative_zeros`, which is the same in every layout, decodes to."""
        if NEGATIVE_ZEROS not in entry.codecs:
            return 0
        place, arrays = list(entry.codecs).index(NEGATIVE_ZEROS), len(entry.codecs)
        return _coded_bytes(self._chunks(entry, range(entry.tiles))[place::arrays])

    def layout_named(self, entry: TensorEntry, name: str) -> Layout:
        """The layout of a name that a tensor is held in: the stored one, if it has the name."""
        if name == "permuted":
            # nobody has looked at the tiles yet
            return entry.layout if entry.layout.name == name else self.filling(entry).likely_permuted
        return FORMS[name]

    def best_layout(self, entry: TensorEntry) -> tuple[Layout, int]:
        """The layout in which to hold a tensor that is stored sparse, and how many bytes it may take in it.

        If it turns out to take more, since `permuted` is padded much, the layout in which it is stored is the best.
        """
        stored = entry.layout
        # `permuted` is in a file because somebody chose it; `bitmask` may be there only because it codes well
        if stored.name != "bitmask" or self.is_raw(entry):
            return stored, self.nbytes(entry, stored)
        filling = self.filling(entry)
        permuted = filling.likely_permuted
        most = auto.most_bytes_of(filling, permuted)
        return (permuted if filling.nbytes(permuted) <= most else stored), most

    @staticmethod
    def filling(entry: TensorEntry) -> Filling:
        """How full a tensor is, going by the index, with slices of `permuted` that need neither padding nor fillers."""
        nnz = entry.nnz or 0
        return Filling(entry.dtype, entry.rows, entry.cols, entry.tile_rows, nnz, Stored(nnz, nnz))

    def tile_bytes(self, entry: TensorEntry, number: int) -> int:
        """Memory that a tile takes as it is stored: nothing for what stays mapped."""
        return _coded_bytes(self._chunks(entry, range(number, number + 1)))

    def is_raw(self, entry: TensorEntry) -> bool:
        """Whether all arrays that a kernel needs are stored as they are in memory."""
        return all(codec == "raw" for array, codec in entry.codecs.items() if array != NEGATIVE_ZEROS)

    def _chunks(self, entry: TensorEntry, tiles: range) -> np.ndarray:
        """The records of some tiles."""
        arrays = len(entry.codecs)
        return self._index.chunks[entry.first_chunk + tiles.start * arrays : entry.first_chunk + tiles.stop * arrays]


def _coded_bytes(chunks: np.ndarray) -> int:
    """Bytes that those chunks decode to that are coded."""
    # as Python's integers, which do not overflow
    return sum(chunks["raw"][chunks["stored"] < chunks["raw"]].tolist())
