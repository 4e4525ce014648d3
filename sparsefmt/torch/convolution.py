"""SparseConv1d and SparseConv2d: convolutions of torch whose weights stay compressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from sparsefmt.adapters.torch import rows_of
from sparsefmt.errors import in_tensor
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.convolution_operator import convolution, convolution_op
from sparsefmt.torch.dense_layers import dense_weight, effective, parameter_of_weight
from sparsefmt.torch.derived import dequantized
from sparsefmt.torch.eager import is_unwatched
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.matrix_views import as_matrix, in_shape
from sparsefmt.torch.scales import tensor_of_scales
from sparsefmt.torch.unfolded import Window

Made = TypeVar("Made", bound="SparseConvolution")


class SparseConvolution(SparseLinear):
    """What SparseConv1d and SparseConv2d have in common: a SparseLinear whose tokens are the places of the result.

    What is said of SparseLinear holds: dtypes, bits, threads, gradients, `state_dict`, `.to(dtype)`, copies.
    `in_features` is what the window covers: in_channels times the places of the kernel. `weight.tensor` is the matrix
    (out_channels, in_features), and `weight.shape` that of the dense module.

    Each place of the result has the bits of the product of its activations with the weights, in the order channels,
    rows and columns of the window, as `sparsefmt.linear` has them; where the window is over padding, they are 0.

    Activations are unfolded at most `unfolded.MOST_TOKENS` at a time on each thread, and not at all for a kernel of 1.
    The result is contiguous; a kernel of 1 without stride keeps channels last.

    Attributes:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode: as in torch. groups
            is 1.
    """

    dims: int
    dense_class: type[torch.nn.Conv1d | torch.nn.Conv2d]

    def __init__(self, like: torch.nn.Conv1d | torch.nn.Conv2d, dtype: torch.dtype | None = None) -> None:
        """One without weights, and with the bias of a dense convolution, for loaders to fill."""
        in_features = like.in_channels
        for length in like.kernel_size:
            in_features *= length
        super().__init__(in_features, like.out_channels, bias=False, device="cpu", dtype=dtype)
        self.in_channels, self.out_channels, self.groups = like.in_channels, like.out_channels, 1
        self.kernel_size, self.stride, self.dilation = like.kernel_size, like.stride, like.dilation
        self.padding, self.padding_mode = like.padding, like.padding_mode
        self._around = list(like._reversed_padding_repeated_twice)
        """What torch.nn.functional.pad takes."""
        self.bias = like._parameters.get("bias")

    @classmethod
    def from_convolution(cls: type[Made], module: torch.nn.Module, layout: str = "auto") -> Made:
        """Compress the weight of a dense convolution. Its bias is shared.

        Args:
            module: a torch.nn.Conv1d or Conv2d, whichever this is, pruned by torch.nn.utils.prune or not, in one
                group. Not changed. Hooks are left behind.
            layout: "auto" for "permuted", which is the fastest for many tokens, "bitmask" or "dense".

        Raises:
            TypeError: a module of another kind, or one in groups.
            UnsupportedError, NotImplementedError: as `SparseLinear.from_linear`.
        """
        if not isinstance(module, cls.dense_class) or module.groups != 1:
            what = f"a {type(module).__name__}" + (" in groups" if isinstance(module, cls.dense_class) else "")
            wanted = f"torch.nn.{cls.dense_class.__name__}"
            raise TypeError(f"a {cls.__name__} is made of a {wanted} in one group, not of {what}")
        weight, _ = dense_weight(module)
        with in_tensor("weight"):
            matrix = rows_of(weight)
        made = cls(module, weight.dtype)
        made.set_weight(SparseTensor.from_dense(matrix, layout_of_convolutions(layout)))
        bias = effective(module, "bias")
        if bias is not None and made.bias is None:
            made.bias = torch.nn.Parameter(bias.detach())
        made.like(module)
        return made

    @property
    def weight_shape(self) -> torch.Size:
        return torch.Size((self.out_channels, self.in_channels, *self.kernel_size))

    def as_stored(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.reshape(self.weight_shape)

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(self.out_features, self.in_features)

    def stored_tensor(self) -> SparseTensor:
        return in_shape(self.sparse_tensor(), tuple(self.weight_shape))

    def without_weight(self) -> SparseConvolution:
        made = type(self)(self.without_weight_dense(), self._dtype)
        made.bias = None
        return made

    def without_weight_dense(self) -> torch.nn.Conv1d | torch.nn.Conv2d:
        with torch.device("meta"):
            return self.dense_class(
                self.in_channels,
                self.out_channels,
                self.kernel_size,  # type: ignore[arg-type]
                self.stride,  # type: ignore[arg-type]
                self.padding,  # type: ignore[arg-type]
                self.dilation,  # type: ignore[arg-type]
                bias=False,
                padding_mode=self.padding_mode,
            )

    def set_weight(self, weight: SparseTensor, scale: Any = None) -> None:
        """Take other weights, of the shape that the dense module has, or as a matrix.

        Raises:
            ValueError: another shape, or scales.
            UnsupportedError: a dtype that has no product here.
        """
        if scale is not None:
            raise ValueError("the weights of convolutions have no scales: multiply them out")
        super().set_weight(as_matrix(weight) if weight.shape == self.weight_shape else weight)

    def _load_weight(self, weight: torch.Tensor | SparseTensor, scale: torch.Tensor | None, assign: bool) -> None:
        if tuple(weight.shape) != tuple(self.weight_shape):
            raise RuntimeError(
                f"size mismatch: the shape in the checkpoint is {torch.Size(weight.shape)}, the shape in the current"
                f" model is {self.weight_shape}."
            )
        matrix = as_matrix(weight) if isinstance(weight, SparseTensor) else self.as_matrix(weight)
        if scale is not None:
            scales = tensor_of_scales(scale, matrix.shape).numpy()
            held = matrix if isinstance(matrix, SparseTensor) else SparseTensor.from_dense(rows_of(matrix))
            matrix = dequantized(held, scales)
        super()._load_weight(matrix, None, assign)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for what, device in (("x is", input.device), ("its weights are", self.weight_arrays.device)):
            if device.type not in ("cpu", "meta"):
                raise NotImplementedError(f"a {type(self).__name__} computes on the CPU; {what} on {device}: move it")
        if input.dim() not in (self.dims + 1, self.dims + 2):
            raise RuntimeError(
                f"x has shape {tuple(input.shape)}; a {type(self).__name__} takes {self.dims + 1} dimensions, or"
                f" {self.dims + 2} of a batch"
            )
        x = input if input.dim() == self.dims + 2 else input.unsqueeze(0)
        if x.shape[1] != self.in_channels:
            raise RuntimeError(f"x has shape {tuple(input.shape)}, and the layer {self.in_channels:,} in_channels")
        padding = self._even_padding()
        if padding is None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = torch.nn.functional.pad(x, self._around, mode), (0,) * self.dims
        x = x if self.dims == 2 else x.unsqueeze(2)
        y = self._convolved(x, self._window(padding))
        y = y if self.dims == 2 else y.squeeze(2)
        return y if input.dim() == self.dims + 2 else y.squeeze(0)

    def _convolved(self, x: torch.Tensor, window: Window) -> torch.Tensor:
        weights = self.weight_arrays, self.weight_table
        if not torch.compiler.is_compiling() and x.is_cpu and weights[0].is_cpu and is_unwatched(x, self.bias):
            return convolution(x, *weights, self.bias, self.out_channels, window.numbers)
        return convolution_op(x, *weights, self.bias, self.out_channels, window.numbers)

    def _even_padding(self) -> Sequence[int] | None:
        """Zeros on each side of each dimension; None where sides differ, or it is not zeros."""
        if self.padding_mode != "zeros":
            return None
        if not isinstance(self.padding, str):
            return self.padding
        sides = self._around[::2][::-1]
        return sides if sides == self._around[1::2][::-1] else None

    def _window(self, padding: Sequence[int]) -> Window:
        """With a first dimension of one row where there is one alone."""
        pairs = []
        for numbers, nothing in ((self.kernel_size, 1), (self.stride, 1), (padding, 0), (self.dilation, 1)):
            first, second = (nothing, *numbers)[-2:]
            pairs.append((first, second))
        return Window(*pairs)

    def product(self, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise TypeError(f"a {type(self).__name__} is called with images, and is no product")

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding not in ("valid", (0,) * self.dims):
            text += f", padding={self.padding}"
        if self.dilation != (1,) * self.dims:
            text += f", dilation={self.dilation}"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode}"
        return f"{text}, {super().extra_repr().partition(', ')[2].partition(', ')[2]}"


class SparseConv1d(SparseConvolution):
    """torch.nn.Conv1d with compressed weights; see SparseConvolution.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import SparseConv1d
        >>> dense = torch.nn.Conv1d(80, 384, 3, padding=1)
        >>> _ = torch.nn.utils.prune.l1_unstructured(dense, "weight", amount=0.8)
        >>> y = SparseConv1d.from_convolution(dense)(torch.randn(2, 80, 100))
    """

    dims = 1
    dense_class = torch.nn.Conv1d


class SparseConv2d(SparseConvolution):
    """torch.nn.Conv2d with compressed weights; see SparseConvolution.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import SparseConv2d
        >>> dense = torch.nn.Conv2d(64, 128, 3, padding=1)
        >>> _ = torch.nn.utils.prune.l1_unstructured(dense, "weight", amount=0.8)
        >>> y = SparseConv2d.from_convolution(dense)(torch.randn(2, 64, 32, 32))
    """

    dims = 2
    dense_class = torch.nn.Conv2d


def layout_of_convolutions(layout: str) -> str:
    """ "auto" is "permuted" for convolutions, which have many tokens."""
    return "permuted" if layout == "auto" else layout


def empty_convolution(module: torch.nn.Module) -> SparseConvolution:
    """A compressed convolution for a dense one, with its bias and without weights."""
    assert isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d))
    weight = parameter_of_weight(module)
    made = (SparseConv1d if isinstance(module, torch.nn.Conv1d) else SparseConv2d)(module, weight.dtype)
    made.like(module)
    return made
