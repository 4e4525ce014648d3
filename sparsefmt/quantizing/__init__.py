"""Matrices rounded to elements of a byte and scales: symmetric, so that zeros stay zeros.

    from sparsefmt.quantizing import Quantization, quantized
    made = quantized(rows, Quantization("int8"))      # made.rows: the elements, made.scale: float32 (rows, groups)

An element is q = w / scale, rounded to the nearest, ties to even, and clamped to -127..127 in int8, or to -448..448 in
F8_E4M3. There is a scale for each row, or for each row and group of columns. All arithmetic is that of float32.
"""

from __future__ import annotations

from sparsefmt.quantizing.quantization import Loss, Quantization
from sparsefmt.quantizing.rows import QuantizedMatrix, dequantized, quantized

__all__ = ["Loss", "Quantization", "QuantizedMatrix", "dequantized", "quantized"]
