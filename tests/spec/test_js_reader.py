"""spec/js/ was written from SPEC.md alone. It and the library must make the same of the same bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard
from helpers import CODECS, ROOT, SPARSE_FORMS, pruned

import sparsefmt
from sparsefmt.dtypes import DTYPES
from tools.taken_apart import mended
from tools.vectors import conformance as kit

NODE = shutil.which("node")
READER = ROOT / "spec" / "js"
VECTORS = ROOT / "spec" / "vectors"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NODE is None, reason="no Node")]


@pytest.fixture(scope="module")
def reader() -> Iterator[kit.JavaScript]:
    started = kit.JavaScript(str(NODE))
    yield started
    started.close()


def in_node(code: str, given: object = None) -> object:
    """Run a module in spec/js that has `given`, and calls `say` once; what it said."""
    head = "import { readFileSync } from 'node:fs';\nconst given = JSON.parse(readFileSync(0, 'utf-8'));\n"
    head += "const say = (what) => console.log(JSON.stringify(what));\n"
    command = [str(NODE), "--input-type=module", "-e", head + code]
    done = subprocess.run(command, cwd=READER, input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_passes_the_kit(reader):
    result = kit.run(reader, VECTORS)
    assert result.differences == []
    assert result.files > 500
    assert result.refused > 400
    assert result.tensors > result.products > 1000
    assert result.scaled > 600


def test_the_program_that_conformance_md_describes():
    program = kit.Program((str(NODE), str(READER / "sparsefmt_cat.js")))
    some = ("bad/alias-invalid/", "good/dropped.sparsefmt", "good/empty.sparsefmt")
    manifest = json.loads((VECTORS / "manifest.json").read_text())
    result = kit.run(program, VECTORS, tuple(name for name in manifest if not name.startswith(some)))
    assert result.differences == []
    assert result.refused >= 5
    assert result.files > result.refused
    path = VECTORS / "good" / "scaled-bitmask-raw.sparsefmt"
    for product in manifest[f"good/{path.name}"]["products"][::40]:
        kit.check_scaled(program, path, product, result)
    assert result.differences == []
    assert result.scaled >= 4


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", SPARSE_FORMS)
def test_tensors_of_several_tiles(reader, form, codec, tmp_path):
    """Large enough that streams have many states, and that models have classes."""
    rng = np.random.default_rng(7)
    path = tmp_path / "some.sparsefmt"
    dtypes = [DTYPES[name] for name in ("BF16", "F32", "I8", "U64")]
    tensors = {dtype.name: pruned(rng, (300, 700), dtype, 0.7, negative_zeros=True) for dtype in dtypes}
    uneven = rng.random((300, 700)) < np.outer(rng.random(300), rng.random(700))
    tensors["uneven"] = np.where(uneven, rng.standard_normal(uneven.shape), 0).astype(np.float32)
    layout = {"columns": "permuted", "gaps": "permuted"}.get(form, form)
    sparsefmt.save_file(tensors, path, layout=layout, codec=codec)
    assert set(reader.describe(path)) == set(tensors)
    for name, tensor in tensors.items():
        assert reader.dense(path, name) == tensor.tobytes(), name


def test_damage_is_found(reader, tmp_path):
    """A bit of a file is changed, and its checksums are made right again: what the library makes of it, this does.

    Of several faults that such a bit may make, readers may report any.
    """
    rng = np.random.default_rng(11)
    read = refused = 0
    for vector in sorted(VECTORS.glob("good/odd/*.sparsefmt")):
        data = vector.read_bytes()
        if len(data) > 20000 or "zstd" in vector.name or "big" in vector.name:  # of damaged frames, see below
            continue
        for _ in range(20):
            changed = bytearray(data)
            place = int(rng.integers(0, len(data)))
            # a file of its own for each: the library may have those before mapped still
            path = tmp_path / f"{read + refused}.sparsefmt"
            changed[place] ^= 1 << int(rng.integers(0, 8))
            try:
                path.write_bytes(mended(bytes(changed)))
            except (ValueError, KeyError, TypeError, IndexError, struct.error, zstandard.ZstdError):
                path.write_bytes(changed)
            said, expected = answers(reader, path), answers(kit.Library(), path)
            if isinstance(expected, str):
                assert isinstance(said, str), (vector.name, place, expected)
                refused += 1
            else:
                assert said == expected, (vector.name, place, said)
                read += 1
    assert read > 100
    assert refused > 300


def answers(reader: kit.Reader, path: Path) -> object:
    """The code of a refusal, or a digest of all tensors."""
    digest = hashlib.sha256()
    try:
        for name in sorted(reader.describe(path)):
            digest.update(reader.dense(path, name))
    except kit.Refused as refused:
        return str(refused)
    return digest.digest()


def test_xxh64():
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 256, size, dtype=np.uint8).tobytes() for size in (*range(70), 1000, 4096, 100_003)]
    expected = [xxhash.xxh64_hexdigest(text) for text in texts]
    code = """
        const { xxh64 } = await import("./xxh64.js");
        say(given.map((text) => xxh64(new Uint8Array(Buffer.from(text, "base64"))).toString(16).padStart(16, "0")));
    """
    assert in_node(code, [base64.b64encode(text).decode() for text in texts]) == expected


def frames(rng: np.random.Generator) -> Iterator[tuple[bytes, bytes]]:
    """Contents of every kind of block and table, and their frames by libzstd."""
    text = (ROOT / "spec" / "SPEC.md").read_bytes() * 4
    for number in range(120):
        size = int(rng.integers(0, 1 << int(rng.integers(1, 19))))
        content = [
            rng.integers(0, 256, size, dtype=np.uint8).tobytes(),
            rng.choice([0, 0, 0, 0, 1, 2, 7], size).astype(np.uint8).tobytes(),
            (rng.standard_normal(size) * 9).astype(np.int8).tobytes(),
            (rng.integers(0, 99, 50, dtype=np.uint8).tobytes() * (size // 50 + 1))[:size],
            text[:size],
        ][number % 5]
        level = [-5, 1, 3, 9, 15, 19, 22][number % 7]
        yield content, zstandard.ZstdCompressor(level=level, write_checksum=number % 2 == 1).compress(content)


def test_frames_of_zstd():
    pairs = list(frames(np.random.default_rng(5)))
    code = """
        const { decodeFrame, frameHeader } = await import("./zstd.js");
        const { createHash } = await import("node:crypto");
        say(given.map((text) => {
          const frame = new Uint8Array(Buffer.from(text, "base64"));
          return createHash("sha256").update(decodeFrame(frame, frameHeader(frame))).digest("hex");
        }));
    """
    expected = [hashlib.sha256(content).hexdigest() for content, _ in pairs]
    assert in_node(code, [base64.b64encode(frame).decode() for _, frame in pairs]) == expected


def test_damaged_frames_of_zstd():
    """It refuses what libzstd refuses, and gives what that gives, unless it is stricter (RFC 8878)."""
    rng = np.random.default_rng(9)
    damaged, expected = [], []
    for _, frame in frames(rng):
        changed = bytearray(frame[:5000])
        if len(frame) > 5000 or len(frame) < 12:
            continue
        for _ in range(10):
            changed[:] = frame
            changed[int(rng.integers(6, len(frame)))] ^= 1 << int(rng.integers(0, 8))
            damaged.append(base64.b64encode(changed).decode())
            try:
                content = zstandard.ZstdDecompressor().decompress(bytes(changed), allow_extra_data=False)
                expected.append(hashlib.sha256(content).hexdigest())
            except zstandard.ZstdError:
                expected.append(None)
    code = """
        const { decodeFrame, frameHeader, ZstdError } = await import("./zstd.js");
        const { createHash } = await import("node:crypto");
        say(given.map((text) => {
          const frame = new Uint8Array(Buffer.from(text, "base64"));
          try {
            const header = frameHeader(frame);
            if (header.contentSize === null || header.contentSize > 1e8) return null;
            return createHash("sha256").update(decodeFrame(frame, header)).digest("hex");
          } catch (error) {
            if (!(error instanceof ZstdError)) throw error;
            return null;
          }
        }));
    """
    found = in_node(code, damaged)
    assert all(one in (None, other) for one, other in zip(found, expected, strict=True))
    assert sum(one is not None for one in found) > 20
    assert sum(one is None and other is None for one, other in zip(found, expected, strict=True)) > 50


@pytest.mark.thorough
def test_fma_of_64_bits():
    """Against Python's exact fractions, at half-way points, subnormals and overflow too."""
    rng = np.random.default_rng(2)
    triples = []
    for spread in (3, 40, 600, 1000):
        numbers = rng.standard_normal((100, 3)) * 2.0 ** rng.integers(-spread, spread, (100, 3))
        triples += [tuple(map(float, row)) for row in numbers]
    triples += [(1 + 2.0**-52, 1 + 2.0**-52, -1.0), (2.0**-600, 2.0**-470, 2.0**-1074), (2.0**1000, 2.0**23, 2.0**970)]
    triples += [(1.0, 1.0, 2.0**-53), (1 + 2.0**-52, 1.0, 2.0**-53), (2.0**-1074, 0.5, 2.0**-1074)]

    def rounded(a: float, b: float, c: float) -> float:
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        try:
            return exact.numerator / exact.denominator  # of integers, rounded to nearest, ties to even
        except OverflowError:
            return float("inf") if exact > 0 else float("-inf")

    code = """
        const { fma64 } = await import("./products.js");
        say(given.map(([a, b, c]) => String(fma64(a, b, c))));
    """
    found = [float(text.replace("Infinity", "inf")) for text in in_node(code, triples)]
    assert found == [rounded(*triple) for triple in triples]
