"""Checkpoints: files of tensors and folders of models. .sparsefmt, safetensors, and what torch.save wrote.

`contract.py` says what a file of tensors is, and a file `…_file.py` reads each format. `checkpoint.py` finds the files
of a model and checks that they belong together, `conversion.py` turns one format into the other, `verification.py`
verifies and compares. Everything here holds a few tiles in memory, whatever the size of the model.
"""
