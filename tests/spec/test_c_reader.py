"""spec/c/sparsefmt.h was written from SPEC.md alone. It and the library must make the same of the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import ROOT, SPARSE, first_always, pruned, random_bits

import sparsefmt
from sparsefmt.dtypes import DTYPES, DType
from tools.fuzz import c_process, library_answers, small_files
from tools.fuzz import c_reader as fuzz
from tools.fuzz.asked import Asked
from tools.taken_apart import TakenApart

VECTORS = ROOT / "spec" / "vectors"
MANIFEST = json.loads((VECTORS / "manifest.json").read_text())
ZSTD = c_process.find_zstd()
CODECS = ["raw", "rans", *(["zstd"] if ZSTD else [])]
DAMAGED_CODECS = CODECS if c_process.is_same_zstd(ZSTD) else ["raw", "rans"]
SUMS_OF_64_BITS = {"F64", "I32", "U32", "I64", "U64"}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(c_process.compiler() is None, reason="no C compiler")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("c")


@pytest.fixture(scope="module")
def reader(folder: Path) -> Iterator[c_process.CReader]:
    started = c_process.CReader(folder, c_process.has_sanitizers(folder), ZSTD)
    yield started
    assert started.close() == 0


@pytest.fixture(scope="module")
def portable_reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[c_process.CReader]:
    """Byte by byte, as on machines whose integers lie the other way round."""
    started = c_process.CReader(tmp_path_factory.mktemp("portable"), False, ZSTD, ["-DSPARSEFMT_PORTABLE"])
    yield started
    assert started.close() == 0


@pytest.fixture(scope="module")
def cat(folder: Path) -> Path:
    program = folder / "sparsefmt_cat"
    c_process.build("sparsefmt_cat.c", program, ["-O1"], ZSTD)
    return program


@pytest.fixture(scope="module")
def portable_cat(folder: Path) -> Path:
    """Without instructions that only some processors have."""
    program = folder / "portable_cat"
    c_process.build("sparsefmt_cat.c", program, ["-O1", "-DSPARSEFMT_PORTABLE"], None)
    return program


@pytest.fixture(scope="module")
def mlp(folder: Path) -> Path:
    program = folder / "example_mlp"
    c_process.build("example_mlp.c", program, ["-O1"], None)
    return program


def run(program: Path, *arguments: str | Path, given: bytes = b"") -> bytes:
    return subprocess.run([program, *arguments], input=given, capture_output=True, check=True).stdout


def error_of(program: Path, *arguments: str | Path, given: bytes = b"") -> str:
    """Code that a program gives on standard error, with exit status 1."""
    result = subprocess.run([program, *arguments], input=given, capture_output=True)
    assert result.returncode == 1
    code, _, message = result.stderr.decode().partition(": ")
    assert message.endswith("\n")
    return code


# Building


@pytest.mark.parametrize("zstd", [False, True])
@pytest.mark.parametrize(
    ("name", "language", "standard"),
    [("gcc", "c", "c99"), ("clang", "c", "c99"), ("g++", "c++", "c++17"), ("clang++", "c++", "c++17")],
)
def test_header_compiles_without_warnings(tmp_path: Path, name: str, language: str, standard: str, zstd: bool):
    if shutil.which(name) is None:
        pytest.skip(f"no {name}")
    (tmp_path / "zstd.h").write_text(c_process.ZSTD_HEADER)
    (tmp_path / "reader.c").write_text('#define SPARSEFMT_IMPLEMENTATION\n#include "sparsefmt.h"\n')
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wundef", "-Wcast-align", "-Werror"]
    command = [
        name,
        "-x",
        language,
        f"-std={standard}",
        "-fsyntax-only",
        *flags,
        f"-I{c_process.SOURCES}",
        f"-I{tmp_path}",
        *(["-DSPARSEFMT_ZSTD"] if zstd else []),
    ]
    assert subprocess.run([*command, "reader.c"], cwd=tmp_path, capture_output=True, text=True).stderr == ""


def preprocess(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    source = tmp_path / "reader.c"
    source.write_text('#define SPARSEFMT_IMPLEMENTATION\n#include "sparsefmt.h"\n')
    command = [c_process.compiler(), "-E", "-O2", f"-I{c_process.SOURCES}", *flags, str(source)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast"])
def test_arithmetic_that_is_not_exact_is_refused(flag: str, tmp_path: Path):
    assert preprocess(tmp_path).returncode == 0
    done = preprocess(tmp_path, flag)
    assert done.returncode != 0
    assert "to the bit" in done.stderr


def test_parts_of_fast_math_are_refused(tmp_path: Path):
    for flag in ("-funsafe-math-optimizations", "-fno-signed-zeros"):
        macros = subprocess.run(
            [c_process.compiler(), "-O2", flag, "-dM", "-E", "-x", "c", "/dev/null"], capture_output=True, text=True
        )
        if "__NO_SIGNED_ZEROS__" in macros.stdout:  # compilers that say so
            assert preprocess(tmp_path, flag).returncode != 0, flag


def test_processors_with_arithmetic_of_16_bits_will_do(tmp_path: Path):
    """There, FLT_EVAL_METHOD may be 16: float and double are evaluated as they are."""
    done = preprocess(tmp_path, "-std=gnu17", "-march=sapphirerapids")
    if "sapphirerapids" in done.stderr:
        pytest.skip("the compiler does not know the processor")
    assert done.returncode == 0, done.stderr


def test_example_in_the_header_runs(folder: Path, tmp_path: Path):
    text = (c_process.SOURCES / "sparsefmt.h").read_text()
    example = re.search(r"^       // The bytes of a whole file.*?^       }\n", text, re.MULTILINE | re.DOTALL)
    assert example is not None
    source, program, path = tmp_path / "example.c", tmp_path / "example", tmp_path / "w.sparsefmt"
    source.write_text(f"""
        #include <stdio.h>
        #define SPARSEFMT_IMPLEMENTATION
        #include "sparsefmt.h"
        {example[0]}
        int main(void) {{
            static unsigned char bytes[10000];
            const float x[3] = {{1, 2, 3}};
            float y[2] = {{0, 0}};
            const size_t size = fread(bytes, 1, sizeof bytes, stdin);
            const int status = run(bytes, size, x, 3, y, 2);
            printf("%g %g\\n", y[0], y[1]);
            return status;
        }}
    """)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{c_process.SOURCES}"]
    subprocess.run([c_process.compiler(), *flags, str(source), "-o", str(program), "-lm"], check=True)
    sparsefmt.save_file(
        {"layer.weight": np.float32([[1, 0, 2], [0, 3, 0]]), "b": np.ones(2, np.int8)}, path, codec="raw"
    )
    assert run(program, given=path.read_bytes()).decode() == "b: I8\nlayer.weight: F32\n7 6\n"
    other_shape = sparsefmt.save({"layer.weight": np.ones((2, 4), np.float32)}, codec="raw")
    other_dtype = sparsefmt.save({"layer.weight": np.ones((2, 3))}, codec="raw")
    for data, said in [
        (b"no", b"not-sparsefmt: "),
        (sparsefmt.save({}), b"argument: "),
        (other_shape, b""),
        (other_dtype, b""),
    ]:
        refused = subprocess.run([program], input=data, capture_output=True)
        assert refused.returncode == 1
        assert refused.stdout.endswith(b"0 0\n")
        assert refused.stderr.startswith(said)


# Files that both read


@pytest.mark.parametrize("fixture", first_always(["reader", "portable_reader"]))
def test_vectors_read_the_same(fixture: str, request: pytest.FixtureRequest):
    """Dense bytes, products and codes of all vectors."""
    reader = request.getfixturevalue(fixture)
    assert len(MANIFEST) > 10
    for name, expected in MANIFEST.items():
        data = (VECTORS / name).read_bytes()
        said = reader.ask(data)
        if ZSTD is None and said == "codec-unknown":
            continue
        if "error" in expected:
            assert said == expected["error"], name
        else:
            assert said.count("\n") == 1 + len(expected["tensors"]) + len(expected["aliases"]), name
            assert said == library_answers.ask_library(data), name


@pytest.mark.parametrize("codec", CODECS)
def test_random_files_read_the_same(codec: str, reader: c_process.CReader):
    rng = np.random.default_rng(CODECS.index(codec))
    for _ in range(150):
        data = small_files.random_file(rng, [codec])
        said = reader.ask(data)
        assert "\n" in said
        assert said == library_answers.ask_library(data)


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("codec", CODECS)
def test_large_tensors_read_the_same(layout: str, codec: str, reader: c_process.CReader):
    """Streams of 1, 8 and 32 states, several tiles, and columns of 32 bits."""
    rng = np.random.default_rng(1)
    tensors = {
        "8 states": pruned(rng, (60, 130), DTYPES["BF16"], 0.6, True),
        "32 states": rng.normal(size=(1000, 300)).astype(np.float32) * (rng.random((1000, 300)) < 0.4),
        "wide": pruned(rng, (9, 70_000), DTYPES["I8"], 0.97),
        "tiles": pruned(rng, (3000, 700), DTYPES["U16"], 0.9),
    }
    data = sparsefmt.save(tensors, {"": "b", "a": ""}, layout=layout, codec=codec)
    assert reader.ask(data) == library_answers.ask_library(data)


def test_codec_zstd_may_be_left_out(folder: Path, tmp_path: Path):
    without = tmp_path / "sparsefmt_cat"
    c_process.build("sparsefmt_cat.c", without, ["-O0"], None)
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": np.zeros((9, 99), np.float32)}, path, codec="zstd", layout="dense")
    assert run(without, path).startswith(b"w\tF32\t[9,99]\tdense\t891\t")
    assert error_of(without, path, "w") == "codec-unknown"


@pytest.mark.parametrize("most", [0, 1, 100, 1_000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("name", ["bitmask-rans", "permuted-rans", "rans-models-bitmask", "rans-models-dense"])
def test_memory_may_end_anywhere(name: str, most: int, reader: c_process.CReader):
    data = (VECTORS / "good" / f"{name}.sparsefmt").read_bytes()
    with reader.start(str(most)) as process:
        answer = process.communicate(struct.pack("<I", len(data)) + data)[0]
        assert process.returncode == 0
    assert answer[4:].decode() in ("memory", reader.ask(data))
    assert most > 100 or answer[4:] == b"memory"


# Files that both refuse


def small_file(codec: str) -> bytes:
    rng = np.random.default_rng(2)
    tensors = {"b": random_bits(rng, (3,), DTYPES["F32"]), "w": pruned(rng, (9, 20), DTYPES["F16"], 0.6, True)}
    return sparsefmt.save(tensors, {"a": "b"}, layout="bitmask" if codec == "rans" else "permuted", codec=codec)


@pytest.mark.parametrize("codec", CODECS)
def test_files_cut_off_are_refused_alike(codec: str, reader: c_process.CReader):
    data = small_file(codec)
    for size in range(len(data)):
        assert reader.ask(data[:size]) == library_answers.ask_library(data[:size]), size


@pytest.mark.parametrize("codec", CODECS)
def test_files_with_a_changed_byte_are_refused_alike(codec: str, reader: c_process.CReader):
    """Checksums left as they are: no change goes unnoticed, except in the trailer's checksum of the same value."""
    rng, data = np.random.default_rng(3), small_file(codec)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        said = reader.ask(bytes(changed))
        assert "\n" not in said, at
        assert said == library_answers.ask_library(bytes(changed)), at


