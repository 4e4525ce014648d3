"""A tensor and its mask: read as the product, to the bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from helpers import examples, random_bits, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_groups import Memory, dense

from sparsefmt import FormatError
from sparsefmt.checkpoints.folding import folded
from sparsefmt.checkpoints.masks import MaskedRows, masked_pairs
from sparsefmt.checkpoints.sparsefmt_file import SparsefmtFile
from sparsefmt.dtypes import DTYPES


class TestMasks:
    @settings(max_examples=examples(100), deadline=None)
    @given(
        dtype=st.sampled_from([DTYPES[name] for name in ("F32", "F16", "BF16", "F64", "I8", "U16", "I64", "BOOL")]),
        mask_dtype=st.sampled_from([np.float32, np.bool_, ml_dtypes.bfloat16, np.int64]),
        shape=st.sampled_from([(), (5,), (0,), (9, 14), (3, 4, 5)]),
        seed=st.integers(0, 1 << 32),
    )
    def test_the_product(self, dtype, mask_dtype, shape, seed):
        rng = np.random.default_rng(seed)
        original = random_bits(rng, shape, dtype)
        keep = rng.random(shape) < 0.5
        file = folded(Memory({"w_mask": np.asarray(keep).astype(mask_dtype), "w_orig": original}))
        assert file.names == ["w"]
        result = dense(file, "w")
        bits, expected = (np.ascontiguousarray(array).view(f"u{dtype.numpy.itemsize}") for array in (result, original))
        assert np.array_equal(bits[keep.reshape(bits.shape)], expected[keep.reshape(bits.shape)])
        if dtype.name in ("F32", "F16", "BF16", "F64"):
            with np.errstate(invalid="ignore"):
                finite = np.isfinite(original)
            zeros = ~keep & finite
            assert (result[zeros] == 0).all()
            assert np.array_equal(np.signbit(result[zeros]), np.signbit(original[zeros]))
            assert np.isnan(result[~keep & ~finite]).all()
        else:
            assert not result[~keep].any()

    def test_the_same_as_torch(self, tmp_path):
        import torch
        from torch.nn.utils import prune

        import sparsefmt.torch

        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            model = torch.nn.Linear(60, 40, dtype=dtype)
            prune.l1_unstructured(model, "weight", 0.7)
            sparsefmt.torch.save_file(model.state_dict(), tmp_path / "w")
            with folded(SparsefmtFile(tmp_path / "w")) as file:
                matrix = file.rows_of("weight")
                computed = model.weight.detach().view(torch.int16 if dtype.itemsize == 2 else torch.int32).numpy()
                assert np.array_equal(matrix.bits(0, 40), computed.view(matrix.dtype.bits_dtype))

    def test_masks_of_other_numbers_are_multiplied_with(self):
        original, mask = np.float32([1, 2, -3]), np.float32([0.5, 1, 2])
        assert dense(folded(Memory({"w_orig": original, "w_mask": mask})), "w").tolist() == [0.5, 2, -6]

    def test_shapes_that_differ(self):
        file = folded(Memory({"a.w_orig": np.ones((2, 3)), "a.w_mask": np.ones((3, 2))}))
        with pytest.raises(FormatError, match=r"tensor 'a\.w': .*\[3, 2\].*\[2, 3\]"):
            file.rows_of("a.w")

    def test_pairs_by_name(self):
        names = ["b_mask", "a_orig", "a_mask", "b", "c_orig", "_orig", "_mask", "d.x_orig", "d.x_mask"]
        names += ["e._orig", "e._mask"]
        assert masked_pairs(names) == {"a": ("a_orig", "a_mask"), "d.x": ("d.x_orig", "d.x_mask")}
        assert masked_pairs([]) == {}

    def test_tiles_are_products_of_tiles(self):
        array = weights(np.random.default_rng(0), (40, 30), np.float32, 0.0)
        memory = Memory({"w_orig": array, "w_mask": (array > 0).astype(np.float32)})
        assert np.array_equal(folded(memory).rows_of("w").bits(5, 9).view(np.float32), (array * (array > 0))[5:9])
        assert memory.read == [("w_orig", 5, 9), ("w_mask", 5, 9)]
        assert isinstance(folded(memory).rows_of("w"), MaskedRows)
