"""RemoteFile: the bytes behind a URL, asked for in few and large ranges."""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sparsefmt.container.disk_file import DiskFile
from sparsefmt.container.kept_on_disk import KeptOnDisk
from sparsefmt.container.remote import RemoteObject, changed, identity_of
from sparsefmt.container.sources import ReadFile, Source
from sparsefmt.errors import FormatError, UnsupportedError, file_closed
from sparsefmt.layouts.memory import empty, frozen
from sparsefmt.urls import Url

HEAD, TAIL = 1 << 10, 1 << 18
"""Bytes of the beginning and of the end that are read when a file is opened: the preamble, and the index of all but
large files. A file that is not larger than both comes whole."""

MOST_GAP = 1 << 18
"""Bytes that are read for nothing rather than asking twice: about what a store sends while it takes a question."""

MOST_AT_ONCE = 1 << 24
"""Bytes of a request."""

MOST_KEPT = 1 << 27
"""Bytes in memory that were read ahead, and are kept until they are asked for. Of what is read several times, what is
beyond that goes to a temporary file; all else is asked for again."""

MOST_PLANS = 8
"""Tensors, or slices, of which is known what will be read."""

MOST_WHOLE = 1 << 26
"""Bytes of a file that is kept in memory where its server knows no ranges. A larger one goes to a temporary file."""


class Ends(NamedTuple):
    """How much of a file is read when it is opened: bytes of its beginning, and of its end."""

    head: int
    tail: int


