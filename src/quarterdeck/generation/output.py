"""What `generate` returns when it is asked for more than the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quarterdeck.cache.base import Cache
from quarterdeck.outputs import ModelOutput


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """Tokens and, if asked for, how they came about. One entry of each tuple per step.

    Shapes: B rows, T tokens (prompt included), V words of the vocabulary, L layers, H heads, E hidden size.

    Attributes:
        sequences: [B, T] int64, prompt and answer; finished rows are padded.
        scores: per step [B, V] float32, after the logits processors.
        logits: per step [B, V] float32, as they came from the model.
        attentions: per step L tensors [B, H, new tokens, all tokens].
        hidden_states: per step L + 1 tensors [B, new tokens, E].
        past_key_values: the cache; it holds all tokens but the last.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None
