"""Guessing what a model will say next, cheaply: from a smaller model's draft, or from the text itself.

A source of candidates proposes a few tokens; the loop in ``speculative`` has the large model judge all of them in
one run and tells the source how many were right. What is proposed decides how fast the answer comes and never what
it is, so a source may be as simple as it likes.

Shapes: one row of T tokens so far, ids [1, T] int64; K proposed tokens; V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from quarterdeck.cache.dynamic import DynamicCache
from quarterdeck.generation import sampling
from quarterdeck.generation.core import CausalModel, Forward, Plan, last_logits
from quarterdeck.generation.inputs import Prompt
from quarterdeck.generation.prefix import common_prefix
from quarterdeck.generation.processors import LogitsProcessorList

Schedule = Literal["constant", "heuristic", "heuristic_transient"]


@dataclass(frozen=True)
class Proposal:
    """Tokens that may come next.

    Attributes:
        tokens: K ids, none at all if there is nothing to propose.
        probabilities: [K, V] float32, the distribution that each token was drawn from; None if it was not drawn.
    """

    tokens: tuple[int, ...] = ()
    probabilities: Tensor | None = None


class Candidates(Protocol):
    """A source of proposals for one call of `generate`."""

    def propose(self, ids: Tensor, most: int) -> Proposal:
        """At most ``most`` tokens to follow ``ids`` [1, T]."""
        ...

    def learn(self, proposed: int, accepted: int) -> None:
        """How many of the tokens proposed last were right."""
        ...

    def close(self) -> None:
        """Generation is over."""
        ...


class PromptLookup:
    """What followed the last few tokens when they stood in the text before (Saxena, 2023).

    The longest n-gram at the end that has occurred counts, and its first occurrence. What follows is proposed up to
    an end token, after which nothing would be wanted.

    Args:
        count: tokens to propose.
        ngram: the most tokens to look for.
        ends: the end tokens; empty if there are none.
    """

    def __init__(self, count: int, ngram: int, ends: Iterable[int]) -> None:
        self._count = count
        self._ngram = ngram
        self._ends = frozenset(ends)

    def propose(self, ids: Tensor, most: int) -> Proposal:
        """The continuation of the earlier occurrence, if there is one."""
        text, count = ids[0], min(self._count, most)
        for size in range(min(self._ngram, len(text) - 1), 0, -1):
            windows = text[:-1].unfold(0, size, 1)  # [T - size, size], all but the end itself
            found = (windows == text[-size:]).all(dim=1).nonzero()
            if len(found):
                start = int(found[0]) + size
                return Proposal(self._up_to_end(text[start : start + count].tolist()))
        return Proposal()

    def _up_to_end(self, tokens: list[int]) -> tuple[int, ...]:
        stop = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        return tuple(tokens[:stop])

    def learn(self, proposed: int, accepted: int) -> None:
        """Looking up is the same whatever came of it."""

    def close(self) -> None:
        """There is nothing to give back."""


@dataclass
class DraftLength:
    """How many tokens a draft may have, and when it breaks off.

    Attributes:
        count: tokens at most.
        schedule: ``"constant"`` leaves it; the heuristics add 2 where the whole draft was right and take 1 away
            where it was not (``"heuristic"`` keeps what was learnt for the next call, ``"heuristic_transient"`` does
            not).
        threshold: a draft ends with a token whose probability is below this; 0 never ends it.
    """

    count: int
    schedule: Schedule = "constant"
    threshold: float = 0.0

    def learn(self, proposed: int, accepted: int) -> None:
        """Follow the success of a draft; one that had no token says nothing."""
        if self.schedule != "constant" and proposed:
            self.count = self.count + 2 if accepted == proposed else max(1, self.count - 1)


class Draft:
    """What another, faster model says (assisted decoding; Leviathan et al., 2023).

    The assistant reads the same prompt with a cache of its own and takes back what was not accepted. Where the plan
    samples, so does the draft, with the same temperature and filters.

    Args:
        model: the assistant, of the same vocabulary.
        prompt: the tokens; embeddings would be those of another model.
        plan: that of the model which judges; how to choose, and from which source of randomness.
        processors: those of the options; the caller's own functions see only what the judge chooses.
        ends: the end tokens.
        length: how far to go; changed by what is learnt.
        remember: is given the number of tokens that was learnt, at the end.
    """

    def __init__(
        self,
        model: CausalModel,
        prompt: Prompt,
        plan: Plan,
        processors: LogitsProcessorList,
        ends: Iterable[int],
        length: DraftLength,
        remember: Callable[[int], None] | None = None,
    ) -> None:
        parts = (prompt.ids, None, prompt.mask, prompt.positions)
        here = Prompt(*(None if part is None else part.to(model.device) for part in parts))  # type: ignore[arg-type]  # ids are never None
        self.length = length
        self._remember = remember
        self._forward = Forward(model, here, DynamicCache(), plan.max_length)
        self._context = model.config.context_length
        self._plan = replace(plan, processors=processors)
        self._ends = frozenset(ends)
        self._device = prompt.ids.device
        self._fed = 0  # tokens that the assistant has read
        self._known = prompt.ids.shape[1]  # length of the row when the last draft began
        self._drafted: list[int] = []

    def propose(self, ids: Tensor, most: int) -> Proposal:
        """The assistant's continuation; nothing where its context is shorter than the row."""
        most = min(most, self.length.count, self._context - ids.shape[1])
        if most < 1:
            return Proposal()
        logits = self._read(ids)
        length = ids.shape[1]
        line = torch.cat((ids, ids.new_empty(1, most)), dim=1)
        rows: list[Tensor] = []
        while True:
            scores = self._plan.processors(line[:, :length], logits)
            tokens, stuck = sampling.choose(scores, self._plan.sample, self._plan.generator)
            probabilities = scores.softmax(dim=-1)
            token, confidence, is_stuck = self._look(tokens, probabilities, stuck)
            if is_stuck:
                break
            line[:, length] = token
            length += 1
            self._drafted.append(token)
            rows.append(probabilities)
            if len(rows) == most or token in self._ends or confidence < self.length.threshold:
                break
            logits = self._run(line[:, length - 1 : length])
        return Proposal(tuple(self._drafted), torch.cat(rows) if rows and self._plan.sample else None)

    def _look(self, tokens: Tensor, probabilities: Tensor, stuck: Tensor) -> tuple[int, float, bool]:
        """Token, its probability and whether there was none to choose; the one time that the host waits."""
        chance = probabilities.gather(1, tokens[:, None])[:, 0].double()
        token, confidence, is_stuck = torch.cat((tokens.double(), chance, stuck.double())).tolist()
        return int(token), confidence, bool(is_stuck)

    def _read(self, ids: Tensor) -> Tensor:
        """Take back what was not accepted, read what is new; the logits [1, V] of the next token."""
        agreed = self._known + common_prefix(self._drafted, ids[0, self._known :].tolist())
        self._known, self._drafted = ids.shape[1], []
        if self._fed == 0:
            self._forward.prefill(self._plan.chunk, 1)
            self._fed = self._forward.prompt.length
        elif self._fed > agreed:
            self._forward.rewind(self._fed - agreed)
            self._fed = agreed
        return self._run(ids[:, self._fed :])

    def _run(self, tokens: Tensor) -> Tensor:
        self._fed += tokens.shape[1]
        return last_logits(self._forward.step(tokens.to(self._forward.model.device))).to(self._device)

    def learn(self, proposed: int, accepted: int) -> None:
        """Adjust the length of the next draft."""
        self.length.learn(proposed, accepted)

    def close(self) -> None:
        """Hand over what was learnt, where that outlives the call."""
        if self._remember is not None and self.length.schedule == "heuristic":
            self._remember(self.length.count)
