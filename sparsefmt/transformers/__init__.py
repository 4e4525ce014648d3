"""Pruned models of Hugging Face transformers whose linear layers stay compressed.

Importing this package registers the method "sparsefmt" with transformers, 5.0 or later:

    import sparsefmt.transformers
    model = AutoModelForCausalLM.from_pretrained("folder")    # a folder of .sparsefmt files: `sparsefmt convert`
    model.save_pretrained("other-folder")                     # writes such a folder

    AutoModelForCausalLM.from_pretrained("dense-folder", quantization_config=SparsefmtConfig())

See `patches` for what of transformers is replaced, and why.
"""

from __future__ import annotations

from sparsefmt.transformers import patches
from sparsefmt.transformers.config import SparsefmtConfig
from sparsefmt.transformers.quantizer import SparsefmtQuantizer

__all__ = ["SparsefmtConfig", "SparsefmtQuantizer"]

patches.install()
