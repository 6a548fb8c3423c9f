"""Lists of numbers to arrays and back. PyTorch is imported only when it is asked for."""

from __future__ import annotations

import operator
from typing import Any, Literal, cast

import numpy as np

from quarterdeck.errors import TokenizerError, UnsupportedOptionError

TensorType = Literal["pt", "np"]

_HIGHEST_ID = 2**32 - 1


def check_tensor_type(tensor_type: str | None) -> TensorType | None:
    """The value itself if it is one we have.

    Raises:
        UnsupportedOptionError: any other, by name.
    """
    name = getattr(tensor_type, "value", tensor_type)  # an enum of strings, as transformers has, is fine too
    if name not in (None, "pt", "np"):
        raise UnsupportedOptionError(
            f"return_tensors={name!r} is not supported: use 'pt' (PyTorch), 'np' (NumPy) or None"
        )
    return cast("TensorType | None", name)


def to_tensor(name: str, value: Any, tensor_type: TensorType) -> Any:
    """``value`` as a torch tensor or NumPy array; a value that is one already is returned as it is.

    Raises:
        TokenizerError: rows of different lengths, or something that is not numbers.
    """
    _refuse_ragged(name, value)
    try:
        return _torch_tensor(value) if tensor_type == "pt" else _array(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TokenizerError(f"'{name}' cannot become a tensor: {error}; pass return_tensors=None") from error


def _array(value: Any) -> Any:
    array = np.asarray(value)
    return array if array.size else array.astype(np.int64)  # of no numbers at all, not of no floats


def _torch_tensor(value: Any) -> Any:
    import torch  # here, so that tokenizing does not cost the import of torch

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        value = np.array(value)
    tensor = torch.as_tensor(value)
    return tensor if tensor.numel() else tensor.long()


def _refuse_ragged(name: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or not all(isinstance(row, list | tuple) for row in value):
        return
    lengths = [len(row) for row in value]
    if len(set(lengths)) > 1:
        shown = ", ".join(map(str, lengths[:8])) + (", ..." if len(lengths) > 8 else "")
        raise TokenizerError(
            f"'{name}' has rows of lengths {shown}, which do not fit one tensor: pass padding=True (and "
            "truncation=True with max_length to bound them), or return_tensors=None"
        )


def to_python(value: Any) -> Any:
    """``value`` with tensors and arrays, also inside lists, turned into lists and numbers."""
    if isinstance(value, list | tuple):
        return [to_python(item) for item in value] if value and not isinstance(value[0], int) else list(value)
    return value.tolist() if hasattr(value, "tolist") else value


def to_ids(value: Any) -> int | list[int]:
    """One id, or a flat list of ids, from an int, a sequence of ints, or a 0-D or 1-D array or tensor.

    Raises:
        TokenizerError: something else, such as a batch.
    """
    ids = value.tolist() if hasattr(value, "tolist") else value
    try:
        numbers = operator.index(ids) if hasattr(ids, "__index__") else [operator.index(index) for index in ids]
    except (TypeError, ValueError) as error:
        raise TokenizerError(
            f"expected a token id or a flat sequence of token ids, which are integers, not {_shape(value)}; for a "
            "batch use batch_decode"
        ) from error
    lowest, highest = (numbers, numbers) if isinstance(numbers, int) else _range(numbers)
    if highest > _HIGHEST_ID:
        raise TokenizerError(f"token id {highest} is beyond {_HIGHEST_ID}, the highest that a token can have")
    if lowest < 0:
        raise TokenizerError(f"token id {lowest} is negative; remove markers such as -100 before decoding")
    return numbers


def _range(numbers: list[int]) -> tuple[int, int]:
    return min(numbers, default=0), max(numbers, default=0)


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"an array of shape {tuple(shape)} and type {value.dtype}" if shape is not None else f"{str(value)[:60]!r}"
