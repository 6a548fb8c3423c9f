"""The GGUF container, versions 2 and 3: metadata, then positions of tensors, then their data.

    "GGUF", version: u32, tensors: u64, keys: u64
    each key:     name: text, type: u32, value                     (a text is its length as u64, then UTF-8)
    each tensor:  name: text, dimensions: u32, sizes: u64 each (innermost first), type: u32, offset: u64
    zeros up to a multiple of general.alignment (32 unless said), then the data, each tensor aligned the same

All numbers are little endian. Source: the GGUF specification in the ggml repository. The header is read here and not
with the `gguf` package, which makes several arrays for each of the half a million texts of a Command-R vocabulary.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quarterdeck.errors import CheckpointCorruptError, InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32

_SCALARS: Mapping[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_UINT32, _INT32, _FLOAT32, _BOOL, _TEXT, _ARRAY, _INT64 = 4, 5, 6, 7, 8, 9, 11

Value = bool | int | float | str | Sequence[int] | Sequence[str]


@dataclass(frozen=True)
class BlockType:
    """How numbers are stored: ``block`` neighbours of a row together in ``nbytes`` bytes."""

    name: str
    number: int
    block: int
    nbytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` numbers."""
        return columns // self.block * self.nbytes


_TYPES = (
    BlockType("F32", 0, 1, 4),
    BlockType("F16", 1, 1, 2),
    BlockType("BF16", 30, 1, 2),
    BlockType("Q4_0", 2, 32, 18),
    BlockType("Q4_1", 3, 32, 20),
    BlockType("Q5_0", 6, 32, 22),
    BlockType("Q5_1", 7, 32, 24),
    BlockType("Q8_0", 8, 32, 34),
    BlockType("Q2_K", 10, 256, 84),
    BlockType("Q3_K", 11, 256, 110),
    BlockType("Q4_K", 12, 256, 144),
    BlockType("Q5_K", 13, 256, 176),
    BlockType("Q6_K", 14, 256, 210),
)
TYPES: Mapping[str, BlockType] = {kind.name: kind for kind in _TYPES}
"""The types of tensors that are read, by name."""
_BY_NUMBER: Mapping[int, BlockType] = {kind.number: kind for kind in _TYPES}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is: ``shape`` with the innermost size last, ``offset`` and ``nbytes`` in the file."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.kind.row_bytes(prod(self.shape))


class GGUFFile:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        metadata: all keys with their values; arrays are lists.
        tensors: all tensors by name, in their order.

    Raises:
        CheckpointCorruptError: the file is truncated, damaged or no GGUF file, or holds tensors of a type that is not
            read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 24:
            raise CheckpointCorruptError(f"{path} is no GGUF file: it has {size} bytes")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            try:
                self.metadata, self.tensors = _read_header(reader, path)
            except (struct.error, UnicodeDecodeError, ValueError) as error:
                raise CheckpointCorruptError(
                    f"{path} is truncated or damaged at byte {reader.position} of its header: {error}; fetch or copy "
                    "it again"
                ) from error
        end = max((entry.offset + entry.nbytes for entry in self.tensors.values()), default=0)
        if end > size:
            raise CheckpointCorruptError(
                f"{path} is truncated: its header tells of {end} bytes, it has {size}; fetch or copy it again"
            )

    @property
    def architecture(self) -> str:
        """The kind of model, ``"command-r"`` for instance; empty if the file does not say."""
        return str(self.metadata.get("general.architecture", ""))


class _Reader:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.position = data, 0

    def take(self, form: str) -> Any:
        """One number in the notation of `struct`, without its ``<``."""
        (value,) = struct.unpack_from(f"<{form}", self._data, self.position)
        self.position += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        """A text."""
        return self._bytes(self.take("Q")).decode("utf-8")

    def texts(self, count: int) -> list[str]:
        """Many texts; a vocabulary has half a million."""
        data, position, found = self._data, self.position, []
        for _ in range(count):
            begin = position + 8
            position = begin + int.from_bytes(data[position:begin], "little")
            if position > len(data):
                raise ValueError("a text is announced that is longer than the file")
            found.append(data[begin:position].decode("utf-8"))
        self.position = position
        return found

    def numbers(self, kind: int, count: int) -> list[Any]:
        """Numbers of one type."""
        dtype = np.dtype(_SCALARS[kind])
        found: list[Any] = np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()
        return found

    def value(self, kind: int) -> Any:
        """A value of any type."""
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self.numbers(kind, 1)[0]
        if kind != _ARRAY:
            raise ValueError(f"there is no type {kind}")
        inner, count = self.take("I"), self.take("Q")
        if inner == _TEXT:
            return self.texts(count)
        if inner not in _SCALARS:
            raise ValueError(f"an array of type {inner} is not read")
        return self.numbers(inner, count)

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise ValueError(f"{count} bytes are announced, more than there are")
        self.position += count
        return self._data[self.position - count : self.position]


