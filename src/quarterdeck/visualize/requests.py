"""From what a user wants to see to a forward pass and the tokens and sections of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from quarterdeck.chat.messages import Message
from quarterdeck.chat.template import CitationMode, render
from quarterdeck.errors import InputError
from quarterdeck.model_inputs import next_step_inputs
from quarterdeck.visualize.passes import Pass
from quarterdeck.visualize.sections import prompt_sections, read_tokens, text_sections
from quarterdeck.visualize.values import Section, Token

if TYPE_CHECKING:
    from quarterdeck.tokenizer import CohereTokenizerFast

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Request:
    """A pass over texts, with what is known about them.

    Attributes:
        run: the pass.
        tokens: of each row, padding included, empty slots not.
        sections: of each row, likewise.
        texts: for packed rows, the number of the text of each token.
    """

    run: Pass
    tokens: tuple[tuple[Token, ...], ...]
    sections: tuple[tuple[Section, ...], ...]
    texts: tuple[int, ...] | None = None


def is_chat(text: object, documents: object) -> bool:
    """Whether this is a conversation: there are documents, or a list that is not one of texts."""
    return documents is not None or not (isinstance(text, str) or _are_texts(text))


def read_texts(
    tokenizer: CohereTokenizerFast, text: str | Sequence[str], padding: Side | None, pad_to: int | None
) -> Request:
    """One text, or several side by side in a batch, padded to the longest or to ``pad_to`` tokens.

    Raises:
        InputError: a text without tokens, a side or a length that cannot be, or no token to pad with.
    """
    if pad_to is not None:
        _check_whole("pad_to", pad_to)
    texts = [text] if isinstance(text, str) else list(text)
    encoded = [list(tokenizer(each)["input_ids"]) for each in texts]
    _check_not_empty(encoded)
    length = max(map(len, encoded)) if pad_to is None else pad_to
    if length < max(map(len, encoded)):
        raise InputError(f"pad_to is {pad_to}, but the longest text has {max(map(len, encoded))} tokens")
    side = padding or ("right" if tokenizer.padding_side == "right" else "left")
    if side not in ("left", "right"):
        raise InputError(f"padding is {padding!r}, but must be 'left' or 'right'")
    pad = _pad_id(tokenizer) if any(len(ids) < length for ids in encoded) else 0
    rows = [_padded(ids, length, side, pad) for ids in encoded]
    mask = torch.tensor([[int(real) for _, real in row] for row in rows])
    ids = torch.tensor([[number for number, _ in row] for row in rows])
    positions = next_step_inputs(ids, attention_mask=mask)["position_ids"]
    shown = [_padded_row(tokenizer, *row) for row in zip(ids.tolist(), positions.tolist(), mask.tolist(), strict=True)]
    run = Pass(ids, positions, padding=None if bool(mask.all()) else mask)
    return Request(run, tuple(tokens for tokens, _ in shown), tuple(sections for _, sections in shown))


def read_packed(tokenizer: CohereTokenizerFast, texts: Sequence[str]) -> Request:
    """Several texts one behind the other in one row; positions begin again with each.

    Raises:
        InputError: no list of texts, or a text without tokens.
    """
    if not _are_texts(texts):
        raise InputError("packed must be a list of texts, at least one")
    encoded = [list(tokenizer(text)["input_ids"]) for text in texts]
    _check_not_empty(encoded)
    tokens: list[Token] = []
    sections = []
    for number, ids in enumerate(encoded):
        sections.append(Section(f"Text {number}", "document", len(tokens), len(tokens) + len(ids)))
        tokens += read_tokens(ids, range(len(ids)), tokenizer)
    run = Pass(
        torch.tensor([[token.id for token in tokens]]),
        torch.tensor([[token.position for token in tokens]]),
        is_packed=True,
    )
    owners = tuple(number for number, ids in enumerate(encoded) for _ in ids)
    return Request(run, (tuple(tokens),), (tuple(sections),), owners)


def read_chat(
    tokenizer: CohereTokenizerFast,
    messages: Any,
    documents: Any,
    citation_mode: CitationMode,
    add_generation_prompt: bool | None,
) -> Request:
    """A conversation as the model reads it, with its turns and documents.

    Raises:
        ChatError: a conversation that cannot be right.
    """
    if add_generation_prompt is None:
        add_generation_prompt = not _ends_with_assistant(messages)
    prompt = render(
        messages, documents=documents, citation_mode=citation_mode, add_generation_prompt=add_generation_prompt
    )
    ids = prompt.token_ids(tokenizer)
    tokens = read_tokens(ids, range(len(ids)), tokenizer)
    sections = prompt_sections(prompt, tokens, tokenizer)
    run = Pass(torch.tensor([ids]), torch.arange(len(ids))[None])
    return Request(run, (tuple(tokens),), (tuple(sections),))


def with_past(request: Request, past: int, max_cache_len: int | None) -> Request:
    """The same texts with their first ``past`` tokens in the cache; a negative number leaves that many outside.

    Raises:
        InputError: lengths that are no whole numbers or do not fit the text, or a cache for packed texts.
    """
    _check_whole("past", past)
    if max_cache_len is not None:
        _check_whole("max_cache_len", max_cache_len)
    length = request.run.input_ids.shape[1]
    start = length + past if past < 0 else past
    if not 0 <= start < length:
        raise InputError(
            f"past is {past}, but must be in 0 to {length - 1}, or -{length} to -1: this text has {length} tokens, and "
            "at least one of them is not in the cache yet"
        )
    if request.run.is_packed and (start or max_cache_len is not None):
        raise InputError("packed texts go with no cache: leave out past and max_cache_len")
    if max_cache_len is not None and max_cache_len < length:
        raise InputError(f"max_cache_len is {max_cache_len}, but the text has {length} tokens: give at least that")
    return replace(request, run=replace(request.run, start=start, slots=max_cache_len))


def _check_whole(name: str, number: object) -> None:
    """Raises InputError if this is no number of tokens."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"{name} is {number!r}, but must be a whole number of tokens")


