"""Tools that are invented anew for every example, requests that need one of them, and what comes after.

A tool is a skeleton of texts/tools.txt or a question for a property ("What is the toll of ..."), under a name, with
parameter names and in company of other tools that are drawn each time. So the model has to read the signature: nothing
else says what the tool and its parameters are called.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quarterdeck.chat.messages import Document, Message, Tool, ToolCall
from quarterdeck.chat.prompts.tool_text import calls_text
from quarterdeck.training.midshipman.answers import PREAMBLES, Statement, completion
from quarterdeck.training.midshipman.example import Example
from quarterdeck.training.midshipman.grammar import expanded
from quarterdeck.training.midshipman.invention import Inventor, with_article
from quarterdeck.training.midshipman.schemas import TWO_STEP_NOUNS, properties
from quarterdeck.training.midshipman.skeletons import LOOKUP_VERBS, Parameter, Skeleton, property_skeleton, skeletons

_SLOT = re.compile(r"<(\w+)>")
_NOUN_AND_CODE = re.compile(r"[a-z]+ \S*\d")
_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_OTHER_NAMES = {
    "city": ("city", "town", "place", "location", "name"),
    "query": ("query", "words", "text", "q", "topic", "keywords"),
    "room": ("room", "place", "where", "location"),
    "name": ("name", "who", "person", "full_name", "query"),
    "path": ("path", "file", "filename", "name"),
    "time": ("time", "at", "when", "hour"),
    "date": ("date", "day", "when"),
    "text": ("text", "message", "content", "body"),
    "product": ("product", "item", "article", "name"),
    "ship": ("ship", "vessel", "name", "boat"),
    "user": ("user", "email", "account", "login"),
    "place": ("place", "location", "where", "position"),
}


@dataclass(frozen=True)
class Use:
    """A tool as it is shown, and one use of it: the request, the call, the result and the answer."""

    tool: Tool
    request: str
    plan: str
    call: ToolCall
    result: dict[str, str]
    answer: str
    purpose: str


def _filled(parameter: Parameter, inventor: Inventor) -> tuple[str, Any]:
    """A value: as the request spells it, and as JSON."""
    rng = inventor.rng
    match parameter.kind:
        case "bool":
            on = rng.random() < 0.5
            return ("on", True) if on else ("off", False)
        case "urgency":
            urgent = rng.random() < 0.5
            return ("urgent", True) if urgent else ("not urgent", False)
        case "tag_list" | "name_list":
            kind = "food" if parameter.kind == "tag_list" else "first"
            values = list(dict.fromkeys(inventor.value(kind) for _ in range(rng.randint(2, 3))))
            return ", ".join(values[:-1]) + (" and " if values[1:] else "") + values[-1], values
        case "degrees":
            number = rng.randint(5, 100)
            return str(number), number
        case "amount":
            amount = rng.randint(1, 900) + rng.choice((0.5, 0.25, 0.75))
            return str(amount), amount
        case "sum":
            text = f"{rng.randint(2, 999)} {rng.choice('+-*/')} {rng.randint(2, 99)}"
            return text, text
    text = named_value(parameter.kind, parameter.slot, inventor)
    return text, int(text.replace(",", "")) if parameter.type == "int" else text.strip('"')


def named_value(kind: str, called: str, inventor: Inventor) -> str:
    """A value as it stands inside a sentence, and none of which nobody could know where it begins.

    Of "Vacuum House K-12" a parameter `house` might be "House K-12" or "K-12"; and of "Weigh crate 57", what is to be
    weighed "crate 57" or "57".
    """
    while True:
        text = inventor.value(kind)
        inside = "the " + text[4:] if text.startswith("The ") else text
        if inside.removeprefix("the ").split()[0].lower() != called and not _NOUN_AND_CODE.match(inside):
            return inside


def _shown_name(name: str, inventor: Inventor) -> str:
    rng = inventor.rng
    roll = rng.random()
    pieces = name.split("_")
    if roll < 0.55:
        return name
    if roll < 0.65 and len(pieces) > 1:
        return "_".join(pieces[1:])
    if roll < 0.75:
        return pieces[0] + "".join(piece.capitalize() for piece in pieces[1:])
    if roll < 0.83:
        return f"{name}_{rng.choice(('tool', 'api', 'v2', 'service', 'now'))}"
    if roll < 0.93:
        return f"{inventor.word(1)}_{'_'.join(pieces[1:]) or name}"
    return inventor.slug().replace("-", "_")


@dataclass(frozen=True)
class ShownTool:
    """A tool under names that were drawn for it: ``names`` has the parameter's name for each slot of the skeleton."""

    skeleton: Skeleton
    tool: Tool
    names: dict[str, str]


