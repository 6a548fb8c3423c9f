"""Attention through ``torch.nn.attention.flex_attention``: the rule itself is compiled into the kernel.

Blocks of 128 by 128 that the rule leaves empty are skipped, which is where packed rows and windows win. On a GPU with
Triton the kernel is compiled at the first call; elsewhere torch computes the same unfused.

Shapes: ``B`` sequences, ``T`` queries, ``S`` keys, ``H`` and ``G`` heads of queries and keys, ``D`` head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from quarterdeck.attention.mask import AttentionMask
from quarterdeck.attention.sdpa import sdpa_attention
from quarterdeck.errors import UnsupportedOptionError

NAME = "flex_attention"
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_attention_backend(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, *, scale: float, dropout: float = 0.0
) -> tuple[Tensor, None]:
    """As :func:`~quarterdeck.attention.eager.eager_attention`, without the weights and without dropout.

    A row that sees nothing gives zeros, as in ``sdpa``. On a CPU, where gradients are wanted or a program is compiled,
    ``sdpa`` computes, whose numbers are the same: torch has neither of ``flex_attention`` there.

    Raises:
        UnsupportedOptionError: ``dropout``, which torch does not have here.
    """
    if dropout:
        raise UnsupportedOptionError(
            f"attn_implementation='{NAME}' has no dropout: set config.attention_dropout to 0, call model.eval(), "
            "or choose 'sdpa'"
        )
    if query.device.type == "cpu" and _is_beyond_cpus(query, key, value):
        return sdpa_attention(query, key, value, mask, scale=scale)
    repeats = query.shape[1] // key.shape[1]
    if query.device.type != "cpu" and repeats & (repeats - 1):
        # up to torch 2.8 the kernel for few queries shares keys among 2, 4, 8... heads only; Command-R+ has 12
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    attend, make_blocks = _functions(query.device.type)
    numbers = mask.explicit is not None and mask.explicit.is_floating_point()
    output: Tensor = attend(
        query,
        key,
        value,
        score_mod=_added(mask.additive(query.dtype)) if numbers else None,
        block_mask=None if numbers or mask.sees_all else mask.made("blocks", lambda: _blocks(mask, make_blocks)),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output, None


def _is_beyond_cpus(*tensors: Tensor) -> bool:
    """What torch 2.13 cannot do on a CPU: gradients, and C++ that still compiles when lengths change."""
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return wants_gradient or torch.compiler.is_compiling()


def _functions(device: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``flex_attention`` and ``create_block_mask``, compiled where that is possible and not under way already."""
    if device == "cpu" or torch.compiler.is_compiling() or find_spec("triton") is None:
        return flex_attention, create_block_mask
    return _compiled()


@functools.cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    return torch.compile(flex_attention), torch.compile(create_block_mask)


def _blocks(mask: AttentionMask, make_blocks: Callable[..., BlockMask]) -> BlockMask:
    """The rule as torch wants it. Heads are one where they all see the same."""
    rows = next((len(given) for given in (mask.padding, mask.documents, mask.explicit) if given is not None), None)
    heads = None if mask.explicit is None else mask.explicit.shape[1]
    return make_blocks(
        _rule(mask),
        None if rows == 1 else rows,
        None if heads == 1 else heads,
        mask.queries,
        mask.keys,
        device=mask.device,
    )


def _rule(mask: AttentionMask) -> Rule:
    """``(row, head, query, key)``, numbers all, to whether it sees; the text at the top of ``mask.py`` once more."""
    if mask.explicit is not None:
        return _listed(mask.explicit)
    positions, window = mask.query_positions(), mask.window
    padding, documents = mask.real_keys(), mask.documents

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        at = positions[query]
        seen = key <= at
        if window is not None:
            seen = seen & (at - key < window)
        if padding is not None:
            seen = seen & padding[row, key]
        if documents is not None:
            seen = seen & (documents[row, at] == documents[row, key])
        return seen

    return sees


def _listed(allowed: Tensor) -> Rule:
    """A finished boolean mask ``[B or 1, H or 1, T, S]``."""
    one_row, one_head = allowed.shape[0] == 1, allowed.shape[1] == 1

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[row * 0 if one_row else row, head * 0 if one_head else head, query, key]

    return sees


def _added(numbers: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A finished mask of numbers ``[B or 1, H or 1, T, S]``, to add to the scores."""
    one_row, one_head = numbers.shape[0] == 1, numbers.shape[1] == 1

    def add(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + numbers[row * 0 if one_row else row, head * 0 if one_head else head, query, key]

    return add
