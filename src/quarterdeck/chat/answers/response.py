"""What an answer is: text, citations, calls, why it ended, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from quarterdeck.chat.messages import Citation, Message, ToolCall, Usage
from quarterdeck.chat.template import Prompt

FinishReason = Literal["COMPLETE", "STOP_SEQUENCE", "MAX_TOKENS", "TOOL_CALL", "ERROR"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer and its log-probability, under what the model says (before temperature and filters).

    Args:
        token_id: the token.
        bytes: what it stands for, maybe a part of a character; empty for control tokens.
        logprob: natural logarithm of its probability.
        top: the likeliest tokens at its place, best first.
    """

    token_id: int
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def token(self) -> str:
        """Its text, with U+FFFD for what is no whole character."""
        return self.bytes.decode("utf-8", "replace")


@dataclass(frozen=True)
class ChatResponse:
    """An answer.

    Args:
        id: a name for it, new each time; does not count in comparisons.
        text: what is said, without markup.
        citations: what the text rests on, in the order in which they end.
        tool_plan: what the model intends.
        tool_calls: the calls that it asks for.
        finish_reason: ``COMPLETE``; ``STOP_SEQUENCE``, a stop string came up; ``MAX_TOKENS``, it was cut short;
            ``TOOL_CALL``, it waits for results; ``ERROR``, what generates says so.
        usage: tokens that it took, over all generations.
        logprobs: of the tokens of the last generation, control tokens left out; None unless asked for.
        prompt: what the model was asked last.
        problems: what in the model's text had to be mended or left out; does not count in comparisons.
    """

    id: str = field(compare=False)
    text: str
    citations: tuple[Citation, ...]
    tool_plan: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = field(repr=False)
    prompt: Prompt = field(repr=False)
    problems: tuple[str, ...] = field(default=(), compare=False)

    @property
    def message(self) -> Message:
        """The answer as a message, to be appended to the conversation."""
        return Message(
            "assistant",
            self.text,
            tool_plan=self.tool_plan,
            tool_calls=self.tool_calls,
            citations=self.citations,
        )

    def to_dict(self) -> dict[str, Any]:
        """``text``, ``citations``, ``tool_plan``, ``tool_calls``, ``finish_reason`` and ``usage`` as plain values."""
        return {
            "text": self.text,
            "citations": [citation.to_dict() for citation in self.citations],
            "tool_plan": self.tool_plan,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "finish_reason": self.finish_reason,
            "usage": dict(vars(self.usage)),
        }


def added(one: Usage, other: Usage) -> Usage:
    """The tokens of both."""
    return Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cached_tokens + other.cached_tokens,
    )
