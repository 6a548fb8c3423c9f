"""A generation as text: one row, token by token, with what it took."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from quarterdeck.cache import Cache
from quarterdeck.chat.grammar_matcher import Matcher
from quarterdeck.chat.messages import Usage
from quarterdeck.chat.response import FinishReason, TokenLogprob
from quarterdeck.chat.sampling import SamplingParams
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.constrained import GrammarLogitsProcessor
from quarterdeck.generation.core import Step
from quarterdeck.generation.prefix import PrefixCache
from quarterdeck.generation.processors import OccurrencePenaltyLogitsProcessor, ProcessorFunction
from quarterdeck.generation.stopping import CriterionFunction
from quarterdeck.tokenization.incremental import token_bytes
from quarterdeck.tokenizer import CohereTokenizerFast

LEAST_TEMPERATURE = 1e-5
"""Lower ones mean the same and would only overflow."""


class SteppingModel(Protocol):
    """A model that inherits `GenerationMixin`."""

    @property
    def device(self) -> torch.device:
        """Where its inputs must be."""
        ...

    def generate_steps(self, inputs: Tensor, generation_config: GenerationConfig, **options: Any) -> Iterator[Step]:
        """See `GenerationMixin.generate_steps`."""
        ...


@dataclass(frozen=True)
class Job:
    """What to generate.

    Args:
        ids: the prompt.
        params: how to choose tokens. Stop strings are for those who see the text.
        limit: most new tokens.
        ends: ids that end the text.
        hidden: ids that have no text: control tokens.
        matcher: of the grammar that holds, at its beginning.
    """

    ids: list[int]
    params: SamplingParams
    limit: int
    ends: Sequence[int]
    hidden: Collection[int]
    matcher: Matcher | None = None


class ModelText:
    """The text of a generation, to be iterated over once. The model runs as pieces are asked for.

    Attributes:
        finish_reason: ``COMPLETE`` or ``MAX_TOKENS`` at the end, None before.
        logprobs: of the tokens so far, if asked for; control tokens have none.
    """

    def __init__(
        self,
        model: SteppingModel,
        tokenizer: CohereTokenizerFast,
        job: Job,
        prefix: PrefixCache,
        block: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._job = job
        self._prefix = prefix
        self._block = block
        self._new: list[int] = []
        self._cached = 0
        self._keep = False
        self._logprobs: list[TokenLogprob] | None = None if job.params.logprobs is None else []
        self._pieces = self._run()
        self.finish_reason: FinishReason | None = None

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def usage(self) -> Usage:
        """The prompt's ids, every id that was generated, and those of the prompt that were not read again."""
        return Usage(len(self._job.ids), len(self._new), self._cached)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """Of the tokens so far."""
        return None if self._logprobs is None else tuple(self._logprobs)

    def stop(self) -> None:
        """No more is needed; what was read is kept for prompts that begin alike."""
        self._keep = True
        self._pieces.close()

    def close(self) -> None:
        """Stop, if it has not ended, and free its memory."""
        self._pieces.close()

    def _run(self) -> Generator[str]:
        job = self._job
        cache = self._prefix.borrow(job.ids)
        self._cached = cache.get_seq_length()
        decoder = self._tokenizer.incremental_decoder(skip_special_tokens=True, clean_up_tokenization_spaces=False)
        try:
            with closing(self._steps(cache)) as steps:
                for step in steps:
                    token = int(step.tokens[0])
                    self._new.append(token)
                    if token in job.ends:
                        break
                    self._note(token, step.logits[0])
                    piece = "" if token in job.hidden else decoder.feed([token])
                    if piece:
                        yield piece
            rest = decoder.close()
            self.finish_reason = "COMPLETE" if self._new[-1] in job.ends else "MAX_TOKENS"
            self._keep = True
            if rest:
                yield rest
        finally:
            if self._keep:
                self._prefix.give_back(cache, job.ids)

    def _steps(self, cache: Cache) -> Generator[Step]:
        job, params = self._job, self._job.params
        processors: list[ProcessorFunction] = []
        criteria: list[CriterionFunction] = []
        if params.frequency_penalty or params.presence_penalty:
            penalties = params.frequency_penalty, params.presence_penalty
            processors.append(OccurrencePenaltyLogitsProcessor(len(job.ids), *penalties))
        if job.matcher is not None:
            grammar = GrammarLogitsProcessor([job.matcher])
            processors.append(grammar)
            criteria.append(grammar.advance)
        seeded = params.seed is not None and not params.is_greedy
        yield from self._model.generate_steps(
            torch.tensor([job.ids], device=self._model.device),
            _config(job, self._block),
            logits_processor=processors,
            stopping_criteria=criteria,
            seed=params.seed if seeded else None,
            use_model_defaults=False,
            past_key_values=cache,
        )

    def _note(self, token: int, logits: Tensor) -> None:
        """Take down the log-probability of a token under [V] logits."""
        if self._logprobs is None or token in self._job.hidden:
            return
        likely = logits.float().log_softmax(dim=-1)
        values, tokens = likely.topk(min(self._job.params.logprobs or 0, len(likely)))
        top = zip(tokens.tolist(), values.tolist(), strict=True)
        self._logprobs.append(
            TokenLogprob(
                token,
                self._bytes(token),
                float(likely[token]),
                tuple(TokenLogprob(other, self._bytes(other), value) for other, value in top),
            )
        )

    def _bytes(self, token: int) -> bytes:
        text = None if token in self._job.hidden else self._tokenizer.convert_ids_to_tokens(token)
        return token_bytes(text) if isinstance(text, str) else b""


def _config(job: Job, block: int) -> GenerationConfig:
    """The options of generation that stand for a job; the model's own defaults have no part in it."""
    params = job.params
    config = GenerationConfig(
        max_new_tokens=job.limit,
        do_sample=not params.is_greedy,
        eos_token_id=list(job.ends) or None,
        pad_token_id=job.ends[0] if job.ends else None,
        prefill_chunk_size=block,
        logit_bias=dict(params.logit_bias) if params.logit_bias else None,
    )
    if not params.is_greedy:
        temperature = max(params.temperature or 0.0, LEAST_TEMPERATURE)
        config.update(temperature=temperature, top_p=params.top_p, top_k=params.top_k)
    return config
