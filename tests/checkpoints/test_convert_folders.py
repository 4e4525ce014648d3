"""`sparsefmt convert` and `export` on the folder of a Hugging Face model: what is copied, and what config.json says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fail, run_command, succeed
from safetensors_files import ONE, SHARDS, TWO, craft_tensors, read_back, save_shards, sparse_array

from sparsefmt.checkpoints import cards, huggingface
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.staging import StagedFolder
from sparsefmt.cli import output

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["Größe"],
    "rms_norm_eps": 1e-06,
    "big": 12345678901234567890,
    "ids": [1, None, True, 0.1],
    "z": {"b": 1, "a": 2},
}
QUANTIZED = {"quant_method": "sparsefmt", "how_to_load": cards.HOW_TO_LOAD}
COPIED = {
    "generation_config.json": b"{}\n",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "README.md": b"# model\r\n",
    "spiece.model": bytes(range(256)),
    "modeling_own.py": b"print()",
    "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
    "assets/deep/er.txt": b"",
}
LEFT_OUT = [
    "pytorch_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.pt",
    "model.gguf",
    "onnx/model.onnx",
    "pytorch_model.bin.index.json",
    "openvino/openvino_model.bin",
]
HIDDEN = [".gitattributes", ".git/config", ".cache/huggingface/x.json", "assets/.hidden"]


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def save_config(folder: Path, config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as it comes from the hub, of two shards."""
    folder = save_shards(tmp_path / "model", SHARDS)
    save_config(folder, CONFIG)
    write(folder, COPIED | dict.fromkeys([*LEFT_OUT, *HIDDEN], b"not to be copied"))
    return folder


def test_there_and_back(model: Path, tmp_path: Path) -> None:
    out = succeed("convert", model)
    sparse = tmp_path / "model-sparsefmt"
    shards = {name.replace("safetensors", "sparsefmt") for name in (ONE, TWO)}
    assert files_of(sparse) == {"config.json", "model.sparsefmt.index.json", *shards, *COPIED}
    for name, content in COPIED.items():
        copied = (sparse / name).read_bytes()
        assert (cards.without_section(copied) if name == "README.md" else copied) == content
    assert cards.has_section((sparse / "README.md").read_bytes())
    config = json.loads((sparse / "config.json").read_text())
    assert list(config.items()) == [*CONFIG.items(), ("quantization_config", QUANTIZED)]
    assert f"Copied: config.json, with a quantization_config, and {len(COPIED)} other files." in out
    [line] = [line for line in out.splitlines() if line.startswith("Weights of other formats, not copied: ")]
    assert set(line.partition(": ")[2].split(", ")) == set(LEFT_OUT)
    succeed("export", sparse)
    back = tmp_path / "model-safetensors"
    assert files_of(back) == {"config.json", "model.safetensors.index.json", ONE, TWO, *COPIED}
    assert (back / "config.json").read_bytes() == (model / "config.json").read_bytes()
    for shard in (ONE, TWO):
        assert (back / shard).read_bytes() == (model / shard).read_bytes()


def test_index_or_file_stands_for_the_weights_alone(model: Path, tmp_path: Path) -> None:
    succeed("convert", model / "model.safetensors.index.json", tmp_path / "out")
    assert "config.json" not in files_of(tmp_path / "out")
    succeed("convert", model / ONE, tmp_path / "one.sparsefmt")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out", "one.sparsefmt"}


def test_folder_without_config_is_no_model(model: Path, tmp_path: Path) -> None:
    (model / "config.json").unlink()
    out = succeed("convert", model)
    assert "Copied" not in out
    assert all(
        name.endswith((".sparsefmt", ".sparsefmt.index.json")) for name in files_of(tmp_path / "model-sparsefmt")
    )


