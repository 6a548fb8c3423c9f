"""Prompts against the published ones: every shared vector, and transformers rendering templates on random chats."""

from __future__ import annotations

import json
import random
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from chat_support import random_documents, random_text, random_tools, random_turns, tiny_tokenizer
from quarterdeck.chat.prompts.families import builtin_templates, jinja_template
from quarterdeck.chat.template import render
from quarterdeck.errors import ChatError
from quarterdeck.tokenization import jinja
from quarterdeck.tokenizer import CohereTokenizerFast

ROUNDS = 100

# vectors in which the published template loses or garbles something, and what the contract says instead
DIFFERENT_ON_PURPOSE = {
    "default_system_mid_dropped": "a later system message keeps its place",
    "rag_nonstring_value": "values that are not strings are JSON, not Python",
    "tool_jsonschema_types": "arrays are List[T], not List[Union[]]; directly_answer is added",
    "tool_plus_types": "arrays are List[T], not List[Union[]]; directly_answer is added",
}

# vectors whose tool messages answer no call: refused
REFUSED = (
    "hfjs_tool_use_jsonschema default_tool_role_dropped tool_jsonschema_multistep tool_plus_multistep "
    "tool_original_ignores_tool_role"
).split()


@pytest.fixture(scope="module")
def vectors(shared_data: Path) -> dict[str, dict[str, Any]]:
    data = json.loads((shared_data / "template_vectors.json").read_text(encoding="utf-8"))
    return {vector["id"]: vector for vector in data["prompt_vectors"]}


def options_of(vector: dict[str, Any]) -> dict[str, Any]:
    given, template = vector["input"], vector["template"]
    options: dict[str, Any] = {"add_generation_prompt": given.get("add_generation_prompt", False)}
    if "rag" in template:
        options |= {"documents": given["documents"], "citation_mode": given.get("citation_mode", "fast")}
    elif "tool_use" in template:
        options |= {"tools": given["tools"], "multi_step": False}
    return options


def with_text(vectors: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [v for v in vectors.values() if "messages" in v["input"] and v.get("expected")]


def test_render_gives_every_published_prompt(vectors: dict[str, dict[str, Any]]) -> None:
    compared = 0
    for vector in with_text(vectors):
        if vector["id"] in (*DIFFERENT_ON_PURPOSE, *REFUSED):
            continue
        prompt = render(vector["input"]["messages"], **options_of(vector))
        bos = vector["input"].get("bos_token", "<BOS_TOKEN>")
        assert bos + prompt.text.removeprefix("<BOS_TOKEN>") == vector["expected"], vector["id"]
        compared += 1
    assert compared == 19


def test_render_differs_from_published_prompts_only_where_they_lose_something(
    vectors: dict[str, dict[str, Any]],
) -> None:
    texts = {
        name: render(vectors[name]["input"]["messages"], **options_of(vectors[name])).text
        for name in DIFFERENT_ON_PURPOSE
    }
    expected = {name: vectors[name]["expected"] for name in DIFFERENT_ON_PURPOSE}
    kept = "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>b<|END_OF_TURN_TOKEN|>"
    assert texts["default_system_mid_dropped"].replace(kept, "") == expected["default_system_mid_dropped"]
    as_python = texts["rag_nonstring_value"].replace('[1, "a"]', "[1, 'a']").replace("none: null", "none: None")
    assert as_python == expected["rag_nonstring_value"]
    for name in ("tool_jsonschema_types", "tool_plus_types"):
        without = re.sub(r"\n\n```python\ndef directly_answer.*?```", "", texts[name], flags=re.DOTALL)
        assert without.replace("List[str]", "List[Union[]]") == expected[name]


def test_results_of_unknown_calls_are_refused(vectors: dict[str, dict[str, Any]]) -> None:
    for name in REFUSED:
        with pytest.raises(ChatError, match="tool_call_id None"):
            render(vectors[name]["input"]["messages"], **options_of(vectors[name]))


def test_builtin_jinja_templates_give_every_published_prompt(vectors: dict[str, dict[str, Any]]) -> None:
    for vector in with_text(vectors):
        kind = next(k for k in ("default", "rag", "tool_use") if k in vector["template"])
        name = "tool_use_json_schema" if "jsonschema" in vector["template"] else kind
        text = jinja.render(jinja_template(name), {"bos_token": "<BOS_TOKEN>", **vector["input"]})
        # the published template cannot show arrays
        assert text == vector["expected"] or text.replace("List[str]", "List[Union[]]") == vector["expected"], vector[
            "id"
        ]


MULTI_STEP_QUESTION = {
    "role": "user",
    "content": "In what year was the company that was founded as Sound of Music added to the S&P 500?",
}


def multi_step_conversation(expected: str) -> list[dict[str, Any]]:
    """The steps that a published prompt shows, read out of it."""
    steps = re.findall(
        r"\n(?:Plan|Reflection): (.*)\nAction: ```json\n((?:.|\n)*?)\n```<.*\n.*<results>\n((?:.|\n)*?)\n</results>",
        expected,
    )
    messages: list[dict[str, Any]] = [MULTI_STEP_QUESTION]
    for number, (plan, calls, results) in enumerate(steps):
        fields = re.findall(
            r"Document: \d+\nURL: (.*)\nTitle: (.*)\nText: ((?:.|\n)*?)(?=\n\nDocument: \d|\Z)", results
        )
        call = json.loads(calls)[0]
        function = {"name": call["tool_name"], "arguments": json.dumps(call["parameters"])}
        documents = [{"data": {"url": url, "title": title, "text": text}} for url, title, text in fields]
        messages += [
            {"role": "assistant", "tool_plan": plan, "tool_calls": [{"id": f"c{number}", "function": function}]},
            {
                "role": "tool",
                "tool_call_id": f"c{number}",
                "content": [{"type": "document", "document": document} for document in documents],
            },
        ]
    return messages


def test_render_gives_every_published_multi_step_prompt(vectors: dict[str, dict[str, Any]]) -> None:
    tool = {
        "name": "internet_search",
        "description": "Returns a list of relevant document snippets for a textual query retrieved from the internet",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "Query to search the internet with"}},
            "required": ["query"],
        },
    }
    found = {name: vector["expected"] for name, vector in vectors.items() if vector["template"] == "multi_step"}
    assert len(found) == 4
    for name, expected in found.items():
        history = [
            {"role": "user", "content": "Hello, how are you doing?"},
            {"role": "assistant", "content": "I'm doing well, thanks!"},
        ]
        messages = [*(history if "history" in name else []), *multi_step_conversation(expected)]
        prompt = render(messages, tools=[tool], now=datetime(2024, 3, 30, 13, 20, 40))
        assert prompt.text == expected.removesuffix("\n"), name  # the files end in a line break, the prompts do not
        assert [source.index for source in prompt.sources] == list(range(expected.count("Document: ")))


