"""JSON Schema, as far as grammars know it: which keywords a schema may use, and whether a value satisfies it.

The keywords are a table, `KEYWORDS`, from the name to what its value must be. `check_schema` goes through a whole
schema, parts that nothing refers to included, and refuses whatever is not in the table.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from quarterdeck.chat.grammars.formats import FORMATS, has_format
from quarterdeck.chat.json_text import check_writable, shown
from quarterdeck.errors import ChatError

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

ANNOTATIONS = frozenset(("title", "description", "default", "examples", "$schema", "$id", "$comment"))
"""Keywords that say nothing about a value."""

Schema = Mapping[str, Any] | bool


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """Whether a value is a JSON number, and one that a double can hold."""
    largest = sys.float_info.max
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -largest <= value <= largest


def _is_type(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, (list, tuple)) and bool(names) and all(name in TYPES for name in names)


def _is_schema(value: Any) -> bool:
    return isinstance(value, (Mapping, bool))


def _are_schemas(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_schema, value))


def _are_named_schemas(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) and _is_schema(one) for name, one in value.items())


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


KEYWORDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, f"one of {', '.join(TYPES)}, or a list of them"),
    "enum": (lambda value: isinstance(value, (list, tuple)) and bool(value), "a list of values"),
    "const": (lambda value: True, "a value"),
    "properties": (_are_named_schemas, "schemas by name"),
    "required": (_are_names, "a list of names"),
    "additionalProperties": (_is_schema, "a schema, true or false"),
    "items": (_is_schema, "a schema, true or false (for a list of schemas see prefixItems)"),
    "prefixItems": (_are_schemas, "a list of schemas"),
    "minItems": (_is_size, "a number of items"),
    "maxItems": (_is_size, "a number of items"),
    "minLength": (_is_size, "a number of characters"),
    "maxLength": (_is_size, "a number of characters"),
    "pattern": (lambda value: isinstance(value, str), "a regular expression"),
    "format": (lambda value: value in FORMATS, f"one of {', '.join(FORMATS)}"),
    "minimum": (is_number, "a finite number"),
    "maximum": (is_number, "a finite number"),
    "exclusiveMinimum": (is_number, "a finite number"),
    "exclusiveMaximum": (is_number, "a finite number"),
    "anyOf": (_are_schemas, "a list of schemas"),
    "allOf": (_are_schemas, "a list of schemas"),
    "$ref": (lambda value: isinstance(value, str), "a pointer into this schema, such as #/$defs/name"),
    "$defs": (_are_named_schemas, "schemas by name"),
}


def check_schema(schema: Any, what: str) -> None:
    """Refuses a schema that a grammar cannot be made of.

    Args:
        schema: the whole schema.
        what: it is, for the message.

    Raises:
        ChatError: a keyword is not known, or its value is not what it should be; names it and where it is.
    """
    if not _is_schema(schema):
        raise ChatError(f"{what} is a JSON Schema, an object, not {shown(schema)}")
    reason = check_writable(schema)
    if reason is not None:
        raise ChatError(f"{what} is no JSON: {reason}")
    for place, part in _parts("#", schema):
        for keyword, value in part.items():
            where = f"{what} ({place})"
            if keyword in ANNOTATIONS:
                continue
            if keyword not in KEYWORDS:
                known = ", ".join(KEYWORDS)
                raise ChatError(f"{where} has {keyword!r}, which a grammar cannot enforce; it can {known}")
            is_right, expected = KEYWORDS[keyword]
            if not is_right(value):
                raise ChatError(f"{keyword!r} of {where} is {expected}, not {shown(value)}")


def _parts(place: str, schema: Schema) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schema and all schemas in it, each with its pointer."""
    if isinstance(schema, bool):
        return
    yield place, schema  # is checked before its parts are looked for
    for keyword in ("properties", "$defs"):
        for name, inner in schema.get(keyword, {}).items():
            yield from _parts(f"{place}/{keyword}/{name}", inner)
    for keyword in ("anyOf", "allOf", "prefixItems"):
        for number, inner in enumerate(schema.get(keyword, ())):
            yield from _parts(f"{place}/{keyword}/{number}", inner)
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from _parts(f"{place}/{keyword}", schema[keyword])


def resolve(reference: str, root: Schema, what: str) -> Schema:
    """The schema that a local reference points to.

    Raises:
        ChatError: it points out of the schema, or to nothing that is a schema.
    """
    found: Any = root
    if reference != "#" and not reference.startswith("#/"):
        raise ChatError(f"the $ref {reference!r} in {what} points out of it: put the schema into its $defs")
    for step in reference.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, (list, tuple)) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise ChatError(f"the $ref {reference!r} in {what} points to nothing")
    if not _is_schema(found):
        raise ChatError(f"the $ref {reference!r} in {what} points to {shown(found)}, which is no schema")
    return found  # type: ignore[no-any-return]  # narrowed by _is_schema


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


def types_of(value: Any) -> tuple[str, ...]:
    """The types that a JSON value has."""
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, (int, float)):
        return ("number", "integer") if isinstance(value, int) or value.is_integer() else ("number",)
    if isinstance(value, str):
        return ("string",)
    if value is None:
        return ("null",)
    return ("object",) if isinstance(value, Mapping) else ("array",)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return set(types_of(one)) == set(types_of(other)) and one == other


def accepts(schema: Schema, value: Any, root: Schema, what: str) -> bool:
    """Whether a value satisfies a checked schema, as JSON Schema has it: objects are open unless it says otherwise."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not accepts(resolve(schema["$ref"], root, what), value, root, what):
        return False
    if not all(accepts(one, value, root, what) for one in schema.get("allOf", ())):
        return False
    if "anyOf" in schema and not any(accepts(one, value, root, what) for one in schema["anyOf"]):
        return False
    allowed = schema.get("type", TYPES)
    if not set(types_of(value)) & set([allowed] if isinstance(allowed, str) else allowed):
        return False
    if "enum" in schema and not any(same(one, value) for one in schema["enum"]):
        return False
    if "const" in schema and not same(schema["const"], value):
        return False
    return _accepts_inside(schema, value, lambda inner, one: accepts(inner, one, root, what))


def _accepts_inside(schema: Mapping[str, Any], value: Any, inside: Callable[[Schema, Any], bool]) -> bool:
    if isinstance(value, str):
        return _accepts_text(schema, value)
    if is_number(value):
        is_within: bool = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        is_inside: bool = schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
        return is_within and is_inside
    if isinstance(value, Mapping):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all(name in value for name in schema.get("required", ())) and all(
            inside(properties.get(name, others), one) for name, one in value.items()
        )
    if isinstance(value, (list, tuple)):
        prefix, items = schema.get("prefixItems", ()), schema.get("items", True)
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)) and all(
            inside(prefix[place] if place < len(prefix) else items, one) for place, one in enumerate(value)
        )
    return True


def _accepts_text(schema: Mapping[str, Any], value: str) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    try:
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return False
    except re.error as error:
        raise ChatError(f"the pattern {schema['pattern']!r} is no regular expression: {error}") from error
    return "format" not in schema or has_format(schema["format"], value)
