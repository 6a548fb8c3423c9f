"""Weights as GPTQ and AWQ tools store them: unpacked, and packed again as the kernels here take them.

Beside a linear's name stand, for ``K`` inputs, ``N`` outputs, ``G`` groups of inputs and values of ``b`` bits:

    GPTQ  qweight int32 [K b / 32, N]   neighbouring inputs in one number, the first in the lowest bits
          qzeros  int32 [G, N b / 32]   neighbouring outputs; "gptq" stores zero - 1, "gptq_v2" the zero itself
          scales  float [G, N]
          g_idx   int32 [K]             the group of each input; absent or k // group_size unless desc_act
    AWQ   qweight int32 [K, N b / 32]   outputs 0, 2, 4, 6, 1, 3, 5, 7 of eight, the first in the lowest bits ("gemm")
          qzeros  int32 [G, N b / 32]   the same
          scales  float [G, N]

and weight[n, k] = (value - zero) * scale. Sources: the linears of AutoGPTQ and GPTQModel (``pack``), of AutoAWQ
(``WQLinear_GEMM``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from quarterdeck.errors import CheckpointMismatchError, UnsupportedOptionError
from quarterdeck.kernels import int4, int8_groups
from quarterdeck.kernels.int4 import Int4Weight
from quarterdeck.kernels.int8_groups import Int8GroupWeight
from quarterdeck.quantization.config import FORMS

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_WORD = 32  # bits of the numbers that values are packed into
_FORMATS: Mapping[str, tuple[str, ...]] = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
_BITS: Mapping[str, tuple[int, ...]] = {"gptq": (2, 4, 8), "awq": (4,)}


@dataclass(frozen=True)
class GroupedLayout:
    """What the ``quantization_config`` of such a checkpoint says.

    Args:
        method: ``"gptq"`` or ``"awq"``.
        bits: of a value.
        group_size: inputs that share a scale; -1 is all.
        variant: ``"gptq"``, ``"gptq_v2"``, or ``"gemm"`` of AWQ.
    """

    method: Literal["gptq", "awq"]
    bits: int
    group_size: int
    variant: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From config.json; how the values were found (damping, calibration texts and so on) does not matter here.

        Raises:
            UnsupportedOptionError: a layout that is not read.
        """
        method = values["quant_method"]
        bits = values.get("bits", values.get("w_bit"))
        # GPTQModel writes the first name for AWQ too, AutoAWQ the second
        key = "version" if method == "awq" and "version" in values else "checkpoint_format"
        variant = str(values.get(key) or _FORMATS[method][0]).lower()
        checks = {
            "bits": (bits, _BITS[method]),
            key: (variant, _FORMATS[method]),
            "is_marlin_format": (values.get("is_marlin_format") or False, (False,)),
            "pack_dtype": (str(values.get("pack_dtype") or "int32"), ("int32",)),
            "dynamic": (values.get("dynamic") or None, (None,)),
        }
        for name, (value, allowed) in checks.items():
            if value not in allowed:
                raise UnsupportedOptionError(
                    f"weights quantized by {method!r} with {name}={value!r} are not read; there "
                    f"{'are' if len(allowed) > 1 else 'is'} {', '.join(map(repr, allowed))}: use another version of "
                    "the checkpoint, or the one that it was made from with quantization_config='int4'"
                )
        size = values.get("group_size", values.get("q_group_size", 128))
        if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
            raise UnsupportedOptionError(
                f"weights quantized by {method!r} with group_size={size!r} are not read; it must be the number of "
                "inputs that share a scale, or -1 for all: put it right in config.json"
            )
        return cls(method, bits, size, variant)

    def shape(self, qweight: tuple[int, ...]) -> tuple[int, int]:
        """``[N, K]`` of the weight whose packed form has this shape."""
        first, second = qweight
        per_word = _WORD // self.bits
        return (second, first * per_word) if self.method == "gptq" else (second * per_word, first)


class GroupedWeight(NamedTuple):
    """A weight ``[N, K]``, unpacked: ``(values - zero) * scale``, each for the group of the input."""

    values: Tensor
    """uint8 ``[N, K]``."""
    zero: Tensor
    """uint8 ``[N, G]``."""
    scale: Tensor
    """As stored, ``[N, G]``."""
    group: Tensor
    """int64 ``[K]``: the group of each input."""


