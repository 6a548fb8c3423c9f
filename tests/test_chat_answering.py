"""Answers over scripted models: what section 4 of the chat contract promises."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_grammar_support import allowed, compiler, ids_of, write
from chat_scripts import Scripted, Stream, characters, check_agrees, collect, cut_at_random, streaming, without_ids
from chat_support import tiny_tokenizer
from quarterdeck.chat import (
    ChatResponse,
    Message,
    Prompt,
    SamplingParams,
    TokenLogprob,
    Usage,
    answer,
    render,
    stream_answer,
)
from quarterdeck.chat.answers.scrubbing import Scrubber
from quarterdeck.chat.grammars.grammar import Grammar, cited_answer_grammar, json_grammar
from quarterdeck.chat.messages import Event, MessageEnd, TextDelta, ToolCallDelta, ToolCallStart
from quarterdeck.chat.parser import join_deltas, parse
from quarterdeck.chat.prompts.parts import control_tokens
from quarterdeck.errors import ChatError, QuarterdeckError

DOCUMENTS = [{"title": "Tall penguins", "text": "Emperor penguins."}, {"id": "habitat", "text": "Antarctica."}]
TOOLS: list[dict[str, Any]] = [
    {"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}},
    {
        "name": "note",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
]

GROUNDED = (
    "Relevant Documents: 0,1\nCited Documents: 0,1\nAnswer: They live in Antarctica.\n"
    "Grounded answer: The <co: 0>emperors</co: 0> live in <co: 1>Antarctica</co: 1>, <co: 0,1>always</co: 0,1>."
)
CALLS = (
    'Plan: I search, and note.\nAction: ```json\n[\n    {"tool_name": "search", "parameters": {"query": "knots"}},\n'
    '    {"tool_name": "note", "parameters": {"text": "a < b"}}\n]\n```'
)
DIRECT = 'Plan: I know that.\nAction: ```json\n[{"tool_name": "directly_answer", "parameters": {}}]\n```'

STEP = [
    {"role": "user", "content": "Knots?"},
    {"role": "assistant", "tool_calls": [{"id": "c1", "name": "search", "arguments": "{}"}]},
    {"role": "tool", "tool_call_id": "c1", "content": '{"text": "A bowline."}'},
]


# ── values ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_answer() -> None:
    model = Scripted("  Ahoy there.\n")
    response = answer(model, "Hello")
    assert isinstance(response, ChatResponse)
    assert (response.text, response.citations, response.tool_plan, response.tool_calls) == ("Ahoy there.", (), "", ())
    assert response.finish_reason == "COMPLETE"
    assert response.logprobs is None
    assert response.usage == Usage(0, 0)
    assert response.prompt == render([{"role": "user", "content": "Hello"}])
    assert response.message == Message("assistant", "Ahoy there.")
    assert response.id
    assert [asked.grammar for asked in model.asked] == [None]
    assert [asked.sampling_params for asked in model.asked] == [None]


def test_a_grounded_answer() -> None:
    response = answer(Scripted(GROUNDED), "Where?", documents=DOCUMENTS)
    assert response.text == "The emperors live in Antarctica, always."
    assert [(c.text, [source.id for source in c.sources]) for c in response.citations] == [
        ("emperors", ["doc:0"]),
        ("Antarctica", ["habitat"]),
        ("always", ["doc:0", "habitat"]),
    ]
    assert response.message.citations == response.citations
    assert response.prompt.format == "rag"


def test_calls_of_tools() -> None:
    response = answer(Scripted(CALLS), "Knots?", tools=TOOLS)
    assert response.tool_plan == "I search, and note."
    assert [(call.name, call.parameters) for call in response.tool_calls] == [
        ("search", {"query": "knots"}),
        ("note", {"text": "a < b"}),
    ]
    assert response.finish_reason == "TOOL_CALL"
    assert response.text == ""
    for call in response.tool_calls:
        assert re.fullmatch(rf"{call.name}_[a-z0-9]{{12}}", call.id)
    assert len({call.id for call in response.tool_calls}) == 2
    assert Message.of(response.message.to_dict()) == response.message


def test_a_response_as_plain_values() -> None:
    response = answer(Scripted(GROUNDED), "Where?", documents=DOCUMENTS)
    plain = response.to_dict()
    assert list(plain) == ["text", "citations", "tool_plan", "tool_calls", "finish_reason", "usage"]
    assert plain["citations"][0]["sources"][0]["document"] == {"id": "doc:0", **DOCUMENTS[0]}
    assert json.loads(json.dumps(plain)) == plain
    plain["usage"]["input_tokens"] = 99
    assert response.usage.input_tokens == 0


def test_ids_of_calls_are_new_each_time() -> None:
    assert len({answer(Scripted(CALLS), "Knots?", tools=TOOLS).tool_calls[0].id for _ in range(20)}) == 20


def test_a_response_goes_on_in_the_conversation() -> None:
    first = answer(Scripted(CALLS), "Knots?", tools=TOOLS)
    messages = [{"role": "user", "content": "Knots?"}, first.message]
    messages += [
        {"role": "tool", "tool_call_id": call.id, "content": f'{{"text": "{call.name}"}}'} for call in first.tool_calls
    ]
    reply = "Reflection: I have it.\nRelevant Documents: 1\nAnswer: x\nGrounded answer: <co: 1>A</co: 1>"
    second = answer(Scripted(reply), messages, tools=TOOLS)
    assert (second.text, second.tool_plan) == ("A", "I have it.")
    assert second.citations[0].sources[0].type == "tool"
    assert second.citations[0].sources[0].id == f"{first.tool_calls[1].id}:0"


def test_options_are_those_of_render() -> None:
    now = datetime(2024, 3, 30, 13, 20, 40)
    model = Scripted("x", "x", "x")
    answer(model, "Hi", tools=TOOLS, now=now)
    answer(model, "Hi", tools=TOOLS, multi_step=False)
    answer(model, "Hi", documents=DOCUMENTS, citation_mode="fast")
    assert [asked.prompt for asked in model.asked] == [
        render("Hi", tools=TOOLS, now=now),
        render("Hi", tools=TOOLS, multi_step=False),
        render("Hi", documents=DOCUMENTS, citation_mode="fast"),
    ]


def test_documents_that_are_no_list_are_read_once() -> None:
    model = Scripted(DIRECT, "Yes.")
    response = answer(model, iter([Message("user", "Hi")]), tools=iter(TOOLS))
    assert response.text == "Yes."


def test_citations_can_be_off() -> None:
    response = answer(Scripted(GROUNDED), "Where?", documents=DOCUMENTS, citation_mode="off")
    assert (response.text, response.citations) == ("They live in Antarctica.", ())


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("function", [answer, stream_answer])
def test_unknown_options_are_type_errors(function: Any) -> None:
    with pytest.raises(TypeError, match="'temperature'"):
        function(Scripted("x"), "Hi", temperature=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"documents": DOCUMENTS, "tools": TOOLS},
        {"citation_mode": "precise"},
        {"tool_choice": "required"},
        {"tool_choice": "none"},
        {"tool_choice": "search", "tools": []},
        {"tool_choice": "dig", "tools": TOOLS},
        {"tool_choice": "directly_answer", "tools": TOOLS},
        {"tool_choice": 1, "tools": TOOLS},
        {"response_format": {"type": "json_object"}, "tools": TOOLS},
        {"response_format": {"type": "json_object"}, "documents": []},
        {"response_format": {"type": "xml"}},
        {"response_format": "json"},
        {"response_format": {"type": "json_object", "json_schema": 3}},
        {"response_format": {"type": "json_object", "schema": {}, "json_schema": {}}},
        {"response_format": {"type": "json_object", "name": "x"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "other": 1}}},
        {"response_format": {"type": "json_object", "schema": {"type": "object", "minProperties": 1}}},
        {"response_format": {"type": "json_object", "schema": {"type": "string", "enum": []}}},
        {"sampling_params": {"temperature": 1}},
        {"strict_tools": "yes", "tools": TOOLS},
        {"multi_step": 1, "tools": TOOLS},
        {"documents": [3]},
        {"tools": [TOOLS[0], TOOLS[0]]},
        {"strict_tools": True, "tools": [{"name": "x", "parameters": {"type": "object", "patternProperties": {}}}]},
    ],
    ids=str,
)
def test_refusals_come_before_anything_is_generated(options: dict[str, Any]) -> None:
    model = Scripted("x")
    with pytest.raises(ChatError):
        stream_answer(model, "Hi", **options)
    with pytest.raises(ChatError):
        answer(model, "Hi", **options)
    assert model.asked == []


def test_a_forced_call_needs_a_format_with_calls() -> None:
    with pytest.raises(ChatError, match="multi_step=True"):
        answer(Scripted("x"), STEP, tools=TOOLS, multi_step=False, tool_choice="required")
    assert answer(Scripted("x"), STEP, tools=TOOLS, multi_step=False, strict_tools=True).text == "x"


def test_a_refusal_of_the_model_comes_from_the_call() -> None:
    def generate(prompt: Any, **options: Any) -> Iterator[str]:
        raise ChatError("too many tokens")

    with pytest.raises(QuarterdeckError, match="too many tokens"):
        stream_answer(generate, "Hi")


def test_tools_that_are_called_freely_may_use_any_keyword() -> None:
    tools = [{"name": "x", "parameters": {"type": "object", "patternProperties": {"^a": {}}}}]
    assert answer(Scripted("Grounded answer: ok"), "Hi", tools=tools).text == "ok"


@pytest.mark.parametrize("bad", [3, None])
def test_a_generate_that_gives_no_text_is_refused(bad: Any) -> None:
    with pytest.raises(ChatError, match="generate"):
        answer(lambda prompt, **options: bad, "Hi")
    with pytest.raises(ChatError, match="generate yields strings"):
        answer(lambda prompt, **options: [bad], "Hi")


# ── streams ───────────────────────────────────────────────────────────────────────────────────────────────────────


def joined(events: list[Event]) -> list[tuple[str, str]]:
    """The order of events, neighbouring deltas joined."""
    return [
        (event.type, getattr(event, "text", getattr(event, "arguments", "")))
        for event in join_deltas([event for event in events if not isinstance(event, MessageEnd)])
    ]


PIECES = (
    *"Answer:|Grounded answer:|Plan:|Reflection:|Action:|Relevant Documents: 0,1|Cited Documents: 0".split("|"),
    *"<co: 0>|</co: 0>|<co: 0,1>|</co>|<co>|<co: 9>|<c|o: 0>|<co|</|>|<".split("|"),
    *'```json|[|]|{"tool_name": "search", "parameters": {"query": "|"}}|{"tool_name": "directly_answer"}|,'.split("|"),
    *control_tokens()[:12],
    "<BOS_",
    "TOKEN>",
    "<|END_OF",
    "_TURN_TOKEN|>",
    "STOP",
    "ST",
    "OP",
    "é",
    "🦜",
    "word",
    " ",
    "\n",
    "\n\n",
)
FORMATS: tuple[dict[str, Any], ...] = (
    {},
    {"documents": DOCUMENTS},
    {"documents": DOCUMENTS, "citation_mode": "off"},
    {"tools": TOOLS},
    {"tools": TOOLS, "multi_step": False},
)
OUTPUTS = st.one_of(
    st.sampled_from([GROUNDED, CALLS, DIRECT, "Ahoy there."]),
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: "Grounded answer: " + "".join(pieces)),
)


@settings(max_examples=150, deadline=None)
@given(OUTPUTS, st.sampled_from(FORMATS), st.integers(0, 2**32), st.sampled_from([(), ("STOP", "OPEN"), ("\n", "wor")]))
def test_however_it_is_cut_the_deltas_are_the_answer(
    text: str, options: dict[str, Any], seed: int, stops: tuple[str, ...]
) -> None:
    params = SamplingParams(stop=stops)
    whole = answer(Scripted(text, "Second <co: 0>answer</co>"), "Hi", sampling_params=params, **options)
    orders = []
    for cut in (characters, cut_at_random(seed)):
        model = Scripted(text, "Second <co: 0>answer</co>", cut=cut)
        events = list(stream_answer(model, "Hi", sampling_params=params, **options))
        said = collect(events)
        response = said.ends[0]
        check_agrees(said, response)
        assert without_ids(response) == without_ids(whole)
        orders.append(joined(events))
    assert orders[0] == orders[1]
    check_clean(whole)


def check_clean(response: ChatResponse) -> None:
    """No control token and no citation tag is left, and text is trimmed but for what a stop string cut off."""
    arguments = [call.arguments for call in response.tool_calls]
    for visible in (response.text, response.tool_plan, *arguments):
        assert not [token for token in control_tokens() if token in visible], visible
    for visible in (response.text, response.tool_plan):
        assert not re.search(r"</?co(:[^<>\n]{0,64})?>", visible), visible
    assert response.text.lstrip() == response.text
    if response.finish_reason != "STOP_SEQUENCE":
        assert response.text.rstrip() == response.text
    assert response.tool_plan.strip() == response.tool_plan
    assert "directly_answer" not in [call.name for call in response.tool_calls]
    for citation in response.citations:
        assert citation.text
        assert citation.text == citation.text.strip() == response.text[citation.start : citation.end]


@settings(max_examples=100, deadline=None)
@given(OUTPUTS, st.sampled_from(FORMATS[:3]))
def test_clean_output_is_what_the_parser_says(text: str, options: dict[str, Any]) -> None:
    """The layer adds nothing of its own to what the parser finds, where nothing has to be cleaned."""
    if "<" in re.sub(r"</?co: \d(,\d)?>", "", text):
        text = text.replace("<", "(")
    prompt = render("Hi", **options)
    expected = parse(text, prompt.format, prompt.sources, options.get("citation_mode", "accurate"))
    response = answer(Scripted(text), "Hi", **options)
    if prompt.format != "default":
        assert (response.text, response.citations) == (expected.text, expected.citations)
    else:
        assert response.text == re.sub(r"</?co: \d(,\d)?>", "", expected.text).strip()


def test_text_comes_as_soon_as_it_can() -> None:
    stream = stream_answer(Scripted("Ahoy there.", cut=characters), "Hi")
    assert next(stream) == TextDelta("A")


def test_calls_come_as_they_are_written() -> None:
    model = Scripted(CALLS, cut=characters)
    events = stream_answer(model, "Hi", tools=TOOLS)
    for event in events:
        if isinstance(event, ToolCallStart):
            assert "".join(model.given).endswith('"tool_name": "search"')
            break
    assert next(events) == ToolCallDelta(0, "{")


def test_a_citation_comes_directly_behind_its_text() -> None:
    events = list(stream_answer(Scripted(GROUNDED, cut=characters), "Where?", documents=DOCUMENTS))
    so_far = ""
    for event in events:
        if isinstance(event, TextDelta):
            so_far += event.text
        elif event.type == "citation":
            assert so_far.endswith(event.citation.text)  # type: ignore[union-attr]


def test_closing_a_stream_stops_the_generation() -> None:
    model = Scripted("Ahoy there.", cut=characters)
    stream = stream_answer(model, "Hi")
    next(stream)
    stream.close()
    assert model.given == ["A"]
    assert list(stream) == []
    source = Stream(["a", "b"])
    with stream_answer(streaming(source), "Hi") as events:
        next(events)
    assert "close" in source.calls
    assert "stop" not in source.calls


def test_a_stream_that_was_never_read_can_be_closed() -> None:
    source = Stream(["a", "b"])
    stream_answer(streaming(source), "Hi").close()
    assert source.calls[0] == "close"


def test_errors_of_the_model_come_through_and_close_it() -> None:
    closed = []

    def generate(prompt: Any, **options: Any) -> Iterator[str]:
        try:
            yield "Ahoy"
            raise RuntimeError("out of memory")
        finally:
            closed.append(True)

    stream = stream_answer(generate, "Hi")
    assert next(stream) == TextDelta("Ahoy")
    with pytest.raises(RuntimeError, match="out of memory"):
        next(stream)
    assert closed == [True]


# ── no markup, no control tokens ──────────────────────────────────────────────────────────────────────────────────


def test_the_turn_ends_at_its_token() -> None:
    model = Scripted("Ahoy.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>And?", cut=characters)
    assert answer(model, "Hi").text == "Ahoy."
    assert "".join(model.given) == "Ahoy.<|END_OF_TURN_TOKEN|>"


def test_a_model_that_knows_its_tokens_may_speak_of_them() -> None:
    """There the end of a turn is an id, and what is spelled is text, from which it is only taken out."""
    assert answer(streaming(Stream(["The token <EOS_TOKEN> ends it."])), "Hi").text == "The token  ends it."


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("a<BOS_TOKEN>b", "ab"),
        ("a<BOS_<BOS_TOKEN>TOKEN>b", "ab"),
        ("<BOS_TOKEN>Grounded answer: a", "a"),
        ("Grounded answer: <BOS_<co: 0>TOKEN>a</co: 0>", "a"),
        ("Grounded answer: <c<co: 0>o: 1>a</c</co: 0>o: 1> b", "a b"),
        ("Grounded answer: a <b> 1 < 2 <code> <coo: 1> c", "a <b> 1 < 2 <code> <coo: 1> c"),
        ("Grounded answer: a <c", "a <c"),
        ("Grounded answer: a <co: 1", "a"),
        ("Grounded answer: a <BOS_", "a <BOS_"),
        ("Grounded answer:  <BOS_TOKEN> a", "a"),
    ],
)
def test_markup_is_taken_out(written: str, text: str) -> None:
    for cut in (characters, None):
        assert answer(Scripted(written, cut=cut), "Hi", documents=DOCUMENTS).text == text


def test_tags_are_taken_out_where_nothing_is_cited() -> None:
    assert answer(Scripted("<co: 0> Ahoy</co: 0> there <co: 1"), "Hi").text == "Ahoy there"


def test_citations_keep_to_their_text_when_something_before_it_goes() -> None:
    written = "Grounded answer: x<B<co: 0>OS_TOKEN></co: 0> and <co: 1>y <BOS<co: 1>_TOKEN></co: 1></co: 1> z"
    response = answer(Scripted(written, cut=characters), "Hi", documents=DOCUMENTS)
    assert response.text == "x and y  z"
    assert [(c.start, c.end, c.text) for c in response.citations] == [(6, 7, "y")]


def test_citations_of_text_that_may_still_become_a_token() -> None:
    for written, text, cited in (
        ("<co: 0>a <BO</co: 0>S b", "a <BOS b", "a <BO"),
        ("<BOS_<co: 0></co: 0>TOKEN> <co: 1>y</co: 1>", "y", "y"),
        ("a <co: 1><BOS_</co: 1><co: 0></co: 0>TOKEN> <co: 1>y</co: 1>", "a  y", "y"),
    ):
        response = answer(Scripted("Grounded answer: " + written, cut=characters), "Hi", documents=DOCUMENTS)
        assert (response.text, [c.text for c in response.citations]) == (text, [cited])
        check_clean(response)


def test_what_waits_at_the_end_of_a_turn_is_text() -> None:
    assert answer(Scripted("a <BOS_<|END_OF_TURN_TOKEN|>TOKEN>"), "Hi").text == "a <BOS_"


def test_arguments_hold_no_control_tokens() -> None:
    written = CALLS.replace("knots", "k<|END_OF_<PAD>TURN").replace("a < b", "a <co: 0> <BOS_ TOKEN>")
    response = answer(Scripted(written, cut=characters), "Hi", tools=TOOLS)
    assert response.tool_calls[0].parameters == {"query": "k<|END_OF_TURN"}
    assert response.tool_calls[1].parameters == {"text": "a <co: 0> <BOS_ TOKEN>"}


# ── stop strings ──────────────────────────────────────────────────────────────────────────────────────────────────


def stopped(text: str, stop: Any, **options: Any) -> ChatResponse:
    model = Scripted(text, cut=characters)
    return answer(model, "Hi", sampling_params=SamplingParams(stop=stop), **options)


def test_a_stop_string_ends_the_text() -> None:
    response = stopped("one two three two", "two")
    assert (response.text, response.finish_reason) == ("one ", "STOP_SEQUENCE")
    assert stopped("one", "two").finish_reason == "COMPLETE"
    assert stopped("one tw", "two").text == "one tw"


def test_generation_ends_at_a_stop_string() -> None:
    model = Scripted("one two three", cut=characters)
    answer(model, "Hi", sampling_params=SamplingParams(stop=("two",)))
    assert "".join(model.given) == "one two"
    source = Stream(["one two", " three"])
    answer(streaming(source), "Hi", sampling_params=SamplingParams(stop=("two",)))
    assert source.calls[0] == "stop"


def test_stop_strings_are_looked_for_in_the_visible_text() -> None:
    assert stopped(GROUNDED, "Answer:", documents=DOCUMENTS).finish_reason == "COMPLETE"
    assert stopped(GROUNDED, "They", documents=DOCUMENTS).finish_reason == "COMPLETE"
    response = stopped(GROUNDED, "s live", documents=DOCUMENTS)
    assert response.text == "The emperor"
    assert response.citations == ()
    assert stopped("a<BOS_TOKEN>b", "ab").text == ""


def test_citations_before_a_stop_string_stay() -> None:
    response = stopped(GROUNDED, " always", documents=DOCUMENTS)
    assert [c.text for c in response.citations] == ["emperors", "Antarctica"]
    assert response.text == "The emperors live in Antarctica,"


@settings(max_examples=200, deadline=None)
@given(st.text("abc ", max_size=12), st.lists(st.text("abc ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_first_stop_string_counts_and_no_part_of_it_is_streamed(text: str, stops: list[str]) -> None:
    visible = text.strip()
    places = [visible.find(stop) for stop in stops if stop in visible]
    model = Scripted(text, cut=characters)
    said = collect(stream_answer(model, "Hi", sampling_params=SamplingParams(stop=tuple(stops))))
    assert said.text == (visible[: min(places)] if places else visible)
    assert said.ends[0].finish_reason == ("STOP_SEQUENCE" if places else "COMPLETE")


# ── directly_answer, tool_choice, strict_tools ────────────────────────────────────────────────────────────────────


def test_directly_answer_alone_is_resolved() -> None:
    model = Scripted(DIRECT, "Because.", cut=characters)
    said = collect(stream_answer(model, "Why?", tools=TOOLS))
    response = said.ends[0]
    check_agrees(said, response)
    assert (response.text, response.tool_calls, response.finish_reason) == ("Because.", (), "COMPLETE")
    assert response.prompt == render("Why?") == model.asked[1].prompt
    assert model.asked[1].grammar is None


def test_directly_answer_after_results_is_grounded_on_them() -> None:
    model = Scripted(DIRECT, "Grounded answer: <co: 0>A bowline</co: 0>.")
    response = answer(model, STEP, tools=TOOLS)
    assert response.prompt.format == "rag"
    assert [c.text for c in response.citations] == ["A bowline"]


def test_directly_answer_beside_other_calls_is_dropped() -> None:
    written = CALLS.replace("[\n", '[{"tool_name": "directly_answer", "parameters": {"a": 1}},\n')
    said = collect(stream_answer(Scripted(written, cut=characters), "Hi", tools=TOOLS))
    assert [call.name for call in said.calls] == ["search", "note"]
    assert said.ends[0].finish_reason == "TOOL_CALL"


def test_tool_choice_none_renders_without_tools() -> None:
    for choice in ("none", "NONE"):
        model = Scripted("Ahoy")
        assert answer(model, "Hi", tools=TOOLS, tool_choice=choice).prompt == render("Hi")
        assert model.asked[0].grammar is None


def test_forced_and_strict_calls_are_decoded_under_a_grammar() -> None:
    for options in ({"tool_choice": "REQUIRED"}, {"tool_choice": "note"}, {"strict_tools": True}):
        for multi_step in (True, False):
            model = Scripted(CALLS)
            answer(model, "Hi", tools=TOOLS, multi_step=multi_step, **options)
            assert model.asked[0].grammar is not None, options
    model = Scripted("Grounded answer: x", "x")
    answer(model, "Hi", tools=TOOLS)
    answer(model, "Hi", strict_tools=True)
    assert [asked.grammar for asked in model.asked] == [None, None]


def test_the_second_generation_is_free() -> None:
    model = Scripted(DIRECT, "Yes.")
    assert answer(model, "Hi", tools=TOOLS, strict_tools=True).text == "Yes."
    assert [asked.grammar is None for asked in model.asked] == [False, True]


# ── response_format ───────────────────────────────────────────────────────────────────────────────────────────────

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    "given_format",
    [
        {"type": "json_object"},
        {"type": "json_object", "schema": SCHEMA},
        {"type": "json_object", "json_schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
    ],
)
def test_json_is_decoded_under_a_grammar(given_format: dict[str, Any]) -> None:
    model = Scripted('{"age": 3}')
    assert answer(model, "Hi", response_format=given_format).text == '{"age": 3}'
    assert model.asked[0].grammar is not None


def test_text_is_not() -> None:
    model = Scripted("a", "b")
    answer(model, "Hi", response_format={"type": "text"})
    answer(model, "Hi", response_format={"type": "text"}, documents=DOCUMENTS)
    assert [asked.grammar for asked in model.asked] == [None, None]


def test_json_after_results_of_tools_has_no_sections() -> None:
    written = '{"a": "\\nAnswer: x"}'
    assert answer(Scripted(written), STEP, response_format={"type": "json_object"}).text == written
    cited = answer(Scripted('{"a": "<co: 0>x</co: 0>"}'), STEP, response_format={"type": "json_object"})
    assert cited.citations == ()


# ── what the model says about itself ──────────────────────────────────────────────────────────────────────────────


def test_usage_counts_all_generations() -> None:
    one, two = Stream([DIRECT], usage=Usage(100, 20, 7)), Stream(["Yes."], usage=Usage(50, 2, 40))
    assert answer(streaming(one, two), "Hi", tools=TOOLS).usage == Usage(150, 22, 47)


def test_max_tokens_counts_for_all_generations() -> None:
    seen = []
    streams = [Stream([DIRECT], usage=Usage(100, 20)), Stream(["Yes."])]

    def generate(prompt: Any, *, sampling_params: SamplingParams, **options: Any) -> Stream:
        seen.append(sampling_params)
        return streams[len(seen) - 1]

    params = SamplingParams(max_tokens=30, seed=3)
    answer(generate, "Hi", tools=TOOLS, sampling_params=params)
    assert seen == [params, replace(params, max_tokens=10)]
    used_up = streaming(Stream([DIRECT], usage=Usage(100, 30)))
    response = answer(used_up, "Hi", tools=TOOLS, sampling_params=params)
    assert (response.finish_reason, response.text, response.tool_calls) == ("MAX_TOKENS", "", ())


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("Ahoy", "COMPLETE", "COMPLETE"),
        ("Ahoy", None, "COMPLETE"),
        ("Ahoy", "MAX_TOKENS", "MAX_TOKENS"),
        ("Ahoy", "ERROR", "ERROR"),
        ("Ahoy", "STOP_SEQUENCE", "STOP_SEQUENCE"),
        (CALLS, "MAX_TOKENS", "TOOL_CALL"),
        (CALLS[:-10], "MAX_TOKENS", "MAX_TOKENS"),
        (CALLS[:-10], "COMPLETE", "TOOL_CALL"),
        (CALLS[:-40], "MAX_TOKENS", "MAX_TOKENS"),
    ],
)
def test_finish_reasons(text: str, reason: Any, expected: str) -> None:
    assert answer(streaming(Stream([text], finish_reason=reason)), "Hi", tools=TOOLS).finish_reason == expected


def test_a_list_of_calls_ends_the_generation() -> None:
    source = Stream([CALLS, "\nDocument: 0\ninvented"])
    assert len(answer(streaming(source), "Hi", tools=TOOLS).tool_calls) == 2
    assert source.calls[0] == "stop"


def test_logprobs_of_a_plain_answer_are_those_of_its_text() -> None:
    words = [" Ahoy", " there", " STOP", " it"]
    logprobs = tuple(TokenLogprob(number, word.encode(), -0.5) for number, word in enumerate(words))
    params = SamplingParams(stop="STOP", logprobs=0)
    response = answer(streaming(Stream(words, logprobs=logprobs)), "Hi", sampling_params=params)
    assert response.text == "Ahoy there "
    assert response.logprobs == logprobs[:3]
    assert b"".join(one.bytes for one in response.logprobs).decode().strip() == "Ahoy there STOP"
    assert TokenLogprob(1, "é".encode()[:1], -1.0).token == "\ufffd"


# ── SamplingParams ────────────────────────────────────────────────────────────────────────────────────────────────


def test_sampling_params_default_to_greedy_to_the_end() -> None:
    params = SamplingParams()
    assert params.is_greedy
    assert params.max_tokens is None
    assert params.stop == ()
    assert SamplingParams(temperature=0.0, stop="x", logprobs=True).stop == ("x",)
    assert SamplingParams(logprobs=True).logprobs == 0
    assert SamplingParams(logprobs=False).logprobs is None
    assert not SamplingParams(temperature=0.3).is_greedy
    assert SamplingParams(stop=["a", "b"]) == SamplingParams(stop=("a", "b"))
    with pytest.raises(AttributeError):
        params.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "1"},
        {"temperature": True},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 1.5},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": 3},
        {"seed": 1.0},
        {"frequency_penalty": 2.1},
        {"presence_penalty": -2.1},
        {"logit_bias": [1]},
        {"logit_bias": {"1": 1.0}},
        {"logit_bias": {1: 101}},
        {"logprobs": 21},
    ],
    ids=str,
)
def test_sampling_params_that_cannot_be_right(values: dict[str, Any]) -> None:
    with pytest.raises(ChatError, match=next(iter(values))):
        SamplingParams(**values)


@pytest.mark.parametrize("schema", [{"type": "object", "additionalProperties": True}, {"enum": ["<co: 0>", "<PAD>"]}])
def test_random_texts_of_a_schema_come_through_unchanged(schema: dict[str, Any]) -> None:
    """Whatever the grammar lets a model write is what `answer` returns, but for white space at its ends."""
    grammar = json_grammar(schema)
    texts = [text for seed in range(12) if (text := write(grammar, seed, most=1500)) is not None]
    assert len(texts) > 5
    for text in texts:
        response = answer(Scripted(text), "Hi", response_format={"type": "json_object", "schema": schema})
        assert response.text == text.strip()


class Citing:
    """Writes at random whatever the grammar lets it, and tries again and again to cite documents 0 to 9."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, prompt: Prompt, *, grammar: Grammar | None = None, **_: Any) -> Iterator[str]:
        assert grammar is not None
        matcher = compiler().compile(grammar)
        ids: list[int] = []
        wanted: list[int] = []
        while len(ids) < 500:
            choices = allowed(matcher).tolist()
            number = self._random.randrange(10)
            if not wanted and self._random.random() < 0.3:
                wanted = ids_of(
                    self._random.choice((f"<co: {number}>", f"x</co: {number}>", "\nGrounded answer: ", "None"))
                )
            if wanted and wanted[0] not in choices:
                wanted = []
            ids.append(wanted.pop(0) if wanted else self._random.choice(choices))
            matcher.consume(ids[-1])
            if matcher.is_finished:
                break
        yield tiny_tokenizer().decode([one for one in ids if one not in compiler().end_token_ids])


