"""A forward pass as it will be or has been: the mask that the model makes for it, and the weights that come of it.

The mask is not drawn from a rule of its own. The arguments of `CohereModel.forward` go to `make_layer_inputs`, which
``forward`` itself calls, together with a cache of the kind that ``forward`` would get; that cache holds keys of no
width, so that nothing is allocated, however long the text.

Shapes: ``B`` sequences, ``L`` layers, ``H`` heads, ``T`` queries, ``S`` keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quarterdeck.attention.mask import AttentionMask
from quarterdeck.cache import Cache, DynamicCache, StaticCache
from quarterdeck.config import CohereConfig
from quarterdeck.model import CohereModel
from quarterdeck.model_inputs import make_layer_inputs


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass over the end of a text whose beginning, if any, is in the cache.

    Attributes:
        input_ids: ``[B, n]`` all of the text.
        positions: ``[B, n]`` position of every token.
        start: how many tokens are in the cache.
        padding: ``[B, n]``, 1 for real tokens; None if all are.
        is_packed: rows hold several texts, told apart by their positions.
        slots: size of the static cache; None for one that grows, or none.
    """

    input_ids: Tensor
    positions: Tensor
    start: int = 0
    padding: Tensor | None = None
    is_packed: bool = False
    slots: int | None = None

    @property
    def has_cache(self) -> bool:
        """Whether there is a cache at all."""
        return self.start > 0 or self.slots is not None

    def attention_mask(self, end: int) -> Tensor | None:
        """What ``forward`` is given of that name for tokens that end at ``end``."""
        return None if self.padding is None else self.padding[:, :end]

    def position_ids(self, begin: int, end: int) -> Tensor | None:
        """Likewise, for tokens ``begin`` to ``end``: only where positions do not simply count, as in generation."""
        counts = self.padding is None and not self.is_packed
        return None if counts else self.positions[:, begin:end]


def mask_of(config: CohereConfig, run: Pass, layer: int = 0) -> AttentionMask:
    """The mask that a layer of the model is given in this pass."""
    batch, length = run.input_ids.shape
    inputs = make_layer_inputs(
        config,
        torch.empty(batch, length - run.start, 0),
        _no_tables,
        attention_mask=run.attention_mask(length),
        position_ids=run.position_ids(run.start, length),
        cache=_weightless_cache(run, batch) if run.has_cache else None,
        cache_position=None,
        has_padding=None,
        backend="eager",
    )
    return inputs.masks[config.layer_spec(layer).attention_window]


@torch.no_grad()
def weights_of(model: CohereModel, run: Pass) -> Tensor:
    """``[B, L, H, T, S]`` in float32: the attention weights of a real pass, run with the eager backend.

    Every module of the model is in evaluation meanwhile, and in its own mode again afterwards.
    """
    length = run.input_ids.shape[1]
    cache = _real_cache(model.config, run)
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        if run.start:
            _forward(model, run, 0, run.start, cache, False)
        attentions = _forward(model, run, run.start, length, cache, True)["attentions"]
    finally:
        for module in was_training:
            module.training = True
    return torch.stack([layer.float().cpu() for layer in attentions], dim=1)


def _forward(
    model: CohereModel, run: Pass, begin: int, end: int, cache: Cache | None, output_attentions: bool
) -> Mapping[str, Any]:
    device = model.embed_tokens.weight.device
    mask, positions = run.attention_mask(end), run.position_ids(begin, end)
    output = model(
        run.input_ids[:, begin:end].to(device),
        attention_mask=None if mask is None else mask.to(device),
        position_ids=None if positions is None else positions.to(device),
        past_key_values=cache,
        use_cache=cache is not None,
        output_attentions=output_attentions,
        return_dict=True,
    )
    assert isinstance(output, Mapping)
    return output


def _real_cache(config: CohereConfig, run: Pass) -> Cache | None:
    if not run.has_cache:
        return None
    return DynamicCache() if run.slots is None else StaticCache(config, run.slots)


def _weightless_cache(run: Pass, batch: int) -> Cache:
    """A cache that holds the first ``start`` tokens, as keys and values of width 0 in its first layer."""
    cache: Cache = DynamicCache() if run.slots is None else StaticCache(_NoWidth(), run.slots)
    nothing = torch.empty(batch, 1, run.start, 0)
    cache.update(nothing, nothing, 0)
    return cache


@dataclass
class _NoWidth:
    """A model of one layer, whose keys take no memory."""

    num_hidden_layers: int = 1
    num_key_value_heads: int = 1
    head_dim: int = 0


def _no_tables(positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """In place of rotary embedding, which has no part in masks."""
    nothing = torch.empty(0, dtype=dtype)
    return nothing, nothing
