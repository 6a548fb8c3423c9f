"""What is done to the logits before a token is chosen: biases, penalties, bans and forced tokens.

A logits processor is any callable ``(input_ids, scores) -> scores``. The classes here are the ones that
`GenerationConfig` can ask for; each has the name and the arithmetic that it has in transformers. None of them
writes into the scores it is given.

Shapes: B rows, T tokens so far (prompt included), V words of the vocabulary.
    input_ids [B, T] int64     scores [B, V] float32
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.generation.callers import checked_scores

ProcessorFunction = Callable[[Tensor, Tensor], Tensor]


class LogitsProcessor:
    """Base of the processors here; a subclass defines ``__call__``. Users' own may be plain functions."""

    follows_beams: bool = True
    """False where rows must keep their places from call to call, as the beams of a search do not."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The new scores [B, V] of the token that follows ``input_ids``."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores)")


class LogitsProcessorList(list[ProcessorFunction]):
    """Processors that run one after another; itself a processor."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores after all processors."""
        for processor in self:
            scores = checked_scores(processor, scores, processor(input_ids, scores))
        return scores


class TokenSet:
    """Some token ids, ready to index scores with. Ids outside the vocabulary are never chosen: left out."""

    def __init__(self, ids: int | Iterable[int]) -> None:
        self.ids = [ids] if isinstance(ids, int) else sorted(set(ids))
        self._ready: tuple[torch.device, int, Tensor] | None = None

    def within(self, scores: Tensor) -> Tensor:
        """The ids below V as an int64 tensor on the device of ``scores``; made once."""
        device, size = scores.device, scores.shape[-1]
        if self._ready is None or self._ready[:2] != (device, size):
            inside = [token for token in self.ids if token < size]
            self._ready = (device, size, torch.tensor(inside, dtype=torch.int64, device=device))
        return self._ready[2]

    def ban(self, scores: Tensor) -> Tensor:
        """A copy of ``scores`` in which these tokens have -inf."""
        return scores.index_fill(-1, self.within(scores), -math.inf)

    def force(self, scores: Tensor) -> Tensor:
        """Scores of the same shape in which these tokens have 0 and all others -inf."""
        return torch.full_like(scores, -math.inf).index_fill_(-1, self.within(scores), 0.0)


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Adds a number to the score of a token whenever it would complete one of the given sequences.

    ``{(7,): -2.0, (3, 9): 5.0}`` lowers token 7 everywhere and raises 9 after a 3. As in transformers, a
    sequence of two or more tokens has an effect only when as many tokens as it is long are there already.
    """

    def __init__(self, sequence_bias: Mapping[tuple[int, ...], float] | Iterable[Sequence[object]]) -> None:
        pairs = sequence_bias.items() if isinstance(sequence_bias, Mapping) else sequence_bias
        self.sequence_bias: dict[tuple[int, ...], float] = {}
        for sequence, bias in pairs:
            self.sequence_bias[tuple(sequence)] = float(bias)  # type: ignore[arg-type]  # checked by validation
        self._single: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores plus the bias of every sequence that may be completed now."""
        if self._single is None:
            self._single = self._bias_of_single_tokens(scores)
        bias = self._single.expand_as(scores).clone()
        for sequence, number in self.sequence_bias.items():
            prefix, last = sequence[:-1], sequence[-1]
            if prefix and len(sequence) <= input_ids.shape[1]:
                wanted = torch.tensor(prefix, dtype=input_ids.dtype, device=input_ids.device)
                matches = (input_ids[:, -len(prefix) :] == wanted).all(dim=1)
                bias[:, last] += torch.where(matches, number, 0.0)
        return scores + bias

    def _bias_of_single_tokens(self, scores: Tensor) -> Tensor:
        size = scores.shape[-1]
        outside = sorted({token for sequence in self.sequence_bias for token in sequence if token >= size})
        if outside:
            raise InputError(f"biased or banned tokens {outside} are outside the vocabulary of {size}: remove them")
        single = torch.zeros(size, dtype=torch.float32, device=scores.device)
        for sequence, number in self.sequence_bias.items():
            if len(sequence) == 1:
                single[sequence[0]] = number
        return single


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """Never completes one of the given sequences. A sequence that is just an end token is left allowed."""

    def __init__(self, bad_words_ids: Iterable[Sequence[int]], eos_token_id: Iterable[int] = ()) -> None:
        ends = [[token] for token in eos_token_id]
        super().__init__({tuple(word): -math.inf for word in bad_words_ids if list(word) not in ends})


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Divides positive scores of tokens seen before by the penalty, multiplies negative ones (CTRL, 2019)."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores with the penalty on every token of ``input_ids``, padding included."""
        seen = scores.gather(1, input_ids)  # [B, T]
        punished = torch.where(seen < 0, seen * self.penalty, seen / self.penalty)
        return scores.scatter(1, input_ids, punished)


