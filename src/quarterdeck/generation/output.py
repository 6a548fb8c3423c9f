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


@dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """The texts that a beam search found and, if asked for, how. One entry of each tuple per step.

    Shapes: B prompts, n beams of each, R texts of each that were asked for, T tokens (prompt included), N new ones, V
    words of the vocabulary, L layers, H heads, E hidden size. Prompts are run once and then copied: what the first
    step has of them is the same for all beams.

    Attributes:
        sequences: [B * R, T] int64, prompt and text, the best of each prompt first.
        sequences_scores: [B * R] float32, with ``output_scores``: the sum of the log-probabilities (after the
            processors) of the text's tokens, divided by their number to the power of ``length_penalty``.
        scores: per step [B * n, V] float32, log-probabilities after the logits processors.
        logits: per step [B * n, V] float32, as they came from the model.
        beam_indices: [B * R, N] int64, the row of ``scores`` that each token was chosen in; -1 behind the end.
        attentions: per step L tensors [B * n, H, new tokens, all tokens].
        hidden_states: per step L + 1 tensors [B * n, new tokens, E].
        past_key_values: the cache, of the beams that were running at the end.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: Cache | None = None
