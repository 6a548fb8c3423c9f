"""Prompts: which format, and the rules where the published templates are silent or lose something."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_support import SEARCH, SEARCH_SCHEMA, tiny_tokenizer
from quarterdeck.chat.messages import Document, Message, Source, Tool
from quarterdeck.chat.prompts.families import builtin_templates, family_of
from quarterdeck.chat.template import Prompt, render
from quarterdeck.errors import ChatError

END, START = "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>"
SYSTEM, USER, CHATBOT = f"{START}<|SYSTEM_TOKEN|>", f"{START}<|USER_TOKEN|>", f"{START}<|CHATBOT_TOKEN|>"

QUESTION = {"role": "user", "content": "Where is the wind?"}
ANSWER = {"role": "assistant", "content": "North."}


def called(*names: str, plan: str = "", **arguments: Any) -> dict[str, Any]:
    calls = [{"id": name, "function": {"name": "search", "arguments": arguments}} for name in names]
    return {"role": "assistant", "tool_plan": plan, "tool_calls": calls}


def told(name: str, *documents: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": json.dumps(documents)}


def turns_of(prompt: Prompt) -> list[str]:
    """The turns without the first SYSTEM turn of the longer formats."""
    return [START + turn for turn in prompt.text.split(START)[1:]]


# ── which format ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("messages", "options", "format_"),
    [
        ([QUESTION], {}, "default"),
        ([QUESTION], {"tools": []}, "default"),
        ([QUESTION], {"tools": [], "documents": []}, "rag"),
        ([QUESTION], {"documents": []}, "rag"),
        ([QUESTION], {"documents": ["x"], "multi_step": False}, "rag"),
        ([QUESTION], {"tools": [SEARCH]}, "multi_step"),
        ([QUESTION], {"tools": [SEARCH], "multi_step": False}, "tool_use"),
        ([QUESTION, called("a"), told("a", {"x": 1})], {"tools": [SEARCH]}, "multi_step"),
        ([QUESTION, called("a"), told("a", {"x": 1})], {"tools": [SEARCH], "multi_step": False}, "rag"),
        ([QUESTION, called("a"), told("a", {"x": 1})], {}, "rag"),
        ([QUESTION, called("a"), told("a", {"x": 1}), QUESTION], {}, "default"),
        ([QUESTION, called("a"), told("a", {"x": 1}), QUESTION], {"tools": [SEARCH], "multi_step": False}, "tool_use"),
    ],
)
def test_what_is_given_chooses_the_format(messages: list[Any], options: dict[str, Any], format_: str) -> None:
    assert render(messages, **options).format == format_


@pytest.mark.parametrize(
    ("messages", "options", "named"),
    [
        ([QUESTION], {"documents": ["x"], "tools": [SEARCH]}, "documents and tools"),
        ([QUESTION], {"documents": [], "tools": [SEARCH]}, "documents and tools"),
        ([], {}, "at least one"),
        (QUESTION, {}, "messages is a list"),
        (5, {}, "messages is a list"),
        ([QUESTION, 5], {}, r"messages\[1\]"),
        ([QUESTION], {"documents": "x"}, "documents is a list"),
        ([QUESTION], {"documents": {"text": "x"}}, "documents is a list"),
        ([QUESTION], {"documents": ["x", 5]}, r"documents\[1\]"),
        ([QUESTION], {"tools": SEARCH}, "tools is a list"),
        ([QUESTION], {"tools": [SEARCH, {"name": "a b"}]}, r"tools\[1\]"),
        ([QUESTION], {"tools": [SEARCH, SEARCH_SCHEMA]}, "search occurs more than once"),
        ([QUESTION], {"citation_mode": "ACCURATE"}, "citation_mode"),
        ([QUESTION], {"now": "today"}, "now"),
        ([QUESTION, told("a", {"x": 1})], {}, "'a' is the id of no call"),
        ([QUESTION, called("a"), told("b", {"x": 1})], {}, "those are a"),
        ([told("a", {"x": 1}), called("a")], {}, r"messages\[0\]"),
        ([QUESTION, called("a"), {"role": "tool", "content": "x"}, QUESTION], {}, "tool_call_id None"),
    ],
)
def test_what_cannot_be_rendered_is_refused_by_name(messages: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ChatError, match=named):
        render(messages, **options)


# ── rule 1: system messages, white space, roles ───────────────────────────────────────────────────────────────────


def test_the_system_message_goes_in_as_given_and_contents_are_stripped() -> None:
    prompt = render([{"role": "system", "content": " keep \n"}, {"role": "user", "content": "\u3000 a \n"}, {"role": "assistant", "content": " b "}])  # fmt: skip # noqa: E501
    assert prompt.text == f"<BOS_TOKEN>{SYSTEM} keep \n{END}{USER}a{END}{CHATBOT}b{END}{CHATBOT}"


@pytest.mark.parametrize(
    "options", [{"documents": ["x"]}, {"tools": [SEARCH]}, {"tools": [SEARCH], "multi_step": False}], ids=str
)
def test_a_first_system_message_replaces_the_preamble(options: dict[str, Any]) -> None:
    first = turns_of(render([{"role": "system", "content": " Pirate. "}, QUESTION], **options))[0]
    begin = first.index("# User Preamble\n") + len("# User Preamble\n")
    assert first[begin:].startswith(" Pirate. " + ("\n\n## Available Tools" if "tools" in options else END))
    assert first[:begin] == turns_of(render([QUESTION], **options))[0][:begin]


@pytest.mark.parametrize(
    "options", [{}, {"documents": []}, {"tools": [SEARCH]}, {"tools": [SEARCH], "multi_step": False}]
)
def test_later_system_messages_keep_their_place_and_roles_need_not_alternate(options: dict[str, Any]) -> None:
    messages = [QUESTION, QUESTION, {"role": "developer", "content": " Be brief. "}, ANSWER, ANSWER, QUESTION]
    question, answer = f"{USER}Where is the wind?{END}", f"{CHATBOT}North.{END}"
    expected = f"{question}{question}{SYSTEM}Be brief.{END}{answer}{answer}{question}"
    assert expected in render(messages, **options).text


def test_one_string_is_one_user_message() -> None:
    assert render(" Hi ") == render([Message("user", "Hi")]) == Prompt(render("Hi").parts, "default", ())


# ── rule 2: documents ─────────────────────────────────────────────────────────────────────────────────────────────


def test_documents_are_numbered_lines_of_their_fields() -> None:
    documents = ["words", {"b": "Straße\nzwei", "a": [1, "é"], "none": None, "yes": True, "id": "x"}, Document({})]
    prompt = render([QUESTION], documents=documents)
    expected = '<results>\nDocument: 0\ntext: words\n\nDocument: 1\nb: Straße\nzwei\na: [1, "é"]\nnone: null\nyes: true\n\nDocument: 2\n</results>'  # fmt: skip # noqa: E501
    assert expected in prompt.text
    assert prompt.sources == (
        Source("document", "doc:0", 0, {"text": "words"}),
        Source("document", "x", 1, {"b": "Straße\nzwei", "a": [1, "é"], "none": None, "yes": True}),
        Source("document", "doc:2", 2, {}),
    )


def test_in_multi_step_keys_are_in_title_case() -> None:
    result = {"url": "u", "URL": "v", "page title": "t", "doc_id": 3, "n": {"é": 1}}
    prompt = render([QUESTION, called("a"), told("a", result)], tools=[SEARCH])
    assert '<results>\nDocument: 0\nURL: u\nURL: v\nPage Title: t\nDoc_Id: 3\nN: {"é": 1}\n</results>' in prompt.text


# ── rule 3: citation modes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{"documents": ["x"]}, {"tools": [SEARCH]}], ids=["rag", "multi_step"])
def test_citation_modes_ask_for_what_they_say(options: dict[str, Any]) -> None:
    texts = {mode: render([QUESTION], citation_mode=mode, **options).text for mode in ("accurate", "fast", "off")}
    lines = texts["accurate"].splitlines()
    assert texts["fast"].splitlines() == [line for line in lines if "Write 'Answer:'" not in line]
    assert "Write 'Answer:'" in texts["off"]
    assert "Grounded answer:" in texts["fast"]
    assert "Grounded answer:" not in texts["off"]
    assert "<co" not in texts["off"]
    assert "Documents:'" not in texts["off"]
    assert ("<results>\nDocument: 0\ntext: x\n</results>" in texts["off"]) == ("documents" in options)


# ── rules 4 and 5: tools ──────────────────────────────────────────────────────────────────────────────────────────


def test_both_forms_of_a_tool_give_the_same_prompt() -> None:
    for multi_step in (True, False):
        prompts = {render([QUESTION], tools=[tool], multi_step=multi_step).text for tool in (SEARCH, SEARCH_SCHEMA)}
        assert len(prompts) == 1
        assert "def search(query: str, count: Optional[int] = None) -> List[Dict]:" in prompts.pop()


def test_directly_answer_is_added_unless_it_is_given() -> None:
    own = Tool("directly_answer", "Mine.")
    for multi_step, names in ((True, ["directly_answer", "search"]), (False, ["search", "directly_answer"])):
        text = render([QUESTION], tools=[SEARCH], multi_step=multi_step).text
        assert [line.split()[1].split("(")[0] for line in text.splitlines() if line.startswith("def ")] == names
        assert (
            "Calls a standard (un-augmented) AI chatbot to generate a response given the conversation history\n" in text
        )
        text = render([QUESTION], tools=[own, SEARCH], multi_step=multi_step).text
        assert text.count("def directly_answer") == 1
        assert "Mine." in text


# ── rule 6: steps ─────────────────────────────────────────────────────────────────────────────────────────────────

ONE_CALL = json.dumps([{"tool_name": "search", "parameters": {"query": "wínd"}}], indent=4, ensure_ascii=False)
NO_ARGUMENTS = '[\n    {\n        "tool_name": "search",\n        "parameters": {}\n    }\n]'


def action(calls: str, line: str = "") -> str:
    return f"{CHATBOT}{line}\nAction: ```json\n{calls}\n```{END}"


def test_steps_stand_after_the_instructions_and_results_are_numbered_through() -> None:
    messages = [
        QUESTION,
        called("a", "b", plan=" Look. ", query="wínd"),
        told("b", {"x": "1"}, {"x": "2"}),
        told("a", {"x": "3"}),
        called("c", plan="Again."),
        told("c", {"x": "4"}),
        called("d"),
        told("d"),
    ]
    prompt = render(messages, tools=[SEARCH])
    steps = prompt.text[prompt.text.index(CHATBOT) :]
    two = ONE_CALL[:-2] + "," + ONE_CALL[1:]
    assert steps == (
        action(two, "\nPlan: Look.")
        + f"\n{SYSTEM}<results>\nDocument: 0\nX: 1\n\nDocument: 1\nX: 2\n\nDocument: 2\nX: 3\n</results>{END}"
        + action(NO_ARGUMENTS, "\nReflection: Again.")
        + f"\n{SYSTEM}<results>\nDocument: 3\nX: 4\n</results>{END}"
        + action(NO_ARGUMENTS)
        + f"\n{SYSTEM}<results>\n\n</results>{END}"
        + CHATBOT
    )
    assert prompt.text.index("Carefully perform") < prompt.text.index("\nPlan: Look.")
    assert [(source.type, source.id, source.index) for source in prompt.sources] == [
        ("tool", "b:0", 0),
        ("tool", "b:1", 1),
        ("tool", "a:0", 2),
        ("tool", "c:0", 3),
    ]


def test_steps_of_earlier_exchanges_stand_in_their_place() -> None:
    first = [
        QUESTION,
        called("a", plan="One."),
        told("a", {"x": "1"}),
        called("b", plan="Two."),
        told("b", {"x": "2"}),
        ANSWER,
    ]
    prompt = render([*first, QUESTION, called("c", plan="Three."), told("c", {"x": "3"})], tools=[SEARCH])
    order = ["Plan: One.", "Document: 0\nX: 1", "Reflection: Two.", "Document: 1\nX: 2", "North.", "Carefully perform",
             "Plan: Three.", "Document: 2\nX: 3"]  # fmt: skip
    places = [prompt.text.index(text) for text in order]
    assert places == sorted(places)
    assert prompt.text.count("Carefully perform") == 1
    assert [source.id for source in prompt.sources] == ["a:0", "b:0", "c:0"]


def test_a_content_beside_calls_is_the_plan_if_there_is_no_other() -> None:
    message = called("a") | {"content": "I look."}
    assert "\nPlan: I look.\nAction:" in render([QUESTION, message], tools=[SEARCH]).text


def test_arguments_that_the_model_did_not_finish_are_shown_as_they_are() -> None:
    for arguments in ('{"query": "wi', '{"a": ' * 300 + "1" + "}" * 300, "[" * 100_000):
        call = {"id": "a", "function": {"name": "search", "arguments": arguments}}
        text = render([QUESTION, {"role": "assistant", "tool_calls": [call]}], tools=[SEARCH]).text
        assert f'"parameters": {json.dumps(arguments)}' in text


def test_in_other_formats_steps_are_left_out() -> None:
    history = [QUESTION, called("a", plan="Look."), told("a", {"x": "1"}), ANSWER, QUESTION]
    without = [QUESTION, ANSWER, QUESTION]
    for options in ({}, {"documents": ["d"]}, {"tools": [SEARCH], "multi_step": False}):
        assert render(history, **options) == render(without, **options)


def test_results_of_the_last_exchange_ground_the_answer() -> None:
    messages = [
        *[QUESTION, called("old"), told("old", {"x": "0"}), ANSWER],
        *[QUESTION, called("a"), told("a", {"x": "1"}), called("b"), told("b", {"url": "2"}, {"x": "3"})],
    ]
    prompt = render(messages)
    assert prompt.format == "rag"
    assert "<results>\nDocument: 0\nx: 1\n\nDocument: 1\nurl: 2\n\nDocument: 2\nx: 3\n</results>" in prompt.text
    assert [source.id for source in prompt.sources] == ["a:0", "b:0", "b:1"]
    assert prompt == render(messages, tools=[SEARCH], multi_step=False)


def test_ids_of_results_are_their_documents_own_if_they_have_any() -> None:
    content = [{"type": "document", "document": {"data": {"x": 1}, "id": "mine"}}, {"type": "text", "text": "y"}]
    prompt = render(
        [QUESTION, called("a"), {"role": "tool", "tool_call_id": "a", "content": content}, told("a", {"z": 1})]
    )
    assert [source.id for source in prompt.sources] == ["mine", "a:1", "a:2"]


# ── rules 7 and 8: the date, the end ──────────────────────────────────────────────────────────────────────────────


def test_the_date_is_told_in_the_default_task_only() -> None:
    noon = datetime(2024, 2, 5, 9, 7, 3)
    text = render([QUESTION], tools=[SEARCH], now=noon).text
    assert (
        "which will be wide-ranging. The current date is Monday, February 05, 2024 09:07:03\n\n## Style Guide" in text
    )
    assert "current date" not in render([QUESTION], tools=[SEARCH]).text
    assert "current date" not in render([{"role": "system", "content": "x"}, QUESTION], tools=[SEARCH], now=noon).text
    assert render([QUESTION], now=noon) == render([QUESTION])
    assert render([QUESTION], tools=[SEARCH]) == render([QUESTION], tools=[SEARCH])


@pytest.mark.parametrize(
    "options", [{}, {"documents": []}, {"tools": [SEARCH]}, {"tools": [SEARCH], "multi_step": False}]
)
def test_the_generation_prompt_is_the_last_thing(options: dict[str, Any]) -> None:
    opened, closed = (render([QUESTION], add_generation_prompt=flag, **options) for flag in (True, False))
    assert opened.text == closed.text + CHATBOT
    assert closed.text.endswith(END)


def test_an_answer_can_be_begun_for_the_model() -> None:
    prompt = render([QUESTION], documents=[], response_prefix=f"Relevant Documents:{END}")
    assert prompt.text == render([QUESTION], documents=[]).text + f"Relevant Documents:{END}"
    assert prompt.parts[-1] == ("text", f"Relevant Documents:{END}")
    for options in ({"response_prefix": "x", "add_generation_prompt": False}, {"response_prefix": None}):
        with pytest.raises(ChatError, match="response_prefix"):
            render([QUESTION], **options)  # type: ignore[arg-type]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.text(max_size=4) | st.sampled_from(
    "role content message tool_calls tool_plan tool_call_id tool_results citations id type text document data name "
    "function arguments parameters parameter_definitions properties required description call outputs".split()
)
VALUES = SCALARS | st.sampled_from(
    "user USER assistant tool system function object string text document str c1".split()
)
ANYTHING = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "Chatbot"])},
    optional={
        "content": ANYTHING,
        "message": ANYTHING,
        "tool_calls": ANYTHING
        | st.lists(st.fixed_dictionaries({"id": st.just("c1"), "name": VALUES, "parameters": ANYTHING})),
        "tool_call_id": st.just("c1") | ANYTHING,
        "tool_results": ANYTHING,
        "citations": ANYTHING,
    },
)
TOOLS = st.fixed_dictionaries(
    {"name": st.just("f") | ANYTHING}, optional={"parameters": ANYTHING, "parameter_definitions": ANYTHING}
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(TURNS | ANYTHING, max_size=4) | ANYTHING,
    st.none() | st.lists(ANYTHING, max_size=3) | ANYTHING,
    st.none() | st.lists(TOOLS | ANYTHING, max_size=2) | ANYTHING,
    st.booleans(),
)
def test_whatever_is_given_is_rendered_or_refused(messages: Any, documents: Any, tools: Any, multi_step: bool) -> None:
    try:
        prompt = render(messages, documents=documents, tools=tools, multi_step=multi_step)
    except ChatError:
        return
    assert prompt.text.startswith("<BOS_TOKEN>")
    assert prompt.token_ids(tiny_tokenizer())


# ── around it ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_importing_chat_imports_nothing_heavy() -> None:
    code = (
        "import pkgutil, sys, quarterdeck.chat as chat\n"
        "for module in pkgutil.walk_packages(chat.__path__, 'quarterdeck.chat.'):\n"
        "    __import__(module.name)\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"quarterdeck.chat.grammars.matcher", "quarterdeck.chat.documents.reading"} <= set(loaded)
    heavy = {"torch", "transformers", "tokenizers", "jinja2", "numpy", "llguidance"}
    assert not heavy & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("CohereForAI/c4ai-command-r-v01", "command-r"),
        ("CohereForAI/c4ai-command-r-plus", "command-r"),
        ("CohereForAI/c4ai-command-r-plus-08-2024", "command-r-08-2024"),
        ("CohereForAI/aya-23-8B", "aya"),
        ("/models/aya-expanse-32b", "aya"),
        ("/home/maya/command-r", "command-r"),
        ("midshipman", "command-r"),
    ],
)
def test_families_are_told_by_name(name: str, family: str) -> None:
    assert family_of(name) == family
    assert set(builtin_templates(name)) == ({"default"} if family == "aya" else {"default", "rag", "tool_use"})


def test_builtin_templates_make_a_tokenizer_without_any_work() -> None:
    tokenizer = tiny_tokenizer()
    templates = builtin_templates("command-r-2024-07")
    call = {"function": {"name": "search", "arguments": {"query": "é"}}}
    asked = {"role": "assistant", "content": "Look.", "tool_calls": [call]}
    text = tokenizer.apply_chat_template(
        [QUESTION, asked, {"role": "tool", "content": "north"}],
        tools=[SEARCH_SCHEMA],
        chat_template=templates["tool_use"],
        tokenize=False,
    )
    assert "def search(query: str, count: Optional[int] = None) -> List[Dict]:" in text
    assert '"query": "é"' in text
    assert f"{SYSTEM}<results>\nnorth</results>{END}" in text
