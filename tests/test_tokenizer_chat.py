"""Conversations to prompts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quarterdeck.errors import ChatTemplateError, UnsupportedOptionError
from quarterdeck.tokenizer import CohereTokenizerFast
from tokenizer_support import MARKED_TEMPLATE, TEMPLATE, TEXTS

pytest_plugins = ["tokenizer_fixtures"]

CHAT = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "Where do penguins live? "},
    {"role": "assistant", "content": " In Antarctica."},
    {"role": "user", "content": "All of <b>them</b>?"},
]
DOCUMENTS = [{"title": "Tall penguins", "text": "Emperor penguins are the tallest."}]
TOOLS = [{"name": "search", "description": "finds", "parameter_definitions": {}}]

TURN, USER, BOT, END = "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
PROMPT = (
    f"<BOS_TOKEN>{TURN}<|SYSTEM_TOKEN|>You answer briefly.{END}{TURN}{USER}Where do penguins live?{END}"
    f"{TURN}{BOT}In Antarctica.{END}{TURN}{USER}All of <b>them</b>?{END}"
)


def test_prompt(tiny: CohereTokenizerFast) -> None:
    assert tiny.apply_chat_template(CHAT, tokenize=False) == PROMPT
    assert tiny.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == f"{PROMPT}{TURN}{BOT}"
    ids = tiny.apply_chat_template(CHAT, add_generation_prompt=True)
    assert tiny.decode(ids) == f"{PROMPT}{TURN}{BOT}"
    assert ids.count(tiny.bos_token_id) == 1


def test_vectors_of_the_default_template(real: CohereTokenizerFast, shared_data: Path) -> None:
    """Of all checkpoints: their default templates differ only in a default prompt that none of them uses."""
    prompts = [v for v in vectors(shared_data) if str(v["template"]).endswith(".default.jinja")]
    compared = 0
    for vector in prompts:
        given = dict(vector["input"])
        messages = given.pop("messages")
        if vector["expected"] is not None:
            assert real.apply_chat_template(messages, tokenize=False, **given) == vector["expected"], vector["id"]
            compared += 1
        elif vector.get("expected_error"):
            with pytest.raises(ChatTemplateError, match="must alternate"):
                real.apply_chat_template(messages, **given)
            compared += 1
    assert compared == 13


def test_ids_of_all_prompts(real: CohereTokenizerFast, shared_data: Path) -> None:
    """The ids of every prompt, whatever template made it."""
    prompts = [v for v in vectors(shared_data) if v.get("expected_token_ids")]
    assert len(prompts) >= 20
    for vector in prompts:
        assert real.encode(vector["expected"], add_special_tokens=False) == vector["expected_token_ids"], vector["id"]
        assert real.decode(vector["expected_token_ids"]) == vector["expected"]


def vectors(shared_data: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((shared_data / "template_vectors.json").read_text(encoding="utf-8"))[
        "prompt_vectors"
    ]
    return found


TEMPLATES = {
    "default": TEMPLATE,
    "marked": MARKED_TEMPLATE,
    "json": "{{ messages | tojson }}{{ tools | tojson(indent=2) }}{{ documents | tojson(sort_keys=true) }}",
    "loops": (
        "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n{{ m['content'] }}\n"
        "    {% if loop.index > 2 %}{% break %}{% endif %}\n{% endfor %}\n{{ eos_token }}{{ extra|default('none') }}"
    ),
    "items": "{% for m in messages %}{{ m.items()|list }}{% endfor %}{{ [add_generation_prompt, pad_token] }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_same_prompts_as_the_peer(tiny_pair: tuple[CohereTokenizerFast, Any], name: str) -> None:
    ours, theirs = tiny_pair
    conversations = [CHAT, CHAT[1:2], [{"role": "user", "content": " ".join(TEXTS)}]]
    for options in (
        {"tokenize": False},
        {"tokenize": False, "add_generation_prompt": True, "documents": DOCUMENTS, "tools": TOOLS, "extra": "<é>"},
        {"padding": True, "return_dict": True},
        {"truncation": True, "max_length": 12, "padding": True, "tokenizer_kwargs": {"padding_side": "right"}},
    ):
        for chats in (conversations, conversations[0]):
            mine, other = (t.apply_chat_template(chats, chat_template=TEMPLATES[name], **options) for t in tiny_pair)
            assert dict(mine) == dict(other) if "return_dict" in options else mine == other
    assert ours.chat_template == theirs.chat_template


@pytest.mark.parametrize(
    "padding", [{}, {"padding": "max_length", "max_length": 90}, {"truncation": True, "max_length": 30}]
)
def test_assistant_masks(tiny_pair: tuple[CohereTokenizerFast, Any], padding: dict[str, Any]) -> None:
    ours, theirs = tiny_pair
    chat = [*CHAT, {"role": "assistant", "content": "Emperor penguins do 🐧."}]
    options = {"chat_template": MARKED_TEMPLATE, "return_dict": True, "return_assistant_tokens_mask": True, **padding}
    for chats in (chat, [chat, chat[1:3]]):
        mine, other = ours.apply_chat_template(chats, **options), theirs.apply_chat_template(chats, **options)
        assert mine["assistant_masks"] == other["assistant_masks"]
    said = [i for i, m in zip(mine["input_ids"][0], mine["assistant_masks"][0], strict=True) if m]
    if "truncation" not in padding:
        assert ours.decode(said) == f" In Antarctica.{END}Emperor penguins do 🐧.{END}"


def test_assistant_masks_as_tensors(tiny: CohereTokenizerFast) -> None:
    pytest.importorskip("torch")
    options = {"chat_template": MARKED_TEMPLATE, "return_dict": True, "return_assistant_tokens_mask": True}
    batch = tiny.apply_chat_template([CHAT, CHAT[1:3]], padding=True, return_tensors="pt", **options)
    assert batch["assistant_masks"].shape == batch["input_ids"].shape
    assert batch["assistant_masks"].sum(1).tolist()[0] == batch["assistant_masks"].sum(1).tolist()[1] > 0


def test_generation_block_inside_a_macro(tiny: CohereTokenizerFast) -> None:
    """The peer counts from the wrong place here, because what a macro renders is not output yet."""
    template = (
        "{% macro turn(m) %}[{{ m.role }}]{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% endfor %}"
    )
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    batch = tiny.apply_chat_template(CHAT[2:], chat_template=template, **options)
    marked = [i for i, mask in zip(batch["input_ids"], batch["assistant_masks"], strict=True) if mask]
    assert tiny.decode(marked) == " In Antarctica.All of <b>them</b>?"
    assert "generation" not in tiny.decode(batch["input_ids"])


def test_continuing_the_final_message(tiny_pair: tuple[CohereTokenizerFast, Any]) -> None:
    ours, theirs = tiny_pair
    for final in ("Mostly in", "Mostly in ", " Mostly in ", "Where do penguins live?", "[]", "ééé 🐧"):
        for content in (final, [{"type": "text", "text": "other"}, {"type": "text", "text": final}]):
            chat = [*CHAT, {"role": "assistant", "content": content}]
            template = TEMPLATE if isinstance(content, str) else "{{ messages|tojson }}"
            options = {"continue_final_message": True, "tokenize": False, "chat_template": template}
            mine = ours.apply_chat_template(chat, **options)
            assert mine == theirs.apply_chat_template(chat, **options)
            assert mine.endswith((final, final.strip()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_dict": True, "tokenize": False}, "return_dict=True needs tokenize=True"),
        ({"return_assistant_tokens_mask": True}, "needs return_dict=True"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "drop one of the two"),
        ({"return_assistant_tokens_mask": True, "return_dict": True}, "{% generation %}"),
        ({"messages": []}, "'messages' to the template already"),
        ({"tools": [print]}, "the function 'print': describe each tool by a JSON schema"),
        ({"tools": ["search"]}, "tools holds 'search'"),
        ({"documents": ["text"]}, "documents holds 'text'"),
        ({"chat_template": "{% if %}"}, "syntax error in line 1"),
        ({"chat_template": "{{ raise_exception('no thanks') }}"}, "refused the conversation: no thanks"),
        ({"chat_template": "{{ messages.append(1) }}"}, "refused the conversation: .*append.* is unsafe"),
        ({"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}, "refused the conversation: .*unsafe"),
        (
            {"chat_template": "{% for d in documents %}{{ d }}{% endfor %}"},
            "failed on this conversation with TypeError",
        ),
        ({"chat_template": "{{ 1 / 0 }}"}, "ZeroDivisionError"),
    ],
)
def test_refusals(tiny: CohereTokenizerFast, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        tiny.apply_chat_template(CHAT, **options)


def test_refusals_of_the_final_message(tiny: CohereTokenizerFast) -> None:
    for final, message in (
        ({"role": "user", "content": "x"}, "must alternate"),
        ({"role": "assistant"}, "needs a last message with text"),
        ({"role": "assistant", "content": [{"type": "image"}]}, "needs a last message with text"),
    ):
        template = TEMPLATE if isinstance(final.get("content"), str) else "{{ messages | tojson }}"
        with pytest.raises(ChatTemplateError, match=message):
            tiny.apply_chat_template([*CHAT, final], chat_template=template, continue_final_message=True)
    with pytest.raises(ChatTemplateError, match="changes or drops it"):
        tiny.apply_chat_template(CHAT, chat_template="{{ messages[0].content }}", continue_final_message=True)


def test_choosing_a_template(tiny: CohereTokenizerFast) -> None:
    tiny.chat_template = {"default": "D", "tool_use": "T", "rag": "R{{ citation_mode }}"}
    assert tiny.apply_chat_template(CHAT, tokenize=False) == "D"
    assert tiny.apply_chat_template(CHAT, tools=TOOLS, tokenize=False) == "T"
    assert tiny.apply_chat_template(CHAT, tools=TOOLS, chat_template="default", tokenize=False) == "D"
    assert tiny.apply_tool_use_template(CHAT, TOOLS, tokenize=False) == "T"
    assert tiny.apply_grounded_generation_template(CHAT, DOCUMENTS, tokenize=False) == "Raccurate"
    assert tiny.apply_grounded_generation_template(CHAT, DOCUMENTS, "fast", tokenize=False) == "Rfast"
    assert tiny.get_chat_template("{{ own }}") == "{{ own }}"
    with pytest.raises(ChatTemplateError, match="citation_mode='slow'"):
        tiny.apply_grounded_generation_template(CHAT, DOCUMENTS, "slow")
    del tiny.chat_template["default"]
    with pytest.raises(ChatTemplateError, match="named 'default'; it has rag, tool_use"):
        tiny.apply_chat_template(CHAT)


def test_a_template_that_is_not_there(tiny: CohereTokenizerFast) -> None:
    """The peer answers with the name itself, 'rag' or 'tool_use', as the prompt."""
    with pytest.raises(ChatTemplateError, match="no chat template named 'rag'; it has default"):
        tiny.apply_grounded_generation_template(CHAT, DOCUMENTS)
    with pytest.raises(ChatTemplateError, match="no chat template named 'tool_use'"):
        tiny.apply_tool_use_template(CHAT, TOOLS)
    assert tiny.apply_chat_template(CHAT, chat_template="default", tokenize=False) == PROMPT
    tiny.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template .*set tokenizer.chat_template"):
        tiny.apply_chat_template(CHAT)


def test_objects_that_hold_messages(tiny: CohereTokenizerFast) -> None:
    chats = [SimpleNamespace(messages=CHAT), SimpleNamespace(messages=CHAT[:2])]
    assert tiny.apply_chat_template(chats, tokenize=False)[0] == PROMPT


def test_encoding_options_are_checked(tiny: CohereTokenizerFast) -> None:
    with pytest.raises(UnsupportedOptionError, match="no option colour"):
        tiny.apply_chat_template(CHAT, tokenizer_kwargs={"colour": 1})


def test_the_time(tiny: CohereTokenizerFast) -> None:
    template = "{{ strftime_now('%Y') }}"
    assert tiny.apply_chat_template(CHAT, chat_template=template, tokenize=False).isdigit()
