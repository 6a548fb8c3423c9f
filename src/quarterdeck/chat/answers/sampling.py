"""How tokens are chosen, as a request asks for it. Nothing in here knows a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quarterdeck.chat.json_text import kind, shown
from quarterdeck.errors import ChatError

MAX_LOGPROBS = 20

_MAX_STOPS = 64


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Without arguments: the likeliest token, to the end of the context.

    Args:
        temperature: divides the logits before a token is drawn; None and 0 take the likeliest token, and then
            ``top_p``, ``top_k`` and ``seed`` change nothing.
        top_p: draw from the smallest set of tokens that has this probability, over 0 to 1.
        top_k: draw from this many tokens; 0 is all.
        max_tokens: most tokens to generate; None goes on to the end of the context.
        stop: a string or several. The visible text ends before the first of them that occurs in it.
        seed: of the draws; the same request with the same seed gives the same answer.
        frequency_penalty: taken from a token's logit for every time it was generated, -2 to 2.
        presence_penalty: taken once from the logit of every token that was generated, -2 to 2.
        logit_bias: added to logits, by token id, -100 to 100.
        logprobs: report the log-probability of every token, and of this many of the likeliest at its place, 0 to 20.
            True is 0; None and False report nothing.

    Raises:
        ChatError: a value that cannot be right.
    """

    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "top_p", 1.0 if self.top_p is None else self.top_p)
        object.__setattr__(self, "top_k", 0 if self.top_k is None else self.top_k)
        object.__setattr__(self, "stop", _stops(self.stop))
        if isinstance(self.logprobs, bool):
            object.__setattr__(self, "logprobs", 0 if self.logprobs else None)
        if self.temperature is not None:
            _check_number("temperature", self.temperature, 0, math.inf)
        _check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ChatError("top_p is over 0, since at least one token is left to draw: for the likeliest leave it out")
        for name, least, most in (
            ("top_k", 0, None),
            ("max_tokens", 1, None),
            ("seed", -(2**63), 2**64 - 1),
            ("logprobs", 0, MAX_LOGPROBS),
        ):
            _check_integer(name, getattr(self, name), least, most)
        for name in ("frequency_penalty", "presence_penalty"):
            object.__setattr__(self, name, getattr(self, name) or 0.0)
            _check_number(name, getattr(self, name), -2, 2)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, rather than one drawn."""
        return not self.temperature


def _stops(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    stops = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, (list, tuple)) else None
    if stops is None or not all(isinstance(stop, str) and stop for stop in stops):
        raise ChatError(f"stop is a string or a list of strings, none of them empty, not {shown(given)}")
    if len(stops) > _MAX_STOPS:
        raise ChatError(f"stop has {len(stops)} strings; give {_MAX_STOPS} at most")
    return stops


def _biases(given: Any) -> dict[int, float] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ChatError(f"logit_bias is a dictionary of token ids and numbers, not {kind(given)}")
    for token, bias in given.items():
        _check_integer("a token of logit_bias", token, 0, None)
        if token is None:
            raise ChatError("a token of logit_bias is an id, not None")
        _check_number(f"logit_bias[{token}]", bias, -100, 100)
    return dict(given)


def _check_number(name: str, value: Any, least: float, most: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        bounds = f"from {least} on" if most == math.inf else f"from {least} to {most}"
        raise ChatError(f"{name} is a number {bounds}, not {shown(value)}")


def _check_integer(name: str, value: Any, least: int, most: int | None) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        bounds = f"from {least} on" if most is None else f"from {least} to {most}"
        raise ChatError(f"{name} is an integer {bounds}, not {shown(value)}")
