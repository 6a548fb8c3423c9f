"""A mark in generated text that a reader does not see and a statistic finds (Kirchenbauer et al., 2023).

At every step a part of the vocabulary is "green", chosen by chance from a key and the tokens before, and gets a little
more score. Text with far more green tokens than chance would give was made with the key. Which tokens are green is
the same as in transformers, so that its ``WatermarkDetector`` finds the mark.

Shapes: B rows, T tokens so far, V words of the vocabulary.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from quarterdeck.generation.processors import LogitsProcessor
from quarterdeck.generation.watermark_config import WatermarkingConfig

logger = logging.getLogger(__name__)

_TABLE_SIZE = 1_000_003
_TRIED = 40
"""With "selfhash", the most likely tokens that are looked at; the others are never green."""


class WatermarkLogitsProcessor(LogitsProcessor):
    """Adds ``bias`` to the scores of the green tokens.

    Args:
        config: how text is marked.
        vocab_size: V.
        device: where the scores are; what is green depends on the device's random numbers.
    """

    def __init__(self, config: WatermarkingConfig, vocab_size: int, device: torch.device) -> None:
        self.config = config
        self._vocab_size = vocab_size
        self._green_count = int(vocab_size * config.greenlist_ratio)
        self._chance = torch.Generator(device=device).manual_seed(config.hashing_key)
        self._table = torch.randperm(_TABLE_SIZE, generator=self._chance, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores with the bias; unchanged while there are fewer tokens than ``context_width``."""
        if input_ids.shape[1] < self.config.context_width:
            logger.warning("fewer tokens than context_width=%d: no watermark here", self.config.context_width)
            return scores
        marked = scores.clone()
        for row, ids in enumerate(input_ids):
            green = self._self_green(ids, scores[row]) if self._is_self_hash else self._green(ids)
            marked[row, green] += self.config.bias
        return marked

    @property
    def _is_self_hash(self) -> bool:
        return self.config.seeding_scheme == "selfhash"

    def _green(self, ids: Tensor) -> Tensor:
        """The green tokens, as the ids [T] decide."""
        self._chance.manual_seed(self._seed(ids) % (2**64 - 1))
        shuffled = torch.randperm(self._vocab_size, generator=self._chance, device=ids.device)
        return shuffled[: self._green_count]

    def _seed(self, ids: Tensor) -> int:
        if not self._is_self_hash:
            return self.config.hashing_key * int(ids[-1])
        hashed = self._table[ids[-self.config.context_width :] % _TABLE_SIZE] + 1
        return int((self.config.hashing_key * hashed * hashed[-1]).min())

    def _self_green(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Those of the most likely tokens that would be green behind ``ids`` if they were chosen."""
        likely = scores.sort(descending=True).indices[:_TRIED]
        chosen = [token for token in likely if bool((self._green(torch.cat((ids, token[None]))) == token).any())]
        return torch.stack(chosen) if chosen else likely[:0]
