"""`layout="auto"`: what to write, and what to compute with.

The rule, documented in docs/guide.md ("Choosing a layout"):

1. 0-d and 1-d tensors, types that cannot be pruned, tensors of less than SMALL bytes, and whatever a sparse layout
   would not make at least 10 % smaller are `dense`. Few columns or few zeros end here: every row costs some bytes of
   its own.
2. Arrays that will be computed on are `permuted` from a share of zeros on that depends on the processor and on the
   width of a value (PERMUTED_FROM), on the shape of small and of narrow matrices (PERMUTED_FROM_IF_SMALL,
   PERMUTED_FROM_IF_NARROW), and on how many tokens are expected at once, if somebody said so (PERMUTED_FROM_FOR); and
   `bitmask` below that. They are also `bitmask` where the slices of `permuted` would be padded much: where there are
   few rows, or one of many is full. `permuted` has `gaps` or `columns`, whichever takes fewer bytes. Results have the
   same bits in every layout, so nobody sees from them which was taken. Arrays that a file stores as they are will be
   computed on, too, but nobody knows where: files are the same on every processor.
3. Arrays that are entropy coded are `bitmask`: a coded mask is smaller than coded columns, and turning it into
   `permuted` while loading costs little beside decoding. But a mask takes time for every position: large matrices with
   hardly a nonzero (`heights.is_very_sparse`) are `permuted`, in tiles that are as high as they are empty.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Literal

from sparsefmt.dtypes import DType
from sparsefmt.layouts import FORMS, LAYOUTS, heights
from sparsefmt.layouts.contract import Layout
from sparsefmt.layouts.expected_tokens import expected_use
from sparsefmt.layouts.sizes import Filling, Stored
from sparsefmt.limits import MAX_SPARSE_COLS, MAX_SPARSE_TILE_POSITIONS

PERMUTED_FROM = {
    "avx2": {1: 0.58, 2: 0.57, 4: 0.45, 8: 0.4},
    "avx512": {1: 0.65, 2: 0.66, 4: 0.58, 8: 0.4},
    "portable": {1: 0.65, 2: 0.45, 4: 0.45, 8: 0.4},
}
"""By instruction set and bytes of a value, the share of zeros from which `permuted` is the better layout to compute
with: no number of tokens is slower than with a dense matrix, and the geometric mean of one token and of 128 is better
by 5 % or more (`python -m tools.bench.map --layout bitmask --layout permuted`; for one byte, with AVX2,
`python -m tools.bench.eight_bits_products --sparsity 0.5 --sparsity 0.6 --sparsity 0.7`).

