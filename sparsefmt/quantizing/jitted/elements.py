"""Scales and elements of some rows of a matrix."""

from __future__ import annotations

import numpy as np

from sparsefmt.jit import jit

STEPS = 16
"""Scales that "mse" tries in each group: that of the largest magnitude, and smaller ones."""

STEP = 1 / 32
"""By which they differ, as a part of the largest."""

_INTEGER = np.float32(1.5 * (1 << 23))
"""Added to a small number and taken away again, it rounds it to an integer, ties to even."""


@jit
def element(value: np.float32, scale: np.float32, fp8: bool) -> np.uint8:
    """The bits of an element: value / scale, rounded and clamped."""
    if scale == 0:
        return np.uint8(0)
    ratio = np.float32(value / scale)
    if not fp8:
        clamped = min(max(ratio, np.float32(-127)), np.float32(127))
        return np.uint8(np.int8(np.float32(np.float32(clamped + _INTEGER) - _INTEGER)))
    magnitude = min(abs(ratio), np.float32(448))
    if magnitude < np.float32(2.0**-6):
        # subnormal, in steps of 2**-9
        code = np.uint32(np.float32(np.float32(magnitude * np.float32(512)) + _INTEGER) - _INTEGER)
    else:
        bits = np.float32(magnitude).view(np.uint32)
        bits += np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))
        code = (bits >> np.uint32(20)) - np.uint32((127 - 7) << 3)
    return np.uint8(code | np.uint32(0x80)) if ratio < 0 and code != 0 else np.uint8(code)


@jit
def elements(values: np.ndarray, scale: np.ndarray, fp8: bool, out: np.ndarray) -> None:
    """Fill `out` (rows, cols), uint8, for values (rows, cols), float32, and scales (rows, groups)."""
    width = values.shape[1] // scale.shape[1]
    for row in range(values.shape[0]):
        for group in range(scale.shape[1]):
            group_scale = scale[row, group]
            for col in range(group * width, (group + 1) * width):
                out[row, col] = element(values[row, col], group_scale, fp8)


@jit
def find_scales(
    values: np.ndarray, largest: np.float32, numbers: np.ndarray, mse: bool, fp8: bool, scale: np.ndarray
) -> tuple[float, float, int, int, bool]:
    """Fill `scale` (rows, groups) for values (rows, cols), float32, and say what rounding with them loses.

    Args:
        largest: magnitude of an element.
        numbers: float32 (256,), the numbers that elements stand for.
        mse: whether to look for the least squares.

    Returns:
        the largest error, the sum of errors, how many values are not zero, how many of them become zero, and whether
        all are finite; if they are not, the rest has no meaning.
    """
    width = values.shape[1] // scale.shape[1]
    kept = np.empty(width, np.float32)
    worst, total, stored, became_zero = 0.0, 0.0, 0, 0
    for row in range(values.shape[0]):
        for group in range(scale.shape[1]):
            count, most, odd = 0, np.float32(0), False
            for col in range(group * width, (group + 1) * width):
                value = values[row, col]
                odd |= value - value != 0
                most = max(most, abs(value))
                kept[count] = value
                count += int(value != 0)
            if odd:
                return worst, total, stored, became_zero, False
            found = np.float32(most / largest)
            if mse and found > 0:
                found = _least_squares(kept[:count], found, numbers, fp8)
            scale[row, group] = found
            for index in range(count):
                bits = element(kept[index], found, fp8)
                error = abs(np.float64(kept[index]) - np.float64(numbers[bits]) * np.float64(found))
                worst = max(worst, error)
                total += error
                became_zero += int(bits == 0)
            stored += count
    return worst, total, stored, became_zero, True


@jit
def _least_squares(values: np.ndarray, largest: np.float32, numbers: np.ndarray, fp8: bool) -> np.float32:
    """The scale that fits best to what STEPS scales round to; or `largest`, where that is better."""
    fitting, best_fit = largest, -1.0
    for step in range(STEPS):
        scale = np.float32(largest * np.float32(1 - step * STEP))
        products, squares = 0.0, 0.0
        for index in range(values.size):
            number = np.float64(numbers[element(values[index], scale, fp8)])
            products += number * values[index]
            squares += number * number
        # by so much does the best scale for these elements lower the sum of squared weights
        if squares > 0 and products * products > best_fit * squares:
            fitting, best_fit = np.float32(products / squares), products * products / squares
    # elements for that scale are others again
    is_better = _squared_error(values, fitting, numbers, fp8) < _squared_error(values, largest, numbers, fp8)
    return fitting if is_better else largest


@jit
def _squared_error(values: np.ndarray, scale: np.float32, numbers: np.ndarray, fp8: bool) -> float:
    error = 0.0
    for index in range(values.size):
        difference = values[index] - np.float64(numbers[element(values[index], scale, fp8)]) * scale
        error += difference * difference
    return error
