"""The Cohere architecture, from the bottom up, and nothing else.

A decoder of parallel blocks: one norm, then attention and feed-forward side by side, both added to the stream.

    x = embed(tokens)
    for each layer:   n = norm(x);   x = x + attention(n) + mlp(n)
    logits = (norm(x) @ embed^T) * logit_scale

What differs from Llama: layer norms subtract the mean and have no bias; rotary positions turn neighbouring
channels (2i, 2i + 1); queries and keys may be normalised per head; the head is tied and its logits are scaled.

Shapes: ``B`` sequences, ``T`` new positions, ``S`` positions to attend to, ``E`` hidden size, ``H`` query heads,
``G`` key-value heads, ``D`` head width, ``F`` feed-forward width, ``V`` vocabulary, ``K`` positions with logits.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from quarterdeck.activations import ACTIVATIONS
from quarterdeck.attention.packing import PackedLengths
from quarterdeck.cache import Cache
from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation.mixin import GenerationMixin
from quarterdeck.loss import next_token_loss
from quarterdeck.model_inputs import LayerInputs, cache_to_use, embedded_inputs, make_layer_inputs, next_step_inputs
from quarterdeck.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from quarterdeck.pretrained import PreTrainedModel
from quarterdeck.rope import depends_on_length, rope_frequencies


class CohereLayerNorm(nn.Module):
    """Layer norm with a weight and no bias, over the last dimension; computed in float32, rounded once."""

    def __init__(self, shape: int | tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``(x - mean) / sqrt(variance + eps) * weight``; a ``[heads, D]`` weight normalises each head by itself."""
        if self.weight.ndim == 1 and self.weight.dtype == x.dtype:
            return functional.layer_norm(x, self.weight.shape, self.weight, eps=self.eps)  # all at once
        normed = functional.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return (normed * self.weight.float()).to(x.dtype)


