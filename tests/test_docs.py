"""The documents: their code runs, README's commands are what CI runs, and the files that they name are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import ROOT
from quantized_checkpoints import KINDS, save_folder
from safetensors.numpy import save_file

import sparsefmt
from sparsefmt.cli import main
from sparsefmt.torch import SparseLinear

GUIDES = ["README.md", "CONTRIBUTING.md", *(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
"""Documents all of whose code is run, and whose paths are compared with the tree."""

LINKED = [*GUIDES, "SECURITY.md", "CHANGELOG.md", "spec/README.md", "spec/SPEC.md", "spec/conformance.md"]

RUN = {
    "README.md": ("quickstart", "twins: torch", "transformers: use"),
    "docs/guide.md": (
        *("twins: numpy", "twins: models", "guide: patterns", "guide: writer", "guide: urls", "guide: dask"),
    ),
    "docs/inputs.md": ("tensors: sparse", "tensors: masks"),
    "docs/pytorch.md": (
        *("models: sparsify", "models: load_into", "models: compute dtype", "models: convolutions"),
        *("models: count", "models: count by hand", "models: eight bits"),
        *("transformers: prepare", "transformers: save", "transformers: compress", "transformers: quantized"),
        *("peft: recover", "training: trainable", "training: keep zeros"),
    ),
}
"""Markers of the blocks of Python, which the tests below run."""

SUFFIXES = ("py", "md", "c", "h", "json", "toml", "png", "js", "html", "jinja")
"""Of files that a document may name in backticks. Other names are files of users."""


def block(marker: str, document: str = "README.md") -> str:
    """The fenced block behind a marker."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", (ROOT / document).read_text(), re.S)
    assert found, f"{document}: {marker}"
    return found[1]


def run_commands(code: str, *, without: str = "") -> str:
    """Run the lines of a block that call `sparsefmt`; what they print. without: a command to leave out."""
    printed = ""
    for line in code.splitlines():
        words = line.partition("#")[0].split()
        assert words[0] == "sparsefmt"
        if words[1] != without:
            result = CliRunner().invoke(main, words[1:])
            assert result.exit_code == 0, result.output
            printed += result.output
    return printed


def test_every_block_of_python_is_run():
    for document in GUIDES:
        markers = re.findall(r"(?:<!-- (.*?) -->\n)?```python\n", (ROOT / document).read_text())
        assert sorted(markers) == sorted(RUN.get(document, ())), document


def test_quickstart_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = block("quickstart")
    names: dict = {}
    exec(code, names)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    assert isinstance(names["w"], sparsefmt.SparseTensor)
    assert names["rows"].shape == (8, 4096)
    assert np.allclose(names["y"], names["weight"].sum(1), atol=1e-3)
    printed = capsys.readouterr().out.strip()
    claimed = re.search(r"print\(w\)  # (.*)", code)[1]
    assert re.fullmatch(re.escape(claimed).replace("…", "[0-9,]+"), printed), printed


def test_commands_of_the_quickstart_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weight = np.random.default_rng(0).standard_normal((384, 512)).astype(np.float32)
    weight[np.abs(weight) < 1] = 0
    save_file({"weight": weight}, "model.safetensors")
    # what warmup does is compiling, which takes a minute: tests/cli/test_warmup.py
    printed = run_commands(block("commands: convert"), without="warmup")
    run_commands(block("commands: bench", "docs/guide.md"))
    assert "This is lossy: errors of" in run_commands(block("commands: values", "docs/guide.md"))
    assert "weight" in printed
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_twins_of_safetensors_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("twins: torch"), names)
    assert names["rows"].shape == (8, 32)
    assert names["weight"].equal(torch.eye(64, dtype=torch.bfloat16))
    for example in ("twins: numpy", "twins: models"):
        exec(block(example, "docs/guide.md"), {})


def test_writing_tensor_by_tensor(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("guide: writer", "docs/guide.md"), names)
    assert np.array_equal(names["part"], np.eye(256, dtype=np.float32)[:16])


def test_patterns_of_the_guide():
    exec(block("guide: patterns", "docs/guide.md"), {})


def test_urls_of_the_guide():
    pytest.importorskip("fsspec", reason="URLs need fsspec")
    found: dict = {}
    exec(block("guide: urls", "docs/guide.md"), found)
    assert found["rows"].shape == (64, 4096)


