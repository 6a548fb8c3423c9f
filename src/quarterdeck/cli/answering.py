"""A loaded model with settings, and answers in the making. This imports torch."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.cache import Cache
from quarterdeck.cli.arguments import DEFAULT_TOP_P
from quarterdeck.errors import ChatTemplateError, InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.core import Step
from quarterdeck.generation.options import OPTIONS
from quarterdeck.model import CohereForCausalLM
from quarterdeck.pipelines.factory import as_device
from quarterdeck.tokenizer import CohereTokenizerFast

ChatMessage = dict[str, str]


@dataclass
class Answer:
    """An answer in the making: iterate over it for its text, piece by piece.

    Attributes:
        steps: the generation that it comes from.
        tokenizer: decodes.
        input_tokens: tokens of the prompt.
        limit: most new tokens.
        ends: ids that end an answer.
        trim: leave out white space around the text, as answers to people are shown.
        ids: the new tokens so far.
        text: the text so far.
        done: whether the generation has come to its end.
    """

    steps: Iterator[Step]
    tokenizer: CohereTokenizerFast
    input_tokens: int
    limit: int
    ends: Sequence[int]
    trim: bool
    ids: list[int] = field(default_factory=list)
    text: str = ""
    done: bool = False

    def __iter__(self) -> Iterator[str]:
        for piece in trimmed(self._pieces()) if self.trim else self._pieces():
            self.text += piece
            yield piece

    def _pieces(self) -> Iterator[str]:
        decoder = self.tokenizer.incremental_decoder(skip_special_tokens=True)
        for step in self.steps:
            token = int(step.tokens[0])
            self.ids.append(token)
            if token not in self.ends:
                yield from filter(None, [decoder.feed([token])])
        self.done = True
        yield from filter(None, [decoder.close()])

    def finished(self) -> Self:
        """The same when it is whole."""
        for _ in self:
            pass
        return self

    @property
    def finish_reason(self) -> str:
        """``COMPLETE``, ``MAX_TOKENS``, or ``STOP_SEQUENCE`` where the model's own settings have stop strings."""
        if self.ids and self.ids[-1] in self.ends:
            return "COMPLETE"
        return "MAX_TOKENS" if len(self.ids) >= self.limit else "STOP_SEQUENCE"

    def as_dict(self) -> dict[str, Any]:
        """What ``run --json`` prints."""
        usage = {"input_tokens": self.input_tokens, "output_tokens": len(self.ids), "cached_tokens": 0}
        return {
            "text": self.text,
            "citations": [],
            "tool_plan": "",
            "tool_calls": [],
            "finish_reason": self.finish_reason,
            "usage": usage,
        }


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

    def prompt_ids(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The ids of a conversation, up to where the answer begins.

        Raises:
            InputError: a message that is not text.
            ChatTemplateError: the model has no template, or it refuses the conversation.
        """
        self.check_chat()
        for message in messages:
            _check_text(message["content"])
        ids = self.tokenizer.apply_chat_template([dict(m) for m in messages], add_generation_prompt=True)
        return [int(token) for token in ids]

    def answer(self, messages: Sequence[ChatMessage]) -> Answer:
        """The assistant's next message, without white space around it."""
        return self.generate(self.prompt_ids(messages), trim=True)

    def continuation(self, text: str) -> Answer:
        """What follows ``text``, as it is."""
        _check_text(text)
        return self.generate(list(self.tokenizer(text)["input_ids"]), trim=False)

    def generate(self, ids: list[int], *, trim: bool, cache: Cache | None = None) -> Answer:
        """The text after ``ids``; keys and values of the first of them may be in ``cache`` already."""
        room = self.model.config.context_length - len(ids)
        settings = copy.deepcopy(self.settings)
        limit = settings.max_new_tokens = max(1, min(settings.max_new_tokens or room, room))
        steps = self.model.generate_steps(
            torch.tensor([ids], device=self.model.device),
            settings,
            generator=self.generator if settings.do_sample else None,
            tokenizer=self.tokenizer,
            use_model_defaults=False,
            past_key_values=cache,
        )
        ends = settings.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        return Answer(steps, self.tokenizer, len(ids), limit, ends, trim)


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


def trimmed(pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of a text without the white space before its first and after its last visible character."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        visible = text.rstrip()
        held = text[len(visible) :]
        if visible:
            begun = True
            yield visible


def _check_text(text: str) -> None:
    """Refuse what cannot be UTF-8: bytes of the command line or of standard input that are not text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not valid UTF-8 at character {error.start}; save it as UTF-8") from error
