"""What is put around texts: the beginning and end of sequence tokens, in rows made from texts and from ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from quarterdeck.errors import TokenizerError, UnsupportedOptionError
from quarterdeck.tokenization import backend as backends
from quarterdeck.tokenization.chat import ChatTemplating
from quarterdeck.tokenization.encoding import BatchEncoding
from quarterdeck.tokenization.options import EncodeKeywords, EncodeOptions, Lengths, resolve_lengths
from quarterdeck.tokenization.truncation import truncate_ids


class Surrounding(ChatTemplating):
    """A tokenizer that puts ``bos_token`` before and ``eos_token`` after each text, each if it is asked to."""

    _add_bos_token: bool
    _add_eos_token: bool

    @property
    def add_bos_token(self) -> bool:
        """Whether ``bos_token`` is put before each text. Setting it takes effect at once."""
        return self._add_bos_token

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._backend.post_processor = self._made_post_processor(value, self._add_eos_token)
        self._add_bos_token = value

    @property
    def add_eos_token(self) -> bool:
        """Whether ``eos_token`` is put after each text. Setting it takes effect at once."""
        return self._add_eos_token

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._backend.post_processor = self._made_post_processor(self._add_bos_token, value)
        self._add_eos_token = value

    def update_post_processor(self) -> None:
        """Makes encoding use the present ``bos_token`` and ``eos_token``; call it after setting one of these.

        Raises:
            TokenizerError: ``add_bos_token`` or ``add_eos_token`` is set and there is no such token.
        """
        self._backend.post_processor = self._made_post_processor(self._add_bos_token, self._add_eos_token)

    def _made_post_processor(self, add_bos: bool, add_eos: bool) -> Any:
        begin = backends.around_token("bos_token", self.bos_token, self.bos_token_id) if add_bos else None
        end = backends.around_token("eos_token", self.eos_token, self.eos_token_id) if add_eos else None
        return backends.post_processor(begin, end)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """The ids of one text, or of two, with those of the tokens that are put around them."""
        begin = [self.bos_token_id] if self.add_bos_token and self.bos_token_id is not None else []
        end = [self.eos_token_id] if self.add_eos_token and self.eos_token_id is not None else []
        texts = [token_ids_0] if token_ids_1 is None else [token_ids_0, token_ids_1]
        return [index for ids in texts for index in (*begin, *ids, *end)]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for the others.

        Args:
            token_ids_0: ids of a text; with ``already_has_special_tokens`` of a whole row.
            token_ids_1: ids of a second text.
            already_has_special_tokens: False: the mask of what `build_inputs_with_special_tokens` makes of the ids.
                True: the mask of the ids as they are, 1 for every token that has a name.
        """
        if not already_has_special_tokens:
            zeros = [[-1] * len(ids) for ids in (token_ids_0, token_ids_1) if ids is not None]
            return [int(index >= 0) for index in self.build_inputs_with_special_tokens(*zeros)]
        if token_ids_1 is not None:
            raise TokenizerError("already_has_special_tokens=True means one row: give token_ids_0 only")
        named = self._named_ids()
        return [int(index in named) for index in token_ids_0]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """0 for the first text and 1 for the second; one more for ``cls_token`` and each ``sep_token`` if they are set.

        ``bos_token`` and ``eos_token`` are not counted, as documented; encoding with ``return_token_type_ids=True``
        does count them.
        """
        begin, between = int(self.cls_token_id is not None), int(self.sep_token_id is not None)
        second = [] if token_ids_1 is None else [1] * (len(token_ids_1) + between)
        return [0] * (begin + len(token_ids_0) + between) + second

    # ── rows made from ids ────────────────────────────────────────────────────────────────────────────────────────

    def truncate_sequences(
        self,
        ids: Sequence[int],
        pair_ids: Sequence[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Takes tokens away from ids without special tokens: what is left of each text, and the overflow."""
        strategy = getattr(truncation_strategy, "value", truncation_strategy)
        return truncate_ids(ids, pair_ids, num_tokens_to_remove, strategy, stride, self.truncation_side)

    def prepare_for_model(
        self,
        ids: Sequence[int],
        pair_ids: Sequence[int] | None = None,
        add_special_tokens: bool = True,
        prepend_batch_axis: bool = False,
        **options: Unpack[EncodeKeywords],
    ) -> BatchEncoding:
        """Makes a row of ids that were encoded without special tokens: cuts them, puts tokens around, pads.

        Args:
            ids, pair_ids: of one text, or of two.
            add_special_tokens, options: see `EncodeOptions`; what needs the text is refused.
            prepend_batch_axis: whether tensors get a first dimension of 1.

        Returns:
            ``input_ids`` and what else is asked for; with ``return_overflowing_tokens`` also ``overflowing_tokens``
            and ``num_truncated_tokens``.
        """
        asked = EncodeOptions.of(add_special_tokens, options)
        if asked.return_offsets_mapping or asked.is_split_into_words:
            raise UnsupportedOptionError("prepare_for_model is given ids only: it knows neither offsets nor words")
        lengths = resolve_lengths(asked, self.model_max_length)
        around = self.num_special_tokens_to_add(pair_ids is not None) if add_special_tokens else 0
        excess = len(ids) + len(pair_ids or ()) + around - (lengths.max_length or 0)
        first, second, overflow = self.truncate_sequences(ids, pair_ids, excess, lengths.truncation, asked.stride)
        row = self._row_of_ids(first, second, asked)
        if asked.return_overflowing_tokens:
            row |= {"overflowing_tokens": overflow, "num_truncated_tokens": excess}
        row = self._padded(row, asked, lengths)
        if asked.return_length:
            row["length"] = len(row["input_ids"])
        return BatchEncoding(row, tensor_type=asked.return_tensors, prepend_batch_axis=prepend_batch_axis)

    def _row_of_ids(self, first: list[int], second: list[int] | None, options: EncodeOptions) -> dict[str, Any]:
        texts = [first] if second is None else [first, second]
        parts = [self.build_inputs_with_special_tokens(ids) if options.add_special_tokens else ids for ids in texts]
        row: dict[str, Any] = {"input_ids": [index for part in parts for index in part]}
        if self._wants("token_type_ids", options.return_token_type_ids):
            row["token_type_ids"] = [number for number, part in enumerate(parts) for _ in part]
        if self._wants("attention_mask", options.return_attention_mask):
            row["attention_mask"] = [1] * len(row["input_ids"])
        if options.return_special_tokens_mask:
            mask = self.get_special_tokens_mask(first, second)
            row["special_tokens_mask"] = mask if options.add_special_tokens else [0] * len(row["input_ids"])
        return row

    def _padded(self, row: dict[str, Any], options: EncodeOptions, lengths: Lengths) -> dict[str, Any]:
        if lengths.padding == "do_not_pad":
            return row
        padded = self.pad(
            row,
            padding=lengths.padding,
            max_length=lengths.max_length,
            pad_to_multiple_of=options.pad_to_multiple_of,
            padding_side=options.padding_side,
            return_attention_mask=options.return_attention_mask,
        )
        return dict(padded)
