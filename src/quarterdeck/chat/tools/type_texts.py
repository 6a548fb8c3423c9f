"""JSON Schema to the Python types that tools' stubs show in a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_SIMPLE = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}

JSON_TYPES = (*_SIMPLE, "array", "object")

VERBATIM = "python type: "
"""A ``$comment`` that begins so holds the type as the caller wrote it."""

_MAX_DEPTH = 8
"""What is nested deeper is shown as open."""

_ANY = ["Any"]


def nullable_text(texts: Sequence[str]) -> str:
    """One type of several that are allowed; ``None`` among others makes it ``Optional[...]``."""
    rest = [text for text in texts if text != "None"]
    return f"Optional[{union_text(rest)}]" if rest and len(rest) < len(texts) else union_text(texts)


def union_text(texts: Sequence[str]) -> str:
    """One type of several that are allowed."""
    return texts[0] if len(texts) == 1 else f"Union[{','.join(texts)}]"


class TypeTexts:
    """The types that schemas allow. A schema may refer to definitions of ``root``, and they to each other.

    What is no proper schema, or is nested without end, is shown as open: a prompt has to say something.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[str, list[str]] = {}

    def of(self, schema: Any, depth: int = 0) -> list[str]:
        """The types that a schema allows, each once, in its order; at least one."""
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return _ANY
        comment = schema.get("$comment")
        if isinstance(comment, str) and comment.startswith(VERBATIM):
            return [comment.removeprefix(VERBATIM)]
        if isinstance(schema.get("$ref"), str):
            return self._of_reference(schema["$ref"], depth)
        for keyword in ("anyOf", "oneOf"):
            if _listed(schema.get(keyword)):
                return _unique(text for one in schema[keyword] for text in self.of(one, depth + 1))
        if "type" not in schema and _listed(schema.get("allOf")):
            return next((texts for one in schema["allOf"] if (texts := self.of(one, depth + 1)) != _ANY), _ANY)
        types = schema.get("type") or _types_of_values(schema)
        return _unique(self._of_type(str(one), schema, depth) for one in _listed(types) or [types])

    def _of_reference(self, reference: str, depth: int) -> list[str]:
        """Types of what a local reference (``#/$defs/Name``) points to. One that comes back to itself is open."""
        if reference not in self._known:
            self._known[reference] = _ANY
            self._known[reference] = self.of(self._resolved(reference), depth + 1)
        return self._known[reference]

    def _resolved(self, reference: str) -> Any:
        found: Any = self._root if reference.startswith("#") else None
        for key in reference.split("/")[1:]:
            found = found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        return found

    def _of_type(self, one: str, schema: Schema, depth: int) -> str:
        if one == "array":
            return self._generic("List", "", schema.get("items"), depth)
        if one == "object":
            inner = None if schema.get("properties") else schema.get("additionalProperties")
            return self._generic("Dict", "str, ", inner, depth)
        return _SIMPLE.get(one, one)

    def _generic(self, name: str, key: str, inner: Any, depth: int) -> str:
        text = nullable_text(self.of(inner, depth + 1))
        return name if text == "Any" else f"{name}[{key}{text}]"


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _unique(texts: Any) -> list[str]:
    return list(dict.fromkeys(texts))


def _types_of_values(schema: Schema) -> list[str]:
    """Types of the values of an ``enum`` or ``const``; otherwise of what the keywords are about."""
    names = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    values = _listed(schema.get("enum")) or ([schema["const"]] if "const" in schema else ())
    if values:
        return _unique(names.get(type(value), "null") for value in values)
    if "properties" in schema or "additionalProperties" in schema:
        return ["object"]
    return ["array"] if "items" in schema else ["Any"]
