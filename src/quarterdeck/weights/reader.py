"""Reading tensors, from safetensors files or from memory, one at a time.

A file is mapped into memory, not read: a tensor that needs no conversion is a window on the file, its pages
come in when they are first used, and the system can drop them again without writing them anywhere. The
mapping is private to the process: a weight that is changed in place changes in memory only.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quarterdeck.errors import CheckpointCorruptError
from quarterdeck.weights.index import INDEX_FILE, WeightFiles

_LFS_POINTER = b"version https://git-lfs"
_DERIVED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


class TensorSource(Protocol):
    """Named tensors that are handed out one by one."""

    def names(self) -> Iterable[str]:
        """All names, in the order in which the tensors are stored."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The type of one tensor, without reading it."""
        ...

    def tensor(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """One tensor on ``device``, as ``dtype`` if that is given and the tensor is of a floating type."""
        ...

    def once(self, name: str) -> Tensor:
        """One tensor as it is stored, on the CPU, for who reads it once and lets it go."""
        ...

    def path(self, name: str) -> Path | None:
        """The file that holds the tensor; None if it is only in memory."""
        ...


def weight_names(source: TensorSource) -> list[str]:
    """The names of a checkpoint's weights.

    Rotary frequencies, which files written by old versions of transformers hold, follow from the configuration.
    """
    return [name for name in source.names() if not _DERIVED.search(name)]


class MemoryTensors:
    """A state dict as a source; tensors that need no conversion are handed out themselves, not copied."""

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor.detach() for name, tensor in state_dict.items()}

    def names(self) -> Iterable[str]:
        """All names, in the state dict's order."""
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """The type of one tensor."""
        return self._tensors[name].dtype

    def tensor(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """One tensor, converted if need be."""
        return _converted(self._tensors[name], dtype, device)

    def once(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        return self._tensors[name].cpu()

    def path(self, name: str) -> Path | None:
        """None: it is in memory."""
        return None


class SafetensorsFile:
    """One safetensors file, mapped into memory.

    Raises:
        CheckpointCorruptError: the file is truncated or is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = _open(path)
        self._names = tuple(self._handle.keys())

    def names(self) -> Iterable[str]:
        """All names in the file."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, from the header."""
        return tuple(self._handle.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """The type of one tensor; maps it, but reads nothing."""
        return self._mapped(name).dtype

    def tensor(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """One tensor: a window on the file, or a converted copy.

        Raises:
            CheckpointCorruptError: the tensor is of a type that PyTorch does not have.
        """
        mapped = self._mapped(name)
        if not _needs_conversion(mapped, dtype, device):
            return mapped
        return _converted(self.once(name), dtype, device)

    def once(self, name: str) -> Tensor:
        """One tensor through a mapping of its own, so that the pages read are given back with it.

        Through the common one, the whole file would stay in memory beside what is made of it.
        """
        tensor: Tensor = _open(self._path).get_tensor(name)
        return tensor

    def path(self, name: str) -> Path | None:
        """The file that this is."""
        return self._path

    def _mapped(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._handle.get_tensor(name)
        except (SafetensorError, RuntimeError, AttributeError) as error:
            raise CheckpointCorruptError(f"{self._path}: tensor '{name}' cannot be read: {error}") from error
        return tensor


class CheckpointTensors:
    """All files of a checkpoint as one source.

    Raises:
        CheckpointCorruptError: a file is damaged, or lacks a tensor that the index places in it.
    """

    def __init__(self, files: WeightFiles) -> None:
        self._file_of: dict[str, SafetensorsFile] = {}
        opened = {path: SafetensorsFile(path) for path in files.paths}
        for file in opened.values():
            self._file_of.update(dict.fromkeys(file.names(), file))
        if files.weight_map is not None:
            self._check_index(files.weight_map, {path.name: file for path, file in opened.items()})

    def _check_index(self, weight_map: Mapping[str, str], files: Mapping[str, SafetensorsFile]) -> None:
        held = {shard: set(file.names()) for shard, file in files.items()}
        for name, shard in weight_map.items():
            if name not in held[shard]:
                raise CheckpointCorruptError(
                    f"{INDEX_FILE} places '{name}' in {files[shard].path(name)}, which does not hold it"
                )
            self._file_of[name] = files[shard]

    def names(self) -> Iterable[str]:
        """All names in all files."""
        return self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, from its file's header."""
        return self._file_of[name].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The type of one tensor, from its file's header."""
        return self._file_of[name].dtype(name)

    def tensor(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """One tensor; see `SafetensorsFile.tensor`."""
        return self._file_of[name].tensor(name, dtype, device)

    def once(self, name: str) -> Tensor:
        """One tensor; see `SafetensorsFile.once`."""
        return self._file_of[name].once(name)

    def path(self, name: str) -> Path | None:
        """The file that holds the tensor."""
        return self._file_of[name].path(name)


def first_floating_dtype(source: TensorSource) -> torch.dtype | None:
    """The type of the first floating tensor: what a checkpoint is "in" if its configuration does not say."""
    types = (source.dtype(name) for name in source.names())
    return next((dtype for dtype in types if dtype.is_floating_point), None)


def _needs_conversion(tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> bool:
    changes_type = dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype
    return changes_type or tensor.device != device


def _converted(tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointCorruptError(f"{path} {_diagnosis(path)} ({error}); fetch or copy it again") from error


def _diagnosis(path: Path) -> str:
    """What is wrong with a file that would not open, with its size and the size that it should have."""
    actual = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_LARGEST_HEADER)
    if start.startswith(_LFS_POINTER):
        return "is a Git LFS pointer instead of weights: run `git lfs pull`"
    expected = _expected_size(start)
    if expected is None:
        return f"is no safetensors file, or its beginning is damaged: it has {actual} bytes"
    if expected != actual:
        state = "truncated" if actual < expected else "too long"
        return f"is {state}: its header tells of {expected} bytes, it has {actual}"
    return f"has a damaged header: it has {actual} bytes"


def _expected_size(start: bytes) -> int | None:
    """The size that a file should have by its own header, if that can be read.

    The format: eight bytes with the length of the header (little endian), the header (JSON; each tensor has
    ``data_offsets`` relative to the header's end), then the data. See the safetensors repository's README.
    """
    if len(start) < 9 or start[8:9] != b"{":
        return None
    length: int = struct.unpack("<Q", start[:8])[0]
    if 8 + length > len(start):  # cut off inside the header: there is more to come, how much is unknown
        return 8 + length
    try:
        header = json.loads(start[8 : 8 + length])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return 8 + length + int(max(ends, default=0))
