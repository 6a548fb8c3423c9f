"""Keeps generated text within a grammar, with the masks computed while the model runs.

    decoding = GrammarLogitsProcessor.from_schema({"enum": ["yes", "no"]}, tokenizer)
    model.generate(ids, logits_processor=[decoding], stopping_criteria=[decoding.advance])

Reading a large vocabulary takes seconds, so who has many grammars keeps a compiler:

    compiler = GrammarCompiler(tokenizer)
    decoding = GrammarLogitsProcessor([compiler.compile(grammar)], pad_token_id=tokenizer.pad_token_id)

What may follow a token is known as soon as the token is chosen, and needed only after the model has run on it. So
`advance` stands where `generate` asks whether rows are finished, right after the choice: it hands the token to a
worker thread, which lets other threads run, and `__call__` picks up the mask when the scores are there. Without
`advance` the masks are the same, but the model waits for them.

Shapes: B rows, T tokens so far (prompt included), V words of the vocabulary.
    input_ids [B, T] int64     scores [B, V] float32
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quarterdeck.chat.grammars.grammar import json_grammar
from quarterdeck.chat.grammars.matcher import GrammarCompiler, Matcher
from quarterdeck.chat.grammars.schema_check import Schema
from quarterdeck.errors import InputError
from quarterdeck.generation.processors import LogitsProcessor
from quarterdeck.tokenizer import CohereTokenizerFast

_MOST_THREADS = 4


class GrammarLogitsProcessor(LogitsProcessor):
    """Gives -inf to every token that a row's grammar does not allow next; after its end only end tokens are left.

    For one call of `generate`; rows keep their places, so beams are refused.

    Args:
        matchers: one per row, at the beginning of their texts; None lets a row write what it likes.
        pad_token_id: what `generate` fills finished rows with. A row that gets it is not followed any further.
    """

    follows_beams = False

    def __init__(self, matchers: Iterable[Matcher | None], *, pad_token_id: int | None = None) -> None:
        self._rows = [Row(matcher, pad_token_id) for matcher in matchers]
        if not self._rows:
            raise InputError("a grammar needs a row to hold for: give one matcher, or None, per row")
        self._length: int | None = None
        self._threads = ThreadPoolExecutor(min(len(self._rows), _MOST_THREADS), thread_name_prefix="grammar")
        self._masks: Sequence[Future[NDArray[np.uint8] | None]] = self._start([[] for _ in self._rows])

    @classmethod
    def from_schema(
        cls,
        schema: Schema | None,
        tokenizer: CohereTokenizerFast,
        *,
        rows: int = 1,
        end_token_ids: Sequence[int] | None = None,
    ) -> GrammarLogitsProcessor:
        """Keeps every row to JSON that satisfies a schema.

        Args:
            schema: a JSON schema; None is any JSON object.
            tokenizer: of the model.
            rows: of the prompt, times ``num_return_sequences``.
            end_token_ids: which end a text; the tokenizer's own if not given.

        Raises:
            ChatError: the schema has a keyword that cannot be enforced, or nothing satisfies it.
            MissingPackageError: `llguidance` is not installed.
        """
        compiler, grammar = GrammarCompiler(tokenizer, end_token_ids=end_token_ids), json_grammar(schema)
        return cls([compiler.compile(grammar) for _ in range(rows)], pad_token_id=tokenizer.pad_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, with -inf for what the grammars do not allow.

        Raises:
            InputError: the rows are not as many as the matchers, or a token came that its grammar does not allow.
        """
        self.advance(input_ids)
        allowed = torch.zeros(scores.shape, dtype=torch.bool)
        for row, future in zip(allowed, self._masks, strict=True):
            mask = future.result()
            if mask is None:
                row.fill_(True)
            else:
                size = min(len(row), len(mask))
                row[:size] = torch.from_numpy(mask[:size]).view(torch.bool)
        return scores.masked_fill(~allowed.to(scores.device), -math.inf)

    def advance(self, input_ids: Tensor, scores: object = None) -> bool:
        """Takes tokens that were chosen and starts computing what may follow them; to be used as a stopping criterion.

        Returns:
            False: it finishes no row.

        Raises:
            InputError: the rows are not as many as the matchers.
        """
        if input_ids.shape[0] != len(self._rows):
            raise InputError(f"there are {len(self._rows)} grammars and {input_ids.shape[0]} rows: give one per row")
        length, self._length = self._length, input_ids.shape[1]
        if length is not None and length < input_ids.shape[1]:
            for mask in self._masks:
                mask.result()  # a row's tokens are taken in order
            self._masks = self._start(input_ids[:, length:].tolist())
        return False

    def _start(self, tokens: Sequence[list[int]]) -> Sequence[Future[NDArray[np.uint8] | None]]:
        return [self._threads.submit(row.advance, new) for row, new in zip(self._rows, tokens, strict=True)]


class Row:
    """One row: its matcher, and whether `generate` has ended it for other reasons."""

    def __init__(self, matcher: Matcher | None, pad_token_id: int | None) -> None:
        self._matcher = matcher
        self._pad = pad_token_id

    def advance(self, tokens: Iterable[int]) -> NDArray[np.uint8] | None:
        """Takes tokens and gives the mask of the next one: V numbers, 1 where allowed; None allows all."""
        if self._matcher is None:
            return None
        for token in tokens:
            self._take(self._matcher, token)
        return np.unpackbits(np.frombuffer(self._matcher.mask(), dtype=np.uint8), bitorder="little")

    def _take(self, matcher: Matcher, token: int) -> None:
        is_end = token in matcher.end_token_ids or token == self._pad
        if is_end and not matcher.is_complete:
            matcher.stop()  # ended by a stop string or by its length, and padded
        else:
            matcher.consume(token)
