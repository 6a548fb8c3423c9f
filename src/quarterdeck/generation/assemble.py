"""From options to the list of processors that they ask for, in the order that transformers fixed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from quarterdeck.errors import InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.processors import (
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    HammingDiversityLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    ProcessorFunction,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from quarterdeck.generation.warpers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class MadeForCall:
    """Processors that need more than options: the model, or a function of the caller.

    Attributes:
        guidance: pulls away from another prompt; first of all.
        allowed: bans what the caller's ``prefix_allowed_tokens_fn`` does not allow.
        watermark: marks the text; after the warpers.
    """

    guidance: ProcessorFunction | None = None
    allowed: ProcessorFunction | None = None
    watermark: ProcessorFunction | None = None


def logits_processors(
    config: GenerationConfig,
    *,
    prompt_length: int,
    max_length: int,
    eos: Sequence[int],
    custom: Iterable[ProcessorFunction] = (),
    call: MadeForCall = MadeForCall(),
) -> LogitsProcessorList:
    """All processors for one call: the options' own, the caller's, the warpers (if sampling), normalisation.

    Args:
        config: the options.
        prompt_length: tokens of the prompt, T of the first step.
        max_length: tokens at the end, prompt included.
        eos: the end tokens; empty if there are none.
        custom: the caller's. One of the same class as one of the options' takes its place.
        call: those that need more than options.
    """
    made = [call.guidance] if call.guidance is not None else []
    made += _biases(config, eos) + _minima(config, prompt_length, eos)
    made += [call.allowed] if call.allowed is not None else []
    made += _ends(config, prompt_length, max_length, eos) + _bans(config, prompt_length)
    chain = LogitsProcessorList(merge(made, custom, "logits processor"))
    if config.do_sample:
        chain.extend(warpers(config, 1 if (config.num_beams or 1) == 1 else 1 + max(1, len(eos))))
    if call.watermark is not None:
        chain.append(call.watermark)
    if config.renormalize_logits:
        chain.append(LogitNormalization())
    return chain


def _biases(config: GenerationConfig, eos: Sequence[int]) -> list[ProcessorFunction]:
    made: list[ProcessorFunction] = []
    if config.sequence_bias:
        made.append(SequenceBiasLogitsProcessor(config.sequence_bias))
    if config.logit_bias:
        made.append(SequenceBiasLogitsProcessor({(token,): bias for token, bias in config.logit_bias.items()}))
    if config.diversity_penalty and (config.num_beams or 1) > 1:
        made.append(HammingDiversityLogitsProcessor(config.diversity_penalty))
    if config.repetition_penalty not in (None, 1.0):
        made.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        made.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        made.append(NoBadWordsLogitsProcessor(config.bad_words_ids, eos))
    return made


def _minima(config: GenerationConfig, prompt_length: int, eos: Sequence[int]) -> list[ProcessorFunction]:
    made: list[ProcessorFunction] = []
    if config.min_length and eos:
        made.append(MinLengthLogitsProcessor(config.min_length, eos))
    if config.min_new_tokens and eos:
        made.append(MinNewTokensLengthLogitsProcessor(prompt_length, config.min_new_tokens, eos))
    return made


def _ends(config: GenerationConfig, prompt_length: int, max_length: int, eos: Sequence[int]) -> list[ProcessorFunction]:
    made: list[ProcessorFunction] = []
    if config.forced_bos_token_id is not None:
        made.append(ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        made.append(ForcedEOSTokenLogitsProcessor(max_length, config.forced_eos_token_id))
    if config.remove_invalid_values:
        made.append(InfNanRemoveLogitsProcessor())
    if config.exponential_decay_length_penalty is not None:
        if not eos:
            raise InputError("exponential_decay_length_penalty raises the end token: set eos_token_id")
        made.append(ExponentialDecayLengthPenalty(config.exponential_decay_length_penalty, eos, prompt_length))
    return made


def _bans(config: GenerationConfig, prompt_length: int) -> list[ProcessorFunction]:
    made: list[ProcessorFunction] = []
    if config.suppress_tokens:
        made.append(SuppressTokensLogitsProcessor(config.suppress_tokens))
    if config.begin_suppress_tokens:
        forced = prompt_length <= 1 and config.forced_bos_token_id is not None
        begin = prompt_length + 1 if forced else prompt_length
        made.append(SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin))
    return made


def warpers(config: GenerationConfig, keep: int = 1) -> list[ProcessorFunction]:
    """What reshapes the distribution when sampling, in the order in which it is applied.

    Args:
        config: the options.
        keep: tokens that every filter leaves at least.
    """
    made: list[ProcessorFunction] = []
    if config.temperature not in (None, 1.0):
        made.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        made.append(TopKLogitsWarper(config.top_k, keep))
    if config.top_p is not None and config.top_p < 1.0:
        made.append(TopPLogitsWarper(config.top_p, keep))
    if config.min_p is not None:
        made.append(MinPLogitsWarper(config.min_p, keep))
    if config.typical_p is not None and config.typical_p < 1.0:
        made.append(TypicalLogitsWarper(config.typical_p, keep))
    if config.epsilon_cutoff:
        made.append(EpsilonLogitsWarper(config.epsilon_cutoff, keep))
    if config.eta_cutoff:
        made.append(EtaLogitsWarper(config.eta_cutoff, keep))
    return made


def merge(made: Iterable[Item], custom: Iterable[Item], what: str) -> list[Item]:
    """The options' own items and then the caller's; one of the caller's replaces the own one of its class."""
    pending = list(custom)
    merged: list[Item] = []
    for own in made:
        same = next((item for item in pending if type(item) is type(own)), None)
        if same is None:
            merged.append(own)
            continue
        logger.warning("the %s %s given to generate() replaces the one that the options ask for", what, same)
        if not any(item is same for item in merged):
            merged.append(same)
    merged.extend(item for item in pending if not any(item is other for other in merged))
    return merged
