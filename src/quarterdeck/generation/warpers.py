"""What reshapes the distribution before a draw: temperature, then filters that cut off its tail.

Every filter sets what it removes to -inf, always keeps the most likely token, never writes into its input. With
``min_tokens_to_keep`` it always keeps so many of them: beams need others to go on with where the likeliest is the end.
Each has the name and the arithmetic that it has in transformers; the order is that of ``assemble``.

Shapes: B rows, V words of the vocabulary; scores [B, V] float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quarterdeck.generation.processors import LogitsProcessor

SMALL_SUPPORT = 1024
"""With at most this many tokens left, `TopPLogitsWarper` sorts those instead of the whole vocabulary."""


class TemperatureLogitsWarper(LogitsProcessor):
    """Divides the scores by the temperature: below 1 sharper, above 1 flatter."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The divided scores."""
        return scores / self.temperature


class TopKLogitsWarper(LogitsProcessor):
    """Keeps the ``top_k`` most likely tokens, and those as likely as the last of them."""

    def __init__(self, top_k: int, min_tokens_to_keep: int = 1) -> None:
        self.top_k = max(top_k, min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The filtered scores."""
        least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
        return scores.masked_fill(scores < least, -math.inf)


class TopPLogitsWarper(LogitsProcessor):
    """Keeps the smallest set of likely tokens that has probability ``top_p`` (Holtzman et al., 2019)."""

    def __init__(self, top_p: float, min_tokens_to_keep: int = 1) -> None:
        self.top_p = top_p
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The filtered scores."""
        if scores.shape[-1] > SMALL_SUPPORT:
            left = int((scores > -math.inf).sum(dim=-1).max())
            if 0 < left <= SMALL_SUPPORT:
                return self._filter_few(scores, left)
        return scores.masked_fill(self._outside(scores), -math.inf)

    def _outside(self, scores: Tensor) -> Tensor:
        """Which tokens lie outside the nucleus, by sorting them all."""
        ascending, order = scores.sort(dim=-1)
        remove = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
        remove[:, -self.min_tokens_to_keep :] = False
        return remove.scatter(-1, order, remove)

    def _filter_few(self, scores: Tensor, left: int) -> Tensor:
        """The same where at most ``left`` tokens are above -inf (after top-k, say): sorts only those.

        Where several tokens at the border are exactly as likely, either way keeps an arbitrary one of them.
        """
        ids = scores.topk(left, sorted=False).indices
        few = scores.gather(-1, ids)
        few = few.masked_fill(self._outside(few), -math.inf)
        return scores.scatter(-1, ids, few)


class MinPLogitsWarper(LogitsProcessor):
    """Keeps tokens at least ``min_p`` times as likely as the most likely one (Nguyen et al., 2024)."""

    def __init__(self, min_p: float, min_tokens_to_keep: int = 1) -> None:
        self.min_p = min_p
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The filtered scores."""
        probabilities = scores.softmax(dim=-1)
        least = self.min_p * probabilities.amax(dim=-1, keepdim=True)
        return _drop_unlikely(scores, probabilities, least, self.min_tokens_to_keep)


class TypicalLogitsWarper(LogitsProcessor):
    """Keeps the tokens whose surprise is closest to the entropy, up to ``mass`` (Meister et al., 2022)."""

    def __init__(self, mass: float, min_tokens_to_keep: int = 1) -> None:
        self.mass = mass
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The filtered scores."""
        log_p = scores.log_softmax(dim=-1)
        entropy = -(log_p * log_p.exp()).nansum(dim=-1, keepdim=True)
        distance, order = (-log_p - entropy).abs().sort(dim=-1)
        cumulative = scores.gather(-1, order).softmax(dim=-1).cumsum(dim=-1)
        last = (cumulative < self.mass).sum(dim=-1, keepdim=True).clamp_(max=scores.shape[-1] - 1)
        remove = distance > distance.gather(-1, last)
        remove[:, : self.min_tokens_to_keep] = False
        return scores.masked_fill(remove.scatter(-1, order, remove), -math.inf)


def _drop_unlikely(scores: Tensor, probabilities: Tensor, least: Tensor | float, keep: int) -> Tensor:
    """Scores without the tokens less likely than ``least``, unless they are among the ``keep`` most likely ones."""
    best = scores.amax(dim=-1, keepdim=True)
    kept = best if keep == 1 else scores.topk(min(keep, scores.shape[-1])).values[:, -1:]
    remove = (probabilities < least) & (scores < kept)
    return scores.masked_fill(remove, -math.inf)


class EpsilonLogitsWarper(LogitsProcessor):
    """Keeps tokens of probability ``epsilon`` or more (Hewitt et al., 2022)."""

    def __init__(self, epsilon: float, min_tokens_to_keep: int = 1) -> None:
        self.epsilon = epsilon
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The filtered scores."""
        return _drop_unlikely(scores, scores.softmax(dim=-1), self.epsilon, self.min_tokens_to_keep)


class EtaLogitsWarper(LogitsProcessor):
    """Keeps tokens of probability ``min(epsilon, sqrt(epsilon) * exp(-entropy))`` or more (Hewitt 2022)."""

    def __init__(self, epsilon: float, min_tokens_to_keep: int = 1) -> None:
        self.epsilon = epsilon
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The filtered scores."""
        epsilon = torch.tensor(self.epsilon, device=scores.device)
        log_p = scores.log_softmax(dim=-1).clamp(min=torch.finfo(scores.dtype).min)
        probabilities = scores.softmax(dim=-1)
        entropy = -(log_p * log_p.softmax(dim=-1)).sum(dim=-1, keepdim=True)
        least = torch.minimum(epsilon, epsilon.sqrt() * torch.exp(-entropy))
        return _drop_unlikely(scores, probabilities, least, self.min_tokens_to_keep)


class LogitNormalization(LogitsProcessor):
    """Turns the scores into log probabilities (``renormalize_logits``)."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The logarithm of the softmax."""
        return scores.log_softmax(dim=-1)
