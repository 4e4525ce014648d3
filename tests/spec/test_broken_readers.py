"""Readers that are wrong in one thing do not pass the conformance kit: copies of spec/python with one line changed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from helpers import ROOT

from tools.vectors import conformance as kit

pytestmark = pytest.mark.slow

SOURCE = ROOT / "spec" / "python"
VECTORS = ROOT / "spec" / "vectors"
MANIFEST = json.loads((VECTORS / "manifest.json").read_text())


class Patch(NamedTuple):
    """A broken reader.

    Attributes:
        reader: what is wrong with it.
        file: that is changed.
        old: occurs once in it.
        new: takes its place.
        vectors: each of them catches it.
    """

    reader: str
    file: str
    old: str
    new: str
    vectors: list[str]


EDGES = [f"good/edges-{layout}-raw.sparsefmt" for layout in ("dense", "bitmask", "permuted", "gaps")]
STREAMS = ["good/rans-streams.sparsefmt"]
WIDE = ["good/wide-permuted-raw.sparsefmt", "good/wide-permuted-rans.sparsefmt"]
FILLERS = [f"good/fillers-gaps-{codec}.sparsefmt" for codec in ("raw", "zstd", "rans")]
CUMSUM = "elements = np.cumsum(differences, axis=0, dtype=np.uint64).reshape(-1)[:m]"
WITHOUT_CARRY = """low, high = (np.cumsum(differences >> bits, axis=0, dtype=np.uint32) for bits in (0, 32))
            elements = (low.astype(np.uint64) | high.astype(np.uint64) << 32).reshape(-1)[:m]"""


def bad(code: str, name: str) -> list[str]:
    return [f"bad/{code}/{name}.sparsefmt"]


def odd(name: str) -> list[str]:
    return [f"good/odd/{name}.sparsefmt"]


PATCHES = [
    # products
    Patch("rounds products of float32 twice", "products", "(bits + to_odd).view(np.float64)", "total", EDGES),
    Patch("rounds products of float64 twice", "products", "fma64(a, b, c).astype(np.float64)", "a * b + c", EDGES),
    Patch("leaves the last addition out", "products", "return s + x.dtype.type(0)", "return s", EDGES),
    Patch("adds from the last column on", "products", "[first[rows] + k]", "[(first + counts)[rows] - 1 - k]", EDGES),
    # slices and tiles
    Patch("has masks of 16 bits for 8 rows", "layouts", '"<u2" if height > 8', '"<u2" if height >= 8', EDGES[1:2]),
    Patch("has masks of 8 bits for 9 rows", "layouts", '"<u2" if height > 8', '"<u2" if height > 9', EDGES[1:2]),
    Patch("has masks of whole slices", "layouts", "c * ceil_div(r, 8)", "2 * c * ceil_div(r, 16)", EDGES[1:2]),
    Patch(
        "begins a slice at row 17",
        "layouts",
        "for first in range(0, r, HEIGHT)",
        "for first in range(0, r, 17)",
        EDGES[1:2],
    ),
    Patch(
        "has last tiles as high as others",
        "container",
        "min(self.tile_rows, self.rows - tile * self.tile_rows)",
        "self.tile_rows",
        EDGES,
    ),
    Patch("has one tile only", "container", "+ tile * len(entry.arrays)", "+ 0 * tile", EDGES),
    # columns
    Patch("has columns of 16 bits only", "layouts", "2 if c <= 65536 else 4", "2", WIDE),
    Patch("has columns of 32 bits from 65,536 on", "layouts", "c <= 65536", "c < 65536", WIDE),
    Patch("has columns of 32 bits from 65,538 on", "layouts", "c <= 65536", "c <= 65537", WIDE),
    Patch(
        "checks low halves of padding",
        "layouts",
        "values[~taken].any()",
        "(values[~taken].astype('<u8') << 32).any()",
        bad("slot-padding", "high-half-permuted-of-64-bits") + bad("slot-padding", "minus-0-permuted-of-64-bits"),
    ),
    # gaps
    Patch("takes fillers for elements", "layouts", "taken &= ~fillers", "taken &= taken", FILLERS),
    Patch(
        "adds gaps in 16 bits",
        "layouts",
        "np.cumsum(gaps, axis=0)",
        "np.cumsum(gaps, axis=0) & 0xFFFF",
        ["good/wide-gaps-raw.sparsefmt", *bad("column-range", "over-16-bits-wide-gaps")],
    ),
    Patch(
        "adds gaps of all slices",
        "layouts",
        "- np.repeat(sums[first[:-1]], np.diff(first), axis=0)",
        "",
        EDGES[3:] + FILLERS,
    ),
    Patch(
        "takes any zero for a filler",
        "layouts",
        "good = (where == 255) & (k[:, None] < last)",
        "good = k[:, None] < last",
        bad("stored-zero", "an-element-fillers") + bad("stored-zero", "filler-of-gap-254-fillers"),
    ),
    Patch(
        "takes a filler at the end of a row",
        "layouts",
        "good = (where == 255) & (k[:, None] < last)",
        "good = where == 255",
        bad("stored-zero", "filler-at-the-end-of-a-row-fillers"),
    ),
    Patch(
        "takes -0 for a filler",
        "layouts",
        "fillers = taken & (values == 0)",
        "fillers = taken & (values << 1 == 0)",
        bad("stored-zero", "minus-0-in-a-filler-fillers"),
    ),
    # rans
    Patch("has 1 state for 1024 symbols", "rans", "count < 1024", "count <= 1024", STREAMS),
    Patch("has 8 states for 1023 symbols", "rans", "count < 1024", "count < 1023", STREAMS),
    Patch("has 8 states for 65,536 symbols", "rans", "count < 65536", "count <= 65536", STREAMS),
    Patch("has 32 states for 65,535 symbols", "rans", "count < 65536", "count < 65535", STREAMS),
    Patch(
        "expects a frequency of 0",
        "rans",
        "max(1, min(expected, whole - 1))",
        "min(expected, whole - 1)",
        odd("expected-frequency-raised-to-1-u16"),
    ),
    Patch(
        "takes every group for one of 8 columns",
        "rans",
        "(2 * s + e) // (2 * e)",
        "(2 * s + 8) // 16",
        odd("mean-class-of-a-short-group-5-x-70"),
    ),
    Patch(
        "rounds the class of a group down",
        "rans",
        "(2 * s + e) // (2 * e)",
        "s // e",
        odd("mean-class-of-a-short-group-5-x-70"),
    ),
    Patch("adds differences without carry", "rans", CUMSUM, WITHOUT_CARRY, STREAMS),
    Patch("adds differences of 32 bits", "rans", CUMSUM, CUMSUM.replace("64", "32"), STREAMS),
    Patch("shifts no 64 bits", "rans", "<< self.shift", "<< (self.shift if self.element_bits < 64 else 0)", STREAMS),
    Patch("shifts modulo 32", "rans", "<< self.shift", "<< self.shift % 32", STREAMS),
    Patch(
        "has offsets of 32 bits that are 0",
        "rans",
        "(1 << widths) - 1",
        "(1 << widths * (widths != 32)) - 1",
        odd("bins-of-32-to-63-bits-u64"),
    ),
    Patch(
        "has offsets of 53 bits",
        "rans",
        "(1 << widths) - 1",
        "(1 << np.minimum(widths, 53)) - 1",
        odd("bins-of-32-to-63-bits-u64"),
    ),
    # names and integers
    Patch(
        "sorts keys as UTF-16",
        "container",
        "sorted(set(keys))",
        "sorted(set(keys), key=lambda key: key.encode('utf-16-be'))",
        EDGES + bad("index-not-canonical", "keys-by-utf-16-bitmask-raw"),
    ),
    Patch(
        "drops U+FEFF from names",
        "container",
        "return {name: entries[copies.get(target, target)] for name, target",
        "return {name.removeprefix('\\ufeff'): entries[copies.get(target, target)] for name, target",
        EDGES + odd("name-that-begins-with-u-feff-bitmask-raw"),
    ),
    Patch(
        "takes 6 bytes for a pair of surrogates",
        "container",
        "require(len(name.encode())",
        "require(len(name.encode()) + 2 * sum(char > '\\uffff' for char in name)",
        EDGES + odd("name-of-256-emoji-bitmask-raw"),
    ),
    Patch(
        "takes negative integers of 8 bits and more",
        "container",
        "value < 0)",
        "-32 <= value < 0)",
        [vector for bits in (8, 16, 32, 64) for vector in bad("index-type", f"negative-of-{bits}-bits-bitmask-raw")],
    ),
    Patch(
        "takes negative integers of 64 bits",
        "container",
        "value < 0)",
        "-(2**31) <= value < 0)",
        bad("index-type", "negative-of-64-bits-bitmask-raw"),
    ),
    Patch(
        "takes 64 bits for a small integer",
        "container",
        "require(msgpack.packb(root) == index,",
        "require(len(msgpack.packb(root)) in (len(index), len(index) - 4),",
        bad("index-not-canonical", "later-integer-of-64-bits-bitmask-raw"),
    ),
]


def reader_in(folder: Path, patch: pytest.MonkeyPatch) -> ModuleType:
    """The reader in a copy of spec/python. The modules of another copy stay what they are."""
    with patch.context() as during:
        during.setattr(sys, "path", list(sys.path))
        for file in folder.glob("*.py"):
            during.delitem(sys.modules, file.stem, raising=False)
        found = importlib.util.spec_from_file_location("reader", folder / "reader.py")
        module = importlib.util.module_from_spec(found)
        during.setitem(sys.modules, "reader", module)  # dataclasses look their module up
        found.loader.exec_module(module)
        for file in folder.glob("*.py"):
            assert Path(sys.modules.pop(file.stem, module).__file__).parent == folder
    return module


def differences(reader: kit.Reader, vector: str) -> list[str]:
    """What the kit says about it. A reader that breaks down is caught, too."""
    result = kit.Result()
    try:
        if "error" in MANIFEST[vector]:
            result.expect(vector, kit.outcome(reader, VECTORS / vector), MANIFEST[vector]["error"])
        else:
            kit.check_good(reader, VECTORS / vector, MANIFEST[vector], result)
    except (kit.Refused, LookupError, ValueError) as error:
        return [repr(error)]
    return result.differences


def test_the_reader_as_it_is(tmp_path, monkeypatch):
    """Nothing of what catches the others is held against it."""
    copy = shutil.copytree(SOURCE, tmp_path / "reader")
    reader = kit.Numpy(reader_in(copy, monkeypatch))
    for vector in {vector for patch in PATCHES for vector in patch.vectors}:
        assert differences(reader, vector) == []


@pytest.mark.parametrize("broken", PATCHES, ids=[patch.reader for patch in PATCHES])
def test_a_broken_reader(broken, tmp_path, monkeypatch):
    copy = shutil.copytree(SOURCE, tmp_path / "reader")
    file = copy / f"{broken.file}.py"
    text = file.read_text()
    assert text.count(broken.old) == 1
    file.write_text(text.replace(broken.old, broken.new))
    reader = kit.Numpy(reader_in(copy, monkeypatch))
    for vector in broken.vectors:
        assert differences(reader, vector) != [], vector
