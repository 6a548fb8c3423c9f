"""From what a caller or a config.json says about quantization to one configuration, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_args

import torch

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.quantization.bnb_config import BitsAndBytesConfig
from quarterdeck.quantization.config import Format, QuantizationConfig

Quantization = QuantizationConfig | BitsAndBytesConfig
AnyQuantization = Quantization | str | Mapping[str, Any] | None

_BNB_OPTIONS = frozenset(field.name for field in fields(BitsAndBytesConfig))


def as_quantization(value: Any) -> Quantization | None:
    """A configuration from itself, from a format's name (``"int4"``) or from a dictionary as in config.json.

    Raises:
        InputError: it is none of these, or its values cannot be right.
        UnsupportedOptionError: weights quantized in a way that is not read here.
    """
    if value is None or isinstance(value, QuantizationConfig | BitsAndBytesConfig):
        return value
    if isinstance(value, str):
        if value not in get_args(Format):
            raise InputError(f"quantization is {value!r}, but must be one of {', '.join(get_args(Format))}")
        return QuantizationConfig.from_dict({"format": value})
    if isinstance(value, Mapping):
        return _from_dict(value)
    if hasattr(value, "to_dict"):
        raise InputError(
            f"quantization is a {type(value).__module__}.{type(value).__qualname__}; give quarterdeck's own class of "
            "that name, or a dictionary: value.to_dict()"
        )
    raise InputError(f"quantization is {value!r}; give a format's name, a QuantizationConfig or a BitsAndBytesConfig")


def _from_dict(values: Mapping[str, Any]) -> Quantization:
    method = values.get("quant_method")
    if method == BitsAndBytesConfig.quant_method or (
        method is None and (values.get("load_in_4bit") or values.get("load_in_8bit"))
    ):
        return BitsAndBytesConfig.from_dict(values)
    if method in (QuantizationConfig.quant_method, None):
        return QuantizationConfig.from_dict(values)
    raise UnsupportedOptionError(
        f"weights quantized by {method!r} are not read; there are 'quarterdeck' and 'bitsandbytes', and checkpoints of "
        "'gptq' and 'awq': use the checkpoint that this was made from with quantization_config='int4'"
    )


def asked_quantization(quantization_config: Any, options: dict[str, Any]) -> Quantization | None:
    """What the keyword arguments of ``from_pretrained`` ask for.

    Args:
        quantization_config: see `as_quantization`.
        options: the other keyword arguments; ``load_in_4bit``, ``load_in_8bit`` and, beside one of those, the other
            fields of `BitsAndBytesConfig` are taken out.

    Raises:
        InputError: contradictions, or nothing that can be right.
    """
    given = as_quantization(quantization_config)
    flags = {name: options.pop(name, None) for name in ("load_in_4bit", "load_in_8bit")}
    for name, value in flags.items():
        if not isinstance(value, bool | None):
            raise InputError(f"{name} is {value!r}, but must be True or False")
    if not any(flags.values()):
        return given
    if given is not None:
        raise InputError("load_in_4bit and load_in_8bit are fields of quantization_config: set them there only")
    values = {name: options.pop(name) for name in list(options) if name in _BNB_OPTIONS}
    return BitsAndBytesConfig.from_dict(values | {name: value or False for name, value in flags.items()})


def chosen_quantization(asked: Quantization | None, stored: Any) -> Quantization | None:
    """What loading is to do.

    Args:
        asked: what the caller asks for.
        stored: the ``quantization_config`` of the checkpoint's configuration; None if it has none.

    Raises:
        InputError: weights that are quantized already are asked for otherwise, or nothing is asked for.
    """
    found = as_quantization(stored)
    if found is None or asked is None:
        chosen = found or asked
    elif isinstance(found, BitsAndBytesConfig) and isinstance(asked, BitsAndBytesConfig):
        chosen = found.run_as(asked)
    elif found == asked or _only_method_differs(found, asked):
        chosen = found
    else:
        raise InputError(
            f"the checkpoint's weights are quantized already, as {found}, and cannot be quantized as {asked}: leave "
            "out quantization_config, or load the checkpoint that this was made from"
        )
    if isinstance(chosen, BitsAndBytesConfig) and not chosen.is_quantizable:
        raise InputError("a BitsAndBytesConfig for loading needs load_in_4bit=True or load_in_8bit=True")
    return chosen


def _only_method_differs(found: Quantization, asked: Quantization) -> bool:
    """Whether a checkpoint made with calibration is asked for by the name of its format alone."""
    if not isinstance(found, QuantizationConfig) or not isinstance(asked, QuantizationConfig):
        return False
    return replace(found, method=asked.method) == asked and asked.method == "round-to-nearest"


def default_dtype(quantization: Quantization | None, dtype: Any, torch_dtype: Any) -> Any:
    """The type asked for; if none is, bitsandbytes' models are in float16, as in transformers."""
    if dtype is None and torch_dtype is None and isinstance(quantization, BitsAndBytesConfig):
        return torch.float16
    return dtype
