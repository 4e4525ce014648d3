"""SparseLinear: torch.nn.Linear whose weights stay compressed."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from sparsefmt import notebooks
from sparsefmt.adapters.torch import rows_of
from sparsefmt.errors import SparsefmtError, in_tensor
from sparsefmt.layouts import auto
from sparsefmt.layouts.negative_zeros import NEGATIVE_ZEROS
from sparsefmt.scales import Scales
from sparsefmt.tensor import SparseTensor
from sparsefmt.torch import registry, weight_tensors
from sparsefmt.torch.convolution_kinds import is_dense_convolution
from sparsefmt.torch.dense_layers import dense_weight, effective, parameter_of_weight
from sparsefmt.torch.derived import cast, dequantized, torch_dtype_of, transposed
from sparsefmt.torch.eager import is_unwatched
from sparsefmt.torch.operator import linear_op, product
from sparsefmt.torch.scaled_operator import scaled_linear_op, scaled_product
from sparsefmt.torch.scales import as_saved, checked_activations, expect_int8, tensor_of_input_scale, tensor_of_scales
from sparsefmt.torch.signs import SignsOf, with_signs
from sparsefmt.torch.weight import SparseWeight
from sparsefmt.torch.weight_tensors import WeightTensors, to_tensors
from sparsefmt.torch.widened import SIXTEEN_BITS, pass_on

_WEIGHTS = ("weight_arrays", "weight_table")
_SCALES = ("weight_scale", "input_scale")
SIGNS = "weight_signs"
"""In a state_dict: the signs of zeros of weights that came without them from a file."""
_IN_STATE = (*_WEIGHTS, *_SCALES, "weight", SIGNS)


class _Tie:
    """What layers have in common that share their weights on purpose. Copies of tied layers have a tie of their own."""


class SparseLinear(torch.nn.Module):
    """`y = x @ W.T + bias` on the CPU, with W compressed in memory and multiplied as it is.

    Made by `from_linear`, `from_tensor`, `sparsify` or `load_into`. The constructor makes one without weights, for
    loaders to fill with `set_weight` or `load_state_dict`.

    x has any leading shape and is float32, bfloat16, float16 or float64; y has its dtype, whatever that of the weights.
    float32 activations that are contiguous are not copied, and y is written where torch has it. Each row of x gives the
    same bits as it would alone, and those of `sparsefmt.linear`, rounded to the dtype of x. Autocast changes nothing:
    activations are not rounded for it. At most as many threads work as `torch.set_num_threads` and
    `sparsefmt.set_num_threads` both allow.

    Gradients flow to x and to the bias. Weights have none: they are not trained. The first gradient for x makes a
    transposed copy of the weights, compressed as they are, which is kept as long as they.

    The weights are two buffers, `weight_arrays` and `weight_table`, which torch saves, moves and shares like any other,
    and which nobody may write to: their memory may be that of a mapped file. `state_dict` has them, and `weight_signs`,
    the signs of zeros, if these are still in the file that the weights come from. `load_state_dict`
    takes them, verified, or a `weight`: a dense tensor, which it compresses, or a SparseTensor. A deep copy shares
    them. `.to(dtype)`, `.half()` and the like round the values and keep the layout; what becomes zero is pruned. On
    other devices than the CPU the weights can lie, but not be multiplied by: that raises NotImplementedError.

    Scaled weights are elements, of one byte as a rule, times a scale for each row, or for each row and group of
    columns: `weight.tensor` has the elements, the buffer `weight_scale` the scales, and `weight.to_dense()` is the one
    times the other. `.to(dtype)` changes neither, only the dtype that the weight has to code. `activations="int8"`
    rounds each token of x to eight bits before it multiplies, so that sums are exact integers (SPEC.md, "Products").
    Its gradient is then an estimate, called straight-through: that of the product without this rounding. `state_dict`
    has the scales. It has no `activations`, which says how the layer computes: set it in the layer that loads.

    torch.compile and torch.export trace through. Compile models as a whole: compiled one by one, layers of one shape
    are compiled anew for each number of bytes that their weights take.

    Attributes:
        in_features, out_features: sizes of x and y.
        bias: Parameter (out_features,), or None.
        weight: a SparseWeight: shape, dtype and device as of the dense weight, `weight.tensor`, the SparseTensor
            (out_features, in_features), and whatever else a tensor has, which makes it dense for a moment.
        compute_dtype: torch.float32 where weights of 16 bits are float32 to code, so that what is made of them is, as
            the rest of a model that computes in float32: `weight.dtype`, `weight.to_dense()`, `make_dense`. Products
            are the same. None by default: weights have the dtype of their elements.
        weight_scale: float32 (out_features, groups), or None: the weights are their elements alone.
        activations: "int8" to round activations to eight bits, or None.
        input_scale: float32 (), the scale of activations in eight bits; None to take one for each token.
        name: what messages call the layer: its name in the model that `sparsify` or a loader put it into, or None.
        transposed: whether files have the weight as (in_features, out_features), which Conv1D of transformers does.
        weight_requires_grad: requires_grad that the dense weight had, and has again after `make_dense`.

    Args:
        bias: whether there is one; it is zero until it is loaded.
        device: of bias and weights, "cpu" or "meta".
        dtype: of the bias, and of weights that `load_state_dict` makes.

    Example:
        >>> import torch
        >>> from sparsefmt.torch import SparseLinear
        >>> linear = torch.nn.Linear(1024, 1024)
        >>> _ = torch.nn.utils.prune.l1_unstructured(linear, "weight", amount=0.8)
        >>> sparse = SparseLinear.from_linear(linear)
        >>> y = sparse(torch.randn(2, 1024))
    """

    weight_arrays: torch.Tensor
    weight_table: torch.Tensor
    weight_scale: torch.Tensor | None
    input_scale: torch.Tensor | None
    bias: torch.nn.Parameter | None
    activations: str | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.transposed = transposed
        self.weight_requires_grad = True
        self.compute_dtype: torch.dtype | None = None
        self.name: str | None = None
        self.warned = False
        self._tie: _Tie | None = None
        self._weight: weakref.ref[SparseWeight] | None = None
        self._dtype = torch.get_default_dtype() if dtype is None else dtype
        self._signs: SignsOf | None = None
        self._as_sparse_tensor: tuple[torch.Tensor, torch.Tensor, SparseTensor] | None = None
        self.register_buffer("weight_arrays", torch.empty(0, dtype=torch.uint8, device=device))
        self.register_buffer("weight_table", torch.empty(0, dtype=torch.int64, device=device))
        self.register_buffer("weight_scale", None)
        self.register_buffer("input_scale", None)
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(out_features, device=device, dtype=self._dtype))
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_linear(cls, linear: torch.nn.Module, layout: str = "auto") -> SparseLinear:
        """Compress the weight of a Linear layer. Its bias is shared.

        Args:
            linear: a torch.nn.Linear, pruned by torch.nn.utils.prune or not, or a Conv1D of transformers. Not changed.
                Hooks are left behind. Elements that torch.nn.utils.prune masks are 0.0, without the sign that they had;
                other zeros keep theirs.
            layout: "auto" (see docs/guide.md, "Choosing a layout"), "bitmask", "permuted", or "dense".

        Raises:
            TypeError: a module of another kind.
            UnsupportedError: the layout cannot hold the weight.
            NotImplementedError: the weight is on device "meta", and has no elements.

        Cost: two reads of the weight and one write of the result; a dense copy for Conv1D and for a pruned module.
        """
        if is_dense_convolution(linear):
            name = type(linear).__name__
            raise TypeError(
                f"a SparseLinear can be made of a torch.nn.Linear or a Conv1D of transformers, not of {name}:"
                " SparseConv1d.from_convolution and SparseConv2d.from_convolution are for convolutions"
            )
        weight, made_of_transposed = dense_weight(linear)
        with in_tensor("weight"):
            matrix = rows_of(weight)
        made = cls.from_tensor(SparseTensor.from_dense(matrix, layout), effective(linear, "bias"))
        made.transposed = made_of_transposed
        return made.like(linear)

    def like(self, linear: torch.nn.Module) -> SparseLinear:
        """The layer, with what else the one had whose place it takes."""
        pass_on(linear, self, ["bias"])
        self.weight_requires_grad = parameter_of_weight(linear).requires_grad
        return self.train(linear.training)

    @classmethod
    def from_tensor(
        cls,
        weight: SparseTensor,
        bias: torch.Tensor | None = None,
        *,
        scale: ArrayLike | torch.Tensor | Scales | None = None,
        activations: str | None = None,
        input_scale: float | torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> SparseLinear:
        """A layer with these weights, (out_features, in_features). Arrays that lie together in memory are shared.

        Args:
            bias: (out_features,); a Parameter is taken as it is.
            scale: of scaled weights: one number for all, (out_features,) or (out_features, 1) for rows, or
                (out_features, groups) for rows and groups of columns; float32, bfloat16 or float16, 0 or more.
            activations: "int8" to round activations to eight bits, for elements of int8 with scales.
            input_scale: a positive number that activations in eight bits are multiples of; by default, each token has
                its own, a 127th of its largest magnitude.
            dtype: that scaled weights have to code, as `weight.to_dense()` does: by default that of the bias, or
                torch's default.

        Raises:
            ValueError: the weight is not a matrix, or the bias has another shape; scales that do not fit the weight, or
                are negative, NaN or infinite; unknown `activations`.
            UnsupportedError: a dtype that has no product here; `activations` that weights cannot have
                (`activations-dtype`).
        """
        if weight.ndim != 2:
            raise ValueError(f"the weight of a SparseLinear has 2 dimensions; this one has shape {weight.shape}")
        out_features, in_features = weight.shape
        if bias is not None and tuple(bias.shape) != (out_features,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}; the weight has {out_features:,} rows")
        if dtype is None and bias is not None:
            dtype = bias.dtype
        made = cls(in_features, out_features, bias=False, device="cpu", dtype=dtype)
        made.set_weight(weight, scale)
        made.set_activations(activations, input_scale)
        if bias is not None:
            parameter = bias if isinstance(bias, torch.nn.Parameter) else torch.nn.Parameter(bias.detach())
            made.bias = parameter if parameter.device.type == "cpu" else torch.nn.Parameter(parameter.detach().cpu())
        return made

    def set_weight(self, weight: SparseTensor, scale: ArrayLike | torch.Tensor | Scales | None = None) -> None:
        """Take other weights, (out_features, in_features), of any dtype and layout.

        Args:
            scale: as in `from_tensor`. A layer that gets scaled weights keeps the dtype that its weight had to code.
                If groups of columns have scales, `permuted` becomes `bitmask`, which is faster then.

        Raises:
            ValueError: another shape; scales that do not fit, or are negative, NaN or infinite.
            UnsupportedError: a dtype that has no product here.
        """
        if weight.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"the weight has shape {weight.shape}; this layer needs {(self.out_features, self.in_features)}"
            )
        scales = None if scale is None else tensor_of_scales(scale, weight.shape)
        if scales is not None:
            weight = weight.to_layout(auto.with_scales(weight.layout, weight.sparsity, scales.shape[1], None))
        made = to_tensors(weight)
        registry.remember(made)
        self._tie = None
        self._hold(made, self._dtype_of_scaled() if scales is not None else torch_dtype_of(weight))
        self._scale_by(scales)
        self._signs = None if weight.signs is None else SignsOf(made.table, weight.signs)

    def _scale_by(self, scales: torch.Tensor | None) -> None:
        self.weight_scale = scales
        if scales is None:
            self.activations = self.input_scale = None

    def set_activations(self, activations: str | None, input_scale: float | torch.Tensor | None = None) -> None:
        """Say how activations are multiplied; arguments and errors as in `from_tensor`."""
        if activations is None and input_scale is not None:
            raise ValueError('input_scale is for activations="int8"')
        activations = checked_activations(activations)
        if self.has_weight:
            elements = None if self.weight_scale is None else self.sparse_tensor().operand().dtype.name
            expect_int8(activations, elements)
        if activations is not None and self.has_weight and self.weight_scale is not None and not self.is_tied:
            tensor, groups = self.sparse_tensor(), self.weight_scale.shape[1]
            layout = auto.with_scales(tensor.layout, tensor.sparsity, groups, activations)
            if layout != tensor.layout:
                self.set_weight(tensor.to_layout(layout), self.weight_scale)
        self.activations = activations
        self.input_scale = None if input_scale is None else tensor_of_input_scale(input_scale)

    def _dtype_of_scaled(self) -> torch.dtype:
        return self._dtype if self._dtype.is_floating_point else torch.get_default_dtype()

    def share_weight(self, other: SparseLinear) -> None:
        """Take the weights of another layer of the same shape, without a copy. The two are tied from now on.

        Scales are part of the weights, and what is said of activations comes with them.
        """
        if other._tie is None:
            other._tie = _Tie()
        self.share_memory_with(other)
        self._tie = other._tie

    def share_memory_with(self, other: SparseLinear) -> None:
        """Take the weights that another layer of the same shape has now, without a copy and without a tie."""
        self._tie = None
        self._share(other)

    def follow(self, other: SparseLinear) -> None:
        """Take the weights that a layer has now with which this one had its weights in common; a tie stays as it is."""
        if other is not self:
            self._share(other)

    def _share(self, other: SparseLinear) -> None:
        self._hold(WeightTensors(other.weight_arrays, other.weight_table), other._dtype)
        self._signs = other._signs
        self.weight_scale, self.input_scale, self.activations = other.weight_scale, other.input_scale, other.activations

    def _hold(self, weights: WeightTensors, dtype: torch.dtype) -> None:
        self.weight_arrays, self.weight_table = weights
        self._dtype = dtype

    @property
    def weight_shape(self) -> torch.Size:
        """The shape that the weight has in the dense module, and in files."""
        features = self.out_features, self.in_features
        return torch.Size(features[::-1] if self.transposed else features)

    def as_stored(self, matrix: torch.Tensor) -> torch.Tensor:
        """A dense matrix (out_features, in_features) as the dense module and files have it."""
        return matrix.t().contiguous() if self.transposed else matrix

    def as_matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The inverse of `as_stored`, a view."""
        return weight.t() if self.transposed else weight

    def stored_tensor(self) -> SparseTensor:
        """The weights as files have them."""
        return transposed(self.sparse_tensor(), "auto") if self.transposed else self.sparse_tensor()

    def without_weight(self) -> SparseLinear:
        """A layer like this one, without weights and bias."""
        features = self.in_features, self.out_features
        return SparseLinear(*features, bias=False, device="cpu", dtype=self._dtype, transposed=self.transposed)

    def without_weight_dense(self) -> torch.nn.Module:
        """The dense module that it was, without weight and bias."""
        with torch.device("meta"):
            if self.transposed:
                from transformers.pytorch_utils import Conv1D

                return Conv1D(self.out_features, self.in_features)
            return torch.nn.Linear(self.in_features, self.out_features, bias=False)

    def compress(self, weight: torch.Tensor) -> None:
        """Take a dense weight (out_features, in_features), in the layout that the weights have, if that saves memory.

        Raises:
            ValueError: another shape.
        """
        weight = weight.to("cpu", self._dtype)
        with in_tensor("weight"):
            matrix = rows_of(weight)
        layout = auto.for_computing(matrix.filling(matrix.survey())).name
        if layout != "dense" and self.has_weight:
            layout = self.sparse_tensor().layout
        device = self.weight_arrays.device
        self.set_weight(SparseTensor.from_dense(matrix, layout))
        self._hold(WeightTensors(self.weight_arrays.to(device), self.weight_table.to(device)), self._dtype)

    @property
    def weight(self) -> SparseWeight:
        """What code gets that asks for the weight. The same object for as long as somebody keeps it."""
        if torch.compiler.is_compiling():
            return SparseWeight(self)
        made = None if self._weight is None else self._weight()
        if made is None:
            made = SparseWeight(self)
            self._weight = weakref.ref(made)
        return made

    @weight.setter
    def weight(self, value: Any) -> None:
        # `layer.weight *= 2` has changed it, and puts it back
        if value is not self.weight:
            raise TypeError(
                f"the weight of a SparseLinear cannot be set to a {type(value).__name__}: call set_weight with a"
                " SparseTensor, or sparsefmt.torch.make_dense(model) for dense ones"
            )

    @property
    def weight_dtype(self) -> torch.dtype:
        """What code sees as the dtype of the weight; its elements may have 16 bits, and this be float32."""
        widened = self.compute_dtype is not None and self._dtype in SIXTEEN_BITS
        return torch.float32 if widened else self._dtype

    @property
    def is_tied(self) -> bool:
        """Whether other layers share these weights on purpose, as `share_weight` makes them."""
        return self._tie is not None

    @property
    def has_weight(self) -> bool:
        """Whether there are weights: not on device "meta", and set or loaded."""
        return self.weight_table.numel() > 0 and self.weight_table.device.type != "meta"

    def sparse_tensor(self) -> SparseTensor:
        """The weights as a SparseTensor, sharing memory; the same one each time. `weight.tensor` gives it too.

        Raises:
            RuntimeError: there are none.
            FormatError: they are damaged.
        """
        if not self.has_weight:
            raise RuntimeError("this SparseLinear has no weights yet: load some, or call set_weight")
        held = self._as_sparse_tensor
        if held is None or held[0] is not self.weight_arrays or held[1] is not self.weight_table:
            arrays, table = self.weight_arrays.cpu(), self.weight_table.cpu()
            registry.known(arrays, table)
            tensor = weight_tensors.from_tensors(weight_tensors.memory_of(arrays), table, check=False)
            tensor = tensor if self._signs is None else self._signs.put_on(tensor, table)
            self._as_sparse_tensor = held = self.weight_arrays, self.weight_table, tensor
        return held[2]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            # from the dictionaries: a module looks its attributes up in three of them, which takes a microsecond each
            arrays, table = self._buffers["weight_arrays"], self._buffers["weight_table"]
            # a bias that is computed anew each time is not a parameter
            bias = self._parameters.get("bias")
            if (
                "bias" in self._parameters
                and arrays is not None
                and table is not None
                and input.is_cpu
                and arrays.is_cpu
                and is_unwatched(input, bias)
            ):
                scale = self._buffers.get("weight_scale")
                if scale is None:
                    return product(input, arrays, table, bias, self.out_features, self.in_features)
                how = self._buffers.get("input_scale"), self.activations
                return scaled_product(input, arrays, table, bias, scale, *how, self.out_features, self.in_features)
        for what, device in (("x is", input.device), ("its weights are", self.weight_arrays.device)):
            if device.type not in ("cpu", "meta"):
                raise NotImplementedError(f"a SparseLinear multiplies on the CPU; {what} on {device}: move it there")
        return self.product(input, self.bias)

    def product(self, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The product of input and the weights, plus a bias, by an operator of torch."""
        weights, features = (self.weight_arrays, self.weight_table), (self.out_features, self.in_features)
        if self.weight_scale is None:
            return linear_op(input, *weights, bias, *features)
        return scaled_linear_op(input, *weights, bias, self.weight_scale, self.input_scale, self.activations, *features)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        text += f", dtype={self._dtype}"
        if self.weight_dtype != self._dtype:
            text += f", compute_dtype={self.weight_dtype}"
        if not self.has_weight:
            return f"{text}, without weights"
        tensor = self.sparse_tensor()
        nbytes = tensor.nbytes
        if self.weight_scale is not None:
            groups = self.weight_scale.shape[1]
            text += f", values={tensor.dtype}, scale of {'rows' if groups == 1 else f'{groups} groups a row'}"
            nbytes += self.weight_scale.nbytes
        if self.activations is not None:
            text += f", activations={self.activations}{'' if self.input_scale is None else ' with a fixed scale'}"
        dense = tensor.size * (tensor.dtype if self.weight_scale is None else self._dtype).itemsize
        return f"{text}, layout={tensor.layout}, sparsity={tensor.sparsity:.3f}, {nbytes:,} of {dense:,} bytes"

    def _repr_html_(self) -> str:
        """What notebooks show: the line of `print`, in parts, and a picture of the weights that are not zero."""
        title = f"SparseLinear{f' {self.name!r}' if self.name else ''}, {self.in_features} to {self.out_features}"
        with suppress(SparsefmtError):  # what it holds is damaged
            picture = self.sparse_tensor().picture() if self.has_weight and self.weight_arrays.is_cpu else ""
            return notebooks.box((title, *self.extra_repr().split(", ")[2:]), picture)
        return notebooks.box((title, "its weights are damaged"))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> SparseLinear:
        """What `.to`, `.half`, `.share_memory` and the like do to every tensor of a module."""
        before = {name: self._buffers.get(name) for name in (*_WEIGHTS, *_SCALES)}
        super()._apply(fn, recurse)
        # scales stay float32, and `.type()` would turn even integers into what it is asked for
        for name, old in before.items():
            new = self._buffers.get(name)
            if new is not None and old is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        dtype = fn(torch.empty(1, dtype=self.weight_dtype)).dtype
        if dtype != self.weight_dtype:
            self.compute_dtype = None
            if self.has_weight and dtype != self._dtype and self.weight_scale is None:
                device = self.weight_arrays.device
                made = to_tensors(cast(self.sparse_tensor(), dtype))
                registry.remember(made)
                self._hold(WeightTensors(*(tensor.to(device) for tensor in made)), dtype)
                self._signs = None
            self._dtype = dtype
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLinear:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        for name in (*_WEIGHTS, *_SCALES):
            memo[id(self._buffers.get(name))] = self._buffers.get(name)
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_as_sparse_tensor": None, "_weight": None}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight_scale is not None:
            destination[prefix + "weight_scale"] = as_saved(self.weight_scale)
        tensor = self.sparse_tensor() if with_signs() and self.has_weight and self._signs is not None else None
        if tensor is not None and tensor.signs is not None:
            tiles = [tensor.tile(number)[NEGATIVE_ZEROS] for number in range(tensor.tiling.tiles)]
            destination[prefix + SIGNS] = torch.from_numpy(np.concatenate(tiles))

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
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        tie = self._tie
        own = {name: state_dict[prefix + name] for name in _IN_STATE if prefix + name in state_dict}
        try:
            if "weight" in own:
                self._load_weight(own["weight"], own.get("weight_scale"), assign)
            elif "weight_arrays" in own and "weight_table" in own:
                self._load_tensors(own, assign)
            else:
                missing_keys += [prefix + name for name in _WEIGHTS if name not in own]
            if self.weight_scale is not None:
                # a fixed scale of activations has no other use
                self.set_activations("int8" if "input_scale" in own else self.activations, own.get("input_scale"))
        except (SparsefmtError, RuntimeError, ValueError) as error:
            error_msgs.append(f'While loading "{prefix}weight": {error}')
        if not assign:
            # as with parameters that are tied: what is copied into them changes no tie
            self._tie = tie
        taken = {prefix + name for name in own}
        rest = {key: value for key, value in state_dict.items() if key not in taken}
        buffers = {name: self._buffers.pop(name, None) for name in (*_WEIGHTS, *_SCALES)}
        try:
            super()._load_from_state_dict(
                rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        finally:
            self._buffers.update(buffers)

    def _load_weight(self, weight: torch.Tensor | SparseTensor, scale: torch.Tensor | None, assign: bool) -> None:
        """Take the weight of a dense layer, or what `tensors_of` has in its place."""
        shape = tuple(weight.shape)
        self._expect_shape(shape[::-1] if self.transposed else shape)
        if self.transposed and scale is not None:
            weight, scale = dequantized(_compressed(weight), tensor_of_scales(scale, shape).numpy()), None
        if isinstance(weight, SparseTensor):
            weight = transposed(weight, "auto") if self.transposed else weight
            self.set_weight(weight if assign or scale is not None else cast(weight, self._dtype), scale)
            return
        weight = weight.t() if self.transposed else weight
        weight = weight if assign or scale is not None else weight.to(self._dtype)
        self.set_weight(_compressed(weight), scale)

    def _load_tensors(self, state: Mapping[str, torch.Tensor], assign: bool) -> None:
        """Take the buffers of another layer, by name."""
        weights = WeightTensors(*(state[name] for name in _WEIGHTS))
        if not weights.table.numel():
            raise RuntimeError("it was saved from a layer without weights")
        if not assign:
            weights = WeightTensors(*(tensor.detach().to("cpu", copy=True) for tensor in weights))
        registry.known(*(tensor.cpu() for tensor in weights))
        tensor = weight_tensors.from_tensors(weight_tensors.memory_of(weights.arrays.cpu()), weights.table, check=False)
        self._expect_shape(tensor.shape)
        if SIGNS in state:
            tensor = tensor.with_signs(weight_tensors.signs_of(tensor, state[SIGNS]))
        scale = state.get("weight_scale")
        if scale is None and not assign and torch_dtype_of(tensor) != self._dtype:
            self.set_weight(cast(tensor, self._dtype))
            return
        scales = None if scale is None else tensor_of_scales(scale if assign else scale.clone(), tensor.shape)
        self._hold(weights, torch_dtype_of(tensor) if scales is None else self._dtype_of_scaled())
        self._scale_by(scales)
        self._signs = None if tensor.signs is None else SignsOf(weights.table, tensor.signs)

    def _expect_shape(self, shape: tuple[int, ...]) -> None:
        expected = (self.out_features, self.in_features)
        if shape != expected:
            raise RuntimeError(
                f"size mismatch: the shape in the checkpoint is {torch.Size(shape)}, the shape in the current model is"
                f" {torch.Size(expected)}."
            )


def _compressed(weight: torch.Tensor | SparseTensor) -> SparseTensor:
    if isinstance(weight, SparseTensor):
        return weight
    with in_tensor("weight"):
        matrix = rows_of(weight)
    return SparseTensor.from_dense(matrix, "auto")
