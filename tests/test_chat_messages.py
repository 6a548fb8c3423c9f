"""Values of a conversation: what they are read from, what is refused, and that they come back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck.chat import messages as m
from quarterdeck.chat.messages import Citation, Document, Message, Source, ToolCall
from quarterdeck.errors import ChatError, QuarterdeckError

CALL = ToolCall("c1", "search", '{"query":"wind"}')

# ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"role": "user", "content": "Hi"}, Message("user", "Hi")),
        ({"role": "USER", "message": "Hi"}, Message("user", "Hi")),
        ({"role": "Chatbot", "message": "Ahoy"}, Message("assistant", "Ahoy")),
        ({"role": "CHATBOT", "content": "Ahoy"}, Message("assistant", "Ahoy")),
        ({"role": "developer", "content": "Be brief."}, Message("system", "Be brief.")),
        ({"role": "System", "message": "Be brief."}, Message("system", "Be brief.")),
        ({"role": "user", "content": None}, Message("user", "")),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            Message("user", "ab"),
        ),
        (
            {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None},
            Message("assistant", "x"),
        ),
        ({"role": "user", "content": "x", "name": "Ann"}, Message("user", "x")),
        (
            {"role": "assistant", "tool_plan": "Look.", "tool_calls": [CALL.to_dict()]},
            Message("assistant", "", "Look.", (CALL,)),
        ),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "index": 0,
                        "function": {"name": "search", "arguments": {"query": "wind"}},
                    }
                ],
            },
            Message("assistant", "", "", (CALL,)),
        ),
        (
            {"role": "assistant", "content": "x", "tool_calls": None, "tool_plan": None, "citations": None},
            Message("assistant", "x"),
        ),
    ],
)
def test_a_message_is_read_in_every_spelling(given_: dict[str, Any], expected: Message) -> None:
    assert Message.of(given_) == expected
    assert Message.of(expected) is expected


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("plain", [{"output": "plain"}]),
        ("", [{"output": ""}]),
        ('{"a": 1, "id": "x"}', [{"a": 1, "id": "x"}]),
        ('[{"a": 1}, {"b": [2]}]', [{"a": 1}, {"b": [2]}]),
        ("[]", []),
        ("[1, 2]", [{"output": "[1, 2]"}]),
        ('[{"a": 1}, 2]', [{"output": '[{"a": 1}, 2]'}]),
        ("3", [{"output": "3"}]),
        ('"text"', [{"output": '"text"'}]),
        ('{"a": NaN}', [{"output": '{"a": NaN}'}]),
        ('{"a": ', [{"output": '{"a": '}]),
        ([{"type": "text", "text": "plain"}], [{"output": "plain"}]),
        ([{"type": "document", "document": {"data": {"a": 1}, "id": "x"}}], [{"a": 1}]),
        ([{"type": "document", "document": {"data": '{"a": 1}'}}], [{"a": 1}]),
        ([{"type": "document", "document": {"data": "words"}}], [{"text": "words"}]),
        (
            [{"type": "text", "text": '{"a": 1}'}, {"type": "document", "document": {"b": 2}}],
            [{"a": 1}, {"b": 2}],
        ),
    ],
)
def test_the_content_of_a_tool_message_becomes_documents(content: Any, documents: list[dict[str, Any]]) -> None:
    message = Message.of({"role": "tool", "tool_call_id": "c1", "content": content})
    assert [document.data for document in message.documents] == documents
    assert (message.content, message.tool_call_id) == ("", "c1")


def test_a_tool_message_made_directly_is_the_same_as_one_that_is_read() -> None:
    made = Message("tool", '[{"a": 1}]', tool_call_id="c1")
    assert made == Message.of({"role": "tool", "tool_call_id": "c1", "content": '[{"a": 1}]'})
    assert made.documents == (Document({"a": 1}),)


def test_results_of_cohere_v1_find_their_calls() -> None:
    call = {"name": "search", "parameters": {"query": "wind"}}
    other = {"name": "search", "parameters": {"query": "rain"}}
    asked = Message.of({"role": "CHATBOT", "message": "Look.", "tool_calls": [call, other]})
    told = Message.of(
        {
            "role": "TOOL",
            "tool_results": [{"call": call, "outputs": [{"a": 1}, {"b": 2}]}, {"call": other, "outputs": []}],
        }
    )
    assert told.tool_call_id == asked.tool_calls[0].id
    assert [document.id for document in told.documents] == [f"{told.tool_call_id}:0", f"{told.tool_call_id}:1"]
    assert asked.tool_calls[0].id != asked.tool_calls[1].id
    assert asked.tool_calls[0].parameters == {"query": "wind"}


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ("Hi", "dictionary"),
        (None, "null"),
        ({"content": "x"}, "role"),
        ({"role": "captain", "content": "x"}, "captain"),
        ({"role": 1, "content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "contents": "x", "content": "y"}, "contents"),
        ({"role": "user", "content": 5}, "int"),
        ({"role": "user", "content": {"type": "text"}}, "dict"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "image_url"),
        ({"role": "user", "content": [{"type": "text"}]}, "text"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "int"),
        ({"role": "user", "content": [5]}, "5"),
        ({"role": "user", "content": [{"type": "document", "document": {"a": 1}}]}, "documents"),
        ({"role": "user", "content": "x", "tool_calls": [CALL.to_dict()]}, "tool_calls"),
        ({"role": "user", "content": "x", "tool_call_id": "c1"}, "tool_call_id"),
        ({"role": "assistant", "tool_calls": {"id": "c"}}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "name"),
        ({"role": "assistant", "tool_calls": [{"id": 3, "name": "f"}]}, "id"),
        ({"role": "assistant", "tool_calls": ["f"]}, "dictionary"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "name": "f", "args": {}}]}, "args"),
        ({"role": "assistant", "tool_calls": [{"id": "c", "name": "f", "arguments": [1]}]}, "arguments"),
        ({"role": "assistant", "tool_plan": 3}, "tool_plan"),
        ({"role": "assistant", "content": "x", "citations": [{"start": 0}]}, "citation"),
        ({"role": "tool", "tool_call_id": 3, "content": "x"}, "tool_call_id"),
        ({"role": "tool", "tool_results": [{"outputs": []}]}, "call"),
        ({"role": "tool", "tool_call_id": "c", "content": [{"type": "document", "document": 3}]}, "int"),
    ],
)
def test_what_is_no_message_is_refused_by_name(given_: Any, named: str) -> None:
    with pytest.raises(ChatError, match=named) as caught:
        Message.of(given_)
    assert isinstance(caught.value, QuarterdeckError)
    assert isinstance(caught.value, ValueError)


def test_to_dict_gives_cohere_v2_without_absent_keys() -> None:
    assert Message("user", "Hi").to_dict() == {"role": "user", "content": "Hi"}
    assert Message("assistant", "Hi").to_dict() == {"role": "assistant", "content": "Hi"}
    assert Message("assistant", "", "Look.", (CALL,)).to_dict() == {
        "role": "assistant",
        "tool_plan": "Look.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query":"wind"}'}}
        ],
    }
    assert Message("tool", tool_call_id="c1", documents=(Document({"a": 1}, "x"), Document({"b": 2}))).to_dict() == {
        "role": "tool",
        "tool_call_id": "c1",
        "content": [
            {"type": "document", "document": {"data": {"a": 1}, "id": "x"}},
            {"type": "document", "document": {"data": {"b": 2}}},
        ],
    }
    citation = Citation(
        0, 2, "Hi", (Source("tool", "c1:0", 3, {"a": [1], "b": "x"}), Source("document", "d", 0, {"t": "u"}))
    )
    assert Message("assistant", "Hi", citations=(citation,)).to_dict()["citations"] == [
        {
            "start": 0,
            "end": 2,
            "text": "Hi",
            "type": "TEXT_CONTENT",
            "content_index": 0,
            "sources": [
                {"type": "tool", "id": "c1:0", "tool_output": {"a": "[1]", "b": "x"}},
                {"type": "document", "id": "d", "document": {"id": "d", "t": "u"}},
            ],
        }
    ]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)
CALLS = st.builds(ToolCall, st.text(min_size=1), st.text(min_size=1), st.text() | FIELDS.map(json.dumps))
DOCUMENTS = st.builds(Document, FIELDS, st.none() | st.text())
MESSAGES = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), st.text()),
    st.builds(Message, st.just("assistant"), st.text(), st.text(), st.lists(CALLS, max_size=2).map(tuple)),
    st.builds(
        Message,
        st.just("tool"),
        st.just("") | st.text() | FIELDS.map(json.dumps),
        tool_call_id=st.none() | st.text(),
        documents=st.lists(DOCUMENTS, max_size=3).map(tuple),
    ),
)


@settings(max_examples=300, deadline=None)
@given(MESSAGES)
def test_messages_without_citations_come_back(message: Message) -> None:
    assert Message.of(message.to_dict()) == message
    assert Message.of(json.loads(json.dumps(message.to_dict()))) == message


def test_messages_with_citations_come_back_but_for_the_numbers_of_their_sources() -> None:
    source = Source("document", "d", 4, {"text": "t"})
    message = Message("assistant", "Hi", citations=(Citation(0, 2, "Hi", (source,)),))
    back = Message.of(message.to_dict())
    assert back.citations == (Citation(0, 2, "Hi", (Source("document", "d", -1, {"text": "t"}),)),)
    assert Message.of(message.to_dict() | {"citations": [{"start": 0, "end": 2, "text": "Hi", "document_ids": ["d"]}]})


@pytest.mark.parametrize(
    "options",
    [{"role": "captain"}, {"role": "user", "tool_plan": "x"}, {"role": "assistant", "documents": (Document({}),)}],
)
def test_a_message_made_directly_is_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ChatError):
        Message(**options)


# ── documents and calls ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("words", Document({"text": "words"})),
        ({"data": {"a": 1}}, Document({"a": 1})),
        ({"data": {"a": 1}, "id": "x"}, Document({"a": 1}, "x")),
        ({"data": "words"}, Document({"text": "words"})),
        ({"data": "words", "id": "x"}, Document({"text": "words"}, "x")),
        ({"title": "t", "id": "x", "text": "u"}, Document({"title": "t", "text": "u"}, "x")),
        ({"title": "t", "data": "d"}, Document({"title": "t", "data": "d"})),
        ({"data": [1]}, Document({"data": [1]})),
        ({"id": None, "text": "u"}, Document({"text": "u"})),
        ({"id": 7, "text": "u"}, Document({"text": "u"}, "7")),
        ({}, Document({})),
    ],
)
def test_a_document_is_read_in_every_spelling(given_: Any, expected: Document) -> None:
    assert Document.of(given_) == expected
    assert Document.of(expected) is expected
    assert list(Document.of(given_).data) == list(expected.data)  # the order counts


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        (3, "int"),
        (["a"], "list"),
        ({1: "a"}, "1"),
        ({"a": object()}, "'a'"),
        ({"a": nested(200)}, "deep"),
        ({"id": [1]}, "id"),
    ],
)
def test_what_is_no_document_is_refused_by_name(given_: Any, named: str) -> None:
    with pytest.raises(ChatError, match=named):
        Document.of(given_)


def test_parameters_of_a_call_are_those_of_complete_text_only() -> None:
    assert CALL.parameters == {"query": "wind"}
    for arguments in ("", '{"query": "wi', "[1]", "{'a': 1}", '{"a": NaN}', "[" * 100_000):
        with pytest.raises(ValueError):
            _ = ToolCall("c1", "search", arguments).parameters


def test_a_call_without_an_id_gets_one_that_depends_on_the_call_alone() -> None:
    first = ToolCall.of({"name": "search", "parameters": {"query": "wind"}})
    assert first == ToolCall.of({"function": {"name": "search", "arguments": '{"query":"wind"}'}})
    assert first.id.startswith("search_")
    assert len(first.id) == len("search_") + 12
    assert first.id.removeprefix("search_").isalnum()
    assert ToolCall.of({"name": "search"}).arguments == "{}"


def test_events_say_what_they_are() -> None:
    citation = Citation(0, 1, "x", ())
    events = [
        m.TextDelta("x"), m.PlanDelta("x"), m.ToolCallStart(0, "i", "n"), m.ToolCallDelta(0, "x"), m.ToolCallEnd(0),
        m.CitationEvent(0, citation), m.MessageEnd(None),
    ]  # fmt: skip
    assert [event.type for event in events] == [
        "text", "plan", "tool-call-start", "tool-call-delta", "tool-call-end", "citation", "end",
    ]  # fmt: skip
    assert m.TextDelta("x") == m.TextDelta("x") != m.TextDelta("y")
    assert m.Usage(3, 4) == m.Usage(3, 4, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Message("user", 5),
        lambda: Message("assistant", tool_plan=5),
        lambda: Message("assistant", tool_calls=({"name": "f"},)),
        lambda: Message("assistant", tool_calls="f"),
        lambda: Message("tool", tool_call_id=5),
        lambda: Message("tool", documents=("x",)),
        lambda: Document("hello"),
        lambda: Document({1: "a"}),
        lambda: Document({"a": {1}}),
        lambda: Document({"a": float("nan")}),
        lambda: Document({"a": "b"}, id=5),
        lambda: Document.of({"a": [float("inf")]}),
        lambda: ToolCall(1, "f", "{}"),
        lambda: ToolCall("1", "f", {}),
        lambda: ToolCall.of({"name": "f", "parameters": {"x": float("-inf")}}),
    ],
)
def test_values_are_checked_however_they_are_made(make: Any) -> None:
    with pytest.raises(ChatError):
        make()


def test_a_call_without_an_id_goes_round() -> None:
    message = Message("assistant", tool_calls=(ToolCall("", "f", "{}"),))
    assert Message.of(message.to_dict()) == message