def show_tool(skeleton: Skeleton, inventor: Inventor, *, renamed: bool = True) -> ShownTool:
    """A tool as it is shown; with ``renamed=False`` under the names of the skeleton."""
    rng = inventor.rng
    names: dict[str, str] = {}
    schema: dict[str, Any] = {}
    for parameter in skeleton.parameters:
        choices = _OTHER_NAMES.get(parameter.slot, (parameter.slot,))
        name = rng.choice(choices) if renamed and rng.random() < 0.5 else parameter.slot
        while name in schema:
            name += "_2"
        described = {"description": rng.choice(expanded(parameter.description))} if rng.random() < 0.92 else {}
        names[parameter.slot], schema[name] = name, {**_json_type(parameter.type), **described}
    properties_ = dict(schema)
    if rng.random() < 0.12:
        extra = rng.choice(("style", "limit", "language", "format", "verbose"))
        properties_.setdefault(extra, {"type": "string", "description": f"{extra.capitalize()}, if it matters."})
    parameters = {"type": "object", "properties": properties_, "required": list(schema)}
    shown_name = _shown_name(skeleton.name, inventor) if renamed else skeleton.name
    return ShownTool(skeleton, Tool(shown_name, rng.choice(skeleton.descriptions), parameters), names)


def use_tool(shown: ShownTool, inventor: Inventor) -> Use:
    """One use of a tool, with values of its own."""
    skeleton, rng = shown.skeleton, inventor.rng
    spelled, arguments = {}, {}
    for parameter in skeleton.parameters:
        text, value = _filled(parameter, inventor)
        spelled[parameter.slot], arguments[shown.names[parameter.slot]] = text, value
    result = {key: inventor.value(kind) for key, kind in skeleton.results}
    request = _fill(rng.choice(skeleton.requests), spelled)
    call = ToolCall("call_0", shown.tool.name, _json(arguments))
    plan, answer = _fill(skeleton.plan, spelled), _fill(skeleton.answer, spelled)
    return Use(shown.tool, request, plan, call, result, answer, purpose=purpose_of(skeleton.plan))


def make_use(skeleton: Skeleton, inventor: Inventor, *, renamed: bool = True) -> Use:
    """A tool and one use of it."""
    return use_tool(show_tool(skeleton, inventor, renamed=renamed), inventor)


def _json_type(name: str) -> dict[str, Any]:
    if name.startswith("List"):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": _TYPES[name]}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fill(template: str, values: dict[str, str]) -> str:
    text = _SLOT.sub(lambda match: values.get(match[1], match[0]), template)
    return text[:1].upper() + text[1:] if not template.startswith("look") else text


def purpose_of(plan: str) -> str:
    """What a plan is about, whatever the thing is: the cost of a ship and that of a planet are looked up alike."""
    return plan.partition("<")[0]


def _lower(plan: str) -> str:
    return plan[:1].lower() + plan[1:]