class RemoteFile(Source):
    """A file behind a URL. Safe to use from many threads, which then ask for several ranges at once.

    Args:
        ends: what is read at once; by default what a .sparsefmt file needs.

    Raises:
        as `RemoteObject`.
        OSError: it is not there, or cannot be read.
        FormatError: it is another one now (`file-changed`), or the server sends less than it was asked for.
        UnsupportedError: the store does not say how large it is (`remote-size`).
    """

    reads_ahead = True

    def __init__(self, place: Url, ends: Ends | None = None) -> None:
        self._object: RemoteObject | None = RemoteObject(place)
        self._wanted_ends, self._checks = ends or Ends(HEAD, TAIL), False
        self._whole: Source | None = None
        self.path = self._object.name
        info = self._object.info()
        if info.get("size") is None:
            raise UnsupportedError("remote-size", "the server does not say how large the file is", path=self.path)
        self.size, self._identity = int(info["size"]), identity_of(info)
        self._plans: list[_Plan] = []
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Request, int] = OrderedDict()
        self._on_disk = KeptOnDisk(MOST_AT_ONCE)
        self._ends = self._both_ends()

    def _both_ends(self) -> list[tuple[int, bytes]]:
        """The beginning and the end, each with where it begins; or the whole file."""
        remote, (head, tail) = self._expect_open(), self._wanted_ends
        if self.size <= head + tail:
            return [(0, self._checked(remote.read(0, self.size), 0, self.size))]
        if self.size > MOST_WHOLE and not remote.knows_ranges(self.size):
            self._warn("copied to a temporary file")
            self._whole = self._downloaded(remote)
            return []
        spans = [span for span in ((0, head), (self.size - tail, self.size)) if span[0] < span[1]]
        found = remote.read_both(*spans) if len(spans) == 2 else [remote.read(*spans[0])]
        if len(found[0]) == self.size:
            self._warn("kept in memory")
            return [(0, found[0])]
        return [(begin, self._checked(data, begin, end)) for data, (begin, end) in zip(found, spans, strict=True)]

    def _warn(self, done: str) -> None:
        warnings.warn(
            f"{self.path}: the server knows no ranges, and sends the whole file each time: it is {done}", stacklevel=4
        )

    def _downloaded(self, remote: RemoteObject) -> Source:
        with tempfile.TemporaryFile() as file:
            remote.download(file)
            file.flush()
            opened = DiskFile("", os.dup(file.fileno()))
        if opened.size() != self.size:
            self.expect_unchanged()
            raise FormatError(
                "file-too-short", f"the server sent {opened.size():,} bytes of {self.size:,}", path=self.path
            )
        return ReadFile(opened)

    def _checked(self, data: bytes, begin: int, end: int) -> bytes:
        """What a server sent for a range."""
        if len(data) == end - begin:
            return data
        if len(data) == self.size:
            return data[begin:end]
        raise FormatError(
            "file-too-short", f"the server sent {len(data):,} bytes of {end - begin:,}", offset=begin, path=self.path
        )

    def _expect_open(self) -> RemoteObject:
        remote = self._object  # another thread may close it
        if remote is None:
            raise file_closed(self.path)
        return remote

    def read(self, offset: int, size: int) -> np.ndarray:
        self._expect_open()
        if self._whole is not None:
            return self._whole.read(offset, size)
        data, done = empty(size, np.dtype(np.uint8)), 0
        while done < size:
            part = self._known(offset + done, size - done)
            if part is None:
                part = self._fetched(offset + done, offset + size)
            data[done : done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        return frozen(data)

    def _known(self, offset: int, size: int) -> bytes | memoryview | None:
        """Bytes that have been read, or that come with others, as far as they do; None if they have to be asked for
        alone."""
        for begin, content in self._ends:
            if begin <= offset < begin + len(content):
                return memoryview(content)[offset - begin : offset - begin + size]
        with self._lock:
            plans = list(self._plans)
        for plan in reversed(plans):
            request = plan.request_at(offset)
            if request is not None:
                return self._part_of(request, offset, min(size, request.end - offset))
        return None

    def _part_of(self, request: _Request, offset: int, size: int) -> memoryview:
        with request.lock:
            begin = offset - request.begin
            content = request.content  # another thread may forget it, once it is on the disk
            if content is None and request.block is not None:
                part = self._on_disk.part(request.block, begin, size)
                if part is not None:
                    return memoryview(part)
            if content is None:
                content = request.content = self._fetched(request.begin, request.end)
                self._keep(request)
            if not request.until_forgotten:
                request.left -= size
                if request.left <= 0:
                    self._drop(request)
        return memoryview(content)[begin : begin + size]

    def _fetched(self, begin: int, end: int) -> bytes:
        data = self._checked(self._expect_open().read(begin, end), begin, end)
        if self._checks:
            self.expect_unchanged()
        return data

    def _keep(self, request: _Request) -> None:
        with self._lock:
            self._kept[request] = request.end - request.begin
            while sum(self._kept.values()) > MOST_KEPT and len(self._kept) > 1:
                oldest, _ = self._kept.popitem(last=False)
                if oldest.until_forgotten and oldest.block is None and oldest.content is not None:
                    oldest.block = self._on_disk.put(oldest.content)
                # whoever reads from it has the bytes already
                oldest.content = None

    def _drop(self, request: _Request) -> None:
        with self._lock:
            self._kept.pop(request, None)
            request.content = None
            if request.block is not None:
                self._on_disk.free(request.block)
                request.block = None

    def forget(self, offset: int, size: int) -> None:
        with self._lock:
            found = [part for plan in self._plans for part in plan.held_in(offset, offset + size)]
        for request, nbytes in found:
            with request.lock:
                request.left -= nbytes
                if request.left <= 0:
                    self._drop(request)

    def expect(self, ranges: Iterable[tuple[int, int]], times: int = 1) -> None:
        wanted = filter(None, map(self._beside_ends, ranges))
        with self._lock:
            # what will be read with others stays with them
            news = [span for span in wanted if all(old.request_at(span[0]) is None for old in self._plans)]
            if not news:
                return
            plan = _Plan(news, times > 1)
            self._plans = [*[old for old in self._plans if not old.is_done][1 - MOST_PLANS :], plan]

    def _beside_ends(self, span: tuple[int, int]) -> tuple[int, int] | None:
        """A range, without what of its beginning and end has been read at once; None if that is all of it."""
        first, end = span[0], sum(span)
        for begin, content in self._ends:
            if begin <= first < begin + len(content):
                first = begin + len(content)
            if begin < end <= begin + len(content):
                end = begin
        return (first, end - first) if first < end else None

    def check_reads(self) -> None:
        self._checks = not self._expect_open().is_fixed

    def expect_unchanged(self) -> None:
        if identity_of(self._expect_open().info()) != self._identity:
            raise changed(str(self.path))

    def another(self) -> Source | None:
        remote = self._object
        return None if remote is None else RemoteFile(remote.place, self._wanted_ends)

    @property
    def closed(self) -> bool:
        return self._object is None

    def close(self) -> None:
        self._object = None
        if self._whole is not None:
            self._whole.close()
        with self._lock:
            self._plans, self._ends = [], []
            for request in self._kept:
                request.content = None
            self._kept.clear()
            self._on_disk.close()


class _Request:
    """A range that is asked for together.

    Attributes:
        until_forgotten: whether it is kept until its ranges are forgotten, and not only until they were read.
        left: bytes of the ranges in it that nobody has read, or forgotten, yet.
        content: once it has been read, and is still needed.
        block: in place of that, where it is on the disk.
    """

    def __init__(self, begin: int, end: int, until_forgotten: bool) -> None:
        self.begin, self.end, self.left, self.until_forgotten = begin, end, end - begin, until_forgotten
        self.content: bytes | None = None
        self.block: int | None = None
        self.lock = threading.Lock()


class _Plan:
    """Ranges that will be read, joined to requests. Long ones take several."""

    def __init__(self, ranges: Iterable[tuple[int, int]], until_forgotten: bool) -> None:
        self._requests: list[_Request] = []
        for offset, size in sorted(set(ranges)):
            last = self._requests[-1] if self._requests else None
            end = offset + size
            if last is None or offset > last.end + MOST_GAP or end - last.begin > MOST_AT_ONCE:
                begins = range(offset, end, MOST_AT_ONCE)
                self._requests += [_Request(begin, min(begin + MOST_AT_ONCE, end), until_forgotten) for begin in begins]
            else:
                last.end = max(last.end, end)
                last.left += size
        self._begins = [request.begin for request in self._requests]

    def request_at(self, offset: int) -> _Request | None:
        number = bisect_right(self._begins, offset) - 1
        found = self._requests[number] if number >= 0 else None
        return found if found is not None and offset < found.end and found.left > 0 else None

    def held_in(self, begin: int, end: int) -> list[tuple[_Request, int]]:
        """The requests that are kept of these bytes until they are forgotten, and how many bytes of each."""
        first = max(bisect_right(self._begins, begin) - 1, 0)
        found = []
        for request in self._requests[first : bisect_right(self._begins, end)]:
            nbytes = min(end, request.end) - max(begin, request.begin)
            if request.until_forgotten and nbytes > 0 and request.left > 0:
                found.append((request, nbytes))
        return found

    @property
    def is_done(self) -> bool:
        return all(request.left <= 0 for request in self._requests)