def test_arrays_of_the_guide(tmp_path, monkeypatch):
    dask = pytest.importorskip("dask", reason="arrays of dask need dask")
    pytest.importorskip("distributed", reason="sparsefmt.dask needs distributed")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    with dask.config.set(scheduler="synchronous"):
        exec(block("guide: dask", "docs/guide.md"), found)
    assert np.array_equal(found["y"], np.ones((2, 4096)))
    assert found["zeros"] == 4096 * 4095


def test_tensors_that_people_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in ("sparse", "masks"):
        exec(block(f"tensors: {example}", "docs/inputs.md"), {})
    assert sorted(sparsefmt.load_file("resume.sparsefmt")) == ["bias", "weight_mask", "weight_orig"]


def test_models_in_pytorch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = block("models: sparsify", "docs/pytorch.md")
    names: dict = {}
    exec(code, names)
    reasons, layer = capsys.readouterr().out.splitlines()
    claimed = re.findall(r"print\(.*?\)  # (.*)", code)
    for printed, claim in zip((reasons, layer), claimed, strict=True):
        assert re.fullmatch(re.escape(claim).replace("…", ".+"), printed), printed
    # two Linear layers of 512 x 2048 weights, and their biases
    parameters = 2 * 512 * 2048 + 2048 + 512
    for marker in ("models: count", "models: count by hand"):
        exec(block(marker, "docs/pytorch.md"), names)
    assert names["count"].total == names["total"] == parameters
    for marker in ("models: load_into", "models: convolutions", "models: compute dtype"):
        exec(block(marker, "docs/pytorch.md"), names)
    assert names["loaded"][0].weight.tensor.sparsity == pytest.approx(0.8, abs=0.001)
    code = block("models: eight bits", "docs/pytorch.md")
    capsys.readouterr()
    exec(code, names)
    claimed = re.search(r"print\(result\)  # (.*)", code)[1]
    printed = capsys.readouterr().out.strip()
    assert re.match(re.escape(claimed).replace("…", ".+"), printed), printed


def test_with_transformers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("transformers: prepare", "docs/pytorch.md"), names)
    assert block("commands: folder", "docs/pytorch.md") == block("commands: folder")
    run_commands(block("commands: folder"))
    exec(block("transformers: use"), names)
    assert isinstance(names["model"].lm_head, SparseLinear)
    claimed = re.search(r"print\(model.lm_head\)  # (.*)", block("transformers: use"))[1]
    printed = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(re.escape(claimed).replace("…", ".+"), line) for line in printed), printed
    exec(block("transformers: save", "docs/pytorch.md"), names)
    assert (tmp_path / "llama-again" / "model.sparsefmt").exists()
    exec(block("transformers: compress", "docs/pytorch.md"), names)
    assert isinstance(names["model"].lm_head, torch.nn.Linear)
    tensors = {name: tensor.numpy() for name, tensor in names["dense"].state_dict().items()}
    for name in [name for name in tensors if "_proj" in name]:
        tensors |= KINDS["int8"].tensors(name.removesuffix(".weight"), tensors.pop(name))
    save_folder(tmp_path / "llama-w8a8", tensors, {})
    config = names["dense"].config.to_diff_dict() | {"quantization_config": KINDS["int8"].config()}
    (tmp_path / "llama-w8a8" / "config.json").write_text(json.dumps(config))
    exec(block("transformers: quantized", "docs/pytorch.md"), names)
    assert names["model"].model.layers[1].mlp.up_proj.activations == "int8"
    run_commands("sparsefmt convert llama-w8a8")
    assert names["AutoModelForCausalLM"].from_pretrained("llama-w8a8-sparsefmt").lm_head.weight.dim() == 2


def test_training_on_keeps_the_zeros(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block("training: trainable", "docs/pytorch.md"), names)
    assert names["losses"][-1] < 0.95 * names["losses"][0]
    assert list(names["trained"]) == ["0", "2"]
    model, x = names["model"], names["x"]
    loaded = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512))
    names["load_into"](loaded, "recovered.sparsefmt")
    for layer in (model[0], loaded[2]):
        assert type(layer) is SparseLinear
        assert layer.weight.tensor.sparsity == pytest.approx(0.8, abs=1e-5)
    assert torch.equal(loaded(x), model(x))
    exec(block("training: keep zeros", "docs/pytorch.md"), names)
    assert names["kept"].names == ["0.weight", "2.weight"]
    for layer in names["result"].sparse.values():
        assert layer.weight.tensor.sparsity == pytest.approx(0.8, abs=1e-5)