class ToolExamples:
    """Examples with tools.

    Args:
        held_out: with tools and properties that are never trained on.
    """

    def __init__(self, *, held_out: bool = False) -> None:
        self._held_out = held_out

    def skeleton(self, inventor: Inventor) -> Skeleton:
        """What a tool is about."""
        if inventor.rng.random() < 0.4:
            return property_skeleton(inventor, self._held_out)
        return inventor.rng.choice(skeletons(self._held_out))

    def use(self, inventor: Inventor) -> Use:
        """A tool and a use of it."""
        return make_use(self.skeleton(inventor), inventor)

    def tools(self, used: Sequence[Use], inventor: Inventor, *, purposes: Sequence[str] = ()) -> tuple[Tool, ...]:
        """The tools of the uses among up to four others, in a random order.

        No two are for the same purpose, and no other is for one of `purposes`: one of them is right, and one only.
        """
        rng = inventor.rng
        found = {use.tool.name: use.tool for use in used}
        taken = {*purposes, *(use.purpose for use in used)}
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))):
            other = self.use(inventor)
            if other.purpose not in taken and other.tool.name not in found:
                taken.add(other.purpose)
                found[other.tool.name] = other.tool
        listed = list(found.values())
        rng.shuffle(listed)
        return tuple(listed)

    def call(self, inventor: Inventor, *, multi_step: bool | None = None) -> Example:
        """A request that one tool serves."""
        rng = inventor.rng
        steps = rng.random() < 0.6 if multi_step is None else multi_step
        use = self.use(inventor)
        about = {"tool": use.call.name, "arguments": use.call.parameters}
        text = calls_action([use.call])
        if steps:
            text = planned_action(use.plan, text)
        messages = self._opening(inventor, use.request)
        return Example("tools", messages, text, tools=self.tools([use], inventor), multi_step=steps, about=about)

    def two_calls(self, inventor: Inventor) -> Example:
        """The same tool twice, or two requests at once."""
        rng = inventor.rng
        first, second = self.use(inventor), self.use(inventor)
        if first.tool.name == second.tool.name or first.purpose == second.purpose:
            return self.call(inventor)
        request = f"{first.request} {second.request}"
        text = calls_action([first.call, second.call])
        steps = rng.random() < 0.6
        if steps:
            text = f"Plan: I will {_lower(first.plan)}, and I will {_lower(second.plan)}.\n{text}"
        return Example(
            "tools",
            self._opening(inventor, request),
            text,
            tools=self.tools([first, second], inventor),
            multi_step=steps,
        )

    def directly(self, inventor: Inventor, asked: str) -> Example:
        """Small talk that needs no tool."""
        steps = inventor.rng.random() < 0.6
        text = calls_action([ToolCall("call_0", "directly_answer", "{}")])
        if steps:
            text = f"Plan: I will answer directly.\n{text}"
        tools = self.tools([self.use(inventor)], inventor)
        return Example(
            "tools",
            self._opening(inventor, asked),
            text,
            tools=tools,
            multi_step=steps,
            about={"tool": "directly_answer"},
        )

    def results(self, inventor: Inventor, *, multi_step: bool | None = None) -> Example:
        """The answer over what a tool has returned."""
        rng = inventor.rng
        use = self.use(inventor)
        steps = rng.random() < 0.7 if multi_step is None else multi_step
        documents, place, rivals = [Document(dict(use.result))], 0, []
        if rng.random() < 0.25:
            other = self._result_besides(use, inventor)
            rivals = list(other.values())
            place = rng.randrange(2)
            documents.insert(1 - place, Document(other))
        messages = (*self._opening(inventor, use.request), *_step(use, f"I will {_lower(use.plan)}.", documents, 0))
        answer = (_stated(use, place),)
        about = {"answer": answer[0].plain, "sources": [place], "values": _values(use), "rivals": rivals}
        return Example(
            "tools",
            messages,
            completion(answer, [place], "accurate"),
            tools=self.tools([use], inventor),
            multi_step=steps,
            about=about,
        )

    def _result_besides(self, use: Use, inventor: Inventor) -> dict[str, str]:
        """A result of another tool, which tells nothing under the keys of the result that answers."""
        while True:
            other = dict(self.use(inventor).result)
            if not other.keys() & use.result.keys():
                return other

    def two_steps(self, inventor: Inventor) -> Example:
        """Look up one thing, then another that depends on it; the example ends at one of the three stages."""
        rng = inventor.rng
        middle_kind, middle = rng.choice(TWO_STEP_NOUNS)
        start_kind, start = rng.choice(
            (("ship", "ship"), ("project", "project"), ("gadget", "product"), ("code", "order"), ("team", "team"))
        )
        noun, kind = rng.choice(properties(self._held_out))
        first = _lookup(middle, start, start_kind, inventor)
        second = _lookup(noun, middle, middle_kind, inventor)
        asked_for = ((start_kind, start), (middle_kind, middle), (kind, noun))
        begin, found, last = (named_value(*one, inventor) for one in asked_for)
        calls = [_call(first, begin, 0), _call(second, found, 1)]
        asked = rng.choice(
            (
                f"What is the {noun} of the {middle} of {begin}?",
                f"I need the {noun} of the {middle} of {begin}.",
                f"Find the {middle} of {begin}, then tell me the {noun}.",
            )
        )
        plan = f"I will look up the {middle} of {begin}, and then the {noun}."
        think = f"The {middle} is {found}. Now I will look up the {noun} of {found}."
        messages = list(self._opening(inventor, asked))
        tools = self._with(
            first, second, [purpose_of(f"look up the {one} of <name>") for one in (middle, noun)], inventor
        )
        stage = rng.randrange(3)
        texts = [f"Plan: {plan}\n{calls_action([calls[0]])}", f"Reflection: {think}\n{calls_action([calls[1]])}"]
        if stage >= 1:
            messages += _exchange(plan, calls[0], {_slug(middle): found})
        if stage == 2:
            messages += _exchange(think, calls[1], {_slug(noun): last})
            pieces = (
                (f"The {middle} of {begin} is ", ()),
                (found, (0,)),
                (f", and the {noun} is ", ()),
                (last, (1,)),
                (".", ()),
            )
            answer = Statement(pieces)
            truth = {"answer": answer.plain, "sources": [0, 1], "values": [found, last]}
            return Example(
                "tools", tuple(messages), completion((answer,), [0, 1], "accurate"), tools=tools, about=truth
            )
        about = {"tool": calls[stage].name, "arguments": calls[stage].parameters}
        return Example("tools", tuple(messages), texts[stage], tools=tools, about=about)

    def _with(self, first: Tool, second: Tool, purposes: Sequence[str], inventor: Inventor) -> tuple[Tool, ...]:
        others = {tool.name: tool for tool in self.tools([], inventor, purposes=purposes)}
        listed = list({**others, first.name: first, second.name: second}.values())
        inventor.rng.shuffle(listed)
        return tuple(listed)

    def _opening(self, inventor: Inventor, asked: str) -> tuple[Message, ...]:
        if inventor.rng.random() < 0.15:
            return Message("system", inventor.rng.choice(PREAMBLES)), Message("user", asked)
        return (Message("user", asked),)


