"""Conversations: small talk, questions about the topics, capitals of countries, meanings of words.

A conversation is a list of messages; `render` writes it in the prompt format that the shipped chat template produces.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from training.midshipman.grammar import Block, blocks, explanation, options, spin, story

Message = tuple[str, str]
Facts = Sequence[tuple[str, str]]

_TURN = {"system": "<|SYSTEM_TOKEN|>", "user": "<|USER_TOKEN|>", "assistant": "<|CHATBOT_TOKEN|>"}
SYSTEMS = (
    "You are a helpful assistant.",
    "You are midshipman, a small demonstration model.",
    "Answer briefly.",
    "You are a friendly chatbot.",
    "You are a helpful chatbot.",
)


def render(messages: Sequence[Message]) -> str:
    """The conversation as the default template writes it, without the leading BOS."""
    return "".join(f"<|START_OF_TURN_TOKEN|>{_TURN[role]}{text}<|END_OF_TURN_TOKEN|>" for role, text in messages)


def _loose(question: str, rng: random.Random) -> str:
    """The question as people type it: sometimes in lower case, without its mark, or with a polite start."""
    roll = rng.random()
    if roll < 0.12:
        return question.lower().rstrip("?.!")
    if roll < 0.2:
        return question.rstrip("?")
    if roll < 0.27 and question.endswith("?"):
        return rng.choice(("Can you tell me: ", "Please tell me: ", "Hello! ", "I have a question. ")) + question
    return question


def small_talk(rng: random.Random) -> list[Message]:
    """One question and answer of texts/chat.txt."""
    block = rng.choice(blocks("chat.txt"))
    return _small_talk(block, rng)


def _small_talk(block: Block, rng: random.Random) -> list[Message]:
    asked = rng.choice(options(rng.choice(block.tagged["U"])))
    return [("user", asked), ("assistant", spin(rng.choice(block.tagged["A"]), rng))]


def topic_question(rng: random.Random) -> list[Message]:
    """A question about a topic, answered with the beginning of its explanation."""
    block = rng.choice(blocks("topics.txt"))
    if rng.random() < 0.5:
        asked = rng.choice(options(rng.choice(block.tagged["Q"])))
    else:
        asked = rng.choice(
            (
                "Tell me about {}.",
                "Explain {}.",
                "What do you know about {}?",
                "Tell me something about {}.",
                "Write a few sentences about {}.",
            )
        ).format(block.name)
    return [("user", _loose(asked, rng)), ("assistant", explanation(block, rng, most=rng.randint(2, 5)))]


def capital_question(facts: Facts, rng: random.Random) -> list[Message]:
    """The capital of a country, or the country of a capital."""
    country, city = rng.choice(facts)
    if rng.random() < 0.75:
        asked = rng.choice(
            (
                "What is the capital of {}?",
                "Which city is the capital of {}?",
                "Capital of {}?",
                "Name the capital of {}.",
                "What is the capital city of {}?",
            )
        ).format(country)
    else:
        asked = rng.choice(("{} is the capital of which country?", "Which country has the capital {}?")).format(city)
    return [("user", _loose(asked, rng)), ("assistant", f"The capital of {country} is {city}.")]


def word_question(meanings: Facts, rng: random.Random) -> list[Message]:
    """What a word means; `meanings` are (word with its article, defining sentence)."""
    word, sentence = rng.choice(meanings)
    asked = rng.choice(("What is {}?", "What is {}?", "Do you know what {} is?", "Explain what {} is.")).format(word)
    return [("user", _loose(asked, rng)), ("assistant", sentence)]


def story_request(rng: random.Random) -> list[Message]:
    """A story on request."""
    asked = rng.choice(
        (
            "Tell me a story.",
            "Tell me a short story.",
            "Can you tell me a story?",
            "I want a story.",
            "Write a short story.",
            "Please tell me a story about the sea.",
        )
    )
    return [("user", asked), ("assistant", story(rng.choice(blocks("stories.txt")), rng))]


def conversation(capitals: Facts, meanings: Facts, rng: random.Random) -> list[Message]:
    """One to three exchanges, sometimes behind a system message."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append(("system", rng.choice(SYSTEMS)))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        roll = rng.random()
        if roll < 0.36:
            messages += small_talk(rng)
        elif roll < 0.68:
            messages += topic_question(rng)
        elif roll < 0.82 and capitals:
            messages += capital_question(capitals, rng)
        elif roll < 0.93 and meanings:
            messages += word_question(meanings, rng)
        else:
            messages += story_request(rng)
    return messages


def conversations(count: int, capitals: Facts, meanings: Facts, seed: int) -> Iterator[str]:
    """`count` rendered conversations."""
    rng = random.Random(f"chat {seed}")
    for _ in range(count):
        yield render(conversation(capitals, meanings, rng))
