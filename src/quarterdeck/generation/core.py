"""The loop: run the model on the prompt, choose a token, run it on that token, and so on.

`Forward` feeds a model and keeps its cache, padding mask and positions in step; `generate_steps` is the loop, a
generator of `Step` values. `GenerationMixin.generate`, streamers and callers' own code are consumers of it, and other
ways to decode (beams: several rows reordered; speculation: several tokens per call) are other loops over `Forward`.

Shapes: B rows, T tokens so far, P positions of the prompt, N new positions, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quarterdeck.cache.base import Cache
from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation import sampling
from quarterdeck.generation.inputs import Prompt
from quarterdeck.generation.processors import LogitsProcessorList
from quarterdeck.generation.stopping import StoppingCriteriaList
from quarterdeck.outputs import CausalLMOutputWithPast


class CausalModel(Protocol):
    """What generation needs of a model."""

    @property
    def config(self) -> CohereConfig:
        """Its configuration."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its inputs must be."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of its floating-point parameters."""
        ...

    def get_input_embeddings(self) -> nn.Module:
        """The module that maps ids to embeddings."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass; see `CohereForCausalLM.forward`."""
        ...


class StepProgram(Protocol):
    """Runs one token per row in place of the model; see `CompiledStep`."""

    def __call__(
        self,
        tokens: Tensor,
        cache: Cache,
        start: int,
        positions: Tensor | None,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> CausalLMOutputWithPast:
        """Tokens [B, 1] at the place ``start`` of the cache; the mask is that of all positions, known and to come."""
        ...


@dataclass(frozen=True)
class Plan:
    """One call of `generate`, decided: nothing in here depends on what the model will say.

    Attributes:
        processors: what is done to the logits, in order.
        criteria: when a row is finished; one of them must end the loop.
        max_length: tokens that a row can reach, prompt included; how much room is made.
        pad: what finished rows are filled with; None lets them go on.
        sample: draw from the distribution, else take its maximum.
        generator: source of randomness; None is torch's global one.
        chunk: positions of the prompt per run of the model; None is all at once.
        logits_to_keep: as in the model's ``forward``, for the run that ends the prompt.
        attentions, hidden_states: whether steps carry them.
        keep_scores: whether the criteria get the scores of all steps.
        program: what runs the steps of one token in place of the model; None is the model itself.
    """

    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    max_length: int
    pad: int | None = None
    sample: bool = False
    generator: torch.Generator | None = None
    chunk: int | None = None
    logits_to_keep: int = 1
    attentions: bool = False
    hidden_states: bool = False
    keep_scores: bool = False
    program: StepProgram | None = None


@dataclass(frozen=True)
class Step:
    """One token of every row, and how it was chosen.

    Attributes:
        tokens: [B] int64, the new tokens; padding in rows that were finished before.
        finished: [B] bool, rows that need no more tokens.
        input_ids: [B, T] int64, all tokens including the new ones; a view, do not write into it.
        scores: [B, V] float32, after the processors.
        logits: [B, V] float32, from the model.
        attentions, hidden_states: of the run that gave the logits, if asked for.
        past_key_values: the cache, if one is used; it goes on growing.
    """

    tokens: Tensor
    finished: Tensor
    input_ids: Tensor
    scores: Tensor
    logits: Tensor
    attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: Cache | None = None


@dataclass
class Forward:
    """A model on its way through B rows: knows what was fed, and gives each run its mask and positions.

    Attributes:
        model: the model.
        prompt: what the rows begin with.
        cache: keys and values of what was fed; None feeds everything again at each run.
        room: positions that a row may reach.
        options: further arguments of every run.
        program: runs the steps of one token in place of the model, where there is one.
    """

    model: CausalModel
    prompt: Prompt
    cache: Cache | None
    room: int
    options: dict[str, Any] = field(default_factory=dict)
    program: StepProgram | None = None

    def __post_init__(self) -> None:
        self._seen = 0
        self._content = self.prompt.content
        self._positions = self.prompt.positions
        self._mask: Tensor | None = None
        self._known: dict[str, bool] = {}
        if self.prompt.mask is not None:
            self._known["has_padding"] = not bool(self.prompt.mask.all())  # looked at once, not at every run
            self._mask = self.prompt.mask.new_ones(self.prompt.rows, self.room)
            self._mask[:, : self.prompt.length] = self.prompt.mask
        self._next = self._first_position_after_prompt()

    def _first_position_after_prompt(self) -> Tensor | None:
        """[B, 1], None if positions simply count up."""
        if self.prompt.positions is None:
            return None
        if self.prompt.mask is None:
            return self.prompt.positions[:, -1:] + 1
        return torch.where(
            self.prompt.mask[:, -1:] == 0,
            self.prompt.mask.sum(dim=-1, keepdim=True),  # a row that ends in padding
            self.prompt.positions[:, -1:] + 1,
        )

    def prefill(self, chunk: int | None, logits_to_keep: int) -> CausalLMOutputWithPast:
        """Run the prompt, but for what the cache holds already; the logits are those of its end.

        Args:
            chunk: positions per run, which needs a cache; only the last run computes logits. None is one run.
            logits_to_keep: as in the model's ``forward``.
        """
        start = self.cache.get_seq_length() if self.cache is not None else 0
        end = self.prompt.length
        nothing = torch.empty(0, dtype=torch.int64, device=self._content.device)
        while chunk is not None and end - start > chunk:
            self._run(start, start + chunk, nothing)
            start += chunk
        return self._run(start, end, logits_to_keep)

    def step(self, tokens: Tensor, logits_to_keep: int = 1) -> CausalLMOutputWithPast:
        """Run N more tokens [B, N]; the logits are those after the last ``logits_to_keep`` of them."""
        start, count = self._seen, tokens.shape[1]
        new = self._new_positions(count)
        if self.cache is None:
            embed = self.prompt.embeds is not None
            content = self.model.get_input_embeddings()(tokens) if embed else tokens
            self._content = torch.cat((self._content, content), dim=1)
            self._positions = None if new is None or self._positions is None else torch.cat((self._positions, new), 1)
            return self._run(0, start + count, logits_to_keep)
        if self.program is not None and count == 1:
            self._seen = start + 1
            return self.program(tokens, self.cache, start, new, self._mask, self._known | self.options)
        return self._call(tokens, False, new, start + count, logits_to_keep)

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` positions of all rows, which `step` has run."""
        if count == 0:
            return
        self._seen -= count
        self._next = None if self._next is None else self._next - count
        if self.cache is not None:
            self.cache.crop(self._seen)
            return
        self._content = self._content[:, : self._seen]
        self._positions = None if self._positions is None else self._positions[:, : self._seen]

    def select(self, rows: Tensor) -> None:
        """Go on with the given rows in the given order, [rows] int64; a row may be there several times."""
        self._content = self._content[rows]
        self._positions = None if self._positions is None else self._positions[rows]
        self._next = None if self._next is None else self._next[rows]
        self._mask = None if self._mask is None else self._mask[rows]
        if self.cache is not None:
            self.cache.select(rows)

    def rearrange(self, rows: Tensor) -> None:
        """`select` of as many rows, each of the same prompt as the one it takes the place of."""
        if self.cache is None:
            self._content = self._content[rows]
        else:
            self.cache.rearrange(rows, self.prompt.length)

    def _new_positions(self, count: int) -> Tensor | None:
        if self._next is None:
            return None
        new = self._next if count == 1 else self._next + torch.arange(count, device=self._next.device)
        self._next = self._next + count
        return new

    def _run(self, start: int, end: int, logits_to_keep: int | Tensor) -> CausalLMOutputWithPast:
        """Run positions ``start`` to ``end`` of the content."""
        positions = None if self._positions is None else self._positions[:, start:end]
        is_embeds = self.prompt.embeds is not None
        return self._call(self._content[:, start:end], is_embeds, positions, end, logits_to_keep)

    def _call(
        self, content: Tensor, is_embeds: bool, positions: Tensor | None, end: int, logits_to_keep: int | Tensor
    ) -> CausalLMOutputWithPast:
        self._seen = end
        output: CausalLMOutputWithPast = self.model(
            input_ids=None if is_embeds else content,
            inputs_embeds=content if is_embeds else None,
            attention_mask=None if self._mask is None else self._mask[:, :end],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            logits_to_keep=logits_to_keep,
            return_dict=True,
            **self._known,
            **self.options,
        )
        return output


def begin(model: CausalModel, prompt: Prompt, cache: Cache | None, plan: Plan) -> tuple[Forward, Tensor]:
    """What a loop needs: the way to run the model, and [B, max_length] ids, filled from the left so far as known."""
    length = prompt.ids.shape[1]
    ids = prompt.ids.new_empty(prompt.rows, plan.max_length)
    ids[:, :length] = prompt.ids
    options = {"output_attentions": True} if plan.attentions else {}
    if plan.hidden_states:
        options["output_hidden_states"] = True
    return Forward(model, prompt, cache, prompt.length - length + plan.max_length, options, plan.program), ids


@torch.no_grad()
def generate_steps(model: CausalModel, prompt: Prompt, cache: Cache | None, plan: Plan) -> Iterator[Step]:
    """Tokens for all rows, one step at a time, until every row is finished.

    Per step the host waits for the device once, to learn whether all rows are finished; criteria, processors and
    rotary frequencies that depend on the length may add to that.

    Raises:
        InputError: a row has no token to choose.
    """
    forward, ids = begin(model, prompt, cache, plan)
    length = prompt.ids.shape[1]
    finished = torch.zeros(prompt.rows, dtype=torch.bool, device=ids.device)
    kept: tuple[Tensor, ...] | None = () if plan.keep_scores else None

    output = forward.prefill(plan.chunk, plan.logits_to_keep)
    while True:
        logits = last_logits(output)
        scores = plan.processors(ids[:, :length], logits.clone() if plan.processors else logits)
        tokens, stuck = sampling.choose(scores, plan.sample, plan.generator)
        stuck &= ~finished
        if plan.pad is not None:
            tokens = tokens.masked_fill(finished, plan.pad)
        ids[:, length] = tokens
        length += 1
        if kept is not None:
            kept = (*kept, scores)
        finished = finished | plan.criteria(ids[:, :length], kept)
        is_stuck, done = torch.stack((stuck.any(), finished.all())).tolist()
        if is_stuck:
            raise InputError(sampling.explain_stuck(scores, int(stuck.nonzero()[0]), length - 1))
        yield Step(
            tokens,
            finished,
            ids[:, :length],
            scores,
            logits,
            output.attentions,
            output.hidden_states,
            cache,
        )
        if done:
            return
        output = forward.step(tokens[:, None])


def last_logits(output: CausalLMOutputWithPast) -> Tensor:
    """The logits of the last position, [B, V] float32, free of the memory of any others."""
    assert output.logits is not None
    logits = output.logits[:, -1].float()
    return logits.clone() if output.logits.shape[1] > 1 else logits
