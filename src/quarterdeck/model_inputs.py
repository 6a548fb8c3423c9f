"""From the arguments of ``forward`` to what the layers share: inputs checked, positions and visibility worked out once.

Shapes: ``B`` sequences, ``T`` new positions, ``E`` hidden size, ``D`` head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from quarterdeck.attention.dispatch import AttentionFunction, get_attention
from quarterdeck.attention.mask import AttentionMask, check_positions, check_tensor, make_mask, packed_documents
from quarterdeck.attention.packing import PackedLengths, documents_of, given_lengths
from quarterdeck.cache import Cache, DynamicCache
from quarterdeck.cache.base import checked_cache
from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError


@dataclass(frozen=True)
class LayerInputs:
    """What all layers of one forward pass share, besides the states that go from one to the next.

    Attributes:
        tables: cos and sin, ``[B or 1, T, D / 2]`` each.
        masks: who sees whom, for each window that a layer has.
        cache: where keys and values are kept, if they are.
        cache_position: ``[T]`` places in the cache, where they are given.
        attend: the attention backend.
        device: where the tensors are.
    """

    tables: tuple[Tensor, Tensor]
    masks: dict[int | None, AttentionMask]
    cache: Cache | None
    cache_position: Tensor | None
    attend: AttentionFunction
    device: torch.device
    _elsewhere: dict[torch.device, LayerInputs] = field(default_factory=dict, repr=False, compare=False)

    def attended(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None,
        scale: float,
        dropout: float,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of a layer's queries ``[B, H, T, D]`` to the new keys and values and to those in the cache.

        ``window`` is the layer's, ``scale`` and ``dropout`` are the backend's; so are output and weights.
        """
        mask = self.masks[window]
        if self.cache is None:
            return self.attend(query, key, value, mask, scale=scale, dropout=dropout)
        place = self.cache_position
        return self.cache.attend(
            layer_idx, query, key, value, mask, self.attend, scale=scale, dropout=dropout, cache_position=place
        )

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> LayerInputs:
        """The same for layers on another device, moved once for all of them there; the cache stays as it is.

        The hooks of a model that is divided among devices call it for every module that gets these inputs.
        """
        place = torch.device(device)
        if place == self.device:
            return self
        if place not in self._elsewhere:
            self._elsewhere[place] = replace(
                self,
                tables=(self.tables[0].to(place), self.tables[1].to(place)),
                masks={window: mask.to(place) for window, mask in self.masks.items()},
                cache_position=None if self.cache_position is None else self.cache_position.to(place),
                device=place,
                _elsewhere=self._elsewhere,
            )
        return self._elsewhere[place]


def make_layer_inputs(
    config: CohereConfig,
    x: Tensor,
    rotary: Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]],
    *,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    cache_position: Tensor | None,
    has_padding: bool | None,
    backend: str | None,
    packed: PackedLengths | None = None,
) -> LayerInputs:
    """Everything about positions and visibility, once for all layers.

    With a ``cache_position``, the cache is not asked how much it holds: a program compiled for one step then fits
    every step, and nobody waits for the device.

    Args:
        config: the model's configuration.
        x: ``[B, T, E]`` the embedded input.
        rotary: makes tables of positions ``[B or 1, T]``.
        backend: name of the attention backend, in place of the configuration's.
        attention_mask, position_ids, cache, cache_position, has_padding, packed: see ``CohereModel.forward``.

    Raises:
        InputError: shapes that do not fit.
    """
    batch, length, device = x.shape[0], x.shape[1], x.device
    check_positions(position_ids, cache_position, batch, length)
    start = cache.get_seq_length() if cache is not None and cache_position is None else 0
    keys = length if cache is None else cache.key_length(length)
    begins = given_lengths(packed or {})
    documents = None
    if begins is not None:
        _check_alone(attention_mask, cache_position, keys - length)
        documents = documents_of(begins.to(device), batch, length)
    elif position_ids is not None and attention_mask is None and cache is None:
        documents = packed_documents(position_ids.expand(batch, -1))
    masks = {
        window: make_mask(
            attention_mask,
            batch=batch,
            queries=length,
            keys=keys,
            start=start,
            positions=cache_position,
            device=device,
            heads=config.num_attention_heads,
            documents=documents,
            window=window,
            has_padding=has_padding,
        )
        for window in {config.layer_spec(i).attention_window for i in range(config.num_hidden_layers)}
    }
    if position_ids is None:
        order = torch.arange(start, start + length, device=device) if cache_position is None else cache_position
        position_ids = order[None]
    attend = get_attention(backend or config.attn_implementation)
    cos, sin = rotary(position_ids, x.dtype)
    return LayerInputs((cos.to(device), sin.to(device)), masks, cache, cache_position, attend, device)


