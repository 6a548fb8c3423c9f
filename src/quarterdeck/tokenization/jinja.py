"""Chat templates are programs in the Jinja language that come with a checkpoint; here they run, fenced in.

The environment is the one templates are written for: sandboxed and immutable (a template can neither reach Python's
internals nor change what it is given), the newline after a block and the space before it removed, ``break`` and
``continue`` in loops, ``{% generation %}`` around what the assistant says, ``raise_exception(message)``,
``strftime_now(format)``, and a ``tojson`` that writes JSON as it is, without HTML escapes.

Apart from its callers so that only who uses chat templates pays for importing Jinja.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quarterdeck.errors import ChatTemplateError

Span = tuple[int, int]
"""Start and end (not included) in characters of a rendered text."""

_MARKS = "quarterdeck_generation_marks"


class GenerationExtension(Extension):
    """``{% generation %} ... {% endgeneration %}``: what is inside was, or would be, said by the assistant.

    The block renders its contents. When marks are given in the template's variables, it puts them around them, so
    that their place in the text is found afterwards wherever the block stood: in a loop, a macro or a captured block.
    """

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """Makes the block a call of `_marked` with the rendered contents."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, context: Context, caller: Callable[[], str]) -> str:
        opening, closing = context.get(_MARKS) or ("", "")
        return f"{opening}{caller()}{closing}"


def has_generation_block(source: str) -> bool:
    """Whether a template marks what the assistant says."""
    tokens = [(kind, text) for _, kind, text in _environment().lex(source) if kind != "whitespace"]
    return any(before[0] == "block_begin" and token == ("name", "generation") for before, token in pairwise(tokens))


def render(source: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes of its variables.

    Raises:
        ChatTemplateError: the template does not compile, calls ``raise_exception``, or fails on these variables.
    """
    template = _compile(source)
    try:
        return template.render(variables)
    except TemplateError as error:
        raise ChatTemplateError(f"the chat template refused the conversation: {error}") from error
    except Exception as error:  # a template is a program of somebody else: it can fail in any way
        raise ChatTemplateError(
            f"the chat template failed on this conversation with {type(error).__name__}: {error}; "
            "check that messages, tools and documents have the shape that this template expects"
        ) from error


def render_with_spans(source: str, variables: Mapping[str, Any]) -> tuple[str, list[Span]]:
    """The same, and where in the text the contents of each ``{% generation %}`` block are."""
    secret = secrets.token_hex(8)
    marks = (f"<generation {secret}>", f"</generation {secret}>")
    return _take_marks_out(render(source, {**variables, _MARKS: marks}), marks)


def _take_marks_out(text: str, marks: tuple[str, str]) -> tuple[str, list[Span]]:
    opening, closing = marks
    pieces, spans, length = [], [], 0
    before, *blocks = text.split(opening)
    pieces.append(before)
    length += len(before)
    for block in blocks:
        inside, _, after = block.partition(closing)
        spans.append((length, length + len(inside)))
        pieces += [inside, after]
        length += len(inside) + len(after)
    return "".join(pieces), spans


@lru_cache(maxsize=64)
def _compile(source: str) -> Template:
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template has a syntax error in line {error.lineno}: {error.message}"
        ) from error


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationExtension, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
