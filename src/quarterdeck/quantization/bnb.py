"""Weights held by the bitsandbytes library: its modules in the places of linears, its own form in files.

In a file, a 4-bit weight ``X.weight`` is a column of bytes (or of another type of the same bits), and beside it stand
``X.weight.absmax`` (the scale of each block), ``X.weight.quant_map`` (what the 16 values mean),
``X.weight.quant_state.bitsandbytes__nf4`` (JSON with shape, type and sizes) and, where the scales are quantized too,
``X.weight.nested_absmax`` and ``X.weight.nested_quant_map``. An 8-bit weight has ``X.SCB``, its rows' largest
magnitudes, and ``X.weight_format``, a zero.

The library is imported when it is first needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from quarterdeck.errors import CheckpointMismatchError, InputError, MissingPackageError
from quarterdeck.quantization.bnb_config import BitsAndBytesConfig
from quarterdeck.quantization.surgery import note, output_head, put, skipped

Shape = tuple[int, ...]
ModelT = TypeVar("ModelT", bound=nn.Module)

_PARTS_4BIT = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_CPU_ROWS = 32  # rows in a block of the library's layout for CPUs with AVX-512 BF16
_STATE = "quant_state.bitsandbytes__"


def library() -> Any:
    """The bitsandbytes package.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingPackageError("bitsandbytes", "bitsandbytes", "a BitsAndBytesConfig") from error
    return bitsandbytes


def replace_with_bitsandbytes(
    model: nn.Module, config: BitsAndBytesConfig, *, elsewhere: Iterable[str] = ()
) -> dict[str, nn.Linear]:
    """Puts the library's linears, without weights, in the places of a model's; returns them by name.

    Args:
        model: a model without memory.
        config: how.
        elsewhere: names of modules that are to stay in full, since they go to the CPU or to disk.

    Raises:
        InputError: no linear is left to quantize.
        MissingPackageError: ``bitsandbytes`` is not installed.
    """
    bitsandbytes = library()
    left = set(_left_alone(model, config)) | set(elsewhere)
    made: dict[str, nn.Linear] = {}
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not skipped(name, left):
            made[name] = _like(module, config, bitsandbytes)
            put(model, name, made[name])
    if not made:
        raise InputError(f"there is nothing to quantize: llm_int8_skip_modules leaves all linears out: {sorted(left)}")
    return made


def parts_in_full(config: BitsAndBytesConfig, places: object) -> list[str]:
    """Names of modules that a device map puts on disk, or on the CPU beside an accelerator; they are not quantized.

    Args:
        config: must allow it.
        places: names of modules to places, or the name of a strategy, which is not asked here.

    Raises:
        InputError: there are such modules and the configuration does not allow them.
    """
    if not isinstance(places, Mapping):
        return []
    accelerated = any(place not in ("cpu", "disk", "meta") for place in places.values())
    far = [name for name, place in places.items() if place == "disk" or (place == "cpu" and accelerated)]
    if far and not config.llm_int8_enable_fp32_cpu_offload:
        raise InputError(
            f"device_map puts {', '.join(map(repr, far))} on the CPU or on disk, where weights of bitsandbytes cannot "
            "wait: give them another place, or set llm_int8_enable_fp32_cpu_offload=True, which leaves them in full"
        )
    return far


def check_planned(config: BitsAndBytesConfig, model: nn.Module, where: Callable[[str], int | str]) -> None:
    """InputError if a device map that was worked out puts quantized weights where they cannot wait."""
    places = {name: where(name) for name, module in model.named_modules() if is_bitsandbytes(module)}
    for name in parts_in_full(replace(config, llm_int8_enable_fp32_cpu_offload=True), places):
        raise InputError(
            f"the model does not fit: the device map that was worked out puts '{name}' on {places[name]!r}, where "
            "weights of bitsandbytes cannot wait; give a larger max_memory, or a device_map of your own with "
            "llm_int8_enable_fp32_cpu_offload=True, which leaves such parts in full"
        )


