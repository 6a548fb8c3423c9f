"""`BitsAndBytesConfig`: 4-bit and 8-bit weights of the bitsandbytes library, with the field names of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch

from quarterdeck.errors import InputError, UnsupportedOptionError

QUANT_TYPES = ("fp4", "nf4")
_STORAGE = (torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLAGS = (
    "load_in_8bit",
    "load_in_4bit",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "bnb_4bit_use_double_quant",
)
_DTYPES = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")
# what transformers writes besides the fields themselves
_ALSO_WRITTEN = ("quant_method", "_load_in_4bit", "_load_in_8bit")


@dataclass(frozen=True, init=False)
class BitsAndBytesConfig:
    """How bitsandbytes is to hold the weights of the decoder's linears; embedding and tied head stay as they are.

    Args:
        load_in_8bit: LLM.int8(): one scale for each row, columns of large activations in 16 bit.
        load_in_4bit: blocks of 64 weights with one scale each (QLoRA). One of the two must be True to load.
        llm_int8_threshold: activations above this are outliers; 0 takes none out.
        llm_int8_skip_modules: names of modules to leave alone, whole (``"model.layers.0.mlp.up_proj"``), their
            beginning (``"model.layers.0"``) or their last part (``"up_proj"``). They stand in place of the default, an
            untied output head, not beside it; a tied head is left alone in any case.
        llm_int8_enable_fp32_cpu_offload: allows a device map that puts parts on the CPU or on disk beside a GPU; those
            parts are not quantized.
        llm_int8_has_fp16_weight: keep 8-bit weights in 16 bit and quantize them in every step, for training.
        bnb_4bit_compute_dtype: what 4-bit products are computed in, a type or its name; float32 if None.
        bnb_4bit_quant_type: ``"fp4"`` or ``"nf4"``, the values that 4 bits stand for.
        bnb_4bit_use_double_quant: quantize the scales too, to 8 bit.
        bnb_4bit_quant_storage: type of the tensors that hold 4-bit weights; uint8 if None.

    Raises:
        InputError: a value that cannot be right, or both sizes at once.
        UnsupportedOptionError: a field that is unknown, which transformers notes in its log and forgets.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: list[str] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: torch.dtype | str | None = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: torch.dtype | str | None = None

    quant_method: ClassVar[str] = "bitsandbytes"

    def __init__(
        self,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: list[str] | None = None,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False,
        bnb_4bit_compute_dtype: torch.dtype | str | None = None,
        bnb_4bit_quant_type: str = "fp4",
        bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: torch.dtype | str | None = None,
        **unknown: Any,
    ) -> None:
        _refuse(unknown)
        values: tuple[Any, ...] = (
            *(load_in_8bit, load_in_4bit, llm_int8_threshold, llm_int8_skip_modules),
            *(llm_int8_enable_fp32_cpu_offload, llm_int8_has_fp16_weight, bnb_4bit_compute_dtype),
            *(bnb_4bit_quant_type, bnb_4bit_use_double_quant, bnb_4bit_quant_storage),
        )
        for field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)
        self._check()

    def _check(self) -> None:
        for name, default in zip(_DTYPES, (torch.float32, torch.uint8), strict=True):
            object.__setattr__(self, name, _dtype(name, getattr(self, name), default))
        for name in _FLAGS:
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} is {value!r}, but must be True or False")
        if self.load_in_4bit and self.load_in_8bit:
            raise InputError("load_in_4bit and load_in_8bit are both True; a weight has one size: choose one")
        threshold = self.llm_int8_threshold
        if not isinstance(threshold, float | int) or isinstance(threshold, bool) or not threshold >= 0:
            raise InputError(f"llm_int8_threshold is {threshold!r}, but must be a number from 0 on")
        skipped = self.llm_int8_skip_modules
        if skipped is not None and not (isinstance(skipped, list) and all(isinstance(one, str) for one in skipped)):
            raise InputError(f"llm_int8_skip_modules is {skipped!r}, but must be None or a list of names")
        if self.bnb_4bit_quant_type not in QUANT_TYPES:
            raise InputError(f"bnb_4bit_quant_type is {self.bnb_4bit_quant_type!r}, but must be 'fp4' or 'nf4'")
        if self.bnb_4bit_quant_storage not in _STORAGE:
            names = ", ".join(_name(one) for one in _STORAGE)
            raise InputError(f"bnb_4bit_quant_storage is {self.bnb_4bit_quant_storage}, but must be one of {names}")

    @property
    def storage_dtype(self) -> torch.dtype:
        """``bnb_4bit_quant_storage``, which is never a name once the configuration is made."""
        return _dtype("bnb_4bit_quant_storage", self.bnb_4bit_quant_storage, torch.uint8)

    @property
    def is_quantizable(self) -> bool:
        """Whether one of the two sizes is asked for."""
        return self.load_in_4bit or self.load_in_8bit

    @property
    def quantization_method(self) -> str | None:
        """``"llm_int8"``, ``"fp4"`` or ``"nf4"``; None if nothing is asked for."""
        return "llm_int8" if self.load_in_8bit else self.bnb_4bit_quant_type if self.load_in_4bit else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the ``quantization_config`` of a config.json.

        Raises:
            UnsupportedOptionError: a field that is unknown.
            InputError: a value that cannot be right.
        """
        return cls(**{name: value for name, value in values.items() if name not in _ALSO_WRITTEN})

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds, readable for transformers too."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: _name(values[name]) for name in _DTYPES}
        return {"quant_method": self.quant_method, **values}

    def run_as(self, asked: BitsAndBytesConfig) -> BitsAndBytesConfig:
        """These stored weights, run in the way that ``asked`` says.

        Raises:
            InputError: ``asked`` is for weights that are stored otherwise.
        """
        stored: tuple[str, ...] = ("load_in_8bit", "load_in_4bit")
        if self.load_in_4bit:
            stored += ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage")
        for name in stored:
            if getattr(self, name) != getattr(asked, name):
                raise InputError(
                    f"the checkpoint's weights are quantized already, with {name}={getattr(self, name)!r}, and cannot "
                    f"be had with {getattr(asked, name)!r}: leave out quantization_config, or load the checkpoint that "
                    "this was made from"
                )
        return replace(asked, llm_int8_skip_modules=self.llm_int8_skip_modules)


def _refuse(unknown: Iterable[str]) -> None:
    """Raises UnsupportedOptionError that names what is no field."""
    if names := sorted(unknown):
        raise UnsupportedOptionError(
            f"a bitsandbytes configuration has no {', '.join(map(repr, names))}; it has "
            f"{', '.join(sorted(field.name for field in fields(BitsAndBytesConfig)))}: leave out what it has not"
        )


def _dtype(field: str, value: Any, default: torch.dtype) -> torch.dtype:
    found = default if value is None else value
    if isinstance(value, str):
        found = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"{field} is {value!r}, but must be a torch.dtype or the name of one, such as 'bfloat16'")
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
