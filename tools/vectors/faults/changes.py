"""Files to begin with, and what can be changed in them.

A change is a function of a TakenApart. It changes that in place, or returns the bytes of the whole file instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

import sparsefmt
from tools import forms
from tools.forms import LAYOUTS
from tools.taken_apart import Encoded, TakenApart, canonical, decoded, encoded, with_kinds

Change = Callable[[TakenApart], Any]

SPARSE = [layout for layout in LAYOUTS if layout != "dense"]
CODECS = ("raw", "zstd", "rans")

ALIAS, COPY = {"alias_of": "w"}, {"copy_of": "w"}
"""Entries of the index that are another name, and a copy, of `w`."""


class Fault(NamedTuple):
    """A change that gives a file one fault.

    Attributes:
        code: that a reader must give; "ok" if there is no fault.
        base: name of the file in BASES.
        name: what is wrong with it.
        slow: whether it takes seconds to make the file, which is large then.
    """

    code: str
    base: str
    name: str
    change: Change
    slow: bool = False

    def file(self) -> bytes:
        """The file with the fault."""
        parts = TakenApart(base(self.base))
        other = self.change(parts)
        return other if isinstance(other, bytes) else bytes(parts)


def weight(negative: bool = True) -> np.ndarray:
    """20 x 70; rows of equal and of different counts, one of them empty."""
    rng = np.random.default_rng(7)
    w = rng.standard_normal((20, 70)).astype(np.float32)
    w[rng.random(w.shape) < 0.7] = -0.0 if negative else 0
    w[5] = np.roll(w[6], 3)
    w[3] = 0
    return w


def saved(layout: str, codec: str, **tensors: np.ndarray) -> Callable[[], bytes]:
    """layout: of LAYOUTS, or "auto"."""
    if layout == "auto":
        return lambda: sparsefmt.save(tensors, layout=layout, codec=codec)
    return lambda: forms.save(tensors, form=LAYOUTS[layout], codec=codec)


def mapped() -> bytes:
    """Chunks that lie where they can be mapped, and small ones."""
    large = np.arange(1, (1 << 13) + 1, dtype=np.float32)
    return sparsefmt.save({"a": large, "b": large[:1], "c": large[:3], "d": 2 * large}, codec="raw")


def stack() -> bytes:
    """Matrices above each other, in tiles of four rows, and a stack without elements."""
    w = weight(False)[:, :18].reshape(2, 20, 9)
    return sparsefmt.save({"w": w, "e": w[:0]}, layout="bitmask", codec="raw", row_dims=2)


def packed_stack() -> bytes:
    w = weight(False)[:16, :5].reshape(2, 8, 5).astype(ml_dtypes.float4_e2m1fn)
    return sparsefmt.save({"w": w}, codec="raw", row_dims=2)


def bases() -> dict[str, Callable[[], bytes]]:
    w, vector = weight(), np.arange(1, 71, dtype=np.float32)
    big = np.zeros((64, 4096), np.float32)
    big[::3, ::5] = 1.25
    files = {
        f"{layout} {codec}": partial(forms.save, {"w": w, "v": vector}, {"a": "b"}, form=form, codec=codec)
        for layout, form in LAYOUTS.items()
        for codec in CODECS
    }
    files |= {f"positive {layout}": saved(layout, "raw", w=abs(w)) for layout in SPARSE}
    files |= {f"big {layout}": saved(layout, "zstd", w=big) for layout in LAYOUTS}
    for rows in 8, 9, 24, 25:
        for layout in SPARSE:
            files[f"{rows} rows {layout}"] = saved(layout, "raw", w=np.concatenate([w, w])[:rows])
    tall = np.zeros((1024, 9), np.uint8)
    tall[::7, ::2] = 5
    files["tall mask zstd"] = saved("bitmask", "zstd", w=tall)
    files["mapped raw"] = mapped
    files["stack"] = stack
    files["packed stack"] = packed_stack
    files["integers"] = saved("bitmask", "raw", w=(w * 10).astype(np.int8))
    files["bool"] = saved("auto", "raw", w=w > 0)
    files["packed"] = saved("auto", "raw", w=w[:19, :3].astype(ml_dtypes.float4_e2m1fn))
    files["empty"] = saved("auto", "raw", w=w[:, :0], v=vector)
    far = np.zeros((3, 1100), np.float32)
    for row, distances in enumerate(([5, 255, 256, 511], [1000], [])):
        far[row, np.cumsum(distances, dtype=np.int64)] = 1.5
    files["fillers"] = saved("gaps", "raw", w=far)
    files["fillers and signs"] = saved("gaps", "raw", w=np.where(far, far, np.float32(-0.0)))
    wide = np.zeros((1, 65500), np.uint8)
    wide[0, [0, 65400, 65450]] = 1, 2, 3
    files["wide gaps"] = saved("gaps", "raw", w=wide)
    files["full"] = saved("bitmask", "raw", w=np.ones((8, 8), np.float32))
    return files


BASES = bases()
"""What makes each file to begin with. Saving compiles, and so it waits until the file is wanted."""


@cache
def base(name: str) -> bytes:
    """A file to begin with."""
    return BASES[name]()


FAULTS: list[Fault] = []


def faults(code: str, base: str, changes: dict[str, Change], slow: bool = False) -> None:
    """Each change gives a file this fault and no other; `ok` none."""
    FAULTS.extend(Fault(code, base, name, change, slow) for name, change in changes.items())


def fields(name: str = "w", minor: int = 0, **values):
    """Change fields of an entry; `...` removes."""

    def change(file: TakenApart):
        file.preamble[10] = minor
        entry = file.entry(name)
        entry.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del entry[key]

    return change


def top(minor: int = 0, **values):
    def change(file: TakenApart):
        file.preamble[10] = minor
        file.index.update(values)

    return change


def arrays(**codecs):
    def change(file: TakenApart):
        file.entry()["arrays"] = {k: v for k, v in (file.entry()["arrays"] | codecs).items() if v is not ...}

    return change


def entry_named(name: str, value):
    return lambda file: file.index["tensors"].update({name: value})


def preamble(offset: int, value: int):
    return lambda file: file.preamble.__setitem__(offset, value)


def trailer(field: int, value):
    def change(file: TakenApart):
        file.change_trailer = lambda fields: fields.__setitem__(field, value(fields[field]) % 2 ** (32, 64)[field])

    return change


def record(number: int, field: int, value):
    def change(file: TakenApart):
        file.change_records = lambda records: records[number].__setitem__(field, value(records[number][field]) % 2**64)

    return change


def index(value):
    def change(file: TakenApart):
        file.change_index = value if callable(value) else lambda index: value

    return change


def raw_index(**values):
    """Fields of the index that are put into its bytes, or that are not to be there."""

    def replaced(index: bytes) -> bytes:
        changed = decoded(index) | values
        return encoded({key: value for key, value in changed.items() if value is not ...})

    return lambda file: setattr(file, "change_index", replaced)


def elements(change):
    """Change the index in its own form, an array. What of it is Encoded is taken as it is."""

    def rewritten(index: bytes) -> bytes:
        content = msgpack.unpackb(index)
        changed = change(content)
        return canonical(content if changed is None else changed)

    return lambda file: setattr(file, "change_index", rewritten)


def kinds(change):
    """Change the kinds of the index, in the order of the tensors."""

    def changed(file: TakenApart):
        file.index = with_kinds(file.index)
        change(file.index["kinds"])

    return changed


def array(name: str, dtype: str, value):
    """Change an array; `value` gets it, and gives another or changes it in place."""

    def change(file: TakenApart):
        content = file.array(name, dtype)
        changed = value(content)
        file.put(name, content if changed is None else changed)

    return change


def item(position: int, value):
    def change(content: np.ndarray):
        content[position] = value(content) if callable(value) else value

    return change


def whole(data):
    """Not a change of the parts: other bytes."""
    return lambda file: data(bytes(file))


def later(value):
    """A key of a greater minor version, in the index."""
    return top(1, later=value)


def nested(levels: int) -> Encoded:
    """Arrays within each other."""
    return Encoded(b"\x91" * levels + b"\0")


def both(first, second):
    """Two changes, one after the other."""

    def change(file: TakenApart):
        first(file)
        second(file)

    return change


def changed(data: bytes, position: int, bits: int) -> bytes:
    out = bytearray(data)
    out[position] ^= bits
    return bytes(out)
