"""Files of other formats: each is named, with a recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import fail
from safetensors_files import sparse_array

import sparsefmt
import sparsefmt.torch


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.gguf", b"GGUF\x03" + bytes(60), "gguf_file='a.gguf'"),
        ("a.onnx", b"\x08\x0e:\xd7" + bytes(60), "onnx.load"),
        ("a.npy", b"\x93NUMPY" + bytes(60), "numpy.load('a.npy')"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(60), "keras.saving.load_model('a.h5')"),
        ("a.tflite", b"\x1c\0\0\0TFL3" + bytes(60), "the model that it was made from"),
        ("a.gz", b"\x1f\x8b" + bytes(60), "unpack it first"),
    ],
)
def test_other_formats_are_wrong_usage_with_a_recipe(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for command in ("convert", "inspect", "verify", "export", "bench"):
        message = fail(2, command, tmp_path / name)
        assert words in message
        assert message.startswith(f"{tmp_path / name}: not ")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(content)
    if not name.endswith((".tflite", ".gz", ".npy")):
        assert words in fail(2, "convert", tmp_path / "folder")


def test_npz_and_what_its_recipe_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", w=sparse_array(0), b=np.ones(3))
    message = fail(2, "convert", tmp_path / "a.npz")
    code = message.partition('python -c "')[2].partition('"')[0]
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert set(sparsefmt.load_file(tmp_path / "a.sparsefmt")) == {"w", "b"}
