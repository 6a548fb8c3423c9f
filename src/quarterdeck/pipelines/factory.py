"""``pipeline(...)``: finds the model, the tokenizer and the device that a pipeline needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.config import CohereConfig
from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.locate import EMBEDDED_MODEL, HubOptions
from quarterdeck.model import CohereForCausalLM
from quarterdeck.pipelines.options import CallOptions
from quarterdeck.pipelines.text_generation import TextGenerationPipeline
from quarterdeck.tokenizer import CohereTokenizerFast

logger = logging.getLogger(__name__)

TASK = "text-generation"
Name = str | os.PathLike[str]
Device = int | str | torch.device


def pipeline(
    task: str | None = TASK,
    model: Name | CohereForCausalLM | None = None,
    config: Name | CohereConfig | None = None,
    tokenizer: Name | CohereTokenizerFast | None = None,
    *,
    framework: str | None = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: str | bool | None = None,
    device: Device | None = None,
    device_map: Any = None,
    dtype: str | torch.dtype | None = "auto",
    torch_dtype: str | torch.dtype | None = None,
    trust_remote_code: bool | None = None,
    assistant_model: Name | CohereForCausalLM | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> TextGenerationPipeline:
    """A function from prompts to texts; see :class:`TextGenerationPipeline` for what it takes.

    >>> generate = pipeline("text-generation")
    >>> generate("Plants create energy through a process known as")

    Args:
        task: ``"text-generation"``, the only task there is.
        model: a model, or the name of one: a folder, a hub id or ``"midshipman"``; that one if None.
        config: a configuration in place of the checkpoint's, or where to read one.
        tokenizer: a tokenizer, or where to read one; needed if ``model`` is a model rather than a name.
        framework: ``"pt"``, the only one there is.
        revision, token: version on the hub, and the right to read it.
        use_fast: True, the only kind of tokenizer there is.
        device: where to run: ``"cuda:1"``, ``torch.device(...)``, or a number (of an accelerator; of the CPU if
            there is none or the number is -1). Default: the first accelerator, else the CPU.
        device_map: as in ``from_pretrained``; excludes ``device``.
        dtype: type of the weights; ``"auto"`` is the checkpoint's.
        torch_dtype: the older name of ``dtype``.
        trust_remote_code: code from a checkpoint is never run: False or None.
        assistant_model: a smaller model with the same tokenizer, or its name, that drafts what the model then checks.
        model_kwargs: more arguments of ``from_pretrained``, such as ``attn_implementation``.
        options: defaults of the calls' options: ``batch_size``, ``return_full_text``, ``max_new_tokens`` ...

    Raises:
        InputError: arguments that cannot be right, alone or together.
        CheckpointError, ConfigError, TokenizerError: the model cannot be loaded.
    """
    _check_choices(task, framework, use_fast, trust_remote_code)
    _check_assistant(assistant_model)
    CallOptions.of(options)  # what is no option is refused before anything is loaded
    if dtype == "auto" and torch_dtype is not None:
        dtype = torch_dtype
    if model is None and tokenizer is not None:
        raise InputError("a tokenizer without a model: name the model too, so that the two belong together")
    model = EMBEDDED_MODEL if model is None else model
    if isinstance(model, CohereForCausalLM):
        _refuse_loading_options(dtype=dtype, device_map=device_map, model_kwargs=model_kwargs, config=config)
        tokenizer = _tokenizer(tokenizer, None, {"revision": revision, "token": token})
        place = None if device is None else as_device(device)
        options |= _assistant(assistant_model, model, place)
        return TextGenerationPipeline(model, tokenizer, device=place, **options)
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"model is a {type(model).__name__}, which does not generate text: give a CohereForCausalLM (of "
            "AutoModelForCausalLM.from_pretrained), or a model's name"
        )
    arguments = {"revision": revision, "token": token, "config": config, **(model_kwargs or {})}
    arguments["dtype"] = _only_one("dtype", arguments, dtype, default="auto")
    if device is not None and (device_map is not None or "device_map" in arguments):
        raise InputError("device and device_map both say where the model goes: give one of them")
    device_map = _only_one("device_map", arguments, device_map, default=None)
    arguments["device_map"] = as_device(device) if device_map is None else device_map
    tokenizer = _tokenizer(tokenizer, model, arguments)
    loaded = AutoModelForCausalLM.from_pretrained(model, **arguments)
    return TextGenerationPipeline(loaded, tokenizer, **options, **_assistant(assistant_model, loaded, loaded.device))


def as_device(device: Device | None) -> torch.device:
    """The device meant by a name, by an accelerator's number (-1: the CPU), or by None (the first accelerator).

    Raises:
        InputError: neither a name nor a number, or a device that is not there.
    """
    if isinstance(device, str | torch.device):
        return _named_device(device)
    if device is not None and (not isinstance(device, int) or isinstance(device, bool)):
        raise InputError(f"device={device!r} is neither a name, such as 'cuda:1', nor the number of an accelerator")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None and (device is None or device >= 0):
        return _named_device(torch.device(accelerator.type, device or 0))
    if device is not None and device >= 0:
        logger.warning("there is no accelerator: device=%d means the CPU here", device)
    return torch.device("cpu")


def _named_device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(
            f"there is no kind of device {name!r}: give 'cpu', 'cuda', 'cuda:1', 'mps' or the like"
        ) from None
    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device.type not in ("cpu", "meta", present.type if present else "cpu"):
        raise InputError(f"there is no {str(device)!r} here: give 'cpu'" + (f" or {present.type!r}" if present else ""))
    if present and device.type == present.type and (device.index or 0) >= torch.accelerator.device_count():
        raise InputError(
            f"there is no {str(device)!r} here, which has {torch.accelerator.device_count()}: give a lower number"
        )
    return device


def _check_choices(task: str | None, framework: str | None, use_fast: bool, trust_remote_code: bool | None) -> None:
    """Refuse by name whatever there is only one choice of."""
    if task not in (TASK, None):
        raise UnsupportedOptionError(f"task {task!r} is not supported; the only task is {TASK!r}")
    if framework not in ("pt", None):
        raise UnsupportedOptionError(f"framework={framework!r} is not supported; the only one is 'pt' (PyTorch)")
    if not use_fast:
        raise UnsupportedOptionError("use_fast=False: Cohere models have no tokenizer written in Python; leave it out")
    if trust_remote_code:
        raise UnsupportedOptionError("trust_remote_code=True: code from a checkpoint is never run; leave it out")


def _check_assistant(assistant: object) -> None:
    if not isinstance(assistant, str | os.PathLike | CohereForCausalLM | None):
        raise InputError(
            f"assistant_model is {assistant!r}, but must be a CohereForCausalLM, a model's name, or None for no draft"
        )


def _assistant(
    assistant: Name | CohereForCausalLM | None, model: CohereForCausalLM, device: torch.device | None
) -> dict[str, Any]:
    """The option of calls that makes ``assistant`` draft; a name is loaded to where the model is."""
    if isinstance(assistant, str | os.PathLike):
        place = model.device if device is None else device
        assistant = AutoModelForCausalLM.from_pretrained(assistant, dtype=model.dtype, device_map=place)
    return {} if assistant is None else {"assistant_model": assistant}


def _refuse_loading_options(**options: Any) -> None:
    given = [name for name, value in options.items() if value not in (None, {}) and (name, value) != ("dtype", "auto")]
    if given:
        raise InputError(
            f"{', '.join(given)} would only matter for loading, and the model is loaded already; leave out, or give "
            "the model's name instead"
        )


def _only_one(name: str, arguments: dict[str, Any], value: Any, default: Any) -> Any:
    """The value given either by itself or in ``model_kwargs`` (an older name included), but not in both."""
    inside = arguments.pop(name, None)
    if name == "dtype" and inside is None:
        inside = arguments.pop("torch_dtype", None)
    if inside is not None and value not in (default, None):
        raise InputError(f"{name} is given both by itself and in model_kwargs; give it once")
    return value if inside is None else inside


def _tokenizer(
    tokenizer: Name | CohereTokenizerFast | None, model: Name | None, arguments: Mapping[str, Any]
) -> CohereTokenizerFast:
    """The tokenizer given or named, else that of the model's folder."""
    if isinstance(tokenizer, CohereTokenizerFast):
        return tokenizer
    name = tokenizer if tokenizer is not None else model
    if name is None:
        raise InputError("the model is given without its tokenizer; pass tokenizer=..., a tokenizer or a name")
    hub = {field.name: arguments[field.name] for field in fields(HubOptions) if field.name in arguments}
    return AutoTokenizer.from_pretrained(name, **hub)
