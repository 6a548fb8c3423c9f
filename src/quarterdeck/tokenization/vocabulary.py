"""The lowest floor of a tokenizer: ids, tokens, and tokens added to the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, overload

from tokenizers import AddedToken, Tokenizer

from quarterdeck.errors import TokenizerError
from quarterdeck.tokenization.tensors import to_ids

Token: TypeAlias = str | AddedToken


class Vocabulary:
    """Ids and tokens of a `tokenizers.Tokenizer`, which does the work and is owned by this object."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` below. Changes to it take effect here at once."""
        return self._backend

    @property
    def decoder(self) -> Any:
        """The part of the backend that turns tokens into text."""
        return self._backend.decoder

    @property
    def is_fast(self) -> bool:
        """True: the work is done by the `tokenizers` library."""
        return True

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the trained vocabulary, added tokens not counted."""
        return int(self._backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        """Number of tokens, added ones included.

        Counted here because the library would build the whole dictionary to measure its length.
        """
        model, added = self._backend.model, self._backend.get_added_tokens_decoder().values()
        return self.vocab_size + sum(model.token_to_id(token.content) is None for token in added)

    def __bool__(self) -> bool:
        return True  # a tokenizer with an empty vocabulary is still a tokenizer

    @property
    def vocab(self) -> dict[str, int]:
        """The same as `get_vocab`."""
        return self.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Every token, added ones included, with its id. Builds a new dictionary at each call."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    # ── added tokens ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added tokens by id, in the order of the ids."""
        return dict(sorted(self._backend.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of the added tokens, in the order of the ids."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """The same as `added_tokens_encoder`."""
        return self.added_tokens_encoder

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Adds tokens that are found in a text before anything else and are never split.

        A model needs a row of embeddings for each: call ``model.resize_token_embeddings(len(tokenizer))`` afterwards.

        Args:
            new_tokens: one token or several. Text that is an added token already is left as it is; an AddedToken gives
                such a token other properties.
            special_tokens: whether ``decode(skip_special_tokens=True)`` leaves them out.

        Returns:
            How many were added or got other properties.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens)
        for token in tokens:
            if not isinstance(token, str | AddedToken):
                raise TokenizerError(f"a token to add is {token!r}; give a str or a tokenizers.AddedToken")
        if special_tokens:
            return int(self._backend.add_special_tokens(tokens)) if tokens else 0
        known = self.added_tokens_encoder  # added again as plain text, a special token would become an ordinary one
        new = [token for token in tokens if isinstance(token, AddedToken) or token not in known]
        return int(self._backend.add_tokens(new)) if new else 0

    # ── one to the other ──────────────────────────────────────────────────────────────────────────────────────────

    def _unknown_id(self) -> int | None:
        """Id of a token that is not in the vocabulary; a floor above knows it."""
        return None

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int | None] | None:
        """The id of a token, or of each token; the unknown token's id (None without one) for what is not there."""
        if isinstance(tokens, str):
            index: int | None = self._backend.token_to_id(tokens)
            return self._unknown_id() if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str | None]: ...
    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str | None] | None:
        """The token of an id, or of each id (a list or a 1-D array); None for an id that no token has.

        ``skip_special_tokens`` leaves out the tokens named by attributes such as ``bos_token``; it has no meaning for
        a single id.
        """
        numbers = to_ids(ids)
        if isinstance(numbers, int):
            return self._token_of(numbers)
        skipped = self._named_ids() if skip_special_tokens else set()
        return [self._token_of(index) for index in numbers if index not in skipped]

    def _named_ids(self) -> set[int]:
        """Ids of the tokens that have a name; a floor above knows them."""
        return set()

    def _token_of(self, index: int) -> str | None:
        token: str | None = self._backend.id_to_token(index)
        return token

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens in the spelling of the vocabulary: ``["ĠHello", "!"]`` gives ``" Hello!"``."""
        if self._backend.decoder is None:
            return " ".join(tokens)
        return str(self._backend.decoder.decode(list(tokens)))
