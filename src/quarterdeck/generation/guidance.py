"""Classifier-free guidance: away from what the model says to another prompt (Sanchez et al., 2023).

Shapes: B rows, T tokens so far, N tokens of the other prompt, V words of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quarterdeck.cache.dynamic import DynamicCache
from quarterdeck.errors import InputError
from quarterdeck.generation.core import CausalModel, Forward, last_logits
from quarterdeck.generation.inputs import Prompt
from quarterdeck.generation.processors import LogitsProcessor


class UnbatchedClassifierFreeGuidanceLogitsProcessor(LogitsProcessor):
    """Runs the model on another prompt with the same answer behind it, and exaggerates the difference.

    With ``u`` the log probabilities there and ``c`` those here, the scores become ``u + guidance_scale * (c - u)``.
    For one call of `generate`, since it keeps a cache; rows keep their places, so not for beams.

    Args:
        guidance_scale: above 1 away from the other prompt, 1 without effect, below 1 towards it.
        model: the model that generates.
        unconditional_ids: [B, N] int64, the other prompt; None is the last token of the prompt.
        unconditional_attention_mask: [B, N], 0 for padding; None if there is none.
        use_cache: keep keys and values of the other text instead of reading it again at every step.
    """

    def __init__(
        self,
        guidance_scale: float,
        model: CausalModel,
        unconditional_ids: Tensor | None = None,
        unconditional_attention_mask: Tensor | None = None,
        use_cache: bool = True,
    ) -> None:
        self.guidance_scale = guidance_scale
        self._model = model
        self._ids = unconditional_ids
        self._mask = unconditional_attention_mask
        self._cache = DynamicCache() if use_cache else None
        self._forward: Forward | None = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The guided scores."""
        here = scores.log_softmax(dim=-1)
        if self.guidance_scale == 1:
            return here
        there = self._logits(input_ids).log_softmax(dim=-1)
        return self.guidance_scale * (here - there) + there

    def _logits(self, input_ids: Tensor) -> Tensor:
        """[B, V] after the other prompt and the answer so far."""
        if self._forward is None:
            self._forward = self._begin(input_ids)
            return last_logits(self._forward.prefill(None, 1))
        return last_logits(self._forward.step(input_ids[:, -1:]))

    def _begin(self, input_ids: Tensor) -> Forward:
        ids = input_ids[:, -1:] if self._ids is None else self._ids.to(input_ids.device)
        if ids.shape[1] == 0:
            raise InputError(
                "guidance_scale begins with the prompt's last token, and embeddings have none: give negative_prompt_ids"
            )
        mask = None if self._mask is None or bool(self._mask.all()) else self._mask.to(ids.device)
        positions = None if mask is None else (mask.cumsum(dim=-1) - 1).clamp_(min=0)
        return Forward(self._model, Prompt(ids, None, mask, positions), self._cache, self._model.config.context_length)


def checked_negative_prompt(
    ids: object, mask: object, rows: int, vocabulary: int
) -> tuple[Tensor | None, Tensor | None]:
    """The other prompt as [B, N] int64 tensors.

    Raises:
        InputError: tensors that do not fit the prompt, or each other.
    """
    if ids is None:
        if mask is not None:
            raise InputError("negative_prompt_attention_mask is given without negative_prompt_ids: give both")
        return None, None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point() or ids.shape[1] == 0:
        raise InputError(f"negative_prompt_ids must be token ids [{rows}, tokens], not {_shown(ids)}")
    if ids.shape[0] != rows:
        raise InputError(f"negative_prompt_ids has {ids.shape[0]} rows and the prompt {rows}: make them equal")
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise InputError(f"negative_prompt_ids has ids outside 0 to {vocabulary - 1}, the model's vocabulary")
    if mask is None:
        return ids.long(), None
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        raise InputError(f"negative_prompt_attention_mask must be {list(ids.shape)}, not {_shown(mask)}")
    return ids.long(), (mask != 0).long()


def _shown(value: object) -> str:
    return f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
