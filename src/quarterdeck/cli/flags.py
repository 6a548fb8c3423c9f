"""Options of generation written as ``name=value``, on command lines and behind ``!set``. Nothing heavy is imported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.config import GenerationConfig, describe_unknown
from quarterdeck.generation.options import IMPLEMENTED, OPTIONS

_ONE_TEXT = "answers are written here one text at a time, as they come; call generate() from Python"
_LENGTH = "it counts the prompt too, which grows with a conversation"
_OWN_CACHE = "the keys and values of what was read are kept from answer to answer, in a cache of the command's own"
_NOT_SHOWN = "a terminal has no place to show it; call generate() from Python"
_NO_ASSISTANT = "no second model drafts here; call generate(assistant_model=...) from Python"

NOT_HERE: Mapping[str, str] = {
    **dict.fromkeys(("num_return_sequences", "num_beams", *GenerationConfig.BEAMS_ONLY), _ONE_TEXT),
    "max_length": f"{_LENGTH}: give max_new_tokens",
    "min_length": f"{_LENGTH}: give min_new_tokens",
    **dict.fromkeys(("use_cache", "cache_implementation", "cache_config", "compile_config"), _OWN_CACHE),
    **dict.fromkeys(("return_dict_in_generate", *GenerationConfig.DICT_ONLY), _NOT_SHOWN),
    **dict.fromkeys(
        ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"), _NO_ASSISTANT
    ),
    **dict.fromkeys(
        ("prompt_lookup_num_tokens", "max_matching_ngram_size"),
        "guesses that are taken back do not go with the cache that a conversation keeps; call generate() from Python",
    ),
}
"""Options of `GenerationConfig` that the commands refuse unless they keep their default, and why."""

FLAGS: tuple[str, ...] = tuple(name for name in IMPLEMENTED if name not in NOT_HERE)
"""Options that a command line takes."""

SETTABLE: tuple[str, ...] = tuple(name for name in FLAGS if not name.endswith("_token_id"))
"""Options that make sense from one answer to the next."""

_NAME = re.compile(r"([^\s=]+)=")
_SPELLED = {"True": True, "False": False, "None": None}


def looks_like_flag(word: str) -> bool:
    """Whether a word of a command line is ``name=value`` with the name of an option, rather than a text."""
    name, equals, _ = word.partition("=")
    return bool(equals) and name in OPTIONS


def parse_flags(words: Iterable[str]) -> dict[str, Any]:
    """Options of a command line, one to a word, checked as far as they can be without a model.

    Raises:
        InputError: a word without ``=``, an unknown or repeated name, a value that cannot be right.
    """
    flags = parse_words(words)
    check_flags(flags)
    return flags


def parse_words(words: Iterable[str]) -> dict[str, Any]:
    """The same, with names and values unchecked."""
    flags: dict[str, Any] = {}
    for word in words:
        for name, value in _one_flag(word).items():
            if name in flags:
                raise InputError(f"{name} is given twice; give it once")
            flags[name] = value
    return flags


def _one_flag(word: str) -> dict[str, Any]:
    match = _NAME.match(word)
    if match is None:
        raise InputError(f"{word!r} is not of the form name=value")
    rest = word[match.end() :]
    if rest[:1] in ('"', "'", "[", "{"):
        return parse_settings(word)
    return {match[1]: _plain_value(rest)}  # the shell has taken its quotes away, and spaces belong to the value


def check_flags(flags: Mapping[str, Any]) -> None:
    """Refuse names that are no options here, and values that cannot be right whatever the model.

    Raises:
        UnsupportedOptionError: a name.
        InputError: a value.
    """
    for name, value in flags.items():
        if name in NOT_HERE and value != OPTIONS[name].default:
            raise UnsupportedOptionError(f"{name}={value} is refused: {NOT_HERE[name]}")
        if name not in OPTIONS:
            raise UnsupportedOptionError(describe_unknown(name))
    GenerationConfig().update(**implied_by(flags))


def implied_by(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes with what they imply: a temperature decides by itself whether tokens are drawn."""
    temperature = changes.get("temperature")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or "do_sample" in changes:
        return dict(changes)
    if temperature == 0:
        greedy = {"do_sample": False} | {name: OPTIONS[name].default for name in GenerationConfig.SAMPLING_ONLY}
        return greedy | {name: value for name, value in changes.items() if name != "temperature"}
    return {"do_sample": True} | dict(changes)


def parse_settings(text: str) -> dict[str, Any]:
    """``temperature=0.5 stop_strings=["a b", "c"]`` as names and values; JSON where it is JSON, else text.

    Values that begin with a quote or a bracket go on to the one that closes it, spaces included; others to a space.

    Raises:
        InputError: something without ``=``, or a quote or bracket that is not closed.
    """
    settings = {}
    while text := text.lstrip():
        match = _NAME.match(text)
        if match is None:
            raise InputError(f"{text.split()[0]!r} is not of the form name=value")
        settings[match[1]], text = _value(text[match.end() :], match[1])
    return settings


def _value(text: str, name: str) -> tuple[Any, str]:
    """The value that ``text`` begins with, and what follows it."""
    if text[:1] in ('"', "[", "{"):
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except json.JSONDecodeError as error:
            raise InputError(f'{name}={text} is not valid JSON: {error}; write, say, {name}=["a"]') from error
    elif text[:1] == "'":
        end = text.find("'", 1) + 1
        if not end:
            raise InputError(f"{name}={text} has no closing quote")
        value = text[1 : end - 1]
    else:
        word = text.split(maxsplit=1)[0] if text[:1].strip() else ""
        value, end = _plain_value(word), len(word)
    if text[end : end + 1].strip():
        raise InputError(f"{name}={text} goes on after its value; put a space before the next name")
    return value, text[end:]


def _plain_value(word: str) -> Any:
    if word in _SPELLED:
        return _SPELLED[word]
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word
