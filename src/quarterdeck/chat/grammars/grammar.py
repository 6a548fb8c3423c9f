"""What a model may write: tool calls that fit their schemas, JSON, answers that cite only documents that exist.

    grammar = tool_calls_grammar(tools, tool_choice="required", format="multi_step")
    grammar.text        # start: ...      in the notation of `llguidance`

A `Grammar` is only text. `quarterdeck.chat.grammars.matcher` makes of it, with a tokenizer, the set of tokens that may
come next. Control tokens are no text: none is ever in that set but the one that ends the turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quarterdeck.chat.grammars.rules import Literal as Fixed
from quarterdeck.chat.grammars.rules import Ref, Repeat, Rules, Symbol, Terminal
from quarterdeck.chat.grammars.schema import SchemaRules, after_colon, gap, json_text
from quarterdeck.chat.grammars.schema_check import Schema
from quarterdeck.chat.grammars.text import WHITE_SPACE, Characters, tag, visible
from quarterdeck.chat.messages import Tool
from quarterdeck.chat.parsing.sections import MARKERS, Section
from quarterdeck.chat.prompts.parts import template_data
from quarterdeck.chat.prompts.tool_text import with_directly_answer
from quarterdeck.chat.template import CitationMode
from quarterdeck.errors import ChatError

CallFormat = Literal["multi_step", "tool_use"]

_MOST_CALLS = 16
_MOST_LINES = 4
_LONGEST_LINE = 400
_MOST_NUMBERS = 16
_FENCE = "```json\n"


@dataclass(frozen=True)
class Grammar:
    """A grammar in the notation of `llguidance`, and in words what it describes (for messages)."""

    text: str
    what: str


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def json_grammar(schema: Schema | None = None) -> Grammar:
    """JSON that satisfies a schema; without one, any JSON object.

    Example: ``json_grammar({"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}})``.

    Raises:
        ChatError: the schema has a keyword that a grammar cannot enforce, or nothing satisfies it.
    """
    what = "the schema of response_format"
    rules = Rules()
    any_object = {"type": "object", "additionalProperties": True}
    value = SchemaRules(rules, any_object if schema is None else schema, what)
    found = value.add(any_object if schema is None else schema)
    return _finished(rules, [[found]], what)


# ── tool calls ────────────────────────────────────────────────────────────────────────────────────────────────────


def tool_calls_grammar(
    tools: Iterable[Any],
    *,
    tool_choice: str | None = None,
    format: CallFormat = "multi_step",
    directly_answer: bool = True,
    max_calls: int | None = None,
) -> Grammar:
    """The list of calls that follows ``Action:``, and what may stand before it or in its place.

    ``multi_step`` lets a plan or reflection go before the list. Without a choice, any text without ``Action:`` may
    stand in place of all: that is how a model answers. ``tool_use`` is the list alone; without a choice and without
    ``directly_answer``, text may stand in its place.

    Args:
        tools: whatever `Tool.of` reads.
        tool_choice: ``"required"`` (in any case): one call at least; a tool's name: calls of that tool alone, one at
            least; None: the model decides.
        format: of the prompt.
        directly_answer: whether the model may call ``directly_answer``. Where a call is forced it may not.
        max_calls: calls in one list at most; None is 16.

    Raises:
        ChatError: there are no tools, the choice is none of them, a schema has a keyword that a grammar cannot
            enforce, or nothing satisfies it.
    """
    given = [Tool.of(tool) for tool in tools]
    chosen = _chosen(given, tool_choice)
    is_forced = tool_choice is not None
    if format not in ("multi_step", "tool_use"):
        raise ChatError(f"the format of a prompt with tools is multi_step or tool_use, not {format!r}")
    most = _MOST_CALLS if max_calls is None else max_calls
    if most < 1:
        raise ChatError(f"max_calls is {most}; a list of calls has one at least")
    if directly_answer and not is_forced:
        chosen = with_directly_answer(chosen, first=format == "multi_step")
    rules = Rules()
    calls = _calls(rules, chosen, most)
    starts = [[*start, calls, Fixed("\n```")] for start in _starts(format, is_forced)]
    if not is_forced and (format == "multi_step" or not directly_answer):
        starts.append([Terminal(f"/{_text_without_calls()}/")])
    return _finished(rules, starts, "the grammar of tool calls")


def _chosen(tools: list[Tool], choice: str | None) -> list[Tool]:
    names = [tool.name for tool in tools]
    if not tools:
        raise ChatError("a grammar of tool calls needs tools")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ChatError(f"the names of tools are unique; {twice[0]} is there {names.count(twice[0])} times")
    if choice is None or (isinstance(choice, str) and choice.lower() == "required"):
        own = template_data("tool_use")["directly_answer"]["name"]
        return tools if choice is None else [tool for tool in tools if tool.name != own] or tools
    if choice not in names:
        known = ", ".join(names)
        raise ChatError(f"tool_choice is 'required' or one of {known}, not {choice!r}; 'none' needs no grammar")
    return [tool for tool in tools if tool.name == choice]


def _starts(format: CallFormat, is_forced: bool) -> list[list[Symbol]]:
    """What can go before the list.

    A plan before a list that must follow is bounded. Where text may stand in place of all, plan and marker are one
    terminal: terminals are as long as they can be, so a plan's line would always be taken for the beginning of text.
    """
    action = rf"{Section.ACTION.value}[ \n]{_regex(_FENCE)}"
    starts: list[list[Symbol]] = [[Terminal(rf"/\n?{action}/")]]
    if format == "multi_step" and is_forced:
        first, other = _plan_lines(Characters(most=_LONGEST_LINE))
        more = Repeat((Terminal(f"/{other}/"),), 0, _MOST_LINES - 1)
        starts.append([Terminal(f"/{first}/"), more, Terminal(f"/{action}/")])
    elif format == "multi_step":
        first, other = _plan_lines(Characters())
        starts.append([Terminal(f"/{first}({other})*{action}/")])
    return starts


def _plan_lines(line: Characters) -> tuple[str, str]:
    """The first line of a plan or reflection, and any other: it does not begin with a marker. With their breaks."""
    markers = [section.value for section in MARKERS["multi_step"]]
    return (
        rf"\n?({Section.PLAN.value}|{Section.REFLECTION.value}){line.all()}\n",
        rf"({line.line(markers)})\n",
    )


def _calls(rules: Rules, tools: Sequence[Tool], most: int) -> Ref:
    call = Ref(rules.fresh("call"))
    for tool in tools:
        what = f"the parameters of the tool {tool.name}"
        parameters = {**tool.parameters, "type": "object"}
        value = SchemaRules(rules, parameters, what).add(parameters)
        if not rules.is_satisfiable(value):
            raise ChatError(f"nothing satisfies {what}: leave the tool out, or mend its schema")
        name: list[Symbol] = [Fixed('"tool_name"'), Fixed(":"), after_colon(rules), Fixed(json_text(tool.name, what))]
        arguments: list[Symbol] = [Fixed('"parameters"'), Fixed(":"), after_colon(rules), value]
        members: list[Symbol] = [*name, Fixed(","), gap(rules), *arguments]
        rules.add(call.name, [Fixed("{"), gap(rules), *members, gap(rules), Fixed("}")])
    more = Repeat((Fixed(","), gap(rules), call), 0, most - 1)
    return rules.add(rules.fresh("calls"), [Fixed("["), gap(rules), call, more, gap(rules), Fixed("]")])


# ── cited answers ─────────────────────────────────────────────────────────────────────────────────────────────────


def cited_answer_grammar(
    document_numbers: Iterable[int],
    citation_mode: CitationMode = "accurate",
    format: Literal["rag", "multi_step"] = "rag",
) -> Grammar:
    """The sections of a grounded answer; documents in them, and citations, are those that exist.

    Citations are closed, cover text and do not nest; text holds no other citation tags. In ``multi_step`` a plan or
    reflection may go before. With ``off`` the answer is ``Answer:`` and text alone.

    Args:
        document_numbers: of the documents in the prompt (`Source.index`).
        citation_mode: of the prompt.
        format: of the prompt.

    Raises:
        ChatError: a number is negative, or the mode or the format is none of those that exist.
    """
    numbers = sorted(set(document_numbers))
    if any(number < 0 for number in numbers):
        raise ChatError(f"the number of a document is 0 or more, not {numbers[0]}")
    if citation_mode not in ("accurate", "fast", "off"):
        raise ChatError(f"the citation mode is one of accurate, fast, off, not {citation_mode!r}")
    if format not in ("rag", "multi_step"):
        raise ChatError(f"the format of a prompt with documents is rag or multi_step, not {format!r}")
    rules = Rules()
    answer = _answer(rules, numbers, citation_mode)
    starts: list[list[Symbol]] = [[answer]]
    if format == "multi_step":
        first, other = _plan_lines(Characters())
        starts.append([Terminal(f"/{first}/"), Repeat((Terminal(f"/{other}/"),)), answer])
    return _finished(rules, starts, "the grammar of cited answers")


def _answer(rules: Rules, numbers: list[int], citation_mode: CitationMode) -> Ref:
    """All sections of the answer."""
    text = Characters(lines=True, tags=False)
    rest: Symbol = Terminal(f"/{text.all()}{text.end()}/")
    if citation_mode == "off":
        return rules.add("answer", [Fixed(f"{Section.ANSWER.value} "), rest])
    listed = [Terminal(f"/{_numbers(numbers, ', ?')}/")] if numbers else []
    documents = rules.add("documents", [Fixed("None")], *([listed] if listed else []))
    grounded = rules.add("grounded", [Fixed(f"{Section.GROUNDED_ANSWER.value} "), *_citations(numbers), rest])
    parts: list[Symbol] = [Fixed(f"{Section.RELEVANT_DOCUMENTS.value} "), documents, Fixed("\n")]
    parts += [Fixed(f"{Section.CITED_DOCUMENTS.value} "), documents, Fixed("\n")]
    if citation_mode == "accurate":
        line = Characters(tags=False)
        parts.append(Terminal(rf"/{Section.ANSWER.value} {line.all()}{line.end()}\n/"))
        parts.append(Repeat((Terminal(rf"/({line.line([Section.GROUNDED_ANSWER.value])})\n/"),)))
    return rules.add("answer", [*parts, grounded])


def _citations(numbers: list[int]) -> list[Symbol]:
    """Text up to an opening tag, text up to a closing tag, any number of times."""
    if not numbers:
        return []
    within, text = _numbers(numbers, ","), Characters(lines=True, tags=False)
    opening = Terminal(f"/{text.all()}{tag('', within)}/")
    closing = Terminal(rf"/{visible(text)}{tag(chr(92) + '/', within)}/")
    return [Repeat((opening, closing))]


def _numbers(numbers: list[int], comma: str) -> str:
    one = f"({'|'.join(map(str, numbers))})"
    return f"{one}({comma}{one}){{0,{min(len(numbers), _MOST_NUMBERS) - 1}}}"


# ── pieces ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _finished(rules: Rules, starts: list[list[Symbol]], what: str) -> Grammar:
    rules.add("begin", *starts)
    text = rules.text("begin")
    if text is None:
        raise ChatError(f"nothing satisfies {what}")
    return Grammar(text, what)


def _text_without_calls() -> str:
    """Text in which ``Action:`` begins no line, nor the text as a whole after white space."""
    line, markers = Characters(), [Section.ACTION.value]
    return rf"[{WHITE_SPACE}]*(({line.filled_line(markers)})(\n({line.line(markers)}))*)?"


def _regex(text: str) -> str:
    """A text as a regular expression in Lark's slashes; only markers and fences, which have nothing to escape."""
    return text.replace("\n", r"\n")
