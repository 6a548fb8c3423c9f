"""Beam search: several texts of every prompt are followed at once, and the likeliest are kept.

The loop is another one over `Forward`: prompts run once each, are copied for their beams, and from then on each step
takes the rows of the model's batch (mask, positions, keys and values) to where their texts have gone.

Shapes: B prompts, n beams of each, K candidates of each, T tokens so far (prompt included), V words of the vocabulary.
Row b * n + i of everything flat belongs to beam i of prompt b.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from quarterdeck.cache.base import Cache
from quarterdeck.errors import InputError
from quarterdeck.generation import sampling
from quarterdeck.generation.beam_groups import DiverseSearch
from quarterdeck.generation.beam_state import NEVER, BeamOptions, Beams, Hypotheses
from quarterdeck.generation.core import CausalModel, Plan, Step, begin, last_logits
from quarterdeck.generation.inputs import Prompt
from quarterdeck.outputs import CausalLMOutputWithPast


@dataclass(frozen=True, kw_only=True)
class BeamStep(Step):
    """One token of every beam. `tokens` are [B * n], `input_ids` [B * n, T] the running beams, `finished` [B].

    Attributes:
        parents: [B * n] int64, the row of the step before that each beam goes on from.
        best: [B, num_return_sequences] texts that have ended, from best to worst, so far; where there are not as many
            yet the score is -1e9. Of the last step it is the result.
    """

    parents: Tensor
    best: Hypotheses


class Search(Protocol):
    """A way to choose the beams of the next step."""

    def advance(self, logits: Tensor) -> Tensor:
        """Go one token further, given logits [B * n, V]; returns the scores after the processors, likewise."""
        ...

    def running(self) -> Hypotheses:
        """What to go on with, [B, n] texts."""
        ...

    def best(self) -> Hypotheses:
        """The result, [B, num_return_sequences] texts."""
        ...

    def trouble(self) -> Tensor:
        """Prompts [B] bool that cannot go on."""
        ...

    def finished(self) -> Tensor:
        """Prompts [B] bool whose result will not change."""
        ...

    def done(self) -> Tensor:
        """Whether the search is over, a bool on the device."""
        ...


class BeamSearch:
    """All beams of a prompt are one block, and any of its texts may be gone on with."""

    def __init__(self, ids: Tensor, plan: Plan, options: BeamOptions) -> None:
        self._plan = plan
        self._beams = Beams(ids, options)
        self._kept: tuple[Tensor, ...] | None = () if plan.keep_scores else None
        self._all_end = torch.tensor(False, device=ids.device)

    def advance(self, logits: Tensor) -> Tensor:
        """See `Search`."""
        beams, plan = self._beams, self._plan
        scores = plan.processors(beams.flat_ids, logits.log_softmax(dim=-1))
        if self._kept is not None:
            self._kept = (*self._kept, scores)
        candidates = beams.candidates(scores, plan.sample, plan.generator)
        ends = plan.criteria(candidates.ids.flatten(0, 1), self._kept).view(candidates.scores.shape)  # [B, K]
        lowered = replace(candidates, scores=candidates.scores + ends * NEVER)
        beams.running = lowered.take(lowered.scores.topk(beams.options.size).indices)
        beams.collect(candidates, ends)
        self._close()
        self._all_end = ends.all()
        return scores

    def _close(self) -> None:
        """A prompt is settled when its best beam could not become better than the worst of its finished texts."""
        beams = self._beams
        best = beams.reachable(beams.running.scores[:, 0], self._plan.max_length)
        worst = beams.finished.scores.amin(dim=1, keepdim=True)
        worst = torch.where(beams.is_text, worst, NEVER)  # [B, n]: any text will do where places are free
        beams.is_open = beams.is_open & (best[:, None] > worst).any(dim=1)

    def running(self) -> Hypotheses:
        """See `Search`."""
        return self._beams.running

    def best(self) -> Hypotheses:
        """See `Search`."""
        found, wanted = self._beams.finished, self._beams.options.returned
        return Hypotheses(found.ids[:, :wanted], found.parents[:, :wanted], found.scores[:, :wanted])

    def trouble(self) -> Tensor:
        """See `Search`."""
        return self._beams.stuck | self._beams.spoilt

    def finished(self) -> Tensor:
        """See `Search`."""
        is_full = self._beams.is_text.all(dim=1) & (self._beams.options.early_stopping is True)
        return ~self._beams.is_open | is_full | self._all_end

    def done(self) -> Tensor:
        """See `Search`."""
        beams = self._beams
        all_full = beams.is_text.all() & (beams.options.early_stopping is True)
        return ~beams.is_open.any() | all_full | self._all_end


@torch.no_grad()
def beam_steps(
    model: CausalModel, prompt: Prompt, cache: Cache | None, plan: Plan, options: BeamOptions
) -> Iterator[BeamStep]:
    """Tokens for all beams, one step at a time, until no text can get better.

    The host waits for the device once per step, as in `generate_steps`.

    Args:
        model: the model.
        prompt: B rows, not repeated for beams.
        cache: with B rows; they become B * n.
        plan: the call. Its criteria see candidates, [B * K, T] at once.
        options: what is asked of the beams.

    Raises:
        InputError: no beam of a prompt has a token to choose, and none of its texts has ended.
    """
    search: Search = (BeamSearch if options.groups == 1 else DiverseSearch)(prompt.ids, plan, options)
    forward, _ = begin(model, prompt, cache, plan)
    output = forward.prefill(plan.chunk, plan.logits_to_keep)
    everyone = torch.arange(prompt.rows * options.count, device=prompt.ids.device)
    forward.select(everyone // options.count)
    output = _copied(output, options.count)
    while True:
        logits = last_logits(output)
        scores = search.advance(logits)
        running = search.running()
        parents = running.parents[..., -1].flatten()
        trouble = search.trouble()
        flags = torch.stack((trouble.any(), search.done(), (parents != everyone).any()))
        is_stuck, done, is_moved = flags.tolist()
        if is_stuck:
            by_prompt = scores.view(prompt.rows, -1)
            raise InputError(sampling.explain_stuck(by_prompt, int(trouble.nonzero()[0]), running.ids.shape[2] - 1))
        if is_moved:
            forward.rearrange(parents)
        ids = running.ids.flatten(0, 1)
        yield BeamStep(
            ids[:, -1],
            search.finished(),
            ids,
            scores,
            logits,
            output.attentions,
            output.hidden_states,
            cache,
            parents=parents,
            best=search.best(),
        )
        if done:
            return
        output = forward.step(ids[:, -1:])


def _copied(output: CausalLMOutputWithPast, times: int) -> CausalLMOutputWithPast:
    """What the prompts' run gave, every row ``times`` times."""

    def copies(tensors: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
        return None if tensors is None else tuple(tensor.repeat_interleave(times, dim=0) for tensor in tensors)

    assert output.logits is not None
    return CausalLMOutputWithPast(
        logits=output.logits[:, -1:].repeat_interleave(times, dim=0),
        attentions=copies(output.attentions),
        hidden_states=copies(output.hidden_states),
    )
