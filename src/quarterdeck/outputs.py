"""What a model returns: named fields that also read as a tuple and as a dictionary.

    out = model(input_ids)
    out.logits; out["logits"]; out[0]; logits, cache = out[:2]

Fields that are ``None`` are absent from the tuple and dictionary views, as in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from quarterdeck.cache.base import Cache


@dataclass
class ModelOutput:
    """Base of all outputs: attribute, key, index and slice access over the fields that are not ``None``."""

    def items(self) -> list[tuple[str, Any]]:
        """Names and values of the fields that are not ``None``, in order."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, value) for name, value in pairs if value is not None]

    def keys(self) -> list[str]:
        """Names of the fields that are not ``None``."""
        return [name for name, _ in self.items()]

    def values(self) -> list[Any]:
        """Values of the fields that are not ``None``."""
        return [value for _, value in self.items()]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values as a tuple; what ``return_dict=False`` returns."""
        return tuple(self.values())

    def get(self, key: str, default: Any = None) -> Any:
        """The field ``key``, or ``default`` where it is absent."""
        return dict(self.items()).get(key, default)

    def __getitem__(self, key: str | int | slice) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.items())


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """Output of the decoder without a head.

    Shapes: ``B`` sequences, ``T`` positions, ``E`` hidden size, ``H`` heads, ``S`` keys, ``L`` layers.

    Attributes:
        last_hidden_state: ``[B, T, E]``, after the final norm.
        past_key_values: the cache, if one was used.
        hidden_states: ``L + 1`` tensors ``[B, T, E]``: the embeddings, the outputs of layers 1 to L - 1, and the
            final-normed state.
        attentions: ``L`` tensors ``[B, H, T, S]`` of attention weights.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """Output of the language model; see :class:`BaseModelOutputWithPast` for the fields that are not here.

    Attributes:
        loss: next-token cross entropy, if labels were given.
        logits: ``[B, K, V]`` for the ``K`` positions asked for, scaled by ``logit_scale``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
