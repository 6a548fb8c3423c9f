"""Which values an implemented option may have: a rule per option; an error names value, limit and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.options import OPTIONS

CACHE_IMPLEMENTATIONS = ("dynamic", "static")


class Rule(NamedTuple):
    """A predicate on the value, and the sentence that completes "it must be ..."."""

    holds: Callable[[Any], bool]
    words: str


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _int_from(minimum: int) -> Rule:
    return Rule(lambda value: _is_int(value) and value >= minimum, f"an integer of {minimum} or more")


def _between(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Rule:
    def holds(value: Any) -> bool:
        if not _is_number(value):
            return False
        above = low < value if open_low else low <= value
        below = value < high if open_high else value <= high
        return bool(above and below)

    return Rule(holds, f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}")


def _is_token(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _is_tokens(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_token(item) for item in value)


def _is_words(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(_is_tokens(item) and item for item in value)


def _is_token_bias(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_token(key) and _is_bias(bias) for key, bias in value.items())


def _is_bias(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _is_sequence_bias(value: Any) -> bool:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or not pairs:
        return False
    return all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_words([pair[0]]) and _is_bias(pair[1])
        for pair in pairs
    )


def _is_stop(value: Any) -> bool:
    strings = [value] if isinstance(value, str) else value
    return isinstance(strings, (list, tuple)) and bool(strings) and all(isinstance(s, str) and s for s in strings)


def _is_decay(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and _is_token(value[0])
        and _is_number(value[1])
        and value[1] > 0
    )


_BOOL = Rule(lambda value: isinstance(value, bool), "True or False")
_TOKEN = Rule(_is_token, "a token id (an integer of 0 or more)")
_TOKENS = Rule(_is_tokens, "a list of token ids")
_TOKEN_OR_TOKENS = Rule(lambda value: _is_token(value) or (_is_tokens(value) and bool(value)),
                        "a token id or a list of token ids")  # fmt: skip
_POSITIVE = Rule(lambda value: _is_number(value) and value > 0, "a number above 0")

RULES: dict[str, Rule] = {
    "max_length": _int_from(1),
    "max_new_tokens": _int_from(1),
    "min_length": _int_from(0),
    "min_new_tokens": _int_from(0),
    "max_time": _POSITIVE,
    "stop_strings": Rule(_is_stop, "a string or a list of strings, none of them empty"),
    "do_sample": _BOOL,
    "num_return_sequences": _int_from(1),
    "use_cache": _BOOL,
    "cache_implementation": Rule(lambda value: isinstance(value, str), "the name of a cache"),
    "prefill_chunk_size": _int_from(1),
    "temperature": Rule(lambda value: _is_number(value) and value >= 0, "a number of 0 or more"),
    "top_k": _int_from(0),
    "top_p": _between(0, 1, open_low=True),
    "min_p": _between(0, 1),
    "typical_p": _between(0, 1, open_low=True),
    "epsilon_cutoff": _between(0, 1, open_high=True),
    "eta_cutoff": _between(0, 1, open_high=True),
    "repetition_penalty": _POSITIVE,
    "no_repeat_ngram_size": _int_from(0),
    "bad_words_ids": Rule(_is_words, "a list of lists of token ids, none of them empty"),
    "sequence_bias": Rule(
        _is_sequence_bias, "a mapping from tuples of token ids to numbers, or a list of [token ids, number]"
    ),
    "logit_bias": Rule(_is_token_bias, "a mapping from token ids to numbers"),
    "suppress_tokens": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "forced_bos_token_id": _TOKEN,
    "forced_eos_token_id": _TOKEN_OR_TOKENS,
    "exponential_decay_length_penalty": Rule(_is_decay, "a pair (start, factor above 0)"),
    "renormalize_logits": _BOOL,
    "remove_invalid_values": _BOOL,
    "return_dict_in_generate": _BOOL,
    "output_scores": _BOOL,
    "output_logits": _BOOL,
    "output_attentions": _BOOL,
    "output_hidden_states": _BOOL,
    "pad_token_id": _TOKEN,
    "bos_token_id": _TOKEN,
    "eos_token_id": _TOKEN_OR_TOKENS,
}
"""What each implemented option may be when it is not None (None always means: not set)."""


def check_value(name: str, value: Any) -> None:
    """Raise `InputError` unless ``value`` may be the value of the implemented option ``name``."""
    rule = RULES[name]
    if value is not None and not rule.holds(value):
        raise InputError(
            f"{name}={value!r}: it must be {rule.words}, or None. Change it or leave it out "
            f"(the default is {OPTIONS[name].default!r})."
        )


def check_supported(name: str, value: Any) -> None:
    """Raise `UnsupportedOptionError` if ``value`` asks for something that this version does not have."""
    option = OPTIONS[name]
    if name == "cache_implementation" and value not in (None, *CACHE_IMPLEMENTATIONS):
        raise UnsupportedOptionError(
            f"cache_implementation={value!r} is not in this version. "
            f"Choose one of {', '.join(map(repr, CACHE_IMPLEMENTATIONS))}, or leave it out."
        )
    if option.refuses(value):
        raise UnsupportedOptionError(
            f"{name}={value!r} is refused: {option.reason}. Leave it out (the default is {option.default!r})."
        )
