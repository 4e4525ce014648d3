"""Tensors of 16 bits that become float32 and come back: every bit, and nothing that 16 bits cannot hold."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch_helpers import same

from sparsefmt.torch.widened import as_stored, note, noted, pass_on, stored_dtypes

DTYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_comes_back_with_its_bits(dtype):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    # float16 NaN are made quiet by the processor; those of bfloat16 are kept whatever they are
    quiet = torch.where(values.isnan(), bits | 0x200, bits) if dtype == torch.float16 else bits
    found = as_stored(values.float(), dtype)
    assert same(found[~values.isnan()], values[~values.isnan()])
    assert torch.equal(found.view(torch.int16) | (0x200 if dtype == torch.float16 else 0) * values.isnan(), quiet)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (3, 4, 5)])
def test_shapes_and_orders_of_memory(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    assert same(as_stored(tensor.float(), dtype), tensor)
    assert same(as_stored(torch.nn.Parameter(tensor.float()), dtype), tensor)
    turned = tensor.float().permute(tuple(reversed(range(tensor.dim()))))
    assert same(as_stored(turned, dtype), turned.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1 + 2**-20, 1e-30, 3e38, np.pi])
def test_what_has_been_changed_stays_float32(value, dtype):
    tensor = torch.ones(7)
    tensor[3] = value
    assert as_stored(tensor, dtype) is tensor


def test_other_dtypes_and_devices_are_left_alone():
    for tensor in (
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.float16),
        torch.ones(2, device="meta"),
    ):
        assert as_stored(tensor, torch.bfloat16) is tensor


def test_notes_go_with_a_module_and_its_copies():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.LayerNorm(3)))
    assert stored_dtypes(model) == {} == noted(model)
    note(model[0], "bias", torch.bfloat16)
    note(model[1][0], "weight", torch.float16)
    expected = {"0.bias": torch.bfloat16, "1.0.weight": torch.float16}
    for made in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert stored_dtypes(made) == expected
    other = torch.nn.Linear(2, 3)
    pass_on(model[0], other, ["weight", "bias"])
    assert stored_dtypes(other) == {"bias": torch.bfloat16}
