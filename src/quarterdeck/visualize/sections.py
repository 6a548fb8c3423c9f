"""Tokens as they are read, and what part of a prompt each belongs to: turns, documents, instructions.

Turns are found by their control tokens. Where documents begin inside the turn that holds them is found by their
length in bytes, so that a document that spells ``Document: 1`` itself begins nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quarterdeck.chat.prompts.parts import control_tokens, template_data
from quarterdeck.chat.prompts.tool_text import documents_text
from quarterdeck.chat.template import Prompt
from quarterdeck.tokenization.incremental import token_bytes
from quarterdeck.visualize.values import Role, Section, Token, TokenKind

if TYPE_CHECKING:
    from quarterdeck.tokenizer import CohereTokenizerFast

_TURN = "<|START_OF_TURN_TOKEN|>"
_SPEAKERS: dict[str, tuple[str, Role]] = {
    "<|SYSTEM_TOKEN|>": ("System", "system"),
    "<|USER_TOKEN|>": ("User", "user"),
    "<|CHATBOT_TOKEN|>": ("Chatbot", "chatbot"),
}
_END_OF_RESULTS = "</results>"


def read_tokens(ids: Sequence[int], positions: Sequence[int], tokenizer: CohereTokenizerFast) -> list[Token]:
    """The tokens of a text."""
    added = set(tokenizer.added_tokens_encoder)
    controls = added & {*control_tokens(), *tokenizer.all_special_tokens}
    return [
        _token(spelled, number, position, spelled in controls, spelled in added)
        for spelled, number, position in zip(tokenizer.convert_ids_to_tokens(list(ids)), ids, positions, strict=True)
    ]


def _token(spelled: str | None, number: int, position: int, is_control: bool, is_added: bool) -> Token:
    kind: TokenKind = "control" if is_control else "text"
    if spelled is None:
        return Token(f"#{number}", number, position, kind)
    if is_added:
        return Token(spelled, number, position, kind)
    return Token(token_bytes(spelled).decode(errors="backslashreplace"), number, position, kind)


def text_sections(tokens: Sequence[Token], name: str = "Text", role: Role = "text") -> list[Section]:
    """Sections of any text: what is before the first turn, and the turns."""
    begins = [place for place, token in enumerate(tokens) if token.kind == "control" and token.text == _TURN]
    sections = []
    if not begins or begins[0] > 0:
        stop = begins[0] if begins else len(tokens)
        only_controls = all(token.kind == "control" for token in tokens[:stop])
        is_start = bool(begins) and only_controls
        sections.append(Section("Start", "start", 0, stop) if is_start else Section(name, role, 0, stop))
    for start, stop in itertools.pairwise([*begins, len(tokens)]):
        speaker = tokens[start + 1].text if start + 1 < stop else ""
        name_, role_ = _SPEAKERS.get(speaker, ("Turn", "text"))
        sections.append(Section(name_, role_, start, stop))
    return sections


def prompt_sections(prompt: Prompt, tokens: Sequence[Token], tokenizer: CohereTokenizerFast) -> list[Section]:
    """Sections of a rendered prompt; a grounded one has its preamble, documents and instructions told apart."""
    sections = text_sections(tokens)
    system = [number for number, section in enumerate(sections) if section.role == "system"]
    if prompt.format != "rag" or len(system) < 3:
        return sections
    first, results, last = system[0], system[-2], system[-1]
    sections[first] = replace(sections[first], name="System preamble")
    sections[last] = replace(sections[last], name="Instructions", role="instructions")
    sections[results : results + 1] = _documents(prompt, tokens, sections[results], tokenizer)
    return sections


def _documents(
    prompt: Prompt, tokens: Sequence[Token], turn: Section, tokenizer: CohereTokenizerFast
) -> Iterator[Section]:
    """The turn of results cut where documents begin; its head and its end are called Results."""
    if not prompt.sources:
        yield replace(turn, name="Results")
        return
    data, normalizer = template_data("rag"), tokenizer.backend_tokenizer.normalizer
    texts = [documents_text([source], data, titled=False) for source in prompt.sources]
    sizes = [len((normalizer.normalize_str(text) if normalizer else text).encode()) for text in texts]
    places = [place for place in range(turn.start, turn.stop) if tokens[place].kind == "text"]
    spelled = tokenizer.convert_ids_to_tokens([tokens[place].id or 0 for place in places])
    ends = list(itertools.accumulate(len(token_bytes(token or "")) for token in spelled))
    total = ends[-1] if ends else 0
    begin = total - len(_END_OF_RESULTS) - sum(sizes)
    borders = [begin, *(begin + size for size in itertools.accumulate(sizes))]
    cuts = [_place_at(border, places, ends) for border in borders]
    yield Section("Results", "system", turn.start, cuts[0])
    for source, (start, stop) in zip(prompt.sources, itertools.pairwise(cuts), strict=True):
        if stop > start:
            yield Section(f"Document: {source.index}", "document", start, stop)
    yield Section("Results", "system", cuts[-1], turn.stop)


def _place_at(offset: int, places: Sequence[int], ends: Sequence[int]) -> int:
    """The first token that begins at ``offset`` bytes or later: one over a border belongs to where it begins."""
    begins = [0, *ends[:-1]]
    return next((place for place, begin in zip(places, begins, strict=True) if begin >= offset), places[-1] + 1)