With AVX2, `permuted` has the better mean at 50 % in float32, and from 60 % on in types of 16 bits, where `bitmask`
takes far fewer bytes. With AVX-512, `bitmask` expands sixteen rows by one instruction, and is twice as fast for one
token at 50 % in types of 16 bits. Portable code and float64 have no fast way to expand a mask."""

SMALL_MATRIX = 1 << 18
"""Elements of a matrix up to which PERMUTED_FROM_IF_SMALL holds: all of it stays in a cache."""

PERMUTED_FROM_IF_SMALL = {"avx2": {2: 0.45}, "avx512": {2: 0.45, 4: 0.45}}
"""What differs from PERMUTED_FROM for small matrices. There, the few bytes of `bitmask` bring no speed, and to expand a
mask takes long beside the rest: at 50 %, `permuted` is 1.07 to 1.2 times as fast in the mean."""

NARROW = {"avx2": (512, 512), "avx512": (256, 0)}
"""By instruction set, rows and columns of a matrix below which PERMUTED_FROM_IF_NARROW holds."""

PERMUTED_FROM_IF_NARROW = {2: 0.45}
"""What differs from PERMUTED_FROM for narrow matrices. There, to arrange many activations or to put their results in
place takes long beside the products, and at 50 % `bitmask` would be slower than dense from 64 to 256 tokens on."""

PERMUTED_FROM_FOR = {
    "avx2": {"decode": {1: 0.66, 2: 0.68, 4: 0.68}, "prompts": {1: 0.45, 2: 0.4, 4: 0.4}},
    "avx512": {"decode": {2: 0.77, 4: 0.72}, "prompts": {2: 0.4, 4: 0.4}},
}
"""What differs from both for who expects few tokens at once, or many (`expected_tokens.py`): with one token, `bitmask`
is as fast up to there, and takes fewer bytes; with 128, `permuted` is faster from there on."""

PERMUTED_WITH_GROUPS_FROM = 0.95
"""The same for weights that have scales in groups of columns. `permuted` multiplies them in blocks of columns, however
few the tokens are: one takes as long as eight."""

PERMUTED_IN_EIGHT_BITS_FROM = 0.9
"""The same for activations in eight bits, where an instruction multiplies these (`isa.DOTS`): `bitmask` uses it, and
`permuted` computes in float32 (`python -m tools.bench.eight_bits_products`, AVX-512 VNNI: at 90 %, `bitmask` is 7.5 and
5.1 times as fast as dense float32 for 1 and 128 tokens, `permuted` 6.1 and 7.4 times)."""

PERMUTED_FROM_IN_FILES = 0.65
"""The same for arrays that a file stores as they are: whoever loads it may have any processor."""

SMALL = 1 << 12
"""Bytes of a dense tensor below which it stays dense: to decode its three to five arrays takes longer than to decode it
(`tools/bench/small.py`, also with `--layout bitmask`)."""

WORTHWHILE = 0.9
"""A sparse layout must be smaller than this part of the dense bytes."""

MOST_PADDING = 1.25
"""`permuted` may store this many times as many elements as there are nonzeros, unless it is smaller than `bitmask` all
the same: padding and fillers are multiplied and take memory like any other element. Slices of 13 rows and more keep to
it where there are no fillers."""

CHUNK_OVERHEAD = 87
"""Bytes that a chunk of a file takes at most beside its own: 24 in the index, and up to 63 of padding."""

_MOST_ARRAYS = 6
"""Arrays of a tile in the sparse layout that has most of them, with `negative_zeros`."""


def can_be_sparse(dtype: DType, shape: tuple[int, ...], cols: int) -> bool:
    """Whether format and limits let this tensor have a sparse layout."""
    return (
        dtype.prunable
        and len(shape) >= 2
        and 0 not in shape
        and cols <= min(MAX_SPARSE_COLS, MAX_SPARSE_TILE_POSITIONS)
    )


def may_be_sparse(wanted: str, dtype: DType, shape: tuple[int, ...], cols: int) -> bool:
    """Whether `layout_for` may give this tensor a sparse layout, however many of its elements are zero."""
    return (
        wanted != "dense"
        and can_be_sparse(dtype, shape, cols)
        and (wanted != "auto" or dtype.nbytes(prod(shape)) >= SMALL)
    )


Purpose = Literal["computing", "raw", "coded"]
"""What a layout is chosen for: arrays in memory; arrays in a file, stored as they are, or entropy coded."""


def permuted_from(dtype: DType, shape: tuple[int, int], purpose: Purpose = "computing") -> float:
    """Share of zeros from which `permuted` is what to compute with: on this processor, or in a file.

    Args:
        shape: rows and columns of the matrix.
    """
    if purpose != "computing":
        return PERMUTED_FROM_IN_FILES
    from sparsefmt.isa import ISA  # loads numba, as whoever computes does

    width, use = dtype.bits_dtype.itemsize, expected_use()
    found = PERMUTED_FROM[ISA][width]
    if use:
        return PERMUTED_FROM_FOR.get(ISA, {}).get(use, {}).get(width, found)
    if prod(shape) <= SMALL_MATRIX:
        return PERMUTED_FROM_IF_SMALL.get(ISA, {}).get(width, found)
    rows, cols = NARROW.get(ISA, (0, 0))
    return PERMUTED_FROM_IF_NARROW.get(width, found) if shape[0] < rows or shape[1] < cols else found


def most_bytes_of(filling: Filling, permuted: Layout, purpose: Purpose = "computing") -> int:
    """Bytes up to which a form of `permuted` is what to compute with, however padded it is; -1 if it never is."""
    worthwhile, bitmask = int(WORTHWHILE * filling.nbytes(FORMS["dense"])), filling.nbytes(FORMS["bitmask"])
    if bitmask > worthwhile:
        return worthwhile
    least_zeros = permuted_from(filling.dtype, (filling.rows, filling.cols), purpose)
    # half an element: a share of the elements was pruned, and there is no half of one
    if filling.nnz > (1 - least_zeros) * filling.rows * filling.cols + 0.5:
        return -1
    most = int(MOST_PADDING * filling.nnz)
    return min(worthwhile, max(bitmask, replace(filling, stored=Stored(most, most)).nbytes(permuted)))


def with_scales(layout: str, sparsity: float, groups: int, activations: str | None) -> str:
    """The layout to compute with, for weights that have one already, and scales for so many groups of columns.

    Args:
        activations: "int8" or None.
    """
    if layout != "permuted":
        return layout
    if groups > 1 and sparsity < PERMUTED_WITH_GROUPS_FROM:
        return "bitmask"
    if activations is None or sparsity >= PERMUTED_IN_EIGHT_BITS_FROM:
        return layout
    from sparsefmt import isa

    return "bitmask" if isa.DOTS else layout


def expect_name(wanted: str) -> None:
    """Raise ValueError if this is neither "auto" nor the name of a layout."""
    if wanted != "auto" and wanted not in LAYOUTS:
        raise ValueError(f"layout must be 'auto' or one of {', '.join(map(repr, LAYOUTS))}, not {wanted!r}")


def layout_for(
    wanted: str, purpose: Purpose, shape: tuple[int, ...], filling: Filling, *, is_sparse: bool = False
) -> Layout:
    """The layout that `wanted` ("auto" or a name) means for a tensor; `dense` where the format allows nothing else.

    With "auto", arrays never take more than those of `dense`: in memory, and in a file where they are stored raw.

    Args:
        is_sparse: the tensor has a sparse layout already, and keeps one even if it is small.

    Raises:
        ValueError: another name.
    """
    expect_name(wanted)
    if not (may_be_sparse(wanted, filling.dtype, shape, filling.cols) or is_sparse):
        return FORMS["dense"]
    if wanted != "auto":
        return filling.permuted if wanted == "permuted" else FORMS[wanted]
    # a file has an entry for the tensor, too
    overhead = CHUNK_OVERHEAD * (_MOST_ARRAYS * filling.tiles + 1) if purpose == "raw" and not is_sparse else 0
    best = for_computing(filling, overhead, purpose)
    if purpose != "coded" or not best.sparse or heights.is_very_sparse(filling.rows, filling.cols, filling.nnz):
        return best
    return FORMS["bitmask"]


def for_computing(filling: Filling, overhead: int = 0, purpose: Purpose = "computing") -> Layout:
    """The layout to compute with, for a tensor that can be sparse.

    Args:
        overhead: bytes that a sparse layout takes beside its arrays.
        purpose: whether they stay in memory, or go to a file.
    """
    permuted = filling.permuted
    best = permuted if filling.nbytes(permuted) <= most_bytes_of(filling, permuted, purpose) else FORMS["bitmask"]
    worthwhile = WORTHWHILE * filling.nbytes(FORMS["dense"])
    return best if filling.nbytes(best) + overhead <= worthwhile else FORMS["dense"]
