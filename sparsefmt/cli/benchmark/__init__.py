"""What `sparsefmt bench` does: products next to dense ones, timed and compared, and what is told of them.

`libraries.py` makes the dense products, `measuring.py` finds tensors that are alike and takes the times, `reporting.py`
prints them.
"""
