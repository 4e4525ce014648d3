"""safetensors files, read by ranges. `safetensors_header.py` says what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from sparsefmt.adapters import BytesRows
from sparsefmt.checkpoints.contract import TensorFile, expect_regular_file
from sparsefmt.checkpoints.safetensors_header import (
    LENGTH_BYTES,
    Header,
    check_length,
    decode_header,
)
from sparsefmt.container import envelope, sniff
from sparsefmt.container.remote_path import RemotePath, place_of, reading
from sparsefmt.dtypes import DTYPES, DType
from sparsefmt.errors import FormatError, SparsefmtError, UnsupportedError, in_file
from sparsefmt.urls import Url

_MOST_EXPLAINED = 1 << 24
"""Bytes of a header that is parsed only to say what is wrong with it."""


class TensorRange(NamedTuple):
    """One tensor of the header: its bytes are `begin` to `end` of the file."""

    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(TensorFile):
    """An open safetensors file. Reads ranges instead of mapping, so that memory use is what is being worked on.

    Attributes:
        names: in the order in which the tensors lie in the file.
        tensors: dtype, shape and place of each.

    Raises:
        FormatError: the safetensors library refuses it, or it is something else, which the message then names.
        UnsupportedError: it has a dtype that the format lacks.
        OSError: it cannot be read.

    Reading tensors of a URL raises FormatError (`file-changed`) if another file is there by then.
    """

    def __init__(self, path: str | os.PathLike[str] | Url) -> None:
        self.path = place_of(path)
        expect_regular_file(self.path)
        self._source = reading(self.path)
        self._source.check_reads()
        try:
            self.nbytes = self._source.size
            header = self._read_header()
            self.metadata = header.metadata
            self.tensors = self._stored_tensors(header)
            self.names = sorted(self.tensors, key=lambda name: (self.tensors[name].begin, self.tensors[name].end))
        except BaseException:
            self.close()
            raise

    def rows_of(self, name: str) -> BytesRows:
        tensor = self.tensors[name]

        def read(offset: int, size: int) -> np.ndarray:
            if self._source.reads_ahead:
                # the rest of it, unless that is expected already
                self._source.expect([(tensor.begin + offset, tensor.end - tensor.begin - offset)])
            with in_file(self.path):
                return self._source.read(tensor.begin + offset, size)

        try:
            return BytesRows(read, tensor.dtype, tensor.shape, is_settled=True)
        except SparsefmtError as error:
            raise error.within(name) from None

    def expect(self, names: Iterable[str], times: int = 1) -> None:
        if self._source.reads_ahead:
            wanted = (self.tensors[name] for name in names)
            self._source.expect(((tensor.begin, tensor.end - tensor.begin) for tensor in wanted), times)

    def forget(self, names: Iterable[str]) -> None:
        if self._source.reads_ahead:
            for name in names:
                tensor = self.tensors[name]
                self._source.forget(tensor.begin, tensor.end - tensor.begin)

    def close(self) -> None:
        self._source.close()

    def _read_header(self) -> Header:
        """The header, after a look at what the file may be instead."""
        head = self._source.read(0, min(self.nbytes, sniff.HEAD_SIZE)).tobytes()
        if head.startswith(envelope.MAGIC):
            raise self._invalid("it is a .sparsefmt file already, not safetensors")
        if not sniff.is_safetensors(head):
            raise self._invalid(sniff.describe(head, "a safetensors file"))
        length = int.from_bytes(head[:LENGTH_BYTES], "little")
        try:
            check_length(length, self.nbytes)
            refusal = self._refusal()
            if refusal is not None and length > _MOST_EXPLAINED:
                raise self._invalid(refusal)
            header = decode_header(self._source.read(LENGTH_BYTES, length).tobytes(), self.nbytes)
        except FormatError as error:
            self._source.expect_unchanged()
            if error.tensor is not None:
                raise FormatError(error.code, f"{error.message} (in {self.path})", tensor=error.tensor) from None
            raise self._invalid(error.message) from None
        if refusal is not None:
            raise self._invalid(refusal)
        return header

    def _refusal(self) -> str | None:
        """What the safetensors library has against the file: what it refuses is not converted, whatever we think.

        It does not read URLs: there, we judge by ourselves.
        """
        if isinstance(self.path, RemotePath):
            return None
        try:
            # maps the file, but touches the header alone
            with safe_open(self.path, framework="np"):
                return None
        except SafetensorError as error:
            return str(error)
        except OSError:
            # its file system cannot map it: we have read it, and judge by ourselves
            return None

    def _stored_tensors(self, header: Header) -> dict[str, TensorRange]:
        tensors = {}
        for name, field in header.fields.items():
            if field.dtype not in DTYPES:
                raise UnsupportedError("dtype-unknown", f"dtype {field.dtype!r} is not known", tensor=name)
            begin, end = header.nbytes + field.begin, header.nbytes + field.end
            tensors[name] = TensorRange(DTYPES[field.dtype], field.shape, begin, end)
        return tensors

    def _invalid(self, message: str) -> FormatError:
        where = "" if message.startswith(f"{self.path}: ") else f"{self.path}: "
        return FormatError("safetensors-invalid", where + message)
