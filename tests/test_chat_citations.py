"""Citations in a model's text: each promise about tags, numbers, spans and sources, by hand."""

from __future__ import annotations

import pytest

from quarterdeck.chat.messages import Citation, CitationEvent, Event, Source, TextDelta
from quarterdeck.chat.parser import Parser, parse
from quarterdeck.chat.parsing.citations import Tag, TagSplitter, numbers_in

SOURCES = tuple(Source("document", name, number, {"text": name}) for number, name in enumerate("abc"))
WIDE = "7" * 64


@pytest.mark.parametrize(
    ("markup", "text", "citations"),
    [
        # one or several documents
        ("<co: 0>x</co: 0>", "x", [(0, 1, "a")]),
        ("x <co: 0,2>y z</co: 0,2>.", "x y z.", [(2, 5, "ac")]),
        ("<co: 2,0>x</co: 2,0>", "x", [(0, 1, "ca")]),
        ("<co:1>x</co:1>", "x", [(0, 1, "b")]),
        ("<co: 1 , 0 >x</co: 1 , 0 >", "x", [(0, 1, "ba")]),
        ("<co: 1,1,0,1>x</co: 1,1,0,1>", "x", [(0, 1, "ba")]),
        ("<co: 1, two, -2, 1.5, 0x2>x</co: 1, two, -2, 1.5, 0x2>", "x", [(0, 1, "b")]),
        # the numbers of the closing tag, or those of the opening one
        ("<co: 0>x</co: 1>", "x", [(0, 1, "b")]),
        ("<co: 0>x</co>", "x", [(0, 1, "a")]),
        ("<co: 0>x</co: none>", "x", [(0, 1, "a")]),
        ("<co>x</co: 1>", "x", [(0, 1, "b")]),
        ("<co>x</co>", "x", []),
        # documents that are not there
        ("<co: 0,9>x</co: 0,9>", "x", [(0, 1, "a")]),
        ("<co: 9>x</co: 9>", "x", []),
        ("<co: 0>x</co: 9>", "x", []),
        # adjacent, nested, unclosed, unopened
        ("<co: 0>x</co: 0><co: 1>y</co: 1>", "xy", [(0, 1, "a"), (1, 2, "b")]),
        ("<co: 0>x <co: 1>y</co: 1> z</co: 0>", "x y z", [(2, 3, "b"), (0, 5, "a")]),
        ("<co: 0><co: 1>x</co: 1></co: 0>", "x", [(0, 1, "b"), (0, 1, "a")]),
        ("<co: 0>x <co: 1>y</co> z", "x y z", [(2, 3, "b")]),
        ("<co: 0>x <co: 1>y</co: 0> z</co: 1>", "x y z", [(2, 3, "a"), (0, 5, "b")]),
        ("x</co: 0> <co: 1>y", "x y", []),
        # empty spans, and white space around them
        ("<co: 0></co: 0>x", "x", []),
        ("x<co: 0> \n</co: 0>y", "x \ny", []),
        ("x<co: 0> y </co: 0>z", "x y z", [(2, 3, "a")]),
        ("<co: 0> <co: 1> x </co> </co>", "x", [(0, 1, "b"), (0, 1, "a")]),
        (" \n<co: 0> x </co: 0> \n", "x", [(0, 1, "a")]),
        (" <co: 0>\u3000x\u3000</co: 0> ", "x", [(0, 1, "a")]),
        ("x<co: 0> </co: 0>", "x", []),
        # code points, not bytes and not UTF-16
        ("é😀 <co: 0>日本e\u0301</co: 0>", "é😀 日本e\u0301", [(3, 7, "a")]),
        # what looks like a tag and is none
        ("<code>x</code>", "<code>x</code>", []),
        ("a < b <co 1> <CO: 0> < co: 0>", "a < b <co 1> <CO: 0> < co: 0>", []),
        ("<co: 0\n>x</co: 0>", "<co: 0\n>x", []),
        ("<co: <co: 0>x</co: 0>", "<co: x", [(5, 6, "a")]),
        (f"<co:{WIDE}>x</co: 0>", "x", [(0, 1, "a")]),
        (f"<co:{WIDE}7>x</co: 0>", f"<co:{WIDE}7>x", []),
        ("<<co: 0>x</co: 0>>", "<x>", [(1, 2, "a")]),
        # the end of the output
        ("x <co: 0", "x", []),
        ("x </co", "x", []),
        ("<co: 0>x</co: 0", "x", []),
        ("x </c", "x </c", []),
        ("x <", "x <", []),
        ("x <co: 0 y", "x", []),
        ("x <cod", "x <cod", []),
        (f"x <co:{WIDE}7", f"x <co:{WIDE}7", []),
    ],
)
def test_citations(markup, text, citations) -> None:
    for before in ("", "Grounded answer:", "Answer: other\nGrounded answer:"):
        parsed = parse(before + markup, "rag", SOURCES)
        assert parsed.text == text
        found = [(c.start, c.end, "".join(source.id for source in c.sources)) for c in parsed.citations]
        assert found == citations
        assert all(text[c.start : c.end] == c.text for c in parsed.citations)


def test_sources_are_those_of_the_prompt() -> None:
    (citation,) = parse("<co: 1>x</co: 1>", "rag", SOURCES).citations
    assert citation == Citation(0, 1, "x", (SOURCES[1],))
    assert parse("<co: 1>x</co: 1>", "rag", ()).citations == ()


def test_without_sources_any_number_is_a_document() -> None:
    (citation,) = parse(f"<co: 12>x</co:{WIDE}>", "rag").citations
    assert citation.sources == (Source("document", f"doc:{WIDE}", int(WIDE), {}),)


def test_sources_are_found_by_their_number_not_their_place() -> None:
    later = Source("tool", "later", 7, {})
    assert parse("<co: 7>x</co: 7> <co: 0>y</co: 0>", "multi_step", [later]).citations == (
        Citation(0, 1, "x", (later,)),
    )


def feed(parser: Parser, *chunks: str) -> list[list[Event]]:
    return [parser.feed(chunk) for chunk in chunks]


def test_a_citation_comes_with_the_end_of_its_tag_after_its_text() -> None:
    parser = Parser("rag", SOURCES)
    assert feed(parser, "<co: 0>", "ab", " c ", "</co: 0", "> d") == [
        [],
        [TextDelta("ab")],
        [TextDelta(" c")],
        [],
        [CitationEvent(0, Citation(0, 4, "ab c", (SOURCES[0],))), TextDelta("  d")],
    ]
    assert [
        event.index for event in parser.feed("<co: 1>e</co: 1><co>f</co><co: 2>g</co>") if event.type == "citation"
    ] == [1, 2]


def test_text_that_cannot_be_markup_is_not_withheld() -> None:
    parser = Parser("rag")
    assert feed(parser, "a", " ", "b<", "c", "x") == [
        [TextDelta("a")],
        [],
        [TextDelta(" b")],
        [],
        [TextDelta("<cx")],
    ]


def test_tags_are_told_from_text() -> None:
    splitter = TagSplitter()
    assert list(splitter.feed("a<co: 1,0>b</co")) == ["a", Tag(False, (1, 0)), "b"]
    assert list(splitter.feed(">c<")) == [Tag(True, ()), "c"]
    assert splitter.close() == "<"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0,2, 3", (0, 2, 3)), (" None", ()), ("", ()), (",,1,", (1,)), ("1 2,3", (3,)), ("٣,²,1_0", ()), ("007", (7,))],
)
def test_numbers(text, numbers) -> None:
    assert numbers_in(text) == numbers
