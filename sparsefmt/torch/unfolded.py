"""Convolutions as products with compressed weights: activations unfolded, a few tokens at a time.

A token is a place of the result, and its activations are those that the window covers there: so many columns as a row
of the weights has. They are not put together token by token. An image is padded, and taken apart into planes, one for
each channel and each remainder of its rows and columns by the stride; in these, what consecutive tokens have in one
column lies side by side, whatever kernel, stride and dilation are. So a column of unfolded activations is a run of a
plane that begins somewhere. At the end of each row of the result, some tokens are computed that nobody wants.

A window of one place needs nothing of this: the image is the matrix.

Never more than `MOST_TOKENS` tokens are unfolded at once on a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from sparsefmt import threads as pool
from sparsefmt.kernels.operand import Operand
from sparsefmt.kernels.scratch import room
from sparsefmt.torch.operator import rounded
from sparsefmt.torch.registry import Known

MOST_TOKENS = 128
"""Tokens that are unfolded at once: as many as kernels arrange at once."""

MOST_BYTES = 1 << 24
"""Bytes of unfolded activations, unless 16 tokens have more."""

WORTH_SHARING = 1 << 20
"""Multiply-adds of an image from which on its tokens are shared among threads."""

Pair = tuple[int, int]


class Window(NamedTuple):
    """What a convolution sees of an image at once, and how it moves. Each pair is for rows and columns of the image."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @classmethod
    def of(cls, numbers: list[int]) -> Window:
        """The inverse of `numbers`. Raises RuntimeError if they are no window."""
        if len(numbers) != 8:
            raise RuntimeError(f"a window has 8 numbers, not {len(numbers)}")
        return cls(*((numbers[at], numbers[at + 1]) for at in range(0, 8, 2)))

    @property
    def numbers(self) -> list[int]:
        """All of them, as an operator of torch takes them."""
        return [number for pair in self for number in pair]

    @property
    def places(self) -> int:
        """Elements of a channel that it covers."""
        return self.kernel[0] * self.kernel[1]

    @property
    def is_a_point(self) -> bool:
        """Whether it covers one place, without padding."""
        return self.kernel == (1, 1) and self.padding == (0, 0)

    def size_of_result(self, size: tuple[int, ...]) -> Pair:
        """Rows and columns of the result for an image of so many. Raises RuntimeError if the window does not fit."""
        found = [
            (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for length, kernel, stride, padding, dilation in zip(size, *self, strict=True)
        ]
        if min(found) < 1:
            raise RuntimeError(
                f"an image of {size[0]} x {size[1]}, padded by {self.padding}, is smaller than the kernel"
                f" {self.kernel} with dilation {self.dilation}"
            )
        return found[0], found[1]


def convolved(x: torch.Tensor, weights: Known, bias: torch.Tensor | None, window: Window) -> torch.Tensor:
    """The convolution of images (images, channels, rows, columns) with weights whose columns are channels, then rows
    and columns of the window; in the dtype of x, and contiguous or, for a point of images that are so, channels last.

    Each place has the bits of the product of its activations with the weights.
    """
    dtype, operand = x.dtype, weights.operand
    summed = torch.float64 if weights.wide or dtype == torch.float64 else torch.float32
    x = _plain(x)
    # of sums of which none is -0.0, adding 0 changes nothing
    added = torch.zeros((), dtype=summed) if bias is None else bias.detach().to(summed).view(-1, 1, 1)
    if window.is_a_point:
        y = _of_points(x, operand, window, summed)
        y = y if bias is None else y.add_(added)
    else:
        y = _of_windows(x, operand, window, added)
    return y if dtype == summed else rounded(y, dtype)


def gradient_of_images(gradient: torch.Tensor, weights: Known, window: Window, size: tuple[int, ...]) -> torch.Tensor:
    """The gradient with respect to images of that size (images, channels, rows, columns), of that of the result."""
    dtype, (count, channels, *image) = gradient.dtype, size
    summed = torch.float64 if weights.wide or dtype == torch.float64 else torch.float32
    gradient, operand = _plain(gradient).to(summed), weights.transposed
    (top, left), (down, right) = window.padding, window.stride
    high, wide = window.size_of_result(tuple(image))
    made = torch.zeros((count, channels, image[0] + 2 * top, image[1] + 2 * left), dtype=summed)
    at_once = max(_tokens_at_once(operand.rows, summed) // max(wide, 1), 1)
    for number in range(count):
        for first in range(0, high, at_once):
            part = gradient[number, :, first : first + at_once].contiguous()
            columns = torch.empty((operand.rows, part[0].numel()), dtype=summed)
            _multiply(part.view(operand.cols, -1), operand, columns, _threads())
            folded = columns.view(channels, *window.kernel, part.shape[1], wide)
            for row in range(window.kernel[0]):
                begin = first * down + row * window.dilation[0]
                rows = slice(begin, begin + (part.shape[1] - 1) * down + 1, down)
                for col in range(window.kernel[1]):
                    begin = col * window.dilation[1]
                    made[number, :, rows, begin : begin + (wide - 1) * right + 1 : right] += folded[:, row, col]
    return rounded_or_same(made[:, :, top : top + image[0], left : left + image[1]].contiguous(), dtype)


def keeps_channels_last(x: torch.Tensor, window: Window) -> bool:
    """Whether the result has channels last, as x has: it is the product of the rows of x then."""
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return is_last and window.is_a_point and window.stride == (1, 1)


def rounded_or_same(sums: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sums in a dtype."""
    return sums if sums.dtype == dtype else rounded(sums, dtype)


def _plain(x: torch.Tensor) -> torch.Tensor:
    """A tensor whose memory says what it is, outside of autograd."""
    x = x.detach()
    return x.resolve_neg() if x.is_neg() else x


def _threads() -> int:
    return min(torch.get_num_threads(), pool.num_threads())


def _multiply(x: torch.Tensor, operand: Operand, y: torch.Tensor, threads: int) -> None:
    """Fill y (rows, tokens) with the weights times x (cols, tokens), both contiguous and of the dtype of the sums."""
    from sparsefmt.kernels.multiply import multiply

    multiply(x.numpy().T, operand, y.numpy().T, threads)


def _tokens_at_once(cols: int, summed: torch.dtype) -> int:
    return max(min(MOST_TOKENS, MOST_BYTES // max(cols * summed.itemsize, 1)), 16)


def _of_points(x: torch.Tensor, operand: Operand, window: Window, summed: torch.dtype) -> torch.Tensor:
    last = keeps_channels_last(x, window)
    x = x[:, :, :: window.stride[0], :: window.stride[1]]
    count, channels, high, wide = x.shape
    if last:
        y = torch.empty((count, high, wide, operand.rows), dtype=summed)
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels).to(summed)
        _multiply(rows.T, operand, y.view(-1, operand.rows).T, _threads())
        return y.permute(0, 3, 1, 2)
    y = torch.empty((count, operand.rows, high, wide), dtype=summed)
    for image, result in zip(x, y, strict=True):
        columns = image.to(summed).contiguous().view(channels, -1)
        _multiply(columns, operand, result.view(operand.rows, -1), _threads())
    return y


def _of_windows(x: torch.Tensor, operand: Operand, window: Window, added: torch.Tensor) -> torch.Tensor:
    """added: the bias (channels, 1, 1), or a zero, in the dtype of the sums."""
    summed = added.dtype
    high, wide = window.size_of_result(tuple(x.shape[2:]))
    y = torch.empty((len(x), operand.rows, high, wide), dtype=summed)
    planes = _Planes(tuple(x.shape[1:]), window, summed)
    tokens = planes.tokens(high, wide)
    # with the tokens that nobody wants
    result = torch.empty((operand.rows, high * planes.size[1]), dtype=summed)
    at_once, threads = _tokens_at_once(operand.cols, summed), _threads()
    if operand.whole.multiply_adds * tokens < WORTH_SHARING:
        threads = 1
    for image, of_image in zip(x, y, strict=True):
        planes.fill(image)
        work = _work(planes, operand, result[:, :tokens].numpy(), at_once)
        pool.share(work, -(-tokens // at_once), threads)
        torch.add(result.view(operand.rows, high, -1)[..., :wide], added, out=of_image)
    return y


def _work(planes: _Planes, operand: Operand, result: np.ndarray, at_once: int) -> Callable[[int], None]:
    """What a thread does: tokens number `at_once * n` and following."""
    from sparsefmt.kernels.multiply import multiply
    from sparsefmt.kernels.unfolding import fill_columns

    def work(number: int) -> None:
        first = number * at_once
        tokens = min(at_once, result.shape[1] - first)
        columns = _matrix("unfolded", operand.cols, tokens, result.dtype)
        sums = _matrix("convolved", operand.rows, tokens, result.dtype)
        fill_columns(planes.elements, planes.begins, first, columns)
        multiply(columns.T, operand, sums.T, 1)
        result[:, first : first + tokens] = sums

    return work


def _matrix(purpose: str, rows: int, cols: int, dtype: np.dtype) -> np.ndarray:
    """A matrix in memory that this thread takes again."""
    nbytes = rows * cols * dtype.itemsize
    return room(purpose, nbytes).array[:nbytes].view(dtype).reshape(rows, cols)


class _Planes:
    """A padded image, taken apart by channels, and by the remainders of its rows and columns by the stride.

    Attributes:
        size: rows and columns of a plane.
        elements: of all planes, flat.
        begins: int64 (cols,), where the first token's activation of each column is.
    """

    def __init__(self, shape: tuple[int, ...], window: Window, dtype: torch.dtype) -> None:
        channels, *image = shape
        self._padding, self._stride = window.padding, window.stride
        rows, cols = (
            -(-(length + 2 * padding) // stride)
            for length, padding, stride in zip(image, window.padding, window.stride, strict=True)
        )
        self.size = rows, cols
        down, right = window.stride
        self._padded = torch.zeros((channels, rows * down, cols * right), dtype=dtype)
        self._taken_apart = self._padded
        if down * right > 1:
            self._taken_apart = torch.empty((channels, down, right, rows, cols), dtype=dtype)
        self.elements = self._taken_apart.view(-1).numpy()
        of_rows, of_cols = (
            np.arange(kernel, dtype=np.int64) * dilation
            for kernel, dilation in zip(window.kernel, window.dilation, strict=True)
        )
        plane = (of_rows % down * right)[:, None] + of_cols % right
        within = (of_rows // down * cols)[:, None] + of_cols // right
        of_channel = np.arange(channels, dtype=np.int64)[:, None, None] * (down * right * rows * cols)
        self.begins = (of_channel + plane * (rows * cols) + within).reshape(-1)

    def tokens(self, high: int, wide: int) -> int:
        """From the first token of a result to its last, with those between its rows."""
        return (high - 1) * self.size[1] + wide

    def fill(self, image: torch.Tensor) -> None:
        """Take an image (channels, rows, columns)."""
        (top, left), (down, right), (rows, cols) = self._padding, self._stride, self.size
        self._padded[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        if self._taken_apart is not self._padded:
            apart = self._padded.view(-1, rows, down, cols, right)
            self._taken_apart.copy_(apart.permute(0, 2, 4, 1, 3))
