"""SPEC.md and the code say the same: its tables, its byte dump, its reader."""

from __future__ import annotations

import json
import re
from itertools import product

import numpy as np
import pytest
from helpers import PRUNABLE, ROOT, each_of, in_form, pruned, random_bits

import sparsefmt
from sparsefmt import codecs, limits
from sparsefmt.codecs.contract import ArrayInfo, Chunk
from sparsefmt.container import chunks, entry, envelope, index, kinds
from sparsefmt.dtypes import DTYPES, as_bits, pack
from sparsefmt.layouts import FORMS, LAYOUTS, heights
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.positions import Positions
from tools.vectors import spec_example as tool

SPEC = (ROOT / "spec" / "SPEC.md").read_text()


def section(title: str) -> str:
    """The text from the heading that starts with `title` to the next heading of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}.*?$(.*?)(?=^#{{1,2}} |^\1 |\Z)", SPEC, re.M | re.S)
    assert found, f"no section {title!r}"
    return found[2]


def table(text: str) -> list[dict[str, str]]:
    """The first table of a text: a dict for each row, backticks removed."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]
    header, _, *body = rows
    return [dict(zip(header, row, strict=True)) for row in body if len(row) == len(header)]


def tables(text: str) -> list[list[dict[str, str]]]:
    return [table(block) for block in re.findall(r"(?:^\|.*\n)+", text, re.M)]


def test_limits():
    specified = {row["limit"]: int(row["value"]) for row in table(section("8. Limits"))}
    assert specified == {name: value for name, value in vars(limits).items() if name.startswith("MAX_")}


def test_dtypes():
    specified = [
        (row["dtype"], int(row["bits"]), row["sparse layouts"] == "yes", int(row["negative zero"] or "0", 0))
        for row in table(section("3. Element types"))
    ]
    assert specified == [(d.name, d.nbits, d.prunable, d.negative_zero) for d in DTYPES.values()]


def test_preamble_and_trailer():
    rows = table(section("2.1 Preamble"))
    assert bytes.fromhex(rows[0]["value"]) == envelope.MAGIC
    assert (int(rows[1]["value"]), int(rows[2]["value"])) == (envelope.MAJOR, envelope.MINOR)
    assert sum(int(row["size"]) for row in rows) == envelope.PREAMBLE_SIZE
    rows = table(section("2.3 Trailer"))
    assert bytes.fromhex(rows[-1]["value"]) == envelope.END_MAGIC
    assert [int(row["offset"]) for row in rows] == [0, 4, 12]
    assert sum(int(row["size"]) for row in rows) == envelope.TRAILER_SIZE


def test_index_keys():
    elements, top, columns, of_kind, kind, of_entry, tensor, alias = tables(section("2.4 Index"))
    assert tuple(row["key"] for row in top) == index._TOP_KEYS.optional
    assert tuple(row["key"] for row in alias) == (*index._ALIAS_KEYS.required, *index._COPY_KEYS.required)
    assert tuple(row["key"] for row in kind) == kinds._KEYS.optional
    assert [len(rows) for rows in (elements, of_kind, of_entry)] == [3, 1, 2]
    by_presence = {
        "sparse layouts": entry._SPARSE_KEYS.required,
        "if": entry._SPARSE_KEYS.optional,  # not 0, not empty, fewer than all
    }
    assert not entry._DENSE_KEYS.required
    for presence, keys in by_presence.items():
        assert tuple(row["key"] for row in tensor if row["present"].startswith(presence)) == keys
    assert [row["key"] for row in tensor] == sorted(row["key"] for row in tensor)
    assert [row["field"] for row in columns] == ["widths", "raw", "stored", "checksum"]
    assert {row["field"] for row in columns} - {"widths"} == set(chunks.STORED_RECORD.names)


@pytest.mark.parametrize(("title", "layout"), [("4.1", "dense"), ("4.2", "bitmask"), ("4.3", "permuted")])
def test_arrays(title, layout):
    rows = table(section(title))
    forms = [found for found in FORMS.values() if found.name == layout]
    assert [row["array"] for row in rows] == sorted({array for form in forms for array in form.arrays})
    for row, form in [(row, form) for form in forms for row in rows if row["array"] in form.arrays]:
        types = [str(form.array_dtype(row["array"], DTYPES["F16"], cols).itemsize * 8) for cols in (65536, 65537)]
        if row["type"] == "elements":
            assert types == ["16", "16"]
        else:
            assert re.findall(r"u(\d+)", row["type"]) == sorted(set(types))


