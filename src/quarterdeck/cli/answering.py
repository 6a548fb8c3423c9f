"""A loaded model with settings, and the text that it generates. This imports torch."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Self

import torch

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.cache import DynamicCache
from quarterdeck.chat.answering import END_OF_TURN
from quarterdeck.chat.grammar import Grammar
from quarterdeck.chat.grammar_matcher import GrammarCompiler, Matcher
from quarterdeck.chat.messages import Usage
from quarterdeck.chat.response import FinishReason
from quarterdeck.chat.sampling import SamplingParams
from quarterdeck.chat.template import Prompt
from quarterdeck.cli.arguments import DEFAULT_TOP_P
from quarterdeck.errors import ChatTemplateError, InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.constrained import GrammarLogitsProcessor
from quarterdeck.generation.core import Step
from quarterdeck.generation.options import OPTIONS
from quarterdeck.generation.prefix import PrefixCache
from quarterdeck.model import CohereForCausalLM
from quarterdeck.pipelines.factory import as_device
from quarterdeck.tokenizer import CohereTokenizerFast


class AnswerText:
    """The text of a generation, to be iterated over once. The model runs as pieces are asked for.

    Args:
        answerer: whose model and settings.
        prompt: ids.
        settings: options of generation.
        matcher: of a grammar that holds.
        prefix: where keys and values are borrowed and given back.

    Attributes:
        ids: the new tokens so far.
        logprobs: none.
    """

    logprobs = None

    def __init__(
        self,
        answerer: Answerer,
        prompt: list[int],
        settings: GenerationConfig,
        matcher: Matcher | None,
        prefix: PrefixCache | None,
    ) -> None:
        self._answerer = answerer
        self._prompt = prompt
        self._settings = settings
        self._matcher = matcher
        self._prefix = prefix
        ends = settings.eos_token_id
        self._ends: Sequence[int] = [] if ends is None else [ends] if isinstance(ends, int) else ends
        self._cached = 0
        self._is_over = False
        self._pieces = self._run()
        self.ids: list[int] = []

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @property
    def usage(self) -> Usage:
        """The prompt's ids, the new ones, and those of the prompt that were not read again."""
        return Usage(len(self._prompt), len(self.ids), self._cached)

    @property
    def finish_reason(self) -> FinishReason | None:
        """``COMPLETE``, ``MAX_TOKENS``, or ``STOP_SEQUENCE`` where the settings have stop strings; None until then."""
        if not self._is_over:
            return None
        if self.ids and self.ids[-1] in self._ends:
            return "COMPLETE"
        return "MAX_TOKENS" if len(self.ids) >= (self._settings.max_new_tokens or 0) else "STOP_SEQUENCE"

    def stop(self) -> None:
        """No more is needed."""
        self._pieces.close()

    def close(self) -> None:
        """The same: what was read is kept for prompts that begin alike either way."""
        self._pieces.close()

    def _run(self) -> Generator[str]:
        cache = DynamicCache() if self._prefix is None else self._prefix.borrow(self._prompt)
        self._cached = cache.get_seq_length()
        decoder = self._answerer.tokenizer.incremental_decoder(skip_special_tokens=True)
        is_between_runs = False
        try:
            for step in self._steps(cache):
                is_between_runs = True
                token = int(step.tokens[0])
                self.ids.append(token)
                piece = "" if token in self._ends else decoder.feed([token])
                if piece:
                    yield piece
                is_between_runs = False
            is_between_runs = self._is_over = True
            rest = decoder.close()
            if rest:
                yield rest
        finally:
            if self._prefix is not None and is_between_runs:  # in the middle of a run the layers may differ in length
                self._prefix.give_back(cache, (self._prompt + self.ids)[: cache.get_seq_length()])

    def _steps(self, cache: Any) -> Iterator[Step]:
        model, settings = self._answerer.model, self._settings
        grammar = None if self._matcher is None else GrammarLogitsProcessor([self._matcher])
        return model.generate_steps(
            torch.tensor([self._prompt], device=model.device),
            settings,
            logits_processor=[] if grammar is None else [grammar],
            stopping_criteria=[] if grammar is None else [grammar.advance],
            generator=self._answerer.generator if settings.do_sample else None,
            tokenizer=self._answerer.tokenizer,
            use_model_defaults=False,
            past_key_values=cache,
        )


