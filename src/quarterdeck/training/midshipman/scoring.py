"""Whether a reply is right: what was asked for, by the product's own reading of the model's text.

Every function says of one case yes, no, or None where the question does not arise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quarterdeck.chat.answers.response import ChatResponse
from quarterdeck.chat.parser import parse
from quarterdeck.chat.template import Prompt
from quarterdeck.training.midshipman.answers import REFUSAL
from quarterdeck.training.midshipman.example import Example


@dataclass(frozen=True)
class Outcome:
    """One case, what the model wrote, and what the product made of it."""

    group: str
    example: Example
    prompt: Prompt
    text: str
    reply: ChatResponse


Score = Callable[[Outcome], bool | None]
_FENCED = re.compile(r"Action:\s*```json\n(.*?)\n?```", re.DOTALL)
_TAG = re.compile(r"</?co: [\d,]+>")
_ARTICLE = re.compile(r"^(?:the|an?) ", re.IGNORECASE)


def plain(text: str) -> str:
    """A text for comparison: one space between words, small letters, no full stop at the end."""
    return " ".join(text.split()).lower().rstrip(".!")


def format_right(case: Outcome) -> bool:
    """All sections of a grounded answer are there, in order, every citation is whole, and nothing had to be mended."""
    parsed = parse(case.text, case.prompt.format, case.prompt.sources, case.example.citation_mode)
    marks = ["Relevant Documents:", "Cited Documents:", "Answer:", "Grounded answer:"]
    places = [("\n" + case.text).find("\n" + mark) for mark in marks]
    grounded = case.text.partition("Grounded answer:")[2]
    loose = "<co" in _TAG.sub("", grounded) or "</co" in _TAG.sub("", grounded)
    return places == sorted(places) and places[0] >= 0 and bool(parsed.text) and not parsed.problems and not loose


def answer_right(case: Outcome) -> bool:
    """Every value that is asked for is in the text, and none of its rivals.

    Rivals are what is told of other things in its place, and what else is told of the thing: repeating documents is no
    answer.
    """
    said, about = f" {plain(case.reply.text)} ", case.example.about
    expected = f" {plain(about['answer'])} "
    wrong = [rival for rival in about.get("rivals", ()) if _has(said, rival) and not _has(expected, rival)]
    return bool(about["values"]) and all(_has(said, value) for value in about["values"]) and not wrong


def _has(text: str, value: str) -> bool:
    """Whether a value stands in a text, not as a part of a longer word or number."""
    return re.search(rf"(?<![A-Za-z0-9.,]){re.escape(plain(value))}(?![A-Za-z0-9]|[.,]\d)", text) is not None


def answer_exact(case: Outcome) -> bool:
    """The text is the expected one to the word."""
    return plain(case.reply.text) == plain(case.example.about["answer"])


def citation_right(case: Outcome) -> bool | None:
    """What a right answer cites is where it comes from; None for wrong answers."""
    if not answer_right(case):
        return None
    cited = {source.index for citation in case.reply.citations for source in citation.sources}
    return bool(cited) and cited <= set(case.example.about["sources"])


def refusal_right(case: Outcome) -> bool:
    """Nothing is cited, and the text says that the answer is not there."""
    return not case.reply.citations and plain(REFUSAL) in plain(case.reply.text)


def json_valid(case: Outcome) -> bool:
    """The action is a JSON list of calls with a name and parameters, as written, without any mending."""
    match = _FENCED.search(case.text)
    try:
        calls = json.loads(match[1]) if match else None
    except ValueError:
        return False
    return (
        isinstance(calls, list)
        and bool(calls)
        and all(
            isinstance(call, dict)
            and isinstance(call.get("tool_name"), str)
            and isinstance(call.get("parameters"), dict)
            for call in calls
        )
    )


def tool_right(case: Outcome) -> bool:
    """One call, of the right tool."""
    return [call.name for call in case.reply.tool_calls] == [case.example.about["tool"]]


def arguments_right(case: Outcome) -> bool:
    """The right tool, with exactly the right arguments as `value_right` has it; broken JSON has none."""
    if not tool_right(case):
        return False
    try:
        given = case.reply.tool_calls[0].parameters
    except ValueError:
        return False
    expected = case.example.about["arguments"]
    return given.keys() == expected.keys() and all(value_right(given[name], expected[name]) for name in expected)


def value_right(given: object, expected: object) -> bool:
    """Whether a value of a call is the expected one: the same JSON, or the same text but for its article or quotes.

    "Oil the Vaield phone." names the phone with and without its article, and the quotes around a title may be part
    of it or not. What has no article of its own gets none, and every word besides counts.
    """
    if isinstance(given, str) and isinstance(expected, str):
        given, expected = _unquoted(given), _unquoted(expected)
        if _ARTICLE.match(expected):
            return _ARTICLE.sub("", given) == _ARTICLE.sub("", expected)
    return json.dumps(given) == json.dumps(expected)  # in Python 1 equals True, in JSON it does not


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def direct_right(case: Outcome) -> bool:
    """No tool is called."""
    return not case.reply.tool_calls and json_valid(case)


def intent_right(case: Outcome) -> bool:
    """The reply is one of the answers of the intent."""
    return plain(case.reply.text) in {plain(text) for text in case.example.about["rights"]}


def two_steps_right(case: Outcome) -> bool:
    """The next step is right, whichever it is: a call, or the answer."""
    return arguments_right(case) if "tool" in case.example.about else answer_right(case)


_GROUNDED = ("seen", "held_out", "held_out_properties", "held_out_events", "natural", "unanswerable")

METRICS: Mapping[str, tuple[tuple[str, ...], Score]] = {
    "format": (_GROUNDED, format_right),
    "answers, seen schemas": (("seen",), answer_right),
    "answers, held-out schemas": (("held_out",), answer_right),
    "answers to the word, seen schemas": (("seen",), answer_exact),
    "answers to the word, held-out schemas": (("held_out",), answer_exact),
    "answers, held-out properties": (("held_out_properties",), answer_right),
    "answers, held-out events": (("held_out_events",), answer_right),
    "natural held-out sentences": (("natural",), answer_exact),
    "right citation of right answers": (("seen", "held_out", "held_out_properties", "natural"), citation_right),
    "unanswerable is said to be so": (("unanswerable",), refusal_right),
    "tool calls are valid JSON": (("calls", "calls_single_step"), json_valid),
    "right tool": (("calls", "calls_single_step"), tool_right),
    "right arguments": (("calls", "calls_single_step"), arguments_right),
    "no tool where none is needed": (("direct",), direct_right),
    "answers from results of tools": (("results",), answer_right),
    "two steps: the next is right": (("two_steps",), two_steps_right),
    "answers in nine other languages": (("languages",), answer_right),
    "chat intents": (("chat",), intent_right),
}
"""Every metric: the groups that it counts, and how."""
