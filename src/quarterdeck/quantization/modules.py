"""What takes the places of linears and embeddings: the same functions over packed weights.

The tensors of a packed weight are buffers, not parameters: nothing trains them, and a type that the model is cast to
is not theirs. A head that is tied to its embedding holds the very same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from quarterdeck.kernels.derivatives import is_transformed, wants_gradient
from quarterdeck.kernels.weight_only import weight_only_reference
from quarterdeck.quantization.formats import (
    PackedFormat,
    PackedWeight,
    chosen_rows,
    full_weight,
    product,
    round_weight,
    trainable_product,
)


class PackedModule(nn.Module):
    """A module around a packed weight ``[rows, columns]``; built without memory, as on the meta device.

    Args:
        form: the format of the weight.
        rows, columns: its shape.
    """

    def __init__(self, form: PackedFormat, rows: int, columns: int) -> None:
        super().__init__()
        self.form, self.rows, self.columns = form, rows, columns
        self.sizes = {name: (tuple(shape), dtype) for name, (shape, dtype) in form.tensors(rows, columns).items()}
        for name, (shape, dtype) in self.sizes.items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))

    @property
    def packed(self) -> PackedWeight:
        """The weight as the kernels take it."""
        return self.form.view({name: self._buffers[name] for name in self.sizes}, self.rows, self.columns)  # type: ignore[misc]  # no buffer is None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the weight by their names here."""
        return {name: self.get_buffer(name) for name in self.sizes}

    def set_weight(self, weight: Tensor, device: torch.device) -> None:
        """Rounds ``weight`` ``[rows, columns]`` to nearest and keeps the result on ``device``."""
        self.set_tensors({name: part.to(device) for name, part in round_weight(self.form, weight).items()})

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes finished tensors as its own, some or all."""
        for name, tensor in tensors.items():
            self._buffers[name] = tensor

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight ``[rows, columns]`` as the products see it, in ``dtype``."""
        return full_weight(self.packed).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Lets the packed tensors follow to a device and not to a type; two modules that share them go on sharing."""
        own = {name: self._buffers.pop(name) for name in self.sizes}
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no annotation here
        finally:
            self._buffers.update({name: _moved(tensor, fn) for name, tensor in own.items() if tensor is not None})
        return self

    def extra_repr(self) -> str:
        """Shape and format, as ``print(model)`` shows them."""
        return f"{self.columns} -> {self.rows}, {self.form}"


class QuantizedLinear(PackedModule):
    """``x @ weight.T + bias`` with a packed weight; its input and its bias can have gradients.

    Under transforms of ``torch.func`` and forward-mode differentiation it is PyTorch's product with the weight unpacked
    for the time of the call: activations are then not rounded.
    """

    def __init__(self, form: PackedFormat, out_features: int, in_features: int, bias: nn.Parameter | None) -> None:
        super().__init__(form, out_features, in_features)
        self.in_features, self.out_features = in_features, out_features
        self.bias = bias

    @classmethod
    def like(cls, linear: nn.Linear, form: PackedFormat) -> Self:
        """For the place of ``linear``, with its bias and without values for the weight."""
        return cls(form, linear.out_features, linear.in_features, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]`` in the type of ``x``."""
        bias = self.bias
        if is_transformed():
            return weight_only_reference(x, self.dequantized(x.dtype), bias)
        if wants_gradient(x, bias):
            return trainable_product(x, self.packed, bias)
        return product(x, self.packed, bias)


class QuantizedEmbedding(PackedModule):
    """Rows of a packed table, in the type of the model."""

    def __init__(
        self, form: PackedFormat, num_embeddings: int, embedding_dim: int, padding_idx: int | None, dtype: torch.dtype
    ) -> None:
        super().__init__(form, num_embeddings, embedding_dim)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.dtype = dtype

    @classmethod
    def like(cls, embedding: nn.Embedding, form: PackedFormat) -> Self:
        """For the place of ``embedding``, without values."""
        rows, columns = embedding.num_embeddings, embedding.embedding_dim
        return cls(form, rows, columns, embedding.padding_idx, embedding.weight.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` ids to ``[..., embedding_dim]``."""
        return chosen_rows(ids, self.packed, self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What comes out follows the model's type."""
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)


def packed_modules(model: nn.Module) -> dict[str, PackedModule]:
    """All modules with packed weights, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedModule)}


def _moved(tensor: Tensor, fn: Any) -> Tensor:
    """``fn`` of a tensor but for its type and strides; done in place where it can be, so that who shares it sees it."""
    moved: Tensor = fn(tensor).contiguous()  # a memory format, as of channels, means another order of bytes
    if moved.dtype != tensor.dtype:
        moved = tensor.to(moved.device)
    if moved is tensor or not torch._has_compatible_shallow_copy_type(tensor, moved):
        return moved
    tensor.data = moved
    return tensor
