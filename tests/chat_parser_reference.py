"""What the parser of `quarterdeck.chat` must find, written a second time: whole texts, regular expressions, no state.

Slow and plain on purpose. `strategies` below make texts of the pieces that matter, in any order.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from hypothesis import strategies as st

DOCUMENT_MARKERS = ["Relevant Documents:", "Cited Documents:"]
PLAN_MARKERS = ["Plan:", "Reflection:"]
KNOWN = {
    "default": [],
    "rag": [*DOCUMENT_MARKERS, "Answer:", "Grounded answer:"],
    "tool_use": ["Action:"],
    "multi_step": [*DOCUMENT_MARKERS, "Answer:", "Grounded answer:", *PLAN_MARKERS, "Action:"],
}
TAG = r"<(/?)co(?::([^<>\n]{0,64}))?>"


@dataclass
class Expected:
    text: str
    plan: str
    citations: list[tuple[int, int, str, tuple[int, ...]]]
    relevant: tuple[int, ...] | None
    cited: tuple[int, ...] | None
    action: str | None
    """What follows `Action:`."""


def sections_of(text: str, known: list[str]) -> list[tuple[str, str]]:
    """Markers and what follows them; the marker is "" for a text that begins with none."""
    text = text.lstrip()
    first = next((marker for marker in known if text.startswith(marker)), None)
    if first is None:
        return [("", text)]
    sections, marker, rest = [], first, text[len(first) :]
    while True:
        allowed = {"Answer:": ["Grounded answer:"], "Grounded answer:": [], "Action:": []}.get(marker, known)
        pattern = "|".join(re.escape("\n" + name) for name in allowed if name in known)
        found = re.search(pattern, rest) if pattern else None
        if found is None:
            return [*sections, (marker, rest)]
        sections.append((marker, rest[: found.start() + 1]))
        marker, rest = found[0][1:], rest[found.end() :]


def integers(text: str) -> tuple[int, ...]:
    return tuple(int(item) for item in text.split(",") if re.fullmatch(r"\s*[0-9]{1,64}\s*", item))


def answer_of(markup: str, number_of_documents: int | None) -> tuple[str, list[tuple[int, int, str, tuple[int, ...]]]]:
    """Clean text and citations of marked-up text."""
    last = re.search(r"</?co(?::[^<>\n]{0,64})?\Z", markup)
    markup = markup[: last.start()] if last else markup
    dirty = re.sub(TAG, "", markup)
    lead = len(dirty) - len(dirty.lstrip())
    clean = dirty.strip()
    citations, opened, removed = [], [], 0
    for match in re.finditer(TAG, markup):
        place = match.start() - removed
        removed += len(match[0])
        numbers = tuple(dict.fromkeys(integers(match[2] or "")))
        if not match[1]:
            opened.append((place, numbers))
        elif opened:
            start, before = opened.pop()
            wanted = [n for n in numbers or before if number_of_documents is None or n < number_of_documents]
            span = dirty[start:place]
            start += len(span) - len(span.lstrip()) - lead
            if span.strip() and wanted:
                citations.append((start, start + len(span.strip()), span.strip(), tuple(wanted)))
    return clean, citations


def reference(text: str, format: str, number_of_documents: int | None = None, mode: str = "accurate") -> Expected:
    """What the text says, but for the calls inside the action."""
    sections = sections_of(text, KNOWN[format])
    answers = [(marker, body) for marker, body in sections if marker in ("", "Answer:", "Grounded answer:")]
    clean, citations = "", []
    if format in ("default", "tool_use"):
        clean = "".join(body for _, body in answers).strip()
    elif answers:
        marker, body = answers[0] if mode == "off" else answers[-1]
        clean, citations = answer_of(body, number_of_documents)
        citations = [] if marker == "Answer:" or mode == "off" else citations
    plans = [body.strip() for marker, body in sections if marker in PLAN_MARKERS]

    def listed(name: str) -> tuple[int, ...] | None:
        lines = [body.split("\n")[0] for marker, body in sections if marker == name]
        return sum(map(integers, lines), ()) if lines else None

    action = next((body for marker, body in sections if marker == "Action:"), None)
    plan = "\n".join(plan for plan in plans if plan)
    return Expected(clean, plan, citations, *map(listed, DOCUMENT_MARKERS), action)


MARKERS = [*KNOWN["multi_step"], "answer:", "Grounded Answer:", "Actions:", "Action :", "Plan", "Ground", "Relevant D"]
TAGS = ["<co: 0>", "</co: 0>", "<co: 1,2>", "</co: 1,2>", "<co>", "</co>", "<co:>", "</co:3>", "<co: 0,0, x,-1,7>"]
NEAR_TAGS = ["<", "</", "<c", "</c", "<co", "</co", "<co: 1", "</co: 0, ", "<code>", "<co 1>", "<co: 1\n>", "<CO: 1>"]
NEAR_TAGS += ["<co: <co: 1>", "a < b", ">", f"<co:{'9' * 64}>", f"<co:{'9' * 65}>", f"<co:{' ' * 64}"]
SPACES = [" ", "\n", "\n\n", "\t", "\r\n", "\u3000", "\xa0", "\x1c", "\x85", "\u2028"]
WORDS = [
    "word",
    "naïve",
    "日本語",
    "👩‍👩‍👧",
    "e\u0301",
    "0,1",
    " 12, 3 ",
    "None",
    "x" * 30,
    "\x00",
    "\\",
    "'",
    "9" * 5000,
]
JSON = [
    '[{"tool_name": "f", "parameters": {"a": [1, 2.5, {"b": null}]}}]',
    '{"tool_name": "g"}',
    "[",
    "]",
    "{",
    "}",
    '"',
    ":",
]
JSON += [
    ",",
    "```",
    "```json\n",
    '"tool_name": "f"',
    '"parameters": {"q": "a\\"b"}',
    "\\",
    "\\u00e9",
    "1 2",
    "true",
    "'a'",
]


def texts(*kinds: list[str], size: int = 14) -> st.SearchStrategy[str]:
    """Texts made of pieces of these kinds and of random characters (no surrogates)."""
    lines = [f"\n{marker}" for marker in MARKERS] if MARKERS in kinds else []
    pieces = [piece for kind in kinds for piece in kind] + lines
    random = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    return st.lists(st.one_of(st.sampled_from(pieces), st.sampled_from(pieces), random), max_size=size).map("".join)


ANY_TEXT = st.one_of(
    texts(MARKERS, TAGS, NEAR_TAGS, SPACES, WORDS, JSON),
    texts(MARKERS, TAGS, SPACES, WORDS),
    texts(TAGS, NEAR_TAGS, SPACES).map("Grounded answer:".__add__),
    st.lists(
        st.sampled_from(["<co: 0>", "<co: 1>", "</co: 1>", "</co>", "<co>", " ", "a"]), min_size=8, max_size=24
    ).map("".join),
    texts(JSON, SPACES, size=24).map("Action:".__add__),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(max_size=5), json_values, max_size=3)


@st.composite
def spaced_json(draw: st.DrawFn, value: object, trailing_commas: bool = True) -> str:
    """JSON of a value with any white space between its tokens, and perhaps trailing commas."""
    space = draw(st.sampled_from(["", " ", "\n  ", "\t\r\n"]))
    if isinstance(value, (dict, list)) and value:
        parts = [
            draw(spaced_json(item, trailing_commas)) for item in (value.values() if isinstance(value, dict) else value)
        ]
        if isinstance(value, dict):
            parts = [f"{json.dumps(key)}{space}:{space}{part}" for key, part in zip(value, parts, strict=True)]
        comma = "," if trailing_commas and draw(st.booleans()) else ""
        opener, closer = "{}" if isinstance(value, dict) else "[]"
        return f"{opener}{space}{f'{space},{space}'.join(parts)}{space}{comma}{space}{closer}"
    ascii_only = draw(st.booleans())
    return json.dumps(value, ensure_ascii=ascii_only) or ""
