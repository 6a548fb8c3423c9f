"""Attention backends by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from torch import Tensor

from quarterdeck.attention.eager import eager_attention
from quarterdeck.attention.flash import check_flash, flash_attention
from quarterdeck.attention.flex import flex_attention_backend
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

_BACKENDS: Mapping[str, AttentionFunction] = {
    "eager": eager_attention,
    "sdpa": sdpa_attention,
    "flash_attention_2": flash_attention,
    "flex_attention": flex_attention_backend,
}
# parts of names that transformers knows, and why they are not here; the first that is found counts
_ELSEWHERE: Mapping[str, str] = {
    "/": "kernels are not downloaded from the hub, since they are code that would run here",
    "paged": "paged caches are for serving many requests at once, not for calling a model",
    "flash_attention": "of the flash-attn kernels, version 2 is here",
}


def attention_names() -> tuple[str, ...]:
    """Names of the backends there are."""
    return tuple(_BACKENDS)


def get_attention(chosen: object) -> AttentionFunction:
    """The backend called ``chosen``, the default for ``None``, or ``chosen`` itself if it is a function.

    Raises:
        UnsupportedOptionError: there is no such backend; the message lists what there is.
    """
    if callable(chosen):
        return cast(AttentionFunction, chosen)  # a user's own: the contract is its author's promise
    name = DEFAULT_ATTENTION if chosen is None else chosen
    if not isinstance(name, str) or name not in _BACKENDS:
        raise UnsupportedOptionError(_no_such_backend(name))
    return _BACKENDS[name]


def check_attention(chosen: object) -> None:
    """Refuse, at the moment of choosing, what could not run later.

    Raises:
        UnsupportedOptionError: there is no such backend, or it cannot run on this machine.
        MissingPackageError: the package that it needs is not installed.
    """
    if get_attention(chosen) is flash_attention:
        check_flash()


def _no_such_backend(name: object) -> str:
    reasons = (reason for part, reason in _ELSEWHERE.items() if part in str(name))
    reason = next(reasons, "there is no such backend")
    known = ", ".join(_BACKENDS)
    return f"attn_implementation is {name!r}: {reason}; it must be one of {known}, or a function like eager_attention"
