"""A generation as text: one row, token by token, with what it took."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from quarterdeck.cache import Cache, DynamicCache
from quarterdeck.chat.answers.answering import END_OF_TURN
from quarterdeck.chat.answers.response import FinishReason, TokenLogprob
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.grammars.matcher import Matcher
from quarterdeck.chat.messages import Usage
from quarterdeck.chat.prompts.parts import control_tokens
from quarterdeck.errors import ContextLengthError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.constrained import GrammarLogitsProcessor
from quarterdeck.generation.core import Step
from quarterdeck.generation.plan import end_tokens
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
    """What to generate, and how.

    Args:
        ids: the prompt.
        config: the options of generation, all of them: the model's own defaults have no part in it. ``max_new_tokens``
            is set.
        processors: what else is done to the scores, such as `penalties`.
        matcher: of the grammar that holds, at its beginning.
        generator: source of randomness, where tokens are drawn.
        seed: or a seed of a new one. With neither it is torch's own.
        logprobs: note the log-probability of every token and of this many of the likeliest; None notes nothing.
        hidden: ids that have no text; see `hidden_tokens`.
    """

    ids: list[int]
    config: GenerationConfig
    processors: tuple[ProcessorFunction, ...] = ()
    matcher: Matcher | None = None
    generator: torch.Generator | None = None
    seed: int | None = None
    logprobs: int | None = None
    hidden: Collection[int] = ()


class ModelText:
    """The text of a generation, to be iterated over once. The model runs as pieces are asked for.

    Args:
        model: what generates.
        tokenizer: its tokenizer.
        job: what to generate.
        prefix: where keys and values are borrowed and given back; None keeps nothing.

    Attributes:
        finish_reason: ``COMPLETE``, ``STOP_SEQUENCE`` (one of the config's ``stop_strings``) or ``MAX_TOKENS`` (out of
            tokens or of time) at the end, None before.
        logprobs: of the tokens so far, if asked for; control tokens have none.
    """

    def __init__(
        self, model: SteppingModel, tokenizer: CohereTokenizerFast, job: Job, prefix: PrefixCache | None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._job = job
        self._prefix = prefix
        self._ends = frozenset(end_tokens(job.config))
        self._new: list[int] = []
        self._cached = 0
        self._keep = prefix is not None and prefix.with_answers
        self._logprobs: list[TokenLogprob] | None = None if job.logprobs is None else []
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
        """Stop, if it has not ended, and free its memory, unless ``prefix`` keeps answers."""
        self._pieces.close()

    def _run(self) -> Generator[str]:
        job = self._job
        cache: Cache = DynamicCache() if self._prefix is None else self._prefix.borrow(job.ids)
        self._cached = cache.get_seq_length()
        decoder = self._tokenizer.incremental_decoder(skip_special_tokens=True, clean_up_tokenization_spaces=False)
        is_between_runs = False
        try:
            with closing(self._steps(cache)) as steps:
                for step in steps:
                    is_between_runs = True
                    token = int(step.tokens[0])
                    self._new.append(token)
                    if token in self._ends:
                        break
                    self._note(token, step.logits[0])
                    piece = "" if token in job.hidden else decoder.feed([token])
                    if piece:
                        yield piece
                    is_between_runs = False
            is_between_runs = self._keep = True
            self.finish_reason = self._reason()
            rest = decoder.close()
            if rest:
                yield rest
        finally:
            if self._keep and is_between_runs:  # in the middle of a run the layers may differ in length
                self._give_back(cache)

    def _give_back(self, cache: Cache) -> None:
        if self._prefix is not None:
            read = self._job.ids + self._new if self._prefix.with_answers else self._job.ids
            self._prefix.give_back(cache, read[: cache.get_seq_length()])

    def _reason(self) -> FinishReason:
        config = self._job.config
        if self._new and self._new[-1] in self._ends:
            return "COMPLETE"
        is_full = len(self._new) >= (config.max_new_tokens or 0)
        return "MAX_TOKENS" if is_full or not config.stop_strings else "STOP_SEQUENCE"

    def _steps(self, cache: Cache) -> Generator[Step]:
        job = self._job
        processors = list(job.processors)
        criteria: list[CriterionFunction] = []
        if job.matcher is not None:
            grammar = GrammarLogitsProcessor([job.matcher])
            processors.append(grammar)
            criteria.append(grammar.advance)
        is_drawn = job.config.do_sample
        yield from self._model.generate_steps(
            torch.tensor([job.ids], device=self._model.device),
            job.config,
            logits_processor=processors,
            stopping_criteria=criteria,
            generator=job.generator if is_drawn else None,
            seed=job.seed if is_drawn else None,
            tokenizer=self._tokenizer,
            use_model_defaults=False,
            past_key_values=cache,
        )

    def _note(self, token: int, logits: Tensor) -> None:
        """Take down the log-probability of a token under [V] logits."""
        if self._logprobs is None or token in self._job.hidden:
            return
        likely = logits.float().log_softmax(dim=-1)
        values, tokens = likely.topk(min(self._job.logprobs or 0, len(likely)))
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


def sampling_config(params: SamplingParams, *, limit: int, ends: Sequence[int], block: int) -> GenerationConfig:
    """The options of generation that say what ``params`` do, but for `penalties`, seed, stop strings and logprobs.

    Args:
        params: what a request asks for.
        limit: most new tokens.
        ends: ids that end the text.
        block: tokens of the prompt that a run of the model reads at once.
    """
    config = GenerationConfig(
        max_new_tokens=limit,
        do_sample=not params.is_greedy,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else None,
        prefill_chunk_size=block,
        logit_bias=dict(params.logit_bias) if params.logit_bias else None,
    )
    if not params.is_greedy:
        temperature = max(params.temperature or 0.0, LEAST_TEMPERATURE)
        config.update(temperature=temperature, top_p=params.top_p, top_k=params.top_k)
    return config


def penalties(params: SamplingParams, prompt_length: int) -> tuple[ProcessorFunction, ...]:
    """What ``params`` take from tokens that were generated already; nothing if they ask for nothing."""
    if not params.frequency_penalty and not params.presence_penalty:
        return ()
    return (OccurrencePenaltyLogitsProcessor(prompt_length, params.frequency_penalty, params.presence_penalty),)


def room_after(prompt: Sequence[int], context_length: int) -> int:
    """How many tokens fit behind a prompt.

    Raises:
        ContextLengthError: not one does.
    """
    room = context_length - len(prompt)
    if room < 1:
        raise ContextLengthError(
            f"too many tokens: the prompt has {len(prompt):,}, and the context of this model is {context_length:,}, "
            "answer included; shorten the messages or the documents"
        )
    return room


def answer_ends(config: GenerationConfig, tokenizer: CohereTokenizerFast, vocab_size: int) -> tuple[int, ...]:
    """The ids that end an answer: those that ``config`` names, and the end of a turn and of a text."""
    known = tokenizer.added_tokens_encoder
    ends = [*end_tokens(config), *(known[text] for text in END_OF_TURN if text in known)]
    return tuple(dict.fromkeys(end for end in ends if 0 <= end < vocab_size))


def hidden_tokens(tokenizer: CohereTokenizerFast) -> frozenset[int]:
    """The ids of control tokens, special or not."""
    known = tokenizer.added_tokens_encoder
    return frozenset(known[text] for text in control_tokens() if text in known)
