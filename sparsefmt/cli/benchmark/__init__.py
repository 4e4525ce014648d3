"""The work of `sparsefmt bench`: products are timed, and compared with dense products.

`groups.py` finds tensors that are alike, `libraries.py` makes the dense products, `measuring.py` measures times, and
`reporting.py` prints them.
"""
