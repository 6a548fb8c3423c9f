"""Tools' arguments: JSON Schema, Cohere's parameter definitions, and the Python types that the prompt shows.

    JSON Schema                                     prompt
    {"type": "string"}                              str
    {"type": "array", "items": {"type": "number"}}  List[float]
    {"type": ["integer", "string"]}                 Union[int,str]
    {"type": ["integer", "null"]}                   Optional[int] = None
    {"type": "object", "additionalProperties": {}}  Dict

JSON Schema is the form that is kept. A type of a parameter definition that has no schema with that very text (``list``,
``date``) is kept beside its schema as a ``$comment``, so that the prompt shows what the caller wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quarterdeck.chat.json_text import check_writable, kind, shown
from quarterdeck.chat.tools.python_types import schema_of_text
from quarterdeck.chat.tools.type_texts import JSON_TYPES, VERBATIM, TypeTexts, union_text
from quarterdeck.errors import ChatError

Schema = Mapping[str, Any]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Argument:
    """One argument of a tool as the prompt shows it; ``type`` is without the ``Optional[...]`` of optional ones."""

    name: str
    type: str
    is_optional: bool
    description: str

    @property
    def annotation(self) -> str:
        """The type as shown."""
        return f"Optional[{self.type}]" if self.is_optional else self.type


def check_tool_name(name: Any) -> None:
    """Refuses what cannot be the name of a tool.

    Raises:
        ChatError: naming it.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ChatError(
            f"the name of a tool is a letter or _ and up to 63 letters, digits, _ and -, not {shown(name)}: rename it"
        )


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def read_tool(given: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Name, description and JSON Schema of the arguments of a tool in OpenAI's or Cohere's spelling.

    Raises:
        ChatError: it is in neither.
    """
    fields: Mapping[str, Any] = given
    if "function" in given:
        _check_keys(given, {"type", "function"}, "a tool")
        fields = given["function"]
        if given.get("type", "function") != "function" or not isinstance(fields, Mapping):
            raise ChatError(f"a tool has the type function, and its function is a dictionary: {shown(given)}")
    known = {"name", "description", "parameters", "parameter_definitions", "strict", "type"}
    _check_keys(fields, known, "a tool")
    if "type" in fields and fields["type"] != "function":
        raise ChatError(f"a tool has the type function, not {shown(fields['type'])}")
    name, description = fields.get("name"), fields.get("description")
    check_tool_name(name)
    if description is not None and not isinstance(description, str):
        raise ChatError(f"the description of the tool {name} is a string, not {kind(description)}")
    return str(name), description or "", _read_parameters(str(name), fields)


def _check_keys(given: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(str(key) for key, value in given.items() if key not in known and value is not None)
    if unknown:
        raise ChatError(f"{what} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}: {shown(dict(given))}")


def _read_parameters(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    schema, definitions = fields.get("parameters"), fields.get("parameter_definitions")
    if schema is not None and definitions is not None:
        raise ChatError(f"the tool {name} has parameters and parameter_definitions: give one of the two")
    if definitions is not None:
        return schema_of_definitions(name, definitions)
    if not schema:
        return {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping):
        raise ChatError(f"the parameters of the tool {name} are a JSON Schema of an object, not {shown(schema)}")
    return dict(schema)


def check_parameters(name: str, schema: Schema) -> None:
    """Refuses a schema of arguments whose shape is wrong.

    Raises:
        ChatError: naming the tool and what is wrong.
    """
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise ChatError(f"the parameters of the tool {name} are a JSON Schema of an object, not {shown(schema)}")
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not isinstance(properties, Mapping) or not all(
        isinstance(key, str) and isinstance(one, (Mapping, bool)) for key, one in properties.items()
    ):
        raise ChatError(f"the properties of the tool {name} are schemas by name, not {shown(properties)}")
    if not isinstance(required, (list, tuple)) or not all(isinstance(key, str) for key in required):
        raise ChatError(f"'required' of the tool {name} is a list of names, not {shown(required)}")
    reason = check_writable(dict(schema))
    if reason is not None:
        raise ChatError(f"the parameters of the tool {name} cannot be written as JSON: {reason}")


def schema_of_definitions(name: str, definitions: Any) -> dict[str, Any]:
    """The JSON Schema that Cohere's parameter definitions stand for.

    Raises:
        ChatError: they are not ``{name: {"type", "description"?, "required"?}}``.
    """
    if not isinstance(definitions, Mapping):
        raise ChatError(f"parameter_definitions of the tool {name} is a dictionary, not {kind(definitions)}")
    properties: dict[str, Any] = {}
    required = []
    for parameter, definition in definitions.items():
        what = f"the parameter {parameter!r} of the tool {name}"
        if not isinstance(definition, Mapping):
            raise ChatError(f"{what} is a dictionary, not {kind(definition)}")
        _check_keys(definition, {"type", "description", "required"}, what)
        shown_type, description = definition.get("type"), definition.get("description")
        if not isinstance(parameter, str) or not isinstance(shown_type, str) or not shown_type:
            raise ChatError(f"{what} has a name and a type, both strings: {shown(dict(definition))}")
        if not isinstance(description or "", str) or not isinstance(definition.get("required") or False, bool):
            raise ChatError(f"{what} has a description, a string, and required, a bool: {shown(dict(definition))}")
        properties[parameter] = _schema_of_type(shown_type)
        if description:
            properties[parameter]["description"] = description
        if definition.get("required"):
            required.append(parameter)
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _schema_of_type(shown_type: str) -> dict[str, Any]:
    schema = schema_of_text(shown_type)
    texts = TypeTexts(schema).of(schema)
    is_same = shown_type in JSON_TYPES or ("None" not in texts and union_text(texts) == shown_type)
    return schema if is_same else {**schema, "$comment": VERBATIM + shown_type}


# ── showing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def arguments_of(parameters: Schema) -> list[Argument]:
    """The arguments that a JSON Schema object describes, in its order."""
    required, types = set(parameters.get("required") or ()), TypeTexts(parameters)
    found = []
    for name, schema in (parameters.get("properties") or {}).items():
        texts = types.of(schema)
        without_null = [text for text in texts if text != "None"] or texts
        is_optional = name not in required or len(without_null) < len(texts)
        description = str(_as_mapping(schema).get("description") or "")
        found.append(Argument(name, union_text(without_null), is_optional, description))
    return found


def definitions_of(parameters: Schema) -> dict[str, dict[str, Any]]:
    """Cohere's parameter definitions that a JSON Schema object stands for, as far as they can say it."""
    return {
        argument.name: {
            "type": argument.type,
            **({"description": argument.description} if argument.description else {}),
            "required": not argument.is_optional,
        }
        for argument in arguments_of(parameters)
    }


def _as_mapping(schema: Any) -> Schema:
    return schema if isinstance(schema, Mapping) else {}
