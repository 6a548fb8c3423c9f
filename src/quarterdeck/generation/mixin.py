"""`generate`, for a model that inherits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from quarterdeck.cache.base import Cache
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.assistance import make_candidates, warn_without_assistant
from quarterdeck.generation.beam_state import BeamOptions, Hypotheses, beam_transitions
from quarterdeck.generation.beams import BeamStep, beam_steps
from quarterdeck.generation.caches import make_cache, prompt_chunk
from quarterdeck.generation.call_helpers import CallHelpers
from quarterdeck.generation.callers import check_config, check_streamer, check_vocabulary, checked_functions
from quarterdeck.generation.candidates import Candidates
from quarterdeck.generation.config import GenerationConfig, describe_unknown
from quarterdeck.generation.core import CausalModel, Plan, Step, generate_steps
from quarterdeck.generation.graphs import reuse_buffers, step_program
from quarterdeck.generation.inputs import MODEL_INPUTS, Prompt, checked_cache, make_prompt
from quarterdeck.generation.options import CALL_ARGUMENTS
from quarterdeck.generation.output import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from quarterdeck.generation.plan import (
    beam_options,
    end_tokens,
    make_plan,
    padding_token,
    resolve_options,
    settle_lengths,
)
from quarterdeck.generation.processors import ProcessorFunction
from quarterdeck.generation.sampling import make_generator
from quarterdeck.generation.speculative import speculative_steps
from quarterdeck.generation.stopping import CriterionFunction, Decoder
from quarterdeck.generation.streamers import BaseStreamer


class Streamer(Protocol):
    """What `generate` calls of a streamer; `BaseStreamer` has a hook for errors besides."""

    def put(self, value: Tensor) -> None:
        """Take the prompt's ids [B, T], then each step's [B], on the CPU."""
        ...

    def end(self) -> None:
        """Generation is over."""
        ...


class GeneratingModel(CausalModel, Protocol):
    """A model with default options."""

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The defaults of `generate`; None takes the special tokens of ``config``."""
        ...


@dataclass(frozen=True)
class Call:
    """One call of `generate`, checked and ready to run."""

    model: CausalModel
    config: GenerationConfig
    prompt: Prompt
    cache: Cache | None
    plan: Plan
    beams: BeamOptions | None = None
    candidates: Candidates | None = None

    def steps(self) -> Iterator[Step]:
        """Run it."""
        if self.beams is not None:
            return beam_steps(self.model, self.prompt, self.cache, self.plan, self.beams)
        if self.candidates is not None:
            return speculative_steps(self.model, self.prompt, self.cache, self.plan, self.candidates)
        return generate_steps(self.model, self.prompt, self.cache, self.plan)


