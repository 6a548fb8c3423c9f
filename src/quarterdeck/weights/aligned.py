"""Safetensors files in which every tensor begins at a multiple of 64 bytes, as far as sizes allow.

The format leaves no holes between tensors, and its own library pads the header to 8 bytes only, so that a weight that
is mapped from a file may begin anywhere: products with packed weights, which are read 64 bytes at a time, were up to
17% slower then. Here the header is padded with spaces, which the format allows, and tensors whose sizes are multiples
of 64 come first, in their order; then those of multiples of 32, 16 and so on. Packed and other matrices of models are
all of the first kind, and every tensor begins at least at a multiple of its own type.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quarterdeck.errors import InputError

ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector registers."""

_TYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_aligned(path: Path, tensors: Mapping[str, Tensor], value: Callable[[str], Tensor]) -> None:
    """Writes one file; see the text of the module.

    Args:
        path: the file.
        tensors: shapes and types, on any device, ``meta`` too; two may share memory, and both are written.
        value: gives a tensor of that shape and type by its name; asked once for each, in the order of the file, so that
            one after the other is in memory.

    Raises:
        InputError: a type that the format does not have.
    """
    order = sorted(tensors, key=lambda name: -_alignment(tensors[name].nbytes))
    header = _header({name: tensors[name] for name in order})
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in order:
            tensor, shape = value(name), tensors[name]
            if tensor.shape != shape.shape or tensor.dtype != shape.dtype:
                raise InputError(
                    f"the value of {name} is {tensor.dtype} {list(tensor.shape)}, but must be {shape.dtype} "
                    f"{list(shape.shape)}, as the model has it: load the model again before saving it"
                )
            file.write(_bytes(tensor))


def _alignment(size: int) -> int:
    """The largest power of two up to `ALIGNMENT` that divides ``size``: after it, a tensor can begin at as much."""
    return min(size & -size, ALIGNMENT) if size else ALIGNMENT


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """JSON, with spaces to where data can begin, behind the 8 bytes that say how long it is."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES:
            raise InputError(
                f"{name} is {tensor.dtype}, and safetensors files hold {', '.join(_TYPES.values())}: convert it first"
            )
        stop = start + tensor.nbytes
        entries[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-(8 + len(text)) % ALIGNMENT)


def _bytes(tensor: Tensor) -> Any:
    """A tensor's numbers, row after row, least byte first."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if sys.byteorder == "big":
        flat = flat.view(-1, tensor.itemsize).flip(1).contiguous().view(-1)
    return flat.numpy()  # lends its memory
