"""Decoding a stream of tokens that never emits half a character.

A token of a byte-level vocabulary stands for bytes, and a character may be spread over several tokens:
"€" (e2 82 ac) can arrive as a token for e2 and one for 82 ac. Decoding each token alone would give "\ufffd" twice.
Decoding everything again for each token is right but takes quadratic time. Here each token is turned into its bytes
once, and the bytes go through an incremental UTF-8 decoder that keeps back an unfinished character and replaces what
can never become one: the time for a token does not depend on how many came before.

The alphabet of byte-level tokens: Radford et al. 2019 (GPT-2) write each byte as one printable character, the byte's
own Latin-1 character if that is printable and U+0100, U+0101, ... in turn for the others: 0x20 (space) is "Ġ".
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Set
from functools import cache

from quarterdeck.tokenization.tensors import to_ids

_CLEAN_UPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)

_UNSETTLED = " 'nvr"
"""The characters that are followed by another one inside a pattern above.

A text may be cut after any other character and the parts cleaned up on their own: no pattern can lie across the cut,
neither at first nor after earlier replacements, since those leave the last character of the left part in place and
put at the front of the right part only characters that follow one of these.
"""


def clean_up(text: str) -> str:
    """The text without the spaces that some tokenizations leave before punctuation; patterns apply in order."""
    for pattern, replacement in _CLEAN_UPS:
        text = text.replace(pattern, replacement)
    return text


@cache
def byte_of_character() -> Mapping[str, int]:
    """The byte that each character of a byte-level token stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def token_bytes(token: str) -> bytes:
    """The bytes of a token; a token with a character outside the byte-level alphabet stands for its own text."""
    table = byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode()


class IncrementalDecoder:
    """Turns ids into text as they come.

    Example: ``feed([id_of_e2])`` gives ``""``, ``feed([id_of_82_ac])`` gives ``"€"``, ``close()`` gives ``""``.

    Args:
        token_of: the token of an id, None if there is none.
        skipped_ids: ids that give no text.
        clean_up_spaces: whether to remove spaces before punctuation as `clean_up` does.
    """

    def __init__(
        self, token_of: Callable[[int], str | None], skipped_ids: Set[int] = frozenset(), clean_up_spaces: bool = False
    ) -> None:
        self._token_of = token_of
        self._skipped = skipped_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._clean_up = clean_up_spaces
        self._unsettled = ""

    def feed(self, ids: int | Iterable[int]) -> str:
        """The text that is certain now and was not before; often ``""`` in the middle of a character."""
        return self._settle(self._utf8.decode(self._bytes(ids)))

    def close(self) -> str:
        """The rest; an unfinished character comes out as U+FFFD. The decoder can then be used again from the start."""
        text = self._settle(self._utf8.decode(b"", final=True))
        rest, self._unsettled = self._unsettled, ""
        self._utf8.reset()
        return text + clean_up(rest)

    def _bytes(self, ids: int | Iterable[int]) -> bytes:
        numbers = to_ids(ids)
        parts = []
        for index in [numbers] if isinstance(numbers, int) else numbers:
            token = None if index in self._skipped else self._token_of(index)
            if token is not None:
                parts.append(token_bytes(token))
        return b"".join(parts)

    def _settle(self, text: str) -> str:
        """What of ``text`` cannot be changed by cleaning up what is still to come."""
        if not self._clean_up:
            return text
        text = self._unsettled + text
        settled = len(text.rstrip(_UNSETTLED))
        self._unsettled = text[settled:]
        return clean_up(text[:settled])
