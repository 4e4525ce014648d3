"""Prints the annotated hex dump of SPEC.md, section 11, from a file that the library writes.

python -m tools.vectors.spec_example            print it
python -m tools.vectors.spec_example --update   put it into spec/SPEC.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import ml_dtypes
import msgpack
import numpy as np

import sparsefmt
from sparsefmt.container.chunks import STORED_RECORD, start
from sparsefmt.container.envelope import PREAMBLE_SIZE, TRAILER_SIZE, decode_trailer
from tools import ROOT

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
    index = msgpack.unpackb(data[trailer.index_offset : -TRAILER_SIZE])
    yield from ((8, "magic"), (2, "major 1"), (2, "minor 0"), (4, "no incompatible features"))
    names = [
        (f"{name}, {array}: {codec}", name, array)
        for name, entry in sorted(index["tensors"].items(), key=lambda item: item[1].get("first_chunk", 0))
        for array, codec in sorted(index["kinds"][entry["kind"]]["arrays"].items())
    ]
    end = PREAMBLE_SIZE
    for record, (title, _, _) in zip(np.frombuffer(index["chunks"], STORED_RECORD), names, strict=True):
        stored = int(record["stored"])
        at = start(end, stored, int(record["raw"]))
        yield at - end, "padding"
        yield stored, f"chunk: {title}"
        end = at + stored
    yield from index_fields(index, [title for title, _, _ in names])
    yield 8, f"index offset {trailer.index_offset}"
    yield 8, f"index size {trailer.index_size}"
    yield 8, "XXH64 of preamble and index"
    yield 8, "end magic"


def index_fields(index: dict[str, object], chunk_titles: list[str]) -> Iterator[Field]:
    """The index, key by key."""

    def size(value: object) -> int:
        return len(msgpack.packb(value))

    def items(mapping: dict[str, object], indent: str) -> Iterator[Field]:
        for key, value in mapping.items():
            if key == "chunks":
                table = bytes(value)
                yield size(key), f"{indent}key 'chunks'"
                yield size(table) - len(table), f"{indent}bin of {len(table)} bytes: stored, raw, XXH64"
                for title in chunk_titles:
                    yield from ((16, f"{indent}  {title}: stored, raw"), (8, f"{indent}  XXH64"))
            elif isinstance(value, dict) and value:
                yield size(key) + 1, f"{indent}key {key!r}: map of {len(value)}"
                yield from items(value, indent + "  ")
            else:
                yield size({key: value}) - 1, f"{indent}{key!r}: {value!r}"

    yield 1, "index: map of 4"
    yield from items(index, "  ")


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
