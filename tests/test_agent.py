"""The agent over scripted models: what section 5 of the chat contract promises."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from chat_scripts import Scripted, Stream, characters, collect, streaming
from quarterdeck.chat import Document, Message, Prompt, SamplingParams, Tool, Usage, render
from quarterdeck.chat.agent import Agent, AgentResult, Step
from quarterdeck.chat.messages import MessageEnd, ToolCallStart
from quarterdeck.chat.tool_run import documents_of
from quarterdeck.chat.tools.arguments import violation
from quarterdeck.errors import ChatError, ContextLengthError


def search(query: str, count: int | None = None) -> list[dict[str, Any]]:
    """Searches the log.

    Args:
        query: What to look for.
        count: How many.
    """
    return [{"title": query, "text": "A bowline."}, {"title": "two", "text": str(count)}]


def divide(a: float, b: float) -> float:
    """Divides."""
    return a / b


def calls(*pairs: tuple[str, dict[str, Any]], plan: str = "Plan: I look.") -> str:
    listed = [{"tool_name": name, "parameters": parameters} for name, parameters in pairs]
    return f"{plan}\nAction: ```json\n{json.dumps(listed, indent=4)}\n```"


ANSWER = "Relevant Documents: 0\nCited Documents: 0\nAnswer: x\nGrounded answer: <co: 0>A bowline</co: 0> holds."


def test_a_loop() -> None:
    second = calls(("divide", {"a": 1, "b": 4}), plan="Reflection: Now I divide.")
    model = Scripted(calls(("search", {"query": "knots"})), second, ANSWER.replace("co: 0", "co: 2"))
    result = Agent(model, [search, divide]).run("Which knot?")
    assert (result.text, result.finish_reason) == ("A bowline holds.", "COMPLETE")
    assert [step.plan for step in result.steps] == ["I look.", "Now I divide."]
    assert result.steps[0].results == (
        (Document({"title": "knots", "text": "A bowline."}), Document({"title": "two", "text": "None"})),
    )
    assert result.steps[1].results == ((Document({"output": "0.25"}),),)
    assert [message.role for message in result.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert result.messages[-1].content == result.text
    assert result.messages[-1].citations == result.citations
    source = result.citations[0].sources[0]
    assert (source.type, source.index, source.data) == ("tool", 2, {"output": "0.25"})
    assert source.id == f"{result.steps[1].calls[0].id}:0"


def test_every_step_renders_all_results_so_far() -> None:
    model = Scripted(calls(("search", {"query": "a"})), calls(("divide", {"a": 1, "b": 2})), ANSWER)
    result = Agent(model, [search, divide], citation_mode="fast").run("Which?")
    for number, asked in enumerate(model.asked):
        so_far = result.messages[: 1 + 2 * number]
        assert asked.prompt == render(so_far, tools=[search, divide], citation_mode="fast")
    assert [source.index for source in model.asked[2].prompt.sources] == [0, 1, 2]
    assert all(asked.grammar is not None for asked in model.asked)


def test_results_are_valid_input() -> None:
    model = Scripted(calls(("search", {"query": "a"})), ANSWER, "Grounded answer: Again <co: 0>A bowline</co: 0>")
    agent = Agent(model, [search], system="Be brief.")
    first = agent.run("Which?")
    assert first.messages[0] == Message("system", "Be brief.")
    again = agent.run([*first.messages, {"role": "user", "content": "Sure?"}])
    assert again.messages[: len(first.messages)] == first.messages
    assert again.citations[0].sources[0].id.startswith("search_")
    assert [message for message in again.messages if message.role == "system"] == [first.messages[0]]


def test_calls_run_in_the_order_of_the_list() -> None:
    ran: list[str] = []

    def note(text: str) -> str:
        """Notes."""
        ran.append(text)
        return text

    model = Scripted(calls(("note", {"text": "b"}), ("note", {"text": "a"}), ("note", {"text": "c"})), ANSWER)
    result = Agent(model, [note]).run("Note.")
    assert ran == ["b", "a", "c"]
    tools = [message for message in result.messages if message.role == "tool"]
    assert [message.tool_call_id for message in tools] == [call.id for call in result.steps[0].calls]
    assert [message.documents for message in tools] == [(Document({"output": text}),) for text in ran]


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (("divide", {"a": 1, "b": 0}), "ZeroDivisionError: float division by zero"),
        (("dig", {}), "ValueError: there is no tool 'dig'; there are search, divide"),
        (("divide", {"a": 1}), "ValueError: the arguments of divide do not fit: b is missing"),
        (("divide", {"a": 1, "b": "2"}), "ValueError: the arguments of divide do not fit: b is to be number, not '2'"),
        (
            ("divide", {"a": 1, "b": 2, "c": 3}),
            "ValueError: the arguments of divide do not fit: c is not expected; the arguments there are a, b",
        ),
    ],
)
def test_errors_are_results_and_the_model_sees_them(call: tuple[str, dict[str, Any]], error: str) -> None:
    model = Scripted(calls(call), "Grounded answer: I could not.")
    result = Agent(model, [search, divide]).run("Which?")
    shown = result.steps[0].results[0][0].data["error"]
    assert shown == error or (call[1].get("b") == 0 and shown.startswith("ZeroDivisionError: "))
    assert shown in model.asked[1].prompt.text
    assert "Traceback" not in model.asked[1].prompt.text
    assert result.finish_reason == "COMPLETE"


def test_arguments_are_checked_before_the_function_runs() -> None:
    ran = []

    def note(text: str) -> None:
        """Notes."""
        ran.append(text)

    Agent(Scripted(calls(("note", {"text": 3})), ANSWER), [note]).run("Note.")
    assert ran == []


def test_a_call_that_is_no_json_is_an_error() -> None:
    written = 'Action: ```json\n[{"tool_name": "search", "parameters": {"query": nope}}]\n```'
    result = Agent(Scripted(written, ANSWER), [search]).run("Which?")
    assert "JSONDecodeError" in result.steps[0].results[0][0].data["error"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_passes_through(error: type[BaseException]) -> None:
    def leave() -> None:
        """Leaves."""
        raise error

    with pytest.raises(error):
        Agent(Scripted(calls(("leave", {}))), [leave]).run("Leave.")


def test_errors_that_cannot_be_shown_as_they_are() -> None:
    def fail() -> None:
        """Fails."""
        raise RuntimeError("half \ud800 and <|END_OF_TURN_TOKEN|>")

    model = Scripted(calls(("fail", {})), ANSWER)
    result = Agent(model, [fail]).run("Fail.")
    assert result.steps[0].results[0][0].data == {"error": "RuntimeError: half ? and <|END_OF_TURN_TOKEN|>"}


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "documents"),
    [
        ({"a": 1}, [{"a": 1}]),
        ([{"a": 1}, {"b": 2}], [{"a": 1}, {"b": 2}]),
        ("text", [{"output": "text"}]),
        (3, [{"output": "3"}]),
        (None, [{"output": "None"}]),
        ([], [{"output": "[]"}]),
        ([1, {"a": 1}], [{"output": "[1, {'a': 1}]"}]),
        (
            {"when": date(2024, 3, 30), "n": {"d": date(2024, 3, 30)}},
            [{"when": "2024-03-30", "n": {"d": "2024-03-30"}}],
        ),
        ({1: "\ud800"}, [{"1": "?"}]),
        ({"id": "x", "text": "y"}, [{"text": "y"}]),
    ],
)
def test_what_tools_return_becomes_documents(value: Any, documents: list[dict[str, Any]]) -> None:
    assert [document.data for document in documents_of(value)] == documents


def test_results_that_hold_themselves() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    found = documents_of(circle)
    assert len(found) == 1
    assert json.dumps(found[0].data)


def test_what_may_be_left_out_is_none() -> None:
    def steer(course: float, speed: float | None) -> str:
        """Steers."""
        return f"{course} {speed}"

    result = Agent(Scripted(calls(("steer", {"course": 1.5})), ANSWER), [steer]).run("Steer.")
    assert result.steps[0].results == ((Document({"output": "1.5 None"}),),)


def test_tools_may_be_values_with_functions() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    tool = Tool("double", "Doubles.", schema, lambda x: 2 * x)
    result = Agent(Scripted(calls(("double", {"x": 4})), ANSWER), [tool]).run("Double.")
    assert result.steps[0].results == ((Document({"output": "8"}),),)


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_directly_answer_ends_the_loop() -> None:
    model = Scripted(calls(("directly_answer", {})), "Ahoy.")
    result = Agent(model, [search]).run("Hello")
    assert (result.text, result.finish_reason, result.steps) == ("Ahoy.", "COMPLETE", ())
    assert model.asked[1].prompt == render("Hello")


def test_an_answer_without_calls_ends_the_loop() -> None:
    result = Agent(Scripted("Grounded answer: Ahoy."), [search]).run("Hello")
    assert (result.text, result.steps) == ("Ahoy.", ())


def test_after_the_last_step_an_answer_is_asked_for() -> None:
    again = calls(("search", {"query": "a"}))
    model = Scripted(again, again, ANSWER)
    result = Agent(model, [search], max_steps=2).run("Which?")
    assert (result.text, result.finish_reason, len(result.steps)) == ("A bowline holds.", "MAX_STEPS", 2)
    last = model.asked[-1].prompt
    assert last.format == "rag"
    assert len(last.sources) == 4
    assert result.citations[0].sources[0].type == "tool"
    assert model.asked[-1].grammar is None


def test_an_answer_that_is_cut_short() -> None:
    result = Agent(streaming(Stream(["Grounded answer: A bow"], "MAX_TOKENS")), [search]).run("Which?")
    assert (result.text, result.finish_reason) == ("A bow", "MAX_TOKENS")
    cut = Agent(streaming(Stream([calls(("search", {"query": "a"}))[:-20]], "MAX_TOKENS")), [search]).run("Which?")
    assert (cut.finish_reason, cut.steps) == ("MAX_TOKENS", ())
    assert cut.messages[-1].role == "assistant"
    assert cut.messages[-1].tool_calls == ()


def test_usage_counts_all_steps() -> None:
    streams = [
        Stream([calls(("search", {"query": "a"}))], usage=Usage(100, 20, 0)),
        Stream([ANSWER], usage=Usage(150, 9, 90)),
    ]
    assert Agent(streaming(*streams), [search]).run("Which?").usage == Usage(250, 29, 90)


# ── stream ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_has_the_events_of_every_step_and_one_end() -> None:
    model = Scripted(
        calls(("search", {"query": "a"}), ("divide", {"a": 1, "b": 2})),
        calls(("divide", {"a": 1, "b": 2})),
        ANSWER,
        cut=characters,
    )
    events = list(Agent(model, [search, divide]).stream("Which?"))
    starts = [(event.index, event.name) for event in events if isinstance(event, ToolCallStart)]
    assert starts == [(0, "search"), (1, "divide"), (0, "divide")]
    ends = [event for event in events if isinstance(event, MessageEnd)]
    assert ends == [events[-1]]
    result = ends[0].response
    assert isinstance(result, AgentResult)
    last = max(place for place, event in enumerate(events) if event.type == "tool-call-end")
    said = collect(events[last + 1 :])
    assert (said.text, tuple(said.citations)) == (result.text, result.citations)


def test_closing_a_stream_stops_everything() -> None:
    model = Scripted(calls(("search", {"query": "a"})), ANSWER, cut=characters)
    stream = Agent(model, [search]).stream("Which?")
    next(stream)
    stream.close()
    assert len("".join(model.given)) < 10


def test_a_model_with_stream_chat_is_asked_that_way() -> None:
    class Model:
        def __init__(self) -> None:
            self.options: list[dict[str, Any]] = []

        def stream_chat(self, messages: Any, **options: Any) -> Any:
            from quarterdeck.chat import stream_answer

            self.options.append(options)
            return stream_answer(Scripted("Grounded answer: Ahoy."), messages, **options)

    model, params = Model(), SamplingParams(max_tokens=5)
    assert Agent(model, [search], strict_tools=False, sampling_params=params).run("Hello").text == "Ahoy."
    assert model.options[0]["sampling_params"] == params
    assert model.options[0]["strict_tools"] is False


# ── trace ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_trace_can_be_printed_and_saved(tmp_path: Path) -> None:
    result = Agent(Scripted(calls(("search", {"query": "a"})), ANSWER), [search]).run("Which?")
    text = str(result)
    for part in ("Step 1", "plan: I look.", 'search({"query":"a"})', "[0]", "[1]", "A bowline.", "Answer (COMPLETE)"):
        assert part in text
    assert f"0-9 'A bowline': {result.steps[0].calls[0].id}:0 [0]" in text
    result.save(tmp_path / "trace.json")
    saved = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(result.to_dict()))
    assert saved["steps"][0]["calls"][0]["results"][0]["data"]["text"] == "A bowline."
    assert [Message.of(message).role for message in saved["messages"]] == ["user", "assistant", "tool", "assistant"]


def test_steps_are_values() -> None:
    assert Step("p", (), ()) == Step("p", (), ())


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def sail() -> None:
    """Sails."""


@pytest.mark.parametrize(
    ("tools", "options"),
    [
        ([], {}),
        ([{"name": "x"}], {}),
        ([sail], {}),
        ([Tool("directly_answer", function=print)], {}),
        ([search, search], {}),
        ([search], {"max_steps": 0}),
        ([search], {"max_steps": True}),
        ([Tool("x", "", {"type": "object", "patternProperties": {}}, print)], {}),
        ([lambda x: x], {}),
    ],
)
def test_agents_that_cannot_be(tools: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises(ChatError):
        Agent(Scripted(), tools, **options)


def test_a_model_that_is_none() -> None:
    with pytest.raises(ChatError, match="the model of an agent"):
        Agent("midshipman", [search])  # type: ignore[arg-type]


def test_a_conversation_that_cannot_be_right_is_refused_at_once() -> None:
    with pytest.raises(ChatError, match="at least one message"):
        Agent(Scripted(), [search]).stream([])


# ── arguments ─────────────────────────────────────────────────────────────────────────────────────────────────────

SCHEMA: dict[str, Any] = {
    "properties": {
        "n": {"type": "integer", "minimum": 1},
        "kind": {"enum": ["a", "b"]},
        "where": {"$ref": "#/$defs/place"},
        "list": {"type": "array", "items": {"type": ["string", "null"]}, "maxItems": 2},
        "any": {"anyOf": [{"type": "string"}, {"type": "boolean"}]},
        "free": {"type": "object"},
    },
    "required": ["n"],
    "$defs": {"place": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}},
}


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"n": 1, "kind": "a", "where": {"lat": 1.5}, "list": ["x", None], "any": True, "free": {"z": 1}}, None),
        ({"n": 1.0}, None),
        ({}, "n is missing"),
        ({"n": True}, "n is to be integer, not True"),
        ({"n": 0}, "n is to satisfy {'minimum': 1}, not 0"),
        ({"n": 1, "kind": "c"}, "kind is to be one of ['a', 'b'], not 'c'"),
        ({"n": 1, "where": {}}, "where.lat is missing"),
        ({"n": 1, "where": {"lat": 1, "long": 2}}, "where.long is not expected; the arguments there are lat"),
        ({"n": 1, "list": ["x", 3]}, "list[1] is to be string or null, not 3"),
        ({"n": 1, "other": 1}, "other is not expected; the arguments there are n, kind, where, list, any, free"),
    ],
)
def test_what_is_wrong_with_arguments(arguments: dict[str, Any], wrong: str | None) -> None:
    assert violation(arguments, SCHEMA) == wrong


def test_schemas_that_cannot_be_understood() -> None:
    for parameters in ({"properties": {"x": {"$ref": "#/properties/x"}}}, {"properties": {"x": {"enum": 3}}}):
        with pytest.raises(ChatError, match="cannot be understood"):
            violation({"x": 1}, parameters)


def test_objects_may_be_open() -> None:
    assert violation({"x": 1}, {"additionalProperties": True}) is None
    assert violation({"x": "1"}, {"additionalProperties": {"type": "integer"}}) == "x is to be integer, not '1'"
    assert violation({"x": 1}, {}) == "x is not expected; the arguments there are none"


def test_prompts_of_steps_are_prompts() -> None:
    seen: list[Prompt] = []

    def reply(prompt: Prompt) -> str:
        seen.append(prompt)
        return "Grounded answer: ok"

    Agent(Scripted(reply), [search]).run("Hi")
    assert seen[0].format == "multi_step"


# ── what tools do to an agent ─────────────────────────────────────────────────────────────────────────────────────


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def acts(name: str) -> str:
    return f'Plan: go\nAction: ```json\n[{{"tool_name": "{name}", "parameters": {{}}}}]\n```'


def test_an_error_that_cannot_say_what_it_is_is_a_result() -> None:
    def fails() -> str:
        raise Mute

    result = Agent(Scripted(acts("fails"), "Grounded answer: Done."), [fails], strict_tools=False).run("Go")
    assert result.steps[0].results == ((Document({"error": "Mute"}),),)
    assert result.text == "Done."


def test_no_number_that_is_not_json_gets_anywhere(tmp_path: Path) -> None:
    def odd() -> dict[str, Any]:
        return {"a": float("nan"), "b": {"c": [1, float("inf")]}}

    result = Agent(Scripted(acts("odd"), "Grounded answer: Done."), [odd], strict_tools=False).run("Go")
    assert result.steps[0].results == ((Document({"a": "nan", "b": {"c": "[1, inf]"}}),),)
    result.save(tmp_path / "trace.json")
    json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


def test_generators_are_refused() -> None:
    def numbers() -> Any:
        yield 1

    async def later() -> Any:
        yield 1

    for function in (numbers, later):
        with pytest.raises(ChatError, match="yields: wrap it"):
            Agent(Scripted(), [function])


def test_the_id_of_a_result_is_its_sources_and_is_not_shown() -> None:
    def find() -> list[dict[str, Any]]:
        return [{"id": "m1n3", "text": "Ahoy"}, {"id": 7, "text": "x"}, {"id": None, "text": "y"}, {"id": [1]}]

    model = Scripted(acts("find"), "Grounded answer: <co: 0,1,2>Ahoy</co: 0,1,2>.")
    result = Agent(model, [find], strict_tools=False).run("Go")
    assert [document.id for document in result.steps[0].results[0]] == ["m1n3", "7", None, None]
    assert [source.id for source in result.citations[0].sources][:2] == ["m1n3", "7"]
    assert "m1n3" not in model.asked[-1].prompt.text


@pytest.mark.parametrize(
    "options", [{"system": 5}, {"citation_mode": "x"}, {"sampling_params": {"seed": 1}}, {"strict_tools": "no"}]
)
def test_agents_refuse_what_cannot_be_right(options: dict[str, Any]) -> None:
    with pytest.raises(ChatError):
        Agent(Scripted(), [search], **options)


@pytest.mark.parametrize("most", [4000, 100])
def test_results_that_do_not_fit_the_context_make_room(most: int) -> None:
    """The longest is replaced first; if nothing is left to replace, the model's own refusal comes through."""

    def short() -> str:
        return "s" * 300

    def long() -> str:
        return "l" * 9000

    calls = '[{"tool_name": "short", "parameters": {}}, {"tool_name": "long", "parameters": {}}]'
    scripted = Scripted(f"Plan: go\nAction: ```json\n{calls}\n```", "Grounded answer: Done.")

    def model(prompt: Prompt, **options: Any) -> Any:
        results = prompt.text.partition("<results>")[2]
        if len(results) > most:
            raise ContextLengthError("the context has 4,000")
        return scripted(prompt, **options)

    agent = Agent(model, [short, long], strict_tools=False)
    if most == 100:
        with pytest.raises(ContextLengthError):
            agent.run("Go")
        return
    result = agent.run("Go")
    (kept,), (note,) = result.steps[0].results
    assert kept == Document({"output": "s" * 300})
    assert set(note.data) == {"error"}
    assert "9,013 characters" in note.data["error"]
    assert "the context has 4,000" in note.data["error"]
    assert result.messages[-2].documents == (note,)
    assert result.text == "Done."