@pytest.mark.parametrize("seed", first_always([1, 2]))
def test_mutated_files_are_read_or_refused_alike(seed: int, reader: c_process.CReader, tmp_path: Path):
    """A short run of tools/fuzz/c_reader.py, with checksums made right again."""
    figures = fuzz.run(reader, Asked(seed, 1500, 1000.0, tmp_path), DAMAGED_CODECS)
    assert figures.disagreements == 0
    assert min(figures.accepted, figures.refused) > 100
    assert len(figures.refusals) > 30
    assert sum(figures.codes.values()) < 0.05 * figures.refused


def test_a_disagreement_is_told(reader: c_process.CReader):
    figures = fuzz.Figures()
    assert not figures.add("\nline\n", "\nother\n")
    assert not figures.add("rans-stream", "\nline\n")
    assert not figures.add("stopped", "rans-stream")
    assert not figures.add("rans-stream", "raised ValueError: x")
    assert figures.add("rans-stream", "rans-model")
    assert (figures.disagreements, figures.refused, sum(figures.codes.values())) == (4, 1, 1)


@pytest.mark.thorough
def test_fuzz_target_runs_over_its_corpus(folder: Path, tmp_path: Path):
    """As libFuzzer runs it, but without its guidance. Most mutants are files whose checksums are right."""
    target, corpus = tmp_path / "target", tmp_path / "corpus"
    sanitizing = (
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if c_process.has_sanitizers(folder) else []
    )
    c_process.build("check_reader.c", target, ["-O1", "-DFUZZER", "-DFUZZER_MAIN", *sanitizing], ZSTD)
    count = small_files.write_corpus(corpus, 0)
    assert count == len(list(corpus.iterdir())) > 500
    files = sorted(corpus.iterdir())[::10]
    assert all(path.stat().st_size <= 1 << 17 for path in corpus.iterdir())
    done = subprocess.run(c_process.unlimited(target, *map(str, files)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read, mutants, whole = map(int, re.findall(r"\d+", done.stdout))
    assert read == len(files)
    assert mutants > whole > 0.5 * mutants


# sparsefmt_cat


def test_cat_lists(cat: Path, tmp_path: Path):
    path = tmp_path / "f.sparsefmt"
    weight = np.float32([[0, 1, 0], [2, -0.0, 3]])
    tensors = {"w": weight, "twin": weight, "a\tb\\\n\u00e9": np.zeros((), np.uint8), "none": np.zeros((0, 2), np.int8)}
    sparsefmt.save_file(tensors, path, layout="bitmask", codec="raw")
    lines = run(cat, path).decode().splitlines()
    assert lines[0] == "a\\x09b\\x5C\\x0A\u00e9\tU8\t[]\tdense\t1\t1"
    assert lines[1] == "none\tI8\t[0,2]\tdense\t0\t0"
    assert {line.split("\t")[0] for line in lines[2:]} == {"twin", "w"}
    assert all(line.split("\t")[1:6] == ["F32", "[2,3]", "bitmask", "3", "24"] for line in lines[2:])
    assert sorted(line.split("\t")[6] for line in lines if line.count("\t") == 6) in (["twin"], ["w"])


@pytest.mark.parametrize("name", ["dense-raw", "dense-rans", "bitmask-rans", "permuted-raw"])
def test_cat_writes_dense_bytes(name: str, cat: Path):
    path = VECTORS / "good" / f"{name}.sparsefmt"
    for tensor in ("F4[9,8]", "F6_E3M2[1,70]", "C64[3,2,5]", "F16[9,8]", "U64[3,2,5]", "BOOL[2,0]", "tied/two"):
        entry = MANIFEST[f"good/{path.name}"]
        expected = entry["tensors"][entry["aliases"].get(tensor, tensor)]["sha256"]
        assert hashlib.sha256(run(cat, path, tensor)).hexdigest() == expected, tensor


def sums_of(dtype: DType) -> type[np.float32] | type[np.float64]:
    return np.float64 if dtype.name in SUMS_OF_64_BITS else np.float32


def vector_with_everything(rng: np.random.Generator, size: int, dtype: type) -> np.ndarray:
    """Numbers of all sizes, subnormals, zeros of both signs, Inf and NaN."""
    x = (rng.normal(size=size) * np.exp2(rng.integers(-30, 30, size))).astype(dtype)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max], dtype)
    places = rng.random(size) < 0.05
    x[places] = rng.choice(odd, int(places.sum()))
    return x


