"""What encoding a text returns: a dictionary of model inputs that still knows the text they came from."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from tokenizers import Encoding

from quarterdeck.errors import TokenizerError
from quarterdeck.tokenization.tensors import check_tensor_type, to_tensor


class CharSpan(NamedTuple):
    """Characters ``start`` to ``end`` (not included) of the original text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens ``start`` to ``end`` (not included) of an encoded sequence."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """Model inputs by name (``input_ids``, ``attention_mask``, ...), also as attributes: ``model(**batch)``.

    Indexed by a number it gives the `tokenizers.Encoding` of that row. The methods that relate tokens to words and
    characters take the row first, which may be left out for row 0: ``token_to_chars(7)`` is ``token_to_chars(0, 7)``.

    Args:
        data: the inputs.
        encoding: the library's own result, one per row.
        tensor_type: ``"pt"`` or ``"np"`` turns every value into a tensor.
        prepend_batch_axis: whether the tensors get a first dimension of 1.
        n_sequences: how many texts a row was made of (1, or 2 for a pair); by default what ``encoding`` says.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data or {})
        self._encodings: list[Encoding] | None = None
        if encoding is not None:
            self._encodings = [encoding] if isinstance(encoding, Encoding) else list(encoding)
        self._n_sequences: int | None = n_sequences
        if n_sequences is None and self._encodings:
            self._n_sequences = self._encodings[0].n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getitem__(self, item: Any) -> Any:
        """The input of that name; the encoding of that row for a number; every input cut for a slice."""
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {name: value[item] for name, value in self.data.items()}
        raise KeyError(f"{item!r}: a row number needs an encoding that came from a tokenizer; use a name")

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(
            f"'{type(self).__name__}' has no attribute and no input '{name}' (inputs: {', '.join(data)})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def encodings(self) -> list[Encoding] | None:
        """The library's own result, one per row; None if the inputs did not come from a text."""
        return self._encodings

    @property
    def n_sequences(self) -> int | None:
        """How many texts a row was made of: 1, 2 for a pair, None if unknown."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether the rows still know the text they came from."""
        return self._encodings is not None

    # ── tensors ───────────────────────────────────────────────────────────────────────────────────────────────────

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> Self:
        """Turns every value into a tensor, in place; None changes nothing.

        Raises:
            UnsupportedOptionError: neither ``"pt"`` nor ``"np"``.
            TokenizerError: rows of different lengths.
        """
        kind = check_tensor_type(tensor_type)
        if kind is not None:
            for name, value in self.data.items():
                self.data[name] = to_tensor(name, [value] if prepend_batch_axis else value, kind)
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> Self:
        """Moves every tensor to a device (``"cuda"``, ``torch.device``, a number), in place; the rest stays."""
        if not isinstance(device, str | int) and type(device).__name__ != "device":
            raise TokenizerError(f"to({device!r}): token ids can move to a device but not change their dtype")
        for name, value in self.data.items():
            if callable(getattr(value, "to", None)):
                self.data[name] = value.to(device=device, non_blocking=non_blocking)
        return self

    # ── from tokens to the text and back ──────────────────────────────────────────────────────────────────────────

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, in the spelling of the vocabulary."""
        return list(self._row(batch_index).tokens)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the number of its word (as split before BPE), None for special tokens."""
        return list(self._row(batch_index).word_ids)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row 0 (first text) or 1 (second text), None for special tokens."""
        return list(self._row(batch_index).sequence_ids)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text of the pair a token belongs to: 0 or 1."""
        row, index = self._row_and_token(batch_or_token_index, token_index)
        found: int | None = row.token_to_sequence(index)
        return found

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The number of the word that a token belongs to."""
        row, index = self._row_and_token(batch_or_token_index, token_index)
        found: int | None = row.token_to_word(index)
        return found

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters that a token stands for; None for special tokens."""
        row, index = self._row_and_token(batch_or_token_index, token_index)
        span = row.token_to_chars(index)
        return None if span is None else CharSpan(*span)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word; None if it has none."""
        row, index = self._row_and_index(batch_or_word_index, word_index)
        span = row.word_to_tokens(index, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word; None if it has none."""
        row, index = self._row_and_index(batch_or_word_index, word_index)
        span = row.word_to_chars(index, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that a character belongs to; None if it belongs to none."""
        row, index = self._row_and_index(batch_or_char_index, char_index)
        found: int | None = row.char_to_token(index, sequence_index)
        return found

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The number of the word that a character belongs to; None if it belongs to none."""
        row, index = self._row_and_index(batch_or_char_index, char_index)
        found: int | None = row.char_to_word(index, sequence_index)
        return found

    def _row(self, batch_index: int) -> Encoding:
        if not self._encodings:
            raise TokenizerError("these inputs did not come from a text, so their tokens and words are not known")
        return self._encodings[batch_index]

    def _row_and_index(self, first: int, second: int | None) -> tuple[Encoding, int]:
        return (self._row(0), first) if second is None else (self._row(first), second)

    def _row_and_token(self, first: int, second: int | None) -> tuple[Encoding, int]:
        row, index = self._row_and_index(first, second)
        return row, index + len(row.ids) if index < 0 else index