class CohereRotaryEmbedding(nn.Module):
    """Tables of cos and sin for given positions.

    The frequencies are no buffer: ``half()`` and ``to(bfloat16)`` would round them, and a relative error of 1/256
    in a frequency turns position 1000 by several radians.
    """

    def __init__(self, config: CohereConfig) -> None:
        super().__init__()
        self.config = config
        self.inv_freq = rope_frequencies(config).inverse
        self.attention_scaling = rope_frequencies(config).scale

    def _apply(self, fn: Any, recurse: bool = True) -> CohereRotaryEmbedding:
        """Follow the module to its device, not to its type."""
        device = fn(torch.empty(0, device=self.inv_freq.device)).device
        self.inv_freq = self.inv_freq.to(self.inv_freq.device if device.type == "meta" else device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no annotation here
        return self

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions ``[B, T]`` to cos and sin, ``[B, T, D / 2]`` each, in ``dtype`` unless the config keeps float32."""
        inv_freq, scale = self.inv_freq, self.attention_scaling
        if depends_on_length(self.config):
            frequencies = rope_frequencies(self.config, length=int(position_ids.max()) + 1)
            inv_freq, scale = frequencies.inverse, frequencies.scale
        # an elementwise product: a matrix product could be rounded to TF32, which is wrong from position 2048 on
        angles = position_ids[:, :, None].float() * inv_freq.to(position_ids.device)  # [B, T, D/2]
        table_dtype = torch.float32 if self.config.rope_table_dtype == "float32" else dtype
        return (angles.cos() * scale).to(table_dtype), (angles.sin() * scale).to(table_dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each channel pair (2i, 2i + 1) of ``x`` ``[B, heads, T, D]`` by its angle, in float32."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()  # [B, heads, T, D/2]
    cos, sin = cos[:, None].float(), sin[:, None].float()
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class CohereAttention(nn.Module):
    """Multi-head attention with ``G`` key-value heads for ``H`` query heads."""

    def __init__(self, config: CohereConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.spec = config.layer_spec(layer_idx)
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        heads, groups, bias = config.num_attention_heads, config.num_key_value_heads, config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, groups * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, groups * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=bias)
        self.q_norm = self.k_norm = None
        if config.use_qk_norm:
            self.q_norm = CohereLayerNorm((heads, self.head_dim), config.layer_norm_eps)
            self.k_norm = CohereLayerNorm((groups, self.head_dim), config.layer_norm_eps)

    def forward(self, x: Tensor, shared: LayerInputs) -> tuple[Tensor, Tensor | None]:
        """``[B, T, E]`` to ``[B, T, E]`` and, where the backend has them, the weights ``[B, H, T, S]``."""
        query = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # [B, T, H, D]
        key = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # [B, T, G, D]
        value = self.v_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, G, T, D]
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if self.spec.rotary:
            query, key = rotate(query, *shared.tables), rotate(key, *shared.tables)
        dropout = self.attention_dropout if self.training else 0.0
        window = self.spec.attention_window
        output, weights = shared.attended(
            self.layer_idx, query, key, value, window=window, scale=self.scaling, dropout=dropout
        )
        return self.o_proj(output.transpose(1, 2).flatten(2)), weights


class CohereMLP(nn.Module):
    """Gated feed-forward block."""

    def __init__(self, config: CohereConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACTIVATIONS[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, E]`` through ``[B, T, F]`` to ``[B, T, E]``."""
        hidden: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return hidden


class CohereDecoderLayer(nn.Module):
    """Attention and feed-forward side by side on one normed input."""

    def __init__(self, config: CohereConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = CohereAttention(config, layer_idx)
        self.mlp = CohereMLP(config)
        self.input_layernorm = CohereLayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, shared: LayerInputs) -> tuple[Tensor, Tensor | None]:
        """``[B, T, E]`` to ``[B, T, E]`` and the attention weights, if the backend has them."""
        normed = self.input_layernorm(x)
        attended, weights = self.self_attn(normed, shared)
        return x + attended + self.mlp(normed), weights


class CohereModel(PreTrainedModel):
    """The decoder without a head: tokens to hidden states."""

    supports_gradient_checkpointing: ClassVar[bool] = True
    _no_split_modules: ClassVar[tuple[str, ...]] = ("CohereDecoderLayer",)

    def __init__(self, config: CohereConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(CohereDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = CohereLayerNorm(config.hidden_size, config.layer_norm_eps)
        self.rotary_emb = CohereRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.gradient_checkpointing_kwargs: dict[str, Any] = {}
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        return_dict: bool | None = None,
        has_padding: bool | None = None,
        **packed: Unpack[PackedLengths],
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Run the decoder on ``T`` new positions.

        Args:
            input_ids: ``[B, T]`` token ids; give these or ``inputs_embeds``.
            attention_mask: ``[B, past + T]``, 1 for real tokens; or a finished ``[B or 1, H or 1, T, S]``, boolean
                or additive, which then replaces the causal rule.
            position_ids: ``[B or 1, T]``; default: the positions follow on from the cache, padding counted.
                Rows in which they restart hold several documents, which do not see each other; as in
                transformers this is looked for only without a mask and without a cache: ``use_cache=False``.
            past_key_values: a cache, which is extended in place.
            inputs_embeds: ``[B, T, E]`` instead of ``input_ids``.
            cache_position: ``[T]`` where the new positions stand in the cache; default: behind what is there. A
                :class:`StaticCache` then reads nothing from the device: one compiled program fits all steps.
            use_cache: whether to return a cache, a new :class:`DynamicCache` if none is given.
            output_attentions: return the attention weights; computed by the eager backend, whatever is set.
            output_hidden_states: return the states between the layers.
            return_dict: False returns a tuple.
            has_padding: whether a 2-D ``attention_mask`` holds zeros, if you know: finding out takes a look at it,
                for which the host waits. False promises that there are none.
            packed: where documents begin in packed rows, from a collator: :class:`PackedLengths`.

        Raises:
            InputError: arguments that contradict each other or whose shapes do not fit.
        """
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        recomputes = self.gradient_checkpointing and self.training
        cache, returns_cache = cache_to_use(self.config, past_key_values, use_cache, recomputes)
        x = embedded_inputs(self.embed_tokens, input_ids, inputs_embeds)
        shared = make_layer_inputs(
            self.config,
            x,
            self.rotary_emb,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            cache_position=cache_position,
            has_padding=has_padding,
            backend="eager" if attentions else None,
            packed=packed,
        )

        all_states: list[Tensor] = []
        all_weights: list[Tensor | None] = []
        for layer in self.layers:
            if states:
                all_states.append(x)
            x, weights = self._recomputed(layer, x, shared) if recomputes else layer(x, shared)
            if attentions:
                all_weights.append(weights)
        x = self.norm(x)
        output = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache if returns_cache else None,
            hidden_states=(*all_states, x) if states else None,
            attentions=tuple(all_weights) if attentions else None,  # type: ignore[arg-type]  # eager has them
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _recomputed(self, layer: nn.Module, x: Tensor, shared: LayerInputs) -> tuple[Tensor, Tensor | None]:
        """One layer, the inside of which is computed again on the way back."""
        options = {"use_reentrant": False, **self.gradient_checkpointing_kwargs}
        result: tuple[Tensor, Tensor | None] = checkpoint(layer, x, shared, **options)
        return result


class CohereForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model: the decoder and its output head."""

    supports_gradient_checkpointing: ClassVar[bool] = True
    _no_split_modules: ClassVar[tuple[str, ...]] = ("CohereDecoderLayer",)
    loss_function = staticmethod(next_token_loss)
    _tied_weights: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: CohereConfig) -> None:
        super().__init__(config)
        self.model = CohereModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """The output head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the output head."""
        self.lm_head = new_embeddings

    def get_decoder(self) -> CohereModel:
        """The model without its head."""
        return self.model

    def set_decoder(self, decoder: CohereModel) -> None:
        """Replace the model without its head."""
        self.model = decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        has_padding: bool | None = None,
        **packed: Unpack[PackedLengths],
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Next-token logits; arguments that are not here are those of :meth:`CohereModel.forward`.

        Args:
            labels: ``[B, T]`` ids to predict, usually ``input_ids`` themselves (they are shifted here); -100 is
                left out of the loss.
            logits_to_keep: compute logits only for the last so many positions (0: all), or for the positions in
                a 1-D tensor. No others are ever materialised.
            num_items_in_batch: divide the summed loss by this instead of the number of labels here.
        """
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise InputError("labels need the logits of all positions: leave logits_to_keep at 0")
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            cache_position,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict=True,
            has_padding=has_padding,
            **packed,
        )
        states = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep.to(states.device)
        # out of place: what the head returned may be kept by a hook, or be the head's own
        logits = self.lm_head(states[:, kept]) * self.config.logit_scale  # [B, K, V]
        output = CausalLMOutputWithPast(
            loss=None if labels is None else self.loss_function(logits, labels, num_items_in_batch=num_items_in_batch),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def prepare_inputs_for_generation(self, input_ids: Tensor, **given: Any) -> dict[str, Any]:
        """Arguments of ``forward`` for the next step of a generation, for programs with a loop of their own.

        See :func:`~quarterdeck.model_inputs.next_step_inputs`, which takes and refuses the other arguments.
        """
        return next_step_inputs(input_ids, **given)
