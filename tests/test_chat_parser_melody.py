"""The parser beside Cohere's own, the `cohere-melody` package: equal on what the models write, and every difference.

`DIFFERENCES` is the whole list of what was found: a row holds a text, what each of the two makes of it, and why ours is
not the same. Where a row stops being true of melody, a newer melody has changed.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chat_parser_reference import KNOWN, json_objects
from quarterdeck.chat.parser import parse

melody = pytest.importorskip("cohere_melody", reason="cohere-melody has no wheel for this platform")

Outcome = tuple[str, str, list[tuple[int, int, str, tuple[int, ...]]], list[tuple[str, str]]]
"""Text, plan, citations, and names and arguments of calls."""


def by_melody(text: str, format: str, size: int | None = None) -> Outcome:
    options = melody.PyFilterOptions()
    options = options.rag() if format == "rag" else options.multi_hop().stream_tool_actions()
    found = melody.PyFilter(options).process_full(
        [text[i : i + size] for i in range(0, len(text), size)] if size else [text]
    )
    citations = [
        (c.start_index, c.end_index, c.text, tuple(n for source in c.sources for n in source.tool_result_indices))
        for c in found.citations
    ]
    return found.content or "", found.reasoning or "", citations, [(c.name, c.arguments) for c in found.tool_calls]


def by_us(text: str, format: str) -> Outcome:
    parsed = parse(text, format)
    citations = [(c.start, c.end, c.text, tuple(s.index for s in c.sources)) for c in parsed.citations]
    return parsed.text, parsed.tool_plan, citations, [(c.name, c.arguments) for c in parsed.tool_calls]


# ---------------------------------------------------------------- equal where the models write what they were taught

letters = st.sampled_from("abcXYZ019.,;'()<>&é日本👍\u0301")
words = st.text(letters, min_size=1, max_size=6).filter(lambda word: "<co" not in word)
phrases = st.lists(words, min_size=1, max_size=4).map(" ".join)
numbers = st.lists(st.integers(0, 12), min_size=1, max_size=3, unique=True).map(lambda found: ",".join(map(str, found)))
spans = phrases.filter(lambda phrase: "<" not in phrase)
cited = st.tuples(spans, numbers).map(lambda pair: f"<co: {pair[1]}>{pair[0]}</co: {pair[1]}>")
joints = st.sampled_from([" ", "", ", ", "\n", "\n\n- "])
marked_up = st.lists(st.tuples(phrases | cited, joints), min_size=1, max_size=8).map(
    lambda parts: "".join(part + joint for part, joint in parts)
)


@settings(max_examples=100, deadline=None)
@given(numbers, phrases, marked_up, st.integers(1, 40), st.sampled_from(["rag", "multi_step"]))
def test_grounded_answers_are_equal(listed, answer, grounded, size, format) -> None:
    text = f"Relevant Documents: {listed}\nCited Documents: {listed}\nAnswer: {answer}\nGrounded answer: {grounded}"
    ours = by_us(text, format)
    assert ours == by_melody(text, format) == by_melody(text, format, size)


@settings(max_examples=100, deadline=None)
@given(st.data(), phrases, st.sampled_from(["Plan", "Reflection"]), st.integers(1, 40))
def test_plans_and_calls_are_equal_as_values(data, plan, marker, size) -> None:
    """As values: white space between tokens is left out by us alone (the first row of the differences)."""
    wanted = data.draw(
        st.lists(st.tuples(st.from_regex("[a-z_]{1,8}", fullmatch=True), json_objects), min_size=1, max_size=3)
    )
    calls = [{"tool_name": name, "parameters": value} for name, value in wanted]
    body = data.draw(st.sampled_from([json.dumps(calls, indent=4), json.dumps(calls)]))
    assume(not any(known in body for known in KNOWN["multi_step"]))
    text = f"{marker}: {plan}\nAction: ```json\n{body}\n```"
    ours, theirs = by_us(text, "multi_step"), by_melody(text, "multi_step", size)
    assert ours[:3] == theirs[:3] == ("", plan.strip(), [])
    assert [(name, json.loads(arguments)) for name, arguments in ours[3]] == wanted
    assert [(name, json.loads(arguments or "{}")) for name, arguments in theirs[3]] == wanted


# ---------------------------------------------------------------- and where not

BEFORE = "Relevant Documents: 0\nCited Documents: 0\nAnswer: x\nGrounded answer: "


def answer(text: str, citations: list[tuple[int, int, str, tuple[int, ...]]] | None = None, plan: str = "") -> Outcome:
    return text, plan, citations or [], []


def call(*calls: tuple[str, str], plan: str = "") -> Outcome:
    return "", plan, [], list(calls)


def args(parameters: str) -> str:
    return f'Action: [{{"tool_name": "f", "parameters": {parameters}}}]'


DIFFERENCES = {
    # calls
    "white space between the tokens of arguments is left out, so that they do not depend on how a model indents": (
        "multi_step",
        args('{"a": [1, 2]}'),
        call(("f", '{"a": [1, 2]}')),
        call(("f", '{"a":[1,2]}')),
    ),
    "empty arguments are an object too: callers read them as JSON": (
        "multi_step",
        args("{}"),
        call(("f", "")),
        call(("f", "{}")),
    ),
    "missing parameters are an empty object": (
        "multi_step",
        'Action: [{"tool_name": "f"}]',
        call(("f", "")),
        call(("f", "{}")),
    ),
    "parameters of another type are an empty object": ("multi_step", args("[1]"), call(("f", "")), call(("f", "{}"))),
    "parameters may come before the name": (
        "multi_step",
        'Action: [{"parameters": {"a": 1}, "tool_name": "f"}]',
        call(("f", "")),
        call(("f", '{"a":1}')),
    ),
    "trailing commas are not JSON and are left out": (
        "multi_step",
        args('{"a":1,}'),
        call(("f", '{"a":1,}}]')),
        call(("f", '{"a":1}')),
    ),
    "raw control characters in strings are escaped": (
        "multi_step",
        args('{"a":"1\n2"}'),
        call(("f", '{"a":"1\n2"}}]')),
        call(("f", '{"a":"1\\n2"}')),
    ),
    "escapes in names are resolved": (
        "multi_step",
        'Action: [{"tool_name": "caf\\u00e9", "parameters": {"a":1}}]',
        call(("caf\\u00e9", '{"a":1}')),
        call(("café", '{"a":1}')),
    ),
    "a marker among the arguments is one of them": (
        "multi_step",
        args('{"a":"Plan: b"}'),
        call(("f", '{"a":"'), plan='b"}}]'),
        call(("f", '{"a":"Plan: b"}')),
    ),
    "the list is the end: a second one, after it, was invented": (
        "multi_step",
        args('{"a":1}') + '\n[{"tool_name": "g", "parameters": {"b":2}}]',
        call(("f", '{"a":1}'), ("g", '{"b":2}')),
        call(("f", '{"a":1}')),
    ),
    # plans
    "a plan and its reflection are joined by a line break": (
        "multi_step",
        f"Plan: p\nReflection: r\n{BEFORE}a",
        answer("a", plan="pr"),
        answer("a", plan="p\nr"),
    ),
    "a plan cites nothing: citations are spans of the answer": (
        "multi_step",
        "Plan: p <co: 0>q</co: 0>\nAction: []",
        answer("", [(2, 3, "q", (0,))], plan="p q"),
        answer("", plan="p <co: 0>q</co: 0>"),
    ),
    # sections
    "text without any marker is the answer: models do skip them": ("rag", "a b", answer(""), answer("a b")),
    "a plain answer counts where no grounded one follows": ("rag", "Answer: a b", answer(""), answer("a b")),
    "without an answer section before it the text is trimmed all the same": (
        "rag",
        "Grounded answer: a <co: 0>b</co: 0>",
        answer(" a b", [(3, 4, "b", (0,))]),
        answer("a b", [(2, 3, "b", (0,))]),
    ),
    "a marker in the middle of a line is text": (
        "rag",
        "Answer: Grounded answer: b",
        answer("b"),
        answer("Grounded answer: b"),
    ),
    "nothing ends a grounded answer": (
        "rag",
        f"{BEFORE}a\nGrounded answer: b",
        answer("a b"),
        answer("a\nGrounded answer: b"),
    ),
    # citations
    "tags nest": (
        "rag",
        f"{BEFORE}<co: 0>a <co: 1>b</co: 1> c</co: 0>",
        answer("a <co: 1>b c</co: 0>", [(0, 10, "a <co: 1>b", (1,))]),
        answer("a b c", [(2, 3, "b", (1,)), (0, 5, "a b c", (0,))]),
    ),
    "a tag that nothing opened disappears": ("rag", f"{BEFORE}a</co: 0> b", answer("a</co: 0> b"), answer("a b")),
    "a tag without numbers is a tag": ("rag", f"{BEFORE}a<co> b", answer("a<co> b"), answer("a b")),
    "a tag without a space is a tag": (
        "rag",
        f"{BEFORE}<co:0>a</co:0>",
        answer("<co:0>a</co:0>"),
        answer("a", [(0, 1, "a", (0,))]),
    ),
    "a closing tag may leave out its numbers": (
        "rag",
        f"{BEFORE}<co: 0>a</co>",
        answer("a</co>"),
        answer("a", [(0, 1, "a", (0,))]),
    ),
    "spaces between numbers do no harm": (
        "rag",
        f"{BEFORE}<co: 0, 1>a</co: 0, 1>",
        answer("a", [(0, 1, "a", (0,))]),
        answer("a", [(0, 1, "a", (0, 1))]),
    ),
    "a source counts once": (
        "rag",
        f"{BEFORE}<co: 0,0>a</co: 0,0>",
        answer("a", [(0, 1, "a", (0, 0))]),
        answer("a", [(0, 1, "a", (0,))]),
    ),
    "a citation without sources is none": (
        "rag",
        f"{BEFORE}<co: x>a</co: x>",
        answer("a", [(0, 1, "a", ())]),
        answer("a"),
    ),
    "a citation of nothing is none": ("rag", f"{BEFORE}<co: 0></co: 0>a", answer("a", [(0, 0, "", (0,))]), answer("a")),
    "spans are trimmed, and the text before offsets count": (
        "rag",
        f"{BEFORE}<co: 0> a </co: 0> b",
        answer(" a  b", [(0, 3, " a ", (0,))]),
        answer("a  b", [(0, 1, "a", (0,))]),
    ),
    "an unfinished tag at the end disappears": ("rag", f"{BEFORE}a <co: 1", answer("a <co: 1"), answer("a")),
}


@pytest.mark.parametrize("reason", DIFFERENCES)
def test_differences(reason) -> None:
    format, text, theirs, ours = DIFFERENCES[reason]
    assert by_melody(text, format) == theirs
    assert by_us(text, format) == ours
    assert ours != theirs


def test_melody_loses_a_bracket_inside_a_span_that_comes_in_small_chunks() -> None:
    """The one place found where chunks make a difference to melody; ours is the same in any chunks."""
    text = f"{BEFORE}1 <co: 0><</co: 0> 2"
    whole = answer("1 < 2", [(2, 3, "<", (0,))])
    assert by_us(text, "rag") == by_melody(text, "rag") == whole
    assert by_melody(text, "rag", size=1) == ("1  2", *whole[1:])
