"""The tensors of GGUF files, under the names of this package's models, one at a time.

Plain types are windows on the file, as with safetensors; blocks become numbers when they are asked for, some rows at
a time. ``Q4_0``, ``Q4_1`` and ``Q8_0`` are layouts of `quarterdeck.kernels` in another order, so that such a weight can
also be handed out packed, without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quarterdeck.errors import CheckpointCorruptError, CheckpointNotFoundError
from quarterdeck.gguf.container import GGUFFile, TensorEntry
from quarterdeck.gguf.metadata import check_architecture
from quarterdeck.gguf.names import from_gguf
from quarterdeck.kernels import int4, int8_groups
from quarterdeck.kernels.rows import BLOCK_ROWS
from quarterdeck.locate import part_names
from quarterdeck.quantization.formats import PackedFormat, PackedWeight, format_named, tensors_of
from quarterdeck.weights.gguf_blocks import dequantize, plain_dtype, split_q4_0, split_q4_1, split_q8_0

_CHUNK = 2**20  # numbers that are converted at once
_CPU = torch.device("cpu")


PACKABLE: Mapping[str, str] = {"Q4_0": "int4", "Q4_1": "int4-asymmetric-32", "Q8_0": "int8-32"}
"""Types that can be handed out packed, and what they are then, by the names of `quarterdeck.quantization.config`."""


class GGUFTensors:
    """All tensors of a model in GGUF files.

    Args:
        files: the file, or all parts of one that was split.
        packed: names of modules (``"model.layers.0.mlp.up_proj"``) whose weight is to be handed out packed; their types
            are among `PACKABLE`.

    Raises:
        ConfigError: another architecture.
    """

    def __init__(self, files: Sequence[GGUFFile], packed: Collection[str] = ()) -> None:
        check_architecture(files[0])
        self._files = files
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        for file in files:
            for entry in file.tensors.values():
                self._entries[from_gguf(entry.name)] = file.path, entry
        self._parts: dict[str, tuple[str, str]] = {}  # name of a packed part to that of its weight, and which it is
        for module in packed:
            leaves = self._form(f"{module}.weight").tensors(1, 1)
            self._parts |= {f"{module}.{leaf}": (f"{module}.weight", leaf) for leaf in leaves}
        whole = {weight for weight, _ in self._parts.values()}
        self._names = [name for name in self._entries if name not in whole] + list(self._parts)

    @property
    def header(self) -> GGUFFile:
        """The file that has the metadata."""
        return self._files[0]

    @property
    def matrices(self) -> dict[str, str]:
        """The type of each weight that could be quantized, by the name of its module."""
        return {
            name.removesuffix(".weight"): entry.kind.name
            for name, (_, entry) in self._entries.items()
            if len(entry.shape) == 2 and not entry.name.endswith("_norm.weight")
        }

    def with_packed(self, modules: Collection[str]) -> GGUFTensors:
        """The same tensors, with the weights of some modules packed."""
        return GGUFTensors(self._files, modules)

    def names(self) -> Iterable[str]:
        """All names."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        weight, leaf = self._parts.get(name, (name, ""))
        shape = self._entries[weight][1].shape
        return tuple(self._form(weight).tensors(*shape)[leaf][0]) if leaf else shape

    def dtype(self, name: str) -> torch.dtype:
        """The type in which one tensor is handed out if none is asked for: float32 for blocks."""
        weight, leaf = self._parts.get(name, (name, ""))
        entry = self._entries[weight][1]
        return self._form(weight).tensors(*entry.shape)[leaf][1] if leaf else plain_dtype(entry.kind) or torch.float32

    def tensor(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """One tensor on ``device``, as ``dtype`` if that is given and the tensor is of a floating type."""
        if name in self._parts:
            return self._packed(name).to(device)
        path, entry = self._entries[name]
        plain = plain_dtype(entry.kind)
        if plain is not None:
            return _raw(path, entry).view(plain).view(entry.shape).to(device=device, dtype=dtype)
        return _converted(_raw(path, entry), entry, dtype or torch.float32).to(device)

    def once(self, name: str) -> Tensor:
        """One tensor on the CPU; its mapping goes with it."""
        return self.tensor(name, None, _CPU)

    def path(self, name: str) -> Path | None:
        """The file that holds the tensor, if it can be used from there as it is."""
        if name in self._parts:
            return None
        path, entry = self._entries[name]
        return path if plain_dtype(entry.kind) is not None else None

    def _packed(self, name: str) -> Tensor:
        """One part of a packed weight, made some rows at a time."""
        weight, leaf = self._parts[name]
        path, entry = self._entries[weight]
        raw, (shape, dtype) = _raw(path, entry), self._form(weight).tensors(*entry.shape)[leaf]
        made = torch.empty(tuple(shape), dtype=dtype)
        step = max(_CHUNK // entry.shape[1] // BLOCK_ROWS, 1) * BLOCK_ROWS
        for start in range(0, len(raw), step):
            part = tensors_of(_PACK[entry.kind.name](raw[start : start + step]))[leaf]
            first = start // BLOCK_ROWS
            made[first : first + len(part)] = part
        return made

    def _form(self, weight: str) -> PackedFormat:
        return format_named(PACKABLE[self._entries[weight][1].kind.name])


_PACK: Mapping[str, Callable[[Tensor], PackedWeight]] = {
    "Q4_0": lambda raw: int4.pack(*split_q4_0(raw), None),
    "Q4_1": lambda raw: int4.pack(*split_q4_1(raw), group=int4.SYMMETRIC_GROUP),
    "Q8_0": lambda raw: int8_groups.pack(*split_q8_0(raw)),
}


def open_gguf(path: Path) -> list[GGUFFile]:
    """A GGUF file, with all the other parts if it is the first of several (``name-00001-of-00003.gguf``).

    Raises:
        CheckpointNotFoundError: a part is missing.
        CheckpointCorruptError: a file is damaged, or a part and not the first one.
    """
    first = GGUFFile(path)
    count = int(first.metadata.get("split.count", 1))
    if count <= 1:
        return [first]
    paths = [path.with_name(name) for name in part_names(path.name)]
    if len(paths) != count or path != paths[0]:
        raise CheckpointCorruptError(
            f"{path} is part {int(first.metadata.get('split.no', 0)) + 1} of {count}: give the first part, under the "
            f"name that it was published with (NAME-00001-of-{count:05d}.gguf), beside the others"
        )
    if missing := [part.name for part in paths if not part.is_file()]:
        raise CheckpointNotFoundError(f"{path} is one of {count} parts, and beside it there is no {missing[0]}")
    return [first, *(GGUFFile(part) for part in paths[1:])]


def _raw(path: Path, entry: TensorEntry) -> Tensor:
    """The bytes of a tensor as rows, ``[R, bytes]``: a window on the file, private to this process."""
    rows = entry.nbytes // entry.kind.row_bytes(entry.shape[-1])
    window = np.memmap(path, np.uint8, mode="c", offset=entry.offset, shape=(rows, entry.nbytes // rows))
    return torch.from_numpy(window)


def _converted(raw: Tensor, entry: TensorEntry, dtype: torch.dtype) -> Tensor:
    """Blocks as numbers, some rows at a time, so that besides the result little is in memory."""
    rows, columns = raw.shape[0], entry.shape[-1]
    made = torch.empty(rows, columns, dtype=dtype)
    step = max(_CHUNK // columns, 1)
    for start in range(0, rows, step):
        made[start : start + step] = dequantize(raw[start : start + step], entry.kind)
    return made.view(entry.shape)
