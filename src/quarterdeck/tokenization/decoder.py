"""Ids to text: whole, in batches, and piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from quarterdeck.errors import TokenizerError
from quarterdeck.tokenization.encoder import Encoder
from quarterdeck.tokenization.incremental import IncrementalDecoder, clean_up
from quarterdeck.tokenization.tensors import to_ids
from quarterdeck.tokenization.vocabulary import Token


class Decoder(Encoder):
    """An encoder that can go back."""

    def __init__(
        self,
        backend: Tokenizer,
        named_tokens: Mapping[str, Token | None],
        additional_special_tokens: Sequence[Token],
        extra_special_tokens: Mapping[str, Token],
        *,
        clean_up_tokenization_spaces: bool,
        **encoder_options: Any,
    ) -> None:
        super().__init__(backend, named_tokens, additional_special_tokens, extra_special_tokens, **encoder_options)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of one sequence of ids.

        Args:
            token_ids: an id, or a list or 1-D array or tensor of ids. Ids that no token has give no text.
            skip_special_tokens: leave out the tokens that the vocabulary calls special. In public Command-R
                checkpoints the markers of turns and roles, end of turn excepted, are not among them.
            clean_up_tokenization_spaces: remove the space before punctuation; None: the tokenizer's setting.
        """
        ids = to_ids(token_ids)
        text: str = self._backend.decode(
            [ids] if isinstance(ids, int) else ids, skip_special_tokens=skip_special_tokens
        )
        return clean_up(text) if self._cleans_up(clean_up_tokenization_spaces) else text

    def batch_decode(
        self,
        sequences: Iterable[Any],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of each sequence of ids; see `decode`."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def incremental_decoder(
        self, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool | None = None
    ) -> IncrementalDecoder:
        """A decoder to be fed ids as they come; what it returns adds up to what `decode` gives for all of them."""
        added = self._backend.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special} if skip_special_tokens else set()
        self._check_byte_level()
        return IncrementalDecoder(
            self._token_of, skipped_ids=special, clean_up_spaces=self._cleans_up(clean_up_tokenization_spaces)
        )

    def _cleans_up(self, asked: bool | None) -> bool:
        return self.clean_up_tokenization_spaces if asked is None else asked

    def _check_byte_level(self) -> None:
        kind = type(self._backend.decoder).__name__
        if kind != "ByteLevel":
            raise TokenizerError(
                f"decoding piece by piece needs a byte-level tokenizer, as Command-R's are; this one has {kind}"
            )

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """The text without the spaces that some tokenizations leave before punctuation."""
        return clean_up(out_string)
