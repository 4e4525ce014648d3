"""`sparsefmt diff`: what it says of every way in which two models differ, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from helpers import fail, run_command, succeed
from safetensors_files import craft_tensors

import sparsefmt
from sparsefmt.cli import main, output
from sparsefmt.dtypes import DTYPES

BF16 = np.dtype(ml_dtypes.bfloat16)


def pruned(seed: int = 0, shape: tuple[int, ...] = (64, 96)) -> np.ndarray:
    """Numbers that are exact in 16 bits, four of five of which are zero."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.2, rng.integers(1, 9, shape), 0).astype(np.float32)


BEFORE = {
    "a.same": pruned(1),
    "b.values": pruned(2),
    "c.mask": pruned(3),
    "d.signs": pruned(4),
    "e.dtype": pruned(5),
    "f.shape": pruned(6),
    "g.gone": pruned(7),
}


def after() -> dict[str, np.ndarray]:
    found = {name: array.copy() for name, array in BEFORE.items() if name != "g.gone"}
    found["b.values"][found["b.values"] > 4] += 0.5
    lost, new = np.argwhere(found["c.mask"] == 0)[:3], np.argwhere(found["c.mask"] != 0)[:2]
    found["c.mask"][tuple(lost.T)] = 0.25
    found["c.mask"][tuple(new.T)] = 0
    found["d.signs"][found["d.signs"] == 0] = -0.0
    found["e.dtype"] = found["e.dtype"].astype(BF16)
    found["f.shape"] = np.ascontiguousarray(found["f.shape"].T)
    return found | {"h.new": pruned(8)}


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Two files, and their differences."""
    paths = tmp_path / "before.safetensors", tmp_path / "after.sparsefmt"
    safetensors.numpy.save_file(BEFORE, paths[0], {"format": "pt"})
    sparsefmt.save_file(after(), paths[1], {"format": "np"})
    return paths


def differ(*arguments: object) -> str:
    result = run_command("diff", *arguments)
    assert (result.exit_code, result.stderr) == (1, "")
    return result.stdout


def as_json(*arguments: object) -> dict[str, Any]:
    return json.loads(differ(*arguments, "--json"))


def row(listing: str, name: str) -> list[str]:
    [line] = [line for line in listing.splitlines() if line.startswith(f"{name} ")]
    return line.split()[1:]


def test_each_tensor_that_differs_has_a_row(models: tuple[Path, Path]) -> None:
    listing = differ(*models)
    assert "a.same" not in listing
    same = (BEFORE["b.values"] <= 4).mean()
    zeros = f"{100 * (BEFORE['b.values'] == 0).mean():.1f}%"
    assert row(listing, "b.values") == [
        "64x96",
        "F32",
        "values",
        f"{100 * same:.1f}%",
        "0.5",
        zeros,
        zeros,
        "0%",
        "100%",
    ]
    assert row(listing, "c.mask")[2:4] == ["mask", "99.9%"]
    assert row(listing, "c.mask")[-2:] == ["0.1%", output.share(*overlap("c.mask"))]
    assert row(listing, "d.signs")[2:5] == ["signs", f"{100 * (BEFORE['d.signs'] != 0).mean():.1f}%", "0"]
    assert row(listing, "e.dtype")[:5] == ["64x96", "F32>BF16", "dtype", "100%", "0"]
    assert row(listing, "f.shape") == ["64x96>96x64", "F32", "shape"]
    assert row(listing, "g.gone") == ["64x96", "F32", "only", "in", "A"]
    assert row(listing, "h.new") == ["64x96", "F32", "only", "in", "B"]
    lines = listing.splitlines()
    assert f"A: {models[0]}: {output.size(models[0].stat().st_size)}, 7 tensors" in lines
    assert f"metadata 'format': ['pt'] in {models[0]}, ['np'] in {models[1]}" in lines
    assert "3 zeros of A lost in B, 2 new." in listing
    assert "Only signs of zeros or bits of NaNs differ in 1 tensor." in lines
    assert lines[-1] == "8 differences in 6 tensors of both"
    assert row(differ(*models, "--all"), "a.same")[2:4] == ["-", "100%"]


def overlap(name: str) -> tuple[int, int]:
    one, two = BEFORE[name] != 0, after()[name] != 0
    return np.count_nonzero(one & two), np.count_nonzero(one | two)


def test_json_has_the_numbers(models: tuple[Path, Path]) -> None:
    content = as_json(*models)
    assert [content[side]["format"] for side in "ab"] == ["safetensors", "sparsefmt"]
    found = {tensor["name"]: tensor for tensor in content["tensors"]}
    assert {name: tensor["differs"] for name, tensor in found.items()} == {
        **{"a.same": None, "b.values": "values", "c.mask": "mask", "d.signs": "signs", "e.dtype": "dtype"},
        **{"f.shape": "shape", "g.gone": "only in A", "h.new": "only in B"},
    }
    one, two = BEFORE["c.mask"].astype(np.float64), after()["c.mask"].astype(np.float64)
    mask = found["c.mask"]
    assert mask["a"] == mask["b"] == {"dtype": "F32", "shape": [64, 96]}
    assert (mask["elements"], mask["equal"]) == (one.size, np.count_nonzero(one == two))
    assert (mask["largest"], mask["mean"]) == (np.abs(one - two).max(), pytest.approx(np.abs(one - two).mean()))
    assert (mask["zeros"], mask["zeros_lost"], mask["pruned"]) == (
        [np.count_nonzero(one == 0), np.count_nonzero(two == 0)],
        *(3, 2),
    )
    kept, union = overlap("c.mask")
    assert (mask["kept"], mask["overlap"]) == (kept, kept / union)
    # the signs of zeros are no numbers
    signs = found["d.signs"]
    assert (signs["equal_numbers"], signs["equal"]) == (one.size, np.count_nonzero(BEFORE["d.signs"]))
    assert (found["g.gone"]["b"], "equal" in found["g.gone"], "equal" in found["f.shape"]) == (None, False, False)
    total = content["total"]
    assert (content["differences"], total["tensors"], total["differing"]) == (8, 6, 7)
    assert total["elements"] == 5 * one.size
    assert total["zeros_lost"] == 3
    assert len(content["metadata"]) == 1
    chosen = as_json(*models, "--name", "c.*", "--name", "b.*")
    assert ([tensor["name"] for tensor in chosen["tensors"]], chosen["differences"]) == (["b.values", "c.mask"], 2)
    assert "no tensor has a name like x*" in fail(2, "diff", *models, "--name", "x*")


def test_what_is_equal_is_said_in_a_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    converted = tmp_path / "before.sparsefmt"
    succeed("convert", models[0], converted)
    for options in ([], ["--bits"]):
        assert succeed("diff", models[0], converted, *options) == "equal: 7 tensors\n"
        assert succeed("diff", models[0], converted, *options, "-q") == ""
        assert succeed("diff", *models, *options, "--name", "a.*") == "equal: 1 tensor\n"
    assert json.loads(succeed("diff", models[0], converted, "--json"))["differences"] == 0
    assert row(succeed("diff", models[0], converted, "--all"), "g.gone")[2:4] == ["-", "100%"]
    for options in ([], ["--bits"]):
        result = run_command("diff", *models, *options, "-q")
        assert (result.exit_code, result.output) == (1, "")


def test_bits_are_sentences(models: tuple[Path, Path]) -> None:
    lines = differ(*models, "--bits").splitlines()
    assert f"tensor 'g.gone': only in {models[0]}, not in {models[1]}" in lines
    assert any(
        line.startswith("tensor 'd.signs': ") and line.endswith("bits 0x00000000, not 0x80000000") for line in lines
    )
    assert lines[-1] == "8 differences in 4 tensors of both"
    assert "leave out --json" in fail(2, "diff", *models, "--bits", "--json")


@pytest.mark.parametrize("kind", ["sparsefmt", "torch", "folder"])
def test_every_kind_of_source(kind: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    expected = as_json(*models)
    path = tmp_path / f"other.{kind}"
    if kind == "sparsefmt":
        sparsefmt.save_file(BEFORE, path, {"format": "pt"}, layout="permuted", codec="raw")
    elif kind == "torch":
        path = tmp_path / "other.pt"
        torch.save({name: torch.from_numpy(array) for name, array in BEFORE.items()}, path)
    else:
        path.mkdir()
        for number, (name, array) in enumerate(BEFORE.items(), 1):
            safetensors.numpy.save_file(
                {name: array}, path / f"model-{number:05d}-of-00007.safetensors", {"format": "pt"}
            )
    assert as_json(path, models[1])["tensors"] == expected["tensors"]


def test_many_tensors_are_one_screen(tmp_path: Path) -> None:
    experts = {
        f"layers.{layer}.experts.{expert}.up.weight": pruned(layer, (4, 8))
        for layer in range(20)
        for expert in range(100)
    }
    safetensors.numpy.save_file(experts, tmp_path / "a.safetensors")
    changed = {name: array + np.float32(name != "layers.3.experts.7.up.weight") for name, array in experts.items()}
    safetensors.numpy.save_file(changed, tmp_path / "b.safetensors")
    listing = differ(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert len(listing.splitlines()) < 12
    assert row(listing, "layers.*.experts.*.up.weight")[:6] == ["4x8", "F32", "mask", "1,999", "0%", "1"]
    assert "1,999 differences in 2,000 tensors of both" in listing
    assert len(differ(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--all").splitlines()) > 2000


def test_rows_are_sorted(models: tuple[Path, Path]) -> None:
    def names(order: str) -> list[str]:
        return [line.split()[0] for line in differ(*models, "--sort", order).splitlines()[2:9]]

    assert names("name") == sorted(names("name"))
    largest = {"c.mask": float(BEFORE["c.mask"].max()), "b.values": 0.5}
    assert names("max")[0] == max(largest, key=lambda name: abs(after()[name] - BEFORE[name]).max())
    assert names("overlap")[0] == "c.mask"


def test_a_stack_and_a_tensor_of_three_dimensions(tmp_path: Path) -> None:
    """The same elements, cut into rows in two ways."""
    stack = pruned(9, (3, 64, 96))
    sparsefmt.save_file({"w": stack}, tmp_path / "a.sparsefmt", row_dims=1)
    sparsefmt.save_file({"w": stack}, tmp_path / "b.sparsefmt", row_dims=2)
    stack[2, 1, 5] += 1
    sparsefmt.save_file({"w": stack}, tmp_path / "c.sparsefmt", row_dims=1)
    for options in ([], ["--bits"]):
        assert succeed("diff", tmp_path / "a.sparsefmt", tmp_path / "b.sparsefmt", *options) == "equal: 1 tensor\n"
        for first in ("a", "b"):
            assert "1 difference" in differ(tmp_path / f"{first}.sparsefmt", tmp_path / "c.sparsefmt", *options)
    assert "first at [2, 1, 5]" in differ(tmp_path / "b.sparsefmt", tmp_path / "c.sparsefmt", "--bits")


def test_scaled_weights_are_multiplied_out(tmp_path: Path) -> None:
    """Elements of one byte and scales in one, floats in the other."""
    weights = {"a.q_proj.weight": np.where(pruned(1) != 0, np.float32(np.pi) * pruned(1), np.float32(0))}
    safetensors.numpy.save_file(weights, tmp_path / "a.safetensors")
    succeed("convert", tmp_path / "a.safetensors", tmp_path / "b.sparsefmt", "--values", "int8")
    said = json.loads(sparsefmt.open_file(tmp_path / "b.sparsefmt").metadata()["sparsefmt.values"])
    found = as_json(tmp_path / "a.safetensors", tmp_path / "b.sparsefmt")["tensors"]
    assert [tensor["name"] for tensor in found] == ["a.q_proj.weight"]
    assert found[0]["b"] == {"dtype": "I8", "shape": [64, 96], "scale": "a.q_proj.weight_scale"}
    assert found[0]["largest"] == pytest.approx(said["largest_error"], rel=1e-6)
    listing = differ(tmp_path / "b.sparsefmt", tmp_path / "a.safetensors")
    assert " I8 scaled>F32 " in listing
    assert " 100%" in listing.splitlines()[2]  # of the masks


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype(name: str, tmp_path: Path) -> None:
    dtype = DTYPES[name]
    for file, fill in (("a", 1), ("b", 0)):
        content = bytes([fill]) * dtype.nbytes(8 * 16)
        (tmp_path / f"{file}.safetensors").write_bytes(craft_tensors({"w": (name, [8, 16], content)}))
    found = as_json(tmp_path / "a.safetensors", tmp_path / "b.safetensors")["tensors"][0]
    assert (found["elements"], found["a"]["dtype"]) == (128, name)
    assert succeed("diff", tmp_path / "a.safetensors", tmp_path / "a.safetensors") == "equal: 1 tensor\n"


def test_odd_tensors_have_rows(tmp_path: Path) -> None:
    """0-d, empty, and with differences that are no numbers."""
    one = {
        "a": np.array(1, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "n": np.array([1, np.nan, np.inf, 3.0]),
    }
    safetensors.numpy.save_file(one, tmp_path / "a.safetensors")
    two = {
        "a": np.array(2, np.float32),
        "empty": np.zeros((4, 0), np.float32),
        "n": np.array([np.nan, np.nan, -np.inf, 4]),
    }
    safetensors.numpy.save_file(two, tmp_path / "b.safetensors")
    listing = differ(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert row(listing, "a")[:5] == ["scalar", "F32", "values", "0%", "1"]
    assert row(listing, "empty") == ["0x4>4x0", "F32", "shape"]
    assert row(listing, "n")[:5] == ["4", "F64", "values", "25.0%", "1"]
    assert "not counted in |a - b|, in 1 tensor." in listing
    as_json(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    name = "w\x1b[2J\n[red]\u202e" + "x" * 900
    for file, value in (("a", 1), ("b", 2)):
        sparsefmt.save_file(
            {name: np.full(2, value, np.float32)}, tmp_path / f"{file}.sparsefmt", {"k\x1b": f"\x07{value}"}
        )
    for options in ([], ["--bits"], ["--json"]):
        printed = differ(tmp_path / "a.sparsefmt", tmp_path / "b.sparsefmt", *options)
        assert not {"\x1b", "\x07", "\u202e"} & set(printed)
        assert "[red]" in printed


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_tables_fit_the_terminal(columns: int, tmp_path: Path) -> None:
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(50)]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, seed in zip(paths, (1, 100), strict=True):
        tensors = {name: pruned(seed + number, (1024, 96)) * np.float32(1e-3) for number, name in enumerate(names)}
        safetensors.numpy.save_file(tensors, path)
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, ["diff", *map(str, paths)])
    table = result.stdout.partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= columns
    # numbers are beside their name, or in the one line below it
    assert len(table) == (3 if columns == 140 else 5)


def test_a_share_is_all_or_nothing_only_if_it_is() -> None:
    shares = [output.share(part, 10_000) for part in (0, 1, 5, 10, 9_990, 9_999, 10_000)]
    assert shares == ["0%", "<0.1%", "0.1%", "0.1%", "99.9%", ">99.9%", "100%"]
    assert output.share(0, 0) == ""


def test_names_of_megabytes_are_cut(tmp_path: Path) -> None:
    """Of safetensors: .sparsefmt files have none."""
    for file, value in (("a", b"\x00\x00\x80\x3f"), ("b", b"\x00\x00\x00\x00")):
        (tmp_path / f"{file}.safetensors").write_bytes(craft_tensors({"\u202e" + "x" * 2_000_000: ("F32", [1], value)}))
    for printed in (
        succeed("inspect", tmp_path / "a.safetensors", "--patterns"),
        differ(tmp_path / "a.safetensors", tmp_path / "b.safetensors"),
    ):
        assert len(printed) < 5_000
        assert "\u202e" not in printed
        assert "(a name of 2,000,001 characters)" in printed.replace("\n", " ")
