"""Attention backends by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from quarterdeck.attention.eager import eager_attention
from quarterdeck.attention.mask import AttentionMask
from quarterdeck.attention.sdpa import sdpa_attention
from quarterdeck.errors import UnsupportedOptionError


class AttentionFunction(Protocol):
    """The contract of a backend; :func:`~quarterdeck.attention.eager.eager_attention` defines what it computes.

    A backend that does not have the attention weights returns ``None`` in their place.
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: AttentionMask,
        *,
        scale: float,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, H, T, D]``, ``[B, G, S, D]``, ``[B, G, S, D]`` to ``[B, H, T, D]`` and weights or ``None``."""
        ...


DEFAULT_ATTENTION = "sdpa"

_BACKENDS: Mapping[str, AttentionFunction] = {"eager": eager_attention, "sdpa": sdpa_attention}


def attention_names() -> tuple[str, ...]:
    """Names of the backends there are."""
    return tuple(_BACKENDS)


def get_attention(name: str | None) -> AttentionFunction:
    """The backend called ``name``, the default for ``None``; UnsupportedOptionError lists what there is."""
    try:
        return _BACKENDS[name or DEFAULT_ATTENTION]
    except KeyError:
        known = ", ".join(_BACKENDS)
        raise UnsupportedOptionError(
            f"there is no attention implementation {name!r}; attn_implementation must be one of {known}"
        ) from None
