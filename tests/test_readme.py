"""README's code runs, its commands are what CI runs, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess

import pytest
import torch
from click.testing import CliRunner
from helpers import ROOT

import sparsefmt
from sparsefmt.cli import main
from sparsefmt.torch import SparseLinear

README = (ROOT / "README.md").read_text()


def block(marker: str) -> str:
    """The fenced block behind a marker."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", README, re.S)
    assert found, marker
    return found[1]


def test_quickstart_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = block("quickstart")
    names: dict = {}
    exec(code, names)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert isinstance(names["w"], sparsefmt.SparseTensor)
    assert names["rows"].shape == (8, 4096)
    printed = capsys.readouterr().out.strip()
    claimed = re.search(r"print\(w\)  # (.*)", code)[1]
    assert re.fullmatch(re.escape(claimed).replace("…", "[0-9,]+"), printed), printed


def test_twins_of_safetensors_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for twin in ("numpy", "torch", "safe_open"):
        exec(block(f"twins: {twin}"), names)
    assert names["rows"].shape == (8, 32)
    assert capsys.readouterr().out.startswith("['0.bias', '0.weight']")


def test_tensors_that_people_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in ("sparse", "masks"):
        exec(block(f"tensors: {example}"), {})
    assert sorted(sparsefmt.load_file("resume.sparsefmt")) == ["bias", "weight_mask", "weight_orig"]


def test_models_in_pytorch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in ("sparsify", "load_into"):
        exec(block(f"models: {example}"), names)
    assert names["loaded"][0].weight.tensor.sparsity == pytest.approx(0.8, abs=0.001)
    reasons, layer = capsys.readouterr().out.splitlines()
    claimed = re.findall(r"print\(.*?\)  # (.*)", block("models: sparsify"))
    for printed, claim in zip((reasons, layer), claimed, strict=True):
        assert re.fullmatch(re.escape(claim).replace("…", ".+"), printed), printed


def test_with_transformers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("transformers: prepare"), names)
    assert CliRunner().invoke(main, ["convert", "llama-pruned", "llama-pruned-sparsefmt"]).exit_code == 0
    exec(block("transformers: use"), names)
    assert isinstance(names["model"].lm_head, SparseLinear)
    assert (tmp_path / "llama-again" / "model.sparsefmt").exists()
    exec(block("transformers: compress"), names)
    assert isinstance(names["model"].lm_head, torch.nn.Linear)


def test_commands_are_found_by_ci():
    for name in ("use", "test"):
        command = block(f"command: {name}").strip()
        assert "\n" not in command
        assert "pip install" in command
    script = (ROOT / ".ci" / "run").read_text()
    function = re.search(r"^readme_command\(\) \{.*?^\}", script, re.S | re.M)[0]
    for name in ("use", "test"):
        found = subprocess.run(
            ["bash", "-c", f"{function}\nreadme_command {name}"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert found.stdout == block(f"command: {name}")


def test_links_lead_to_files():
    for path in (
        "README.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "spec/SPEC.md",
        "spec/conformance.md",
        "docs/pytorch.md",
        "docs/speed.md",
    ):
        text = (ROOT / path).read_text()
        for target in re.findall(r"\]\((?!http)([^)#]*)(?:#[^)]*)?\)", text):
            assert ((ROOT / path).parent / target).exists(), f"{path}: {target}"
