"""compute_dtype="float32": weights in 16 bits, everything else float32, and the 16 bits again in files."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
import torch._dynamo
from torch_helpers import conv1d, same, same_state
from torch_layers import LAYOUTS, layer_of
from torch_models import SPARSE, TOKENS, Model, meta_model, pruned_model, sparse_layers

import sparsefmt
from sparsefmt import SparseTensor
from sparsefmt.torch import SparseLinear, compute_dtype, load_into, make_dense, save_model, sparsify, tensors_of
from sparsefmt.torch.compute_dtype import hint, narrow, widen
from sparsefmt.torch.widened import stored_dtypes

pytestmark = pytest.mark.usefixtures("small_layers")

DTYPES = [torch.bfloat16, torch.float16]
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16"}


def small_model(dtype: torch.dtype) -> Model:
    """Pruned, of that dtype, its buffers too."""
    return pruned_model().to(dtype)


def computing(dtype: torch.dtype) -> Model:
    model = small_model(dtype)
    sparsify(model, compute_dtype="float32")
    return model


def in_float32(dtype: torch.dtype) -> Model:
    """The same values, with float32 weights in the same layers."""
    model = small_model(dtype).float()
    sparsify(model)
    return model


def output(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS)


def check_computing(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights in 16 bits, and the bits of a float32 model with the same values."""
    assert sparse_layers(model) == SPARSE
    for name in SPARSE:
        layer = model.get_submodule(name)
        assert layer.weight.tensor.operand().dtype.name == NAMES[dtype]
        assert layer.weight.dtype == torch.float32
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert model.norm.running_mean.dtype == model.scale.dtype == model.not_saved.dtype == torch.float32
    assert model.head.weight is model.embedding.weight
    assert model.first.weight_arrays is model.second.weight_arrays
    expected = in_float32(dtype)
    assert same(output(model), output(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_products_have_the_bits_of_float32_weights(layout, dtype, tokens):
    layer = layer_of(200, 300, NAMES[dtype], layout)
    wide = SparseTensor.from_dense(layer.weight.to_dense().float().numpy(), layout)
    expected = SparseLinear.from_tensor(wide, layer.bias)
    arrays = layer.weight_arrays
    widen(layer)
    assert layer.weight_arrays is arrays
    x = torch.randn(tokens, 300)
    y = layer(x)
    assert same(y, expected(x))
    alone = sparsefmt.linear(x.numpy(), layer.weight.tensor, layer.bias.detach().numpy())
    assert same(y, torch.from_numpy(alone))
    # activations of other dtypes give results of theirs
    for other in (torch.bfloat16, torch.float16, torch.float64):
        assert same(layer(x.to(other)), expected(x.to(other)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["float32", torch.float32])
def test_sparsify(given, dtype):
    model = small_model(dtype)
    parameters, buffer = dict(model.named_parameters()), model.scale
    result = sparsify(model, compute_dtype=given)
    check_computing(model, dtype)
    assert sorted(result.sparse) == SPARSE
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert same(model.scale, buffer.float())
    nbytes = sum(tensor.nbytes for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
    assert result.summary.nbytes == nbytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["meta", "float32", "same"])
def test_load_into(kind, dtype, tmp_path):
    path = tmp_path / "model.sparsefmt"
    save_model(small_model(dtype), tmp_path / "dense.sparsefmt")
    small = meta_model()
    load_into(small, tmp_path / "dense.sparsefmt")
    save_model(small, path)
    model = meta_model() if kind == "meta" else pruned_model(1).to(torch.float32 if kind == "float32" else dtype)
    assert load_into(model, path, compute_dtype="float32").sparse == SPARSE
    if kind == "meta":
        model.not_saved = torch.ones(64)
    check_computing(model, dtype)
    # the same file again, and again from what was loaded from it
    save_model(model, tmp_path / "again.sparsefmt")
    assert (tmp_path / "again.sparsefmt").read_bytes() == path.read_bytes()
    load_into(model, path)
    check_computing(model, dtype)
    save_model(copy.deepcopy(model), path)
    assert (tmp_path / "again.sparsefmt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_saved_is_what_there_was(dtype, tmp_path):
    small = small_model(dtype)
    sparsify(small)
    save_model(small, tmp_path / "small")
    model = computing(dtype)
    assert stored_dtypes(model)["head.weight"] == stored_dtypes(model)["embedding.weight"] == dtype
    for made in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        save_model(made, tmp_path / "computing")
        assert (tmp_path / "computing").read_bytes() == (tmp_path / "small").read_bytes()
    # the tensors of the model as they are in memory, weights in 16 bits
    for name, tensor in tensors_of(model).items():
        dtypes = (dtype,) if isinstance(tensor, SparseTensor) else (torch.float32, torch.int64)
        assert dtype_of(tensor) in dtypes, name
    # what is trained is kept as it is
    with torch.no_grad():
        model.block.norm1.bias[3] = 1 + 2**-20
    save_model(model, tmp_path / "trained")
    found, before = (sparsefmt.torch.load_file(tmp_path / name) for name in ("trained", "small"))
    assert same(found.pop("block.norm1.bias"), model.block.norm1.bias)
    assert all(same(tensor, before[name]) for name, tensor in found.items())


def dtype_of(tensor: torch.Tensor | SparseTensor) -> torch.dtype:
    if isinstance(tensor, torch.Tensor):
        return tensor.dtype
    return {name: dtype for dtype, name in NAMES.items()}[tensor.operand().dtype.name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_back_to_dense_layers(dtype, tmp_path):
    expected = small_model(dtype).float()
    model = computing(dtype)
    make_dense(model)
    assert not sparse_layers(model)
    assert same_state(model, expected)
    assert same(output(model), output(expected))
    # stored as before they were compressed
    save_model(model, tmp_path / "dense")
    save_model(small_model(dtype), tmp_path / "small")
    assert (tmp_path / "dense").read_bytes() == (tmp_path / "small").read_bytes()
    # and in 16 bits again
    model = computing(dtype)
    make_dense(model, dtype)
    assert model.up.weight.dtype == dtype
    narrow(model, dtype)
    assert same_state(model, small_model(dtype))
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_code_the_weight_is_float32(dtype):
    layer = layer_of(60, 80, NAMES[dtype])
    expected = layer.weight.to_dense().float()
    text = f"dtype={dtype}, compute_dtype=torch.float32"
    assert text not in repr(layer)
    widen(layer)
    assert text in repr(layer)
    weight = layer.weight
    assert (weight.dtype, weight.element_size()) == (torch.float32, 4)
    assert same(weight.to_dense(), expected)
    assert np.array_equal(np.asarray(weight), expected.numpy())
    assert np.asarray(weight).dtype == np.float32
    assert same(torch.zeros_like(weight), torch.zeros(60, 80))
    x = torch.randn(3, 80)
    with pytest.warns(UserWarning, match="needs the elements"):
        assert same(x @ weight.T, x @ expected.T)
    # a change is rounded to 16 bits
    weight.mul_(1.1)
    assert layer.weight.tensor.operand().dtype.name == NAMES[dtype]
    assert same(layer.weight.to_dense(), (expected * 1.1).to(dtype).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_conversions(dtype):
    layer = layer_of(60, 80, NAMES[dtype])
    before = layer.weight.to_dense()
    widen(layer)
    arrays = layer.weight_arrays
    # it is float32 already
    for made in (copy.deepcopy(layer).float(), copy.deepcopy(layer).to(torch.float32), copy.deepcopy(layer).to("cpu")):
        assert made.weight_arrays is arrays
        assert made.weight.dtype == torch.float32
    for other in (torch.bfloat16, torch.float16, torch.float64):
        made = copy.deepcopy(layer).to(other)
        assert made.weight.dtype == made.bias.dtype == other
        assert same(made.weight.to_dense(), before.to(other))
        # from then on as any other
        made.float()
        assert made.weight.tensor.dtype == np.float32
        assert same(made.weight.to_dense(), before.to(other).float())
    assert copy.deepcopy(layer).to(dtype).weight_arrays is arrays


@pytest.mark.parametrize("dtype", DTYPES)
def test_state_dicts_have_what_is_in_memory(dtype):
    model, other = computing(dtype), computing(dtype)
    state = model.state_dict()
    assert {tensor.dtype for name, tensor in state.items() if "weight_" not in name} == {torch.float32, torch.int64}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(state)
    assert same(output(other), output(model))
    assert all(other.get_submodule(name).weight.tensor.dtype.itemsize == 2 for name in SPARSE)
    # a dense weight is compressed in the 16 bits that the layer has
    layer, dense = layer_of(60, 80, NAMES[dtype], seed=1), layer_of(60, 80, NAMES[dtype]).weight.to_dense()
    widen(layer)
    layer.load_state_dict({"weight": dense.float(), "bias": layer.bias.detach()})
    assert layer.weight.tensor.operand().dtype.name == NAMES[dtype]
    assert same(layer.weight.to_dense(), dense.float())


def test_weights_that_were_turned():
    layer = SparseLinear.from_linear(conv1d(64, 96).bfloat16())
    expected = layer.weight.to_dense().float()
    widen(layer)
    assert layer.weight.shape == (64, 96)
    assert same(layer.weight.to_dense(), expected)
    model = torch.nn.Sequential(layer)
    make_dense(model)
    assert same(model[0].weight, torch.nn.Parameter(expected))


def test_what_has_other_dtypes_is_left_alone():
    for name, dtype in (("F32", torch.float32), ("F64", torch.float64)):
        layer = layer_of(60, 80, name)
        layer.register_buffer("wide", torch.ones(2, dtype=torch.float64))
        layer.register_buffer("whole", torch.ones(2, dtype=torch.int16))
        before = copy.deepcopy(layer)
        widen(layer)
        assert layer.weight.dtype == dtype
        assert same_state(layer, before)
        assert not stored_dtypes(layer)
        assert "compute_dtype" not in repr(layer)


def test_buffers_that_are_one_stay_one():
    shared = torch.ones(3, dtype=torch.bfloat16)
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    for part in model:
        part.register_buffer("shared", shared)
    widen(model)
    assert model[0].shared is model[1].shared
    assert model[0].shared.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_changes_what_is_float32(dtype):
    model, twin = computing(dtype), in_float32(dtype)
    gradients = []
    for trained in (model, twin):
        trained(TOKENS).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in trained.named_parameters()})
        torch.optim.SGD(trained.parameters(), 0.1).step()
    assert all(same(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
    assert same(output(model), output(twin))


@pytest.mark.filterwarnings("ignore")
def test_compiled_and_exported():
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer_of(60, 80, "BF16")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + x @ self.layer.weight.T

    model, x = Both(), torch.randn(3, 80)
    widen(model)
    expected = model(x)
    torch._dynamo.reset()
    assert same(torch.compile(model, backend="eager")(x), expected)
    assert same(torch.export.export(model, (x,)).module()(x), expected)


@pytest.mark.parametrize(
    "value", ["bfloat16", torch.bfloat16, torch.float64, "torch.float32", 32, True, "", np.float32]
)
def test_other_values_are_refused(value, tmp_path):
    words = "compute_dtype must be None, 'float32' or torch.float32, not "
    model = small_model(torch.bfloat16)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=words):
        sparsify(model, compute_dtype=value)
    save_model(model, tmp_path / "model")
    with pytest.raises(ValueError, match=words):
        load_into(model, tmp_path / "model", compute_dtype=value)
    assert same_state(model, before)


def test_the_hint_is_given_once_where_it_helps(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "sparsefmt")
    flags = frozenset({"avx2", "fma"})
    monkeypatch.setattr(compute_dtype, "_processor_flags", lambda: flags)
    monkeypatch.setattr(compute_dtype, "_hinted", set())
    for dtype in (torch.bfloat16, torch.float32):
        save_model(pruned_model().to(dtype), tmp_path / str(dtype))

    def load(dtype: torch.dtype, model: torch.nn.Module | None = None, **arguments: object) -> list[str]:
        caplog.clear()
        load_into(meta_model() if model is None else model, tmp_path / str(dtype), **arguments)
        return [record.getMessage() for record in caplog.records if record.name == "sparsefmt"]

    # float32, computing in float32 already, nothing compressed, and asked for
    assert not load(torch.float32)
    assert not load(torch.bfloat16, pruned_model(1))
    assert not load(torch.bfloat16, min_sparsity=1.0)
    assert not load(torch.bfloat16, compute_dtype="float32")
    flags = frozenset({"avx2", "avx512_bf16"})
    assert not load(torch.bfloat16)
    flags = None
    assert not load(torch.bfloat16)
    flags = frozenset({"asimd", "asimdhp"})
    (message,) = load(torch.bfloat16)
    assert message == (
        "this processor has no instructions for bfloat16: prompts and batches are faster where the model computes in"
        ' float32, with its compressed weights still in 16 bits: load_into(..., compute_dtype="float32")'
    )
    assert not load(torch.bfloat16)
    assert hint(small_model(torch.bfloat16), "") is None


def test_what_linux_says_of_processors(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(compute_dtype, "_CPUINFO", path)

    def lacks(text: str | None, dtype: torch.dtype) -> bool:
        compute_dtype._processor_flags.cache_clear()
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        return compute_dtype.lacks_instructions(dtype)

    try:
        x86 = "model name\t: a processor\nflags\t\t: fpu avx2{}\nbugs\t\t: bf16\n"
        assert lacks(x86.format(""), torch.bfloat16)
        assert not lacks(x86.format(" amx_bf16 sse"), torch.bfloat16)
        assert lacks(x86.format(" amx_bf16 sse"), torch.float16)
        assert not lacks(x86.format(" avx512_fp16"), torch.float16)
        arm = "processor\t: 0\nFeatures\t: fp asimd asimdhp{}\nCPU part\t: 0xd40\n"
        assert lacks(arm.format(""), torch.bfloat16)
        assert not lacks(arm.format(" bf16"), torch.bfloat16)
        assert not lacks(arm.format(""), torch.float16)
        for unknown in ("", "processor : 0\n", None):
            assert not lacks(unknown, torch.bfloat16)
    finally:
        compute_dtype._processor_flags.cache_clear()
