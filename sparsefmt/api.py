"""The verbs: save, save_file, load, load_file, open_file, linear."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sparsefmt.container.sources import Backend, source_of, source_of_content
from sparsefmt.errors import in_file
from sparsefmt.save_options import NegativeZeros, RowDims, SaveOptions
from sparsefmt.scales import Scaling
from sparsefmt.sparse_file import SparseFile
from sparsefmt.tensor import SparseTensor, products
from sparsefmt.urls import Url, as_place
from sparsefmt.writing import Progress, file_content, write_file

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def save_file(
    tensors: Mapping[str, Any],
    path: str | os.PathLike[str] | BinaryIO,
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
    row_dims: RowDims = None,
    progress: Progress | None = None,
    threads: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Save tensors to a .sparsefmt file.

    The file is written beside its destination, and takes its name once it is whole and on the disk. An old file of that
    name is either untouched or replaced, even if saving is interrupted. Saving over a file that is open or mapped is
    safe.

    Args:
        tensors: name to numpy array (any byte order and memory order), SparseTensor, or scipy.sparse matrix. Two names
            of one tensor are stored once, and are one tensor again when loaded. Tensors with the same elements are
            stored once, too, and stay several tensors. Any mapping will do. Its values are
            taken one by one, so that a mapping which makes them on demand is saved in the memory of its largest
            tensor.
        path: the destination, usually ending in .sparsefmt, or its URL (s3://, gs:// …; extra `remote`), where the
            file appears once all of it is there. Or a binary file object: it is written from its position on, and not
            closed. If something fails, the part that was written stays there.
        metadata: texts to keep with the tensors.
        layout: "auto", "dense", "bitmask" or "permuted". Tensors of 0 or 1 dimension are always "dense".
        codec: "raw" (multiplied straight from the mapped file), "zstd", "rans", or "auto" (the smallest).
        negative_zeros: "keep" every bit, or "drop" the sign of zeros: -0.0 becomes 0.0, and the file records how many.
        row_dims: how many leading dimensions make the rows of the matrix that a tensor is stored as: a number for all
            tensors of more dimensions, or numbers by name. By default 1, and 2 for a stack of matrices: a tensor of
            three dimensions whose last has 32 elements or more, unless its matrices are small. No tile has rows of two
            matrices, so that `w[e]` is one of them without a copy.
        progress: called as progress(done, total) after each tensor, in dense bytes.
        threads: the number of threads; by default all usable cores. The file does not depend on it.
        storage_options: of a URL, what fsspec's file system for it takes: credentials, an endpoint …

    Warns:
        UserWarning: more than a third of the file is the signs of zeros.

    Raises:
        SparsefmtError: a name, dtype, shape or metadata cannot be stored; the error names the tensor.
        TypeError: `path` is neither a path nor a binary file.
        OSError: the disk is full, the folder not writable, ….

    Example:
        >>> import numpy as np, sparsefmt
        >>> weight = np.diag(np.arange(1, 65, dtype=np.float32))
        >>> sparsefmt.save_file({"weight": weight}, "model.sparsefmt")
    """
    options = SaveOptions(layout, codec, negative_zeros, row_dims, threads)
    write_file(as_place(path, storage_options), tensors, metadata, options, progress)


