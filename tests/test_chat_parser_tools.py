"""Tool calls in a model's text: what is forgiven, what is streamed when, and JSON of any shape and spacing."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_parser_reference import JSON, SPACES, WORDS, json_objects, json_values, spaced_json, texts
from quarterdeck.chat.messages import Message, ToolCallDelta, ToolCallEnd, ToolCallStart
from quarterdeck.chat.parser import Parser, parse
from quarterdeck.chat.parsing.json_pieces import JsonSplitter, unescaped


def calls(action: str, format: str = "tool_use") -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in parse(f"Action:{action}", format).tool_calls]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        # the list and its fence
        (' ```json\n[{"tool_name": "f", "parameters": {"a": 1}}]\n```', [("f", '{"a":1}')]),
        ('```[{"tool_name": "f", "parameters": {}}]', [("f", "{}")]),
        ('\n\n[ {"tool_name":"f","parameters":{ }} ]', [("f", "{}")]),
        ('{"tool_name": "f", "parameters": {"a": 1}}', [("f", '{"a":1}')]),
        ('{"tool_name": "f"}, {"tool_name": "g"}', [("f", "{}")]),
        ("[]", []),
        ("```json\n```", []),
        ("nothing to do", []),
        ("", []),
        # what a call lacks, or has too much
        ('[{"tool_name": "f"}, {"tool_name": "g"}]', [("f", "{}"), ("g", "{}")]),
        ('[{"tool_name": "f", "parameters": null}]', [("f", "{}")]),
        ('[{"tool_name": "f", "parameters": [1, {"tool_name": "h"}]}]', [("f", "{}")]),
        ('[{"tool_name": "f", "parameters": "{\\"a\\": 1}"}]', [("f", "{}")]),
        ('[{"tool_name": 1, "parameters": {}}, {"parameters": {"a": 1}}, {}, {"tool_name": "g"}]', [("g", "{}")]),
        ('[{"x": {"tool_name": "h"}, "tool_name": "f", "y": "tool_name", "parameters": {"b": 2}}]', [("f", '{"b":2}')]),
        ('[{"tool_name": "f", "tool_name": "g", "parameters": {"a": 1}, "parameters": {"b": 2}}]', [("f", '{"a":1}')]),
        ('[{"parameters": {"tool_name": "h"}, "tool_name": "f"}]', [("f", '{"tool_name":"h"}')]),
        ('[1, "{", [{"tool_name": "h"}], null, "`", {"tool_name": "g"}]', [("g", "{}")]),
        ('[{"tool_name": "f" "parameters": {"a": 1}} {"tool_name": "g"}]', [("f", '{"a":1}'), ("g", "{}")]),
        ('[{"tool_name": "directly_answer", "parameters": {}}]', [("directly_answer", "{}")]),
        # names and strings
        ('[{"tool\\u005fname": "caf\\u00e9 \\"x\\"", "parameters": {}}]', [('café "x"', "{}")]),
        ('[{"tool_name": "f", "parameters": {"a": " x,  \\" ] \\u00e9 é"}}]', [("f", '{"a":" x,  \\" ] \\u00e9 é"}')]),
        ('[{"tool_name": "f", "parameters": {"a": "1\n2\t3\x01"}}]', [("f", '{"a":"1\\n2\\t3\\u0001"}')]),
        # trailing commas, and commas that are not
        ('[{"tool_name": "f", "parameters": {"a": [1, 2, ], },}, ]', [("f", '{"a":[1,2]}')]),
        ('[{"tool_name": "f", "parameters": {"a": [1,,]}}]', [("f", '{"a":[1,]}')]),
        ('[{"tool_name": "f", "parameters": {"a": [,]}}]', [("f", '{"a":[,]}')]),
        ('[{"tool_name": "f", "parameters": {"a": 1 2}}]', [("f", '{"a":1 2}')]),
        # all that follows is dropped
        ('[{"tool_name": "f"}]\n```\nAction: [{"tool_name": "g"}]', [("f", "{}")]),
        ('[{"tool_name": "f"}]\n<results>\nGrounded answer: x', [("f", "{}")]),
        ('[{"tool_name": "f"}\n```\n{"tool_name": "g"}', [("f", "{}")]),
        # the text ends inside a call
        ('[{"tool_name": "f", "parameters": {"a": "tall pen', [("f", '{"a":"tall pen')]),
        ('[{"tool_name": "f", "parameters": {"a": 1,', [("f", '{"a":1,')]),
        ('[{"tool_name": "f"', [("f", "")]),
        ('[{"tool_name": "f", "parameters": ', [("f", "")]),
        ('[{"tool_name": "sear', []),
        ('[{"parameters": {"a": 1}', []),
        # brackets that close what is not open: nothing is guessed
        ('[{"tool_name": "f", "parameters": {"a": [1}}, {"tool_name": "g"}]', [("f", '{"a":[1')]),
        ('[{"tool_name": "f", "parameters": {"a": 1}], {"tool_name": "g"}', [("f", '{"a":1}')]),
        ('[{"tool_name": "f"}}, {"tool_name": "g"}]', [("f", "{}")]),
        ('[{"tool_name": "f", "x": [}], {"tool_name": "g"}', [("f", "")]),
        ('[[}, {"tool_name": "g"}]', []),
    ],
)  # fmt: skip
def test_calls(action, expected) -> None:
    assert calls(action) == expected


def test_no_text_comes_with_calls_or_after_them() -> None:
    parsed = parse('Action: [{"tool_name": "f"}]\nGrounded answer: invented', "multi_step")
    assert (parsed.text, parsed.tool_plan, len(parsed.tool_calls)) == ("", "", 1)


def test_what_arrives_is_streamed_at_once() -> None:
    parser = Parser("multi_step")
    parser.feed('Action: ```json\n[{"tool_name": "sea')
    (start,) = parser.feed('rch"')
    assert isinstance(start, ToolCallStart)
    assert (start.index, start.name) == (0, "search")
    assert re.fullmatch("search_[a-z0-9]{12}", start.id)
    assert parser.feed(', "parameters": {') == [ToolCallDelta(0, "{")]
    assert parser.feed('"q": "tal') == [ToolCallDelta(0, '"q":"tal')]
    assert parser.feed('l"') == [ToolCallDelta(0, 'l"')]
    assert parser.feed(", ") == []
    assert parser.feed("}") == [ToolCallDelta(0, "}")]
    assert parser.feed("\n} ") == [ToolCallEnd(0)]
    events = parser.feed(', {"parameters": {"a": 1}, "tool_name": "g"}]')
    assert [event.type for event in events] == ["tool-call-start", "tool-call-delta", "tool-call-end"]
    assert events[1:] == [ToolCallDelta(1, '{"a":1}'), ToolCallEnd(1)]
    assert parser.close() == []


def test_ids_of_equal_calls_differ() -> None:
    first, second = parse('Action: [{"tool_name": "f"}, {"tool_name": "f"}]', "tool_use").tool_calls
    assert first.id != second.id


def test_a_call_that_is_cut_off_has_no_parameters_but_an_end() -> None:
    parser = Parser("tool_use")
    parser.feed('Action: [{"tool_name": "f", "parameters": {"a": 1')
    assert parser.close() == [ToolCallEnd(0)]
    with pytest.raises(ValueError):
        _ = parser.parsed.tool_calls[0].parameters
    assert parser.parsed.problems == ("the list of tool calls is incomplete",)


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ("I will search", "no list"),
        ('[{"tool_name": "f"}, {"name": "g"}]', "without a tool_name"),
        ('[[1], {"tool_name": "f"}]', "left out"),
        ('[{"tool_name": "f"}', "incomplete"),
        ('[{"tool_name": "f"}\n```', "not closed"),
        ('[{"tool_name": "f", "parameters": {"a": [}', "closes what it did not open"),
    ],
)
def test_what_was_mended_is_reported(action, problem) -> None:
    (found,) = parse(f"Action: {action}", "tool_use").problems
    assert problem in found
    assert parse('Action: [{"tool_name": "f"}]', "tool_use").problems == ()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.tuples(st.text(min_size=1), json_objects), max_size=3), st.booleans())
def test_any_list_of_calls_in_any_spacing(data, wanted, name_first) -> None:
    keys = ["tool_name", "parameters"] if name_first else ["parameters", "tool_name"]
    written = [{key: {"tool_name": name, "parameters": value}[key] for key in keys} for name, value in wanted]
    parsed = parse(f"Action: ```json\n{data.draw(spaced_json(written))}\n```", "tool_use")
    assert [(call.name, call.parameters) for call in parsed.tool_calls] == wanted
    for call in parsed.tool_calls:
        assert len(call.arguments) <= len(json.dumps(call.parameters, separators=(",", ":")))
    assert parsed.problems == ()


@settings(max_examples=40, deadline=None)
@given(st.data(), json_objects)
def test_the_arguments_of_a_cut_off_call_begin_those_of_the_whole(data, value) -> None:
    body = data.draw(spaced_json(value, trailing_commas=False))
    whole = parse(f'Action: [{{"tool_name": "f", "parameters": {body}}}]', "tool_use").tool_calls[0].arguments
    for end in range(0, len(body), 1 + len(body) // 40):
        (call,) = parse(f'Action: [{{"tool_name": "f", "parameters": {body[:end]}', "tool_use").tool_calls
        assert whole.startswith(call.arguments)
        assert call.arguments == re.sub(r'("(?:[^"\\]|\\.)*"?)|\s+', r"\1", body[:end])


@settings(max_examples=200, deadline=None)
@given(texts(JSON, SPACES, WORDS, size=24))
def test_calls_start_get_their_arguments_and_end(text) -> None:
    """Whatever was written: calls come one after the other, each with a start, arguments and one end."""
    parser = Parser("tool_use")
    events = [event for character in f"Action:{text}" for event in parser.feed(character)] + parser.close()
    shape = "".join({"start": "s", "delta": "d", "end": "e"}[event.type.removeprefix("tool-call-")] for event in events)
    assert re.fullmatch("(sd*e)*", shape)
    assert [event.index for event in events] == sorted(event.index for event in events)
    numbers = [event.index for event in events if isinstance(event, ToolCallStart)]
    assert numbers == list(range(len(numbers)))


@settings(max_examples=200, deadline=None)
@given(texts(JSON, SPACES, WORDS, size=24), json_values)
def test_pieces_of_valid_json_join_to_the_same_value(text, value) -> None:
    def joined(text: str) -> str:
        return "".join(piece.text for piece in JsonSplitter().feed(text))

    assert json.loads(joined(json.dumps(value, indent=3))) == value
    text = re.sub(r"\s", " ", text)  # between tokens any white space will do for us, not only JSON's four
    try:
        json.loads(text, strict=False)
    except ValueError:
        with pytest.raises(ValueError):  # never sound where the original was not
            json.loads(joined(text), strict=False)


def test_escapes_that_stand_for_nothing_stay_or_become_replacement_characters() -> None:
    assert unescaped(r"a\u00e9\n") == "aé\n"
    assert unescaped(r"a\x") == r"a\x"
    assert unescaped(r"\ud83d\ude00 \ud83d") == "😀 \ufffd"
    assert unescaped("\ud800") == "\ufffd"


@pytest.mark.parametrize("opener", ["[", '{"a":', '[{"tool_name": "f", "parameters": {"a": ['])
def test_deep_nesting_is_no_recursion(opener) -> None:
    parse("Action: " + opener * 5_000, "tool_use")
    parse("<co: 0>" * 5_000 + "x" + "</co>" * 5_000, "rag")


def test_an_empty_name_is_no_name() -> None:
    """What the model wrote becomes a message that is valid input."""
    text = 'Action: [{"tool_name": "", "parameters": {"a": 1}}, {"tool_name": ""}, {"tool_name": "f"}]'
    calls = parse(text, "multi_step").tool_calls
    assert [call.name for call in calls] == ["f"]
    message = Message("assistant", tool_calls=calls)
    assert Message.of(message.to_dict()) == message


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ('[{"tool_name": "f", "parameters": {"a": tru}}]', "no JSON"),
        ('[{"tool_name": "f", "parameters": {"a": 1,,}}]', "no JSON"),
        ('[{"parameters": {"a": tru}, "tool_name": "f"}]', "no JSON"),
        ('[{"tool_name": "f", "parameters": [1]}]', "are no object"),
        ('[{"tool_name": "f", "parameters": "x"}]', "are no object"),
        ('[1, {"tool_name": "f"}]', "no object among"),
        ('["a{b", {"tool_name": "f"}]', "no object among"),
        ('call it: [{"tool_name": "f"}]', "before the list"),
    ],
)
def test_what_was_recovered_is_reported_however_it_is_cut(action, problem) -> None:
    for text in (f"Action: {action}", f"Action: ```json\n{action}\n```"):
        (found,) = parse(text, "tool_use").problems
        assert problem in found
        for size in (1, 2, 3):
            parser = Parser("tool_use")
            for start in range(0, len(text), size):
                parser.feed(text[start : start + size])
            parser.close()
            assert parser.parsed.problems == (found,)


def test_prose_in_the_place_of_a_list_is_reported() -> None:
    found = parse("Action: none of [them] {x}", "tool_use")
    assert found.tool_calls == ()
    assert len(found.problems) == 2
    for fence in ("```json\n", "```\n", "", "\n```\njson ", "``` json "):
        assert parse(f'Action: {fence}[{{"tool_name": "f"}}]', "tool_use").problems == ()