@pytest.mark.parametrize("dtype", PRUNABLE, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("cols", [1, 64, 70, 70000])
def test_formulas_of_array_sizes(dtype, cols):
    """The column "bytes" of section 4, evaluated."""
    rows = 19 if cols < 1000 else 7  # one tile
    array = pruned(np.random.default_rng(cols), (rows, cols), dtype, 0.9, True)
    array.reshape(-1)[0] = as_bits(np.ones(1, np.uint8), DTYPES["U8"]).astype(dtype.bits_dtype).view(dtype.numpy)[0]
    for title, form in (("4.2", "bitmask"), ("4.3", "columns"), ("4.3", "gaps")):
        tile = in_form(array, form).operand().tiles[0]
        names = {
            "r": rows,
            "c": cols,
            "n": tile.nnz,
            "w": dtype.nbits // 8,
            "L": -(-rows // 16),
            "S": tile["values"].size // 16,
            "ceil": np.ceil,
        }
        for row in [*table(section(title)), *table(section("4.4"))]:
            if row["array"] not in tile.all_arrays():
                assert row["array"] in (NEGATIVE_ZEROS, "columns", "gaps")
                continue
            formula = row["bytes"].replace("2 or 4", "2" if cols <= 65536 else "4")
            assert tile[row["array"]].nbytes == int(eval(formula, {}, names)), row["array"]


def test_codecs():
    assert [f"5.{number} `{name}`" for number, name in enumerate(codecs.CODECS, 1)] == re.findall(
        r"^### (5\.\d .*)$", SPEC, re.M
    )
    (ratios,) = re.findall(r"the most the codec can do \((.*?)\)", SPEC)
    specified = {name: int(ratio.replace(",", "")) for name, ratio in re.findall(r"`(\w+)` (\d+(?:,\d+)*)", ratios)}
    assert specified == {name: codec.max_ratio for name, codec in codecs.CODECS.items()}


def test_error_codes():
    """Every code that reading can raise is in the table, with its kind, and the table has no others."""
    specified = {row["code"]: row["kind"] for row in table(section("7. What a reader must reject"))}
    kinds = {
        "FormatError": "format",
        "ChecksumError": "checksum",
        "UnsupportedError": "unsupported",
        "LimitError": "limit",
    }
    raised = set()
    for sources in ("container/**/*.py", "layouts/**/*.py", "codecs/**/*.py", "shapes.py"):
        for source in (ROOT / "sparsefmt").glob(sources):
            for kind, code in re.findall(r"(\w+Error)\(\s*\"([a-z-]+)\"", source.read_text()):
                # a plain SparsefmtError is about the call, as on a file that is closed
                if kind != "SparsefmtError":
                    raised.add((code, kinds[kind]))
    table_of_faults = (ROOT / "sparsefmt/layouts/permuted.py").read_text()
    raised |= {(code, "format") for code in re.findall(r"jitted\.[A-Z_]+: \(\"([a-z-]+)\"", table_of_faults)}
    of_writers = ("name-duplicate", "tensor-changed", "writer-failed", "writer-finished")
    writing = {(code, "format") for code in of_writers} | {("file-object", "unsupported")}
    writing.add(("kind-count", "limit"))
    of_its_own = {("memory", "limit"), ("decoded-bytes", "limit")}
    assert all(f"`{code}`" in section("7. What a reader must reject") for code, _ in of_its_own)
    # about where a file is, and not about its bytes
    of_places = ("remote-library", "remote-size", "url-unknown", "url-read-only")
    of_urls = {(code, "unsupported") for code in of_places}
    of_urls.add(("file-changed", "format"))
    assert of_urls <= raised
    assert raised - writing - of_its_own - of_urls == set(specified.items())


def test_codes_of_products():
    """Those of 6.3 are what the reader in C has beside those of section 7, and there are vectors for all."""
    codes = [row["code"] for row in table(section("6.3 What is refused"))]
    header = (ROOT / "spec" / "c" / "sparsefmt.h").read_text()
    found = re.findall(r'^    X\([A-Z_]+, "([a-z-]+)"\)', header, re.M)
    of_files = [row["code"] for row in table(section("7. What a reader must reject"))]
    assert found[: found.index("columns")] == [*of_files, *codes, "memory", "argument"]
    manifest = json.loads((ROOT / "spec" / "vectors" / "manifest.json").read_text())
    products = [product for file in manifest.values() for product in file.get("products", ())]
    assert {product["error"] for product in products if "error" in product} == set(codes)


def test_names_in_the_headings():
    assert re.findall(r"^### 4\.\d `(\w+)`$", SPEC, re.M) == [*LAYOUTS, NEGATIVE_ZEROS]


def test_byte_dump_is_what_the_writer_writes():
    assert f"{tool.BEGIN}```text\n{tool.annotated(tool.example())}```\n{tool.END}" in SPEC


def test_byte_dump_by_itself_is_a_file():
    """Parsed from the text, with the elided zeros put back, it loads."""
    data = bytearray()
    for line in section("11. A file, byte by byte").split("```text")[2].splitlines():
        found = re.match(r"^([0-9a-f]{4})  (00 … 00|(?:[0-9A-F]{2} ?)+)", line)
        if found:
            data += bytes(int(found[1], 16) - len(data))
            data += b"" if "…" in found[2] else bytes.fromhex(found[2])
    loaded = sparsefmt.load(bytes(data))
    assert loaded["b"].tolist() == [1.0, 2.0]
    assert loaded["w"].todense().astype(np.float32).tolist() == [[0.0, 1.5, 0.0, 0.0], [0.0, 0.0, -2.0, 3.0]]
    assert np.signbit(loaded["w"].todense().astype(np.float32)[0, 2])


def test_the_diagram_is_of_that_file():
    """On the first page: the offsets, the chunks and their arrays, and what the entries point to."""
    diagram = section("The format on one page").split("```text")[1].split("```")[0]
    lines = section("11. A file, byte by byte").split("```text")[2].splitlines()
    dump = {int(line[:4], 16): line[55:].strip() for line in lines if re.match("[0-9a-f]{4}  ", line)}
    starts = [at for at, said in dump.items() if said.startswith(("magic", "chunk:", "index:", "index size"))]
    (end,) = (at + 8 for at, said in dump.items() if said == "end magic")
    drawn = [int(number) for number in re.findall(r"^ +\|? +(\d+)  ", diagram, re.M)]
    assert drawn == [*starts, end]
    arrays = [said.removeprefix("chunk: ").split(":")[0] for said in dump.values() if said.startswith("chunk: ")]
    assert re.findall(r"chunk \d     (\w+, \w+)", diagram) == arrays
    assert re.findall(r"record (\d)", diagram) == [str(number) for number in range(len(arrays))]
    kinds = sparsefmt.load(tool.example())
    assert re.findall(r"(\w): kind (\d)", diagram) == [(name, str(number)) for number, name in enumerate(kinds)]


def test_links_within():
    headings = re.findall(r"^#+ (.*)$", SPEC, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#(.*?)\)", SPEC))
    assert links <= anchors
    assert len(links) > 5


def test_errata_are_numbered():
    changes, errata = tables(section("12. Changes and errata"))
    assert [int(row["number"]) for row in errata] == list(range(1, len(errata) + 1))
    for rows in changes, errata:
        assert [row["date"] for row in rows] == sorted(row["date"] for row in rows)


def structured_masks(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Masks that codec `rans` has something for: classes of rows and of columns, copies of rows, groups of four."""
    shape = 150, 300
    by_column, by_row = rng.beta(0.5, 1, shape[1]), rng.beta(0.5, 1, (shape[0], 1))
    return {
        "columns": rng.random(shape) < by_column,
        "rows": rng.random(shape) < by_row,
        "both": rng.random(shape) < by_column * by_row,
        "blocks": np.kron(rng.random((38, 75)) < 0.4, np.ones((4, 4)))[: shape[0]] > 0,
        "copies": np.repeat(rng.random((10, 300)) < 0.4, 15, 0),
        "2:4": (rng.random((150, 75, 4)).argsort(2) < 2).reshape(shape),
        "full": np.ones((20, 30), np.bool_),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "codec"), [*product(LAYOUTS, ["raw", "zstd", "rans"]), ("auto", "auto")])
def test_reader_of_section_10(layout, codec, monkeypatch):
    """With "auto", tensors of a file have different layouts, and arrays of a tensor different codecs."""
    program = "".join(re.findall(r"```python\n(.*?)```", section("10. A small reader"), re.S))
    names: dict = {}
    exec(program, names)
    rng = np.random.default_rng(0)
    tensors = {}
    for dtype in DTYPES.values():
        # more columns than 16 bits count, once for every width of elements: they take the small reader a while
        wide = [(2, 70_000)] if dtype.name in ("F8_E4M3", "BF16", "F32", "F64") else []
        for shape in ((), (0,), (5,), (3, 0), (9, 70), (40, 6, 5), *wide):
            array = pruned(rng, shape, dtype, 0.8, True) if dtype.prunable else random_bits(rng, shape, dtype)
            tensors[f"{dtype.name} {shape}"] = array
    # masks of one of the tiles are streams of 32 states
    monkeypatch.setattr(heights, "TILE_POSITIONS", 1000 * 576)
    tensors["tiles"] = pruned(rng, (590, 1000), DTYPES["BF16"], 0.7, True)
    tensors["tied"] = tensors["tiles"]
    for name, mask in structured_masks(rng).items():
        tensors[f"BF16 {name}"] = np.where(mask, rng.standard_normal(mask.shape), 0).astype(DTYPES["BF16"].numpy)
        tensors[f"I64 {name}"] = np.where(mask, np.cumsum(rng.integers(-9, 99, mask.shape), 1), 0)
    decoded = names["read"](sparsefmt.save(tensors, layout=layout, codec=codec))
    assert decoded.keys() == tensors.keys()
    for name, array in tensors.items():
        dtype = DTYPES[name.split()[0]] if name.split()[0] in DTYPES else DTYPES["BF16"]
        bits = as_bits(array, dtype)
        assert decoded[name] == (pack(bits, dtype) if dtype.packed else bits).tobytes(), name


def test_the_example_of_rans():
    """The bytes of 5.3.8 are what the library makes of the elements there, and what it reads."""
    block = SPEC.split("<!-- rans example begins -->")[1].split("<!-- rans example ends -->")[0]
    lines = {line.split()[0]: bytes.fromhex(" ".join(line.split()[1:])) for line in block.splitlines() if " " in line}
    values, info, rans = np.frombuffer(lines["elements"], np.uint8), ArrayInfo(1, 1, 30), codecs.CODECS["rans"]
    assert rans.fit(info, each_of(Chunk(values, range(1), None)))[0] == lines["model"]
    coder, out = rans.coder(lines["model"], info), np.empty(values.size, np.uint8)
    assert coder.encode(values, None) == lines["chunk"]
    coder.decode(np.frombuffer(lines["chunk"], np.uint8), None, out)
    assert np.array_equal(out, values)


def test_the_example_of_a_mask():
    """The bytes of 5.3.9 are read as they stand there, and the library makes the chunk of the model."""
    block = SPEC.split("<!-- mask example begins -->")[1].split("<!-- mask example ends -->")[0]
    lines = [line.split() for line in block.splitlines() if " " in line]
    kept = np.array([[int(bit) for bit in bits] for what, _, *bits in lines if what == "row"])
    mask, model, chunk = (bytes.fromhex(" ".join(data)) for what, *data in lines if what != "row")
    assert list(mask) == [int(column @ (1, 2, 4)) for column in kept.T]
    info, positions, raw = ArrayInfo(1, *kept.shape, is_mask=True), Positions(*kept.shape, None), np.zeros(10, np.uint8)
    coder = codecs.CODECS["rans"].coder(model, info)
    coder.decode(np.frombuffer(chunk, np.uint8), positions, raw)
    assert raw.tobytes() == mask
    assert coder.encode(raw, positions) == chunk
