"""Folders that are converted over others: the old model or the new one, whatever fails and whenever it is killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fail, run_command, succeed
from model_folders import CONFIG, COPIED, files_of, save_config, write
from safetensors_files import ONE, SHARDS, TWO, craft_tensors, save_shards, sparse_array

from sparsefmt.checkpoints import huggingface
from sparsefmt.checkpoints.checkpoint import Checkpoint
from sparsefmt.checkpoints.staging import StagedFolder
from sparsefmt.cli import output


def test_link_that_leads_nowhere_fails_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    (model / "vocab.txt").symlink_to(tmp_path / "missing")
    assert "vocab.txt: No such file" in fail(2, "convert", model)
    (model / "vocab.txt").unlink()
    (model / "README.md").unlink()
    (model / "README.md").symlink_to(tmp_path / "missing")
    assert "README.md: No such file" in fail(2, "convert", model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


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
    ("old", "new", "config"),
    [
        ("two shards", "three shards", True),
        pytest.param("two shards", "model", False, marks=pytest.mark.thorough),
    ],
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
