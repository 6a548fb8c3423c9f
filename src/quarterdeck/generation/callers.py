"""Checks of what callers hand to `generate` beside options and prompts: objects, functions, and what these return."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.options import OPTIONS

Function = TypeVar("Function", bound=Callable[..., Any])

IN_VOCABULARY = ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
"""Options whose tokens would force or ban nothing if they were outside the vocabulary."""


def check_config(config: object) -> None:
    """Raise `InputError` unless ``config`` is a `GenerationConfig` or None."""
    if config is not None and not isinstance(config, GenerationConfig):
        raise InputError(
            f"generation_config is a {type(config).__name__} and must be a quarterdeck.GenerationConfig: make one with "
            "GenerationConfig(max_new_tokens=...), or pass the options to generate() by name"
        )


def check_streamer(streamer: object) -> None:
    """Raise `InputError` unless ``streamer`` has the methods that `generate` calls, or is None."""
    missing = [name for name in ("put", "end") if not callable(getattr(streamer, name, None))]
    if streamer is not None and missing:
        raise InputError(
            f"streamer={streamer!r} is a {type(streamer).__name__} without {' and '.join(missing)}(): give a "
            "TextStreamer(tokenizer), or an object with put(ids) and end()"
        )


def checked_functions(name: str, given: Iterable[Function] | None) -> list[Function]:
    """The functions of an argument that takes a list of them.

    Raises:
        InputError: a function that is in no list, or something in it that cannot be called.
    """
    if given is None:
        return []
    if not isinstance(given, Iterable):
        remedy = f"put it in a list, {name}=[...]" if callable(given) else "give a list of functions"
        raise InputError(f"{name} is a {type(given).__name__} and must be a list: {remedy}")
    functions = list(given)
    for number, function in enumerate(functions):
        if not callable(function):
            raise InputError(f"{name}[{number}]={function!r} cannot be called: give functions only")
    return functions


def check_vocabulary(config: GenerationConfig, size: int) -> None:
    """Raise `InputError` if a token that is to be forced or banned is not among the ``size`` tokens of the model."""
    for name in IN_VOCABULARY:
        value = getattr(config, name)
        tokens = [value] if isinstance(value, int) else value or ()
        outside = [token for token in tokens if token >= size]
        if outside:
            raise InputError(
                f"{name}={value!r}: the model has {size} tokens, so the highest id is {size - 1}, and {outside[0]} is "
                f"outside. Change it or leave it out (the default is {OPTIONS[name].default!r})."
            )


def checked_scores(processor: object, given: Tensor, result: object) -> Tensor:
    """What a logits processor has made of the scores ``given``.

    Raises:
        InputError: it is no tensor of that shape.
    """
    if isinstance(result, Tensor) and result.shape == given.shape:
        return result
    raise InputError(
        f"the logits processor {_name(processor)} returned {_shown(result)} and must return the scores, a tensor "
        f"{list(given.shape)}" + (": it lacks a return" if result is None else "")
    )


def checked_done(criterion: object, rows: int, result: object) -> bool | Tensor:
    """What a stopping criterion says about ``rows`` rows.

    Raises:
        InputError: neither a bool nor a bool per row.
    """
    if isinstance(result, bool | np.bool_):
        return bool(result)
    if isinstance(result, Tensor) and result.dtype == torch.bool and result.shape in ((), (rows,)):
        return result
    raise InputError(
        f"the stopping criterion {_name(criterion)} returned {_shown(result)} and must return a bool, or a bool tensor "
        f"[{rows}] with one for each row" + (": it lacks a return" if result is None else "")
    )


def _name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _shown(result: object) -> str:
    if isinstance(result, Tensor):
        return f"a tensor {list(result.shape)} of {result.dtype}"
    return "None" if result is None else f"{str(result)[:40]!r}, a {type(result).__name__}"
