"""Jitted passes over layout arrays: count, lay out, expand, check. Imported on first use, since numba takes a
second to load. Every function wants C-contiguous arrays of unsigned integers, inputs read-only (`memory.frozen`), and
trusts its arguments: only `check` functions may see arrays that have not been checked.
"""
