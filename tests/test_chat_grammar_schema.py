"""Whether a value satisfies a schema, against the `jsonschema` package, and schemas merged into one."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_grammar_support import NAMES, NUMBERS, VALUES, schemas, validator
from quarterdeck.chat.grammars.formats import FORMATS
from quarterdeck.chat.grammars.schema_check import accepts, check_schema, resolve
from quarterdeck.chat.grammars.schema_merge import plain, together
from quarterdeck.errors import ChatError

json_values = st.recursive(
    st.sampled_from((*VALUES, *NUMBERS, "aaa", "foo12", "b", "2024-02-30", "12:00:00Z", 1.0)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schemas, json_values)
def test_values_are_judged_as_elsewhere(schema: Any, value: Any) -> None:
    theirs = jsonschema.Draft202012Validator(schema).is_valid(value)  # formats aside: ours allow less
    if "format" not in str(schema):
        assert accepts(schema, value, schema, "it") == theirs
    elif accepts(schema, value, schema, "it"):
        assert validator(schema).is_valid(value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(schemas.filter(lambda schema: "anyOf" not in schema and "allOf" not in schema), min_size=2, max_size=3),
    json_values,
)
def test_merged_schemas_say_what_all_say(given_schemas: list[dict[str, Any]], value: Any) -> None:
    merged = together([plain(schema) for schema in given_schemas])
    every = all(accepts(schema, value, schema, "it") for schema in given_schemas)
    if merged is None:
        assert not every
        return
    conditions: list[Any] = [
        {key: list(one) if key == "type" else one for key, one in merged.items() if key not in ("pattern", "format")}
    ]
    conditions += [{key: one} for key in ("pattern", "format") for one in merged.get(key, ())]
    assert all(accepts(one, value, one, "it") for one in conditions) == every


def test_references_are_followed_through_escapes_and_lists() -> None:
    schema = {"$defs": {"a/b~c": {"anyOf": [True, {"const": 1}]}}}
    assert resolve("#/$defs/a~1b~0c/anyOf/1", schema, "it") == {"const": 1}
    assert resolve("#", schema, "it") is schema
    for wrong in ("#/$defs/x", "#/$defs/a~1b~0c/anyOf/2", "#/$defs/a~1b~0c/anyOf/x", "other.json", "#anchor"):
        with pytest.raises(ChatError, match="points"):
            resolve(wrong, schema, "it")


def test_schemas_nested_beyond_reason_are_refused() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ChatError, match="levels deep"):
        check_schema(schema, "it")


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", ["0001-01-01", "2000-02-29"], ["2023-02-29", "2024-04-31", "24-01-01", "1900-02-29", "0000-01-01"]),
        (
            "time",
            ["23:59:60Z", "01:02:03.1234567-07:00"],
            ["24:00:00Z", "12:60:00Z", "12:00:61Z", "12:00:00", "12:00Z"],
        ),
        (
            "date-time",
            ["0001-01-01t00:00:00z"],
            ["2024-01-01 12:00:00Z", "2024-01-01T12:00:00", "2023-02-29T00:00:00Z"],
        ),
        ("uuid", ["123E4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000", "g23e4567-e89b"]),
        ("email", ["o'brien@example.org", "é@é"], ["a", "@b", "a@"]),
    ],
)
def test_values_of_formats_are_judged_by_their_specification(name: str, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not accepts({"format": name}, text, True, "it")] == []
    assert [text for text in wrong if accepts({"format": name}, text, True, "it")] == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.sampled_from(list(FORMATS)))
def test_what_grammars_write_has_its_format(data: st.DataObject, name: str) -> None:
    text = data.draw(st.from_regex(rf"\A(?:{FORMATS[name]})\Z"))
    assert accepts({"format": name}, text, True, "it")
    assert validator({"format": name}).is_valid(text)
