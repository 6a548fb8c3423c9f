"""What a model can say and do about its own quantization; `quarterdeck.model_base` inherits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from quarterdeck.errors import InputError
from quarterdeck.quantization.bnb import dequantize_bitsandbytes, is_bitsandbytes
from quarterdeck.quantization.bnb_config import BitsAndBytesConfig
from quarterdeck.quantization.choose import Quantization
from quarterdeck.quantization.config import QuantizationConfig
from quarterdeck.quantization.formats import LEAVES
from quarterdeck.quantization.modules import PackedModule, QuantizedEmbedding, packed_modules
from quarterdeck.quantization.surgery import dequantize_model


class QuantizationMixin(nn.Module):
    """Questions about quantized weights, and the way back."""

    config: Any

    @property
    def quantization(self) -> Quantization | None:
        """How the weights are quantized, as the modules have it; None if they are not."""
        if not any(isinstance(module, PackedModule) or is_bitsandbytes(module) for module in self.modules()):
            return None
        found = getattr(self.config, "quantization_config", None)
        return found if isinstance(found, QuantizationConfig | BitsAndBytesConfig) else None

    @property
    def is_quantized(self) -> bool:
        """Whether some weights are quantized."""
        return self.quantization is not None

    @property
    def is_loaded_in_4bit(self) -> bool:
        """Whether bitsandbytes holds the weights in 4 bits."""
        found = self.quantization
        return isinstance(found, BitsAndBytesConfig) and found.load_in_4bit

    @property
    def is_loaded_in_8bit(self) -> bool:
        """Whether bitsandbytes holds the weights in 8 bits."""
        found = self.quantization
        return isinstance(found, BitsAndBytesConfig) and found.load_in_8bit

    def dequantize(self, dtype: torch.dtype | None = None) -> Self:
        """Gives the model plain linears and embeddings, whose weights are what the quantized ones stand for.

        Args:
            dtype: their type; None is the model's.

        Raises:
            InputError: the weights are not quantized.
        """
        if not self.is_quantized:
            raise InputError("the model's weights are not quantized: there is nothing to dequantize")
        kept = floating_dtype(self) if dtype is None else dtype
        dequantize = dequantize_bitsandbytes if isinstance(self.quantization, BitsAndBytesConfig) else dequantize_model
        return dequantize(self, kept)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuses another type for weights of bitsandbytes, which has no other."""
        if isinstance(self.quantization, BitsAndBytesConfig):
            dtype = floating_dtype(self)
            if fn(torch.empty(0, dtype=dtype)).dtype != dtype:
                raise InputError(
                    "a model whose weights bitsandbytes holds cannot be cast to another type: choose dtype in "
                    "from_pretrained (for products also bnb_4bit_compute_dtype), or call dequantize() first"
                )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no annotation here
        return self


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The type of a model's first floating parameter; packed weights are no parameters."""
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def spelled_out(names: Mapping[str, str]) -> dict[str, str]:
    """Pairs of weights that are one, with those of their packed parts."""
    pairs = dict(names)
    for alias, name in names.items():
        for leaf in LEAVES:
            pairs[_part(alias, leaf)] = _part(name, leaf)
    return pairs


def parts_of(names: frozenset[str]) -> frozenset[str]:
    """Names of weights, with those of their packed parts."""
    return names | {_part(name, leaf) for name in names for leaf in LEAVES}


def quantized_count(model: nn.Module, *, embeddings: bool) -> int:
    """Weights that the parameters of a model do not count, since they are packed; tied ones once.

    Args:
        model: the model.
        embeddings: whether tables, and heads that are one with them, count.
    """
    tables = {_key(module) for module in packed_modules(model).values() if isinstance(module, QuantizedEmbedding)}
    packed = {_key(module): module.rows * module.columns for module in packed_modules(model).values()}
    count = sum(number for key, number in packed.items() if embeddings or key not in tables)
    for module in model.modules():
        if is_bitsandbytes(module):
            linear: Any = module
            count += linear.in_features * linear.out_features - linear.weight.numel()
    return count


def _key(module: PackedModule) -> int:
    return id(next(iter(module.tensors.values())))


def _part(name: str, leaf: str) -> str:
    """``lm_head.weight`` and ``weight_scale``: ``lm_head.weight_scale``."""
    path, _, own = name.rpartition(".")
    return f"{path}.{leaf}" if own == "weight" else f"{name}.{leaf}"
