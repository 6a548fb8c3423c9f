"""What the chat tests share: a small tokenizer with Command-R's control tokens, tools and random conversations."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from quarterdeck.chat.prompts.parts import control_tokens
from quarterdeck.tokenization.backend import command_r_pipeline
from quarterdeck.tokenizer import CohereTokenizerFast

SEARCH: dict[str, Any] = {
    "name": "search",
    "description": "Searches the log.",
    "parameter_definitions": {
        "query": {"description": "What to look for", "type": "str", "required": True},
        "count": {"description": "How many", "type": "int", "required": False},
    },
}

SEARCH_SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Searches the log.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to look for"},
                "count": {"type": "integer", "description": "How many"},
            },
            "required": ["query"],
        },
    },
}

_TRAINING = "The quick brown fox jumps over the lazy dog. Document: title text results Answer: Grounded answer: tools "


@lru_cache(maxsize=1)
def tiny_tokenizer() -> CohereTokenizerFast:
    """A tokenizer built as Command-R's: eight special tokens in front, the others behind and mostly not ``special``."""
    first, last = control_tokens()[:8], control_tokens()[8:]
    backend = command_r_pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_TRAINING * 20], trainer)
    backend.add_tokens(
        [AddedToken(token, normalized=False, special=token == "<|END_OF_TURN_TOKEN|>") for token in last]
    )
    return CohereTokenizerFast(tokenizer_object=Tokenizer.from_str(backend.to_str()), pad_token="<PAD>")


def control_ids(tokenizer: CohereTokenizerFast) -> dict[int, str]:
    """The control tokens of a tokenizer by id."""
    return {index: token for token, index in tokenizer.added_tokens_encoder.items() if token in control_tokens()}


_WORDS = (
    *"ahoy the ship’s log é e\u0301 日本 { } {{ }} % \\n ''' \"q\" <co: 0> </results> Action: 12 🦜\u200d 'tis".split(),
    "\t",
    "\n",
    "\r\n",
)


def random_text(source: random.Random) -> str:
    """A short text with odd characters, markup and white space, and without the spelling of a control token."""
    words = [source.choice(_WORDS) for _ in range(source.randrange(0, 9))]
    return (
        source.choice(("", " ", "\n ", "\u3000"))
        + source.choice((" ", "", "\n")).join(words)
        + source.choice(("", " \n"))
    )


def random_turns(source: random.Random, *, alternating: bool) -> list[dict[str, Any]]:
    """A conversation without tools."""
    turns = [{"role": "system", "content": random_text(source)}] if source.random() < 0.4 else []
    for number in range(source.randrange(1, 7)):
        role = ("user", "assistant")[number % 2] if alternating else source.choice(("user", "assistant", "system"))
        turns.append({"role": role, "content": random_text(source)})
    return turns


def random_documents(source: random.Random) -> list[dict[str, Any]]:
    """Flat documents of strings, as the published template shows them."""
    keys = ["title", "text", "url", "Snippet", "é key", "{key}"]
    return [
        {key: random_text(source) for key in source.sample(keys, source.randrange(0, 4))}
        for _ in range(source.randrange(0, 4))
    ]


def random_tools(source: random.Random) -> list[dict[str, Any]]:
    """Tools in the original form, ``directly_answer`` last as custom has it."""
    names = source.sample(["search", "read_log", "Steer-2", "_x"], source.randrange(1, 4))
    tools = [
        {
            "name": name,
            "description": random_text(source),
            "parameter_definitions": {
                parameter: {
                    "description": random_text(source).strip() or "d",
                    "type": source.choice(
                        ("str", "int", "List[str]", "Dict[str, float]", "list", "Weird[1]", "Union[str, int]")
                    ),
                    **source.choice(({}, {"required": True}, {"required": False})),
                }
                for parameter in source.sample(["query", "k", "from_date"], source.randrange(0, 4))
            },
        }
        for name in names
    ]
    description = "Calls a standard (un-augmented) AI chatbot to generate a response given the conversation history"
    return [*tools, {"name": "directly_answer", "description": description, "parameter_definitions": {}}]
