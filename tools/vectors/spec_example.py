"""Prints the annotated hex dump of SPEC.md, section 11, from a file that the library writes.

python -m tools.vectors.spec_example            print it
python -m tools.vectors.spec_example --update   put it into spec/SPEC.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

import sparsefmt
from sparsefmt.container.envelope import PREAMBLE_SIZE, TRAILER_SIZE, decode_trailer
from tools import ROOT
from tools.taken_apart import decoded, merged, places

SPEC = ROOT / "spec" / "SPEC.md"
BEGIN, END = "<!-- example begins -->\n", "<!-- example ends -->\n"
BYTES_PER_LINE = 16

Field = tuple[int, str]
"""Bytes of a field, and what it is."""


def example() -> bytes:
    """The file of SPEC.md, section 11."""
    weight = np.array([[0.0, 1.5, -0.0, 0.0], [0.0, 0.0, -2.0, 3.0]], ml_dtypes.bfloat16)
    tensors = {"b": np.array([1.0, 2.0], np.float32), "w": weight}
    return sparsefmt.save(tensors, {"by": "spec"}, layout="bitmask", codec="raw")


def annotated(data: bytes) -> str:
    """Every byte of `data` as hexadecimal, field by field."""
    lines, offset = [], 0
    for size, meaning in fields(data):
        if not size:
            continue
        part = data[offset : offset + size]
        if size > BYTES_PER_LINE and not any(part):
            lines.append(f"{offset:04x}  {'00 … 00':{BYTES_PER_LINE * 3 - 1}}  {meaning}")
        else:
            for start in range(0, size, BYTES_PER_LINE):
                text = part[start : start + BYTES_PER_LINE].hex(" ").upper()
                lines.append(
                    f"{offset + start:04x}  {text:{BYTES_PER_LINE * 3 - 1}}  {'' if start else meaning}".rstrip()
                )
        offset += size
    assert offset == len(data)
    return "\n".join(lines) + "\n"


def fields(data: bytes) -> Iterator[Field]:
    """All fields of the file in order."""
    trailer = decode_trailer(data[-TRAILER_SIZE:], len(data))
    encoded = data[trailer.index_offset : -TRAILER_SIZE]
    index = decoded(encoded)
    yield from ((8, "magic"), (2, "major 1"), (2, "minor 0"), (4, "no incompatible features"))
    end, titles = PREAMBLE_SIZE, []
    for name, entry in sorted(merged(index)["tensors"].items(), key=lambda item: item[1]["first_chunk"]):
        titles += [f"{name}, {array}: {codec}" for array, codec in sorted(entry["arrays"].items())]
    for (at, stored, _), title in zip(places(index["chunks"]), titles, strict=True):
        yield at - end, "padding"
        yield stored, f"chunk: {title}"
        end = at + stored
    yield from index_fields(msgpack.unpackb(encoded), titles)
    yield 4, f"index size {trailer.index_size}"
    yield 8, "XXH64 of preamble and index"
    yield 8, "end magic"


def index_fields(index: list[Any], titles: list[str]) -> Iterator[Field]:
    """The index, element by element."""

    def size(value: object) -> int:
        return len(msgpack.packb(value))

    def items(mapping: dict[str, Any], indent: str) -> Iterator[Field]:
        for key, value in mapping.items():
            if isinstance(value, dict) and value:
                yield size(key) + 1, f"{indent}{key!r}: map of {len(value)}"
                yield from items(value, indent + "  ")
            else:
                yield size({key: value}) - 1, f"{indent}{key!r}: {value!r}"

    def array(elements: list[Any], names: Sequence[str], indent: str) -> Iterator[Field]:
        """Elements that are always there, and a map."""
        for element, name in zip(elements, [*names, "map"], strict=False):
            if name == "map":
                yield 1, f"{indent}map of {len(element)}"
                yield from items(element, indent + "  ")
            else:
                yield size(element), f"{indent}{name} {element!r}"

    chunks, kinds, tensors, *rest = index
    yield 1, f"index: array of {len(index)}"
    yield size(chunks) - len(chunks), f"  chunk table: bin of {len(chunks)} bytes"
    width = chunks[0] % 16
    yield 1, f"    raw sizes of {width} {'byte' if width == 1 else 'bytes'}, no stored sizes"
    for title in titles:
        yield width, f"    {title}: raw size"
    for title in titles:
        yield 8, f"    {title}: XXH64"
    yield 1, f"  kinds: array of {len(kinds)}"
    for number, kind in enumerate(kinds):
        yield 1, f"    kind {number}: array of {len(kind)}"
        yield from array(kind, ["dtype"], "      ")
    yield 1, f"  tensors: map of {len(tensors)}"
    for name, entry in tensors.items():
        yield size(name) + 1, f"    {name!r}: array of {len(entry)}"
        yield from array(entry, ["kind", "shape"], "      ")
    for fields in rest:
        yield 1, f"  map of {len(fields)}"
        yield from items(fields, "    ")


def main() -> None:
    block = f"```text\n{annotated(example())}```\n"
    if sys.argv[1:] == ["--update"]:
        text = SPEC.read_text()
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        SPEC.write_text(head + BEGIN + block + END + tail)
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        print(block, end="")


if __name__ == "__main__":
    main()
