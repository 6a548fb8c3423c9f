"""The multi-step format: the model plans, calls tools, sees their results, reflects, and in the end answers.

The instructions stand after the last message of the user, as published; what follows are the steps done so far. Steps
of earlier exchanges stand where they happened. Results are numbered through the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from quarterdeck.chat.messages import Message, Tool
from quarterdeck.chat.prompts.conversation import Results
from quarterdeck.chat.prompts.parts import Part, fill, fill_text, template_data
from quarterdeck.chat.prompts.tool_text import calls_text, documents_text, tools_text, with_directly_answer
from quarterdeck.chat.prompts.turns import split_preamble, turn


def multi_step_parts(
    messages: Sequence[Message], tools: Sequence[Tool], results: Results, citation_mode: str, now: datetime | None
) -> list[Part]:
    """The prompt, all but the opening of the next turn; takes all results."""
    data = template_data("multi_step")
    preamble, _ = split_preamble(messages)
    default = fill_text(data["preamble"], date="" if now is None else _date_text(data, now))
    return fill(
        data["prompt"],
        preamble=default if preamble is None else preamble,
        tools=tools_text(with_directly_answer(tools, first=True)),
        turns=_turns(messages, 0 if preamble is None else 1, results, citation_mode),
    )


def _date_text(data: Any, now: datetime) -> str:
    """A date in English, whatever the locale."""
    return fill_text(
        data["date"],
        weekday=data["weekdays"].split()[now.weekday()],
        month=data["months"].split()[now.month - 1],
        day=f"{now.day:02d}",
        year=f"{now.year:04d}",
        time=f"{now:%H:%M:%S}",
    )


def _turns(messages: Sequence[Message], begin: int, results: Results, citation_mode: str) -> list[Part]:
    data = template_data("multi_step")
    last_user = max((number for number, message in enumerate(messages) if message.role == "user"), default=begin - 1)
    instructions = fill(data["instructions_turn"], instructions=data["instructions"][citation_mode])
    parts = instructions if last_user < begin else []
    is_first_step = True
    for number in range(begin, len(messages)):
        message = messages[number]
        if message.role == "tool":
            parts += _results_turn(messages, number, results)
        elif message.tool_calls:
            parts += _step(message, is_first_step)
            is_first_step = False
        else:
            parts += turn(message.role, message.content.strip())
        if message.role == "user":
            is_first_step = True
        if number == last_user:
            parts += instructions
    return parts


def _step(message: Message, is_first: bool) -> list[Part]:
    data = template_data("multi_step")
    plan = (message.tool_plan or message.content).strip()
    heading = data["first_heading"] if is_first else data["later_heading"]
    return fill(
        data["step"],
        plan=fill_text(data["plan"], heading=heading, text=plan) if plan else "",
        calls=calls_text(message.tool_calls),
    )


def _results_turn(messages: Sequence[Message], number: int, results: Results) -> list[Part]:
    """One turn for all results that follow each other; nothing for those that are not the first of them."""
    if number and messages[number - 1].role == "tool":
        return []
    end = number
    while end < len(messages) and messages[end].role == "tool":
        end += 1
    data = template_data("multi_step")
    return fill(data["results"], documents=documents_text(results.take(range(number, end)), data, titled=True))
