"""From options and a prompt to a `Plan`: defaults, lengths, special tokens."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable
from typing import Any

import torch

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.assemble import MadeForCall, logits_processors, merge
from quarterdeck.generation.beam_state import BeamOptions
from quarterdeck.generation.config import GenerationConfig, describe_unknown
from quarterdeck.generation.core import Plan
from quarterdeck.generation.inputs import Prompt
from quarterdeck.generation.options import OPTIONS
from quarterdeck.generation.processors import ProcessorFunction
from quarterdeck.generation.stopping import (
    CriterionFunction,
    Decoder,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

logger = logging.getLogger(__name__)

FIRST_MERGING_VERSION = (4, 50)
"""Release of transformers from which a checkpoint's file gives defaults to a caller's own GenerationConfig."""


def resolve_options(
    defaults: GenerationConfig,
    given: GenerationConfig | None,
    use_model_defaults: bool | None,
    options: dict[str, Any],
) -> GenerationConfig:
    """The options of one call: those given by name, then the caller's config, then the model's, then the global ones.

    Args:
        defaults: the model's.
        given: the caller's, or None. Where it has a global default, the model's value counts.
        use_model_defaults: False takes only the special tokens of the model into the caller's config. None does
            so for checkpoints whose file was written by transformers below 4.50, as transformers does.
        options: those given by name.

    Raises:
        UnsupportedOptionError: an unknown option, or one that this version does not have.
        InputError: a value that cannot be right.
    """
    if given is None:
        config = copy.deepcopy(defaults)
    elif _merges(defaults) if use_model_defaults is None else use_model_defaults:
        config = given.with_defaults_of(defaults)
    else:
        config = copy.deepcopy(given)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(defaults, name))
    unknown = config.update(**options)
    if unknown:
        raise UnsupportedOptionError(describe_unknown(next(iter(unknown))))
    config.validate()
    config.check_supported()
    for name, reason in config.without_effect().items():
        logger.warning("%s=%r has no effect: %s", name, getattr(config, name), reason)
    return config


def _merges(defaults: GenerationConfig) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", str(defaults.extra.get("transformers_version", "")))
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= FIRST_MERGING_VERSION


def end_tokens(config: GenerationConfig) -> list[int]:
    """The end tokens as a list, empty if there are none."""
    eos = config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def padding_token(config: GenerationConfig) -> int | None:
    """What finished rows are filled with: the padding token, else the first end token."""
    if config.pad_token_id is not None:
        return config.pad_token_id
    ends = end_tokens(config)
    if not ends:
        return None
    logger.warning("there is no pad_token_id: finished rows are filled with the end token %d", ends[0])
    return ends[0]


def settle_lengths(config: GenerationConfig, prompt: Prompt, context: int, explicit_max_length: bool) -> int:
    """Decide how long rows may become; returns the limit in tokens, prompt included.

    Writes the lower limit into ``config.min_length`` likewise. ``max_new_tokens`` counts new tokens and wins over
    ``max_length``, which counts the prompt's positions as well. With neither, 20 new tokens are made, or what
    is left of the context.

    Args:
        config: the options.
        prompt: T tokens in P positions; for embeddings alone T is 0 and the limit counts new tokens only.
        context: positions that the model can hold.
        explicit_max_length: whether ``max_length`` was given by name, so that even 20 means 20 in all.

    Raises:
        InputError: no room for a new token, or more asked for than the context holds.
    """
    tokens, positions = prompt.ids.shape[1], prompt.length
    if positions >= context:
        raise InputError(
            f"the prompt has {positions} tokens and the model's context is {context}, which leaves no room for an "
            f"answer: shorten the prompt to at most {context - 1}"
        )
    default = OPTIONS["max_length"].default
    if config.max_new_tokens is not None:
        new = config.max_new_tokens
        if explicit_max_length:
            logger.warning("max_new_tokens=%d wins over max_length=%s", new, config.max_length)
    elif config.max_length is None or (config.max_length == default and not explicit_max_length):
        new = min(default, context - positions)
    else:
        new = config.max_length - positions
        if new < 1:
            raise InputError(
                f"the prompt has {positions} tokens and max_length={config.max_length} counts them, which leaves "
                "no room: raise max_length, or better set max_new_tokens"
            )
    if positions + new > context:
        raise InputError(
            f"the prompt has {positions} tokens, {new} new ones are asked for, and the model's context is "
            f"{context}: set max_new_tokens to at most {context - positions}, or shorten the prompt"
        )
    _settle_minimum(config, tokens, positions, tokens + new)
    return tokens + new


def _settle_minimum(config: GenerationConfig, tokens: int, positions: int, maximum: int) -> None:
    if config.min_new_tokens is not None:
        config.min_length = tokens + config.min_new_tokens
    elif config.min_length:
        config.min_length = max(0, config.min_length - (positions - tokens))
    if config.min_length and config.min_length > maximum:
        logger.warning("rows end at %d tokens although at least %d are asked for", maximum, config.min_length)


def make_plan(
    config: GenerationConfig,
    prompt: Prompt,
    max_length: int,
    *,
    tokenizer: Decoder | None,
    generator: torch.Generator | None,
    processors: Iterable[ProcessorFunction],
    criteria: Iterable[CriterionFunction],
    logits_to_keep: int,
    made_for_call: MadeForCall | None = None,
) -> Plan:
    """Everything that is decided before the first run of the model.

    Raises:
        InputError: options that need something which is not there.
    """
    ends = end_tokens(config)
    if config.prefill_chunk_size is not None and not config.use_cache:
        raise InputError("prefill_chunk_size needs a cache: set use_cache=True, or leave it out")
    return Plan(
        processors=logits_processors(
            config,
            prompt_length=prompt.ids.shape[1],
            max_length=max_length,
            eos=ends,
            custom=processors,
            call=made_for_call or MadeForCall(),
        ),
        criteria=_stopping_criteria(config, max_length, ends, tokenizer, criteria),
        max_length=max_length,
        pad=config.pad_token_id,
        sample=bool(config.do_sample),
        generator=generator,
        chunk=config.prefill_chunk_size,
        logits_to_keep=logits_to_keep,
        attentions=bool(config.output_attentions and config.return_dict_in_generate),
        hidden_states=bool(config.output_hidden_states and config.return_dict_in_generate),
        keep_scores=bool(config.output_scores and config.return_dict_in_generate),
    )


def _stopping_criteria(
    config: GenerationConfig,
    max_length: int,
    ends: list[int],
    tokenizer: Decoder | None,
    custom: Iterable[CriterionFunction],
) -> StoppingCriteriaList:
    made: list[CriterionFunction] = [MaxLengthCriteria(max_length)]
    if config.max_time is not None:
        made.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings is not None:
        if tokenizer is None:
            raise InputError(
                f"stop_strings={config.stop_strings!r} are compared with text: pass tokenizer=... to generate()"
            )
        made.append(StopStringCriteria(tokenizer, config.stop_strings))
    if ends:
        made.append(EosTokenCriteria(ends))
    return StoppingCriteriaList(merge(made, custom, "stopping criterion"))


def beam_options(config: GenerationConfig, plan: Plan) -> BeamOptions | None:
    """What a call asks of its beams; None if it asks for none.

    The token behind the end of a text is that of transformers: the padding token if it is not 0, else the first end
    token; with groups of beams, always the padding token.

    Raises:
        InputError: texts may end at different lengths, and nothing is there to fill them with; a logits processor that
            cannot follow rows which change places.
    """
    if (config.num_beams or 1) == 1:
        return None
    rigid = next((one for one in plan.processors if not getattr(one, "follows_beams", True)), None)
    if rigid is not None:
        raise InputError(
            f"{type(rigid).__name__} keeps track of every row at its place, and num_beams={config.num_beams} moves "
            "rows: set num_beams=1, or leave the processor out"
        )
    ends = end_tokens(config)
    pad = config.pad_token_id
    if pad is None and len(plan.criteria) > 1:
        raise InputError(
            "beams may end at different lengths, and no token is there to fill them with: set pad_token_id or "
            "eos_token_id"
        )
    groups = config.num_beam_groups or 1
    return BeamOptions(
        count=config.num_beams or 1,
        returned=config.num_return_sequences or 1,
        groups=groups,
        length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
        early_stopping=config.early_stopping or False,
        ends=ends,
        fill=(ends[0] if ends and groups == 1 and pad == 0 else pad) or 0,
    )
