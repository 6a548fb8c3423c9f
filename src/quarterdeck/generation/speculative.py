"""Several tokens per run of the model: guesses are appended to the text, and one run judges them all.

The model says at every guessed position what it would have said there. Guesses are taken as long as they agree; at
the first that does not, the model's own token stands and the rest is forgotten. The answer is what decoding token by
token gives: to the token when the most likely one is taken, in distribution when tokens are drawn.

Positions are decided one after the other and only as far as they are needed, so that logits processors, stopping
criteria and streamers see the very calls that they would see without guesses, also those that keep a state.

Shapes: one row, T tokens so far, K guesses, V words of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quarterdeck.cache.base import Cache
from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation import sampling
from quarterdeck.generation.candidates import Candidates, Proposal
from quarterdeck.generation.core import CausalModel, Plan, Step, begin
from quarterdeck.generation.inputs import Prompt
from quarterdeck.outputs import CausalLMOutputWithPast
from quarterdeck.rope import depends_on_length, longrope_lengths, rope_type


@torch.no_grad()
def speculative_steps(
    model: CausalModel, prompt: Prompt, cache: Cache | None, plan: Plan, candidates: Candidates
) -> Iterator[Step]:
    """The steps of `generate_steps`, from fewer runs of the model.

    While a step is looked at, the cache may hold guesses behind it; when the loop ends or is closed, it holds all
    tokens but the last.

    Raises:
        InputError: there is no token to choose.
    """
    forward, ids = begin(model, prompt, cache, plan)
    row = _Row(plan, cache, ids, prompt.ids.shape[1])
    limit = exact_length(model.config)
    output = forward.prefill(plan.chunk, plan.logits_to_keep)
    proposal, place = Proposal(), 0
    try:
        while True:
            count = len(proposal.tokens)
            for place in range(count + 1):
                yield row.decide(output, proposal, place)
                if row.is_done:
                    return
                if place == count or row.last != proposal.tokens[place]:
                    break
            forward.rewind(count - place)
            if count:
                candidates.learn(count, place)
            proposal, place = Proposal(), 0
            proposal = candidates.propose(row.ids, row.room(limit))
            place = len(proposal.tokens)
            new = torch.tensor([[row.last, *proposal.tokens]], dtype=torch.int64, device=ids.device)
            output = forward.step(new, len(proposal.tokens) + 1)
    finally:
        forward.rewind(len(proposal.tokens) - place)
        candidates.close()


def exact_length(config: CohereConfig) -> float:
    """Up to which length a run over several positions gives the numbers of single ones.

    Rotary frequencies of the types dynamic and longrope depend on how far a run reaches: beyond the trained length
    nothing is guessed.
    """
    if not depends_on_length(config):
        return math.inf
    if rope_type(config) == "longrope":
        return longrope_lengths(config, config.rope_scaling or {})[0]
    return config.max_position_embeddings


@dataclass
class _Row:
    """The row that is being written.

    Attributes:
        plan: how tokens are chosen.
        cache: for the steps.
        buffer: [1, max_length] int64, the tokens from the left.
        length: T.
        last: the token chosen last.
        is_done: a criterion has finished the row.
    """

    plan: Plan
    cache: Cache | None
    buffer: Tensor
    length: int
    last: int = -1
    is_done: bool = False
    kept: tuple[Tensor, ...] = field(default=())

    @property
    def ids(self) -> Tensor:
        """[1, T], a view."""
        return self.buffer[:, : self.length]

    def room(self, limit: float) -> int:
        """How many guesses may follow.

        One token comes behind them, no run may reach beyond ``limit``, and what the cache cannot take back without a
        trace is not tried: guesses are run together with the token before them.
        """
        most = min(self.plan.max_length - self.length - 1, limit - self.length)
        revocable = None if self.cache is None else self.cache.revocable()
        return max(0, int(most if revocable is None else min(most, revocable - 1)))

    def decide(self, output: CausalLMOutputWithPast, proposal: Proposal, place: int) -> Step:
        """Choose the token that the guess number ``place`` is a guess of (or that follows all guesses)."""
        plan, later = self.plan, len(proposal.tokens) - place
        logits = _logits_before(output, later)
        scores = plan.processors(self.ids, logits.clone() if plan.processors else logits)
        if proposal.probabilities is not None and later:
            drawn_from = proposal.probabilities[place : place + 1]
            tokens, stuck = accept_or_redraw(scores, drawn_from, proposal.tokens[place], plan.generator)
        else:
            tokens, stuck = sampling.choose(scores, plan.sample, plan.generator)
        self.buffer[:, self.length] = tokens
        self.length += 1
        if plan.keep_scores:
            self.kept = (*self.kept, scores)
        finished = plan.criteria(self.ids, self.kept if plan.keep_scores else None)
        self.last, is_stuck, is_done = torch.cat((tokens, stuck, finished)).tolist()
        self.is_done = bool(is_done)
        if is_stuck:
            raise InputError(sampling.explain_stuck(scores, 0, self.length - 1))
        return Step(
            tokens,
            finished,
            self.ids,
            scores,
            logits,
            _attentions_before(output.attentions, later, len(proposal.tokens), self.cache),
            _states_before(output.hidden_states, later, len(proposal.tokens), self.cache),
            self.cache,
        )


def accept_or_redraw(
    scores: Tensor, drawn_from: Tensor, candidate: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A token with the distribution ``p = softmax(scores)``, most often the candidate, which was drawn from ``q``.

    It is taken with probability ``min(1, p / q)``; else one is drawn from ``max(0, p - q)``, which is never the
    candidate again (Leviathan et al., 2023, algorithm 1). Nothing here waits for the device.

    Args:
        scores: [1, V] float32.
        drawn_from: q, [1, V] float32.
        candidate: a token of q.
        generator: source of randomness; None is torch's global one.

    Returns:
        The token [1], and [1] bool, whether there was none to choose.
    """
    p = scores.softmax(dim=-1)
    stuck = p[:, 0].isnan()
    p = p.masked_fill(stuck[:, None], 1.0)
    chance = torch.rand(1, dtype=p.dtype, device=p.device, generator=generator)
    is_accepted = chance * drawn_from[:, candidate] < p[:, candidate]
    rest = (p - drawn_from).clamp_(min=0.0)
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, p)  # p = q but for rounding
    drawn = torch.multinomial(rest, num_samples=1, generator=generator)[:, 0]
    return torch.where(is_accepted, candidate, drawn), stuck


