"""Which values an implemented option may have: a rule per option; an error names value, limit and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.compile_config import CompileConfig
from quarterdeck.generation.options import OPTIONS
from quarterdeck.generation.watermark_config import WatermarkingConfig

SCHEDULES = ("constant", "heuristic", "heuristic_transient")
"""How the length of an assistant's draft follows its success; see `DraftLength` in ``candidates``."""

CACHE_IMPLEMENTATIONS = ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "quantized")
"""Caches that `generate` makes by name; ``dynamic_full`` is ``dynamic``, since no layer of these models forgets."""

WINDOWED_CACHES = ("sliding_window", "hybrid", "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked")
"""Names of transformers for layers that see a window of the past only, which Cohere models do not have."""


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
    "num_beams": _int_from(1),
    "num_beam_groups": _int_from(1),
    "early_stopping": Rule(lambda value: isinstance(value, bool) or value == "never", "True, False or 'never'"),
    "diversity_penalty": Rule(lambda value: _is_number(value) and value >= 0, "a number of 0 or more"),
    "length_penalty": Rule(_is_number, "a number"),
    "use_cache": _BOOL,
    "cache_implementation": Rule(lambda value: isinstance(value, str), "the name of a cache"),
    "cache_config": Rule(
        lambda value: isinstance(value, Mapping), "a dictionary of the arguments of the cache, QuantizedCache(...)"
    ),
    "prefill_chunk_size": _int_from(1),
    "compile_config": Rule(lambda value: isinstance(value, CompileConfig), "a CompileConfig"),
    "disable_compile": _BOOL,
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
    "guidance_scale": Rule(_is_number, "a number"),
    "watermarking_config": Rule(
        lambda value: isinstance(value, WatermarkingConfig), "a WatermarkingConfig, or a dictionary of its values"
    ),
    "num_assistant_tokens": _int_from(1),
    "num_assistant_tokens_schedule": Rule(lambda value: value in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
    "assistant_confidence_threshold": _between(0, 1),
    "prompt_lookup_num_tokens": _int_from(1),
    "max_matching_ngram_size": _int_from(1),
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


def check_beams(option: Callable[[str], Any]) -> None:
    """Raise `InputError` unless the options of beam search go together; ``option`` gives the value of one by name."""
    beams, groups = option("num_beams") or 1, option("num_beam_groups") or 1
    returned, diversity = option("num_return_sequences") or 1, option("diversity_penalty") or 0.0
    if beams == 1:
        return
    if returned > beams:
        raise InputError(
            f"num_return_sequences={returned} is more than num_beams={beams}, and a search finds one text per beam: "
            f"raise num_beams to {returned}, or lower num_return_sequences"
        )
    if groups == 1 and not diversity:
        return
    if option("do_sample"):
        raise InputError(
            "do_sample=True with num_beam_groups or diversity_penalty: groups of beams take the likeliest tokens. Set "
            "do_sample=False, or num_beam_groups=1 and diversity_penalty=0.0"
        )
    if beams % groups:
        raise InputError(f"num_beams={beams} cannot be divided into num_beam_groups={groups}: make it a multiple")
    if groups == 1:
        raise InputError(
            f"diversity_penalty={diversity} is between groups of beams, and there is one: set num_beam_groups to 2 or "
            "more, or leave it out"
        )
    if not diversity:
        raise InputError(
            f"num_beam_groups={groups} with diversity_penalty=0.0: all groups would find the same. Set it above 0, or "
            "num_beam_groups=1"
        )


def check_supported(name: str, value: Any) -> None:
    """Raise `UnsupportedOptionError` if ``value`` asks for something that this version does not have."""
    option = OPTIONS[name]
    if name == "cache_implementation" and value not in (None, *CACHE_IMPLEMENTATIONS):
        windowed = "it is for layers that see a window, and every layer of a Cohere model sees the whole text"
        reason = windowed if value in WINDOWED_CACHES else "there is no such cache"
        raise UnsupportedOptionError(
            f"cache_implementation={value!r} is refused: {reason}. "
            f"Choose one of {', '.join(map(repr, CACHE_IMPLEMENTATIONS))}, or leave it out."
        )
    if option.refuses(value):
        raise UnsupportedOptionError(
            f"{name}={value!r} is refused: {option.reason}. Leave it out (the default is {option.default!r})."
        )
