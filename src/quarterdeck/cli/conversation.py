"""A conversation with a model: its messages, its settings, and the keys and values of what the model has read."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import Any

from quarterdeck.cache import Cache, DynamicCache
from quarterdeck.cli.answering import Answer, Answerer, ChatMessage, drawing
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.prefix import PrefixCache

SETTABLE = (
    "max_new_tokens",
    "min_new_tokens",
    "max_time",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "stop_strings",
)
"""Options of generation that make sense from one answer to the next."""


class Conversation:
    """Messages back and forth.

    Each answer is a new generation from the whole conversation as the chat template renders it. Of these ids those
    that the model has read before, in the same places, are in a cache and are not read again.

    Args:
        answerer: the model.
        system: message that stands before all others.
        reuse: whether to keep the cache from one answer to the next.
    """

    def __init__(self, answerer: Answerer, system: str | None = None, *, reuse: bool = True) -> None:
        self._answerer = answerer
        self._system = system
        self._prefix = PrefixCache() if reuse else None
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system message and the settings."""
        self.messages: list[ChatMessage] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        if self._prefix is not None:
            self._prefix.forget()

    def ask(self, text: str) -> Generator[str]:
        """The answer to ``text``, piece by piece.

        An answer that is cut short (the iterator is closed, or interrupted) stays in the conversation as far as it
        came, so that one can ask to go on; if it has not come at all, the question goes too.
        """
        self.messages.append({"role": "user", "content": text})
        answer: Answer | None = None
        try:
            ids = self._answerer.prompt_ids(self.messages)
            cache: Cache = DynamicCache() if self._prefix is None else self._prefix.borrow(ids)
            answer = self._answerer.generate(ids, trim=True, cache=cache)
            yield from answer
            if self._prefix is not None:  # not if interrupted: in mid-step the layers may differ in length
                self._prefix.give_back(cache, (ids + answer.ids)[: cache.get_seq_length()])
        finally:
            if answer is not None and (answer.done or answer.text):
                self.messages.append({"role": "assistant", "content": answer.text})
            else:
                self.messages.pop()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that can be changed, and their values."""
        return {name: getattr(self._answerer.settings, name) for name in SETTABLE}

    def set(self, changes: dict[str, Any]) -> None:
        """Change settings; a temperature decides by itself whether tokens are drawn.

        Raises:
            InputError: an unknown name, or a value that cannot be right; nothing is changed then.
        """
        for name in changes:
            if name not in SETTABLE:
                raise UnsupportedOptionError(f"{name!r} cannot be set here; there are {', '.join(SETTABLE)}")
        implied: dict[str, Any] = {}
        temperature = changes.get("temperature")
        if isinstance(temperature, int | float) and "do_sample" not in changes:
            if temperature == 0:
                implied = drawing(None)
                changes = {name: value for name, value in changes.items() if name != "temperature"}
            else:
                implied = {"do_sample": True}
        self._answerer.settings.update(**(implied | changes))


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """``["temperature=0.5", "do_sample=true"]`` as names and values; JSON where it is JSON, else text.

    Raises:
        InputError: a word without ``=``.
    """
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InputError(f"{word!r} is not of the form name=value")
        settings[name] = _value(value)
    return settings


def _value(text: str) -> Any:
    spelled = {"True": True, "False": False, "None": None}
    if text in spelled:
        return spelled[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