def _logits_before(output: CausalLMOutputWithPast, later: int) -> Tensor:
    """The logits [1, V] float32 of the position that ``later`` more follow, free of the memory of the others."""
    assert output.logits is not None
    logits = output.logits[:, -1 - later].float()
    return logits.clone() if output.logits.shape[1] > 1 else logits


def _attentions_before(
    attentions: tuple[Tensor, ...] | None, later: int, guesses: int, cache: Cache | None
) -> tuple[Tensor, ...] | None:
    """What a run up to that position alone would have given: per layer [1, H, new positions, keys].

    Without a cache these are also rows of padding, which look at all there is, and so at guesses: they mean nothing.
    """
    if attentions is None or guesses == 0:
        return attentions
    has_fixed_width = cache is not None and cache.key_length(0) == cache.key_length(1)
    cut = 0 if has_fixed_width else later
    return tuple(
        weights[:, :, _rows(weights.shape[2], later, cache), : weights.shape[3] - cut] for weights in attentions
    )


def _states_before(
    states: tuple[Tensor, ...] | None, later: int, guesses: int, cache: Cache | None
) -> tuple[Tensor, ...] | None:
    """Likewise, per layer [1, new positions, E]."""
    if states is None or guesses == 0:
        return states
    return tuple(state[:, _rows(state.shape[1], later, cache)] for state in states)


def _rows(count: int, later: int, cache: Cache | None) -> slice:
    """One position; without a cache all up to it."""
    end = count - later
    return slice(0 if cache is None else end - 1, end)
