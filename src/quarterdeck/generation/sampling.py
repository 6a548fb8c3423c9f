"""Choosing a token from scores: pure functions.

Shapes: B rows, V words of the vocabulary; scores [B, V] float32, chosen tokens [B] int64.
"""

from __future__ import annotations

import math

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
    return choose(scores, True, generator)[0]


def choose(scores: Tensor, sample: bool, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One token per row, and which rows [B] bool had none to choose: all at -inf, or numbers that are none (NaN).

    What is chosen in such a row has no meaning. Nothing here waits for the device.
    """
    if not sample:
        tokens = greedy(scores)
        return tokens, ~(scores.gather(1, tokens[:, None])[:, 0] > -math.inf)
    probabilities = scores.softmax(dim=-1)
    stuck = probabilities[:, 0].isnan()  # one NaN makes the whole row NaN
    probabilities = probabilities.masked_fill_(stuck[:, None], 1.0)  # or the draw would fail, on some devices for ever
    return torch.multinomial(probabilities, num_samples=1, generator=generator).squeeze(1), stuck


def explain_stuck(scores: Tensor, row: int, place: int) -> str:
    """Why no token could be chosen in a row of ``scores``, and what to do about it."""
    where = f"row {row} has no token to choose at position {place}"
    if bool(scores[row].isnan().any()) or bool(scores[row].max() > torch.finfo(scores.dtype).max):
        return (
            f"{where}: the scores have NaN or infinity among them. If the model's logits have too, load it with "
            "dtype=torch.bfloat16 or float32; else look at the logits processors, or set remove_invalid_values=True"
        )
    return (
        f"{where}: every one is banned (at -inf) by the options and logits processors together. Loosen those that ban: "
        "bad_words_ids, suppress_tokens, logit_bias, no_repeat_ngram_size, min_new_tokens, or your own"
    )


def make_generator(seed: int | None, generator: torch.Generator | None, device: torch.device) -> torch.Generator | None:
    """The source of randomness that was asked for: a generator, a seed for a new one, or neither (None).

    Raises:
        InputError: both are given, one is something else, or the generator lives on another type of device than the
            scores.
    """
    if seed is not None and generator is not None:
        raise InputError("seed and generator are both given: pass one of them")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator={generator!r} is no torch.Generator: make one, or pass seed=<an integer>")
    if seed is not None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64:
            raise InputError(f"seed={seed!r} must be an integer from -2**63 to 2**64 - 1: torch takes no other")
        return torch.Generator(device=device).manual_seed(seed)
    if generator is not None and generator.device.type != device.type:
        raise InputError(
            f"the generator is on {generator.device.type!r} and the model on {device.type!r}: "
            f"make it with torch.Generator(device={device.type!r})"
        )
    return generator
