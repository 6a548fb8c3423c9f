"""Choosing a token from scores: pure functions.

Shapes: B rows, V words of the vocabulary; scores [B, V] float32, chosen tokens [B] int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quarterdeck.errors import InputError


def greedy(scores: Tensor) -> Tensor:
    """The most likely token of each row; the lowest id among equals."""
    return scores.argmax(dim=-1)


def multinomial(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One token per row, drawn with the probabilities ``softmax(scores)``.

    Without a generator the draw uses torch's global one, in the way transformers does, so that the same
    ``torch.manual_seed`` gives the same tokens in both.
    """
    probabilities = scores.softmax(dim=-1)
    return torch.multinomial(probabilities, num_samples=1, generator=generator).squeeze(1)


def make_generator(seed: int | None, generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """The source of randomness that was asked for: a generator, a seed for a new one, or neither (None).

    Raises:
        InputError: both are given, or the generator lives on another type of device than the scores.
    """
    if seed is not None and generator is not None:
        raise InputError("seed and generator are both given: pass one of them")
    if seed is not None:
        return torch.Generator(device=device).manual_seed(seed)
    if generator is not None and generator.device.type != device.type:
        raise InputError(
            f"the generator is on {generator.device.type!r} and the model on {device.type!r}: "
            f"make it with torch.Generator(device={device.type!r})"
        )
    return generator
