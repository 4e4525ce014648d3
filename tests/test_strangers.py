"""Files, pickles and arrays from strangers: checked in whatever way they are read; nothing of them is run."""

from __future__ import annotations

import ast
import cProfile
import inspect
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import scipy.sparse
import torch
import xxhash
from helpers import CODECS, ROOT, run_command, same_bits, weights

import sparsefmt
import sparsefmt.numpy
import sparsefmt.torch
from sparsefmt import ChecksumError, FormatError, SparseTensor
from sparsefmt.container.chunks import STORED_RECORD, encode_chunks
from sparsefmt.container.sources import Memory
from sparsefmt.layouts import heights
from sparsefmt.sparse_file import SparseFile
from tools.taken_apart import join, preamble


def test_no_argument_turns_checks_off():
    """What reading functions can be told: nothing about checks, and `max_decoded_bytes` is a number."""
    allowed = {"self", "path", "data", "filename", "framework", "device", "layout", "threads", "max_decoded_bytes"}
    allowed.add("storage_options")
    for function in (sparsefmt.load, sparsefmt.load_file, sparsefmt.open_file, sparsefmt.safe_open.__init__):
        assert set(inspect.signature(function).parameters) <= allowed | {"backend"}
    for source in (ROOT / "sparsefmt").rglob("*.py"):
        variables = [
            node.args[0].value
            for node in ast.walk(ast.parse(source.read_text()))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("os.environ.get", "os.getenv", "environ.get")
            and isinstance(node.args[0], ast.Constant)
        ]
        assert not any("CHECK" in str(name) or "VERIFY" in str(name) for name in variables), source