def is_bitsandbytes(module: nn.Module) -> bool:
    """Whether ``module`` is one of the library's; does not import it."""
    bitsandbytes = sys.modules.get("bitsandbytes")
    return bitsandbytes is not None and isinstance(module, bitsandbytes.nn.Linear4bit | bitsandbytes.nn.Linear8bitLt)


class BitsAndBytesReceiver:
    """Takes full weights and quantizes them, and takes weights that the library quantized as they are.

    Args:
        modules: the modules to fill, by name.
        config: how they hold their weights.
        stored: name and shape of each tensor that there is to take; names may lack ``prefix`` or have it.
        prefix: what a model with a head puts before the names of one without.
        dtype: type of the model, to which full weights are rounded before they are quantized, as transformers does.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Linear],
        config: BitsAndBytesConfig,
        stored: Mapping[str, Shape],
        prefix: str,
        dtype: torch.dtype,
    ) -> None:
        self._modules, self._config, self._dtype = modules, config, dtype
        self._stored, self._prefix = stored, prefix
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._expected = {name: self._parts(name) for name in modules}

    def shapes(self) -> dict[str, Shape]:
        """All parts of the weights: those that are there, and those that should be."""
        return {f"{name}.{part}": shape for name, parts in self._expected.items() for part, shape in parts.items()}

    def receive(self, name: str, tensor: Tensor, device: torch.device) -> None:
        """Takes one part; the last one of a weight finishes it."""
        owner = next(path for path in _beginnings(name) if path in self._modules)
        parts = self._waiting.setdefault(owner, {})
        parts[name.removeprefix(f"{owner}.")] = tensor
        if parts.keys() == self._expected[owner].keys():
            place = torch.device("cpu") if device.type == "meta" else device
            self._finish(owner, self._waiting.pop(owner), place)

    def _parts(self, name: str) -> dict[str, Shape]:
        """Name and shape of each part of one weight, by what the checkpoint has."""
        module, config = self._modules[name], self._config
        full = (module.out_features, module.in_features)
        found = {
            part: shape
            for part in ("SCB", "weight_format", *(f"weight.{one}" for one in _PARTS_4BIT), *_states())
            if (shape := self._shape(f"{name}.{part}")) is not None
        }
        if config.load_in_8bit:
            return {"weight": full} | ({"SCB": full[:1]} if "SCB" in found else {}) | _only(found, "weight_format")
        if not found:
            return {"weight": full}
        state = next((part for part in found if _STATE in part), f"weight.{_STATE}{config.bnb_4bit_quant_type}")
        needed = {"weight.absmax", "weight.quant_map"} | (
            {"weight.nested_absmax", "weight.nested_quant_map"} if config.bnb_4bit_use_double_quant else set()
        )
        width = 2 * config.storage_dtype.itemsize
        parts: dict[str, Shape] = {"weight": (-(-full[0] * full[1] // width), 1), state: found.get(state, ())}
        return parts | {part: found.get(part, ()) for part in sorted(needed | set(found))}

    def _shape(self, name: str) -> Shape | None:
        for spelling in (name, name.removeprefix(self._prefix), self._prefix + name):
            if spelling in self._stored:
                return self._stored[spelling]
        return None

    def _finish(self, owner: str, parts: dict[str, Tensor], device: torch.device) -> None:
        module = self._modules[owner]
        weight = parts.pop("weight")
        if parts:
            self._restore(owner, module, weight, parts, device)
        elif weight.is_floating_point():
            old: Any = module.weight
            held = type(old)(weight.to(self._dtype), requires_grad=False, **vars(old))
            # the library quantizes a full weight when it is moved, even from the CPU to the CPU
            module.weight = held if self._config.llm_int8_has_fp16_weight else held.to(device)
        else:
            raise CheckpointMismatchError(
                f"{owner}.weight is stored in whole numbers, without the scales of bitsandbytes beside it"
            )

    def _restore(self, owner: str, module: Any, weight: Tensor, parts: dict[str, Tensor], device: torch.device) -> None:
        nn_ = library().nn
        if self._config.load_in_8bit:
            if weight.dtype != torch.int8 or "SCB" not in parts:
                raise CheckpointMismatchError(
                    f"{owner} is stored as {weight.dtype}, but must be int8 with scales (SCB)"
                )
            held = nn_.Int8Params(weight.to(device), requires_grad=False, has_fp16_weights=False)
            held.CB, held.SCB = held.data, parts["SCB"].to(device)
            module.weight = held
            return
        stats = {f"weight.{part.removeprefix('weight.')}": tensor for part, tensor in parts.items()}
        module.weight = nn_.Params4bit.from_prequantized(
            data=weight, quantized_stats=stats, requires_grad=False, device=device, module=module
        )


def dequantize_bitsandbytes(model: ModelT, dtype: torch.dtype) -> ModelT:
    """Gives a model plain linears in ``dtype`` in the places of the library's."""
    for name, module in list(model.named_modules()):
        if is_bitsandbytes(module):
            with torch.device("meta"):
                linear = nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight = nn.Parameter(_dequantized(module).to(dtype))
            linear.register_parameter("bias", module.bias)
            put(model, name, linear)
    note(model, None)
    return model