class OccurrencePenaltyLogitsProcessor(LogitsProcessor):
    """Lowers tokens that were generated: by ``frequency`` for each time, and by ``presence`` once.

    The arithmetic is that of OpenAI's API, where tokens of the prompt do not count.

    Args:
        prompt_length: tokens that were not generated.
        frequency: taken from a token's score for every time that it occurs.
        presence: taken from the score of a token that occurs.
    """

    def __init__(self, prompt_length: int, frequency: float, presence: float) -> None:
        self.prompt_length = prompt_length
        self.frequency = frequency
        self.presence = presence

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores less the penalties."""
        new = input_ids[:, self.prompt_length :]  # [B, T - prompt_length]
        counts = torch.zeros_like(scores).scatter_add_(1, new, torch.ones_like(new, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


class HammingDiversityLogitsProcessor(LogitsProcessor):
    """Lowers tokens that beams of other groups have just chosen, by ``diversity_penalty`` for each of them.

    Attributes:
        others: [B, beams] int64, what was chosen; the scores are those of as many beams for each of B prompts.
    """

    def __init__(self, diversity_penalty: float) -> None:
        self.diversity_penalty = diversity_penalty
        self.others: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores less the penalties."""
        if self.others is None or self.others.numel() == 0:
            return scores
        counts = scores.new_zeros(self.others.shape[0], scores.shape[1])
        words = scores.shape[1]  # padding may be outside
        counts.scatter_add_(1, self.others.clamp(max=words - 1), (self.others < words).to(scores.dtype))
        beams = scores.shape[0] // counts.shape[0]
        return scores - self.diversity_penalty * counts.repeat_interleave(beams, dim=0)


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Bans every token that would complete an n-gram that is already in the row."""

    def __init__(self, ngram_size: int) -> None:
        self.ngram_size = ngram_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores with -inf where an n-gram would come a second time."""
        size, length = self.ngram_size, input_ids.shape[1]
        if length < size:
            return scores
        ngrams = input_ids.unfold(1, size, 1)  # [B, T - size + 1, size]
        beginning = input_ids[:, None, length - size + 1 :]  # [B, 1, size - 1]
        row, place = (ngrams[..., :-1] == beginning).all(dim=-1).nonzero(as_tuple=True)
        scores = scores.clone()
        scores[row, ngrams[row, place, -1]] = -math.inf
        return scores


class MinLengthLogitsProcessor(LogitsProcessor):
    """Bans the end tokens until there are ``min_length`` tokens, prompt included."""

    def __init__(self, min_length: int, eos_token_id: int | Iterable[int]) -> None:
        self.min_length = min_length
        self.eos = TokenSet(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, without end tokens while the row is short."""
        return self.eos.ban(scores) if input_ids.shape[1] < self.min_length else scores


class MinNewTokensLengthLogitsProcessor(MinLengthLogitsProcessor):
    """Bans the end tokens until ``min_new_tokens`` tokens follow the prompt."""

    def __init__(self, prompt_length: int, min_new_tokens: int, eos_token_id: int | Iterable[int]) -> None:
        super().__init__(prompt_length + min_new_tokens, eos_token_id)


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Forces a token right after a prompt of one token."""

    def __init__(self, bos_token_id: int) -> None:
        self.bos = TokenSet(bos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The forced scores when there is one token so far."""
        return self.bos.force(scores) if input_ids.shape[1] == 1 else scores


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Forces an end token as the last one that ``max_length`` allows."""

    def __init__(self, max_length: int, eos_token_id: int | Iterable[int]) -> None:
        self.max_length = max_length
        self.eos = TokenSet(eos_token_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The forced scores when one token is left to make."""
        return self.eos.force(scores) if input_ids.shape[1] == self.max_length - 1 else scores


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replaces NaN by 0 and infinities by the largest numbers, so that sampling cannot fail on them."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Finite scores."""
        return torch.nan_to_num(scores, nan=0.0)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Raises the end tokens more and more after ``start`` new tokens: by ``|score| * (factor ** n - 1)``.

    One that is banned (at -inf) stays so.
    """

    def __init__(self, start_and_factor: Sequence[float], eos: int | Iterable[int], prompt_length: int) -> None:
        self.start = int(start_and_factor[0]) + prompt_length
        self.factor = float(start_and_factor[1])
        self.eos = TokenSet(eos)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores with the end tokens raised."""
        over = input_ids.shape[1] - self.start
        if over <= 0:
            return scores
        ends = self.eos.within(scores)
        present = scores[:, ends]
        raised = torch.where(present.isfinite(), present.abs() * (self.factor**over - 1), 0.0)
        return scores.index_add(1, ends, raised)


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Bans tokens everywhere."""

    def __init__(self, suppress_tokens: Iterable[int]) -> None:
        self.tokens = TokenSet(suppress_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores without these tokens."""
        return self.tokens.ban(scores)


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Bans all tokens but those that a function allows after each row so far.

    Args:
        prefix_allowed_tokens_fn: ``(row, ids [T]) -> token ids``; of several beams of one prompt all have its number.
        num_beams: beams per prompt.
    """

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, Tensor], Iterable[int]], num_beams: int = 1) -> None:
        self._allowed = prefix_allowed_tokens_fn
        self._num_beams = num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, with -inf for what is not allowed."""
        kept = torch.full_like(scores, -math.inf)
        for row, ids in enumerate(input_ids):
            tokens = torch.as_tensor(self._ids_after(row // self._num_beams, ids), device=scores.device)
            kept[row, tokens] = scores[row, tokens]
        return kept

    def _ids_after(self, number: int, ids: Tensor) -> Tensor | list[int]:
        allowed = self._allowed(number, ids)
        tokens = allowed if isinstance(allowed, Tensor) else list(allowed)
        if len(tokens) == 0:
            raise InputError(
                f"prefix_allowed_tokens_fn allows no token for row {number} after {len(ids)} tokens: let it return the "
                "end token where a text is to end"
            )
        return tokens


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Bans tokens at one place only: where ``begin_index`` tokens are there."""

    def __init__(self, begin_suppress_tokens: Iterable[int], begin_index: int) -> None:
        self.tokens = TokenSet(begin_suppress_tokens)
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores, without these tokens at that place."""
        return self.tokens.ban(scores) if input_ids.shape[1] == self.begin_index else scores
