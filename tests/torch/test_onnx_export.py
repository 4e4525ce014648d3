"""Models with SparseLinear layers as ONNX: the dense model's graph, by both exporters of torch."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_python

from sparsefmt.torch import SparseLinear, make_dense, sparsify

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

pytestmark = [pytest.mark.usefixtures("small_layers"), pytest.mark.filterwarnings("ignore")]

EXPORTERS = [False, pytest.param(True, marks=pytest.mark.slow)]


class Net(torch.nn.Module):
    """A net with a layer of two names, and one whose weight is used without calling it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(32, 64)
        self.again = self.first
        self.second = torch.nn.Linear(64, 32, bias=False)
        self.third = torch.nn.Linear(64, 32)
        self.dense = torch.nn.Linear(32, 8)
        with torch.no_grad():
            for layer in (self.first, self.second, self.third):
                layer.weight *= torch.rand(layer.weight.shape) < 0.2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(torch.relu(self.first(x)))
        return self.dense(torch.relu(self.again(y)) @ self.third.weight.T)


X = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


def export(model: torch.nn.Module, path: Path, dynamo: bool) -> onnx.ModelProto:
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.onnx.export(model, (X,), str(path), dynamo=dynamo)
    found = onnx.load(path)
    onnx.checker.check_model(found)
    return found


def sparse_net() -> Net:
    model = Net().eval()
    assert len(sparsify(model).sparse) == 4
    return model


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_the_graph_is_that_of_the_dense_model(dynamo: bool, tmp_path: Path) -> None:
    model = sparse_net()
    layers = dict(model.named_modules(remove_duplicate=False))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense = copy.deepcopy(model)
    make_dense(dense)
    found, expected = (
        export(each, tmp_path / f"{name}.onnx", dynamo) for name, each in (("sparse", model), ("dense", dense))
    )
    assert {node.domain for node in found.graph.node} <= {"", "ai.onnx"}
    assert [node.op_type for node in found.graph.node] == [node.op_type for node in expected.graph.node]
    ours, theirs = (
        sorted(onnx.numpy_helper.to_array(tensor).tobytes() for tensor in graph.graph.initializer)
        for graph in (found, expected)
    )
    assert ours == theirs
    # the model is what it was
    assert dict(model.named_modules(remove_duplicate=False)) == layers
    assert isinstance(model.first, SparseLinear)
    assert model.first is model.again
    assert model.state_dict().keys() == state.keys()
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_another_runtime_computes_the_same(dynamo: bool, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = sparse_net()
    export(model, tmp_path / "net.onnx", dynamo)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    np.testing.assert_allclose(found, model(X).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("values", ["int8", "fp8"])
def test_scaled_weights_are_multiplied_out(values: str, tmp_path: Path) -> None:
    model = Net().eval()
    sparsify(model, values=values)
    found = export(model, tmp_path / "net.onnx", dynamo=False)
    elements = {onnx.numpy_helper.to_array(tensor).tobytes() for tensor in found.graph.initializer}
    assert model.first.weight.to_dense().numpy().tobytes() in elements


def test_a_layer_alone(tmp_path: Path) -> None:
    layer = sparse_net().first
    found = export(layer, tmp_path / "layer.onnx", dynamo=False)
    elements = {onnx.numpy_helper.to_array(tensor).tobytes() for tensor in found.graph.initializer}
    assert layer.weight.to_dense().numpy().tobytes() in elements


def test_after_an_error_the_model_is_what_it_was(tmp_path: Path) -> None:
    model = sparse_net()
    before = dict(model.named_modules(remove_duplicate=False))
    with pytest.raises(RuntimeError):
        torch.onnx.export(model, (torch.ones(4, 31),), str(tmp_path / "net.onnx"), dynamo=False)
    assert dict(model.named_modules(remove_duplicate=False)) == before


@pytest.mark.slow
def test_an_exported_program_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = sparse_net()
    program = torch.export.export(model, (X,))
    with pytest.raises(ValueError, match=r"give torch\.onnx\.export the model itself"):
        torch.onnx.export(program, (X,), str(tmp_path / "net.onnx"), dynamo=True)


@pytest.mark.thorough
@pytest.mark.slow
def test_torch_onnx_is_wrapped_whichever_is_imported_first() -> None:
    # nothing of it is imported before somebody asks
    unasked = "import sys, sparsefmt.torch\nassert 'torch.onnx' not in sys.modules\nimport torch.onnx"
    for first in ("import torch.onnx, sparsefmt.torch", unasked):
        run_python(
            f"{first}\nimport torch\n"
            "assert hasattr(torch.onnx.export, '_of_sparsefmt')\nassert torch.onnx.export.__doc__"
        )
