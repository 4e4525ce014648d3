"""The work of `sparsefmt bench`: products are timed, and compared with dense products.

`libraries.py` makes the dense products, `measuring.py` finds tensors that are alike and measures times, and
`reporting.py` prints them.
"""
