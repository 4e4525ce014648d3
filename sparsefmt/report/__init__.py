"""A page on a model, for people: what is in it, what was pruned and how, and what sparsefmt makes of it.

`tensors.py` has what is known of each tensor, `figures.py` reads tensors, `compressed.py` finds what sparsefmt makes of
them, and `page.py` makes the page, with the charts of `charts.py`, the pictures of `pictures.py` and the table of
`layers.py`. Only this room needs jinja2 and matplotlib, which are imported when a page is made.
"""
