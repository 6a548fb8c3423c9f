"""Several JSON Schemas that must hold together, as one.

    {"properties": {"a": A}, "additionalProperties": false}      {"properties": {"a": {"allOf": [A, B]}, "c": false},
    {"properties": {"a": B, "c": C}, "required": ["a"]}           "additionalProperties": false, "required": ["a"]}

Works on plain schemas: those without references, ``allOf`` and ``anyOf``. In them ``type``, ``pattern`` and ``format``
are tuples (one of the types, all of the patterns and formats), and ``const`` is an ``enum`` of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quarterdeck.chat.grammars.schema_check import ANNOTATIONS, Schema, same

Plain = dict[str, Any]

_GREATER = ("minItems", "minLength", "minimum", "exclusiveMinimum")
_SMALLER = ("maxItems", "maxLength", "maximum", "exclusiveMaximum")
_SHAPES = ("properties", "additionalProperties", "prefixItems", "items")


def plain(schema: Mapping[str, Any]) -> Plain:
    """A checked schema without annotations, in the form that is described above; ``$ref`` and their likes stay."""
    own = {key: value for key, value in schema.items() if key not in ANNOTATIONS and key != "$defs"}
    for key in ("type", "pattern", "format"):
        if key in own:
            own[key] = (own[key],) if isinstance(own[key], str) else tuple(own[key])
    if "const" in own:
        constant = own.pop("const")
        own["enum"] = [value for value in own.get("enum", [constant]) if same(value, constant)]
    return own


def together(schemas: Sequence[Plain]) -> Plain | None:
    """One plain schema for several; None if their types exclude each other."""
    merged: Plain = {}
    for schema in schemas:
        merged = _pair(merged, schema)
    return None if merged.get("type") == () else merged


def _pair(one: Plain, other: Plain) -> Plain:
    if not one or not other:
        return {**one, **other}
    merged = {**one, **other, **_objects(one, other), **_arrays(one, other)}
    for key in set(one) & set(other) - set(_SHAPES):
        merged[key] = _both(key, one[key], other[key])
    return merged


def _both(key: str, one: Any, other: Any) -> Any:
    if key in _GREATER:
        return max(one, other)
    if key in _SMALLER:
        return min(one, other)
    if key == "type":
        return _common_types(one, other)
    if key == "enum":
        return [value for value in one if any(same(value, candidate) for candidate in other)]
    return tuple(dict.fromkeys((*one, *other)))  # required, pattern, format


def _common_types(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Types in both; an integer is a number."""
    found = [name for name in one if name in other or (name == "integer" and "number" in other)]
    found += [name for name in other if name == "integer" and "number" in one]
    return tuple(dict.fromkeys(found))


def _objects(one: Plain, other: Plain) -> Plain:
    merged: Plain = {}
    first, second = one.get("properties", {}), other.get("properties", {})
    if first or second:
        merged["properties"] = {
            name: _all_of(
                first.get(name, one.get("additionalProperties")), second.get(name, other.get("additionalProperties"))
            )
            for name in dict.fromkeys((*first, *second))
        }
    if "additionalProperties" in one or "additionalProperties" in other:
        merged["additionalProperties"] = _all_of(one.get("additionalProperties"), other.get("additionalProperties"))
    return merged


def _arrays(one: Plain, other: Plain) -> Plain:
    merged: Plain = {}
    first, second = one.get("prefixItems", ()), other.get("prefixItems", ())
    if first or second:
        merged["prefixItems"] = [
            _all_of(_at(first, place, one.get("items")), _at(second, place, other.get("items")))
            for place in range(max(len(first), len(second)))
        ]
    if "items" in one or "items" in other:
        merged["items"] = _all_of(one.get("items"), other.get("items"))
    return merged


def _at(schemas: Sequence[Schema], place: int, others: Schema | None) -> Schema | None:
    return schemas[place] if place < len(schemas) else others


def _all_of(*schemas: Schema | None) -> Schema:
    """What all that are given say together."""
    given: list[Schema] = []
    for schema in schemas:
        if schema is not None and schema is not True and schema not in given:
            given.append(schema)
    if any(schema is False for schema in given):
        return False
    return given[0] if len(given) == 1 else {"allOf": given} if given else True
