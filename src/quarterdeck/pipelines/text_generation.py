"""TextGenerationPipeline: tokenizer, model and tokenizer again, for one prompt or many.

Shapes: ``B`` prompts of a batch, ``N`` sequences returned per prompt, ``T`` tokens of the longest prompt, ``L`` tokens
at the end, prompt included.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quarterdeck.chat.messages import Message as MessageValue
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.callers import check_config
from quarterdeck.generation.config import GenerationConfig
from quarterdeck.model import CohereForCausalLM
from quarterdeck.outputs import ModelOutput
from quarterdeck.pipelines.options import CallOptions, ReturnType
from quarterdeck.tokenizer import CohereTokenizerFast

Message = Mapping[str, Any]
Chat = Sequence[Message]
Prompt = str | Chat
Record = dict[str, Any]
Encoded = tuple[list[int], list[int]]  # ids, and 1 for each that is no padding


@dataclass(frozen=True)
class _Generated:
    """What came of one prompt: the ids that went in (padding included), and per sequence the ids and extras."""

    prompt: Prompt
    prompt_ids: list[int]
    sequences: list[list[int]]
    extras: dict[str, list[Any]]


class TextGenerationPipeline:
    """Continues texts and answers conversations.

    >>> generator = pipeline("text-generation", model="midshipman")
    >>> generator("Plants create energy through", max_new_tokens=20)
    [{'generated_text': 'Plants create energy through ...'}]

    Unless told otherwise it draws up to 256 new tokens at a temperature of 0.7, as the pipeline of transformers does.

    Args:
        model: the language model.
        tokenizer: its tokenizer.
        device: where to move the model; None leaves it where it is.
        options: defaults of the calls' options; options of generation become part of :attr:`generation_config`.

    Attributes:
        generation_config: what calls start from: the pipeline's defaults, then the model's, then those given.
    """

    task = "text-generation"
    framework = "pt"

    def __init__(
        self,
        model: CohereForCausalLM,
        tokenizer: CohereTokenizerFast,
        *,
        device: torch.device | None = None,
        **options: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        if device is not None:
            model.to(device)
        self.generation_config = _defaults(model.generation_config)
        rest = self.generation_config.update(**options)
        self._own_defaults = {"max_new_tokens", "temperature"} - set(options)
        truncates = bool(options.get("truncation"))
        if truncates and "max_length" in options:
            rest["max_length"] = options["max_length"]  # as in a call, it is what prompts are cut to
        if not truncates and "max_new_tokens" not in options and self.generation_config.max_length not in (None, 20):
            self.generation_config.max_new_tokens = None  # a total length, asked for or the model's, replaces it
        if self.generation_config.pad_token_id is None:
            self.generation_config.pad_token_id = tokenizer.pad_token_id
        self._options = CallOptions.of(rest)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's weights."""
        return self.model.dtype

    @property
    def torch_dtype(self) -> torch.dtype:
        """The older name of :attr:`dtype`."""
        return self.dtype

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the model and the tokenizer into a folder."""
        self.model.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)

    def __call__(self, text_inputs: Prompt | Iterable[Prompt], **options: Any) -> Any:
        """Continue a text, or answer a conversation.

        Args:
            text_inputs: a text; a chat (a list of messages with ``role`` and ``content``: dictionaries, or values of
                `quarterdeck.Message`); a list of either; or a generator, a dataset, or anything else that gives one
                after the other. A chat that ends with the assistant's message has that message continued.
            options: those of :class:`quarterdeck.pipelines.options.CallOptions`; one of ``return_full_text``,
                ``return_tensors``, ``return_text``; and those of ``model.generate``.

        Returns:
            For one prompt a list of ``num_return_sequences`` records, each with ``generated_text`` (for a chat the
            messages, the answer included) or ``generated_token_ids``; for a list of prompts a list of such lists;
            for a generator or a dataset an iterator of such lists, each made when it is asked for.

        What is drawn after ``torch.manual_seed`` is what the pipeline of transformers draws. There, several prompts
        (a list, a generator, a dataset) go through a data loader, which takes one number from torch's generator
        before the first prompt; so does this pipeline, unless ``seed`` makes it independent of that generator.

        Raises:
            InputError: input or options that cannot be right.
        """
        call = self._options.updated_by(CallOptions.of(options))
        if isinstance(text_inputs, str) or _is_chat(text_inputs):
            return next(self._run([_checked(text_inputs)], call))
        if isinstance(text_inputs, list | tuple):
            return list(self._run_several([_checked(prompt) for prompt in text_inputs], call))
        return self._run_several(map(_checked, _one_by_one(text_inputs)), call)

    def _run_several(self, prompts: Iterable[Prompt], call: CallOptions) -> Iterator[list[Record]]:
        """Those of a list or a stream, drawn as the peer draws them."""
        config = call.generate.get("generation_config", self.generation_config)
        if call.generate.get("seed") is None and getattr(config, "seed", None) is None:
            torch.empty((), dtype=torch.int64).random_()  # as its data loader does
        yield from self._run(prompts, call)

    def _run(self, prompts: Iterable[Prompt], call: CallOptions) -> Iterator[list[Record]]:
        size = call.batch_size or 1
        remaining = iter(prompts)
        while batch := list(itertools.islice(remaining, size)):
            encoded = [self._encode(prompt, call) for prompt in batch]
            for generated in self._generate(batch, encoded, call):
                yield self._records(generated, call)

    # -- text to ids -----------------------------------------------------------------------------------

    def _encode(self, prompt: Prompt, call: CallOptions) -> Encoded:
        """The ids of one prompt, at least one, and their mask."""
        arguments = call.for_tokenizer()
        if call.prefix and not isinstance(prompt, str):
            raise InputError(
                f"prefix={call.prefix!r} goes before texts, and the input is a chat: put it into a system message"
            )
        if isinstance(prompt, str):
            encoding = self.tokenizer((call.prefix or "") + prompt, **arguments)
        else:
            arguments.pop("add_special_tokens", None)  # the template writes them
            continues = _continues(prompt, call)
            encoding = self.tokenizer.apply_chat_template(
                [dict(message) for message in prompt],
                add_generation_prompt=not continues,
                continue_final_message=continues,
                return_dict=True,
                **arguments,
            )
        ids, mask = list(encoding["input_ids"]), list(encoding["attention_mask"])
        if call.handle_long_generation == "hole":
            kept = self._room_for_prompt(len(ids), call)
            ids, mask = ids[-kept:], mask[-kept:]
        return (ids, mask) if ids else (self._beginning(), [1])

    def _beginning(self) -> list[int]:
        """What stands for an empty prompt."""
        start = self.generation_config.bos_token_id
        if start is None:
            raise InputError("the prompt is empty and the model has no bos_token_id to begin with; give some text")
        return [start]

    def _room_for_prompt(self, length: int, call: CallOptions) -> int:
        """How many of the prompt's tokens can stay so that the new ones fit into the tokenizer's limit."""
        new = call.generate.get("max_new_tokens") or self.generation_config.max_new_tokens
        if new is None:
            new = max((call.generate.get("max_length") or self.generation_config.max_length or 0) - length, 0)
        limit = self.tokenizer.model_max_length
        if new >= limit:
            raise InputError(
                f"handle_long_generation='hole' cannot make room: {new} new tokens are asked for, and the model's "
                f"limit is {limit} with the prompt; ask for fewer"
            )
        return min(length, int(limit - new))

    # -- ids to ids ------------------------------------------------------------------------------------

    def _generate(self, prompts: list[Prompt], encoded: list[Encoded], call: CallOptions) -> list[_Generated]:
        input_ids, mask = self._padded(encoded)
        arguments = dict(call.generate)
        if "generation_config" not in arguments:
            arguments["generation_config"] = self._fitting(arguments, input_ids.shape[1])
            arguments.setdefault("use_model_defaults", False)  # they are in it already
        check_config(arguments["generation_config"])
        _refuse_unshown(arguments)
        self._count_prefix(arguments, call)
        if arguments["generation_config"].stop_strings or arguments.get("stop_strings"):
            arguments.setdefault("tokenizer", self.tokenizer)
        output = self.model.generate(input_ids, attention_mask=mask, **arguments)
        sequences = output if isinstance(output, Tensor) else output.sequences  # [B * N, L]
        rows = sequences.cpu().reshape(len(prompts), -1, sequences.shape[1]).tolist()  # [B, N, L]
        extras = _extras(output, len(prompts)) if isinstance(output, ModelOutput) else {}
        return [
            _Generated(prompt, ids, rows[i], {name: values[i] for name, values in extras.items()})
            for i, (prompt, ids) in enumerate(zip(prompts, input_ids.tolist(), strict=True))
        ]

    def _fitting(self, arguments: Mapping[str, Any], prompt_length: int) -> GenerationConfig:
        """The options that calls start from, where the pipeline's own defaults have a meaning."""
        config = copy.deepcopy(self.generation_config)
        if not arguments.get("do_sample", config.do_sample) and "temperature" in self._own_defaults:
            config.temperature = 1.0
        if config.max_new_tokens is not None and "max_new_tokens" in self._own_defaults:
            room = self.model.config.context_length - prompt_length
            config.max_new_tokens = max(1, min(config.max_new_tokens, room))
        return config

    def _padded(self, encoded: list[Encoded]) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[B, T]`` on the model's device, padded on the left."""
        length = max(len(ids) for ids, _ in encoded)
        pad = self.tokenizer.pad_token_id
        if pad is None and any(len(ids) < length for ids, _ in encoded):
            raise InputError(
                "prompts of different lengths cannot share a batch: the tokenizer has no pad_token; set "
                "pipe.tokenizer.pad_token, or leave batch_size at 1"
            )
        padded = [[pad or 0] * (length - len(ids)) + ids for ids, _ in encoded]
        masks = [[0] * (length - len(mask)) + mask for _, mask in encoded]
        return torch.tensor(padded, device=self.device), torch.tensor(masks, device=self.device)

    def _count_prefix(self, arguments: dict[str, Any], call: CallOptions) -> None:
        """Total lengths are meant without the prefix, so its tokens are added to them."""
        if not call.prefix:
            return
        tokens = len(self.tokenizer(call.prefix, add_special_tokens=bool(call.add_special_tokens))["input_ids"])
        config: GenerationConfig = arguments["generation_config"]
        if arguments.get("max_new_tokens") is None and config.max_new_tokens is None:
            arguments["max_length"] = (arguments.get("max_length") or config.max_length or 20) + tokens
        if arguments.get("min_length") and arguments.get("min_new_tokens") is None and config.min_new_tokens is None:
            arguments["min_length"] += tokens

    # -- ids to records --------------------------------------------------------------------------------

    def _records(self, generated: _Generated, call: CallOptions) -> list[Record]:
        if call.return_type is ReturnType.TENSORS:
            return [{"generated_token_ids": ids} for ids in generated.sequences]
        prompt_length = len(self._text(generated.prompt_ids, call))
        records: list[Record] = []
        for index, ids in enumerate(generated.sequences):
            new_text = self._text(ids, call)[prompt_length:]
            full = call.return_type is not ReturnType.NEW_TEXT
            record: Record = {"generated_text": _joined(generated.prompt, new_text, call) if full else new_text}
            records.append(record | {name: values[index] for name, values in generated.extras.items()})
        return records

    def _text(self, ids: list[int], call: CallOptions) -> str:
        skip, clean = call.skip_special_tokens, call.clean_up_tokenization_spaces
        return self.tokenizer.decode(
            ids,
            skip_special_tokens=True if skip is None else skip,
            clean_up_tokenization_spaces=True if clean is None else clean,
        )


