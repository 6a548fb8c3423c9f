"""Text to ids: every way to call a tokenizer on texts, pairs and batches comes down to one call of the backend."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Unpack

from tokenizers import Encoding, Tokenizer

from quarterdeck.errors import QuarterdeckError, TokenizerError
from quarterdeck.tokenization.encoding import BatchEncoding
from quarterdeck.tokenization.options import (
    NO_LIMIT,
    EncodeKeywords,
    EncodeOptions,
    Lengths,
    check_limit,
    check_pair_room,
    check_room,
    check_side,
    resolve_lengths,
)
from quarterdeck.tokenization.padding import pad_encoded
from quarterdeck.tokenization.special_tokens import SpecialTokens
from quarterdeck.tokenization.vocabulary import Token

Text = str | Sequence[str]
"""A text, or with ``is_split_into_words`` its words."""

_log = logging.getLogger(__name__)


class Encoder(SpecialTokens):
    """A vocabulary with named tokens that encodes texts. Safe to use from several threads at once."""

    model_input_names: Sequence[str] = ("input_ids", "attention_mask")

    def __init__(
        self,
        backend: Tokenizer,
        named_tokens: Mapping[str, Token | None],
        additional_special_tokens: Sequence[Token],
        extra_special_tokens: Mapping[str, Token],
        *,
        model_max_length: int | None,
        padding_side: str,
        truncation_side: str,
        split_special_tokens: bool,
    ) -> None:
        super().__init__(backend, named_tokens, additional_special_tokens, extra_special_tokens)
        check_limit("model_max_length", model_max_length)
        self.model_max_length: int = NO_LIMIT if model_max_length is None else model_max_length
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.split_special_tokens = split_special_tokens
        self.add_prefix_space = False
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def padding_side(self) -> str:
        """Where padding goes: ``"left"`` (right for generation) or ``"right"``."""
        return self._padding_side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        check_side("padding_side", side or "")
        self._padding_side = side

    @property
    def truncation_side(self) -> str:
        """Which end of a text that is too long is cut off: ``"right"`` or ``"left"``."""
        return self._truncation_side

    @truncation_side.setter
    def truncation_side(self, side: str) -> None:
        check_side("truncation_side", side or "")
        self._truncation_side = side

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of one text that fit the model beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens of two texts together that fit the model beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens are put around one text, or around the two of a pair."""
        return int(self._backend.num_special_tokens_to_add(pair))

    # ── ways to call ──────────────────────────────────────────────────────────────────────────────────────────────

    def __call__(
        self,
        text: Text | Sequence[Text] | None = None,
        text_pair: Text | Sequence[Text] | None = None,
        text_target: Text | Sequence[Text] | None = None,
        text_pair_target: Text | Sequence[Text] | None = None,
        add_special_tokens: bool = True,
        **options: Unpack[EncodeKeywords],
    ) -> BatchEncoding:
        """Encodes a text, or a list of texts, for the model.

        Args:
            text: a text or a list of them; with ``is_split_into_words`` a list of words or a list of such lists.
            text_pair: second text, or list of second texts, encoded into the same rows.
            text_target, text_pair_target: what the model shall answer, encoded the same way: its ids become
                ``labels``, or the whole result if there is no ``text``.
            add_special_tokens, options: see `EncodeOptions`.

        Returns:
            ``input_ids`` and ``attention_mask`` and what else ``options`` ask for: flat lists for one text, lists of
            lists for several, tensors of shape (texts, tokens) with ``return_tensors``.

        Raises:
            TokenizerError: something that is no text, no padding token, or a truncation that cannot be done.
            UnsupportedOptionError: an option, or a value of one, that does not exist.
        """
        asked = EncodeOptions.of(add_special_tokens, options)
        if text is None and text_target is None:
            raise TokenizerError("there is nothing to encode: give text, or text_target")
        if text is None:
            return self._encode(text_target, text_pair_target, asked)
        encoded = self._encode(text, text_pair, asked)
        if text_target is not None:
            encoded["labels"] = self._encode(text_target, text_pair_target, asked)["input_ids"]
        return encoded

    def encode(
        self,
        text: Text,
        text_pair: Text | None = None,
        add_special_tokens: bool = True,
        **options: Unpack[EncodeKeywords],
    ) -> Any:
        """The ids of one text or pair: a list, or a tensor of shape (1, tokens) with ``return_tensors``."""
        return self.encode_plus(text, text_pair, add_special_tokens, **options)["input_ids"]

    def encode_plus(
        self,
        text: Text,
        text_pair: Text | None = None,
        add_special_tokens: bool = True,
        **options: Unpack[EncodeKeywords],
    ) -> BatchEncoding:
        """Encodes one text or pair; `__call__` does the same and more."""
        return self._encode_one(text, text_pair, EncodeOptions.of(add_special_tokens, options))

    def batch_encode_plus(
        self,
        batch_text_or_text_pairs: Sequence[Text] | Sequence[tuple[Text, Text]],
        add_special_tokens: bool = True,
        **options: Unpack[EncodeKeywords],
    ) -> BatchEncoding:
        """Encodes a list of texts, or of (text, text) tuples; `__call__` does the same and more."""
        if not isinstance(batch_text_or_text_pairs, list | tuple):
            kind = type(batch_text_or_text_pairs).__name__
            raise TokenizerError(f"batch_encode_plus needs a list of texts or of pairs, not {kind}")
        return self._encode_batch(batch_text_or_text_pairs, EncodeOptions.of(add_special_tokens, options))

    def tokenize(
        self,
        text: Text,
        pair: Text | None = None,
        add_special_tokens: bool = False,
        **options: Unpack[EncodeKeywords],
    ) -> list[str]:
        """The tokens of a text in the spelling of the vocabulary: ``"Hello world"`` gives ``["Hello", "Ġworld"]``."""
        return self.encode_plus(text, pair, add_special_tokens, **options).tokens()

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pads what was encoded before, one row or several, as a data loader's ``collate_fn`` does.

        Args:
            encoded_inputs: one encoding, a list of encodings, or a dictionary of lists of rows. ``input_ids``,
                ``attention_mask``, ``token_type_ids`` and ``special_tokens_mask`` are padded, the rest is not.
            padding, max_length, pad_to_multiple_of, padding_side, return_tensors, verbose: see `EncodeOptions`.
            return_attention_mask: whether the result has an ``attention_mask`` (None: if the model uses it).
        """
        options = EncodeOptions(
            padding=padding,
            truncation=False,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            return_attention_mask=self._wants("attention_mask", return_attention_mask),
            return_tensors=return_tensors,
            verbose=verbose,
        )
        lengths = resolve_lengths(options, self.model_max_length)
        pad_id = 0 if lengths.padding == "do_not_pad" else self._pad_id()
        return pad_encoded(encoded_inputs, options, lengths, pad_id, self.pad_token_type_id, self.model_input_names[0])

    # ── the one way to do it ──────────────────────────────────────────────────────────────────────────────────────

    def _encode(self, text: Any, pair: Any, options: EncodeOptions) -> BatchEncoding:
        """One text or a batch, as the nesting of ``text`` says."""
        nested = isinstance(text, list | tuple)
        if options.is_split_into_words:
            nested = nested and len(text) > 0 and isinstance(text[0], list | tuple)
        if not nested:
            return self._encode_one(text, pair, options)
        if pair is None:
            return self._encode_batch(text, options)
        if isinstance(pair, str) or len(text) != len(pair):
            found = "a single text" if isinstance(pair, str) else f"{len(pair)} texts"
            raise TokenizerError(f"text_pair has {found} for the {len(text)} texts of text; give as many")
        return self._encode_batch(list(zip(text, pair, strict=True)), options)

    def _encode_one(self, text: Any, pair: Any, options: EncodeOptions) -> BatchEncoding:
        # An empty second text counts as none, as it does in transformers (a list of pairs keeps it).
        encoded = self._encode_batch([(text, pair)] if pair else [text], options)
        if options.return_tensors is None and not options.return_overflowing_tokens:
            encoded.data = {k: v[0] if v and isinstance(v[0], list) else v for k, v in encoded.data.items()}
        return encoded

    def _encode_batch(self, texts: Sequence[Any], options: EncodeOptions) -> BatchEncoding:
        if options.is_split_into_words and not self.add_prefix_space:
            raise TokenizerError(
                "is_split_into_words=True needs a tokenizer made with add_prefix_space=True, because words lose the "
                "space before them when a text is split"
            )
        _check_texts(texts, options.is_split_into_words)
        lengths = resolve_lengths(options, self.model_max_length)
        if lengths.truncation != "do_not_truncate":
            are_pairs = any(_is_pair(text, options.is_split_into_words) for text in texts)
            around = self.num_special_tokens_to_add(are_pairs) if options.add_special_tokens else 0
            check_room(lengths.max_length or 0, _repeated(options), around)
            if are_pairs and _repeated(options):
                self._check_pairs(texts, options, lengths, around)
        encodings = self._backend_encode(texts, options, lengths)
        return self._as_batch(encodings, options)

    def _check_pairs(self, texts: Sequence[Any], options: EncodeOptions, lengths: Lengths, around: int) -> None:
        """Refuses pairs that the library cannot cut with a stride; how long they are is known once they are encoded."""
        pairs = [text for text in texts if _is_pair(text, options.is_split_into_words)]
        whole = Lengths("do_not_pad", "do_not_truncate", None)
        for encoding in self._backend_encode(pairs, replace(options, add_special_tokens=False), whole):
            sizes = (encoding.sequence_ids.count(0), encoding.sequence_ids.count(1))
            check_pair_room(sizes, lengths, around, _repeated(options))

    def _backend_encode(self, texts: Sequence[Any], options: EncodeOptions, lengths: Lengths) -> list[Encoding]:
        split_special = (
            self.split_special_tokens if options.split_special_tokens is None else options.split_special_tokens
        )
        try:
            with self._backend_set(options, lengths, split_special):
                return list(
                    self._backend.encode_batch(
                        list(texts),
                        add_special_tokens=options.add_special_tokens,
                        is_pretokenized=options.is_split_into_words,
                    )
                )
        except QuarterdeckError:
            raise
        except BaseException as error:  # the library raises Exception itself, and worse if a text is short
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                _check_characters(texts)
                raise TokenizerError(f"the text cannot be encoded: {error}") from error
            raise

    @contextmanager
    def _backend_set(self, options: EncodeOptions, lengths: Lengths, split_special: bool) -> Iterator[None]:
        """Sets the backend's padding and truncation for one call, for this thread only, and clears them again.

        They are state of the backend, so another thread must neither see nor change them meanwhile; and a tokenizer
        saved afterwards must not carry the last call's lengths in its file.
        """
        with self._lock:
            bare = lengths.truncation != "do_not_truncate" and not options.add_special_tokens and _repeated(options)
            around = self._backend.post_processor if bare else None
            try:
                if bare:
                    self._backend.post_processor = None  # or the library leaves room for what it will not add
                if lengths.truncation != "do_not_truncate":
                    self._backend.enable_truncation(
                        lengths.max_length,
                        stride=_repeated(options),
                        strategy=lengths.truncation,
                        direction=self.truncation_side,
                    )
                if lengths.padding != "do_not_pad":
                    self._backend.enable_padding(**self._padding_arguments(options, lengths))
                if self._backend.encode_special_tokens != split_special:
                    self._backend.encode_special_tokens = split_special
                yield
            finally:
                if bare:
                    self._backend.post_processor = around
                if self._backend.truncation is not None:
                    self._backend.no_truncation()
                if self._backend.padding is not None:
                    self._backend.no_padding()

    def _padding_arguments(self, options: EncodeOptions, lengths: Lengths) -> dict[str, Any]:
        return {
            "direction": options.padding_side or self.padding_side,
            "pad_id": self._pad_id(),
            "pad_token": self.pad_token,
            "pad_type_id": self.pad_token_type_id,
            "length": lengths.max_length if lengths.padding == "max_length" else None,
            "pad_to_multiple_of": options.pad_to_multiple_of,
        }

    def _pad_id(self) -> int:
        index = self.pad_token_id
        if index is None:
            raise TokenizerError(
                "padding needs a padding token and this tokenizer has none in its vocabulary: set "
                "tokenizer.pad_token = tokenizer.eos_token, or tokenizer.add_special_tokens({'pad_token': '<PAD>'})"
            )
        return index

    def _wants(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _as_batch(self, encodings: list[Encoding], options: EncodeOptions) -> BatchEncoding:
        """The library's result as lists by name, overflowing rows after the row they come from."""
        rows, owners = [], []
        for number, encoding in enumerate(encodings):
            mine = [encoding, *(encoding.overflowing if options.return_overflowing_tokens else ())]
            rows += mine
            owners += [number] * len(mine)
        data: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
        self._say_if_too_long(data["input_ids"], options)
        if self._wants("token_type_ids", options.return_token_type_ids):
            data["token_type_ids"] = [row.type_ids for row in rows]
        if self._wants("attention_mask", options.return_attention_mask):
            data["attention_mask"] = [row.attention_mask for row in rows]
        if options.return_special_tokens_mask:
            data["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if options.return_offsets_mapping:
            data["offset_mapping"] = [row.offsets for row in rows]
        if options.return_length:
            data["length"] = [len(row) for row in rows]
        if options.return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = owners
        return BatchEncoding(data, rows, options.return_tensors)

    def _say_if_too_long(self, rows: list[list[int]], options: EncodeOptions) -> None:
        longest = max(map(len, rows), default=0)
        if options.verbose and options.max_length is None and longest > self.model_max_length > 0:
            _log.warning("a text has %d tokens and the model reads %d at most", longest, self.model_max_length)


def _repeated(options: EncodeOptions) -> int:
    """The tokens that rows of overflow repeat; without such rows there is nothing to repeat."""
    return options.stride if options.return_overflowing_tokens else 0


def _is_pair(text: Any, are_words: bool) -> bool:
    if are_words:
        return isinstance(text, list | tuple) and len(text) == 2 and all(isinstance(one, list | tuple) for one in text)
    return isinstance(text, tuple)


def _check_texts(texts: Sequence[Any], are_words: bool) -> None:
    """Refuses what the backend would refuse with a less helpful message.

    Raises:
        TokenizerError: naming the first thing that is no text.
    """
    for number, item in enumerate(texts):
        if isinstance(item, tuple) and not are_words and len(item) != 2:
            raise TokenizerError(f"text {number} is a tuple of {len(item)}; give a str, or a pair (str, str)")
        for text in item if isinstance(item, tuple) and not are_words else [item]:
            if are_words and isinstance(text, list | tuple):
                continue
            if are_words or not isinstance(text, str):
                expected = "a list of words" if are_words else "a str (or set is_split_into_words=True for words)"
                raise TokenizerError(f"text {number} is {str(text)[:60]!r}, a {type(text).__name__}; give {expected}")


def _check_characters(texts: Sequence[Any]) -> None:
    """Names the first text that has no UTF-8, which is what a half of a surrogate pair has not.

    Raises:
        TokenizerError: with the place of the character.
    """
    for number, item in enumerate(texts):
        for text in [item] if isinstance(item, str) else item:
            for word in [text] if isinstance(text, str) else text:
                try:
                    word.encode("utf-8")
                except UnicodeEncodeError as error:
                    raise TokenizerError(
                        f"text {number} has a lone surrogate, {word[error.start]!r}, at character {error.start}: it "
                        "is no character; decode the text's bytes as UTF-8, or with errors='replace'"
                    ) from error
