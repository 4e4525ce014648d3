"""Jitted passes over elements that lie row by row, as other libraries have them. Imported on first use. Every function
wants flat C-contiguous arrays, inputs read-only, and trusts its arguments but for what it says.
"""
