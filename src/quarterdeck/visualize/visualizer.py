"""`AttentionMaskVisualizer`: who sees whom in a text, and what a model looks at.

    visualizer = AttentionMaskVisualizer("midshipman")
    visualizer("Plants create energy")                          # prints what transformers prints
    visualizer.view(["Ahoy", "Plants create energy"])           # left padding in a batch
    visualizer.view(messages, documents=documents).save("grounded.html")
    visualizer.view("Plants create energy", layer=2, head=0)    # weights of a real forward pass

Weights of the model are read when a picture needs them, and not before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from quarterdeck.auto import AutoConfig, AutoModel, AutoTokenizer
from quarterdeck.chat.template import CitationMode
from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.model import CohereForCausalLM, CohereModel
from quarterdeck.pipelines.factory import as_device
from quarterdeck.tokenizer import CohereTokenizerFast
from quarterdeck.visualize.classic import classic_text
from quarterdeck.visualize.passes import Pass, mask_of, weights_of
from quarterdeck.visualize.requests import Request, Side, is_chat, read_chat, read_packed, read_texts, with_past
from quarterdeck.visualize.values import Row, Section, Token
from quarterdeck.visualize.view import AttentionView

_MOST_WEIGHTS = 2**29
"""Attention weights that are kept at most: 2 GiB in float32."""


class AttentionMaskVisualizer:
    """Pictures of the attention of one model.

    Args:
        model_name: ``"midshipman"``, a folder or a hub id; or a loaded model.
        tokenizer: needed with a loaded model; else the model's own.
        dtype, device: for the forward pass that weights need: type of the weights (``"auto"``: the checkpoint's) and
            where to run (default: the first accelerator, else the CPU).
        revision, token: version on the hub, and the right to read it.

    Raises:
        InputError: a loaded model without tokenizer, or with options for loading.
        CheckpointError, ConfigError, TokenizerError: the files cannot be read.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | CohereForCausalLM | CohereModel,
        *,
        tokenizer: CohereTokenizerFast | None = None,
        dtype: str | torch.dtype | None = "auto",
        device: int | str | torch.device | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> None:
        self._source = model_name
        self._loading: dict[str, Any] = {"dtype": dtype, "device_map": device, "revision": revision, "token": token}
        if isinstance(model_name, CohereForCausalLM | CohereModel):
            if tokenizer is None:
                raise InputError("the model is given without its tokenizer; pass tokenizer=...")
            given = [name for name, value in self._loading.items() if value not in (None, "auto")]
            if given:
                raise InputError(
                    f"{', '.join(given)} would only matter for loading, and the model is loaded: leave out"
                )
            self.config: CohereConfig = model_name.config
            self.repo_id = tokenizer.name_or_path or type(model_name).__name__
        else:
            self.config = AutoConfig.from_pretrained(model_name, revision=revision, token=token)
            self.repo_id = os.fspath(model_name)
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model_name, revision=revision, token=token)
        self.tokenizer = tokenizer

    def __call__(self, input_sentence: str, suffix: str = "") -> None:
        """Print the mask of a text, as `visualize_attention_mask` does."""
        self.visualize_attention_mask(input_sentence, suffix)

    def visualize_attention_mask(self, input_sentence: str, suffix: str = "") -> None:
        """Print the mask of a text exactly as transformers does.

        That picture leaves the BOS token out of the labels and not out of the mask; `view` shows every token.

        Args:
            input_sentence: the text.
            suffix: must be empty; only models of images have a use for it.

        Raises:
            InputError: the text has no tokens.
        """
        if suffix:
            raise UnsupportedOptionError("suffix has no meaning for models of text: append it to input_sentence")
        if not isinstance(input_sentence, str):
            raise InputError("input_sentence must be one text; view(...) shows batches and conversations")
        words = self.tokenizer.tokenize(input_sentence)
        if not words:
            raise InputError("the text has no tokens, so there is nothing to show: give some text")
        run = read_texts(self.tokenizer, input_sentence, None, None).run
        allowed = mask_of(self.config, run).allowed()[0, 0]
        print(classic_text(self.config.model_type, self.repo_id, CohereModel.__name__, words, allowed))

    def view(
        self,
        text: str | Sequence[Any] | None = None,
        *,
        packed: Sequence[str] | None = None,
        documents: Sequence[Any] | None = None,
        citation_mode: CitationMode = "accurate",
        add_generation_prompt: bool | None = None,
        padding: Side | None = None,
        pad_to: int | None = None,
        past: int = 0,
        max_cache_len: int | None = None,
        weights: bool = False,
        layer: int | None = None,
        head: int | None = None,
    ) -> AttentionView:
        """The attention of a forward pass, to be drawn.

        Args:
            text: a text; a list of texts, which are padded to a batch; or a conversation, a list of what
                `Message.of` takes.
            packed: in place of ``text``: texts that share one row, told apart by their positions.
            documents: what a conversation rests on; a text is then a message of a user.
            citation_mode: of a grounded conversation, see `quarterdeck.chat.render`.
            add_generation_prompt: end a conversation with the opening of the chatbot's turn; None: unless its last
                message is the chatbot's.
            padding: side of the padding in a batch; None: the tokenizer's.
            pad_to: pad to so many tokens; None: to the longest text.
            past: so many tokens are in the cache already and are keys only; a negative number counts from the end:
                ``past=-1`` is a step of decoding.
            max_cache_len: use a static cache of that many slots; those not written yet are shown as empty.
            weights: run the model, and show how much every token looks at every other.
            layer, head: of which layer and head, from 0; None: the mean. Either asks for ``weights``.

        Raises:
            InputError: arguments that cannot be right together.
            ChatError: a conversation that cannot be right.
        """
        self._check_choice("layer", layer, self.config.num_hidden_layers)
        self._check_choice("head", head, self.config.num_attention_heads)
        self._check_kind(text, packed, documents, padding, pad_to)
        if packed is not None:
            request = read_packed(self.tokenizer, packed)
        elif is_chat(text, documents):
            request = read_chat(self.tokenizer, text, documents, citation_mode, add_generation_prompt)
        else:
            if add_generation_prompt is not None or citation_mode != "accurate":
                raise InputError("add_generation_prompt and citation_mode belong to conversations: give messages")
            assert text is not None
            request = read_texts(self.tokenizer, text, padding, pad_to)
        request = with_past(request, past, max_cache_len)
        found = self._weights(request.run) if weights or layer is not None or head is not None else None
        allowed = mask_of(self.config, request.run, layer or 0).allowed()
        return AttentionView(self.repo_id, _rows(request, allowed, found), _notes(request), layer, head)

    @cached_property
    def _model(self) -> CohereModel:
        if isinstance(self._source, CohereForCausalLM | CohereModel):
            return self._source if isinstance(self._source, CohereModel) else self._source.model
        options = {**self._loading, "device_map": as_device(self._loading["device_map"])}
        model: CohereModel = AutoModel.from_pretrained(self._source, **options)
        return model

    def _weights(self, run: Pass) -> Tensor:
        batch, length = run.input_ids.shape
        keys = run.slots or length
        count = batch * self.config.num_hidden_layers * self.config.num_attention_heads * (length - run.start) * keys
        if count > _MOST_WEIGHTS:
            raise InputError(
                f"these are {count:,} attention weights, and {_MOST_WEIGHTS:,} are kept at most: give a shorter text, "
                "or leave out weights, layer and head to see the mask"
            )
        return weights_of(self._model, run)

    def _check_choice(self, name: str, number: int | None, count: int) -> None:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count):
            raise InputError(f"{name} is {number!r}, but must be in 0 to {count - 1}, or None for the mean")

    def _check_kind(self, text: Any, packed: Any, documents: Any, padding: Any, pad_to: Any) -> None:
        if (text is None) == (packed is None):
            raise InputError("give either a text (or messages) or packed=[...], texts that share one row")
        if packed is not None and documents is not None:
            raise InputError("documents belong to conversations, not to packed texts: give messages")
        if (packed is not None or is_chat(text, documents)) and (padding is not None or pad_to is not None):
            raise InputError("padding and pad_to are for texts in a batch: leave them out, or give a list of texts")