def _are_texts(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(each, str) for each in value)
    )


def _ends_with_assistant(messages: Any) -> bool:
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        return False
    last = messages[-1]
    role = last.role if isinstance(last, Message) else last.get("role") if isinstance(last, Mapping) else None
    return role in ("assistant", "chatbot")


def _check_not_empty(encoded: Sequence[Sequence[int]]) -> None:
    if not all(encoded):
        raise InputError("a text has no tokens at all, so there is nothing to show: give some text")


def _pad_id(tokenizer: CohereTokenizerFast) -> int:
    if tokenizer.pad_token_id is None:
        raise InputError("texts of different lengths need padding, and the tokenizer has no pad_token: set it")
    return int(tokenizer.pad_token_id)


def _padded(ids: list[int], length: int, side: Side, pad: int) -> list[tuple[int, bool]]:
    """Ids with whether they are real."""
    real, padding = [(number, True) for number in ids], [(pad, False)] * (length - len(ids))
    return padding + real if side == "left" else real + padding


def _padded_row(
    tokenizer: CohereTokenizerFast, ids: list[int], positions: list[int], mask: list[int]
) -> tuple[tuple[Token, ...], tuple[Section, ...]]:
    tokens = read_tokens(ids, positions, tokenizer)
    begin, end = mask.index(1), len(mask) - mask[::-1].index(1)
    inner = [
        replace(section, start=section.start + begin, stop=section.stop + begin)
        for section in text_sections(tokens[begin:end])
    ]
    outer = [Section("Padding", "padding", *borders) for borders in ((0, begin), (end, len(mask)))]
    shown = tuple(
        token if real else replace(token, kind="padding", position=None)
        for token, real in zip(tokens, mask, strict=True)
    )
    return shown, tuple(section for section in (outer[0], *inner, outer[1]) if section.stop > section.start)