def unpack(parts: Mapping[str, Tensor], layout: GroupedLayout) -> GroupedWeight:
    """One linear's weight.

    Args:
        parts: by the names of `PARTS`.
        layout: the checkpoint's.

    Raises:
        CheckpointMismatchError: the parts' shapes do not fit together.
    """
    zero, scale = zeros(parts["qzeros"], layout), parts["scales"].T.contiguous()
    if layout.method == "gptq":
        values = _unpack(parts["qweight"].T.contiguous(), layout.bits)
    else:
        values = _awq(parts["qweight"]).T.contiguous()
    columns = values.shape[1]
    group = input_groups(parts, layout, columns)
    if zero.shape != scale.shape or len(values) != len(scale) or len(group) != columns:
        raise CheckpointMismatchError(
            f"a quantized weight {list(values.shape)} has zeros {list(zero.shape)}, scales {list(scale.shape)} and "
            f"groups of {len(group)} inputs, which do not fit: is the checkpoint intact?"
        )
    if int(group.min()) < 0 or int(group.max()) >= scale.shape[1]:
        raise CheckpointMismatchError(
            f"a quantized weight has {scale.shape[1]} groups of inputs, and g_idx or group_size={layout.group_size} "
            f"tell of {int(group.max()) + 1}: do config.json and the weights belong together?"
        )
    return GroupedWeight(values, zero, scale, group)


def zeros(qzeros: Tensor, layout: GroupedLayout) -> Tensor:
    """The values that stand for zero, uint8 ``[N, G]``."""
    if layout.method == "awq":
        return _awq(qzeros).T.contiguous()
    found = _unpack(qzeros, layout.bits).T.contiguous()
    # stored less one, in as many bits: 15 is zero
    return found + 1 & (1 << layout.bits) - 1 if layout.variant == "gptq" else found


def input_groups(parts: Mapping[str, Tensor], layout: GroupedLayout, columns: int) -> Tensor:
    """The group of each input, int64 ``[columns]``."""
    if "g_idx" in parts:
        return parts["g_idx"].long()
    return torch.arange(columns) // (columns if layout.group_size == -1 else layout.group_size)


def dequantize(weight: GroupedWeight) -> Tensor:
    """The weight in float32 ``[N, K]``."""
    values = weight.values.float() - weight.zero.float()[:, weight.group]
    return values * weight.scale.float()[:, weight.group]


def is_regular(group: Tensor, multiple: int) -> bool:
    """Whether groups are runs of equal length, in order, that inputs in groups of ``multiple`` divide."""
    columns = len(group)
    runs = torch.unique_consecutive(group, return_counts=True)
    sizes = runs[1].tolist()
    in_order = torch.equal(runs[0], torch.arange(len(sizes)))
    equal = all(size == sizes[0] for size in sizes[:-1]) and sizes[-1] <= sizes[0]
    return in_order and equal and (len(sizes) == 1 or sizes[0] % multiple == 0) and columns > 0


def repack(weight: GroupedWeight, form: str) -> Int4Weight | Int8GroupWeight:
    """Values and scales as the kernels take them, unchanged.

    Args:
        weight: as many bits as ``form`` has, float16 scales, groups that are regular for its own.
        form: a name in `FORMS` of a format with groups. Where it is symmetric, without loss, all zeros must be in the
            middle. Or else minima take their place, ``-zero * scale`` in half precision: each is off by at most 1/128
            of a step, since zero is at most 16 steps away.
    """
    kind, symmetric, group, _ = FORMS[form]
    assert group is not None, form
    first = weight.group[torch.arange(0, weight.values.shape[1], group)]  # the group that each of ours lies in
    scale = weight.scale[:, first]
    if kind == "int8":
        return int8_groups.pack((weight.values.to(torch.int16) - 128).to(torch.int8), scale)
    minimum = None if symmetric else (-weight.zero.float()[:, first] * scale.float()).half()
    return int4.pack(weight.values, scale, minimum, group=group)


def _unpack(words: Tensor, bits: int) -> Tensor:
    """int32 ``[R, C]`` to uint8 ``[R, C * 32 / bits]``, the lowest bits first."""
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts & (1 << bits) - 1).to(torch.uint8).flatten(1)


def _awq(words: Tensor) -> Tensor:
    """int32 ``[R, C]`` to uint8 ``[R, 8 C]`` in the order of the outputs."""
    place = torch.tensor(_AWQ_ORDER).argsort()
    return _unpack(words, 4).view(len(words), -1, 8)[:, :, place].flatten(1)