class Answerer:
    """A model, its tokenizer, and how to generate.

    Attributes:
        settings: options of generation.
        generator: source of randomness, None for torch's own.
    """

    def __init__(
        self,
        model: CohereForCausalLM,
        tokenizer: CohereTokenizerFast,
        settings: GenerationConfig,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.generator = generator
        self._compiler: GrammarCompiler | None = None

    @classmethod
    def load(cls, name: str, arguments: argparse.Namespace) -> Self:
        """The model called ``name`` as the options of a command line ask for it."""
        tokenizer = AutoTokenizer.from_pretrained(name, revision=arguments.revision)
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=arguments.revision,
            dtype=arguments.dtype,
            device_map=as_device(arguments.device),
            attn_implementation=arguments.attn_implementation,
        )
        generator = None
        if arguments.seed is not None:
            generator = torch.Generator(device=model.device).manual_seed(arguments.seed)
        return cls(model, tokenizer, _settings(model, arguments), generator)

    def check_chat(self) -> None:
        """Raise ChatTemplateError, with a remedy, if the model has no chat template."""
        if self.tokenizer.chat_template is None:
            raise ChatTemplateError(
                "this model has no chat template, so it was probably not trained for conversations; continue plain "
                "text with 'quarterdeck run --task text-generation'"
            )

    def continuation(self, text: str) -> AnswerText:
        """What follows ``text``, as it is."""
        check_text(text)
        return self._generate(list(self.tokenizer(text)["input_ids"]), copy.deepcopy(self.settings))

    def raw(
        self,
        prompt: Prompt,
        *,
        grammar: Grammar | None = None,
        sampling_params: SamplingParams | None = None,
        prefix: PrefixCache | None = None,
    ) -> AnswerText:
        """The model's text for a prompt, markup and all; what `quarterdeck.chat.answer` asks for.

        Tokens are chosen as ``settings`` say.

        Raises:
            InputError: the prompt does not fit the context, or there are ``sampling_params``.
        """
        if sampling_params is not None:
            raise InputError("how tokens are chosen is said by the settings of the Answerer, not by sampling_params")
        settings = copy.deepcopy(self.settings)
        settings.update(eos_token_id=self._ends())
        matcher = None if grammar is None else self._grammars().compile(grammar)
        return self._generate(prompt.token_ids(self.tokenizer), settings, matcher, prefix)

    def count(self, prompt: Prompt) -> int:
        """How many tokens a prompt has."""
        return len(prompt.token_ids(self.tokenizer))

    @property
    def budget(self) -> int:
        """Most tokens of a prompt that leave room for an answer: a quarter of the context, or its greatest length."""
        context = self.model.config.context_length
        return context - min(self.settings.max_new_tokens or context, context // 4)

    def _generate(
        self,
        ids: list[int],
        settings: GenerationConfig,
        matcher: Matcher | None = None,
        prefix: PrefixCache | None = None,
    ) -> AnswerText:
        room = self.model.config.context_length - len(ids)
        if room < 1:
            raise InputError(
                f"too many tokens: the prompt has {len(ids):,}, and the context of this model is "
                f"{self.model.config.context_length:,}, answer included; shorten the messages or the documents"
            )
        settings.max_new_tokens = min(settings.max_new_tokens or room, room)
        return AnswerText(self, ids, settings, matcher, prefix)

    def _ends(self) -> list[int]:
        """The ids that end an answer: those that the settings name, and the end of a turn and of a text."""
        named = self.settings.eos_token_id
        known = self.tokenizer.added_tokens_encoder
        ends = [] if named is None else [named] if isinstance(named, int) else list(named)
        return list(dict.fromkeys([*ends, *(known[text] for text in END_OF_TURN if text in known)]))

    def _grammars(self) -> GrammarCompiler:
        if self._compiler is None:
            size = self.model.config.vocab_size
            self._compiler = GrammarCompiler(self.tokenizer, vocab_size=size, end_token_ids=self._ends())
        return self._compiler


def _settings(model: CohereForCausalLM, arguments: argparse.Namespace) -> GenerationConfig:
    """The model's own settings with what the command line says, which also decides whether tokens are drawn."""
    settings = copy.deepcopy(model.generation_config or GenerationConfig())
    # single answers, read token by token: what the model's file may say about anything else is not wanted here
    settings.update(num_return_sequences=1, return_dict_in_generate=False, use_cache=True, cache_implementation=None)
    settings.update(
        max_new_tokens=arguments.max_tokens, **drawing(arguments.temperature, arguments.top_p, arguments.top_k)
    )
    return settings


def drawing(temperature: float | None, top_p: float | None = None, top_k: int | None = None) -> dict[str, Any]:
    """Options of generation for a temperature; none, or 0, is greedy."""
    if not temperature:
        return {"do_sample": False} | {name: OPTIONS[name].default for name in GenerationConfig.SAMPLING_ONLY}
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_p": DEFAULT_TOP_P if top_p is None else top_p,
        "top_k": top_k or 0,
    }


def check_text(text: str) -> None:
    """Refuse what cannot be UTF-8: bytes of the command line or of standard input that are not text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not valid UTF-8 at character {error.start}; save it as UTF-8") from error
