"""The native library: whether it is there, what the processor can do with it, and how to call it.

Levels are sets of instructions. A library holds those that its compiler knew; the processor and the system decide
which of them can run; the best of those is used where none is named.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_char_p, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from quarterdeck.errors import InputError

LEVELS = ("portable", "avx2", "avxvnni", "avx512", "amx")
"""From what every processor has to what only some have; ``avx512`` includes VNNI, ``amx`` int8 and bf16."""

REFERENCE = "reference"
"""The name that forces the reference in PyTorch."""

_ABI = 2
"""What the library must say too, as it does where it was built from the sources beside this file."""

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_LIBRARY = Path(__file__).with_name("_native.so")

# x, its type, rows of x, rows and columns of the weight; then pointers
_PRODUCT = [c_int, c_int, c_void_p, c_int, c_int64, c_int64, c_int64]
_SIGNATURES = {
    "quarterdeck_dense_linear": [*_PRODUCT, c_void_p, c_void_p, c_void_p],
    "quarterdeck_attend": [c_int, c_int, c_void_p, c_void_p, c_int],
    "quarterdeck_packed_forward": [c_int, c_int, c_void_p],
    "quarterdeck_packed_backward": [c_int, c_int, c_void_p],
    "quarterdeck_int8_linear": [*_PRODUCT, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p],
    "quarterdeck_group_linear": [*_PRODUCT, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int],
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library with its functions' signatures, or ``None`` where it was not built or cannot be loaded."""
    try:
        loaded = ctypes.CDLL(str(_LIBRARY))
        loaded.quarterdeck_level.argtypes, loaded.quarterdeck_level.restype = [c_int], c_char_p
        loaded.quarterdeck_threads.restype = c_char_p
        for name, arguments in _SIGNATURES.items():
            getattr(loaded, name).argtypes = arguments
        abi = loaded.quarterdeck_abi()
    except (OSError, AttributeError):  # no file, a file for another machine, or one of an older version
        return None
    return loaded if abi == _ABI else None


@functools.cache
def levels() -> tuple[str, ...]:
    """The levels that can run here, least first; none without the library."""
    native = library()
    return () if native is None else tuple(n for i, n in enumerate(LEVELS) if native.quarterdeck_level(i))


def describe() -> str:
    """One line for people: the levels that can run, or why there are none."""
    native = library()
    if native is not None:
        return f"{levels()[-1]} (of {', '.join(levels())}; threads: {native.quarterdeck_threads().decode()})"
    reason = _LIBRARY.with_suffix(".txt")
    if reason.is_file():
        said = " ".join(reason.read_text(encoding="utf-8", errors="replace").split())
        return f"not built, PyTorch is used: {said[-300:]}"
    if _LIBRARY.is_file():
        return "built for another machine or from other sources, PyTorch is used; install the package again"
    return "not built, PyTorch is used; install the package again where there is a C++ compiler"


def level_for(tensor: Tensor, level: str | None) -> int | None:
    """The number of the level to use for ``tensor``: the one named, or the best; ``None`` is the reference.

    InputError names a level that does not exist or cannot run here.
    """
    if level == REFERENCE or (level is None and (tensor.device.type != "cpu" or not levels())):
        return None
    if level is None:
        return LEVELS.index(levels()[-1])
    if level not in levels() or tensor.device.type != "cpu":
        there = ", ".join((REFERENCE, *levels())) if tensor.device.type == "cpu" else REFERENCE
        raise InputError(f"level {level!r} cannot run here on {tensor.device}; what can: {there}")
    return LEVELS.index(level)


def call(name: str, level: int, *arguments: object) -> None:
    """Call a function of the library with PyTorch's number of threads; Python's other threads go on meanwhile."""
    native = library()
    assert native is not None, "level_for found a level"
    if getattr(native, name)(level, torch.get_num_threads(), *arguments) != 0:
        raise MemoryError(f"{name} found no memory for its activations")


def packed_product(
    name: str, level: int, x: Tensor, rows: int, packed: tuple[Tensor | None, ...], bias: Tensor | None, *form: int
) -> Tensor:
    """``x`` ``[..., K]`` times a packed weight of ``rows`` rows by the library's function ``name``: ``[..., rows]``.

    ``form`` are the numbers that the function takes at the end.
    """
    x = x.contiguous()
    bias = None if bias is None else bias.float().contiguous()
    output = x.new_empty(*x.shape[:-1], rows)
    count = output.numel() // rows
    sizes = (pointer(x), type_number(x), count, rows, x.shape[-1])
    if count:
        call(name, level, *sizes, *(pointer(tensor) for tensor in packed), pointer(bias), pointer(output), *form)
    return output


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's first element; ``None`` stays so."""
    return None if tensor is None else tensor.data_ptr()


def type_number(tensor: Tensor) -> int:
    """The library's number for the type of ``tensor``."""
    return _TYPES[tensor.dtype]
