"""TrainableSparseLinear: a SparseLinear whose values are trained, and whose zeros stay where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sparsefmt.adapters.torch import DTYPES_BY_TORCH, as_torch
from sparsefmt.dtypes import DTYPES
from sparsefmt.errors import FormatError, UnsupportedError
from sparsefmt.layouts import FORMS
from sparsefmt.layouts.memory import frozen
from sparsefmt.layouts.tile import Tile
from sparsefmt.layouts.tiling import Tiling
from sparsefmt.limits import MAX_SPARSE_TILE_POSITIONS, MAX_SPARSE_TILE_ROWS
from sparsefmt.positions.masks import in_slices, mask_bytes, slices_of
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import registry, weight_tensors
from sparsefmt.torch.convolution import SparseConvolution
from sparsefmt.torch.derived import torch_dtype_of
from sparsefmt.torch.linear import SparseLinear
from sparsefmt.torch.signs import with_signs
from sparsefmt.torch.trainable_operator import trainable_linear_op
from sparsefmt.torch.weight_tensors import WeightTensors
from sparsefmt.torch.widened import pass_on

_VALUES, _POSITIONS = "values", "positions"

_SCALED = "weights of elements times scales are not trained: train, then quantize"

_FLOATS = ("F32", "BF16", "F16", "F64")


class TrainableSparseLinear(SparseLinear):
    """A SparseLinear whose `values` are a Parameter: they are trained, and positions that are zero stay zero.

    Made by `make_trainable(model)`, `from_linear`, `from_tensor` or `from_sparse_linear`; `to_sparse_linear()` and
    `make_sparse(model)` are the way back. What is saved (`save_model`, `save_pretrained`) is what is saved of a
    SparseLinear.

    x is as for a SparseLinear, and gradients flow to x, to the values and to the bias. The gradient of the values is
    that of the dense weight at their positions, and nothing is computed at others (`kernels/sampled.py` has the order
    of additions). An optimizer changes the values in place, and the product uses them as they are. Values that
    become zero stay values: only what is saved or converted leaves them out.

    `state_dict` has `values`, and `positions`, the bytes of a mask. `load_state_dict` copies values into the Parameter
    if the positions are those of the layer, and takes a dense `weight` whose zeros are those of the layer, too. A deep
    copy has values of its own. `.to(dtype)` rounds values and leaves positions alone.

    Attributes:
        values: Parameter (n,), float32, bfloat16, float16 or float64. In slices of 16 rows; in a slice, column by
            column; in a column, row by row. Nobody may give it other memory; what does so (`.data = …`) is copied.
        weight: as of a SparseLinear, with the values of the moment. It cannot be changed.

    Raises:
        UnsupportedError: weights with scales (`trainable`), of other dtypes, or with over 2^31 elements.
    """

    values: torch.nn.Parameter

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_parameter(_VALUES, torch.nn.Parameter(torch.empty(0, dtype=self._dtype)))

    @classmethod
    def from_sparse_linear(cls, layer: SparseLinear) -> TrainableSparseLinear:
        """A layer to train with the weights of another, which is not changed. The bias is shared.

        Cost: a dense copy of the weight, which is freed, and the memory of values and masks.
        """
        if layer.weight_scale is not None:
            raise UnsupportedError("trainable", _SCALED)
        if isinstance(layer, SparseConvolution):
            raise UnsupportedError("trainable", "a convolution cannot be trained with its zeros kept; see keep_zeros")
        made = cls.from_tensor(layer.sparse_tensor())
        assert isinstance(made, TrainableSparseLinear)
        _take_over(layer, made)
        return made

    def to_sparse_linear(self, layout: str = "auto") -> SparseLinear:
        """An ordinary layer with the values of the moment, without those that are zero. The bias is shared.

        Args:
            layout: as in `SparseLinear.from_linear`.
        """
        weight = SparseTensor.from_dense(self.sparse_tensor().todense(), layout)
        made = SparseLinear.from_tensor(weight)
        _take_over(self, made)
        return made

    def set_weight(self, weight: SparseTensor, scale: Any = None) -> None:
        """Take weights, for a layer that has none yet.

        Raises:
            RuntimeError: it has some.
            UnsupportedError: scales, or a weight that cannot be trained.
            ValueError: another shape.
        """
        if self.has_weight:
            raise RuntimeError(
                "the positions of a TrainableSparseLinear are fixed: change its `values`, or make another layer"
            )
        if scale is not None:
            raise UnsupportedError("trainable", _SCALED)
        if weight.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"the weight has shape {weight.shape}; this layer needs {(self.out_features, self.in_features)}"
            )
        tiling = _tiling(weight.operand().dtype.name, weight.shape)
        bits = weight.todense().view(tiling.dtype.bits_dtype)
        self._hold_tile(tiling, Tile.from_dense(tiling.layout, bits, tiling.dtype))

    def _hold_tile(self, tiling: Tiling, tile: Tile) -> None:
        """Take a tile; `values` is a view of its values from now on."""
        tensor = SparseTensor(tiling, [tile.with_negative_zeros(None)])
        made = weight_tensors.to_tensors(tensor, copy=True)
        registry.remember(made)
        self._hold(made, torch_dtype_of(tensor))
        self._signs = None
        self._alias(self.values.requires_grad)

    def _alias(self, requires_grad: bool) -> None:
        """Have the Parameter be the values in `weight_arrays`."""
        view = self._values_in_arrays()
        if self.values.dtype == view.dtype:
            self.values.data = view
        else:
            self.values = torch.nn.Parameter(view, requires_grad=requires_grad)

    def _values_in_arrays(self) -> torch.Tensor:
        weights = WeightTensors(self.weight_arrays, self.weight_table)
        registry.trust(weights)
        return weight_tensors.values_of(weights, self._dtype)

    def _expect_alias(self) -> None:
        """Take values that somebody has put in place of the Parameter's, as `load_state_dict(assign=True)` does."""
        view = self._values_in_arrays()
        values = self._parameters[_VALUES]
        if values is None or not isinstance(values, torch.nn.Parameter):
            raise RuntimeError("the values of a TrainableSparseLinear are a Parameter, which cannot be replaced")
        if values.data_ptr() == view.data_ptr():
            return
        if values.shape != view.shape:
            raise RuntimeError(
                f"this TrainableSparseLinear has {view.numel():,} positions, and its values have shape"
                f" {tuple(values.shape)}"
            )
        with torch.no_grad():
            view.copy_(values.data)
            self._alias(values.requires_grad)

    def sparse_tensor(self) -> SparseTensor:
        """The weights of the moment, in memory of their own, without values that are zero.

        Cost: a dense copy, which is freed.
        """
        if not self.has_weight:
            raise RuntimeError("this TrainableSparseLinear has no weights yet: load some, or call set_weight")
        self._expect_alias()
        known = registry.known(self.weight_arrays, self.weight_table)
        return SparseTensor.from_dense(known.tensor.todense(), "bitmask")

    @property
    def nnz(self) -> int:
        """Positions that are trained."""
        return self.values.numel()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.product(input, self.bias)

    def product(self, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The product of input and the weights, plus a bias, by an operator of torch."""
        if not self.has_weight:
            raise RuntimeError("this TrainableSparseLinear has no weights yet: load some, or call set_weight")
        if not torch.compiler.is_compiling():
            self._expect_alias()
        weights = self.values, self.weight_arrays, self.weight_table
        return trainable_linear_op(input, *weights, bias, self.out_features, self.in_features)

    def compress(self, weight: torch.Tensor) -> None:
        raise RuntimeError("the weight of a TrainableSparseLinear cannot be changed as a tensor: change its `values`")

    def share_weight(self, other: SparseLinear) -> None:
        raise RuntimeError("a TrainableSparseLinear shares its weights with no other layer")

    share_memory_with = share_weight

    def follow(self, other: SparseLinear) -> None:
        if other is not self:
            self.share_weight(other)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        text += f", dtype={self._dtype}"
        if not self.has_weight:
            return f"{text}, without weights"
        return f"{text}, sparsity={1 - self.nnz / (self.in_features * self.out_features):.3f}, {self.nnz:,} values"

    @contextmanager
    def _without_weights(self) -> Iterator[None]:
        """Within the block, torch sees a module that has neither values nor buffers."""
        parameters, buffers = self._parameters, self._buffers
        self._parameters = {name: held for name, held in parameters.items() if name != _VALUES}
        self._buffers = {}
        try:
            yield
        finally:
            self._parameters, self._buffers = {**parameters, **self._parameters}, buffers

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> TrainableSparseLinear:
        """What `.to`, `.half` and the like do to every tensor of a module."""
        values = self.values
        with torch.no_grad():
            moved = fn(values.data)
        if moved.device.type != "cpu":
            raise NotImplementedError(f"a TrainableSparseLinear trains on the CPU, not on {moved.device}")
        with self._without_weights():
            torch.nn.Module._apply(self, fn, recurse)
        if moved.dtype != values.dtype:
            if self.has_weight:
                self._with_dtype(moved)
            else:
                self.values = torch.nn.Parameter(moved, requires_grad=values.requires_grad)
            self._dtype = moved.dtype
        return self

    def _with_dtype(self, values: torch.Tensor) -> None:
        """Take values of another dtype at the same positions."""
        self._hold_tile(*_tile_of(self._mask(), values, (self.out_features, self.in_features)))

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainableSparseLinear:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        memo[id(self.values)] = made.values
        if self.values.grad is not None:
            made.values.grad = self.values.grad.clone()
        return made

    def __getstate__(self) -> dict[str, Any]:
        # values and arrays are the same memory, which is saved and copied once
        state = super().__getstate__()
        kept = {name: held for name, held in self._parameters.items() if name != _VALUES}
        return {**state, "_parameters": kept, "_trained": self.values.requires_grad}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        trained = state.pop("_trained")
        super().__setstate__(state)
        self.register_parameter(_VALUES, torch.nn.Parameter(torch.empty(0, dtype=self._dtype), requires_grad=trained))
        if self.has_weight:
            self._alias(trained)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not with_signs():
            # who asks for tensors gets them of `sparse_tensor`
            del destination[prefix + _VALUES]
            return
        for name in ("weight_arrays", "weight_table"):
            del destination[prefix + name]
        mask = self._mask()
        destination[prefix + _POSITIONS] = torch.from_numpy(np.array(mask)) if self.has_weight else torch.empty(0)

    def _mask(self) -> np.ndarray:
        """The bytes of the mask; none without weights."""
        if not self.has_weight:
            return np.empty(0, np.uint8)
        registry.trust(WeightTensors(self.weight_arrays, self.weight_table))
        (tile,) = registry.known(self.weight_arrays, self.weight_table).operand.tiles
        return tile["mask"].view(np.uint8)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = (_VALUES, _POSITIONS, "weight", "weight_arrays", "weight_table")
        own = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        try:
            if "weight" in own:
                self._load_dense(own["weight"])
            elif "weight_arrays" in own and "weight_table" in own:
                other = SparseLinear(self.in_features, self.out_features, bias=False)
                other.load_state_dict({name: own[name] for name in ("weight_arrays", "weight_table")})
                self._load_dense(other.weight.to_dense())
            elif _VALUES in own and _POSITIONS in own:
                self._load_values(own[_VALUES], own[_POSITIONS])
            elif own:
                there, lacking = sorted(own), [name for name in (_VALUES, _POSITIONS) if name not in own]
                raise FormatError(
                    "trainable-state",
                    f"it was saved half-way: {', '.join(there)} without {', '.join(lacking)}",
                )
            else:
                missing_keys += [prefix + _VALUES, prefix + _POSITIONS]
        except (FormatError, RuntimeError, ValueError, UnsupportedError) as error:
            error_msgs.append(f'While loading "{prefix}values": {error}')
        taken = {prefix + name for name in own}
        rest = {key: value for key, value in state_dict.items() if key not in taken}
        with self._without_weights():
            torch.nn.Module._load_from_state_dict(
                self, rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )

    def _load_values(self, values: torch.Tensor, positions: torch.Tensor) -> None:
        """Take what another layer of this kind has saved."""
        mask = np.array(positions.detach().cpu().numpy())
        shape = (self.out_features, self.in_features)
        if mask.dtype != np.uint8 or mask.ndim != 1 or mask.size != mask_bytes(*shape):
            raise FormatError(
                "trainable-state",
                f"its positions have {mask.size:,} bytes, and a mask of {shape[0]:,} x {shape[1]:,} has"
                f" {mask_bytes(*shape):,}",
            )
        count = int(np.bitwise_count(mask).sum(dtype=np.int64))
        if values.dim() != 1 or values.numel() != count:
            raise FormatError(
                "trainable-state", f"it was saved half-way: {values.numel():,} values for {count:,} positions"
            )
        if not self.has_weight:
            self._hold_tile(*_tile_of(mask, values.detach().cpu().to(self._dtype), shape))
            return
        if not np.array_equal(mask, self._mask()):
            raise FormatError("trainable-state", "its zeros are at other positions than those of the layer")
        self._copy(values)

    def _load_dense(self, weight: torch.Tensor | SparseTensor) -> None:
        """Take the weight of a dense layer, or what `tensors_of` has in its place."""
        if isinstance(weight, SparseTensor):
            weight = as_torch(weight.todense(), weight.operand().dtype)
        weight = weight.detach().cpu()
        dense = weight.t() if self.transposed and weight.shape != (self.out_features, self.in_features) else weight
        if tuple(dense.shape) != (self.out_features, self.in_features):
            raise RuntimeError(
                f"size mismatch: the shape in the checkpoint is {weight.shape}, the shape in the current model is"
                f" {torch.Size((self.out_features, self.in_features))}."
            )
        if not self.has_weight:
            self.set_weight(SparseTensor.from_dense(dense.to(self._dtype), "bitmask"))
            return
        rows, columns = self.places()
        values = dense[rows, columns]
        if int(torch.count_nonzero(dense)) != int(torch.count_nonzero(values)):
            beyond = int(torch.count_nonzero(dense)) - int(torch.count_nonzero(values))
            raise FormatError(
                "trainable-state",
                f"its zeros are not those of the layer, where {beyond:,} of its elements have to be 0",
            )
        self._copy(values)

    def _copy(self, values: torch.Tensor) -> None:
        self._expect_alias()
        with torch.no_grad():
            self.values.copy_(values)

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of each of the values: int64 (n,) each."""
        mask = in_slices(self._mask(), self.out_features, self.in_features)
        slices, columns = np.nonzero(mask)
        counts = np.bitwise_count(mask[slices, columns]).astype(np.int64)
        bits = mask[slices, columns].astype("<u2").reshape(-1, 1).view(np.uint8)
        lanes = np.nonzero(np.unpackbits(bits, axis=1, bitorder="little"))[1]
        rows = np.repeat(slices * 16, counts) + lanes
        return torch.from_numpy(rows), torch.from_numpy(np.repeat(columns, counts))


def _take_over(old: SparseLinear, new: SparseLinear) -> None:
    """Give a layer what another has beside its weight."""
    pass_on(old, new, ["bias"])
    new.bias, new.transposed, new.name = old.bias, old.transposed, old.name
    new.weight_requires_grad = old.weight_requires_grad
    new.train(old.training)


def _tiling(dtype: str, shape: tuple[int, ...]) -> Tiling:
    """A matrix as one tile. Raises UnsupportedError if it cannot be one that is trained."""
    rows, cols = shape
    if dtype not in _FLOATS:
        raise UnsupportedError("trainable", f"weights of dtype {dtype} are not trained")
    if not 0 < rows * cols <= MAX_SPARSE_TILE_POSITIONS or rows > MAX_SPARSE_TILE_ROWS:
        raise UnsupportedError("trainable", f"a weight of {rows:,} x {cols:,} is too large to be trained, or empty")
    return Tiling(DTYPES[dtype], (rows, cols), FORMS["bitmask"], rows)


def _tile_of(mask: np.ndarray, values: torch.Tensor, shape: tuple[int, int]) -> tuple[Tiling, Tile]:
    """The tile with these bytes of a mask and these values."""
    tiling = _tiling(DTYPES_BY_TORCH[values.dtype].name, shape)
    bits = values.contiguous().view(torch.uint8).numpy().view(tiling.dtype.bits_dtype)
    arrays = {"mask": frozen(np.array(mask)), "values": frozen(bits)}
    tile = tiling.tile(0, arrays)
    offsets = np.zeros(slices_of(shape[0]) + 1, np.uint32)
    tiling.layout.derive("slice_offsets", tile, offsets)
    tile.put("slice_offsets", frozen(offsets))
    in_mask = in_slices(tile["mask"], *shape)
    last = shape[0] - 16 * (slices_of(shape[0]) - 1)
    if int(in_mask[-1].max(initial=0)) >> last:
        raise FormatError("trainable-state", f"its mask has bits beyond its {shape[0]:,} rows")
    return tiling, tile
