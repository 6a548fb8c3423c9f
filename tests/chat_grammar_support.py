"""What the grammar tests share: a model with random weights, as far as a grammar is concerned, and random schemas."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jsonschema
import numpy as np
from hypothesis import strategies as st
from tokenizers import Tokenizer

from chat_support import tiny_tokenizer
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.grammars.matcher import GrammarCompiler, Matcher

PADDED = 60
"""Ids of the model beyond the tokenizer's vocabulary."""


@lru_cache(maxsize=1)
def compiler() -> GrammarCompiler:
    return GrammarCompiler(tiny_tokenizer(), vocab_size=len(tiny_tokenizer()) + PADDED)


def allowed(matcher: Matcher) -> np.ndarray:
    """The ids that may come next."""
    bits = np.unpackbits(np.frombuffer(matcher.mask(), dtype=np.uint8), bitorder="little")
    return np.nonzero(bits)[0]


def write(grammar: Grammar, seed: int, most: int = 3000) -> str | None:
    """A text chosen at random among all that the grammar allows, token by token; None if it goes on for too long.

    Now and then it prefers quotes, line breaks and the end, so that strings and plans do not become long.
    """
    matcher, random = compiler().compile(grammar), np.random.default_rng(seed)
    endings = [*ids_of('"'), *ids_of("\n"), *compiler().end_token_ids]
    ids: list[int] = []
    while len(ids) < most:
        choices = allowed(matcher)
        assert len(choices), f"nothing may follow {tiny_tokenizer().decode(ids)!r}"
        preferred = np.intersect1d(choices, endings) if random.random() < 0.15 else choices
        ids.append(int(random.choice(preferred if len(preferred) else choices)))
        matcher.consume(ids[-1])
        if matcher.is_finished:
            return tiny_tokenizer().decode(ids[:-1])
    return None


@lru_cache(maxsize=1)
def plain() -> Tokenizer:
    """The tokenizer's vocabulary alone: no control tokens, nothing normalised."""
    backend = tiny_tokenizer().backend_tokenizer
    tokenizer = Tokenizer(backend.model)
    tokenizer.pre_tokenizer = backend.pre_tokenizer
    return tokenizer


def ids_of(text: str) -> list[int]:
    return list(plain().encode(text, add_special_tokens=False).ids)


def accepts(grammar: Grammar, text: str) -> bool:
    return compiler().compile(grammar).accepts(ids_of(text))


def validator(schema: Any) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def pretty(value: Any) -> str:
    """JSON as the prompt shows calls."""
    return json.dumps(value, indent=4, ensure_ascii=False)


# ── random schemas ────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ("a", "b", "query", "été", 'q"uo\\te', "x y", "日本", "<|END_OF_TURN_TOKEN|>")
VALUES = (
    "é",
    'a"b\\c',
    "日本",
    "🚀",
    "e\u0301",
    "\x7f\n\t\x01",
    "<BOS_TOKEN>",
    "",
    1,
    2.5,
    -1e-9,
    10**25,
    None,
    True,
    False,
)
NUMBERS = (
    0,
    1,
    -1,
    7,
    10,
    -10,
    99,
    100,
    0.5,
    -0.5,
    1.25,
    -3.75,
    123.456,
    1e-3,
    -99.99,
    12345678901234567890,
    1e20,
    -1e-7,
)
PATTERNS = ("^a{2,4}$", "^[a-c]+x?", r"^(foo|bar)\d{1,3}$", r'^"\\?é$', "^[^a-z]{2}$", "b")


def sized(draw: st.DrawFn, least: str, most: str, top: int) -> dict[str, int]:
    small, large = sorted((draw(st.integers(0, top)), draw(st.integers(0, top))))
    return {most: large, **({least: small} if draw(st.booleans()) else {})}


@st.composite
def strings(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(("plain", "plain", "pattern", "format")))
    if kind == "format":
        return {"type": "string", "format": draw(st.sampled_from(("date", "time", "date-time", "uuid", "email")))}
    pattern = {"pattern": draw(st.sampled_from(PATTERNS)), "maxLength": 8} if kind == "pattern" else {}
    return {"type": "string", **sized(draw, "minLength", "maxLength", 10), **pattern}


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": draw(st.sampled_from(("integer", "number", ["integer", "null"])))}
    low, high = sorted((draw(st.sampled_from(NUMBERS)), draw(st.sampled_from(NUMBERS))))
    if draw(st.booleans()):
        schema[draw(st.sampled_from(("minimum", "exclusiveMinimum")))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(("maximum", "exclusiveMaximum")))] = high
    return schema


constants = st.lists(st.sampled_from(VALUES), min_size=1, max_size=4).map(
    lambda values: {"enum": values}
) | st.sampled_from(({"const": {"k": "v", "l": [1, {}, []]}}, {"const": "x"}, {"type": ["boolean", "null"]}))


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: draw(inner) for name in names}}
    schema["required"] = [name for name in names if draw(st.booleans())]
    if draw(st.integers(0, 7)) == 0:
        schema["additionalProperties"] = draw(st.sampled_from((False, {"type": "boolean"})))
    return schema


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema = {"type": "array", "items": draw(inner), **sized(draw, "minItems", "maxItems", 4)}
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=3))
    return schema


def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    any_of = st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas})
    all_of = st.lists(objects(inner), min_size=2, max_size=2).map(lambda schemas: {"allOf": schemas})
    return objects(inner) | arrays(inner) | any_of | all_of


schemas = st.recursive(strings() | numbers() | constants, larger, max_leaves=6)