def save(
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: str = "auto",
    codec: str = "auto",
    negative_zeros: NegativeZeros = "keep",
    row_dims: RowDims = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> bytes:
    """The bytes that `save_file` writes, for the same arguments. Raises what that raises of tensors."""
    return file_content(tensors, metadata, SaveOptions(layout, codec, negative_zeros, row_dims, threads), progress)


def load_file(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    layout: str = "auto",
    backend: Backend = "mmap",
    threads: int | None = None,
    max_decoded_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, SparseTensor | np.ndarray]:
    """Load all tensors of a .sparsefmt file.

    A tensor that is stored sparse stays compressed, as a SparseTensor. A tensor that is stored dense becomes a numpy
    array with its own memory. Arrays that are stored raw are the mapped file itself, and are not copied.

    Args:
        path: the file, or its URL (s3://, gs://, hf://, https:// …; extra `remote`), of which only what is needed is
            asked for. Or a binary file object that can seek, and that holds the file between its position and its end:
            it is not closed, and its position stays.
        layout: "auto": as stored, except that a coded `bitmask` becomes `permuted` from 70 % zeros on, where that
            multiplies faster; "bitmask" or "permuted": this layout for all tensors that are stored sparse; "dense":
            numpy arrays for all tensors.
        backend: "mmap" maps the file if its file system can, and reads it otherwise; "pread" reads into memory, for
            network file systems and files that may be truncated while in use.
        threads: the number of threads that decode; by default all usable cores.
        max_decoded_bytes: the most bytes that may be decoded at a time, as the index gives them: by default 1 GiB, or
            1,024 times the size of the file if that is more. Zeros code well: a hostile kilobyte can claim to be a
            terabyte. Raise it for a file that you trust.
        storage_options: of a URL, what fsspec's file system for it takes: credentials, an endpoint …

    Raises:
        FormatError, ChecksumError: the file is damaged, forged, or not a .sparsefmt file.
        UnsupportedError: it needs a newer version of the library.
        LimitError: it exceeds the limits of SPEC.md, `max_decoded_bytes`, or memory.
        ValueError: the layout or backend is unknown.
        OSError: it cannot be read.

    Cost: memory for what is returned, but for raw arrays, and for a few tiles while they are decoded.

    Example:
        >>> tensors = sparsefmt.load_file("model.sparsefmt")
        >>> y = sparsefmt.linear(np.ones((2, 64), np.float32), tensors["weight"])
    """
    with (
        in_file(path),
        open_file(
            path, backend=backend, threads=threads, max_decoded_bytes=max_decoded_bytes, storage_options=storage_options
        ) as file,
    ):
        return _load_all(file, layout)


def load(
    data: bytes | bytearray | memoryview | BinaryIO,
    *,
    layout: str = "auto",
    threads: int | None = None,
    max_decoded_bytes: int | None = None,
) -> dict[str, SparseTensor | np.ndarray]:
    """Load all tensors from the bytes of a file. Arguments, errors and cost are those of `load_file`.

    The bytes are copied once. A binary file object is read as by `load_file`.
    """
    with SparseFile(source_of_content(data), threads=threads, max_decoded_bytes=max_decoded_bytes) as file:
        return _load_all(file, layout)


def open_file(
    path: str | os.PathLike[str] | BinaryIO | Url,
    *,
    backend: Backend = "mmap",
    threads: int | None = None,
    max_decoded_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> SparseFile:
    """Open a .sparsefmt file for reading tensors one by one, or parts of them.

    Only the index is read, which takes milliseconds for a file of any size.

    Args:
        path: as in `load_file`. A file object that is not a file of the disk, such as io.BytesIO, may not be used for
            anything else while a tensor is read, and has to stay open as long as tensors are read from it.
        backend: as in `load_file`.
        threads: the number of threads that decode; by default all usable cores.
        max_decoded_bytes: as in `load_file`, for each tensor or slice that is asked for.
        storage_options: as in `load_file`.

    Raises:
        ValueError: the backend is unknown.
        as `load_file`.

    Example:
        >>> with sparsefmt.open_file("model.sparsefmt") as f:
        ...     rows = f.get_slice("weight")[8:16]
    """
    with in_file(path):
        source = source_of(as_place(path, storage_options), backend)
        try:
            return SparseFile(source, threads=threads, max_decoded_bytes=max_decoded_bytes)
        except BaseException:
            source.close()
            raise


def linear(
    x: ArrayLike,
    w: SparseTensor | np.ndarray,
    bias: ArrayLike | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
    *,
    scale: Any = None,
    activations: str | None = None,
    input_scale: float | None = None,
) -> np.ndarray:
    """`x @ w.T + bias`, as a linear layer computes it, on the compressed weights.

    Args:
        x: activations (..., cols).
        w: weights whose matrix view is (rows, cols): a SparseTensor, or a dense array, which is multiplied like layout
            "dense".
        bias: (rows,), added after the product.
        out: C-contiguous array (..., rows) of the result's dtype, for the result; it may not share memory with x.
        threads: the number of threads; by default all usable cores. The bits of the result do not depend on it.
        scale: what w is multiplied by, finite numbers of 0 or more, of float32, float16 or bfloat16: one number, or one
            for each row, (rows,) or (rows, 1), or for each row and group of columns, (rows, groups), where the groups
            divide the columns. Or a `sparsefmt.Scales`, which has been checked already.
        activations: "int8" rounds each row of x to integers of -127 to 127 times a scale of its own, and adds up exact
            integers: faster, and less exact than float activations. w must be int8. If a row of x has NaN or Inf, its
            results are NaN.
        input_scale: with activations="int8", the scale of all rows of x, a positive number; by default the largest
            magnitude of each row, divided by 127.

    Returns:
        an array (..., rows). Every row of x gives the same bits as it would alone.

    dtypes: sums are float64 if w or x is float64 or an integer of 32 bits or more, else float32; x is cast to
    that. The result has that dtype, or that of x if x is float16 or bfloat16 and w is not a wider (or the other 16-bit)
    float. With activations="int8", x is cast to float32, and the result is float32, or float16 or bfloat16 if x is.
    SPEC.md, "Products", gives the order of additions, and what Inf and NaN do.

    Raises:
        ValueError: shapes or dtypes do not fit.
        UnsupportedError: activations="int8", and w is not int8 (`activations-dtype`).

    Cost: time in proportion to the rows of x and to the elements of w that are not pruned (layout "dense": to all of
        them). The first call for a layout and a dtype compiles kernels, which takes seconds, and keeps them on disk.

    Example:
        >>> w = sparsefmt.SparseTensor.from_dense(weight)
        >>> y = sparsefmt.linear(np.ones((2, 64), np.float32), w)
    """
    if not isinstance(w, SparseTensor):
        w = SparseTensor.from_dense(w, layout="dense")
    operand = w.operand()
    if scale is None and activations is None and input_scale is None:
        return products().linear(x, operand, bias, out, threads)
    scaling = Scaling.of(scale, activations, input_scale, (operand.rows, operand.cols))
    return products().linear(x, operand, bias, out, threads, scaling)


def _load_all(file: SparseFile, layout: str) -> dict[str, SparseTensor | np.ndarray]:
    file.expect_budget(layout)
    file.count_together()
    index = file.reader.index
    file.reader.expect_all()
    tensors = {name: file.load(name, layout) for name in index.tensors}
    for name in index.copies:
        original = tensors[index.aliases[name]]
        # what cannot change is shared by two tensors
        if isinstance(original, SparseTensor):
            tensors[name] = original.with_signs(original.signs)
        else:
            tensors[name] = original.copy()
    return {name: tensors[index.tied.get(name, name)] for name in file}
