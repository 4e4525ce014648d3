"""Which subclasses of torch.nn.Linear compute what Linear does: a wrong yes gives wrong results, so doubt means no."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsefmt.torch import SparseLinear, make_dense, sparsify
from sparsefmt.torch.layers import why_not_replaceable

pytestmark = pytest.mark.usefixtures("small_layers")

scale = 2.0


class Plain(nn.Linear):
    """Nothing of its own."""


class Described(nn.Linear):
    def extra_repr(self) -> str:
        return "described"


class Functional(nn.Linear):
    def forward(self, x):
        """A text."""
        return F.linear(x, self.weight, self.bias)


class Keywords(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, self.weight, bias=self.bias)


class Transposed(nn.Linear):
    """As FalconLinear in transformers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        hidden_states = input @ self.weight.T
        if self.bias is None:
            return hidden_states
        return hidden_states + self.bias


class InPlace(nn.Linear):
    def forward(self, x):
        y = torch.matmul(x, self.weight.transpose(0, 1))
        if self.bias is not None:
            y += self.bias
        return y


class Below(Transposed):
    """A subclass of such a subclass."""


class Doubled(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias) * 2


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias) * scale


class WithoutBias(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight)


class NotTransposed(nn.Linear):
    def forward(self, x):
        return x @ self.weight


class InTraining(nn.Linear):
    def forward(self, x):
        if self.training:
            return F.linear(x, self.weight, self.bias) + 1
        return F.linear(x, self.weight, self.bias)


class OfOthers(nn.Linear):
    def forward(self, x):
        return F.linear(math.fabs(x), self.weight, self.bias)


class MoreArguments(nn.Linear):
    def forward(self, x, factor=1):
        return F.linear(x, self.weight, self.bias) * factor


class AnyArguments(nn.Linear):
    def forward(self, x, *more):
        return F.linear(x, self.weight, self.bias)


class Keeping(nn.Linear):
    def forward(self, x):
        self.bias = F.linear(x, self.weight, self.bias)
        return self.bias


class Printing(nn.Linear):
    def forward(self, x):
        print("must not be called to find out")
        return F.linear(x, self.weight, self.bias)


class ChangingItsInput(nn.Linear):
    def forward(self, x):
        x += x
        return F.linear(x, self.weight, self.bias)


class Methods(nn.Linear):
    def more(self):
        return self.weight


class Called(nn.Linear):
    def __call__(self, x):
        return x


class Generating(nn.Linear):
    def forward(self, x):
        yield F.linear(x, self.weight, self.bias)


SAME = [Plain, Described, Functional, Keywords, Transposed, InPlace, Below]
OTHERS = [
    *(Doubled, Scaled, WithoutBias, NotTransposed, InTraining, OfOthers, MoreArguments, AnyArguments, Keeping),
    *(Printing, ChangingItsInput, Methods, Called, Generating),
]


def pruned(kind: type[nn.Linear], bias: bool = True) -> nn.Linear:
    layer = kind(64, 48, bias=bias)
    with torch.no_grad():
        layer.weight[torch.rand(48, 64) < 0.8] = 0
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", SAME)
def test_the_same_product_is_compressed(kind, bias):
    torch.manual_seed(0)
    model = nn.Sequential(pruned(kind, bias))
    x = torch.randn(3, 64)
    expected = model(x)
    result = sparsify(model)
    assert type(model[0]) is SparseLinear
    assert not result.dense
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    make_dense(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OTHERS)
def test_everything_else_stays_and_is_named(kind, capsys):
    model = nn.Sequential(pruned(kind))
    layer = model[0]
    result = sparsify(model)
    assert model[0] is layer
    assert result.dense["0"].startswith(f"it is a {kind.__name__}")
    assert not capsys.readouterr().out


def test_names_that_stand_for_something_else(monkeypatch):
    class Other(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight, self.bias)

    class Fake:
        linear = staticmethod(F.linear)

    monkeypatch.setitem(globals(), "F", Fake)
    assert why_not_replaceable(Other(4, 4)) is not None


def test_layers_that_are_not_used_by_calling_them():
    patched = pruned(nn.Linear)
    patched.forward = lambda x: x
    assert why_not_replaceable(patched) == "it is a Linear whose forward has been replaced"
    assert "without calling it" in why_not_replaceable(nn.MultiheadAttention(4, 2).out_proj)
    assert "no weight yet" in why_not_replaceable(nn.LazyLinear(4))
    assert "ParametrizedLinear" in why_not_replaceable(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)))
    assert "Bilinear, not to a linear layer" in why_not_replaceable(nn.Bilinear(2, 2, 2))
    assert "has mine beside" in why_not_replaceable(with_buffer())


def with_buffer() -> nn.Linear:
    layer = nn.Linear(2, 2)
    layer.register_buffer("mine", torch.ones(2))
    return layer