def test_adapters_recover_what_pruning_has_cost(tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    exec(block("transformers: prepare", "docs/pytorch.md"), names)
    run_commands(block("commands: folder"))
    exec(block("peft: recover", "docs/pytorch.md"), names)
    assert names["losses"][-1] < 0.99 * names["losses"][0]
    tokens, recovered = names["tokens"], names["AutoModelForCausalLM"].from_pretrained("llama-recovered")
    assert torch.equal(recovered(tokens).logits, names["merged"](tokens).logits)
    changed = 0
    for name, pruned in names["dense"].named_modules():
        layer = recovered.get_submodule(name)
        if isinstance(pruned, torch.nn.Linear):
            assert isinstance(layer, SparseLinear), name
            assert torch.equal(layer.weight == 0, pruned.weight == 0), name
            changed += not torch.equal(layer.weight.to_dense(), pruned.weight)
    assert changed == 14  # all but the output layer
    adapted = names["adapted"].eval()
    expected = adapted(tokens).logits
    dense = names["sparsefmt"].peft.merge_and_unload(adapted, keep_zeros=False)
    torch.testing.assert_close(dense(tokens).logits, expected, rtol=1e-3, atol=1e-4)
    dense.save_pretrained("llama-dense")
    loaded = names["AutoModelForCausalLM"].from_pretrained("llama-dense")
    assert torch.equal(loaded(tokens).logits, dense(tokens).logits)


def test_lines_of_c_compile(tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no gcc")
    lines = re.search(r"```c\n(.*?)```", (ROOT / "spec" / "README.md").read_text(), re.S)[1]
    head, body = lines.split("\n\n", 1)
    (tmp_path / "lines.c").write_text(
        f"{head}\nstatic int fail(const char *message) {{ return message != NULL; }}\n"
        f"int run(const unsigned char *bytes, size_t size, const float *x, float *y);\n"
        f"int run(const unsigned char *bytes, size_t size, const float *x, float *y) {{\n{body}return 0;\n}}\n"
    )
    command = [compiler, "-std=c99", "-fsyntax-only", "-Wall", "-Werror", f"-I{ROOT / 'spec' / 'c'}", "lines.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


def test_readme_names_the_versions_that_are_tested():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    text = " ".join((ROOT / "README.md").read_text().split())
    for library, called in (("transformers", "transformers"), ("torch", "PyTorch")):
        (pinned,) = [line.partition("==")[2] for line in extra if line.startswith(f"{library}==")]
        assert f"{called} {pinned.rpartition('.')[0]}" in text, pinned


def anchors(document: str) -> set[str]:
    """What links may lead to within a document: its headings, in the form that GitHub gives them."""
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", LINKED)
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.S)
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), f"{document}: {target}"
        if anchor:
            assert anchor in anchors(path.resolve().relative_to(ROOT).as_posix()), f"{document}: #{anchor}"


@pytest.mark.parametrize("document", [*GUIDES, "SECURITY.md", "spec/README.md", "spec/conformance.md"])
def test_named_files_are_there(document):
    """Paths with a slash: from the root, from the document, or below sparsefmt/. NAME stands for any name."""
    text = (ROOT / document).read_text()
    code = re.findall(r"```\w*\n(.*?)```", text, re.S)
    code += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    pattern = rf"(?<![\w./-])([\w.*-]+/[\w./*-]*\.(?:{'|'.join(SUFFIXES)}))(?![\w/])"
    named = {path for part in code for path in re.findall(pattern, part)}
    named |= {part for part in code if re.fullmatch(r"([\w.-]+/)+", part)}
    modules = {name for part in code for name in re.findall(r"python -m (tools\.[\w.]*\w)", part)}
    named |= {f"{name.replace('.', '/')}.py" for name in modules}
    folders = (ROOT, ROOT / "sparsefmt", (ROOT / document).parent)
    for path in {path.replace("NAME", "*") for path in named}:
        assert any(found for folder in folders for found in folder.glob(path)), f"{document}: {path}"


def test_map_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "sparsefmt").iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"`{path.name}/`" in text, f"docs/architecture.md does not name {path.name}/"
        elif path.suffix == ".py" and path.name != "__init__.py":
            assert f"`{path.name}`" in text, f"docs/architecture.md does not name {path.name}"


def test_map_names_every_file_of_a_room():
    """All that is not jitted; of commands, and of what rooms in rooms hold, the folder will do."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "sparsefmt").glob("*/*"):
        name = path.relative_to(ROOT / "sparsefmt").as_posix()
        if path.name in ("__init__.py", "contract.py", "jitted") or name.startswith("cli/") or "__pycache__" in name:
            continue
        named = f"`{name}/`" if path.is_dir() else f"`{name}`"
        assert named in text, f"docs/architecture.md does not name {name}"
