"""SparseStack: the weights of experts, or of attention, compressed, where a module had one Parameter for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from sparsefmt.tensor import SparseTensor
from sparsefmt.torch.derived import torch_dtype_of, transposed
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.matrix_views import as_matrix, in_shape
from sparsefmt.torch.stacking import above_each_other, matrices_of, stacked


class SparseStack(torch.nn.ModuleList):
    """The weights of several experts, each a SparseLinear without a bias: `stack[e](x)` is the product with one.

    Made by `sparsify`, `load_into` and `from_pretrained`, which put it into a module of experts where that had a
    Parameter (experts, out_features, in_features), or (experts, in_features, out_features); and into a
    torch.nn.MultiheadAttention, in place of its (3 * embed_dim, embed_dim), or of three Parameters, and into XLNet's,
    in place of each (d_model, n_head, d_head), as one matrix of d_model rows, or its transpose. All that is said of
    SparseLinear holds for each: gradients, dtypes, `.to(dtype)`, copies, what `state_dict` has.

    Attributes:
        shape: of that Parameter, in which all dimensions but the last may also have been one.
        transposed: whether a matrix of it is (in_features, out_features).
        weight_requires_grad: requires_grad that it had, and has again after `make_dense`.
        name: its name in the model, for messages, or None.
        holds: what its matrices are of, for messages: "experts" or "projections".
        followed_by: names of the Parameters that came after that one in its module.
    """

    def __init__(self, layers: Iterable[SparseLinear], shape: Sequence[int], transposed: bool) -> None:
        super().__init__(layers)
        self.shape = torch.Size(shape)
        self.transposed = transposed
        self.weight_requires_grad = True
        self.name: str | None = None
        self.holds = "experts"
        self.followed_by: tuple[str, ...] = ()

    @classmethod
    def from_matrices(cls, matrices: Iterable[SparseTensor], shape: Sequence[int], transposed: bool) -> SparseStack:
        """A stack of matrices (out_features, in_features), one for each expert. Other arguments as the attributes.

        Raises:
            ValueError: matrices that do not fit the shape, or each other.
        """
        made = cls(map(SparseLinear.from_tensor, matrices), shape, transposed)
        for layer in made.layers:
            layer.transposed = transposed
        sizes = {(layer.out_features, layer.in_features) for layer in made.layers}
        if len(sizes) > 1:
            raise ValueError(f"the matrices of a stack have one shape; these have {sorted(sizes)}")
        rows, cols = next(iter(sizes), (0, 0))
        rows, cols = (cols, rows) if transposed else (rows, cols)
        by_heads = len(made) == 1 and len(shape) == 3 and (shape[0], shape[1] * shape[2]) == (rows, cols)
        if tuple(shape) not in ((len(made), rows, cols), (len(made) * rows, cols)) and not by_heads:
            raise ValueError(
                f"{len(made):,} matrices of shape {(rows, cols)} do not make a stack of shape {tuple(shape)}"
            )
        return made

    @property
    def layers(self) -> list[SparseLinear]:
        """One for each expert."""
        return list(self)  # type: ignore[arg-type]

    def layer(self, number: int) -> SparseLinear:
        """That of one expert: what `stack[number]` gives, in less time."""
        return self._modules[str(number)]  # type: ignore[return-value]

    @property
    def by_heads(self) -> bool:
        """Whether it is one matrix, whose columns are two dimensions of the Parameter."""
        if len(self) != 1 or self.ndim != 3:
            return False
        rows, cols = self.layers[0].weight_shape
        return (self.shape[0], self.shape[1] * self.shape[2]) == (rows, cols)

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights to code, as `SparseWeight.dtype`."""
        return self.layers[0].weight_dtype

    @property
    def device(self) -> torch.device:
        return self.layers[0].weight_arrays.device

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        """torch's fast paths ask whether a weight has this, and take none with it. Its functions take no stack."""
        return NotImplemented

    def view(self, *shape: Any) -> SparseStack:
        """The stack itself, for code that takes a matrix of all experts for three dimensions.

        Raises:
            RuntimeError: a shape of something else than one matrix for each expert.
        """
        sizes = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        wanted = torch.empty(self.shape, device="meta").view(*sizes).shape
        layer = self.layers[0]
        matrix = (layer.out_features, layer.in_features)
        if wanted != (len(self), *(matrix[::-1] if self.transposed else matrix)):
            raise RuntimeError(
                f"the weights of {len(self):,} {self.holds} are compressed, and cannot be seen as {wanted}"
            )
        return self

    def tensor(self) -> SparseTensor:
        """All weights as one SparseTensor of `shape`, in the orientation of the Parameter, as files have it.

        Its matrices are those of the experts, on the same arrays where their tiles fit together, and laid out anew
        elsewhere. Transposed weights are transposed back.

        Raises:
            RuntimeError: there are no weights yet.
        """
        matrices = self.matrices()
        if self.by_heads:
            return in_shape(matrices[0], tuple(self.shape))
        return stacked(matrices) if self.ndim == 3 else above_each_other(matrices)

    def matrices(self) -> list[SparseTensor]:
        """The matrix of each expert as files have it."""
        held = [layer.sparse_tensor() for layer in self.layers]
        return [transposed(matrix, matrix.layout) for matrix in held] if self.transposed else held

    def to_dense(self) -> torch.Tensor:
        """The Parameter that it was, bit for bit, in memory of its own."""
        return torch.stack([layer.weight.to_dense() for layer in self.layers]).view(self.shape)

    def set_weights(self, matrices: Sequence[SparseTensor]) -> None:
        """Take other weights, (out_features, in_features) for each expert. Raises as `SparseLinear.set_weight`."""
        for layer, matrix in zip(self.layers, matrices, strict=True):
            layer.set_weight(matrix)

    def state_of(self, weights: torch.Tensor | SparseTensor) -> list[torch.Tensor | SparseTensor]:
        """What `load_state_dict` has for each layer, of weights of the whole stack.

        Raises:
            RuntimeError: another shape.
        """
        if tuple(weights.shape) != tuple(self.shape):
            raise RuntimeError(
                f"size mismatch: the shape in the checkpoint is {torch.Size(weights.shape)}, the shape in the current"
                f" model is {self.shape}."
            )
        if self.by_heads:
            return [as_matrix(weights) if isinstance(weights, SparseTensor) else weights.flatten(1)]
        if isinstance(weights, SparseTensor):
            return list(matrices_of(weights, len(self)))
        return list(weights.reshape(len(self), -1, weights.shape[-1]).unbind())

    def __repr__(self) -> str:
        text = f"SparseStack({len(self)} {self.holds}, shape={tuple(self.shape)}"
        if not all(layer.has_weight for layer in self.layers):
            return f"{text}, without weights)"
        tensors = [layer.sparse_tensor() for layer in self.layers]
        nbytes, size = sum(tensor.nbytes for tensor in tensors), sum(tensor.size for tensor in tensors)
        text += f", dtype={torch_dtype_of(tensors[0])}, layout={', '.join(sorted({each.layout for each in tensors}))}"
        text += f", sparsity={1 - sum(tensor.nnz for tensor in tensors) / size:.3f}"
        return f"{text}, {nbytes:,} of {size * tensors[0].dtype.itemsize:,} bytes)"
