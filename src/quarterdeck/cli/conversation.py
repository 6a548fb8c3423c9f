"""A conversation with a model: its messages, its settings, and the keys and values of what the model has read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quarterdeck.chat.agent import Agent
from quarterdeck.chat.answers.answering import stream_answer
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.messages import Document, Tool
from quarterdeck.chat.template import CitationMode, Prompt, render
from quarterdeck.cli.answering import Answerer
from quarterdeck.cli.dialogue import Dialogue, Events
from quarterdeck.cli.flags import NOT_HERE, SETTABLE, implied_by
from quarterdeck.cli.shelf import Shelf
from quarterdeck.errors import UnsupportedOptionError
from quarterdeck.generation.prefix import PrefixCache
from quarterdeck.generation.text import ModelText


@dataclass(frozen=True)
class Grounds:
    """What answers rest on: documents, or what tools return, or neither.

    Args:
        documents: None is no grounding.
        tools: those that the model may call, with their functions.
        citation_mode: as in `render`.
    """

    documents: Sequence[Document] | None = None
    tools: Sequence[Tool] = ()
    citation_mode: CitationMode = "accurate"


class Conversation(Dialogue):
    """Messages back and forth.

    Each answer is a new generation from the whole conversation. Of the ids of its prompt those that the model has read
    before, in the same places, are in a cache and are not read again.

    Args:
        answerer: the model.
        system: message that stands before all others.
        grounds: what answers rest on.
        reuse: whether to keep the cache from one answer to the next.
    """

    def __init__(
        self, answerer: Answerer, system: str | None = None, grounds: Grounds | None = None, *, reuse: bool = True
    ) -> None:
        self._answerer = answerer
        self._grounds = grounds or Grounds()
        tools, documents = self._grounds.tools, self._grounds.documents
        mode = self._grounds.citation_mode
        self._agent = Agent(self._raw, tools, citation_mode=mode) if tools else None
        self._shelf = None if documents is None else Shelf(documents, answerer.count)
        self._prefix = PrefixCache(with_answers=True) if reuse else None
        super().__init__(system)

    def clear(self) -> None:
        """Forget everything but the system message and the settings."""
        super().clear()
        if self._prefix is not None:
            self._prefix.forget()

    def _stream(self) -> Events:
        if self._agent is not None:
            return self._agent.stream(self.messages)
        mode = self._grounds.citation_mode
        return stream_answer(self._raw, self.messages, documents=self._documents(), citation_mode=mode)

    def _documents(self) -> list[Document] | None:
        """Those for the latest question, which may mean what the one before it was about."""
        if self._shelf is None:
            return None
        questions = [message["content"] for message in self.messages if message["role"] == "user"][-2:]

        def prompt(documents: Sequence[Document]) -> Prompt:
            return render(self.messages, documents=documents, citation_mode=self._grounds.citation_mode)

        return self._shelf.chosen("\n".join(questions), prompt, self._answerer.budget)

    def _raw(
        self, prompt: Prompt, *, grammar: Grammar | None = None, sampling_params: SamplingParams | None = None
    ) -> ModelText:
        return self._answerer.raw(prompt, grammar=grammar, sampling_params=sampling_params, prefix=self._prefix)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that can be changed, and their values."""
        return {name: getattr(self._answerer.settings, name) for name in SETTABLE}

    def set(self, changes: Mapping[str, Any]) -> None:
        """Change settings; a temperature decides by itself whether tokens are drawn."""
        for name in changes:
            if name not in SETTABLE:
                hint = f": {NOT_HERE[name]}" if name in NOT_HERE else f"; there are {', '.join(SETTABLE)}"
                raise UnsupportedOptionError(f"{name!r} cannot be set here{hint}")
        self._answerer.settings.update(**implied_by(changes))

    def status(self) -> dict[str, str]:
        """Model, place, what is read, what is cited."""
        model = self._answerer.model
        documents = self._grounds.documents
        facts = {
            "device": str(model.device),
            "type": str(model.dtype).removeprefix("torch."),
            "attention": str(model.config.attn_implementation),
            "quantization": _quantization(model.config),
            "context": f"{self._read()} of {model.config.context_length} tokens",
            "documents": "" if documents is None else str(len(documents)),
            "tools": ", ".join(tool.name for tool in self._grounds.tools),
        }
        return {name: value for name, value in facts.items() if value}

    def _read(self) -> int:
        return self._answerer.count(render(self.messages)) if self.messages else 0


def _quantization(config: Any) -> str:
    chosen = getattr(config, "quantization_config", None)
    if chosen is None:
        return ""
    values = chosen if isinstance(chosen, Mapping) else chosen.to_dict()
    kind = values.get("format") or ("4 bit" if values.get("load_in_4bit") else "8 bit")
    return f"{kind} ({values.get('quant_method', 'quarterdeck')})"
