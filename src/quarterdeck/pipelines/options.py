"""The keyword arguments of a text-generation pipeline, checked and sorted into what they are for."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.generation.config import describe_unknown
from quarterdeck.generation.options import CALL_ARGUMENTS, OPTIONS


class ReturnType(enum.Enum):
    """What a record of the result holds."""

    TENSORS = 0
    """``generated_token_ids``: the ids, prompt included."""
    NEW_TEXT = 1
    """``generated_text``: the new text only."""
    FULL_TEXT = 2
    """``generated_text``: the prompt, then the new text."""


@dataclass(frozen=True)
class CallOptions:
    """The options of one call. Those that are None have not been given.

    Attributes:
        return_type: what a record holds; full text by default.
        clean_up_tokenization_spaces: whether " ," becomes "," and so on, as English is written; True by default.
        skip_special_tokens: whether special tokens are left out of the text; True by default.
        continue_final_message: whether the model goes on with a chat's last message rather than answering it; by
            default it does when that message is the assistant's.
        prefix: text before every prompt, not part of the result.
        handle_long_generation: ``"hole"`` drops the beginning of prompts that leave no room for new tokens.
        batch_size: prompts that run at once; 1 by default.
        add_special_tokens, padding, truncation, max_length: for the tokenizer.
        tokenizer_encode_kwargs: more options for the tokenizer, or for the chat template.
        generate: arguments of ``model.generate``; ``stop_sequence``, a text that ends an answer, is its
            ``stop_strings``.
    """

    return_type: ReturnType | None = None
    clean_up_tokenization_spaces: bool | None = None
    skip_special_tokens: bool | None = None
    continue_final_message: bool | None = None
    prefix: str | None = None
    handle_long_generation: str | None = None
    batch_size: int | None = None
    add_special_tokens: bool | None = None
    padding: bool | str | None = None
    truncation: bool | str | None = None
    max_length: int | None = None
    tokenizer_encode_kwargs: Mapping[str, Any] | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.handle_long_generation not in (None, "hole"):
            raise InputError(f"handle_long_generation is {self.handle_long_generation!r}, but must be 'hole' or None")
        size = self.batch_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise InputError(f"batch_size is {size!r}, but must be a whole number of at least 1")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> CallOptions:
        """Sort the keyword arguments of a call.

        Raises:
            InputError: a value cannot be right, or two exclude each other.
            UnsupportedOptionError: neither an option of the pipeline nor of ``generate``.
        """
        rest = dict(options)
        if (stop := rest.pop("stop_sequence", None)) is not None:
            if rest.get("stop_strings") is not None:
                raise InputError("stop_sequence and stop_strings are one option: give all texts in stop_strings")
            rest["stop_strings"] = stop
        for name, reason in _REFUSED.items():
            value = rest.pop(name, None)
            if not (value is None or value == 0):
                raise UnsupportedOptionError(f"{name} is not in this version; {reason}")
        return_type = _return_type(**{name: rest.pop(name, None) for name in _RETURN_OPTIONS})
        own = {name: rest.pop(name) for name in _OWN if name in rest}
        for name in rest:
            if name not in _GENERATE:
                raise UnsupportedOptionError(_unknown(name))
        if own.get("max_length") is not None:
            rest["max_length"] = own["max_length"]
        return cls(return_type=return_type, generate=rest, **own)

    def updated_by(self, later: CallOptions) -> CallOptions:
        """These options with those that ``later`` gives in their place."""
        given = {item.name: getattr(later, item.name) for item in fields(later)}
        given = {name: value for name, value in given.items() if value is not None}
        return replace(self, **{**given, "generate": {**self.generate, **later.generate}})

    def for_tokenizer(self) -> dict[str, Any]:
        """Arguments of the tokenizer, only those given, so that its own defaults hold."""
        named = {name: getattr(self, name) for name in ("add_special_tokens", "padding", "truncation", "max_length")}
        return {name: value for name, value in named.items() if value is not None} | dict(
            self.tokenizer_encode_kwargs or {}
        )


_OTHER_TASKS = "it belongs to other tasks than text-generation; leave it out"
_REFUSED = {
    "num_workers": "prompts are encoded as they are needed, without worker processes; leave it out",
    "feature_extractor": _OTHER_TASKS,
    "image_processor": _OTHER_TASKS,
    "processor": _OTHER_TASKS,
    "pipeline_class": "there is one pipeline, TextGenerationPipeline, to be called by its own name; leave it out",
}
"""Options of the same pipeline elsewhere, and what to do instead. None asks for nothing, nor does 0."""

_TEMPLATE = "is for the chat template: give tokenizer_encode_kwargs={{{name!r}: ...}}, or ask LLM.chat({name}=...)"
_LOADING = "is for loading: give model_kwargs={{{name!r}: ...}} to pipeline(...)"
_ELSEWHERE = {
    **dict.fromkeys(("documents", "tools"), _TEMPLATE),
    "citation_mode": "is for grounded chats: ask LLM.chat(citation_mode=...)",
    "inputs": "is the prompt: give it as the first argument of the call",
    **dict.fromkeys(
        ("attn_implementation", "quantization_config", "max_memory", "offload_folder", "gguf_file"), _LOADING
    ),
    **dict.fromkeys(("cache_dir", "local_files_only", "force_download", "subfolder"), _LOADING),
}
"""Names that are no options of calls, and where they belong."""

_RETURN_OPTIONS = ("return_full_text", "return_tensors", "return_text", "return_type")
_OWN = tuple(item.name for item in fields(CallOptions) if item.name not in ("return_type", "generate"))
_GENERATE = {*OPTIONS, *(name for name, reason in CALL_ARGUMENTS.items() if reason is None), "generation_config"} - {
    "inputs"
}


def _unknown(name: str) -> str:
    """The message for a name that is no option: where it belongs, or what may have been meant."""
    if name in _ELSEWHERE:
        return f"{name!r} is no option of the pipeline; it {_ELSEWHERE[name].format(name=name)}"
    if name in CALL_ARGUMENTS:
        return describe_unknown(name)
    close = difflib.get_close_matches(name, [*_OWN, *_RETURN_OPTIONS, *sorted(_GENERATE), *_OF_PIPELINE], n=3)
    meant = f"did you mean {' or '.join(map(repr, close))}?" if close else "leave it out"
    return f"{name!r} is neither an option of the pipeline nor one of model.generate: {meant}"


_OF_PIPELINE = (
    *("stop_sequence", "model", "config", "tokenizer", "framework", "revision", "use_fast", "token", "device"),
    *("device_map", "dtype", "torch_dtype", "trust_remote_code", "model_kwargs"),
)
"""Further names to be misspelt: the arguments of `quarterdeck.pipeline`."""


def _return_type(
    return_full_text: bool | None,
    return_tensors: bool | None,
    return_text: bool | None,
    return_type: ReturnType | None,
) -> ReturnType | None:
    """The kind of record asked for, None if nothing was."""
    given = {"return_full_text": return_full_text, "return_tensors": return_tensors, "return_text": return_text}
    names = [name for name, value in given.items() if value is not None]
    if return_type is not None:
        try:
            return ReturnType(return_type)
        except ValueError:
            kinds = ", ".join(f"{kind.value} ({kind.name})" for kind in ReturnType)
            raise InputError(f"return_type={return_type!r} is none of {kinds}") from None
    if len(names) > 1:
        raise InputError(f"{' and '.join(names)} exclude each other: give one of them")
    if return_full_text is not None:
        return ReturnType.FULL_TEXT if return_full_text else ReturnType.NEW_TEXT
    return ReturnType.TENSORS if return_tensors else None
