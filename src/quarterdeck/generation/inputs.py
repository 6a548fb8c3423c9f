"""What generation begins with: tokens or embeddings, which of them are padding, and where they stand.

Shapes: B rows, T tokens of the prompt, P positions of the prompt (T, or the length of the embeddings), E hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quarterdeck.cache import base as cache_base
from quarterdeck.cache.base import Cache
from quarterdeck.errors import InputError

logger = logging.getLogger(__name__)

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "inputs_embeds",
    "position_ids",
    "past_key_values",
    "logits_to_keep",
)
"""Arguments of the model that `generate` accepts besides options."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of every row.

    Attributes:
        ids: [B, T] int64, what processors see and what is returned in front; T is 0 for embeddings alone.
        embeds: [B, P, E], what the model sees in place of ``ids``; or None.
        mask: [B, P] int64, 1 for real positions and 0 for padding; None if there is no padding.
        positions: [B, P] int64, for the rotary embedding; None if they simply count up from 0.
    """

    ids: Tensor
    embeds: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None

    @property
    def content(self) -> Tensor:
        """What the model sees: [B, P] ids or [B, P, E] embeddings."""
        return self.ids if self.embeds is None else self.embeds

    @property
    def length(self) -> int:
        """P, the positions that the prompt takes in the model."""
        return self.content.shape[1]

    @property
    def rows(self) -> int:
        """B."""
        return self.content.shape[0]

    def repeated(self, times: int) -> Prompt:
        """Every row ``times`` times, copies side by side."""
        if times == 1:
            return self
        parts = (self.ids, self.embeds, self.mask, self.positions)
        ids, *others = (None if part is None else part.repeat_interleave(times, dim=0) for part in parts)
        assert ids is not None
        return Prompt(ids, *others)


def make_prompt(
    inputs: Tensor | None,
    given: dict[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    bos: int | None,
    pad: int | None,
    eos: Sequence[int],
) -> Prompt:
    """The prompt from the arguments of `generate`.

    Without tokens and embeddings it is the token ``bos``. Without an attention mask, ``pad`` tokens are padding
    if there are any and ``pad`` is no end token, as in transformers.

    Args:
        inputs: the positional argument, another name for ``input_ids``.
        given: those of `MODEL_INPUTS` that were given by name.
        device: where the model is.
        dtype: what it computes in; embeddings must have it.
        bos, pad, eos: special tokens.

    Raises:
        InputError: tensors whose shapes, types or devices do not fit.
    """
    if inputs is not None and given.get("input_ids") is not None:
        raise InputError("the prompt is given twice, as the first argument and as input_ids: drop one")
    ids = given.get("input_ids") if inputs is None else inputs
    embeds = given.get("inputs_embeds")
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    for name, tensor in {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}.items():
        _check_device(name, tensor, device)
    ids = _checked_ids(ids, device) if ids is not None else _initial_ids(embeds, mask, bos, device)
    prompt = Prompt(ids, _checked_embeds(embeds, ids, dtype))
    mask = _inferred_mask(prompt, pad, eos) if mask is None else _checked_mask(mask, prompt)
    _notice_right_padding(prompt, mask)
    if positions is not None:
        positions = _checked_positions(positions, prompt)
        return Prompt(prompt.ids, prompt.embeds, mask, positions)
    if bool(mask.all()):
        return prompt
    positions = (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)
    return Prompt(prompt.ids, prompt.embeds, mask, positions)


def _check_device(name: str, tensor: object, device: torch.device) -> None:
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} must be a tensor, not {type(tensor).__name__} (return_tensors='pt' makes one)")
    if tensor.device != device:
        raise InputError(f"{name} is on {tensor.device} and the model on {device}: pass {name}.to({str(device)!r})")


def _checked_ids(ids: Tensor, device: torch.device) -> Tensor:
    _check_device("input_ids", ids, device)
    if ids.ndim != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"input_ids must be [batch, tokens] integers, not {list(ids.shape)} {ids.dtype}")
    if ids.shape[0] == 0:
        raise InputError("input_ids has no rows: give at least one prompt")
    return ids.long()


def _initial_ids(embeds: Tensor | None, mask: Tensor | None, bos: int | None, device: torch.device) -> Tensor:
    """No tokens in front of embeddings; else the token that begins a text, for as many rows as the mask has."""
    if embeds is not None:
        return torch.empty(embeds.shape[0], 0, dtype=torch.int64, device=device)
    if bos is None:
        raise InputError("there is no prompt and no bos_token_id to begin with: give input_ids or bos_token_id")
    return torch.full((1 if mask is None else mask.shape[0], 1), bos, dtype=torch.int64, device=device)


def _checked_embeds(embeds: Tensor | None, ids: Tensor, dtype: torch.dtype) -> Tensor | None:
    if embeds is None:
        if ids.shape[1] == 0:
            raise InputError("input_ids has no tokens: give at least one, or leave it out to begin with bos_token_id")
        return None
    if embeds.ndim != 3 or embeds.shape[1] == 0:
        raise InputError(f"inputs_embeds must be [batch, positions, hidden size], not {list(embeds.shape)}")
    if embeds.dtype != dtype:
        raise InputError(f"inputs_embeds is {embeds.dtype} and the model {dtype}: pass inputs_embeds.to({dtype})")
    if embeds.shape[0] != ids.shape[0]:
        raise InputError(f"inputs_embeds has {embeds.shape[0]} rows and input_ids {ids.shape[0]}: make them equal")
    return embeds


def _inferred_mask(prompt: Prompt, pad: int | None, eos: Sequence[int]) -> Tensor:
    """1 everywhere, or 0 at padding where it can be told."""
    ids = prompt.ids
    if pad is not None and pad not in eos and ids.shape[1] == prompt.length:
        return (ids != pad).long()
    return torch.ones(prompt.content.shape[:2], dtype=torch.int64, device=ids.device)


def _checked_mask(mask: Tensor, prompt: Prompt) -> Tensor:
    wanted = (prompt.rows, prompt.length)
    if mask.shape != wanted:
        raise InputError(
            f"attention_mask must be {list(wanted)} (rows, positions of the prompt with cached ones), "
            f"not {list(mask.shape)}"
        )
    return (mask != 0).long()


def _checked_positions(positions: Tensor, prompt: Prompt) -> Tensor:
    if positions.ndim != 2 or positions.shape[0] not in (1, prompt.rows) or positions.shape[1] != prompt.length:
        raise InputError(f"position_ids must be {[prompt.rows, prompt.length]}, not {list(positions.shape)}")
    return positions.long().expand(prompt.rows, -1)


def _notice_right_padding(prompt: Prompt, mask: Tensor) -> None:
    if prompt.rows > 1 and not bool(mask[:, -1].all()):
        logger.warning(
            "rows of the prompt end in padding, so their answers continue padding: pad on the left "
            "(padding_side='left' in the tokenizer)"
        )


def checked_cache(cache: object, prompt: Prompt, beams: int = 1) -> Cache | None:
    """The cache to continue from, if one is given and leaves something of the prompt to do.

    Args:
        cache: what is given.
        prompt: what it is the beginning of.
        beams: rows that it may have for each of the prompt's, besides one.

    Raises:
        InputError: it is no cache, holds the whole prompt already, or other rows.
    """
    if cache is None:
        return None
    cache = cache_base.checked_cache(cache)
    stored = cache.get_seq_length()
    if stored >= prompt.length:
        raise InputError(
            f"past_key_values holds {stored} positions and the prompt has only {prompt.length}: the prompt must "
            f"contain the cached tokens and at least one more. Or crop the cache: .crop({prompt.length - 1})"
        )
    if stored and cache.rows not in (prompt.rows, prompt.rows * beams):
        raise InputError(
            f"past_key_values holds {cache.rows} rows and the prompt has {prompt.rows}: give the same rows, or "
            "change the cache with .select(rows)"
        )
    return cache
