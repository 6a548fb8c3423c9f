"""Texts that a beam search has in hand: those it goes on with, and the best of those that have ended.

The arithmetic is that of transformers, down to the numbers that stand for "never": results are compared with it.

Shapes: B prompts, M beams of each in a block, K candidates for them, P tokens of a prompt, T tokens so far, N = T - P
new ones, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from quarterdeck.errors import InputError

NEVER = -1.0e9
"""Score of what must not be chosen. It is a number, so that a beam that has it can still be ranked below others."""

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class BeamOptions:
    """What one call asks of its beams.

    Attributes:
        count: beams per prompt (``num_beams``).
        returned: texts per prompt that are wanted (``num_return_sequences``), at most ``count``.
        groups: blocks that the beams of a prompt are divided into; 1 is a plain beam search.
        length_penalty: the sum of a text's log-probabilities is divided by the power of its new tokens with this.
        early_stopping: True ends a prompt once ``count`` texts have ended. False goes on while a text of the present
            length could still be better than the worst of these, "never" while one of any length could.
        ends: the end tokens.
        fill: what stands behind the end of a text.
    """

    count: int
    returned: int = 1
    groups: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    ends: Sequence[int] = ()
    fill: int = -1

    @property
    def size(self) -> int:
        """M, beams of a prompt in one block."""
        return self.count // self.groups

    @property
    def breadth(self) -> int:
        """Candidates per beam: were all of the first to end, there would still be M to go on with."""
        return max(2, 1 + len(self.ends))


@dataclass(frozen=True)
class Hypotheses:
    """Some texts of every prompt.

    Attributes:
        ids: [B, M, T] int64, prompt included; behind a text's end stands the token that fills.
        parents: [B, M, N] int64, the row of the model's batch that each new token was chosen in; -1 behind the end.
        scores: [B, M] float32.
    """

    ids: Tensor
    parents: Tensor
    scores: Tensor

    def take(self, index: Tensor) -> Hypotheses:
        """Those of the given numbers [B, K]."""
        ids = self.ids.take_along_dim(index[..., None], dim=1)
        parents = self.parents.take_along_dim(index[..., None], dim=1)
        return Hypotheses(ids, parents, self.scores.gather(1, index))

    def followed_by(self, tokens: Tensor, parents: Tensor) -> Hypotheses:
        """All of them one token longer; tokens and parents are [B, M]."""
        ids = torch.cat((self.ids, tokens[..., None]), dim=2)
        return replace(self, ids=ids, parents=torch.cat((self.parents, parents[..., None]), dim=2))

    def filled(self, fill: int) -> Hypotheses:
        """All of them one token longer, behind their end."""
        shape = self.scores.shape
        return self.followed_by(self.ids.new_full(shape, fill), self.parents.new_full(shape, -1))

    def cropped(self) -> Hypotheses:
        """Without places that are behind the end of every text."""
        surplus = self.parents.shape[2] - int((self.parents >= 0).sum(dim=2).max())
        length = self.ids.shape[2] - surplus
        return replace(self, ids=self.ids[..., :length], parents=self.parents[..., : self.parents.shape[2] - surplus])


def joined(parts: Sequence[Hypotheses]) -> Hypotheses:
    """Those of several blocks as one, the prompts being the same."""
    return Hypotheses(
        torch.cat([part.ids for part in parts], dim=1),
        torch.cat([part.parents for part in parts], dim=1),
        torch.cat([part.scores for part in parts], dim=1),
    )


class Beams:
    """A block: M beams for each of B prompts.

    Args:
        ids: [B, P], the prompts.
        options: those of the call.
        first: number of the block's first beam among those of its prompt.

    Attributes:
        running: what the search goes on with, and the sums of their log-probabilities.
        finished: the best that have ended, from best to worst, and their scores with the length penalty.
        is_text: [B, M] bool, which of ``finished`` are texts; the others are places still free.
        is_open: [B] bool, prompts whose ``finished`` may still change.
        stuck: [B] bool, prompts that had no token at all to go on with in the last step, and no text either.
        spoilt: [B] bool, open prompts with scores that are no numbers.
    """

    def __init__(self, ids: Tensor, options: BeamOptions, first: int = 0) -> None:
        rows, size = ids.shape[0], options.size
        self.options = options
        self._prompt_length = ids.shape[1]
        self._rows = (torch.arange(rows, device=ids.device) * options.count + first)[:, None]  # [B, 1]
        copies = ids[:, None].expand(-1, size, -1)
        nothing = ids.new_empty(rows, size, 0)
        never = torch.full((rows, size), NEVER, device=ids.device)
        alone = never.clone()
        alone[:, 0] = 0.0
        self.running = Hypotheses(copies, nothing, alone)  # all are the same: only the first one counts
        self.finished = Hypotheses(copies, nothing, never)
        self.is_text = torch.zeros_like(never, dtype=torch.bool)
        self.is_open = torch.ones_like(self.is_text[:, 0])
        self.stuck = self.spoilt = ~self.is_open

    @property
    def flat_ids(self) -> Tensor:
        """[B * M, T], what runs."""
        return self.running.ids.flatten(0, 1)

    def candidates(self, scores: Tensor, sample: bool, generator: torch.Generator | None) -> Hypotheses:
        """The texts that are next, [B, K] of them, with their sums; sorted from best to worst unless drawn.

        Args:
            scores: [B * M, V], log-probabilities of the next token after the processors.
            sample: draw them, without putting any back, else take the best.
            generator: source of randomness; None is torch's global one.
        """
        rows, size = self.running.scores.shape
        sums = scores.view(rows, size, -1) + self.running.scores[..., None]
        words = sums.shape[2]
        sums = sums.flatten(1)  # [B, M * V]
        self._look_for_trouble(sums)
        count = min(self.options.breadth, words) * size
        if sample:
            probabilities = sums.softmax(dim=-1)
            probabilities = probabilities.masked_fill_(probabilities.isnan(), 1.0)  # or the draw would fail
            chosen = torch.multinomial(probabilities, count, generator=generator)
            values = sums.gather(1, chosen)
        else:
            values, chosen = sums.topk(count)
        beam = chosen // words
        longer = self.running.take(beam).followed_by(chosen % words, self._rows + beam)
        return replace(longer, scores=values)

    def _look_for_trouble(self, sums: Tensor) -> None:
        best = sums.amax(dim=1)  # NaN if there is one
        self.spoilt = self.is_open & best.isnan()
        self.stuck = self.is_open & (best == -torch.inf) & ~self.is_text.any(dim=1)

    def collect(self, candidates: Hypotheses, ended: Tensor) -> None:
        """Take those of the first M candidates that have ended, [B, K] bool, among the finished where they belong."""
        self.finished = self.finished.filled(self.options.fill)
        self.finished, self.is_text = self.merged(candidates, ended)

    def merged(self, candidates: Hypotheses, ended: Tensor) -> tuple[Hypotheses, Tensor]:
        """What ``finished`` and ``is_text`` become with those candidates."""
        options = self.options
        first = torch.arange(ended.shape[1], device=ended.device) < options.size
        ended = ended & first
        full = self.is_text.all(dim=1, keepdim=True) & (options.early_stopping is True)
        scores = candidates.scores / candidates.parents.shape[2] ** options.length_penalty
        scores = scores + full * NEVER
        scores = scores + ~self.is_open[:, None] * NEVER
        scores = scores + ~ended * NEVER
        everything = joined((self.finished, replace(candidates, scores=scores)))
        best = everything.scores.topk(options.size).indices
        return everything.take(best), torch.cat((self.is_text, ended), dim=1).gather(1, best)

    def reachable(self, best: Tensor, max_length: int) -> Tensor:
        """The best score that texts may still get whose sums are ``best`` [B] now; an estimate, see `BeamOptions`."""
        options = self.options
        length = self.running.parents.shape[2]
        if options.early_stopping == "never" and options.length_penalty > 0.0:
            length = max_length - self._prompt_length
        penalty: float = length**options.length_penalty
        return best / penalty


def beam_transitions(sequences: Tensor, scores: Tensor, beam_indices: Tensor) -> Tensor:
    """The score of every token of texts that a beam search found, [texts, tokens of the longest]; 0 behind the end.

    Args:
        sequences: [texts, T], prompt included or not.
        scores: [rows, steps, V].
        beam_indices: [texts, N], the row that each token was chosen in; -1 behind the end.

    Raises:
        InputError: they are not of one search.
    """
    is_text = beam_indices >= 0
    length = int(is_text.sum(dim=1).max()) if beam_indices.ndim == 2 else 0
    rows, steps, _ = scores.shape
    fits = sequences.shape[:1] == beam_indices.shape[:1] and 0 < length <= min(steps, sequences.shape[1])
    if not fits or int(beam_indices.max()) >= rows:
        raise InputError(
            f"the scores are of {rows} rows and {steps} steps, beam_indices is {list(beam_indices.shape)} and "
            f"sequences {list(sequences.shape)}: give all three from one output of generate()"
        )
    rows_chosen = beam_indices[:, :length].long().clamp(min=0)
    steps_chosen = torch.arange(length, device=scores.device)
    chosen: Tensor = scores[rows_chosen, steps_chosen, sequences[:, sequences.shape[1] - length :]]
    return chosen.masked_fill(~is_text[:, :length], 0.0)
