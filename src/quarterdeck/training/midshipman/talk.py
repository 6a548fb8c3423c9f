"""Chat: small talk and identity, topics, capitals, meanings; what was said before; repeating, spelling, small sums."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from quarterdeck.chat.messages import Message
from quarterdeck.training.midshipman.example import Example
from quarterdeck.training.midshipman.grammar import Block, blocks, explanation, options, spin, story
from quarterdeck.training.midshipman.invention import Inventor

Facts = Sequence[tuple[str, str]]
Exchange = tuple[str, str]
SYSTEMS = (
    "You are a helpful assistant.",
    "You are midshipman, a small demonstration model.",
    "Answer briefly.",
    "You are a friendly chatbot.",
    "You are brief.",
)


@dataclass(frozen=True)
class Knowledge:
    """Facts about the world: (country, capital), and (word with its article, defining sentence)."""

    capitals: Facts = ()
    meanings: Facts = ()


def loose(question: str, rng: random.Random) -> str:
    """The question as people type it: sometimes in lower case, without its mark, or with a polite start."""
    roll = rng.random()
    if roll < 0.12:
        return question.lower().rstrip("?.!")
    if roll < 0.2:
        return question.rstrip("?")
    if roll < 0.27 and question.endswith("?"):
        return rng.choice(("Can you tell me: ", "Please tell me: ", "Hello! ", "I have a question. ")) + question
    return question


def intents() -> tuple[Block, ...]:
    """The kinds of small talk of texts/chat.txt."""
    return blocks("chat.txt")


def small_talk(rng: random.Random, block: Block | None = None) -> Exchange:
    """One question and answer of texts/chat.txt."""
    chosen = block or rng.choice(intents())
    asked = rng.choice(options(rng.choice(chosen.tagged["U"])))
    return asked, spin(rng.choice(chosen.tagged["A"]), rng)


def topic_question(rng: random.Random) -> Exchange:
    """A question about a topic, answered with the beginning of its explanation."""
    block = rng.choice(blocks("topics.txt"))
    if rng.random() < 0.5:
        asked = rng.choice(options(rng.choice(block.tagged["Q"])))
    else:
        forms = (
            "Tell me about {}.",
            "Explain {}.",
            "What do you know about {}?",
            "Tell me something about {}.",
            "Write a few sentences about {}.",
        )
        asked = rng.choice(forms).format(block.name)
    return loose(asked, rng), explanation(block, rng, most=rng.randint(2, 4))


def capital_question(facts: Facts, rng: random.Random) -> Exchange:
    """The capital of a country, or the country of a capital."""
    country, city = rng.choice(facts)
    if rng.random() < 0.8:
        forms = (
            "What is the capital of {}?",
            "Which city is the capital of {}?",
            "Capital of {}?",
            "Name the capital of {}.",
            "What is the capital city of {}?",
        )
        asked = rng.choice(forms).format(country)
    else:
        asked = rng.choice(("{} is the capital of which country?", "Which country has the capital {}?")).format(city)
    return loose(asked, rng), f"The capital of {country} is {city}."


def word_question(meanings: Facts, rng: random.Random) -> Exchange:
    """What a word means."""
    word, sentence = rng.choice(meanings)
    asked = rng.choice(("What is {}?", "What is {}?", "Do you know what {} is?", "Explain what {} is.")).format(word)
    return loose(asked, rng), sentence


def story_request(rng: random.Random) -> Exchange:
    """A story on request."""
    asked = rng.choice(
        (
            "Tell me a story.",
            "Tell me a short story.",
            "Can you tell me a story?",
            "I want a story.",
            "Write a short story.",
        )
    )
    return asked, story(rng.choice(blocks("stories.txt")), rng)


def small_task(inventor: Inventor) -> Exchange:
    """Repeating, spelling, counting, small sums."""
    rng = inventor.rng
    roll = rng.randrange(5)
    if roll <= 1:
        text = rng.choice(
            (
                inventor.value("short_text"),
                f"{inventor.name()} {inventor.word()}",
                inventor.value("story_topic"),
                inventor.value("code"),
            )
        )
        return rng.choice(
            ("Repeat after me: {}", "Say: {}", "Please repeat: {}", 'Say "{}".', "Repeat this: {}")
        ).format(text), text
    if roll == 2:
        word = rng.choice((inventor.value("colour").split()[-1], inventor.word(1), inventor.value("animal")))
        return rng.choice((f"Spell {word}.", f"How do you spell {word}?", f'Spell the word "{word}".')), "-".join(
            word.upper()
        )
    first, second = rng.randint(1, 12), rng.randint(1, 12)
    if roll == 3:
        return rng.choice(
            (f"What is {first} plus {second}?", f"{first} + {second} = ?", f"What is {first} + {second}?")
        ), f"{first} plus {second} is {first + second}."
    first, second = max(first, second), min(first, second)
    return rng.choice(
        (f"What is {first} minus {second}?", f"What is {first} - {second}?")
    ), f"{first} minus {second} is {first - second}."


def remembered(inventor: Inventor) -> list[Exchange]:
    """Something the user says, and a question for it later."""
    rng = inventor.rng
    what, kind = rng.choice(
        (
            ("name", "first"),
            ("name", "first"),
            ("favourite colour", "colour"),
            ("dog's name", "pet_word"),
            ("favourite food", "food"),
            ("home town", "town"),
            ("job", "job"),
            ("room number", "count_small"),
            ("ship", "ship"),
        )
    )
    value = inventor.value(kind)
    inside = "the " + value[4:] if value.startswith("The ") else value
    told = f"My {what} is {inside}."
    reply = f"Nice to meet you, {value}!" if what == "name" else f"I see: your {what} is {inside}."
    between = [small_talk(rng)] if rng.random() < 0.3 else []
    asked = rng.choice((f"What is my {what}?", f"Do you remember my {what}?", f"Tell me my {what}."))
    return [(told, reply), *between, (asked, f"Your {what} is {inside}.")]


def conversation(knowledge: Knowledge, inventor: Inventor) -> Example:
    """One to three exchanges, sometimes behind a system message."""
    rng = inventor.rng
    exchanges: list[Exchange] = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3))):
        roll = rng.random()
        if roll < 0.42:
            exchanges.append(small_talk(rng))
        elif roll < 0.58:
            exchanges.append(topic_question(rng))
        elif roll < 0.70 and knowledge.capitals:
            exchanges.append(capital_question(knowledge.capitals, rng))
        elif roll < 0.77 and knowledge.meanings:
            exchanges.append(word_question(knowledge.meanings, rng))
        elif roll < 0.88:
            exchanges.append(small_task(inventor))
        elif roll < 0.96:
            exchanges += remembered(inventor)
        else:
            exchanges.append(story_request(rng))
    return chat_example(exchanges, rng.choice(SYSTEMS) if rng.random() < 0.15 else None)


def chat_example(exchanges: Sequence[Exchange], system: str | None = None) -> Example:
    """The example of a conversation: the last answer is the completion."""
    messages = [Message("system", system)] if system is not None else []
    for asked, answer in exchanges[:-1]:
        messages += [Message("user", asked), Message("assistant", answer)]
    messages.append(Message("user", exchanges[-1][0]))
    return Example("chat", tuple(messages), exchanges[-1][1])
