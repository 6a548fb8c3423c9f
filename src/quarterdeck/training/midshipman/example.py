"""One training example: a request, and the text that the model is to write; rendered by the product's own code.

    example = Example("grounded", [Message("user", "Where?")], "Relevant Documents: ...", documents=(...))
    encoded = encode(example, encoder)        # .ids, .supervised: bool per id

A prompt is what `quarterdeck.chat.render` makes of the request. A *compact* prompt is the same with the fixed texts of
the format (preamble, instructions) cut down to a few words: early in training most tokens would be these texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quarterdeck.chat.messages import Document, Message, Tool
from quarterdeck.chat.prompts.encoding import OrdinaryEncoder
from quarterdeck.chat.prompts.parts import Part
from quarterdeck.chat.template import CitationMode, Prompt, render
from quarterdeck.tokenizer import CohereTokenizerFast

BOS, END_OF_TURN = "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"
_INSTRUCTIONS = ("Carefully perform", "Write 'A")
_FIXED = ("# Safety Preamble", *_INSTRUCTIONS)
_USER_PREAMBLE, _TOOLS = "# User Preamble\n", "\n\n## Available Tools\n"

Segment = tuple[Literal["control", "text"], str, bool]
"""A control token or a text, and whether the model is to learn to write it."""


@dataclass(frozen=True)
class Example:
    """A request and its completion.

    Attributes:
        family: of the mixture.
        messages: the conversation, at least one, the last of them to be answered; empty for plain text.
        completion: what the model writes, the end of the turn not included; or the plain text.
        documents, tools, citation_mode, multi_step: as in `render`.
        about: what an evaluation needs to know: the value asked for, the schema, and so on.
        bare: the prompt has neither preamble nor instructions.
        written_out: all that the model sees, in place of messages and completion.
    """

    family: str
    messages: tuple[Message, ...]
    completion: str
    documents: tuple[Document, ...] | None = None
    tools: tuple[Tool, ...] = ()
    citation_mode: CitationMode = "accurate"
    multi_step: bool = True
    about: dict[str, Any] = field(default_factory=dict)
    bare: bool = False
    written_out: tuple[Segment, ...] = ()

    def options(self) -> dict[str, Any]:
        """What `answer` takes besides the messages."""
        given: dict[str, Any] = {"citation_mode": self.citation_mode, "multi_step": self.multi_step}
        if self.documents is not None:
            given["documents"] = list(self.documents)
        if self.tools:
            given["tools"] = list(self.tools)
        return given

    def prompt(self) -> Prompt:
        """The prompt, in full."""
        return render(list(self.messages), **self.options())


def segments(example: Example, *, compact: bool = False) -> list[Segment]:
    """(kind, text, supervised) of everything that the model sees: the prompt, the completion, the end of the turn.

    Earlier answers of a chat without documents and tools are supervised as well.
    """
    if example.written_out:
        return list(example.written_out)
    if not example.messages:
        return [("control", BOS, False), ("text", example.completion, True), ("control", END_OF_TURN, True)]
    prompt = example.prompt()
    parts = bared(prompt) if example.bare else compacted(prompt) if compact else prompt.parts
    spoken = _spoken(parts) if prompt.format == "default" else frozenset()
    found: list[Segment] = [(kind, text, number in spoken) for number, (kind, text) in enumerate(parts)]
    return [*found, ("text", example.completion, True), ("control", END_OF_TURN, True)]


def _spoken(parts: Sequence[Part]) -> frozenset[int]:
    """Numbers of the texts that the assistant wrote, and of the ends of its turns."""
    begins = [n for n, (_, text) in enumerate(parts[:-2]) if text == "<|CHATBOT_TOKEN|>"]
    return frozenset(n for begin in begins for n in (begin + 1, begin + 2))


def compacted(prompt: Prompt) -> tuple[Part, ...]:
    """The parts of a prompt, with the fixed texts of its format cut short."""
    if prompt.format == "default":
        return prompt.parts
    return tuple((kind, _short(text) if kind == "text" else text) for kind, text in prompt.parts)


def bared(prompt: Prompt) -> tuple[Part, ...]:
    """The parts of a prompt without the turns that hold its format's fixed texts."""
    fixed = [n for n, (kind, text) in enumerate(prompt.parts) if kind == "text" and text.startswith(_FIXED)]
    dropped = {place for n in fixed for place in (n - 2, n - 1, n, n + 1)}  # the start of the turn, who, and its end
    return tuple(part for n, part in enumerate(prompt.parts) if n not in dropped)


def _short(text: str) -> str:
    if text.startswith("# Safety Preamble"):
        if _TOOLS in text:
            return text[text.index(_TOOLS) :].lstrip("\n")
        own = text[text.index(_USER_PREAMBLE) + len(_USER_PREAMBLE) :]
        return "# User Preamble" if own.startswith("## Task and Context") else own
    if text.startswith(_INSTRUCTIONS):
        return "\n".join(_headings(text))
    return text


@lru_cache(maxsize=32)
def _headings(instructions: str) -> tuple[str, ...]:
    """The markers that instructions ask for, in order: all that is left of them."""
    marks = ("Plan:", "Action:", "Relevant Documents:", "Cited Documents:", "Answer:", "Grounded answer:")
    return tuple(mark for mark in marks if f"'{mark}'" in instructions)


@dataclass(frozen=True)
class Encoded:
    """Token ids of an example, and which of them the model is to learn to write."""

    family: str
    ids: NDArray[np.uint16]
    supervised: NDArray[np.bool_]


class ExampleEncoder:
    """Examples to ids, as `Prompt.token_ids` would make them; texts that come again and again are encoded once."""

    def __init__(self, tokenizer: CohereTokenizerFast, cached: int = 4096) -> None:
        self._controls = tokenizer.added_tokens_encoder
        self._encode = OrdinaryEncoder(tokenizer).encode
        self._long = lru_cache(maxsize=cached)(self._encode)

    def encode(self, example: Example, *, compact: bool = False) -> Encoded:
        """Ids and mask."""
        return self.encode_segments(example.family, segments(example, compact=compact))

    def encode_segments(self, family: str, parts: Iterable[Segment]) -> Encoded:
        """Ids and mask of what `segments` gave."""
        ids: list[int] = []
        mask: list[bool] = []
        for kind, text, supervised in parts:
            new = [self._controls[text]] if kind == "control" else self._pieces(text)
            ids += new
            mask += [supervised] * len(new)
        return Encoded(family, np.array(ids, dtype=np.uint16), np.array(mask, dtype=np.bool_))

    def _pieces(self, text: str) -> list[int]:
        """Fixed texts come from the cache; between a word and a blank line is a border that no token crosses."""
        if text.startswith("# Safety Preamble"):
            head, mark, tail = text.partition(_TOOLS)
            return self._long(head) + (self._encode(mark + tail) if mark else [])
        return self._long(text) if text.startswith(("Carefully", "Write 'A")) else self._encode(text)
