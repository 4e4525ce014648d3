"""README's code runs, its commands are what CI runs, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess

from helpers import ROOT

import sparsefmt

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
    for path in ("README.md", "SECURITY.md", "CHANGELOG.md", "spec/SPEC.md"):
        text = (ROOT / path).read_text()
        for target in re.findall(r"\]\((?!http)([^)#]*)(?:#[^)]*)?\)", text):
            assert ((ROOT / path).parent / target).exists(), f"{path}: {target}"
