"""Messages, documents and tools to a prompt: text, and token ids in which control tokens come from the template alone.

Four formats, as published for Command-R (templates/*.json hold their texts):

    default      the turns
    rag          turns, numbered documents, and how to answer from them with citations
    tool_use     tools, turns, and how to write a list of calls
    multi_step   tools, turns with earlier steps and their results, and how to plan, act, reflect and answer

A format is a first SYSTEM turn, the turns of the conversation, and instructions; `render` chooses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from quarterdeck.chat.messages import Document, Message, Source, Tool
from quarterdeck.chat.prompts.conversation import Results, document_sources, read_documents, read_messages, read_tools
from quarterdeck.chat.prompts.encoding import encode_parts
from quarterdeck.chat.prompts.multi_step import multi_step_parts
from quarterdeck.chat.prompts.parts import Part, fill, merged, template_data
from quarterdeck.chat.prompts.tool_text import documents_text, tools_text, with_directly_answer
from quarterdeck.chat.prompts.turns import split_preamble, spoken_turns
from quarterdeck.errors import ChatError

if TYPE_CHECKING:
    from quarterdeck.tokenizer import CohereTokenizerFast

Format = Literal["default", "rag", "tool_use", "multi_step"]
CitationMode = Literal["accurate", "fast", "off"]


@dataclass(frozen=True)
class Prompt:
    """What a model is asked.

    Args:
        parts: ``(kind, text)``; of kind ``"control"`` are the control tokens that the template itself writes.
        format: which of the four formats it is.
        sources: what citations can point to, by number.
    """

    parts: tuple[Part, ...]
    format: Format
    sources: tuple[Source, ...] = ()

    @property
    def text(self) -> str:
        """The prompt as one text. Encoding it anew would take control tokens from users; `token_ids` does not."""
        return "".join(text for _, text in self.parts)

    def token_ids(self, tokenizer: CohereTokenizerFast) -> list[int]:
        """The prompt as ids: those of control tokens for control parts only, everything else as ordinary text."""
        return encode_parts(self.parts, tokenizer)


def render(
    messages: Any,
    *,
    documents: Any = None,
    tools: Any = None,
    citation_mode: CitationMode = "accurate",
    multi_step: bool = True,
    add_generation_prompt: bool = True,
    now: datetime | None = None,
    response_prefix: str = "",
) -> Prompt:
    """The prompt for a request.

    Args:
        messages: a list of what `Message.of` takes, or one string of a user.
        documents: a list of what `Document.of` takes; an empty one makes a grounded prompt without documents.
        tools: a list of what `Tool.of` takes.
        citation_mode: ``"accurate"``: answer, then the same with citations; ``"fast"``: only the latter; ``"off"``:
            answer without citations.
        multi_step: with tools, let the model plan, call and reflect repeatedly; False: let it call once.
        add_generation_prompt: end with the opening of the assistant's turn.
        now: the date and time to tell the model, in ``multi_step`` without a system message.
        response_prefix: how the answer begins; the model goes on from there.

    Raises:
        ChatError: something is malformed, or documents and tools are given both.
    """
    _check_options(citation_mode, add_generation_prompt, now, response_prefix)
    conversation = read_messages(messages)
    known_tools = read_tools(() if tools is None else tools)
    known_documents = None if documents is None else read_documents(documents)
    if known_documents is not None and known_tools:
        raise ChatError("documents and tools do not go together in one prompt: give one of the two")
    format_, parts, sources = _body(conversation, known_documents, known_tools, multi_step, citation_mode, now)
    if add_generation_prompt:
        parts += [*fill(template_data("default")["generation_prompt"]), ("text", response_prefix)]
    whole = merged(parts)
    _check_encodable(whole)
    return Prompt(whole, format_, tuple(sources))


def _check_options(citation_mode: Any, add_generation_prompt: bool, now: Any, response_prefix: Any) -> None:
    if citation_mode not in ("accurate", "fast", "off"):
        raise ChatError(f"citation_mode is 'accurate', 'fast' or 'off', not {citation_mode!r}")
    if now is not None and not isinstance(now, datetime):
        raise ChatError(f"now is a datetime, not {now!r}")
    if not isinstance(response_prefix, str) or (response_prefix and not add_generation_prompt):
        raise ChatError(f"response_prefix is a string and needs add_generation_prompt=True, not {response_prefix!r}")


def _body(
    messages: Sequence[Message],
    documents: Sequence[Document] | None,
    tools: Sequence[Tool],
    multi_step: bool,
    citation_mode: str,
    now: datetime | None,
) -> tuple[Format, list[Part], list[Source]]:
    """The format that a request calls for, all of its prompt but the opening of the next turn, and its sources."""
    results = Results(messages)
    if documents is not None:
        sources = document_sources(documents)
        return "rag", _rag(messages, sources, citation_mode), sources
    if tools and multi_step:
        return "multi_step", multi_step_parts(messages, tools, results, citation_mode, now), results.sources
    if messages[-1].role == "tool":
        sources = results.take(_of_last_exchange(messages))
        return "rag", _rag(messages, sources, citation_mode), sources
    if tools:
        return "tool_use", _tool_use(messages, tools), []
    return "default", fill(template_data("default")["prompt"], turns=spoken_turns(messages, strip_first=False)), []


def _rag(messages: Sequence[Message], sources: Iterable[Source], citation_mode: str) -> list[Part]:
    data = template_data("rag")
    preamble, turns = split_preamble(messages)
    return fill(
        data["prompt"],
        preamble=data["preamble"] if preamble is None else preamble,
        turns=spoken_turns(turns),
        documents=documents_text(sources, data, titled=False),
        instructions=data["instructions"][citation_mode],
    )


def _tool_use(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Part]:
    data = template_data("tool_use")
    preamble, turns = split_preamble(messages)
    return fill(
        data["prompt"],
        preamble=data["preamble"] if preamble is None else preamble,
        tools=tools_text(with_directly_answer(tools, first=False)),
        turns=spoken_turns(turns),
    )


def _of_last_exchange(messages: Sequence[Message]) -> list[int]:
    """Numbers of the tool messages since the last user message."""
    begin = max((number for number, message in enumerate(messages) if message.role == "user"), default=0)
    return [number for number in range(begin, len(messages)) if messages[number].role == "tool"]


def _check_encodable(parts: Iterable[Part]) -> None:
    for _, text in parts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            near = text[max(0, error.start - 20) : error.start + 20]
            raise ChatError(f"a text holds half of a surrogate pair, which is no character: {near!r}") from error
