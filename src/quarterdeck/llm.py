"""`LLM`: a model that answers. Everything about chat is in `quarterdeck.chat`; this is the model for it.

    llm = LLM()                                                    # the embedded model
    llm.chat("Where do emperor penguins live?", documents=[...])   # ChatResponse
    for event in llm.stream_chat("Ahoy!"): ...                     # TextDelta, ..., MessageEnd
    llm.generate("Plants create energy")                           # plain continuation, without a template

`LLM.raw` is the seam: raw text for a prompt, as `chat.answer` wants it. An engine that runs many requests at once
takes its place and nothing else changes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.chat.answers.answering import AnswerStream, answer, stream_answer
from quarterdeck.chat.answers.response import ChatResponse, FinishReason, TokenLogprob
from quarterdeck.chat.answers.sampling import SamplingParams
from quarterdeck.chat.answers.stops import StopGate
from quarterdeck.chat.grammars.grammar import Grammar
from quarterdeck.chat.grammars.matcher import GrammarCompiler
from quarterdeck.chat.json_text import kind, shown
from quarterdeck.chat.messages import Usage
from quarterdeck.chat.template import Prompt
from quarterdeck.errors import ChatError, InputError
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.generation.prefix import PrefixCache
from quarterdeck.generation.text import (
    Job,
    ModelText,
    answer_ends,
    hidden_tokens,
    penalties,
    room_after,
    sampling_config,
)
from quarterdeck.locate import EMBEDDED_MODEL
from quarterdeck.model import CohereForCausalLM
from quarterdeck.pipelines.factory import as_device
from quarterdeck.quantization.choose import AnyQuantization
from quarterdeck.tokenizer import CohereTokenizerFast

PREFILL_BLOCK = 256
"""Tokens of a prompt that a run of the model reads at once. Prompts that begin alike share whole blocks; answers do not
depend on it, since a block is always read in one run, whether now or for an earlier prompt."""


@dataclass(frozen=True)
class Completion:
    """The continuation of a text.

    Args:
        text: what follows, up to the first stop string.
        finish_reason: ``COMPLETE``, ``STOP_SEQUENCE`` or ``MAX_TOKENS``.
        usage: tokens that it took.
        logprobs: of the tokens generated; None unless asked for.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None