@pytest.mark.parametrize("mode", ["accurate", "fast", "off"])
def test_strict_citations_name_documents_that_exist(mode: Any) -> None:
    """Though the model keeps trying to cite others."""
    cited = 0
    for seed in range(25):
        response = answer(Citing(seed), "Hi", documents=DOCUMENTS, citation_mode=mode, strict_citations=True)
        cited += len(response.citations)
        (raw,) = Citing(seed)(response.prompt, grammar=cited_answer_grammar([0, 1], mode))
        assert {int(number) for number in re.findall(r"</?co: ?(\d+)", raw)} <= {0, 1}
    assert (cited > 10) == (mode != "off")


def test_another_thread_may_close_a_stream_that_is_running() -> None:
    """The reader comes to its end at the next piece of text, and the source is closed by whoever runs it."""
    waiting, go, freed = threading.Event(), threading.Event(), threading.Event()
    given: list[int] = []

    def generate(prompt: Prompt, **options: Any) -> Iterator[str]:
        try:
            for number in range(1000):
                given.append(number)
                yield "word "
                if number == 3:
                    waiting.set()
                    assert go.wait(20)
        finally:
            freed.set()

    stream = stream_answer(generate, "Hi")
    events: list[Event] = []
    reader = threading.Thread(target=lambda: events.extend(stream))
    reader.start()
    assert waiting.wait(20)
    stream.close()
    stream.close()
    go.set()
    reader.join(20)
    assert not reader.is_alive()
    assert freed.is_set()
    assert len(given) < 7
    assert not any(isinstance(event, MessageEnd) for event in events)
    assert list(stream) == []