def test_forged_pickles_are_checked():
    """Of each array, an element is changed: a tensor that was checked comes out, or an error."""
    array = weights(np.random.default_rng(0), (20, 70), np.float32, 0.8, negative_zeros=True)
    for layout in ("bitmask", "permuted"):
        rebuild, (dtype, shape, name, tile_rows, tiles) = SparseTensor.from_dense(array, layout).__reduce__()
        for key, data in tiles[0].items():
            for value in (0, data[-1] ^ 1, np.iinfo(data.dtype).max):
                forged = data.copy()
                forged[forged.size // 2] = value
                with suppress(FormatError):
                    w = rebuild(dtype, shape, name, tile_rows, ({**tiles[0], key: forged},))
                    assert SparseTensor.from_dense(w.todense(), layout).nbytes == w.nbytes
        with pytest.raises(FormatError):
            rebuild(dtype, shape, name, tile_rows, ({**tiles[0], "values": tiles[0]["values"][:-8]},))


def inputs() -> Iterator[tuple[Any, list[np.ndarray]]]:
    """Tensors to save, each with the memory that must stay as it is."""
    array = weights(np.random.default_rng(0), (64, 96), np.float32, 0.6, negative_zeros=True)
    for made in (array.copy(), np.asfortranarray(array), array[::-1, ::2].copy()[:, ::-1], array.astype(">f4")):
        yield made, [made]
    read_only = array.copy()
    read_only.flags.writeable = False
    yield read_only, [read_only]
    matrix = scipy.sparse.coo_array((np.ones(3, np.float32), ([5, 1, 5], [2, 2, 2])), shape=(64, 96))
    yield matrix, [matrix.data, *matrix.coords]
    rows = scipy.sparse.csr_array(array)
    rows.indices[:2] = rows.indices[:2][::-1].copy()
    yield rows, [rows.data, rows.indices, rows.indptr]
    tensor = torch.from_numpy(array.copy())
    yield tensor.t(), [tensor.numpy()]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("negative_zeros", ["keep", "drop"])
def test_what_is_saved_is_not_changed(codec, negative_zeros):
    for tensor, memory in inputs():
        before = [data.tobytes() for data in memory]
        for layout in ("auto", "dense", "bitmask", "permuted"):
            sparsefmt.save({"w": tensor}, layout=layout, codec=codec, negative_zeros=negative_zeros)
            SparseTensor.from_dense(tensor, layout)
            assert [data.tobytes() for data in memory] == before


@pytest.fixture(scope="module")
def half_damaged(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of two tensors each. Of "bad", one bit of one array of the last tile was flipped."""
    folder = tmp_path_factory.mktemp("damage")
    array = weights(np.random.default_rng(0), (300, 100), np.float32, 0.7, negative_zeros=True)
    made = []
    for layout in ("dense", "bitmask", "permuted"):
        for codec in ("raw", "zstd"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(heights, "TILE_POSITIONS", 10_000)
                whole = sparsefmt.save({"bad": array, "good": array[:70]}, layout=layout, codec=codec)
            file = SparseFile(Memory(whole))
            entry = file.reader.index.entry("bad")
            assert entry.tiles > 1
            for name in entry.codecs:
                damaged = bytearray(whole)
                damaged[int(file.reader.index.chunk(entry, entry.tiles - 1, name)["offset"])] ^= 1
                made.append(folder / f"{layout}-{codec}-{name}.sparsefmt")
                made[-1].write_bytes(damaged)
    return made


def reads(name: str) -> list[Callable[[Path], Any]]:
    """Every way to read a tensor of a file."""
    opened: list[Callable[[Any], Any]] = [
        lambda file: file[name],
        lambda file: file.get_tensor(name),
        lambda file: file.load(name, "permuted"),
        lambda file: file.load(name, "bitmask"),
        lambda file: file.load(name, "dense"),
        lambda file: file.get_slice(name)[-1],
        lambda file: file.get_slice(name)[..., :3],
    ]

    def with_file(read: Callable[[Any], Any], **keywords: Any) -> Callable[[Path], Any]:
        return lambda path: read(sparsefmt.open_file(path, **keywords))

    def twin(framework: str, read: Callable[[Any], Any]) -> Callable[[Path], Any]:
        return lambda path: read(sparsefmt.safe_open(path, framework))

    return [
        *(with_file(read, backend=backend) for read in opened for backend in ("mmap", "pread")),
        *(twin(framework, read) for read in (opened[1], opened[5]) for framework in ("np", "pt")),
    ]


def test_every_way_of_reading_verifies(half_damaged, tmp_path):
    """A file whose tensor is damaged opens, its other tensors are read, and that one is not, in any way."""
    whole_files: list[Callable[[Path], Any]] = [
        sparsefmt.load_file,
        lambda path: sparsefmt.load_file(path, layout="dense"),
        lambda path: sparsefmt.load(path.read_bytes()),
        sparsefmt.numpy.load_file,
        sparsefmt.torch.load_file,
    ]
    for path in half_damaged:
        for read in [*reads("bad"), *whole_files]:
            with pytest.raises(ChecksumError) as caught:
                read(path)
            assert (caught.value.code, caught.value.tensor) == ("chunk-checksum", "bad")
        for read in reads("good"):
            read(path)
    path = half_damaged[0]
    for command in (["verify", path], ["export", path, tmp_path / "a.safetensors"]):
        result = run_command(*command)
        assert result.exit_code == 1
        assert "chunk-checksum" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_security_names_is_there():
    """Its sections, and every program and test that it says was run."""
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    for words in ("| against | promised | not promised |", "Not promised:", "Tested by", "## Reporting"):
        assert words in text
    named = set(re.findall(r"(?:tools|tests|spec)/[\w./]+\.(?:py|h|c|md)", text))
    named |= {f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (tools[\w.]+)", text)}
    assert len(named) > 12
    for path in named:
        assert (ROOT / path).is_file(), path


COMPUTED_IMPORTS = {"__init__.py", "cli/__init__.py"}
"""Where modules of the package itself are imported by a name that is computed: one of two, and a command of the CLI."""


def calls(source: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_code_comes_from_data():
    """No source evaluates, unpickles, or imports by a name that it has not got itself."""
    package, seen = ROOT / "sparsefmt", set()
    forbidden = {"eval", "exec", "compile", "__import__", "globals", "vars", "open_code"}
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "runpy", "imp", "code", "subprocess"}
    for source in package.rglob("*.py"):
        place = source.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            # that command runs the program that its user names, as python does
            allowed = {"runpy"} if place == "transformers/__main__.py" else set()
            assert not {name.split(".")[0] for name in names} & modules - allowed, place
        for name, call in calls(source):
            assert name not in forbidden, f"{place}: {name}"
            if name == "torch.load":  # which runs code from the file unless told otherwise
                weights_only = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}["weights_only"]
                assert (place, weights_only) == ("checkpoints/pytorch_file.py", "True"), place
                continue
            assert not name.endswith((".loads", ".system", ".popen")) or name == "json.loads", place
            if name.endswith("import_module") and not isinstance(call.args[0], ast.Constant):
                assert ast.unparse(call.args[0]) in ("f'sparsefmt.{name}'", "f'sparsefmt.cli.{name}'"), place
                seen.add(place)
    assert seen == COMPUTED_IMPORTS


WATCHED = """
import json, pathlib, sys
import sparsefmt
paths = [*sorted(pathlib.Path(sys.argv[1]).rglob("*.sparsefmt")), pathlib.Path(sys.argv[2])]
files = [path.read_bytes() for path in paths]
watching, seen, tried = False, set(), 0

def hook(event, arguments):
    if watching and event.split(".")[0] in HARMFUL:
        seen.add(f"{event} {arguments!r:.80}")

HARMFUL = {"exec", "compile", "import", "os", "subprocess", "pickle", "marshal", "socket", "ctypes", "open", "code"}
sys.addaudithook(hook)
for watching in (False, True):  # what is imported and compiled at the first use is so once
    for data in files:
        try:
            tensors = sparsefmt.load(data)
            for tensor in tensors.values():
                tensor.todense() if isinstance(tensor, sparsefmt.SparseTensor) else tensor
        except sparsefmt.SparsefmtError as error:
            str(error)
        tried += 1
watching = False
print(json.dumps([tried, sorted(seen)]))
"""


@pytest.mark.slow
def test_reading_runs_nothing(tmp_path):
    """No vector, good or bad, makes the interpreter import, compile, run or open anything, whatever its names are."""
    names = [
        "a/b",
        "os.system",
        "__import__('os')",
        "sparsefmt.cli",
        "../../etc/passwd",
        "{0.__class__}",
        "%s%n",
        "\u202e",
        "a/b",
    ]
    path = tmp_path / "names.sparsefmt"
    sparsefmt.save_file(dict.fromkeys(names, np.eye(70, dtype=np.float32)), path, dict.fromkeys(names, "exec('1')"))
    command = [sys.executable, "-c", WATCHED, ROOT / "spec" / "vectors", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tried, seen = json.loads(done.stdout)
    assert tried > 600
    assert seen == []


PREFIX = "model.layers." + "a_name_as_long_as_they_are_in_models_of_today." * 2 + "parameters"
"""So long that the index of 50,000 tensors is as large as those that are read with more care."""


def file_of_many(count: int) -> bytes:
    """So many tensors of one element each, made without the writer."""
    value = struct.pack("<f", 1.0)
    head = preamble() + (value + bytes(4)) * (count - 1) + value
    table = np.zeros(count, STORED_RECORD)
    table["stored"] = table["raw"] = 4
    table["checksum"] = xxhash.xxh64_intdigest(value)
    tensors = {f"{PREFIX}.{number:07}.bias": [0, []] for number in range(count)}
    return join(head, msgpack.packb([encode_chunks(table), [["F32"]], tensors]))


def steps_to_open(data: bytes) -> int:
    """Calls of functions, Python's and C's, that opening takes."""
    profile = cProfile.Profile()
    profile.enable()
    file = SparseFile(Memory(data))
    profile.disable()
    assert same_bits(file.get_tensor(file.keys()[-1]), np.array(1, np.float32))
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.slow
def test_a_hundred_thousand_tensors_take_twice_the_steps_of_fifty_thousand():
    steps_to_open(file_of_many(10))
    fifty, hundred = steps_to_open(file_of_many(50_000)), steps_to_open(file_of_many(100_000))
    assert 50_000 < fifty < 50_000 * 100
    assert 1.9 * fifty < hundred < 2.1 * fifty
