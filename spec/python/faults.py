"""Sections 7 and 8 of SPEC.md: how a file is refused, and the limits."""

from __future__ import annotations

# ---------------------------------------------------------------------------------------- 7. What a reader must reject


class Fault(ValueError):
    """A file is not as SPEC.md says."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


def require(condition: bool, code: str, message: str) -> None:
    if not condition:
        raise Fault(code, message)


# ----------------------------------------------------------------------------------------------------------- 8. Limits

MAX_INDEX_BYTES = 268435456
MAX_CODED_INDEX_BYTES = 16777216
MAX_INDEX_RATIO = 32
MAX_INDEX_ARRAY = 1024
MAX_INDEX_DEPTH = 16
MAX_TENSORS = 1048576
MAX_NAME_BYTES = 1024
MAX_METADATA_BYTES = 16777216
MAX_NDIM = 32
MAX_TENSOR_BITS = 9223372036854775807
MAX_CHUNK_BYTES = 68719476736
MAX_SPARSE_COLS = 2147483648
MAX_SPARSE_TILE_ROWS = 65536
MAX_SPARSE_TILE_POSITIONS = 2147483647
MAX_ZSTD_RATIO = 32768
MAX_RANS_RATIO = 262144
MAX_MODEL_BYTES = 1048576
