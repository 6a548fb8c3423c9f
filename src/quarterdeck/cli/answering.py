"""A loaded model with settings, and the text that it generates. This imports torch."""

from __future__ import annotations

import argparse
import copy
from typing import Any, Self

import torch

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.grammars.matcher import GrammarCompiler, Matcher
from quarterdeck.chat.template import Prompt
from quarterdeck.cli.arguments import DEFAULT_TOP_P
from quarterdeck.errors import InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.options import OPTIONS
from quarterdeck.generation.prefix import PrefixCache
from quarterdeck.generation.text import Job, ModelText, answer_ends, hidden_tokens, room_after
from quarterdeck.model import CohereForCausalLM
from quarterdeck.pipelines.factory import as_device
from quarterdeck.tokenizer import CohereTokenizerFast


class Answerer:
    """A model, its tokenizer, and how to generate.

    Attributes:
        settings: options of generation. Those that end an answer are read once, here.
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
        self._ends = answer_ends(settings, tokenizer, model.config.vocab_size)
        self._hidden = hidden_tokens(tokenizer)
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

    def continuation(self, text: str) -> ModelText:
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
    ) -> ModelText:
        """The model's text for a prompt, markup and all; what `quarterdeck.chat.answer` asks for.

        Tokens are chosen as ``settings`` say.

        Raises:
            ChatError: the prompt does not fit the context.
            InputError: there are ``sampling_params``.
        """
        if sampling_params is not None:
            raise InputError("how tokens are chosen is said by the settings of the Answerer, not by sampling_params")
        settings = copy.deepcopy(self.settings)
        settings.update(eos_token_id=list(self._ends))
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
    ) -> ModelText:
        room = room_after(ids, self.model.config.context_length)
        settings.max_new_tokens = min(settings.max_new_tokens or room, room)
        job = Job(ids, settings, matcher=matcher, generator=self.generator, hidden=self._hidden)
        return ModelText(self.model, self.tokenizer, job, prefix)

    def _grammars(self) -> GrammarCompiler:
        if self._compiler is None:
            size = self.model.config.vocab_size
            self._compiler = GrammarCompiler(self.tokenizer, vocab_size=size, end_token_ids=self._ends)
        return self._compiler


def _settings(model: CohereForCausalLM, arguments: argparse.Namespace) -> GenerationConfig:
    """The model's own settings with what the command line says, which also decides whether tokens are drawn."""
    settings = copy.deepcopy(model.generation_config or GenerationConfig.from_model_config(model.config))
    # single answers, read token by token: what the model's file may say about anything else is not wanted here
    settings.update(num_return_sequences=1, return_dict_in_generate=False, use_cache=True, cache_implementation=None)
    settings.update(num_beams=1, **{name: OPTIONS[name].default for name in GenerationConfig.BEAMS_ONLY})
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
