"""Which source of candidates a call of `generate` asks for: an assistant, the text itself, or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError
from quarterdeck.generation.assemble import logits_processors
from quarterdeck.generation.candidates import Candidates, Draft, DraftLength, PromptLookup
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.core import CausalModel, Plan
from quarterdeck.generation.inputs import Prompt
from quarterdeck.generation.options import OPTIONS

logger = logging.getLogger(__name__)

DRAFT_OPTIONS = ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold")
"""Options about an assistant; a call's own value counts, else what the assistant's ``generation_config`` says."""

DEFAULT_NGRAM = 2


class Assistant(CausalModel, Protocol):
    """A model that drafts for another one."""

    @property
    def generation_config(self) -> GenerationConfig | None:
        """Its defaults, of which `DRAFT_OPTIONS` count here."""
        ...


def make_candidates(
    config: GenerationConfig,
    model: CausalModel,
    assistant: Assistant | None,
    prompt: Prompt,
    plan: Plan,
    ends: Sequence[int],
    named: Collection[str] = (),
) -> Candidates | None:
    """The source of candidates; None if tokens are to be made one by one.

    Args:
        config: the options of the call.
        model: which judges.
        assistant: which drafts, if there is one.
        prompt: one row.
        plan: how tokens are chosen.
        ends: the end tokens.
        named: options that the call itself gives: they count even if they equal a default.

    Raises:
        InputError: a source that cannot serve this call, or two of them.
    """
    wanted = _wanted(config, assistant)
    if wanted is None:
        return None
    _check_one_row(wanted, config, prompt)
    if assistant is None:
        assert config.prompt_lookup_num_tokens is not None
        return PromptLookup(config.prompt_lookup_num_tokens, config.max_matching_ngram_size or DEFAULT_NGRAM, ends)
    check_assistant(assistant, model, prompt)
    processors = logits_processors(config, prompt_length=prompt.ids.shape[1], max_length=plan.max_length, eos=ends)
    length = _draft_length(config, assistant, named)
    return Draft(assistant, prompt, plan, processors, ends, length, _memory(assistant))


def _wanted(config: GenerationConfig, assistant: Assistant | None) -> str | None:
    """The argument that asks for candidates."""
    if config.prompt_lookup_num_tokens is None:
        return None if assistant is None else "assistant_model"
    if assistant is not None:
        raise InputError(
            f"assistant_model and prompt_lookup_num_tokens={config.prompt_lookup_num_tokens} are both given, and "
            "tokens are guessed in one way or the other: drop one"
        )
    return "prompt_lookup_num_tokens"


def _check_one_row(wanted: str, config: GenerationConfig, prompt: Prompt) -> None:
    if (config.num_beams or 1) > 1:
        raise InputError(f"{wanted} guesses for one row and num_beams={config.num_beams} writes several: drop one")
    if prompt.rows > 1:
        copies = config.num_return_sequences or 1
        what = f"num_return_sequences={copies}" if copies == prompt.rows else f"a batch of {prompt.rows} rows"
        raise InputError(f"{wanted} works for one row at a time and this is {what}: call generate() for each of them")


def check_assistant(assistant: object, model: CausalModel, prompt: Prompt) -> None:
    """Raise `InputError` unless ``assistant`` is a model of the same vocabulary that can read the prompt."""
    config = getattr(assistant, "config", None)
    if not callable(assistant) or not isinstance(config, CohereConfig):
        raise InputError(
            f"assistant_model is a {type(assistant).__module__}.{type(assistant).__qualname__} and must be a model of "
            "Quarterdeck: load it with CohereForCausalLM.from_pretrained(...)"
        )
    if config.vocab_size != model.config.vocab_size:
        raise InputError(
            f"the assistant has {config.vocab_size} tokens and the model {model.config.vocab_size}, so their "
            "tokenizers differ: choose an assistant with the model's tokenizer, or prompt_lookup_num_tokens=10, which "
            "needs no assistant"
        )
    if prompt.embeds is not None:
        raise InputError(
            "assistant_model cannot read inputs_embeds, which are the model's own: pass the prompt as input_ids"
        )


def _draft_length(config: GenerationConfig, assistant: Assistant, named: Collection[str]) -> DraftLength:
    own = assistant.generation_config
    values: dict[str, Any] = {}
    for name in DRAFT_OPTIONS:
        value, default = getattr(config, name), OPTIONS[name].default
        if name not in named and value in (None, default) and own is not None:
            value = getattr(own, name)
        values[name] = default if value is None else value
    return DraftLength(*values.values())


def _memory(assistant: Assistant) -> Callable[[int], None]:
    """Writes a learnt number of tokens where the next call finds it."""

    def remember(count: int) -> None:
        if assistant.generation_config is not None:
            assistant.generation_config.num_assistant_tokens = count

    return remember


def warn_without_assistant(options: Mapping[str, Any], assistant: object) -> None:
    """Say which options of a call need an assistant that it does not have."""
    for name in DRAFT_OPTIONS:
        if assistant is None and options.get(name) is not None:
            logger.warning("%s=%r has no effect: it needs assistant_model", name, options[name])
