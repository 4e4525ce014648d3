"""Adapters of PEFT on models with SparseLinear layers: LoRA, DoRA and IA3.

Nobody has to import this package for `get_peft_model` and `PeftModel.from_pretrained` to take such models:
`sparsefmt.torch` has it imported as soon as peft is (`torch/when_imported.py`). Importing sparsefmt.torch imports
neither peft nor transformers.

    model = peft.get_peft_model(sparse_model, LoraConfig(target_modules="all-linear"))
    ...                                                       # train, save_pretrained
    merged = sparsefmt.peft.merge_and_unload(model, keep_zeros=True)

See `patches` for what of PEFT is replaced, and why.
"""

from __future__ import annotations

from sparsefmt.peft import patches
from sparsefmt.peft.ia3 import SparseIA3Linear
from sparsefmt.peft.lora import SparseLoraLinear
from sparsefmt.peft.merging import merge_and_unload, merging

__all__ = ["SparseIA3Linear", "SparseLoraLinear", "merge_and_unload", "merging"]

patches.install()
