"""Tools: of functions, of dictionaries, and between JSON Schema and Cohere's parameter definitions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Dict, List, Literal, Optional, Union  # noqa: UP035 (both spellings are met)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_support import SEARCH, SEARCH_SCHEMA
from quarterdeck.chat.messages import Tool
from quarterdeck.chat.prompts.tool_text import tools_text
from quarterdeck.chat.tools.schema import arguments_of, definitions_of, schema_of_definitions
from quarterdeck.chat.tools.type_texts import TypeTexts, nullable_text
from quarterdeck.errors import ChatError

# ── functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def search(query: str, count: int = 3, since: str | None = None) -> list[dict[str, Any]]:
    """Searches the ship's log
    from the newest entry on.

    Only entries of this voyage are found.

    Args:
        query: What to look for,
            in any language.
        count (int): How many entries at most.
        since: Earliest date: YYYY-MM-DD.

    Returns:
        entries: not an argument.
    """
    return [{"query": query, "count": count, "since": since}]


def test_a_function_becomes_a_tool() -> None:
    tool = Tool.of(search)
    assert (tool.name, tool.description) == ("search", "Searches the ship's log from the newest entry on.")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for, in any language."},
            "count": {"type": "integer", "description": "How many entries at most."},
            "since": {"type": ["string", "null"], "description": "Earliest date: YYYY-MM-DD."},
        },
        "required": ["query"],
    }
    assert tool.function is search
    assert Tool.of(tool) is tool
    assert Tool.of(tool.to_dict()).parameters == tool.parameters


class Ship:
    def steer(self, course: float) -> None:
        """Steers."""


def test_methods_and_functions_without_arguments_are_tools_too() -> None:
    assert Tool.of(Ship().steer).parameters == {
        "type": "object",
        "properties": {"course": {"type": "number"}},
        "required": ["course"],
    }

    def now() -> str:
        return "noon"

    assert Tool.of(now) == Tool("now", "", {"type": "object", "properties": {}}, now)


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (list, {"type": "array"}),
        (dict, {"type": "object", "additionalProperties": True}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (List[str], {"type": "array", "items": {"type": "string"}}),  # noqa: UP006
        (Dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),  # noqa: UP006
        (
            dict[str, list[bool]],
            {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}},
        ),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal[1, "a", None], {"type": ["integer", "string", "null"], "enum": [1, "a", None]}),
        (int | str, {"type": ["integer", "string"]}),
        (Union[int, str], {"type": ["integer", "string"]}),  # noqa: UP007
        (Optional[int], {"type": ["integer", "null"]}),  # noqa: UP045
        (
            list[str] | int | None,
            {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "integer"}, {"type": "null"}]},
        ),
        (list[int | None], {"type": "array", "items": {"type": ["integer", "null"]}}),
    ],
)
def test_type_hints_become_schemas(hint: Any, schema: dict[str, Any]) -> None:
    def tool(x):  # type: ignore[no-untyped-def]
        pass

    tool.__annotations__ = {"x": hint}
    assert Tool.of(tool).parameters["properties"] == {"x": schema}
    is_optional = "null" in json.dumps(schema.get("type", schema.get("anyOf")))
    assert Tool.of(tool).parameters.get("required") == (None if is_optional else ["x"])


def no_hint(x): ...  # type: ignore[no-untyped-def]
def set_hint(x: set[int]) -> None: ...
def bytes_hint(x: list[bytes]) -> None: ...
def any_hint(x: Any) -> None: ...
def key_hint(x: dict[int, str]) -> None: ...
def literal_hint(x: Literal[b"x"]) -> None: ...
def unknown_hint(x: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821, UP037
def star(*x: int) -> None: ...
def star_star(**x: int) -> None: ...
def positional(x: int, /) -> None: ...


@pytest.mark.parametrize(
    "function",
    [no_hint, set_hint, bytes_hint, any_hint, key_hint, literal_hint, unknown_hint, star, star_star, positional],
)
def test_what_cannot_be_described_is_refused_by_name(function: Callable[..., Any]) -> None:
    with pytest.raises(ChatError, match=function.__name__) as caught:
        Tool.of(function)
    assert "x" in str(caught.value) or "Nowhere" in str(caught.value)


@pytest.mark.parametrize("given_", [lambda x: x, Ship, Ship(), 3, "search", None])
def test_what_is_no_function_is_refused(given_: Any) -> None:
    with pytest.raises(ChatError):
        Tool.of(given_)


# ── dictionaries ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_spellings_of_a_tool_are_one() -> None:
    bare = SEARCH_SCHEMA["function"]
    assert Tool.of(SEARCH_SCHEMA) == Tool.of(bare) == Tool.of(SEARCH)
    assert Tool.of(bare | {"strict": True}) == Tool.of(bare)
    assert Tool.of({"name": "now"}) == Tool("now") == Tool.of({"name": "now", "description": None, "parameters": {}})


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({}, "name"),
        ({"name": "two words"}, "two words"),
        ({"name": "1st"}, "1st"),
        ({"name": "x" * 65}, "xxx"),
        ({"name": "a\n"}, "name"),
        ({"name": "<|END_OF_TURN_TOKEN|>"}, "END_OF_TURN"),
        ({"name": "f", "input_schema": {}}, "input_schema"),
        ({"name": "f", "description": 3}, "description"),
        ({"name": "f", "parameters": {"type": "string"}}, "object"),
        ({"name": "f", "parameters": [1]}, "object"),
        ({"name": "f", "parameters": {"properties": [1]}}, "properties"),
        ({"name": "f", "parameters": {"properties": {"x": 3}}}, "properties"),
        ({"name": "f", "parameters": {"properties": {}, "required": "x"}}, "required"),
        ({"name": "f", "parameters": {"properties": {}}, "parameter_definitions": {}}, "parameter_definitions"),
        ({"name": "f", "parameter_definitions": [1]}, "parameter_definitions"),
        ({"name": "f", "parameter_definitions": {"x": "str"}}, "'x'"),
        ({"name": "f", "parameter_definitions": {"x": {}}}, "type"),
        ({"name": "f", "parameter_definitions": {"x": {"type": "str", "items": {}}}}, "items"),
        ({"name": "f", "parameter_definitions": {"x": {"type": "str", "required": "yes"}}}, "required"),
        ({"type": "retrieval"}, "retrieval"),
        ({"type": "function", "function": "f"}, "function"),
        ({"type": "function", "function": {"name": "f"}, "name": "g"}, "name"),
    ],
)
def test_what_is_no_tool_is_refused_by_name(given_: Any, named: str) -> None:
    with pytest.raises(ChatError, match=named):
        Tool.of(given_)


# ── types ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TREE = {"$ref": "#/$defs/Tree", "$defs": {"Tree": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Tree"}}, {"type": "null"}]}}}  # fmt: skip # noqa: E501


def type_text(schema: Any) -> str:
    """The Python type that a schema stands for, as prompts show it."""
    return nullable_text(TypeTexts(schema if isinstance(schema, dict) else {}).of(schema))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, "str"),
        ({"type": "integer"}, "int"),
        ({"type": "number"}, "float"),
        ({"type": "boolean"}, "bool"),
        ({"type": "array"}, "List"),
        ({"type": "array", "items": {}}, "List"),
        ({"type": "array", "items": {"type": "string"}}, "List[str]"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, "List[List[float]]"),
        ({"type": "array", "items": {"type": ["integer", "null"]}}, "List[Optional[int]]"),
        ({"type": "object"}, "Dict"),
        ({"type": "object", "additionalProperties": True}, "Dict"),
        ({"type": "object", "additionalProperties": False}, "Dict"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "Dict[str, bool]"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}},
            "Dict",
        ),
        ({"type": ["string", "integer"]}, "Union[str,int]"),
        ({"type": ["string", "null"]}, "Optional[str]"),
        ({"type": ["string", "integer", "null"]}, "Optional[Union[str,int]]"),
        ({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}, "Union[str,List[int]]"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "str"),
        ({"allOf": [{"description": "d"}, {"type": "integer"}]}, "int"),
        ({"enum": ["a", "b"]}, "str"),
        ({"enum": ["a", 1, None]}, "Optional[Union[str,int]]"),
        ({"const": 2.5}, "float"),
        ({"type": "null"}, "None"),
        ({}, "Any"),
        (True, "Any"),
        ({"type": "Date"}, "Date"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"type": "integer"}}}, "int"),
        ({"$ref": "#/nowhere"}, "Any"),
        ({"$ref": "https://example.org/schema"}, "Any"),
        ({"$ref": "#"}, "Any"),
        (TREE, "Optional[List]"),
    ],
)
def test_schemas_are_shown_as_python_types(schema: Any, text: str) -> None:
    assert type_text(schema) == text


def test_schemas_that_explode_are_cut_short() -> None:
    laughs: dict[str, Any] = {
        f"L{n}": {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/L{n + 1}"}}] * 9} for n in range(50)
    }
    assert len(type_text({"$ref": "#/$defs/L0", "$defs": laughs})) < 100
    wide = {f"W{n}": {"anyOf": [{"type": kind, "items": {"$ref": f"#/$defs/W{n + 1}"}, "additionalProperties": {"$ref": f"#/$defs/W{n + 1}"}} for kind in ("array", "object")]} for n in range(50)}  # fmt: skip # noqa: E501
    assert len(type_text({"$ref": "#/$defs/W0", "$defs": wide})) < 10_000


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    "type anyOf allOf oneOf items enum const $ref properties required additionalProperties".split()
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=10,
    )
)
def test_whatever_is_given_for_a_schema_has_a_text_or_a_refusal(schema: Any) -> None:
    try:
        tool = Tool("f", "", {"type": "object", "properties": {"x": schema}})
    except ChatError:
        return
    assert "def f(x: Optional[" in tools_text([tool])


@pytest.mark.parametrize(
    ("shown", "schema"),
    [
        ("string", {"type": "string"}),
        ("str", {"type": "string"}),
        ("number", {"type": "number"}),
        ("object", {"type": "object", "additionalProperties": True}),
        ("List[str]", {"type": "array", "items": {"type": "string"}}),
        ("Dict[str, float]", {"type": "object", "additionalProperties": {"type": "number"}}),
        ("Union[str,int]", {"type": ["string", "integer"]}),
        ("list", {"type": "array", "$comment": "python type: list"}),
        ("Optional[str]", {"type": ["string", "null"], "$comment": "python type: Optional[str]"}),
        ("int | None", {"type": ["integer", "null"], "$comment": "python type: int | None"}),
        ("date", {"$comment": "python type: date"}),
        ("List[", {"$comment": "python type: List["}),
        ("<EOS_TOKEN>", {"$comment": "python type: <EOS_TOKEN>"}),
    ],
)
def test_types_of_definitions_become_schemas_and_are_shown_as_written(shown: str, schema: dict[str, Any]) -> None:
    parameters = schema_of_definitions("f", {"x": {"type": shown, "required": True}})
    assert parameters["properties"]["x"] == schema
    (argument,) = arguments_of(parameters)
    expected = {"string": "str", "number": "float", "object": "Dict"}.get(shown, shown)
    assert (argument.type, argument.is_optional) == (expected, False)
    optional = schema_of_definitions("f", {"x": {"type": shown}})
    assert arguments_of(optional)[0].annotation == f"Optional[{expected}]"


def test_definitions_come_back() -> None:
    definitions = {
        "query": {"type": "str", "description": "What", "required": True},
        "tags": {"type": "List[str]", "required": False},
        "when": {"type": "date", "description": "When", "required": True},
    }
    assert definitions_of(schema_of_definitions("f", definitions)) == definitions


def test_a_tool_is_shown_as_a_python_stub() -> None:
    stub = '''```python
def search(query: str, count: Optional[int] = None) -> List[Dict]:
    """Searches the log.

    Args:
        query (str): What to look for
        count (Optional[int]): How many
    """
    pass
```'''
    assert tools_text([Tool.of(SEARCH)]) == tools_text([Tool.of(SEARCH_SCHEMA)]) == stub
    nothing = '```python\ndef now() -> List[Dict]:\n    """\n    """\n    pass\n```'
    assert tools_text([Tool("now"), Tool("now")]) == f"{nothing}\n\n{nothing}"
    nullable = Tool("f", "", {"type": "object", "properties": {"x": {"type": ["string", "null"]}}, "required": ["x"]})
    assert "def f(x: Optional[str] = None) ->" in tools_text([nullable])