def _dequantized(module: Any) -> Tensor:
    functional = library().functional
    weight = module.weight
    if module.__class__.__name__ == "Linear8bitLt":
        scales = module.state.SCB if weight.SCB is None else weight.SCB
        rows: Tensor = weight.data
        return rows if rows.is_floating_point() else rows * (scales[:, None] / 127)
    state: dict[str, Tensor] = {}
    module._save_to_state_dict(state, "", keep_vars=False)  # takes back what the library changes for a CPU's kernels
    full: Tensor = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return full


def _left_alone(model: nn.Module, config: BitsAndBytesConfig) -> list[str]:
    """Names of linears that stay as they are: a tied head always, an untied one unless others are named."""
    head = output_head(model)
    name = next((name for name, module in model.named_modules() if module is head), None)
    tables = {id(module.weight) for module in model.modules() if type(module) is nn.Embedding}
    tied = head is not None and id(head.weight) in tables
    named = config.llm_int8_skip_modules
    by_default = [name] if name is not None and (tied or named is None) else []
    return by_default + (named or [])


def _like(linear: nn.Linear, config: BitsAndBytesConfig, bitsandbytes: Any) -> nn.Linear:
    sizes = (linear.in_features, linear.out_features, False)
    with torch.device("meta"):
        if config.load_in_8bit:
            made = bitsandbytes.nn.Linear8bitLt(
                *sizes, has_fp16_weights=config.llm_int8_has_fp16_weight, threshold=float(config.llm_int8_threshold)
            )
        else:
            made = bitsandbytes.nn.Linear4bit(
                *sizes,
                compute_dtype=config.bnb_4bit_compute_dtype,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=config.bnb_4bit_quant_type,
                quant_storage=config.bnb_4bit_quant_storage,
            )
            if linear.in_features % made.weight.blocksize or linear.out_features % _CPU_ROWS:
                made.support_avx512bf16_for_cpu = False  # that layout has whole blocks only, and fails otherwise
    made.bias = linear.bias
    made.placed_bytes = partial(int, _bytes(linear, config))  # for who plans memory before the weights are there
    made.requires_grad_(False)
    replaced: nn.Linear = made
    return replaced


def _bytes(linear: nn.Linear, config: BitsAndBytesConfig) -> int:
    rows, count = linear.out_features, linear.in_features * linear.out_features
    bias = 0 if linear.bias is None else linear.bias.nbytes
    if config.load_in_8bit:
        return bias + (2 * count if config.llm_int8_has_fp16_weight else count + 4 * rows)
    scales = count // 64 * (1 if config.bnb_4bit_use_double_quant else 4)
    return bias + count // 2 + scales


def _beginnings(name: str) -> Iterable[str]:
    """``a.b.c``: ``a.b``, ``a``."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _states() -> list[str]:
    return [f"weight.{_STATE}{kind}" for kind in ("fp4", "nf4")]


def _only(found: Mapping[str, Shape], part: str) -> dict[str, Shape]:
    return {part: found[part]} if part in found else {}