@pytest.fixture(scope="module")
def real_tokenizer(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> CohereTokenizerFast:
    import gzip

    file = tmp_path_factory.mktemp("command-r") / "tokenizer.json"
    file.write_bytes(gzip.decompress((shared_data / "command-r-tokenizer.json.gz").read_bytes()))
    return CohereTokenizerFast(tokenizer_file=str(file))


def test_token_ids_are_the_published_ones(
    vectors: dict[str, dict[str, Any]], real_tokenizer: CohereTokenizerFast
) -> None:
    compared = 0
    for vector in with_text(vectors):
        if vector["id"] in (*DIFFERENT_ON_PURPOSE, *REFUSED) or not vector.get("expected_token_ids"):
            continue
        prompt = render(vector["input"]["messages"], **options_of(vector))
        assert prompt.token_ids(real_tokenizer) == vector["expected_token_ids"], vector["id"]
        compared += 1
    assert compared >= 15


def test_token_ids_of_random_prompts_are_those_of_the_whole_text(real_tokenizer: CohereTokenizerFast) -> None:
    source = random.Random(7)
    for number in range(60):
        options = ({}, {"documents": random_documents(source)}, {"tools": random_tools(source)})[number % 3]
        prompt = render(random_turns(source, alternating=False), **options)
        assert prompt.token_ids(real_tokenizer) == real_tokenizer.encode(prompt.text, add_special_tokens=False)


# ── transformers on random conversations ──────────────────────────────────────────────────────────────────────────


def by_transformers(name: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    template = builtin_templates("command-r")[name]
    tools, documents = variables.pop("tools", None), variables.pop("documents", None)
    texts, _ = render_jinja_template(
        [messages], tools, documents, chat_template=template, bos_token="<BOS_TOKEN>", **variables
    )
    return str(texts[0])


def test_default_prompts_equal_those_of_transformers() -> None:
    source = random.Random(1)
    for _ in range(ROUNDS):
        messages, opened = random_turns(source, alternating=True), source.random() < 0.5
        prompt = render(messages, add_generation_prompt=opened)
        assert prompt.format == "default"
        assert prompt.text == by_transformers("default", messages, add_generation_prompt=opened)


def test_grounded_prompts_equal_those_of_transformers() -> None:
    source = random.Random(2)
    for _ in range(ROUNDS):
        messages, documents = random_turns(source, alternating=False), random_documents(source)
        mode, opened = source.choice(("accurate", "fast")), source.random() < 0.5
        prompt = render(messages, documents=documents, citation_mode=mode, add_generation_prompt=opened)
        assert prompt.format == "rag"
        published = by_transformers(
            "rag", messages, documents=documents, citation_mode=mode, add_generation_prompt=opened
        )
        assert prompt.text == published


def test_tool_prompts_equal_those_of_transformers() -> None:
    source = random.Random(3)
    for _ in range(ROUNDS):
        messages, tools, opened = random_turns(source, alternating=False), random_tools(source), source.random() < 0.5
        prompt = render(messages, tools=tools, multi_step=False, add_generation_prompt=opened)
        assert prompt.format == "tool_use"
        assert prompt.text == by_transformers("tool_use", messages, tools=tools, add_generation_prompt=opened)


def test_a_tokenizer_with_builtin_templates_renders_the_same() -> None:
    tokenizer, source = tiny_tokenizer(), random.Random(4)
    templates = builtin_templates("CohereForAI/c4ai-command-r-v01")
    for _ in range(20):
        messages, documents = random_turns(source, alternating=False), random_documents(source)
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
        text = tokenizer.apply_chat_template(
            messages, documents=documents, chat_template=templates["rag"], citation_mode="fast", **options
        )
        assert text == render(messages, documents=documents, citation_mode="fast").text
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": random_text(source)}], chat_template=templates["default"]
        )
        assert ids[0] == tokenizer.bos_token_id


# ── prompts kept here ─────────────────────────────────────────────────────────────────────────────────────────────


def test_render_gives_the_prompts_that_were_made_with_the_published_templates() -> None:
    """data/chat_prompts.json: random chats, rendered by transformers with the templates of its release 4.40.2."""
    file = Path(__file__).parent / "data" / "chat_prompts.json"
    cases = json.loads(file.read_text(encoding="utf-8"))
    assert {case["format"] for case in cases} == {"default", "rag", "tool_use"}
    for case in cases:
        prompt = render(case["messages"], **case["options"])
        assert (prompt.format, prompt.text) == (case["format"], case["prompt"])