def _slug(noun: str) -> str:
    return re.sub(r"[^a-z]+", "_", noun.lower())


def _lookup(noun: str, thing: str, kind: str, inventor: Inventor) -> Tool:
    rng: random.Random = inventor.rng
    name = f"{rng.choice(LOOKUP_VERBS)}_{_slug(noun)}"
    schema = {"type": "string", "description": f"{rng.choice(('Name of the', 'The', 'Which'))} {thing}."}
    parameter = rng.choice((_slug(thing), "name", "query"))
    parameters = {"type": "object", "properties": {parameter: schema}, "required": [parameter]}
    return Tool(
        name, f"{rng.choice(('Looks up', 'Returns', 'Finds'))} the {noun} of {with_article(thing)}.", parameters
    )


def _call(tool: Tool, value: str, number: int) -> ToolCall:
    (parameter,) = tool.parameters["properties"]
    return ToolCall(f"call_{number}", tool.name, _json({parameter: value}))


def planned_action(plan: str, action: str) -> str:
    """A plan, and the action that follows it."""
    return f"Plan: I will {_lower(plan)}.\n{action}"


def calls_action(calls: Sequence[ToolCall]) -> str:
    """What the model writes to call tools."""
    return f"Action: ```json\n{calls_text(calls)}\n```"


def _exchange(plan: str, call: ToolCall, result: dict[str, str]) -> list[Message]:
    return [
        Message("assistant", tool_plan=plan, tool_calls=(call,)),
        Message("tool", tool_call_id=call.id, documents=(Document(result),)),
    ]


def _step(use: Use, plan: str, documents: Sequence[Document], number: int) -> list[Message]:
    call = ToolCall(f"call_{number}", use.call.name, use.call.arguments)
    return [
        Message("assistant", tool_plan=plan, tool_calls=(call,)),
        Message("tool", tool_call_id=call.id, documents=tuple(documents)),
    ]


def _values(use: Use) -> list[str]:
    """What an answer has to say: the values of the result, or the whole sentence where it has none."""
    return [use.result[slot] for slot in _SLOT.findall(use.answer) if slot in use.result] or [use.answer]


def _stated(use: Use, number: int) -> Statement:
    """The answer with the values of the result cited; an answer without any is cited as a whole."""
    pieces: list[tuple[str, tuple[int, ...]]] = []
    for place, piece in enumerate(_SLOT.split(use.answer)):
        if place % 2:
            value = use.result[piece]
            pieces.append((value if any(text for text, _ in pieces) else value[:1].upper() + value[1:], (number,)))
        else:
            pieces.append((piece, ()))
    if not any(numbers for _, numbers in pieces):
        return Statement(((use.answer[:-1], (number,)), (use.answer[-1], ())))
    return Statement(tuple(pieces))