def assert_same_numbers(found: np.ndarray, expected: np.ndarray) -> None:
    """To the bit, except that sign and payload of NaN are free."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    both_nan = np.isnan(found) & np.isnan(expected)
    assert found[~both_nan].tobytes() == expected[~both_nan].tobytes()
    assert np.array_equal(np.isnan(found), np.isnan(expected))


@pytest.mark.parametrize("layout", ["dense", *SPARSE])
@pytest.mark.parametrize("everything", [False, True])
def test_products_are_the_same_to_the_bit(layout: str, everything: bool, cat: Path, portable_cat: Path, tmp_path: Path):
    rng = np.random.default_rng(4)
    path = tmp_path / "w.sparsefmt"
    for dtype in [dtype for dtype in DTYPES.values() if dtype.name != "C64" and (dtype.prunable or layout == "dense")]:
        weight = pruned(rng, (37, 83), dtype, 0.6) if dtype.prunable else random_bits(rng, (37, 83), dtype)
        x = rng.normal(size=83).astype(sums_of(dtype))
        if everything:
            x = vector_with_everything(rng, 83, sums_of(dtype))
        sparsefmt.save_file({"w": weight}, path, layout=layout, codec="raw", negative_zeros="drop")
        with sparsefmt.open_file(path) as file:
            expected = sparsefmt.linear(x, file.load("w", layout))
        given = x.astype(x.dtype.newbyteorder("<")).tobytes()
        for program in (cat, portable_cat):
            found = np.frombuffer(run(program, "--matvec", path, "w", given=given), x.dtype)
            assert_same_numbers(found, expected)


@pytest.mark.parametrize("layout", ["dense", *SPARSE])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_products_of_wide_tensors_are_the_same(layout: str, dtype: type, cat: Path, portable_cat: Path, tmp_path: Path):
    """Columns of 32 bits; several tiles."""
    rng, path = np.random.default_rng(6), tmp_path / "w.sparsefmt"
    weight = (rng.normal(size=(40, 70_000)) * (rng.random((40, 70_000)) < 0.1)).astype(dtype)
    x = rng.normal(size=70_000).astype(np.float64 if dtype is np.float64 else np.float32)
    sparsefmt.save_file({"w": weight}, path, layout=layout, codec="raw", negative_zeros="drop")
    with sparsefmt.open_file(path) as file:
        expected = sparsefmt.linear(x, file.load("w", layout))
    for program in (cat, portable_cat):
        found = np.frombuffer(run(program, "--matvec", path, "w", given=x.tobytes()), x.dtype)
        assert_same_numbers(found, expected)


def test_product_of_no_columns_is_zero(cat: Path, tmp_path: Path):
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": np.zeros((3, 0), np.float16)}, path)
    assert run(cat, "--matvec", path, "w") == bytes(12)


def test_cat_tells_what_is_wrong(cat: Path, tmp_path: Path):
    path = tmp_path / "w.sparsefmt"
    sparsefmt.save_file({"w": np.zeros((2, 2), np.complex64), "v": np.ones((2, 3), np.float32)}, path)
    assert error_of(cat, tmp_path / "none") == "io"
    assert error_of(cat, tmp_path) == "io"
    assert error_of(cat, path, "x") == "argument"
    assert error_of(cat, "--matvec", path, "w", given=bytes(16)) == "argument"
    assert error_of(cat, "--matvec", path, "v", given=bytes(11)) == "argument"
    assert error_of(cat, "--matvec", path, "v", given=bytes(13)) == "argument"
    path.write_bytes(b"")
    assert error_of(cat, path) == "not-sparsefmt"
    assert subprocess.run([cat], capture_output=True).returncode == 2


def test_messages_are_printable(cat: Path, tmp_path: Path):
    """What a file says of itself is no command to a terminal."""
    path = tmp_path / "w.sparsefmt"
    for key in ("dtype", "layout", "codec"):
        parts = TakenApart(sparsefmt.save({"w": np.ones(3, np.float32)}, codec="raw"))
        entry = parts.index["tensors"].pop("w")
        if key == "codec":
            entry["arrays"]["values"] = "\x1b[2J\u009b\x07\u00e9"
        else:
            entry[key] = "\x1b[2J\u009b\x07\u00e9"
        parts.index["tensors"]["w"] = entry
        path.write_bytes(bytes(parts))
        result = subprocess.run([cat, path], capture_output=True)
        assert result.returncode == 1
        assert result.stderr.startswith(f"{key}-unknown: unknown {key} '?[2J".encode())
        assert all(0x20 <= byte < 0x7F for byte in result.stderr[:-1]), result.stderr


# example_mlp


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_example_runs_the_same_network(layout: str, dtype: type, mlp: Path, tmp_path: Path):
    rng, path = np.random.default_rng(5), tmp_path / "mlp.sparsefmt"
    sizes = [100, 300, 64, 10]
    tensors: dict[str, np.ndarray] = {}
    for number, (cols, rows) in enumerate(pairwise(sizes)):
        weight = rng.normal(size=(rows, cols)) * (rng.random((rows, cols)) < 0.1)
        tensors[f"{number}.weight"] = weight.astype(dtype)
        tensors[f"{number}.bias"] = rng.normal(size=rows).astype(np.float32)
    sparsefmt.save_file(tensors, path, layout=layout, codec="raw", negative_zeros="drop")
    x = rng.normal(size=sizes[0]).astype("<f4")
    loaded = sparsefmt.load_file(path)
    y: np.ndarray = x
    for number in range(3):
        y = sparsefmt.linear(np.maximum(y, 0) if number else y, loaded[f"{number}.weight"], loaded[f"{number}.bias"])
    assert y.dtype == np.float32
    assert np.count_nonzero(y) == 10
    assert run(mlp, path, given=x.tobytes()) == y.astype("<f4").tobytes()


def test_example_keeps_nan(mlp: Path, tmp_path: Path):
    path, x = tmp_path / "mlp.sparsefmt", np.float32([np.nan, 1])
    tensors = {"0.weight": np.float32([[1, 0], [0, 2], [0, -2]]), "1.weight": np.float32([[3, 0, 0], [0, 4, 5]])}
    tensors |= {f"{number}.bias": np.zeros(3 - number, np.float32) for number in range(2)}
    sparsefmt.save_file(tensors, path, layout="bitmask", codec="raw")
    assert np.array_equal(np.frombuffer(run(mlp, path, given=x.tobytes()), "<f4"), [np.nan, 8], equal_nan=True)


def test_example_tells_what_is_wrong(mlp: Path, tmp_path: Path):
    path = tmp_path / "mlp.sparsefmt"
    tensors = {"0.weight": np.ones((2, 3), np.float32), "0.bias": np.ones(3, np.float32)}
    sparsefmt.save_file(tensors, path, codec="raw")
    result = subprocess.run([mlp, path], input=bytes(12), capture_output=True, text=False)
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"a bias that does not fit" in result.stderr


def test_codes_are_those_of_the_specification():
    text, listed = (ROOT / "spec" / "SPEC.md").read_text(), []
    # what a file is refused for, then what a product is
    for pattern in (r"## 7\..*?\n## 8\.", r"### 6\.3.*?\n## 7\."):
        section = re.search(pattern, text, re.DOTALL)
        assert section is not None
        listed += re.findall(r"^\| `([a-z0-9-]+)` \|", section[0], re.MULTILINE)
    header = (c_process.SOURCES / "sparsefmt.h").read_text()
    table = re.search(r"#define SPARSEFMT_CODES\(X\).*?\n\n", header, re.DOTALL)
    assert table is not None
    assert re.findall(r'"([a-z0-9-]+)"', table[0]) == [*listed, "memory", "argument"]