def _check_alone(attention_mask: Tensor | None, cache_position: Tensor | None, stored: int) -> None:
    """Packed rows come whole and without padding."""
    if attention_mask is not None or cache_position is not None or stored:
        raise InputError(
            "cu_seq_lens_q says who sees whom, in whole rows: leave out attention_mask, cache_position and "
            "past_key_values"
        )


def cache_to_use(
    config: CohereConfig, given: Any, use_cache: bool | None, recomputes: bool
) -> tuple[Cache | None, bool]:
    """The cache of this pass, a new one if none is given, and whether to return it.

    Args:
        config: the model's configuration.
        given: the caller's cache, if any.
        use_cache: whether one is wanted; ``None`` lets the configuration say.
        recomputes: whether layers will be run twice, which a cache would not survive.

    Raises:
        InputError: what is given is no cache of ours, has too few layers, or cannot be used.
    """
    if recomputes and (use_cache or given is not None):
        raise InputError("gradient checkpointing in training takes no cache: drop use_cache, past_key_values")
    wanted = (config.use_cache and not recomputes) if use_cache is None else use_cache
    if given is None:
        return DynamicCache() if wanted else None, wanted
    cache = checked_cache(given)
    cache.layer(config.num_hidden_layers - 1)  # which a StaticCache may not have
    return cache, wanted


def embedded_inputs(embedding: nn.Embedding, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """``[B, T, E]``: the given embeddings, or those of the given ids ``[B, T]``.

    Raises:
        InputError: both or none are given, shapes or types do not fit, an id is out of range.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("You must specify exactly one of input_ids or inputs_embeds")
    if inputs_embeds is not None:
        check_tensor("inputs_embeds", inputs_embeds)
        shape, width = list(inputs_embeds.shape), embedding.embedding_dim
        if len(shape) != 3 or shape[-1] != width or 0 in shape:
            raise InputError(f"inputs_embeds has shape {shape}, but must be [batch, positions, {width}]")
        return inputs_embeds
    check_tensor("input_ids", input_ids)
    assert input_ids is not None
    if input_ids.ndim != 2 or not input_ids.numel() or input_ids.is_floating_point():
        raise InputError(f"input_ids must be integers [B, T], not {input_ids.dtype} {list(input_ids.shape)}")
    try:
        embedded: Tensor = embedding(input_ids)
    except IndexError as error:
        low, high, limit = int(input_ids.min()), int(input_ids.max()), embedding.num_embeddings
        raise InputError(f"input_ids go from {low} to {high}, but must be in 0 to {limit - 1}") from error
    return embedded


def next_step_inputs(
    input_ids: Tensor,
    past_key_values: Cache | None = None,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool = True,
) -> dict[str, Any]:
    """Arguments of ``forward`` for the next step of a generation, given all of the text so far.

    What the cache holds already is left out; positions count real tokens, and pads stand at 1.

    Args:
        input_ids: ``[B, n]`` all tokens, past and new.
        past_key_values: the cache, which holds the first of them.
        attention_mask: ``[B, n]``, 1 for real tokens.
        inputs_embeds: ``[B, n, E]`` what begins the text, in place of ids, as long as nothing is in the cache.
        use_cache: whether keys and values are kept.
    """
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    inputs: dict[str, Any] = {"past_key_values": past_key_values, "use_cache": use_cache}
    if inputs_embeds is not None and not past:
        inputs["inputs_embeds"] = inputs_embeds
    else:
        inputs["input_ids"] = input_ids[:, past:]
    if attention_mask is not None:
        positions = (attention_mask.cumsum(dim=-1) - 1).masked_fill(attention_mask == 0, 1)
        inputs |= {"attention_mask": attention_mask, "position_ids": positions[:, past:]}
    return inputs
