"""Whether the arguments of a call fit the JSON Schema of its tool, and where they do not.

    violation({"count": "3"}, {"properties": {"count": {"type": "integer"}}})    "count is to be integer, not '3'"

What decides is `schema_check.accepts`, as for grammars; this finds the words. Objects with ``properties`` are closed
unless their schema has ``additionalProperties``, as grammars have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quarterdeck.chat.grammars.schema_check import Schema, accepts, resolve, types_of
from quarterdeck.chat.json_text import shown
from quarterdeck.errors import ChatError

_WITH_SCHEMAS = frozenset({"items", "additionalProperties", "anyOf", "prefixItems"})
_WITH_NAMED_SCHEMAS = frozenset({"properties", "$defs"})


_RULES = frozenset(
    "const minItems maxItems minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum "
    "anyOf".split()
)


def violation(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str | None:
    """What is wrong with arguments, for the model to read; None if nothing is.

    Keywords that are not known here do not count: tools that are called freely may use any.
    """
    closed = _closed({"properties": {}, **parameters})
    try:
        return next(_violations("", arguments, closed, closed), None)
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ChatError(f"a JSON Schema of parameters cannot be understood: {error!r}: {shown(parameters)}") from error


def _closed(schema: Any) -> Any:
    """The schema with objects closed that do not say otherwise."""
    if isinstance(schema, (list, tuple)):
        return [_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    inner = {key: _closed(value) if key in _WITH_SCHEMAS else value for key, value in schema.items()}
    for key in _WITH_NAMED_SCHEMAS & inner.keys():
        inner[key] = {name: _closed(value) for name, value in inner[key].items()}
    if "properties" in inner and "allOf" not in inner:
        inner.setdefault("additionalProperties", False)
    return inner


def _violations(place: str, value: Any, schema: Schema, root: Schema) -> Iterator[str]:
    """The innermost places where the value does not fit, as far as one schema is to blame for each."""
    if accepts(schema, value, root, "the parameters"):
        return
    if isinstance(schema, bool):
        yield f"{place or 'the value'} is not expected"
        return
    if "$ref" in schema:
        yield from _violations(place, value, resolve(schema["$ref"], root, "the parameters"), root)
    for inner in schema.get("allOf", ()):
        yield from _violations(place, value, inner, root)
    if isinstance(value, Mapping):
        yield from _inside_object(place, value, schema, root)
    if isinstance(value, (list, tuple)):
        prefix, items = schema.get("prefixItems", ()), schema.get("items", True)
        for number, one in enumerate(value):
            inner = prefix[number] if number < len(prefix) else items
            yield from _violations(f"{place}[{number}]", one, inner, root)
    yield f"{place or 'the arguments'} {_expectation(schema, value)}, not {shown(value)}"


def _inside_object(place: str, value: Mapping[str, Any], schema: Mapping[str, Any], root: Schema) -> Iterator[str]:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{_inside(place, name)} is missing"
    for name, one in value.items():
        if name not in properties and others is False:
            known = ", ".join(properties) or "none"
            yield f"{_inside(place, name)} is not expected; the arguments there are {known}"
        yield from _violations(_inside(place, name), one, properties.get(name, others), root)


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _expectation(schema: Mapping[str, Any], value: Any) -> str:
    types = schema.get("type")
    allowed = [types] if isinstance(types, str) else list(types or ())
    if allowed and not set(types_of(value)) & set(allowed):
        return f"is to be {' or '.join(allowed)}"
    if "enum" in schema:
        return f"is to be one of {shown(list(schema['enum']), 200)}"
    rules = {key: schema[key] for key in schema if key in _RULES}
    return f"is to satisfy {shown(rules, 200)}" if rules else "does not fit"