class GenerationMixin:
    """Gives a causal language model `generate` and `generate_steps`."""

    @torch.no_grad()
    def generate(
        self: GeneratingModel,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Iterable[ProcessorFunction] | None = None,
        stopping_criteria: Iterable[CriterionFunction] | None = None,
        *,
        streamer: Streamer | None = None,
        tokenizer: Decoder | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        use_model_defaults: bool | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput:
        """Continue prompts.

        >>> model.generate(**tokenizer("Plants create energy", return_tensors="pt"), max_new_tokens=20)

        Args:
            inputs: [B, T] token ids; the same as ``input_ids=``. Without any prompt the text begins with BOS.
            generation_config: options; the model's own where this one has global defaults.
            logits_processor: callables ``(input_ids, scores) -> scores``, run after the penalties and bans that
                options ask for and before temperature and filters.
            stopping_criteria: callables ``(input_ids, scores) -> bool or [B] bool``.
            streamer: is given the prompt and each token as they come.
            tokenizer: needed for ``stop_strings``.
            seed: draws come from a new generator with this seed.
            generator: draws come from it. With neither they come from torch's global generator.
            use_model_defaults: see `resolve_options`.
            **kwargs: options by name (see `GenerationConfig`), and inputs of the model: ``input_ids``,
                ``attention_mask`` [B, P], ``inputs_embeds`` [B, P, E] (seen by the model in place of the
                tokens), ``position_ids`` [B, P], ``past_key_values`` (a cache to continue from; the prompt
                contains the cached tokens), ``logits_to_keep``. Besides ``assistant_model`` (a faster model of the
                same vocabulary, whose guesses this one judges), ``prefix_allowed_tokens_fn`` (``(row, ids) -> token
                ids`` that may come next), ``negative_prompt_ids`` and ``negative_prompt_attention_mask`` [B, N] (the
                prompt that ``guidance_scale`` leads away from). Anything else is refused by name.

        Returns:
            [B * num_return_sequences, T] int64: the prompt's tokens and the new ones (for embeddings alone, only
            the new ones), rows that finished early filled with ``pad_token_id``; or a
            `GenerateDecoderOnlyOutput` if ``return_dict_in_generate``, or a `GenerateBeamDecoderOnlyOutput` if
            besides ``num_beams`` is above 1.

        Raises:
            UnsupportedOptionError: an argument that is unknown, or not in this version.
            InputError: arguments that cannot be right, alone or together; a prompt beyond the context.
        """
        check_streamer(streamer)
        try:
            call = prepare_call(
                self,
                inputs,
                generation_config,
                processors=logits_processor,
                criteria=stopping_criteria,
                tokenizer=tokenizer,
                generator=make_generator(seed, generator, self.device),
                use_model_defaults=use_model_defaults,
                arguments=kwargs,
            )
            if call.beams is None:
                return _collect(call, streamer)
            _refuse_streamer(streamer)
            return _collect_beams(call)
        except BaseException as error:
            if isinstance(streamer, BaseStreamer):
                streamer.fail(error)
            raise

    def generate_steps(
        self: GeneratingModel,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Iterable[ProcessorFunction] | None = None,
        stopping_criteria: Iterable[CriterionFunction] | None = None,
        *,
        tokenizer: Decoder | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        use_model_defaults: bool | None = None,
        **kwargs: Any,
    ) -> Iterator[Step]:
        """The same as a generator of steps: a token of every row at a time, with scores and logits.

        With ``num_beams`` above 1 steps are `BeamStep`, and their rows are beams.

        Arguments are checked at once; the model runs as the steps are asked for, and no further when they are not.

        >>> for step in model.generate_steps(ids, max_new_tokens=20):
        ...     print(step.tokens.tolist())
        """
        call = prepare_call(
            self,
            inputs,
            generation_config,
            processors=logits_processor,
            criteria=stopping_criteria,
            tokenizer=tokenizer,
            generator=make_generator(seed, generator, self.device),
            use_model_defaults=use_model_defaults,
            arguments=kwargs,
        )
        return call.steps()

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor] | None,
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """The score of every token that `generate` chose.

        >>> output = model.generate(ids, return_dict_in_generate=True, output_scores=True)
        >>> model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True).exp()

        Args:
            sequences: [B, T] tokens, prompt included or not.
            scores: per step [B, V], of the last tokens of ``sequences``: the output's ``scores``, or its ``logits``.
            beam_indices: [B, N], of a beam search: the output's ``beam_indices``. Scores are [rows, V] then, with as
                many rows as there were beams.
            normalize_logits: give log-probabilities, whatever the scores are.

        Returns:
            [B, steps]. Padding after the end of a row has a score, too, which has no meaning. With ``beam_indices``
            [B, tokens of the longest text], 0 behind the end.

        Raises:
            InputError: there are no scores, or they are not of these sequences.
        """
        if not scores:
            raise InputError("there are no scores: generate with return_dict_in_generate=True and output_scores=True")
        stacked = torch.stack(tuple(scores), dim=1)  # [B, steps, V]
        if normalize_logits:
            stacked = stacked.log_softmax(dim=-1)
        if beam_indices is not None:
            return beam_transitions(sequences, stacked, beam_indices)
        if sequences.shape[0] != stacked.shape[0] or sequences.shape[1] < stacked.shape[1]:
            raise InputError(
                f"the scores are of {stacked.shape[0]} rows and {stacked.shape[1]} steps, and sequences is "
                f"{list(sequences.shape)}: give both from one output of generate()"
            )
        chosen = sequences[:, sequences.shape[1] - stacked.shape[1] :, None]  # [B, steps, 1]
        return stacked.gather(-1, chosen)[..., 0]


def prepare_call(
    model: GeneratingModel,
    inputs: Tensor | None,
    generation_config: GenerationConfig | None,
    *,
    processors: Iterable[ProcessorFunction] | None,
    criteria: Iterable[CriterionFunction] | None,
    tokenizer: Decoder | None,
    generator: torch.Generator | None,
    use_model_defaults: bool | None,
    arguments: dict[str, Any],
) -> Call:
    """Check the arguments of `generate` and decide everything that can be decided before the model runs."""
    given = {name: value for name, value in arguments.items() if name in MODEL_INPUTS}
    options = {name: value for name, value in arguments.items() if name not in MODEL_INPUTS}
    helpers = CallHelpers.taken_from(options)
    _refuse_call_arguments(options)
    check_config(generation_config)
    warn_without_assistant(options, helpers.assistant_model)
    defaults = model.generation_config or GenerationConfig.from_model_config(model.config)
    config = resolve_options(defaults, generation_config, use_model_defaults, options)
    check_vocabulary(config, model.config.vocab_size)
    config.pad_token_id = padding_token(config)
    prompt = make_prompt(
        inputs,
        given,
        device=model.device,
        dtype=model.dtype,
        bos=config.bos_token_id,
        pad=config.pad_token_id,
        eos=end_tokens(config),
    )
    beam_count = config.num_beams or 1
    past = checked_cache(given.get("past_key_values"), prompt, beam_count)
    copies = 1 if beam_count > 1 else config.num_return_sequences or 1  # beams are copied once the prompt has run
    prompt = prompt.repeated(copies)
    explicit = options.get("max_length") is not None
    max_length = settle_lengths(config, prompt, model.config.context_length, explicit)
    room = prompt.length - prompt.ids.shape[1] + max_length - 1  # the last token is never fed
    plan = make_plan(
        config,
        prompt,
        max_length,
        tokenizer=tokenizer,
        generator=generator,
        processors=checked_functions("logits_processor", processors),
        criteria=checked_functions("stopping_criteria", criteria),
        logits_to_keep=_checked_logits_to_keep(given.get("logits_to_keep")),
        made_for_call=helpers.processors(config, model, prompt, max_length),
    )
    named = [name for name, value in options.items() if value is not None]
    candidates = make_candidates(config, model, helpers.assistant_model, prompt, plan, end_tokens(config), named)
    beams = beam_options(config, plan)
    program = step_program(config, model, past, one_token=beams is None and candidates is None)
    cache = make_cache(config, model, past, room=room, is_compiled=program is not None)
    if past is None:
        reuse_buffers(program, cache, prompt.rows)
    plan = replace(plan, program=program, chunk=prompt_chunk(model, cache, plan))
    if past is not None and past.get_seq_length() and copies > 1:
        past.batch_repeat_interleave(copies)  # last, so that a refused call leaves the caller's cache alone
    if past is not None and beam_count > 1 and past.rows == prompt.rows * beam_count:
        past.select(torch.arange(prompt.rows, device=prompt.ids.device) * beam_count)  # a cache made for beams
    return Call(model, config, prompt, cache, plan, beams, candidates)


