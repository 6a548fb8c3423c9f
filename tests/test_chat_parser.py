"""The parser of a model's text: published vectors, the promises one by one, and properties over arbitrary texts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_parser_reference import ANY_TEXT, KNOWN, reference
from quarterdeck.chat.messages import CitationEvent, Event, PlanDelta, Source, TextDelta, ToolCallStart
from quarterdeck.chat.parser import Collector, Parsed, Parser, join_deltas, parse
from quarterdeck.chat.parsing.citations import TagSplitter
from quarterdeck.chat.parsing.trimming import Trimmer
from quarterdeck.errors import ChatError, QuarterdeckError

FORMATS = list(KNOWN)
MODES = ["accurate", "fast", "off"]
SOURCES = tuple(Source("document", f"doc:{n}", n, {"text": f"text {n}"}) for n in range(3))


def story(chunks: list[str], format: str = "rag", sources=None, mode: str = "accurate") -> tuple[list[Event], Parsed]:
    """Events with deltas joined and ids blanked, and the result, of a text in chunks."""
    parser = Parser(format, sources, mode)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    events = join_deltas(events + parser.close())
    events = [replace(event, id="") if isinstance(event, ToolCallStart) else event for event in events]
    parsed = parser.parsed
    return events, replace(parsed, tool_calls=tuple(replace(call, id="") for call in parsed.tool_calls))


def cites(parsed: Parsed) -> list[tuple[int, int, str, tuple[int, ...]]]:
    return [(c.start, c.end, c.text, tuple(s.index for s in c.sources)) for c in parsed.citations]


# ---------------------------------------------------------------- published vectors


def test_published_answers_give_the_published_citations(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "template_vectors.json").read_text())["output_parsing_vectors"]
    checked = 0
    for vector in vectors:
        if "plain" not in vector:
            continue
        number = vector.get("n_documents")
        parsed = parse(vector["text"], "rag", None if number is None else SOURCES[:number])
        assert parsed.text == vector["plain"].strip()
        if "citations" in vector:
            expected = [(c["start"], c["end"], c["text"], tuple(c["docs"])) for c in vector["citations"]]
            assert cites(parsed) == [citation for citation in expected if citation[3]], vector["id"]
        checked += 1
    assert checked == 6


def test_published_actions_give_the_published_calls(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "template_vectors.json").read_text())["output_parsing_vectors"]
    with_actions = [vector for vector in vectors if "actions" in vector]
    assert len(with_actions) == 3
    for vector in with_actions:
        parsed = parse(vector["text"], "multi_step")
        assert parsed.tool_plan == vector["plan"]
        calls = [{"tool_name": call.name, "parameters": call.parameters} for call in parsed.tool_calls]
        assert calls == vector["actions"]


def test_a_published_answer_gives_its_sections(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "template_vectors.json").read_text())["output_parsing_vectors"]
    vector = next(vector for vector in vectors if vector["id"] == "parse_answer")
    parsed = parse(vector["text"])
    assert parsed.text == vector["answer"]
    assert (parsed.relevant_documents, parsed.cited_documents) == ((0, 2, 3), (0, 2))
    assert [c.text for c in parsed.citations] == ["Best Buy", "Standard & Poor's S&P 500", "1999"]


# ---------------------------------------------------------------- sections


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ("default", "Answer: <co: 0>a</co: 0>", Parsed("Answer: <co: 0>a</co: 0>")),
        ("default", "\n Plan: x \n", Parsed("Plan: x")),
        ("tool_use", "No <co: 0>need</co: 0>.\nAction: [", Parsed("No <co: 0>need</co: 0>.\nAction: [")),
        ("tool_use", "Answer: a", Parsed("Answer: a")),
        ("rag", "Plan: a\nAction: []", Parsed("Plan: a\nAction: []")),
        ("rag", "Hello there.", Parsed("Hello there.")),
        ("rag", " \n Grounded answer: Hi.", Parsed("Hi.")),
        ("rag", "grounded answer: Hi.", Parsed("grounded answer: Hi.")),
        ("rag", "Answer: a b", Parsed("a b")),
        ("rag", "Answer: a\n Grounded answer: b", Parsed("a\n Grounded answer: b")),
        ("rag", "Answer: a\nGrounded answer: b", Parsed("b")),
        ("rag", "Answer: a\nGrounded answer:", Parsed("")),
        ("rag", "Answer: a\nAnswer: b\nCited Documents: 1\nGrounded answer: c\nAnswer: d", Parsed("c\nAnswer: d")),
        ("rag", "Relevant Documents: 0,1\nCited Documents: None\nAnswer: x", Parsed("x", "", (), (), (0, 1), ())),
        ("rag", "Relevant Documents: 2, 0,x,1.5,-1, 1\r\n3\nAnswer: x", Parsed("x", "", (), (), (2, 0, 1), None)),
        ("rag", "Cited Documents: 0\nx\nCited Documents: 0,2", Parsed("", "", (), (), None, (0, 0, 2))),
        ("rag", "Relevant Documents: 0 Answer: x", Parsed("", "", (), (), (), None)),
        ("rag", "Relevant Documents: 1", Parsed("", "", (), (), (1,), None)),
        ("rag", "Relevant Documents: 1\nGround", Parsed("", "", (), (), (1,), None)),
        ("rag", "Ground", Parsed("Ground")),
        ("rag", "Cited Documents: 1\n\n\nGrounded answer: Hi", Parsed("Hi", "", (), (), None, (1,))),
        ("multi_step", "Plan: a\nReflection:  b \n\nGrounded answer: c", Parsed("c", "a\nb")),
        ("multi_step", "Plan:\nReflection: b", Parsed("", "b")),
        ("multi_step", "Plan: first\nsecond Action: x\nAct", Parsed("", "first\nsecond Action: x\nAct")),
        ("multi_step", "Plan: Action: []", Parsed("", "Action: []")),
        ("multi_step", "Grounded answer: a\nAction: []", Parsed("a\nAction: []")),
        ("multi_step", "", Parsed()),
        ("multi_step", " \n\u3000", Parsed()),
    ],
)
def test_sections(format, text, expected) -> None:
    assert story([text], format)[1] == expected


def test_an_answer_is_held_back_and_comes_without_citations() -> None:
    parser = Parser("rag")
    assert parser.feed("Answer: one <co: 0>two</co: 0> three\n") == []
    assert parser.close() == [TextDelta("one two three")]


def test_without_citations_the_first_answer_is_the_text_at_once() -> None:
    parser = Parser("rag", None, "off")
    assert parser.feed("Answer: <co: 0>one</co: 0> two") == [TextDelta("one two")]
    assert parser.feed("\nGrounded answer: three") == []
    assert parser.close() == []
    assert parse("Grounded answer: <co: 0>a</co: 0>\nAnswer: b", "rag", None, "off") == Parsed("a\nAnswer: b")
    assert parse("x <co: 0>a</co: 0>", "multi_step", None, "off") == Parsed("x a")


# ---------------------------------------------------------------- errors and the end


def test_feed_after_close_is_refused_and_a_second_close_is_empty() -> None:
    parser = Parser()
    parser.feed("a <c")
    assert parser.close() == [TextDelta(" <c")]
    assert parser.close() == []
    with pytest.raises(ValueError, match="closed") as raised:
        parser.feed("b")
    assert isinstance(raised.value, QuarterdeckError)
    assert parser.parsed.text == "a <c"


def test_unknown_formats_and_modes_are_refused_by_name() -> None:
    with pytest.raises(ChatError, match="'grounded'"):
        Parser("grounded")  # type: ignore[arg-type]
    with pytest.raises(ChatError, match="'exact'"):
        parse("x", "rag", None, "exact")  # type: ignore[arg-type]


def test_what_was_mended_is_reported() -> None:
    parsed = parse("<co: 0>a</co: 0> <co: 9>b</co: 9> c</co: 1> <co: 1>d", "rag", SOURCES)
    assert [len(re.findall("names 9|never opened|never closed", problem)) for problem in parsed.problems] == [1, 1, 1]
    assert parse("Grounded answer: <co: 0>a</co: 0>").problems == ()


# ---------------------------------------------------------------- properties


@settings(max_examples=250, deadline=None)
@given(ANY_TEXT, st.sampled_from(FORMATS), st.sampled_from(MODES), st.sampled_from([None, (), SOURCES]))
def test_agrees_with_the_reference(text, format, mode, sources) -> None:
    expected = reference(text, format, None if sources is None else len(sources), mode)
    parsed = parse(text, format, sources, mode)
    assert (parsed.text, parsed.tool_plan) == (expected.text, expected.plan)
    assert (parsed.relevant_documents, parsed.cited_documents) == (expected.relevant, expected.cited)
    assert cites(parsed) == expected.citations
    if expected.action is None:
        assert parsed.tool_calls == ()


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT, st.sampled_from(FORMATS), st.sampled_from(MODES), st.lists(st.integers(0, 400), max_size=12))
def test_cuts_make_no_difference(text, format, mode, places) -> None:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    chunks = [text[start:end] for start, end in pairwise(places)]
    whole = story([text], format, SOURCES, mode)
    assert story(chunks, format, SOURCES, mode) == whole
    assert story(["", *text, ""], format, SOURCES, mode) == whole


CORPUS = [
    "Relevant Documents: 0,2\nCited Documents: 0\nAnswer: Best\nGrounded answer: <co: 0,2>Best</co: 0,2><co:1> x </co>",
    "Plan: I will\nsearch.\n\nReflection: Actual\n"
    'Action: ```json\n[{"tool_name": "f", "parameters": {"a": [1, "}"], }}, ]\n```',
    'Action: {"parameters": {"b":  "\\u00e9\\"\n"}, "x": [{}], "tool_name": "g"} tail',
    "  Grounded answer:  <co: 0> a <co: 1>b </co: 1></co> <code> 1 < 2 </co <co: 2>é👍</co: 2>  \n ",
    "Answer: only <co: 1>this</co\nGrounded answe",
    'Action: [{"tool_name": "f", "parameters": {"a": 1]',
]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", CORPUS)
def test_every_cut_in_two_and_every_chunk_size_give_the_same(text, format) -> None:
    for mode in MODES:
        whole = story([text], format, SOURCES, mode)
        for place in range(len(text)):
            assert story([text[:place], text[place:]], format, SOURCES, mode) == whole
        for size in range(1, 12):
            chunks = [text[start : start + size] for start in range(0, len(text), size)]
            assert story(chunks, format, SOURCES, mode) == whole


@settings(max_examples=120, deadline=None)
@given(ANY_TEXT, st.sampled_from(FORMATS), st.sampled_from(MODES))
def test_events_add_up_to_the_result_and_spans_are_exact(text, format, mode) -> None:
    parser, collector, seen = Parser(format, SOURCES, mode), Collector(), ""
    starts = 0
    for event in [event for character in text for event in parser.feed(character)] + parser.close():
        collector.add(event)
        if isinstance(event, TextDelta):
            assert event.text
            seen += event.text
        if isinstance(event, CitationEvent):
            assert event.index == len(collector.parsed.citations) - 1
            assert seen[event.citation.start : event.citation.end] == event.citation.text
            assert event.citation.text == event.citation.text.strip() != ""
            assert event.citation.sources
        starts += isinstance(event, ToolCallStart)
    parsed = parser.parsed
    assert collector.parsed == replace(parsed, relevant_documents=None, cited_documents=None)
    assert parsed.text == parsed.text.strip()
    assert starts == len(parsed.tool_calls)


def shown(text: str) -> int:
    return len(re.sub(r"\s", "", text))


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT, st.sampled_from(FORMATS), st.sampled_from(MODES), st.integers(1, 400))
def test_at_most_80_characters_are_withheld(text, format, mode, place) -> None:
    """Anywhere; what can still become text is counted by letting a § follow, which ends tags and markers."""
    text = text[:place]
    parser = Parser(format, None, mode)
    events = parser.feed(text)
    after = reference(text + "§", format, None, mode)
    assert shown(after.plan) - sum(shown(event.text) for event in events if isinstance(event, PlanDelta)) - 1 <= 80
    if not is_held_back(text, format, mode):
        assert shown(after.text) - sum(shown(event.text) for event in events if isinstance(event, TextDelta)) - 1 <= 80


def is_held_back(text: str, format: str, mode: str) -> bool:
    """Whether the text is in an `Answer:` that waits for its grounded answer."""
    return mode != "off" and format in ("rag", "multi_step") and re.search(r"(^|\n)Answer:", text.lstrip()) is not None


def test_the_longest_that_is_withheld_is_a_tag_about_to_end() -> None:
    tags = TagSplitter()
    almost = "</co:" + "7" * 64
    assert list(tags.feed(almost)) == []
    assert "".join(map(str, tags.feed("7"))) == almost + "7"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from(" \n\x1c\u3000ab\u200b"), max_size=4)))
def test_trimming_piece_by_piece_is_strip(pieces) -> None:
    trimmer = Trimmer()
    assert "".join(map(trimmer.feed, pieces)) == "".join(pieces).strip()


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(FORMATS))
def test_no_text_raises(text, format) -> None:
    broken = f"{text}\ud800{text}"
    assert story(list(broken), format) == story([broken], format)