def _read_header(reader: _Reader, path: Path) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    if (magic := reader.take("4s")) != MAGIC:
        raise CheckpointCorruptError(f"{path} is no GGUF file: it begins with {magic!r}")
    if (version := reader.take("I")) not in VERSIONS:
        raise CheckpointCorruptError(
            f"{path} is in version {version} of GGUF (or of another byte order); versions 2 and 3 in little endian are "
            "read: make it again with a newer tool"
        )
    tensors, keys = reader.take("Q"), reader.take("Q")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        name = reader.text()
        metadata[name] = reader.value(reader.take("I"))
    entries = [_read_entry(reader, path) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = _aligned(reader.position, alignment)
    found = {name: TensorEntry(name, shape, kind, start + offset) for name, shape, kind, offset in entries}
    if len(found) != len(entries):
        raise ValueError("two tensors have one name")
    return metadata, found


def _read_entry(reader: _Reader, path: Path) -> tuple[str, tuple[int, ...], BlockType, int]:
    name, dimensions = reader.text(), reader.take("I")
    if dimensions > 4:
        raise ValueError(f"tensor '{name}' has {dimensions} dimensions")
    shape = tuple(int(reader.take("Q")) for _ in range(dimensions))[::-1]
    number, offset = reader.take("I"), reader.take("Q")
    kind = _BY_NUMBER.get(number)
    if kind is None:
        raise CheckpointCorruptError(
            f"{path}: tensor '{name}' is of the GGUF type number {number}, which is not read; there are "
            f"{', '.join(TYPES)}: use a file in one of these"
        )
    if 0 in shape:
        raise ValueError(f"tensor '{name}' {shape} is empty")
    if not shape or shape[-1] % kind.block:
        raise ValueError(f"tensor '{name}' {shape} is no whole number of blocks of {kind.block}")
    return name, shape, kind, offset


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: its ``shape``, and its data as pieces that are made when their turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    pieces: Iterable[bytes]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.kind.row_bytes(prod(self.shape))


def write_container(file: BinaryIO, metadata: Mapping[str, Value], tensors: Sequence[NewTensor]) -> None:
    """Writes a GGUF file of version 3, one tensor after the other.

    Whole numbers become u32 (i64 where they do not fit; i32 in arrays), other numbers f32.

    Raises:
        InputError: a value of another type, or a tensor whose rows are no whole number of blocks.
    """
    file.write(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_text(key) + _typed(key, value))
    offset = 0
    for tensor in tensors:
        if tensor.shape[-1] % tensor.kind.block:
            raise InputError(
                f"'{tensor.name}' has rows of {tensor.shape[-1]}; {tensor.kind.name} needs a multiple of "
                f"{tensor.kind.block}: choose another type"
            )
        sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
        file.write(_text(tensor.name) + sizes + struct.pack("<IQ", tensor.kind.number, offset))
        offset = _aligned(offset + tensor.nbytes)
    _fill(file)
    for tensor in tensors:
        begin = file.tell()
        for piece in tensor.pieces:
            file.write(piece)
        assert file.tell() - begin == tensor.nbytes, tensor.name
        _fill(file)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def _typed(key: str, value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value) if 0 <= value < 2**32 else struct.pack("<Iq", _INT64, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    items = list(value)
    if items and all(isinstance(item, str) for item in items):
        return struct.pack("<IIQ", _ARRAY, _TEXT, len(items)) + b"".join(_text(str(item)) for item in items)
    if all(isinstance(item, int) for item in items):
        return struct.pack("<IIQ", _ARRAY, _INT32, len(items)) + np.asarray(items, "<i4").tobytes()
    raise InputError(f"the metadata {key} = {value!r} cannot be written: give a number, a text or a list of one kind")


def _aligned(position: int, alignment: int = ALIGNMENT) -> int:
    return position + -position % alignment


def _fill(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
