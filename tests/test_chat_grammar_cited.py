"""Cited answers under a grammar: the sections are there, and every citation is closed and of a document that exists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_grammar_support import accepts, write
from quarterdeck.chat.grammars.grammar import cited_answer_grammar
from quarterdeck.chat.grammars.text import Characters
from quarterdeck.chat.messages import Source
from quarterdeck.chat.parser import parse
from quarterdeck.errors import ChatError

TAG = re.compile(r"<(/?)co(?::([^<>\n]{0,64}))?>")


def sources(numbers: list[int]) -> list[Source]:
    return [Source("document", f"doc:{number}", number, {}) for number in numbers]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 30), max_size=4, unique=True),
    st.sampled_from(["accurate", "fast", "off"]),
    st.sampled_from(["rag", "multi_step"]),
    st.integers(0, 2**32),
)
def test_answers_cite_only_documents_that_exist(numbers: list[int], mode: Any, format: Any, seed: int) -> None:
    text = write(cited_answer_grammar(numbers, mode, format), seed, most=600)
    if text is None:
        return
    marker = "Answer: " if mode == "off" else "Grounded answer: "
    grounded = text.partition(marker)[2]
    tags = TAG.findall(grounded)
    assert [slash for slash, _ in tags] == ["", "/"] * (len(tags) // 2)
    assert {int(number) for _, inside in tags for number in inside.split(",")} <= set(numbers)
    assert mode != "off" or not tags
    parsed = parse(text, format, sources(numbers), mode)
    assert parsed.problems == ()
    assert len(parsed.citations) == len(tags) // 2
    assert parsed.text == TAG.sub("", grounded).strip().removesuffix("<co").removesuffix("</co")
    for listed in (parsed.relevant_documents, parsed.cited_documents):
        assert listed is None if mode == "off" else set(listed or ()) <= set(numbers)


HEAD = "Relevant Documents: 0,2\nCited Documents: 0\n"
ACCURATE = HEAD + "Answer: It is.\nGrounded answer: "


@pytest.mark.parametrize(
    ("text", "mode", "is_right"),
    [
        (ACCURATE + "<co: 0>It</co: 0> is <code> 3 < 4 <co", "accurate", True),
        (ACCURATE + "<co: 0,2>It</co: 2>\n\n<<co: 2>is</co: 2>", "accurate", True),
        (ACCURATE, "accurate", True),
        (HEAD + "Answer: First.\n\nGround\n<coal>\nGrounded answer: It", "accurate", True),
        (HEAD.replace("0,2", "None").replace("0", "None") + "Answer: No.\nGrounded answer: No.", "accurate", True),
        (HEAD.replace("0,2", "0, 2") + "Grounded answer: <co: 0>It</co: 0>", "fast", True),
        ("Answer: It is <b>.", "off", True),
        (ACCURATE + "<co: 1>It</co: 1>", "accurate", False),
        (ACCURATE + "<co: 0>It</co: 1>", "accurate", False),
        (ACCURATE + "<co: 0>It", "accurate", False),
        (ACCURATE + "It</co: 0>", "accurate", False),
        (ACCURATE + "<co: 0><co: 2>It</co: 2></co: 0>", "accurate", False),
        (ACCURATE + "<co: 0> \n</co: 0>", "accurate", False),
        (ACCURATE + "<co>It</co>", "accurate", False),
        (ACCURATE + "<co: >It</co: >", "accurate", False),
        (HEAD.replace("2", "1") + "Answer: It is.\nGrounded answer: It", "accurate", False),
        (HEAD + "Grounded answer: It", "accurate", False),
        (HEAD + "Answer: <co: 0>It</co: 0>.\nGrounded answer: It", "accurate", False),
        (HEAD + "Answer: It is.\nGrounded answer: It", "fast", False),
        (HEAD + "Answer: It is.", "accurate", False),
        ("Answer: <co: 0>It</co: 0>", "off", False),
        ("It is.", "fast", False),
    ],
)
def test_what_a_cited_answer_is(text: str, mode: Any, is_right: bool) -> None:
    assert accepts(cited_answer_grammar([0, 2], mode), text) == is_right
    assert accepts(cited_answer_grammar([2, 0], mode, "multi_step"), text) == is_right
    assert accepts(cited_answer_grammar([2, 0], mode, "multi_step"), f"\nReflection: I see.\nSo.\n{text}") == is_right
    assert not accepts(cited_answer_grammar([2, 0], mode), f"Reflection: I see.\n{text}")


def test_without_documents_nothing_is_cited() -> None:
    text = "Relevant Documents: None\nCited Documents: None\nGrounded answer: Nobody knows."
    assert accepts(cited_answer_grammar([], "fast"), text)
    assert not accepts(cited_answer_grammar([], "fast"), text + "<co: 0>x</co: 0>")


def test_published_answers_are_in_the_language(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "template_vectors.json").read_text(encoding="utf-8"))["output_parsing_vectors"]
    texts = [vector["text"] for vector in vectors if vector["id"] == "parse_answer"]
    assert texts
    assert all(accepts(cited_answer_grammar(range(4)), text) for text in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([-1],), "0 or more"),
        (([0], "none"), "citation mode"),
        (([0], "fast", "tool_use"), "rag or multi_step"),
    ],
)
def test_requests_that_cannot_be_right_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        cited_answer_grammar(*arguments)


# ── the expressions for free text ─────────────────────────────────────────────────────────────────────────────────

pieces = st.lists(
    st.sampled_from(["<", "/", "c", "o", ":", ">", " ", "\n", "A", "b", "Ab:", "Ac", "é", "<co", "</co"]), max_size=8
).map("".join)


@settings(max_examples=400, deadline=None)
@given(pieces, st.booleans())
def test_text_without_tags_is_just_that(text: str, lines: bool) -> None:
    characters = Characters(lines=lines, tags=False)
    is_free = re.search(r"</?co[:>]", text) is None and (lines or "\n" not in text)
    assert (re.fullmatch(characters.all() + characters.end(), text) is not None) == is_free


@settings(max_examples=400, deadline=None)
@given(pieces, st.booleans())
def test_lines_without_markers_are_just_that(text: str, tags: bool) -> None:
    characters = Characters(tags=tags)
    is_free = "\n" not in text and not text.startswith(("Ab:", "Ac")) and (tags or not re.search(r"</?co[:>]", text))
    assert (re.fullmatch(characters.line(["Ab:", "Ac"]), text) is not None) == is_free
    is_filled = is_free and text != "" and text == text.lstrip()
    assert (re.fullmatch(characters.filled_line(["Ab:", "Ac"]), text) is not None) == is_filled
