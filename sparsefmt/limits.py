"""The numeric limits of format version 1. SPEC.md, section "Limits", gives the same numbers, and a test compares them.

They are far above what networks need, and low enough that a hostile file is refused before it costs much memory or
much time.
"""

from __future__ import annotations

MAX_INDEX_BYTES = 1 << 28
"""256 MiB: about a million tensors with long names. The index is held in memory as a whole."""

MAX_CODED_INDEX_BYTES = 1 << 24
"""16 MiB: what a coded index may decode to. A larger one is stored as it is, so that a small file cannot cost what a
large index does."""

MAX_INDEX_RATIO = 1 << 5
"""Bytes of an index that each byte of a coded one can decode to. A checksum of eight bytes for each chunk, which does
not compress, keeps an honest index far below."""

MAX_INDEX_ARRAY = 1 << 10
"""Elements of one array in the index. Only shapes are arrays. A decoder allocates what an array claims to have."""

MAX_INDEX_DEPTH = 16
"""Maps and arrays within each other in the index. Version 1.0 has four."""

MAX_TENSORS = 1 << 20
"""1,048,576 entries, aliases included."""

MAX_NAME_BYTES = 1024
"""Length of a tensor name in UTF-8."""

MAX_METADATA_BYTES = 1 << 24
"""16 MiB: all metadata keys and values together, in UTF-8."""

MAX_NDIM = 32
"""Dimensions of a tensor: the limit of numpy before version 2."""

MAX_TENSOR_BITS = (1 << 63) - 1
"""Product of max(d, 1) over all dimensions d, times the bits of one element. Keeps every size in an int64."""

MAX_CHUNK_BYTES = 1 << 36
"""64 GiB: decoded size of one chunk."""

MAX_SPARSE_COLS = 1 << 31
"""Columns of a `bitmask` or `permuted` tensor, so that a column fits a signed 32-bit integer."""

MAX_SPARSE_TILE_ROWS = 1 << 16
"""Rows in one tile of a `bitmask` or `permuted` tensor, so that `row_permutation` fits 16 bits."""

MAX_SPARSE_TILE_POSITIONS = (1 << 31) - 1
"""Rows times columns in one tile of a `bitmask` or `permuted` tensor, so that offsets fit 32 bits."""

MAX_ZSTD_RATIO = 1 << 15
"""A zstd block of 4 bytes makes at most 128 KiB. A chunk that claims a higher ratio is refused at once."""

MAX_RANS_RATIO = 1 << 18
"""The same for rans. Elements that are all equal take no bits there, but each chunk takes some bytes."""

MAX_MODEL_BYTES = 1 << 20
"""1 MiB: the model of an array coded by rans."""
