"""A loaded model with settings, and the text that it generates. This imports torch."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.grammars.matcher import GrammarCompiler, Matcher
from quarterdeck.chat.template import Prompt
from quarterdeck.cli.arguments import DEFAULT_MAX_TOKENS, DEFAULT_TOP_P, UsageError
from quarterdeck.cli.dialogue import check_text
from quarterdeck.cli.flags import NOT_HERE, implied_by, parse_flags
from quarterdeck.cli.loading import load_options
from quarterdeck.errors import InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.options import OPTIONS
from quarterdeck.generation.prefix import PrefixCache
from quarterdeck.generation.text import Job, ModelText, answer_ends, hidden_tokens, room_after
from quarterdeck.model import CohereForCausalLM
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
        tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or name, revision=arguments.revision)
        model = AutoModelForCausalLM.from_pretrained(name, **load_options(name, arguments))
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
    """The model's own settings, or those of a file, with what the command line says."""
    settings = copy.deepcopy(model.generation_config or GenerationConfig.from_model_config(model.config))
    if arguments.generation_config is not None:
        own, settings = settings, read_generation_config(arguments.generation_config)
        tokens_of = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        settings.update(**{name: ids for name, ids in tokens_of.items() if getattr(settings, name) is None})
    # single answers, read token by token: what the files may say about anything else is not wanted here
    settings.update(**{name: OPTIONS[name].default for name in NOT_HERE})
    tokens = arguments.max_tokens
    if tokens is None:
        tokens = (arguments.generation_config and settings.max_new_tokens) or DEFAULT_MAX_TOKENS
    settings.update(max_new_tokens=tokens)
    flags = parse_flags(arguments.flags)
    if arguments.temperature is not None or arguments.generation_config is None:
        settings.update(**drawing(arguments.temperature, arguments.top_p, arguments.top_k))
    settings.update(**implied_by(flags))
    _check_effect(settings, flags)
    return settings


def _check_effect(settings: GenerationConfig, flags: Iterable[str]) -> None:
    idle = settings.without_effect()
    for name in flags:
        if name in idle:
            raise UsageError(f"{name}={getattr(settings, name)} would have no effect: {idle[name]}")


def read_generation_config(name: str) -> GenerationConfig:
    """From a JSON file, a folder, or an id on the hub.

    Raises:
        CheckpointError: it is not there, or no JSON object.
        InputError: a value in it cannot be right.
    """
    path = Path(name).expanduser()
    if path.suffix == ".json" or path.is_file():
        return GenerationConfig.from_pretrained(path.parent, path.name)
    return GenerationConfig.from_pretrained(name)


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
