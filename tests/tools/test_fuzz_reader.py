"""tools/fuzz/reader.py: a short run, and that it finds what is wrong where something is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

import sparsefmt
from sparsefmt.container.index import Index
from sparsefmt.tensor_slice import TensorSlice
from tools import forms
from tools.fuzz import reader as fuzz
from tools.fuzz import reader_checks as checks
from tools.fuzz import reader_files as files
from tools.fuzz.asked import Asked
from tools.taken_apart import TakenApart

pytestmark = pytest.mark.slow

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python or platform"
)

VECTORS = ROOT / "spec" / "vectors"
MOST_DECODED = files.INTERPRETED.decoded


def vectors(pattern: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(VECTORS.glob(pattern)) if path.stat().st_size <= 4096]


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    """A file of each layout and codec."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((11, 67)).astype(np.float32)
    w[rng.random(w.shape) < 0.6] = 0
    w[rng.random(w.shape) < 0.1] = -0.0
    return {
        f"{layout} {codec}": forms.save({"w": w, "tied": w}, {"key": "text"}, form=form, codec=codec)
        for layout, form in forms.LAYOUTS.items()
        for codec in files.CODECS
    }


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As in the process that fuzzes."""
    monkeypatch.setenv("SPARSEFMT_NUM_THREADS", "1")


def judged(data: bytes) -> str:
    return checks.judge(data, MOST_DECODED)[0]


# A run


@pytest.fixture(scope="module")
def starting() -> list[bytes]:
    """Vectors of few element types, so that little has to be compiled."""
    return [*vectors("good/odd/*.sparsefmt"), *vectors("bad/*/*.sparsefmt")[::8]]


@needs_atheris
def test_a_short_run(starting):
    figures = fuzz.run(Asked(seed=0, count=1200, seconds=600), starting=starting)
    assert figures.findings == []
    assert figures.deaths == 0
    assert figures.inputs >= 1200
    assert figures.outcomes.total() > 900
    assert figures.outcomes["read"] > 20
    for codes in (
        {"index-type", "index-key", "index-malformed", "index-not-canonical"},
        {"chunk-assignment", "chunk-size", "chunk-out-of-bounds", "padding-not-zero"},
        {"rans-model", "rans-stream", "zstd-corrupt"},
        {"mask-padding", "stored-zero", "row-counts", "column-order", "slice-offsets", "slot-padding"},
    ):
        assert sum(figures.outcomes[code] for code in codes) >= 5, codes
    assert figures.coverage > 500
    assert figures.features > figures.coverage
    assert "findings                            0" in figures.text()


@needs_atheris
def test_interpreted_passes_have_coverage(good):
    """Of the files to start from: what mutated ones reach is left to chance."""
    starting = [good["bitmask rans"], *vectors("bad/rans-*/*u16*")]
    count = len(starting) + 4
    compiled, interpreted = (fuzz.run(Asked(0, count, 600), mode, starting) for mode in (False, True))
    assert interpreted.coverage > compiled.coverage + 100
    mutated = fuzz.run(Asked(0, 150, 600), True, starting)
    assert mutated.outcomes.total() > 50
    assert compiled.findings == interpreted.findings == mutated.findings == []


# Faults, planted


@needs_atheris
def test_bounds_are_checked_and_what_is_not_an_error_of_ours_is_found(good, tmp_path):
    """Without the check of layout `permuted`, a column is out of range sooner or later."""
    without_check = fuzz.PROGRAM.replace(
        "fuzz_reader.fuzz(job)",
        "from sparsefmt.layouts.permuted import Permuted\n"
        "Permuted.check = lambda self, tile: None\n"
        "fuzz_reader.MUTATIONS[:] = [fuzz_reader.MUTATIONS[6]]\n"
        "fuzz_reader.fuzz(job)",
    )
    figures = fuzz.run(Asked(0, 400, 600, tmp_path), starting=[good["permuted raw"]], program=without_check)
    assert any("IndexError" in finding for finding in figures.findings)
    kept = [path for path in tmp_path.glob("*.sparsefmt") if "IndexError" in path.with_suffix(".txt").read_text()]
    assert [judged(path.read_bytes()) for path in kept] != []
    assert {judged(path.read_bytes()) for path in kept} <= {
        *("column-range", "column-order", "row-permutation", "row-counts", "slice-offsets", "slot-padding"),
        "stored-zero",
    }


@needs_atheris
def test_a_death_is_found_and_its_input_kept(good, tmp_path, monkeypatch):
    deadly = fuzz.PROGRAM.replace(
        "fuzz_reader.fuzz(job)",
        "import os\nfrom tools.fuzz import reader_checks\n"
        "examine = reader_checks.examine\n"
        "def dying(data, limit):\n"
        "    return 'read' if examine(data, limit) == 'read' else os.abort()\n"
        "reader_checks.examine = dying\n"
        "fuzz_reader.fuzz(job)",
    )
    monkeypatch.setattr(fuzz, "MOST_DEATHS", 2)
    figures = fuzz.run(Asked(0, 400, 600, tmp_path), starting=[good["dense raw"]], program=deadly)
    assert figures.deaths == 2
    assert [finding.split(":")[0] for finding in figures.findings] == ["death-1", "death-2"]
    inputs = list(tmp_path.glob("crash-*"))
    assert inputs
    assert all(judged(path.read_bytes()) not in ("read", "finding") for path in inputs)


def unlike_in_batches(linear: Callable) -> Callable:
    def planted(x: np.ndarray, *others: object, **named: object) -> np.ndarray:
        y = linear(x, *others, **named)
        return y if y.ndim == 1 else y + np.float32(1e-3)

    return planted


def off_by_one(linear: Callable) -> Callable:
    return lambda *arguments, **named: np.nextafter(linear(*arguments, **named), np.float32(np.inf))


def of_no_such_key(*arguments: object) -> object:
    raise KeyError("no")


FAULTS: dict[str, tuple[object, str, Callable[[Any], Any]]] = {
    "exception": (sparsefmt.SparseFile, "get_slice", lambda _: of_no_such_key),
    "layout": (sparsefmt.SparseTensor, "todense", lambda todense: lambda self: -todense(self)),
    "count": (sparsefmt.SparseTensor, "nnz", lambda _: 1),
    "slice": (TensorSlice, "__getitem__", lambda of: lambda self, key: np.abs(of(self, key))),
    "batch": (sparsefmt, "linear", unlike_in_batches),
    "product": (sparsefmt, "linear", off_by_one),
    "index": (Index, "encode", lambda encode: lambda self: encode(self) + b"\0"),
    "signs": (sparsefmt, "save", lambda save: lambda *_, **named: save(*_, **named, negative_zeros="drop")),
    "metadata": (sparsefmt, "save", lambda save: lambda tensors, texts, **named: save(tensors, **named)),
    "ties": (sparsefmt, "save", lambda save: lambda tensors, *_, **named: save(untied(tensors), *_, **named)),
}
"""What is changed, and how."""


def untied(tensors: dict) -> dict:
    return {name: checks.dense(tensor).copy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, good, monkeypatch):
    data = good["bitmask raw"]
    assert judged(data) == "read"
    holder, name, change = FAULTS[fault]
    monkeypatch.setattr(holder, name, change(getattr(holder, name)))
    outcome, what = checks.judge(data, MOST_DECODED)
    assert outcome == "finding"
    assert what


def test_one_way_to_read_that_refuses_less_is_found(monkeypatch):
    (data,) = vectors("bad/stored-zero/plus-0-bitmask-raw.sparsefmt")
    assert judged(data) == "stored-zero"
    load = sparsefmt.SparseFile.load

    def lenient(self: sparsefmt.SparseFile, name: str, layout: str = "auto") -> object:
        return np.zeros(1) if (name, layout) == ("w", "dense") else load(self, name, layout)

    monkeypatch.setattr(sparsefmt.SparseFile, "load", lenient)
    assert judged(data) == "finding"


@pytest.mark.parametrize(("limit", "message"), [("MOST_SECONDS", "seconds"), ("MOST_GROWTH", "bytes more")])
def test_what_takes_too_much_is_found(limit, message, good, monkeypatch):
    monkeypatch.setattr(checks, limit, -1)
    assert message in checks.judge(good["dense raw"], MOST_DECODED)[1]


# Its parts


def test_seeds_are_small_and_of_all_kinds():
    seeds = files.seeds(0, files.COMPILED.file)
    assert len(seeds) > 500
    assert max(map(len, seeds)) <= files.COMPILED.file
    assert len({data[-300:] for data in seeds}) > 400
    outcomes = {judged(data) for data in seeds[::9]}
    assert "read" in outcomes
    assert len(outcomes) > 15
    assert "finding" not in outcomes


def test_interpreted_passes_say_what_compiled_ones_say(starting, good, monkeypatch):
    files = [*good.values(), *starting[::3], *vectors("bad/rans-*/*")]
    compiled = [judged(data) for data in files]
    for name, passes in fuzz.PASSES.items():
        module = importlib.import_module(name)
        for one in passes:
            monkeypatch.setattr(module, one, getattr(module, one))  # put back in the end
    fuzz.interpret(lambda function: function)
    monkeypatch.setattr("sparsefmt.isa.ISA", "portable")  # as in the process that fuzzes
    assert [judged(data) for data in files] == compiled
    assert "finding" not in compiled
    assert {"read", "rans-model", "rans-stream"} <= set(compiled)


def one_bit(part: bytes, _: int) -> bytes:
    """A change as libFuzzer could make it."""
    middle = len(part) // 2
    return part[:middle] + bytes(byte ^ 16 for byte in part[middle : middle + 1]) + part[middle + 1 :]


@pytest.mark.parametrize(
    "mutation",
    [*dict.fromkeys(files.OWN_MUTATIONS + files.CROSSOVERS), *dict.fromkeys(files.mutations_guided_by(one_bit))],
)
def test_mutations_mend(mutation, good):
    """Whatever they change, neither the trailer nor a checksum is what a reader stumbles over."""
    rng, outcomes = np.random.default_rng(0), set()
    for layout in ("bitmask", "permuted", "gaps"):
        for codec in files.CODECS:
            try:
                data = mutation(rng, good[f"{layout} {codec}"], good["dense rans"])
            except files.NOTHING_TO_MUTATE:
                continue
            outcomes.add(judged(data))
    assert outcomes
    assert not outcomes & {"trailer-missing", "index-out-of-bounds", "index-checksum", "chunk-checksum", "finding"}


def test_what_cannot_be_taken_apart_is_left_for_what_can(good):
    rng, data = np.random.default_rng(0), good["bitmask raw"]
    assert files.can_be_taken_apart(data)
    assert not files.can_be_taken_apart(data[:-1])
    mutated = [files.mutated([files.resave], rng, b"nothing", data, 1 << 13) for _ in range(50)]
    assert 25 < sum(other is not None and files.can_be_taken_apart(other) for other in mutated) < 50
    assert files.mutated([files.resave], rng, data, data, max_size=10) is None


def test_files_are_read_again(good, tmp_path, monkeypatch, capsys):
    path = tmp_path / "file.sparsefmt"
    path.write_bytes(good["bitmask rans"])
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    monkeypatch.setattr(fuzz.sys, "argv", ["fuzz_reader.py", str(path)])
    assert fuzz.main() == 0
    assert capsys.readouterr().out == f"{path}: read\n"
    path.write_bytes(good["bitmask rans"][:-1])
    assert fuzz.main() == 0
    assert capsys.readouterr().out == f"{path}: trailer-missing\n"
    monkeypatch.setattr(sparsefmt, "linear", off_by_one(sparsefmt.linear))
    path.write_bytes(good["bitmask rans"])
    assert fuzz.main() == 1
    assert "finding\nTraceback" in capsys.readouterr().out


def test_without_atheris(monkeypatch, capsys):
    monkeypatch.setattr(fuzz.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fuzz.sys, "argv", ["fuzz_reader.py"])
    assert fuzz.main() == 2
    assert "atheris" in capsys.readouterr().err


def test_a_frame_that_claims_too_much_is_not_mutated(good):
    """zstandard would take the memory that the frame states, whatever limit it is given."""
    parts = TakenApart(good["dense zstd"])
    stored = next(stored for stored, _ in parts.chunks if stored.startswith(b"\x28\xb5\x2f\xfd"))
    stored[:] = bytes.fromhex("28B52FFD E0") + (1 << 40).to_bytes(8, "little") + bytes(8)
    claiming = bytes(parts)
    with pytest.raises(ValueError, match="claims"):
        files.mutate_zstd_content(np.random.default_rng(0), claiming, b"")