class LLM:
    """A model and its tokenizer, ready to answer.

    May be used by several threads. They share the weights; each request has a cache of its own, but the latest one's
    prompt is kept (`forget` frees it), so that a prompt that begins as it did is not read again from the start.

    Args:
        model: a folder, a hub id, a GGUF file or ``"midshipman"``, the embedded model; that one if None. Or a loaded
            model.
        tokenizer: a tokenizer or where to read one; needed with a loaded model, else the model's own.
        dtype: type of the weights; ``"auto"`` is the checkpoint's.
        device: where to run: ``"cuda:1"``, ``torch.device(...)`` or a number. Default: the first accelerator, else
            the CPU.
        device_map, max_memory, offload_folder: as in ``from_pretrained``, for a model that is divided among several
            places, in place of ``device``. Threads take turns with one that is partly on the CPU beside an accelerator
            or on the disk.
        attn_implementation: ``"sdpa"`` (default), ``"eager"``, ``"flash_attention_2"`` or ``"flex_attention"``.
        quantization: ``"int8"``, ``"int4"``, a `QuantizationConfig` or a `BitsAndBytesConfig`: weights in fewer bits,
            quantized while they are read. A checkpoint that is quantized says so itself.
        check_memory: refuse before anything is read what cannot fit.
        revision, token: version on the hub, and the right to read it.
        gguf_file: name of a GGUF file in the folder or hub repository ``model``, to load instead.

    Raises:
        InputError: arguments that cannot be right together.
        CheckpointError, ConfigError, TokenizerError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CohereForCausalLM | None = None,
        *,
        tokenizer: str | os.PathLike[str] | CohereTokenizerFast | None = None,
        dtype: str | torch.dtype | None = "auto",
        device: int | str | torch.device | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        offload_folder: str | os.PathLike[str] | None = None,
        attn_implementation: str | None = None,
        quantization: AnyQuantization = None,
        check_memory: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        gguf_file: str | None = None,
    ) -> None:
        if isinstance(model, CohereForCausalLM):
            _refuse_loading(
                dtype=dtype,
                device=device,
                device_map=device_map,
                max_memory=max_memory,
                offload_folder=offload_folder,
                attn_implementation=attn_implementation,
                quantization=quantization,
                revision=revision,
                gguf_file=gguf_file,
            )
            self.model = model
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                EMBEDDED_MODEL if model is None else model,
                dtype=dtype,
                device_map=_one_place(device, device_map),
                max_memory=max_memory,
                offload_folder=offload_folder,
                attn_implementation=attn_implementation,
                quantization_config=quantization,
                check_memory=check_memory,
                revision=revision,
                token=token,
                gguf_file=gguf_file,
            )
        beside = gguf_file if tokenizer is None else None  # a tokenizer of another place is not in that file
        self.tokenizer = _tokenizer(model, tokenizer, revision=revision, token=token, gguf_file=beside)
        own = self.model.generation_config or GenerationConfig.from_model_config(self.model.config)
        self._ends = answer_ends(own, self.tokenizer, self.model.config.vocab_size)
        self._hidden = hidden_tokens(self.tokenizer)
        self._prefix = PrefixCache(PREFILL_BLOCK)
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer together."""
        return self.model.config.context_length

    def chat(self, messages: Any, **options: Any) -> ChatResponse:
        """The model's answer; for arguments and errors see `quarterdeck.chat.answer`.

        Raises:
            ChatError: a request that cannot be right, or a prompt that does not fit the context; before anything is
                generated.
        """
        return answer(self.raw, messages, **options)

    def stream_chat(self, messages: Any, **options: Any) -> AnswerStream:
        """The events of an answer as they come, the last one a `MessageEnd` with what `chat` returns.

        Closing the iterator (or leaving it in a ``with``) stops the generation.
        """
        return stream_answer(self.raw, messages, **options)

    def generate(
        self, prompts: str | Sequence[str], sampling_params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """What follows a text, without a template; for a list of texts a list, in its order.

        The prompt is raw: the tokenizer adds BOS, and control tokens spelled in it count.

        Raises:
            ChatError: a prompt is no text, or does not fit the context.
        """
        if isinstance(prompts, str):
            return self._completion(prompts, sampling_params)
        if not isinstance(prompts, Sequence):
            raise ChatError(f"prompts is a text or a list of texts, not {kind(prompts)}")
        return [self._completion(prompt, sampling_params) for prompt in prompts]

    def raw(
        self, prompt: Prompt, *, grammar: Grammar | None = None, sampling_params: SamplingParams | None = None
    ) -> ModelText:
        """The model's own text for a prompt, markup and all; `quarterdeck.chat.answer` makes answers of it.

        Raises:
            ChatError: the prompt does not fit the context, or the grammar cannot be enforced.
        """
        return self._start(prompt.token_ids(self.tokenizer), grammar, sampling_params)

    def forget(self) -> None:
        """Free the memory that is kept for prompts that begin as the latest one did."""
        self._prefix.forget()

    def _completion(self, prompt: Any, sampling_params: SamplingParams | None) -> Completion:
        if not isinstance(prompt, str):
            raise ChatError(f"a prompt is a text, not {kind(prompt)}: {shown(prompt)}")
        stream = self._start(list(self.tokenizer(prompt)["input_ids"]), None, sampling_params)
        gate = StopGate(() if sampling_params is None else sampling_params.stop)
        pieces = []
        for piece in stream:
            pieces.append(gate.feed(piece))
            if gate.stopped:
                stream.stop()
                break
        pieces.append(gate.close())
        reason: FinishReason = "STOP_SEQUENCE" if gate.stopped else stream.finish_reason or "COMPLETE"
        return Completion("".join(pieces), reason, stream.usage, stream.logprobs)

    def _start(self, ids: list[int], grammar: Grammar | None, sampling_params: SamplingParams | None) -> ModelText:
        params = sampling_params or SamplingParams()
        room = room_after(ids, self.context_length)
        outside = [token for token in params.logit_bias or () if token >= self.model.config.vocab_size]
        if outside:
            raise ChatError(f"logit_bias has the tokens {outside}; this model has {self.model.config.vocab_size}")
        limit = min(params.max_tokens or room, room)
        job = Job(
            ids,
            sampling_config(params, limit=limit, ends=self._ends, block=PREFILL_BLOCK),
            processors=penalties(params, len(ids)),
            matcher=None if grammar is None else self._grammars().compile(grammar),
            seed=params.seed,
            logprobs=params.logprobs,
            hidden=self._hidden,
        )
        return ModelText(self.model, self.tokenizer, job, self._prefix)

    def _grammars(self) -> GrammarCompiler:
        with self._lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(
                    self.tokenizer, vocab_size=self.model.config.vocab_size, end_token_ids=self._ends
                )
            return self._compiler


def _one_place(device: Any, device_map: Any) -> Any:
    """What ``from_pretrained`` takes as ``device_map``, of the two ways to give it."""
    if device is not None and device_map is not None:
        raise InputError("device and device_map both say where the model goes: give one of them")
    return as_device(device) if device_map is None else device_map


def _refuse_loading(**options: Any) -> None:
    given = [name for name, value in options.items() if value is not None and (name, value) != ("dtype", "auto")]
    if given:
        raise InputError(
            f"{', '.join(given)} would only matter for loading, and the model is loaded already: leave out"
        )


def _tokenizer(model: Any, tokenizer: Any, **hub: Any) -> CohereTokenizerFast:
    if isinstance(tokenizer, CohereTokenizerFast):
        return tokenizer
    if tokenizer is None and isinstance(model, CohereForCausalLM):
        raise InputError("the model is given without its tokenizer; pass tokenizer=..., a tokenizer or a name")
    name = tokenizer if tokenizer is not None else EMBEDDED_MODEL if model is None else model
    return AutoTokenizer.from_pretrained(name, **hub)