def _refuse_call_arguments(options: dict[str, Any]) -> None:
    """Refuse arguments of transformers' `generate` that this version does not have; drop them where unset."""
    for name in [name for name in options if name in CALL_ARGUMENTS]:
        if options.pop(name) not in (None, False):
            raise UnsupportedOptionError(describe_unknown(name))


def _checked_logits_to_keep(value: object) -> int:
    if value is None:
        return 1
    if not isinstance(value, int) or value < 0:
        raise InputError(f"logits_to_keep={value!r}: generate() takes an integer of 0 (all positions) or more")
    return value


def _refuse_streamer(streamer: Streamer | None) -> None:
    if streamer is not None:
        raise InputError(
            "a streamer cannot be used with num_beams above 1, where texts are only known at the end: leave it out, "
            "set num_beams=1, or look at the beams of each step with generate_steps()"
        )


@dataclass
class _Record:
    """What the steps leave behind for the output."""

    config: GenerationConfig
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    attentions: list[tuple[Tensor, ...]] = field(default_factory=list)
    hidden_states: list[tuple[Tensor, ...]] = field(default_factory=list)

    def add(self, step: Step) -> None:
        if self.config.output_scores:
            self.scores.append(step.scores)
        if self.config.output_logits:
            self.logits.append(step.logits)
        if step.attentions is not None:
            self.attentions.append(step.attentions)
        if step.hidden_states is not None:
            self.hidden_states.append(step.hidden_states)

    def output(self, sequences: Tensor, cache: Cache | None) -> GenerateDecoderOnlyOutput:
        return GenerateDecoderOnlyOutput(sequences=sequences, **self.fields(), past_key_values=cache)

    def fields(self) -> dict[str, Any]:
        """What was asked for, by the names that outputs have for it."""
        wanted = self.config
        return {
            "scores": tuple(self.scores) if wanted.output_scores else None,
            "logits": tuple(self.logits) if wanted.output_logits else None,
            "attentions": tuple(self.attentions) if wanted.output_attentions else None,
            "hidden_states": tuple(self.hidden_states) if wanted.output_hidden_states else None,
        }


def _collect(call: Call, streamer: Streamer | None) -> Tensor | GenerateDecoderOnlyOutput:
    """Run a call to its end: feed the streamer, keep what the output needs."""
    record = _Record(call.config) if call.config.return_dict_in_generate else None
    if streamer is not None:
        streamer.put(call.prompt.ids.cpu())
    sequences = call.prompt.ids
    for step in call.steps():
        if streamer is not None:
            streamer.put(step.tokens.cpu())
        if record is not None:
            record.add(step)
        sequences = step.input_ids
    if streamer is not None:
        streamer.end()
    sequences = sequences.clone()  # a tensor of its own, not a view into the room that was made
    return sequences if record is None else record.output(sequences, call.cache)


def _collect_beams(call: Call) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Run a beam search to its end; the result is what its last step found."""
    record = _Record(call.config)
    best: Hypotheses | None = None
    for step in call.steps():
        assert isinstance(step, BeamStep)
        if call.config.return_dict_in_generate:
            record.add(step)
        best = step.best
    assert best is not None
    best = best.cropped()
    sequences = best.ids.flatten(0, 1)
    if not call.config.return_dict_in_generate:
        return sequences
    return GenerateBeamDecoderOnlyOutput(
        sequences=sequences,
        sequences_scores=best.scores.flatten() if call.config.output_scores else None,
        beam_indices=best.parents.flatten(0, 1),
        **record.fields(),
        past_key_values=call.cache,
    )
