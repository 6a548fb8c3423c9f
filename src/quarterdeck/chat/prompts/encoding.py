"""Prompts to token ids, with control tokens from control parts alone.

A tokenizer finds the spelling of its added tokens anywhere in a text, before and after Unicode normalisation, and its
option to leave ``special`` ones alone does not help: most of Command-R's control tokens are not marked so. Therefore
text is encoded by a second tokenizer that shares the model and all else, but has no control tokens at all. Making it
copies nothing of the vocabulary.

Text between two control tokens is encoded as one piece, wherever its parts come from: so word borders fall as they
would in the whole text, and the ids are those that the tokenizer itself gives if nobody spells a control token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from quarterdeck.chat.prompts.parts import Part, control_tokens, merged

if TYPE_CHECKING:
    from quarterdeck.tokenizer import CohereTokenizerFast


def encode_parts(parts: Iterable[Part], tokenizer: CohereTokenizerFast) -> list[int]:
    """Ids of the parts of a prompt. A control token that the tokenizer does not have is text like any other."""
    known = tokenizer.added_tokens_encoder
    encoder = OrdinaryEncoder(tokenizer)
    ids: list[int] = []
    for kind, text in merged((kind if text in known else "text", text) for kind, text in parts):
        ids += [known[text]] if kind == "control" else encoder.encode(text)
    return ids


class OrdinaryEncoder:
    """What a tokenizer would be without control tokens.

    Control tokens are those of the templates, and all added tokens that are marked ``special``. Other added tokens,
    such as words that a user has added to the vocabulary, stay.
    """

    def __init__(self, tokenizer: CohereTokenizerFast) -> None:
        original = tokenizer.backend_tokenizer
        plain = type(original)(original.model)
        for component in ("normalizer", "pre_tokenizer"):
            if getattr(original, component) is not None:
                setattr(plain, component, getattr(original, component))
        controls = set(control_tokens())
        words = {
            index: token
            for index, token in sorted(original.get_added_tokens_decoder().items())
            if token.content not in controls and not token.special
        }
        if words:
            plain.add_tokens(list(words.values()))
        self._plain = plain
        self._ids: dict[int, int] = {}
        for index, token in words.items():
            self._ids[plain.token_to_id(token.content)] = index

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        ids: Any = self._plain.encode(text, add_special_tokens=False).ids
        return [self._ids.get(index, index) for index in ids] if self._ids else list(ids)
