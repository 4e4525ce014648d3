"""PickledFile: what stands for an open file in a pickle, and opens the file again in another process."""

from __future__ import annotations

import os
from typing import NamedTuple

from sparsefmt.container.reader import Reader
from sparsefmt.container.sources import Backend, source_of
from sparsefmt.errors import FormatError
from sparsefmt.urls import Url, shown


class PickledFile(NamedTuple):
    """All that is needed to open a file again, and to recognise it.

    Attributes:
        path: absolute, as another process may have another working directory; or a URL.
        backend, max_decoded_bytes: as it was opened.
        size, index_checksum: of the file; the index has the checksums of all chunks.
    """

    path: str | bytes | Url
    backend: Backend
    max_decoded_bytes: int | None
    size: int
    index_checksum: int

    @classmethod
    def of(cls, reader: Reader, max_decoded_bytes: int | None) -> PickledFile:
        """What to pickle for a file that is open.

        Raises:
            TypeError: the file has no path.
            SparsefmtError: it is closed.
        """
        place = reader.place
        if place is None:
            raise TypeError(
                "a file that was opened from bytes or from a file object cannot be pickled: open it by its path, or"
                " pickle its bytes"
            )
        return cls(*place, max_decoded_bytes, reader.size, reader.index_checksum)

    def open(self) -> Reader:
        """Open the file.

        Raises:
            FormatError: it is not the file that was pickled.
            as `sparsefmt.open_file`.
        """
        source = source_of(self.path, self.backend)  # type: ignore[arg-type]
        try:
            reader = Reader(source, self.max_decoded_bytes)
            if (reader.size, reader.index_checksum) != (self.size, self.index_checksum):
                name = shown(self.path.url if isinstance(self.path, Url) else os.fsdecode(self.path))
                raise FormatError("file-changed", f"{name!r} is another file now than it was when it was pickled")
        except BaseException:
            source.close()
            raise
        return reader