def test_one_whole_file_is_the_model(tmp_path: Path) -> None:
    """Beside it lie other forms of the same weights, which transformers would not load either."""
    names = ["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors"]
    folder = save_shards(tmp_path / "in", dict.fromkeys(names, SHARDS[ONE]), index=False)
    (folder / "consolidated.safetensors").write_bytes(b"not looked at")
    assert run_command("convert", folder, tmp_path / "no").exit_code == 1
    save_config(folder, CONFIG)
    out = succeed("convert", folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == {"config.json", "model.sparsefmt", "README.md"}
    assert "not converted: consolidated.safetensors, model.fp16.safetensors" in out


def test_modules_of_sentence_transformers_keep_their_weights(model: Path, tmp_path: Path) -> None:
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
    write(
        model,
        {
            "modules.json": json.dumps(modules).encode(),
            "2_Dense/model.safetensors": b"dense",
            "2_Dense/pytorch_model.bin": b"bin",
        },
    )
    out = succeed("convert", model, tmp_path / "out")
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").read_bytes() == b"dense"
    assert "2_Dense" not in out.partition("not copied: ")[2]
    for broken in (b"[1]", b"{", b'[{"path": 1}]', b'{"a": 1}'):
        (model / "modules.json").write_bytes(broken)
        succeed("convert", model, tmp_path / "out", "--force")


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    """The cache of the hub has a folder of links to blobs."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots"
    save_shards(blobs, {"0": SHARDS[ONE]}, index=False)
    write(blobs, {"1": json.dumps(CONFIG).encode(), "2": b"tokens"})
    folder.mkdir()
    for name, blob in (("model.safetensors", "0"), ("config.json", "1"), ("tokenizer.json", "2")):
        (folder / name).symlink_to(Path("..") / "blobs" / blob)
    (folder / "all").symlink_to(tmp_path, target_is_directory=True)
    (folder / "self").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe")
    succeed("convert", folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == {"model.sparsefmt", "config.json", "tokenizer.json", "README.md"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == b"tokens"
    assert json.loads((blobs / "1").read_text()) == CONFIG


def test_link_that_leads_nowhere_fails_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    (model / "vocab.txt").symlink_to(tmp_path / "missing")
    assert "vocab.txt: No such file" in fail(2, "convert", model)
    (model / "vocab.txt").unlink()
    (model / "README.md").unlink()
    (model / "README.md").symlink_to(tmp_path / "missing")
    assert "README.md: No such file" in fail(2, "convert", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_destination_within_the_source(model: Path) -> None:
    for _ in range(2):
        succeed("convert", model, model / "sparse", "--force")
        assert "sparse" not in {name.partition("/")[0] for name in files_of(model / "sparse")}


def test_failure_leaves_nothing(model: Path, tmp_path: Path) -> None:
    (model / TWO).write_bytes(craft_tensors({"c": ("BOOL", [2], b"\x05\x00")}))
    fail(1, "convert", model, tmp_path / "a" / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "a"}
    assert not list((tmp_path / "a").iterdir())


def test_failure_at_the_last_file_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, destination: Path) -> None:
        if source.name == "tokenizer_config.json":
            raise PermissionError(13, "Permission denied", str(source))
        copy(source, destination)

    copy = huggingface.copy_file
    monkeypatch.setattr(huggingface, "copy_file", refuse)
    assert "tokenizer_config.json: Permission denied" in fail(2, "convert", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # what was there before stays
    write(tmp_path / "model-sparsefmt", {"own.txt": b"mine", "README.md": b"old", "1_Pooling/x": b"mine"})
    fail(2, "convert", model, "--force")
    assert files_of(tmp_path / "model-sparsefmt") == {"own.txt", "README.md", "1_Pooling/x"}


def test_overwrite_replaces_a_copy_and_never_the_source(model: Path, tmp_path: Path) -> None:
    sparse = tmp_path / "model-sparsefmt"
    write(sparse, {"tokenizer.json": b"old", "own.txt": b"mine"})
    assert "not empty; --force" in fail(2, "convert", model)
    succeed("convert", model, "--force")
    assert (sparse / "tokenizer.json").read_bytes() == COPIED["tokenizer.json"]
    assert (sparse / "own.txt").read_bytes() == b"mine"
    (sparse / "config.json").unlink()
    (sparse / "config.json").symlink_to(model / "config.json")
    assert "is the source itself" in fail(2, "convert", model, "--force")
    assert json.loads((model / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "[" * 100_000, "\xff"])
def test_config_that_is_none(model: Path, tmp_path: Path, text: str) -> None:
    (model / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json: it " in fail(1, "convert", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "found",
    [
        {"quant_method": "sparsefmt", "min_sparsity": 0.3},
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense", "global_sparsity": 0.5}},
        {"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": {}},
    ],
)
def test_quantization_config_that_says_nothing_of_the_bits_is_replaced(
    model: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    save_config(model, {"a": 1, "quantization_config": found, "b": 2})
    succeed("convert", model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(config.items()) == [("a", 1), ("quantization_config", QUANTIZED), ("b", 2)]


@pytest.mark.parametrize(
    "found",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {}}},
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}},
        {},
        "gptq",
    ],
)
def test_weights_quantized_otherwise_are_refused(model: Path, tmp_path: Path, found: object) -> None:
    save_config(model, CONFIG | {"quantization_config": found})
    message = fail(1, "convert", model)
    assert f"{model / 'config.json'}: the weights are quantized by" in message
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # the weights alone are no matter
    succeed("convert", model / "model.safetensors.index.json", tmp_path / "out")
    succeed("convert", model / ONE, tmp_path / "one.sparsefmt")


def test_export_leaves_the_config_of_others_alone(model: Path, tmp_path: Path) -> None:
    succeed("convert", model)
    config = CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    save_config(tmp_path / "model-sparsefmt", config)
    succeed("export", tmp_path / "model-sparsefmt")
    assert json.loads((tmp_path / "model-safetensors" / "config.json").read_text()) == config


def test_names_are_those_that_transformers_looks_for(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "one", {"model.safetensors": SHARDS[ONE]}, index=False)
    save_config(folder, CONFIG)
    succeed("convert", folder)
    assert files_of(tmp_path / "one-sparsefmt") == {"config.json", "model.sparsefmt", "README.md"}
    folder = save_shards(tmp_path / "two", SHARDS, index=False)
    save_config(folder, CONFIG)
    succeed("convert", folder)
    with Checkpoint(tmp_path / "two-sparsefmt", ["sparsefmt"]) as checkpoint:
        assert checkpoint.index is not None
        assert checkpoint.index.path.name == "model.sparsefmt.index.json"
    succeed("export", tmp_path / "two-sparsefmt")
    assert read_back(tmp_path / "two-safetensors" / ONE) == read_back(folder / ONE)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("model.sparsefmt", True),
        ("adapter_model.bin", True),
        ("rng_state.pth", True),
        ("model.onnx_data", True),
        ("index.json", False),
        ("tokenizer.model", False),
        ("vocab.bin.txt", False),
        ("bin", False),
    ],
)
def test_what_is_a_weight_file(name: str, weights: bool) -> None:
    assert huggingface.is_weights(name) is weights


# --force over a folder that has a model already


def whole(name: str, seed: int) -> dict[str, dict[str, np.ndarray]]:
    return {name: {"w": sparse_array(seed)}}


def check_folder(folder: Path, source: Path, out: str = "") -> None:
    """A folder holds exactly the model that `source` is, and the size that was told is that of its files."""
    with Checkpoint(folder, ["sparsefmt"]) as ours, Checkpoint(source, ["safetensors"]) as theirs:
        assert ours.names == theirs.names
        if out:
            [told] = [line for line in out.splitlines() if f"-> {folder} (" in line]
            assert told.partition(f"-> {folder} (")[2].partition(")")[0] == output.size(ours.nbytes)
    assert run_command("verify", folder, "--against", source).exit_code == 0


MODELS = {
    "two shards": (SHARDS, True),
    "two shards, other stem": ({name.replace("model", "other"): arrays for name, arrays in SHARDS.items()}, False),
    "three shards": ({f"model-{n:05d}-of-00003.safetensors": {f"t{n}": sparse_array(n)} for n in (1, 2, 3)}, True),
    "model": (whole("model.safetensors", 5), False),
    "another name": (whole("whole.safetensors", 6), False),
    "two names": ({"a.safetensors": {"a": sparse_array(7)}, "b.safetensors": {"b": sparse_array(8)}}, False),
}


@pytest.mark.parametrize(
    ("old", "new", "config"),
    [
        *((old, new, False) for old in MODELS for new in MODELS),
        *(("two shards", new, True) for new in MODELS),
        *((old, "model", True) for old in MODELS),
    ],
)
def test_forced_conversion_leaves_the_new_model_alone(old: str, new: str, config: bool, tmp_path: Path) -> None:
    for name in (old, new):
        if not (tmp_path / name).exists():
            shards, index = MODELS[name]
            save_shards(tmp_path / name, shards, index=index)
            if config:
                save_config(tmp_path / name, CONFIG)
    destination = tmp_path / "out"
    succeed("convert", tmp_path / old, destination)
    (destination / "own.txt").write_text("mine")
    out = succeed("convert", tmp_path / new, destination, "--force")
    check_folder(destination, tmp_path / new, out)
    assert (destination / "own.txt").read_text() == "mine"
    expected = {Path(name).stem for name in MODELS[new][0]}
    left = {path.stem for path in destination.glob("*.sparsefmt")} - expected
    # a file of any name may be the user's own: it stays, is named, and is no part of the model
    assert left <= {Path(name).stem for name in MODELS[old][0]} & {"whole", "a", "b"}
    for stem in left:
        assert f"{stem}.sparsefmt" in out.partition("Left alone, and no part of the model: ")[2]
    back = tmp_path / "back"
    succeed("export", tmp_path / "out", back)
    with Checkpoint(back, ["safetensors"]) as ours, Checkpoint(tmp_path / new, ["safetensors"]) as theirs:
        assert ours.names == theirs.names


def test_forced_conversion_over_dense_weights(tmp_path: Path) -> None:
    """They would be found beside the new ones: by `diff`, and by the next conversion."""
    source = save_shards(tmp_path / "in", whole("model.safetensors", 1), index=False)
    folder = save_shards(tmp_path / "out", SHARDS)
    for path in (source, folder):
        save_config(path, CONFIG)
    (folder / "own.safetensors").write_bytes(b"mine")
    out = succeed("convert", source, folder, "--force")
    assert files_of(folder) == {"config.json", "model.sparsefmt", "own.safetensors", "README.md"}
    assert f"Removed, of the model that was there: {ONE}, {TWO}, model.safetensors.index.json" in out
    # and back
    succeed("convert", save_shards(tmp_path / "shards", SHARDS), tmp_path / "sparse")
    out = succeed("export", tmp_path / "sparse", folder, "--force")
    assert files_of(folder) == {"config.json", ONE, TWO, "model.safetensors.index.json", "own.safetensors", "README.md"}
    assert "Removed, of the model that was there: model.sparsefmt" in out


def test_weights_that_are_links_to_the_destination_are_not_removed(tmp_path: Path) -> None:
    old = save_shards(tmp_path / "out", SHARDS)
    (tmp_path / "in").mkdir()
    for path in old.iterdir():
        (tmp_path / "in" / path.name).symlink_to(path)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    assert "is the source itself" in fail(2, "convert", tmp_path / "in", tmp_path / "out", "--force")
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_write_protected_weights_stay(tmp_path: Path) -> None:
    succeed("convert", save_shards(tmp_path / "in", SHARDS), tmp_path / "out")
    (tmp_path / "out" / ONE.replace("safetensors", "sparsefmt")).chmod(0o400)
    source = save_shards(tmp_path / "new", whole("model.safetensors", 1), index=False)
    assert "is write-protected" in fail(2, "convert", source, tmp_path / "out", "--force")
    check_folder(tmp_path / "out", tmp_path / "in")


def killed_at(step: int, *arguments: object) -> bool:
    """Run a command in a child that is killed at its nth change of the disk. Whether it came so far."""
    child = os.fork()
    if not child:
        left = step

        def counted(original: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return original(*arguments, **options)

            return call

        code = 1
        try:
            os.replace, Path.unlink, os.fsync = map(counted, (os.replace, Path.unlink, os.fsync))  # type: ignore
            code = run_command(*arguments).exit_code
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize(
    ("old", "new", "config"), [("two shards", "three shards", True), ("two shards", "model", False)]
)
def test_killed_at_any_step_it_is_the_old_model_or_refused(old: str, new: str, config: bool, tmp_path: Path) -> None:
    for name in (old, new):
        save_shards(tmp_path / name, MODELS[name][0], index=MODELS[name][1])
        if config:
            save_config(tmp_path / name, CONFIG | {"name": name})
    destination, refused, steps = tmp_path / "out", 0, 0
    while True:
        succeed("convert", tmp_path / old, destination, "--force")
        if not killed_at(steps, "convert", tmp_path / new, destination, "--force"):
            break
        listing = run_command("inspect", destination)
        if listing.exit_code:
            refused += 1
            assert "missing" in listing.stderr or "was not finished" in listing.stderr, listing.stderr
        else:
            # the new one, if the last file is in its place
            is_new = run_command("diff", destination, tmp_path / new, "--quiet").exit_code == 0
            check_folder(destination, tmp_path / (new if is_new else old))
        steps += 1
    check_folder(destination, tmp_path / new)
    assert refused >= 2
    assert steps > 8
    assert not [name for name in files_of(destination) if "tmp" in name]


def test_killed_conversion_to_a_new_folder_says_so(tmp_path: Path) -> None:
    source = save_shards(tmp_path / "in", SHARDS)
    assert killed_at(1, "convert", source, tmp_path / "out")
    assert "was not finished: convert again" in fail(2, "inspect", tmp_path / "out")
    # what it has left is no reason to refuse
    succeed("convert", source, tmp_path / "out")
    assert not [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_an_interrupt_while_a_folder_is_begun_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsefmt.checkpoints.staging.fcntl.flock", interrupted)
    with pytest.raises(KeyboardInterrupt), StagedFolder(tmp_path / "new", None, False):
        pass
    assert list(tmp_path.iterdir()) == []
