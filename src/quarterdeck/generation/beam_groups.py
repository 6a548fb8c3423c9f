"""Diverse beam search (Vijayakumar et al., 2016): groups of beams, each kept from the tokens of those before it.

In every step the groups choose one after the other, each by its own beam search; a token that beams of earlier groups
have just chosen loses ``diversity_penalty`` for each of them.

Shapes as in ``beams``, and G groups of M = n / G beams.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quarterdeck.generation.beam_state import BeamOptions, Beams, Hypotheses, joined
from quarterdeck.generation.core import Plan
from quarterdeck.generation.processors import HammingDiversityLogitsProcessor


class DiverseSearch:
    """See `beams.Search`. A group's text ends with an end token only; other criteria end all, once all rows meet them.

    As in transformers the end token of a finished text is the first one of the list, whichever it was.
    """

    def __init__(self, ids: Tensor, plan: Plan, options: BeamOptions) -> None:
        self._plan = plan
        self._options = options
        self._groups = [Beams(ids, options, group * options.size) for group in range(options.groups)]
        self._diversity = [p for p in plan.processors if isinstance(p, HammingDiversityLogitsProcessor)]
        self._ends = torch.tensor(list(options.ends), dtype=torch.int64, device=ids.device)
        self._kept: tuple[Tensor, ...] | None = () if plan.keep_scores else None
        self._is_over = torch.tensor(False, device=ids.device)

    def advance(self, logits: Tensor) -> Tensor:
        """See `beams.Search`."""
        by_group = logits.view(-1, self._options.groups, self._options.size, logits.shape[-1])  # [B, G, M, V]
        chosen = logits.new_empty(by_group.shape[0], 0, dtype=torch.int64)
        scores = []
        for number, group in enumerate(self._groups):
            for processor in self._diversity:
                processor.others = chosen
            log_probabilities = by_group[:, number].flatten(0, 1).log_softmax(dim=-1)
            scores.append(self._plan.processors(group.flat_ids, log_probabilities))
            self._step(group, scores[-1])
            chosen = torch.cat((chosen, group.running.ids[..., -1]), dim=1)
        all_scores = (
            torch.stack(scores).view(by_group.transpose(0, 1).shape).transpose(0, 1).flatten(0, 2)
        )  # [B * n, V]
        if self._kept is not None:
            self._kept = (*self._kept, all_scores)
        self._is_over = self._plan.criteria(self.running().ids.flatten(0, 1), self._kept).all()
        return all_scores

    def _step(self, group: Beams, scores: Tensor) -> None:
        candidates = group.candidates(scores, False, None)  # [B, K], sorted
        tokens = candidates.ids[..., -1]
        ends = torch.isin(tokens, self._ends)
        if len(self._ends):
            tokens.masked_fill_(ends, self._options.ends[0])  # a view: this writes into the candidates
        on = ends.to(torch.int8).argsort(dim=1, stable=True)[:, : self._options.size]  # the first that have not ended
        running = candidates.take(on)
        was_open = group.is_open
        if self._plan.pad is not None:  # without it there are no end tokens, and nothing is ever closed
            running.ids[..., -1].masked_fill_(~was_open[:, None], self._plan.pad)
        group.running = replace(running, scores=running.scores.masked_fill(~was_open[:, None], 0.0))
        group.collect(candidates, ends)
        reachable = group.reachable(candidates.scores[:, 0], self._plan.max_length)
        is_settled = (group.finished.scores.amin(dim=1) >= reachable) | (self._options.early_stopping is True)
        group.is_open = was_open & ~(group.is_text.all(dim=1) & is_settled)

    def running(self) -> Hypotheses:
        """See `beams.Search`."""
        return joined([group.running for group in self._groups])

    def best(self) -> Hypotheses:
        """See `beams.Search`; at the end of the search the running beams of open groups are texts as well."""
        texts = joined([group.merged(group.running, self._cut_off(group))[0] for group in self._groups])
        order = texts.scores.argsort(dim=1, stable=True).flip(1)  # among equals the last, as in transformers
        return texts.take(order[:, : self._options.returned])

    def _cut_off(self, group: Beams) -> Tensor:
        """Which running beams [B, M] are texts now, since the search is over before their end."""
        return (group.is_open & self._is_over)[:, None].expand_as(group.is_text)

    def trouble(self) -> Tensor:
        """See `beams.Search`."""
        stuck = torch.stack([group.stuck for group in self._groups]).all(dim=0)
        return stuck | torch.stack([group.spoilt for group in self._groups]).any(dim=0)

    def finished(self) -> Tensor:
        """See `beams.Search`."""
        return ~torch.stack([group.is_open for group in self._groups]).any(dim=0) | self._is_over

    def done(self) -> Tensor:
        """See `beams.Search`."""
        return self.finished().all()