def _rows(request: Request, allowed: Tensor, weights: Tensor | None) -> tuple[Row, ...]:
    """``allowed`` is ``[B or 1, 1, T, S]``, ``weights`` ``[B, L, H, T, S]``."""
    count, keys = len(request.tokens), allowed.shape[-1]
    return tuple(
        Row(
            f"Sequence {number}" if count > 1 else "",
            (*tokens, *[Token("", None, None, "empty")] * (keys - len(tokens))),
            (*sections, *([Section("Empty slots", "empty", len(tokens), keys)] if keys > len(tokens) else [])),
            request.run.start,
            allowed[min(number, allowed.shape[0] - 1), 0].cpu(),
            None if weights is None else weights[number],
            request.texts,
        )
        for number, (tokens, sections) in enumerate(zip(request.tokens, request.sections, strict=True))
    )


def _notes(request: Request) -> tuple[str, ...]:
    run = request.run
    batch, length = run.input_ids.shape
    notes = [f"{length} tokens"] if batch == 1 else [f"{batch} sequences of {length} tokens"]
    if run.is_packed:
        notes.append(f"{len(request.sections[0])} packed texts")
    if run.start:
        notes.append(f"{run.start} in the cache, {length - run.start} new")
    if run.slots is not None:
        notes.append(f"static cache of {run.slots} slots")
    return tuple(notes)
