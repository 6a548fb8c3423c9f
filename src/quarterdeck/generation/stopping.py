"""When a row is finished: length, time, end tokens, stop strings, and whatever a caller adds.

A stopping criterion is any callable ``(input_ids, scores) -> done`` where ``done`` is a bool for all rows or a
bool tensor [B]. ``scores`` is a tuple with the processed scores of every step if the call records them, else None.

Shapes: B rows, T tokens so far (prompt included): input_ids [B, T] int64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.generation.callers import checked_done

Scores = tuple[Tensor, ...] | None
CriterionFunction = Callable[[Tensor, Scores], bool | Tensor]


class Decoder(Protocol):
    """What stop strings need of a tokenizer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of the tokens."""
        ...


class StoppingCriteria:
    """Base of the criteria here; a subclass defines ``__call__``. Users' own may be plain functions."""

    def __call__(self, input_ids: Tensor, scores: Scores = None) -> bool | Tensor:
        """Whether each row is finished, now that it ends as ``input_ids`` does."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores)")


class StoppingCriteriaList(list[CriterionFunction]):
    """Several criteria; a row is finished when any of them says so."""

    def __call__(self, input_ids: Tensor, scores: Scores = None) -> Tensor:
        """Which rows are finished, [B] bool."""
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            done = done | checked_done(criterion, len(done), criterion(input_ids, scores))
        return done


class MaxLengthCriteria(StoppingCriteria):
    """All rows are finished at ``max_length`` tokens, prompt included."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: Scores = None) -> bool:
        """Whether the rows are that long."""
        return input_ids.shape[1] >= self.max_length


class MaxTimeCriteria(StoppingCriteria):
    """All rows are finished ``max_time`` seconds after this object was made, at the end of the running step."""

    def __init__(self, max_time: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_time = max_time
        self._clock = clock
        self._start = clock()

    def __call__(self, input_ids: Tensor, scores: Scores = None) -> bool:
        """Whether the time is over."""
        return self._clock() - self._start > self.max_time


class EosTokenCriteria(StoppingCriteria):
    """A row is finished when its last token is one of the end tokens."""

    def __init__(self, eos_token_id: int | Iterable[int]) -> None:
        self.eos_token_id = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
        self._tensor = torch.tensor(self.eos_token_id, dtype=torch.int64)

    def __call__(self, input_ids: Tensor, scores: Scores = None) -> Tensor:
        """Which rows end with an end token, [B] bool."""
        if self._tensor.device != input_ids.device:
            self._tensor = self._tensor.to(input_ids.device)
        return (input_ids[:, -1:] == self._tensor).any(dim=-1)


class StopStringCriteria(StoppingCriteria):
    r"""A row is finished when its last token completes one of the stop strings in the decoded text.

    The strings are compared with what the tokenizer decodes, special tokens included, so they match wherever the
    borders of tokens happen to lie. They may begin in the prompt, and the last token may go on after the string:
    with the stop string "stop", the tokens "sto" "pper" finish a row. A string that ended before the last token
    does not count, so a prompt may contain it.

    >>> StopStringCriteria(tokenizer, ["\n\n", "User:"])
    """

    def __init__(self, tokenizer: Decoder, stop_strings: str | Iterable[str]) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if not self.stop_strings or not all(self.stop_strings):
            raise InputError("stop_strings: give at least one string, and none that is empty")
        # A token is at least one byte. One more, since some tokenizers drop a space at the very beginning.
        self._tail = max(len(string.encode()) for string in self.stop_strings) + 1

    def __call__(self, input_ids: Tensor, scores: Scores = None) -> Tensor:
        """Which rows end with a token that completes a stop string, [B] bool."""
        done = [self._completes(ids) for ids in input_ids[:, -self._tail :].tolist()]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _completes(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        before = self.tokenizer.decode(ids[:-1], skip_special_tokens=False)
        settled = _common_prefix(before, text)
        return any(string in text[max(0, settled - len(string) + 1) :] for string in self.stop_strings)


def _common_prefix(before: str, text: str) -> int:
    """How many characters the last token left as they were: all but an unfinished character at the end."""
    length = min(len(before), len(text))
    while before[:length] != text[:length]:
        length -= 1
    return length