def _defaults(of_model: GenerationConfig | None) -> GenerationConfig:
    """The pipeline's own defaults; where it has none, the model's."""
    own = GenerationConfig(max_new_tokens=256, do_sample=True, temperature=0.7)
    return own if of_model is None else own.with_defaults_of(of_model)


def _is_chat(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping | MessageValue)


def _one_by_one(source: Any) -> Iterable[Any]:
    """What a generator or a dataset (which may have nothing but a length and numbered items) holds."""
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes):
        return source
    if not isinstance(source, Mapping | bytes) and hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return (source[index] for index in range(len(source)))
    raise InputError(f"the input is a {type(source).__name__}, but must be a text, a chat, or a list of texts or chats")


def _checked(prompt: Any) -> Prompt:
    """The prompt, if it is a text or a chat."""
    if isinstance(prompt, str):
        return prompt
    if not _is_chat(prompt):
        raise InputError(
            f"a prompt is a {type(prompt).__name__}, but must be a text or a chat: a list of messages, not empty"
        )
    prompt = [_plain(message) if isinstance(message, MessageValue) else message for message in prompt]
    for message in prompt:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise InputError(f"a message of a chat is {message!r}, but must be a dict with 'role' and 'content'")
    chat: Chat = prompt
    return chat


def _plain(message: MessageValue) -> Message:
    """The dictionary of a message that has nothing but a content."""
    more = [name for name in ("tool_plan", "tool_calls", "citations", "documents") if getattr(message, name)]
    if more or message.role == "tool":
        raise InputError(
            f"a message of a chat has {', '.join(more) or 'the role tool'}, which the tokenizer's chat template has no "
            "place for: ask LLM.chat"
        )
    return {"role": message.role, "content": message.content}


