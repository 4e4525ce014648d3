"""Any order of saving, overwriting, opening, reading, closing, copying and deleting, beside a model that is a dict.

Hypothesis chooses the steps. After each of them the folder holds the files of the model and nothing else, to the byte,
and every tensor that was ever loaded still has the bits of the version of the file that it came from.

A long run takes a larger number of sequences, and prints how many steps of each kind it took:

    SPARSEFMT_STORE_RUNS=4000 python -m pytest -s tests/test_store_machine.py
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import naive
import numpy as np
import pytest
from helpers import CODECS, arrays, dense, examples, far_apart, open_below, same_bits
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import sparsefmt
from sparsefmt import SparsefmtError, SparseTensor
from sparsefmt.dtypes import SUMMED_IN_DOUBLE, as_bits, dtype_of
from sparsefmt.layouts import LAYOUTS, heights
from tools import forms

pytestmark = pytest.mark.slow

RUNS = int(os.environ.get("SPARSEFMT_STORE_RUNS", examples(45)))
STEPS = 40

FILES = st.sampled_from(["a.sparsefmt", "b.sparsefmt", "ç d"])
NAMES = st.sampled_from(["w", "bias", "layer.0.weight", "ü", "\x7f"])
LAYOUT_WANTED = st.sampled_from(["auto", *LAYOUTS])
FORM = st.sampled_from(["dense", "columns", "gaps"])
"""Which form `permuted` has in a file; with the first, the smaller one."""

TENSORS = st.one_of(arrays(), arrays(), far_apart())
BACKENDS = st.sampled_from(["mmap", "pread"])
NUMBERS = st.integers(0, 1000)
KEYS = st.sampled_from([Ellipsis, slice(1, 5), slice(None, None, -2), slice(2, 2), (slice(1, None), Ellipsis), -1])
MOST_HELD = 12

Content = dict[str, np.ndarray]


@dataclass(frozen=True)
class Version:
    """What one save made: what each name holds, dense, and the bytes of the file."""

    content: Content
    metadata: dict[str, str]
    data: bytes


@dataclass
class Opened:
    """A handle and the version of the file that it has opened."""

    file: Any
    version: Version
    twin: bool
    closed: bool = False
    slices: list[tuple[Any, np.ndarray]] = field(default_factory=list)

    def one_tensor(self, number: int) -> tuple[str, np.ndarray]:
        return sorted(self.version.content.items(), key=lambda item: item[0])[number % len(self.version.content)]


@dataclass
class Held:
    """A loaded tensor and what it has to be."""

    tensor: SparseTensor | np.ndarray
    expected: np.ndarray

    @property
    def has_product(self) -> bool:
        return self.expected.ndim > 1 and self.expected.size > 0 and self.expected.dtype != np.complex64


def without_negative_zeros(array: np.ndarray) -> np.ndarray:
    dtype = dtype_of(array.dtype)
    bits = as_bits(array, dtype).copy()
    if dtype.negative_zero:
        bits[bits == dtype.negative_zero] = 0
    return bits.view(dtype.numpy)


def pickled(tensor: Any) -> Any:
    return pickle.loads(pickle.dumps(tensor))


class Store(RuleBasedStateMachine):
    """Files of a folder, handles and tensors of them, and the model beside them."""

    steps: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        gc.freeze()  # what is here before is not looked through at the end of each run
        self.positions_of_a_tile = heights.TILE_POSITIONS
        heights.TILE_POSITIONS = 256  # small tensors have several tiles
        self.folder = Path(tempfile.mkdtemp())
        self.files: dict[str, Version] = {}
        self.opened: list[Opened] = []
        self.held: list[Held] = []

    def teardown(self) -> None:
        heights.TILE_POSITIONS = self.positions_of_a_tile
        self.opened.clear()
        self.held.clear()
        gc.collect()
        assert not open_below(self.folder)
        shutil.rmtree(self.folder)
        maps = Path("/proc/self/maps")
        assert not maps.exists() or self.folder.name not in maps.read_text()

    def took(self, step: str) -> None:
        self.steps[step] += 1

    def save(self, name: str, tensors: Any, content: Content, metadata: dict[str, str], **keywords: Any) -> None:
        """Save and update the model; the bytes are those that `sparsefmt.save` gives."""
        data = sparsefmt.save(tensors, metadata, **keywords)
        sparsefmt.save_file(tensors, self.folder / name, metadata, **keywords)
        if keywords.get("negative_zeros") == "drop":
            content = {name: without_negative_zeros(array) for name, array in content.items()}
        self.files[name] = Version(content, metadata, data)

    def hold(self, tensor: SparseTensor | np.ndarray, expected: np.ndarray) -> None:
        assert same_bits(dense(tensor), expected)
        self.held.append(Held(tensor, expected))
        del self.held[:-MOST_HELD]

    def one_file(self, number: int) -> str:
        return sorted(self.files)[number % len(self.files)]

    def one_opened(self, number: int) -> Opened:
        return self.opened[number % len(self.opened)]

    def one_held(self, number: int) -> Held:
        return self.held[number % len(self.held)]

    @initialize(contents=st.lists(st.dictionaries(NAMES, TENSORS, min_size=1, max_size=2), min_size=1, max_size=2))
    def begin(self, contents):
        """With files of which one is open and loaded, so that every step can be the first."""
        for name, content in zip(["a.sparsefmt", "b.sparsefmt"], contents, strict=False):
            self.save(name, content, content, {})
        self.open(0, "mmap", False)
        self.load_file(0, "auto", None)

    @rule(
        name=FILES,
        content=st.dictionaries(NAMES, TENSORS, max_size=4),
        tied=NAMES,
        compressed=st.booleans(),
        metadata=st.dictionaries(st.text("ab\n", max_size=3), st.text("aß\0", max_size=3), max_size=2),
        layout=LAYOUT_WANTED,
        form=FORM,
        codec=st.sampled_from(CODECS),
        negative_zeros=st.sampled_from(["keep", "keep", "drop"]),
        row_dims=st.sampled_from([None, 1, 2, 3]),
    )
    def save_new(self, name, content, tied, compressed, metadata, layout, form, codec, negative_zeros, row_dims):
        """A new file, or a new version of one that others may have open and mapped."""
        self.took("save over a file" if name in self.files else "save")
        if content:
            content[tied] = next(iter(content.values()))
        made: dict[int, Any] = {}
        tensors = {
            key: made.setdefault(id(array), SparseTensor.from_dense(array) if compressed else array)
            for key, array in content.items()
        }
        with forms.choosing(form):
            options = {"layout": layout, "codec": codec, "negative_zeros": negative_zeros, "row_dims": row_dims}
            self.save(name, tensors, content, metadata, **options)

    @precondition(lambda self: self.held)
    @rule(name=FILES, numbers=st.lists(NUMBERS, min_size=1, max_size=3), codec=st.sampled_from(CODECS))
    def save_held(self, name, numbers, codec):
        """Tensors of other files and of other versions, perhaps of the file that is overwritten."""
        self.took("save what was loaded")
        chosen = {f"{place}": self.one_held(number) for place, number in enumerate(numbers)}
        tensors = {key: held.tensor for key, held in chosen.items()}
        self.save(name, tensors, {key: held.expected for key, held in chosen.items()}, {}, codec=codec)

    @precondition(lambda self: self.files)
    @rule(number=NUMBERS, layout=LAYOUT_WANTED, codec=st.sampled_from(CODECS), backend=BACKENDS)
    def save_over_itself(self, number, layout, codec, backend):
        """All tensors of a file, or the open file as a mapping, saved over that very file."""
        self.took("save a file over itself")
        name = self.one_file(number)
        version = self.files[name]
        if layout == "auto":
            with sparsefmt.open_file(self.folder / name, backend=backend) as file:
                self.save(name, file, version.content, version.metadata, codec=codec)
        else:
            loaded = sparsefmt.load_file(self.folder / name, layout=layout)
            self.save(name, loaded, version.content, version.metadata, codec=codec)

    @precondition(lambda self: self.opened)
    @rule(name=FILES, content=st.dictionaries(NAMES, arrays(), max_size=2))
    def save_and_fail(self, name, content):
        """An error after the first tensors were written: the old file stays, and nothing beside it."""
        self.took("save that fails")
        with pytest.raises(SparsefmtError) as caught:
            sparsefmt.save_file({**content, "zzz": np.array(["text"])}, self.folder / name)
        assert (caught.value.code, caught.value.tensor) == ("dtype-unknown", "zzz")

    @rule(name=FILES, backend=BACKENDS)
    def open_what_is_not_there(self, name, backend):
        if name not in self.files:
            self.took("open a file that is not there")
            with pytest.raises(FileNotFoundError):
                sparsefmt.open_file(self.folder / name, backend=backend)

    @precondition(lambda self: self.files)
    @rule(number=NUMBERS, backend=BACKENDS, twin=st.booleans())
    def open(self, number, backend, twin):
        self.took("open")
        name = self.one_file(number)
        path = self.folder / name
        version = self.files[name]
        file = sparsefmt.safe_open(path, "np", backend=backend) if twin else sparsefmt.open_file(path, backend=backend)
        assert file.keys() == sorted(version.content)
        assert (file.metadata() or {}) == version.metadata
        self.opened.append(Opened(file, version, twin))
        if len(self.opened) > 6:
            self.opened.pop(0)  # let go of without being closed

    @precondition(lambda self: self.files)
    @rule(number=NUMBERS, layout=LAYOUT_WANTED, threads=st.sampled_from([None, 1, 3]))
    def load_file(self, number, layout, threads):
        self.took("load all")
        name = self.one_file(number)
        loaded = sparsefmt.load_file(self.folder / name, layout=layout, threads=threads)
        content = self.files[name].content
        assert list(loaded) == sorted(content)
        for key, tensor in loaded.items():
            self.hold(tensor, content[key])

    @precondition(lambda self: self.opened)
    @rule(number=NUMBERS, which=NUMBERS, layout=LAYOUT_WANTED, lazy=st.booleans())
    def get(self, number, which, layout, lazy):
        """One tensor of a file that may have been closed, overwritten or deleted since."""
        opened = self.one_opened(number)
        if not opened.version.content:
            return
        name, expected = opened.one_tensor(which)
        read: Callable[[], Any] = lambda: opened.file.get_tensor(name)  # noqa: E731
        if lazy and not opened.twin:
            read = lambda: opened.file.load(name, layout)  # noqa: E731
        if opened.closed:
            self.took("read from a closed file")
            with pytest.raises(SparsefmtError, match="is closed") as caught:
                read()
            assert caught.value.code == "file-closed"
        else:
            self.took("read")
            self.hold(read(), expected)

    @precondition(lambda self: self.opened)
    @rule(number=NUMBERS, which=NUMBERS)
    def slice(self, number, which):
        opened = self.one_opened(number)
        if not opened.version.content or (opened.closed and opened.twin):
            return
        self.took("make a slice")
        name, expected = opened.one_tensor(which)
        part = opened.file.get_slice(name)
        assert part.get_shape() == list(expected.shape)
        assert part.get_dtype() == dtype_of(expected.dtype).name
        opened.slices.append((part, expected))

    @precondition(lambda self: any(opened.slices for opened in self.opened))
    @rule(number=NUMBERS, key=KEYS)
    def read_slice(self, number, key):
        """Slices of safe_open keep the file open; those of open_file do not."""
        having = [opened for opened in self.opened if opened.slices]
        opened = having[number % len(having)]
        part, expected = opened.slices[number % len(opened.slices)]
        key = key if expected.ndim else Ellipsis
        if opened.closed and not opened.twin:
            self.took("read a slice of a closed file")
            with pytest.raises(SparsefmtError, match="the file is closed") as caught:
                part[key]
            assert caught.value.code == "file-closed"
        else:
            self.took("read a slice")
            if key == -1 and not len(expected):
                with pytest.raises(IndexError, match="out of bounds"):
                    part[key]
                return
            found = np.asarray(part[key])
            assert same_bits(found, np.ascontiguousarray(expected[key]).reshape(expected[key].shape))

    @precondition(lambda self: not all(opened.closed for opened in self.opened))
    @rule(number=NUMBERS)
    def close(self, number):
        """Again, too, and while tensors and slices of it live."""
        opened = self.one_opened(number)
        self.took("close again" if opened.closed else "close")
        if opened.twin:
            opened.file.__exit__(None, None, None)
        else:
            opened.file.close()
        opened.closed = True

    @precondition(lambda self: self.files)
    @rule(number=NUMBERS)
    def delete(self, number):
        self.took("delete")
        name = self.one_file(number)
        del self.files[name]
        (self.folder / name).unlink()

    @precondition(lambda self: self.files)
    @rule(number=NUMBERS, destination=FILES, move=st.booleans())
    def copy_or_move(self, number, destination, move):
        """Over another file by renaming only: copying writes into the file that is there, which is nobody's promise."""
        source = self.one_file(number)
        if source == destination or (destination in self.files and not move):
            return
        self.took("move" if move else "copy")
        self.files[destination] = self.files[source]
        if move:
            os.replace(self.folder / source, self.folder / destination)
            del self.files[source]
        else:
            shutil.copyfile(self.folder / source, self.folder / destination)

    @precondition(lambda self: self.files)
    @rule(number=NUMBERS, where=st.integers(0, 1 << 20), flip=st.integers(0, 255), cut=st.booleans(), backend=BACKENDS)
    def damage(self, number, where, flip, cut, backend):
        """A copy of which one byte was changed, or that was cut off, is refused, unless nothing was changed."""
        self.took("damage")
        version = self.files[self.one_file(number)]
        data = bytearray(version.data)
        where %= len(data)
        data[where] ^= flip
        path = self.folder / "damaged"
        path.write_bytes(data[:where] if cut else data)
        try:
            with sparsefmt.open_file(path, backend=backend) as file:
                found = {key: file.get_tensor(key) for key in file}
            assert found.keys() == version.content.keys()
            assert all(same_bits(found[key], array) for key, array in version.content.items())
            assert data == version.data
            assert not cut
        except SparsefmtError:
            assert cut or flip
        finally:
            path.unlink()

    @precondition(lambda self: self.held)
    @rule(number=NUMBERS, how=st.sampled_from([copy.copy, copy.deepcopy, pickled]))
    def copy_tensor(self, number, how):
        """A copy is as good as the tensor that it comes from."""
        self.took(how.__name__)
        held = self.one_held(number)
        self.hold(how(held.tensor), held.expected)

    @precondition(lambda self: any(isinstance(held.tensor, SparseTensor) for held in self.held))
    @rule(number=NUMBERS, layout=st.sampled_from(list(LAYOUTS)))
    def change_layout(self, number, layout):
        having = [held for held in self.held if isinstance(held.tensor, SparseTensor)]
        held = having[number % len(having)]
        if dtype_of(held.expected.dtype).prunable and held.has_product:
            self.took("change the layout")
            self.hold(held.tensor.to_layout(layout), held.expected)

    @precondition(lambda self: any(held.has_product for held in self.held))
    @rule(number=NUMBERS, transposed=st.booleans())
    def multiply(self, number, transposed):
        self.took("multiply")
        having = [held for held in self.held if held.has_product]
        held = having[number % len(having)]
        dtype, expected = dtype_of(held.expected.dtype), held.expected
        if isinstance(held.tensor, SparseTensor):  # a stack, perhaps
            expected = expected.reshape(held.tensor.tiling.rows, held.tensor.tiling.cols)
        summed = np.float64 if dtype.name in SUMMED_IN_DOUBLE else np.float32
        x = np.random.default_rng(number).standard_normal((2, expected[0].size)).astype(summed)
        with np.errstate(all="ignore"):
            products = naive.product(expected, x, summed)
        if transposed and isinstance(held.tensor, SparseTensor):
            found = np.ascontiguousarray((held.tensor @ x.T).T)
        else:
            found = sparsefmt.linear(x, held.tensor)
        assert found.dtype == products.dtype
        bits = f"u{found.dtype.itemsize}"
        # a NaN is a NaN: processors differ in its payload
        assert ((found.view(bits) == products.view(bits)) | (np.isnan(found) & np.isnan(products))).all()

    @precondition(lambda self: self.held)
    @rule(number=NUMBERS)
    def write_to(self, number):
        """Dense arrays are the caller's own: to change one changes no file and no other tensor."""
        held = self.held.pop(number % len(self.held))
        if isinstance(held.tensor, np.ndarray) and held.tensor.size and held.tensor.flags.writeable:
            self.took("write to an array")
            shared = [other for other in self.held if other.tensor is held.tensor]
            self.held = [other for other in self.held if not any(other is one for one in shared)]
            held.tensor[...] = held.tensor.dtype.type(1)

    @precondition(lambda self: len(self.held) > 1)
    @rule()
    def let_go(self):
        """Of all tensors but the newest."""
        self.took("let go")
        del self.held[:-1]

    @invariant()
    def the_folder_has_what_was_saved(self):
        assert sorted(os.listdir(self.folder)) == sorted(self.files)
        for name, version in self.files.items():
            assert (self.folder / name).read_bytes() == version.data

    @invariant()
    def tensors_keep_their_bits(self):
        for held in self.held:
            assert same_bits(dense(held.tensor), held.expected)


def test_any_order_of_steps():
    Store.steps.clear()
    gc.collect()
    try:
        run_state_machine_as_test(
            Store,
            settings=settings(
                max_examples=RUNS,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        print(f"\n{sum(Store.steps.values()):,} steps:", dict(Store.steps.most_common()))
    assert len(Store.steps) > 20  # of 25 kinds: the machine does reach what it is about