def test_problems_of_a_model_s_text_are_in_the_response() -> None:
    text = 'Action: ```json\n[{"tool_name": "search", "parameters": {"query": tru}}]\n```'
    response = answer(Scripted(text), "Hi", tools=TOOLS)
    assert len(response.problems) == 1
    assert "no JSON" in response.problems[0]
    assert replace(response, problems=()) == response
    direct = 'Action: [{"tool_name": "directly_answer", "parameters": [1]}]'
    assert len(answer(Scripted(direct, "Ahoy"), "Hi", tools=TOOLS).problems) == 1


def withheld(text: str) -> int:
    """Most characters that a scrubber keeps back, with what it gives checked for markup, and cut in two ways."""
    whole, slowly = Scrubber(control_tokens(), tags=True), Scrubber(control_tokens(), tags=True)
    given, most = "", 0
    for number, character in enumerate(text, 1):
        given += slowly.feed(character)
        most = max(most, number - len(given) - len(slowly.removed))
    given += slowly.close()
    assert given == whole.feed(text) + whole.close()
    assert whole.removed == slowly.removed == sorted(set(whole.removed))
    assert given == "".join(one for place, one in enumerate(text) if place not in set(whole.removed))
    assert not any(token in given for token in control_tokens())
    assert not re.search(r"</?co(:[^<>\n]{0,64})?>", given)
    return most


@pytest.mark.parametrize(
    "text",
    [
        "<" * 300,
        "<BOS_" * 100,
        "<BOS_" + "<MASK_" * 30 + "TOKEN>" * 40,
        "<MASK_" * 30 + "TOKEN>" * 25,
        "<c" * 90 + "o: 1>" * 90,
        "<co: " * 60 + ">" * 60,
    ],
)
def test_openings_do_not_wait_without_end(text: str) -> None:
    assert withheld(text) <= 80


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<", "<BOS_", "TOKEN>", "<MASK_", "<co", ": 1", ">", "</", "co>", "x", "<c"])))
def test_no_markup_is_left_however_it_is_nested(pieces: list[str]) -> None:
    assert withheld("".join(pieces) * 4) <= 80
