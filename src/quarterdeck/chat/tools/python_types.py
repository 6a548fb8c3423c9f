"""Python types as Cohere's parameter definitions spell them (``List[str]``, ``Optional[int]``) to JSON Schema."""

from __future__ import annotations

import ast
import re
from typing import Any

_NAMES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "List": "array",
    "array": "array",
    "dict": "object",
    "Dict": "object",
    "object": "object",
    "None": "null",
    "null": "null",
}

_TYPE = re.compile(r"[A-Za-z_\[\]|, ]{1,1000}")
"""What such a type can consist of. Anything else would only cost time, and warnings of Python's parser."""


def schema_of_text(text: str) -> dict[str, Any]:
    """The JSON Schema of a type given as text; the open schema ``{}`` if it is no type that is known here."""
    if not _TYPE.fullmatch(text):
        return {}
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _schema(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _schema(node: ast.expr) -> dict[str, Any]:
    """The schema of a type's expression.

    Raises:
        ValueError: it is no type that is known here.
    """
    if isinstance(node, ast.Constant) and node.value is None:
        return {"type": "null"}
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _of_name(_NAMES[node.id])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return union([_schema(node.left), _schema(node.right)])
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _of_generic(node.value.id, inner)
    raise ValueError("no known type")


def _of_name(name: str) -> dict[str, Any]:
    return {"type": name, "additionalProperties": True} if name == "object" else {"type": name}


def _of_generic(name: str, inner: list[ast.expr]) -> dict[str, Any]:
    if name in ("list", "List") and len(inner) == 1:
        return {"type": "array", "items": _schema(inner[0])}
    if name in ("dict", "Dict") and len(inner) == 2 and _schema(inner[0]) == {"type": "string"}:
        return {"type": "object", "additionalProperties": _schema(inner[1])}
    if name == "Optional" and len(inner) == 1:
        return union([_schema(inner[0]), {"type": "null"}])
    if name == "Union" and inner:
        return union([_schema(one) for one in inner])
    raise ValueError("no known type")


def union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of what any of several schemas allows: a list of types if nothing but types is said."""
    if len(schemas) == 1:
        return schemas[0]
    flat = [one for schema in schemas for one in (schema["anyOf"] if set(schema) == {"anyOf"} else [schema])]
    if all(set(schema) == {"type"} for schema in flat):
        types = [one for schema in flat for one in _as_list(schema["type"])]
        unique = list(dict.fromkeys(types))
        return {"type": unique if len(unique) > 1 else unique[0]}
    return {"anyOf": flat}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def literal(values: list[Any]) -> dict[str, Any]:
    """The schema of one of several values.

    Raises:
        ValueError: a value is no string, int, bool or None.
    """
    names = {str: "string", bool: "boolean", int: "integer", type(None): "null"}
    if not values or not all(type(value) in names for value in values):
        raise ValueError("a Literal holds strings, ints, bools or None")
    types = list(dict.fromkeys(names[type(value)] for value in values))
    return {"type": types if len(types) > 1 else types[0], "enum": values}
