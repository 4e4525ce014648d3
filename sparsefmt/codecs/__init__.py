"""The codecs, by name. A fixed table: nothing in a file is looked up anywhere else."""

from __future__ import annotations

from sparsefmt.codecs.contract import Codec
from sparsefmt.codecs.rans import Rans
from sparsefmt.codecs.raw import Raw
from sparsefmt.codecs.zstd import Zstd

CODECS: dict[str, Codec] = {codec.name: codec for codec in (Raw(), Zstd(), Rans())}
