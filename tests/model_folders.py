"""Folders of Hugging Face models, small enough to be made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["Größe"],
    "rms_norm_eps": 1e-06,
    "big": 12345678901234567890,
    "ids": [1, None, True, 0.1],
    "z": {"b": 1, "a": 2},
}
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
