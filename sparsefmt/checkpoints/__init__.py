"""Between .sparsefmt and safetensors, one file or a folder of shards at a time, without loading a model.

`contract.py` says what a file of tensors is; `safetensors_file.py` and `sparsefmt_file.py` are the two kinds. `checkpoint.py` finds
the files of a model and checks that they belong together, `conversion.py` turns one kind into the other, `compare.py`
verifies and compares. Everything here holds a few tiles in memory, whatever the size of the model.
"""