def _continues(chat: Chat, call: CallOptions) -> bool:
    """Whether the last message is to be continued rather than answered."""
    asked = call.continue_final_message
    return bool(chat[-1]["role"] == "assistant") if asked is None else asked


def _joined(prompt: Prompt, new_text: str, call: CallOptions) -> str | list[Message]:
    """The prompt and the new text in the prompt's own form."""
    if isinstance(prompt, str):
        return prompt + new_text
    if _continues(prompt, call):
        last = prompt[-1]
        return [*prompt[:-1], {"role": last["role"], "content": last["content"] + new_text}]
    return [*prompt, {"role": "assistant", "content": new_text}]


def _refuse_unshown(arguments: Mapping[str, Any]) -> None:
    """Raise UnsupportedOptionError if something is to be collected that records have no place for."""

    def asked(name: str) -> Any:
        given = arguments.get(name)
        return getattr(arguments["generation_config"], name) if given is None else given

    for name in ("output_attentions", "output_hidden_states"):
        if asked("return_dict_in_generate") and asked(name):
            raise UnsupportedOptionError(
                f"{name}=True: the records of a pipeline show scores and logits only; leave it out, or call "
                "pipe.model.generate(...), whose output has everything"
            )


def _extras(output: ModelOutput, prompts: int) -> dict[str, list[Any]]:
    """Scores and logits, where asked for, as lists: by prompt, by sequence, by step."""
    extras = {}
    for name in ("scores", "logits"):
        steps = output.get(name)
        if steps is not None:
            values = torch.stack(steps, dim=1).float().cpu()  # [B * N, steps, V]
            extras[name] = values.reshape(prompts, -1, *values.shape[1:]).tolist()
    return extras
