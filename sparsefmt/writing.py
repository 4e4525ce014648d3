"""A mapping of names to tensors becomes a file. Names of one tensor share what is stored."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, BinaryIO

from sparsefmt import cost_of_signs
from sparsefmt.adapters import identity_of
from sparsefmt.adapters.mistakes import expect_tensors
from sparsefmt.container.file_objects import destination
from sparsefmt.container.index import Index
from sparsefmt.save_options import SaveOptions
from sparsefmt.tensor_writer import TensorWriter
from sparsefmt.urls import Url

Progress = Callable[[int, int], object]
"""Called as progress(done, total) after each tensor, in bytes of the dense tensors."""


def write_file(
    place: str | os.PathLike[str] | BinaryIO | Url,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None,
    options: SaveOptions,
    progress: Progress | None = None,
) -> None:
    """Write a dict of tensors as a file. `sparsefmt.save_file` documents it."""
    expect_tensors(tensors)
    with destination(place) as sink:
        writer = TensorWriter(sink, metadata, **options.as_keywords(), again=tensors.__getitem__)
        index = write_all(writer, tensors, progress)
    cost_of_signs.warn(index, writer.written)


def file_content(
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None,
    options: SaveOptions,
    progress: Progress | None = None,
) -> bytes:
    """The bytes that `write_file` writes."""
    buffer = io.BytesIO()
    write_file(buffer, tensors, metadata, options, progress)
    return buffer.getvalue()


def write_all(writer: TensorWriter, tensors: Mapping[str, Any], progress: Progress | None = None) -> Index:
    """Write a dict of tensors in its order and finish. Names that share one tensor share its chunks."""
    expect_tensors(tensors)
    writer.expect_names(tensors)
    # a lazy mapping makes every value again, so read them twice only if progress is reported
    total = sum(_dense_nbytes(value) for value in tensors.values()) if progress else 0
    done = 0
    written: dict[object, tuple[weakref.ref[Any], str]] = {}
    for name, value in tensors.items():
        identity = identity_of(value)
        # an address identifies an object only while that is alive: a lazy mapping may reuse the memory
        first = written.get(identity)
        if first is not None and first[0]() is not None:
            writer.add_alias(name, first[1])
        else:
            writer.add(name, value)
            if type(value).__weakrefoffset__:
                written[identity] = weakref.ref(value), name
        done += _dense_nbytes(value)
        if progress:
            progress(done, total)
    return writer.finish()


def _dense_nbytes(value: Any) -> int:
    """Bytes of the dense elements of a value that has a shape and a dtype with a size; 0 for others."""
    itemsize = getattr(getattr(value, "dtype", None), "itemsize", 0)
    return prod(getattr(value, "shape", ())) * itemsize
