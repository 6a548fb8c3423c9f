"""Refusing a load that cannot succeed, before anything of it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar, Protocol

import torch
from torch import nn

from quarterdeck.config import CohereConfig
from quarterdeck.errors import NotEnoughMemoryError
from quarterdeck.memory.machine import available_memory
from quarterdeck.memory.plan import gigabytes
from quarterdeck.memory.sizes import weight_bytes
from quarterdeck.quantization.choose import Quantization, as_quantization
from quarterdeck.weights.placement import Placement, ReportsBytes
from quarterdeck.weights.reader import MemoryTensors, TensorSource


class Loaded(Protocol):
    """What is to be known of a model on the meta device."""

    config: CohereConfig
    base_model_prefix: ClassVar[str]

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules, by name."""
        ...

    def tied_weights(self) -> Mapping[str, str]:
        """Names of weights that share another's tensor."""
        ...


def check_load(
    model: Loaded, source: TensorSource, placement: Placement, quantization: Quantization | None = None
) -> None:
    """Compares what loading will allocate on each device with what is there.

    Weights that stay as they are on the CPU, pages of files or tensors that the caller holds, are not allocated: a
    model that is larger than memory can be loaded so, and runs at the speed of the disk.

    Args:
        model: the model on the meta device, its linears replaced if it is to be quantized.
        source: where its weights come from.
        placement: where they go.
        quantization: how it is quantized.

    Raises:
        NotEnoughMemoryError: a device has less.
    """
    for device, needed in allocated_bytes(model, source, placement).items():
        room = available_memory(device)
        if room is not None and needed > room:
            raise NotEnoughMemoryError(_message(model.config, quantization, device, needed, room))


def allocated_bytes(model: Loaded, source: TensorSource, placement: Placement) -> Counter[torch.device]:
    """Bytes that loading allocates on each device; for the arguments see `check_load`."""
    stored, prefix, tied = set(source.names()), f"{model.base_model_prefix}.", model.tied_weights()
    found: Counter[torch.device] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, ReportsBytes):
            found[placement.device(path)] += module.placed_bytes()
            continue
        for name, dtype, count in _tensors(path, module, model.config.dtype):
            device = placement.device(name)
            if name not in tied and device.type != "meta" and not _stays(name, dtype, device, source, stored, prefix):
                found[device] += count * dtype.itemsize
    return found


def _tensors(path: str, module: nn.Module, dtype: torch.dtype | None) -> Iterator[tuple[str, torch.dtype, int]]:
    """Name, type once loaded and number of elements of each tensor of a module itself."""
    for is_parameter, tensors in ((True, module._parameters), (False, module._buffers)):
        for leaf, tensor in tensors.items():
            if tensor is not None:
                kind = dtype if is_parameter and tensor.is_floating_point() else None
                yield f"{path}.{leaf}" if path else leaf, kind or tensor.dtype, tensor.numel()


def _stays(
    name: str, dtype: torch.dtype, device: torch.device, source: TensorSource, stored: set[str], prefix: str
) -> bool:
    """Whether a tensor is used as it is stored: a window on a file, or the caller's own, and not made from blocks."""
    if device.type != "cpu":
        return False
    spellings = (name, name.removeprefix(prefix), prefix + name)
    in_memory = isinstance(source, MemoryTensors)
    return any(
        source.dtype(one) == dtype and (in_memory or source.path(one) is not None) for one in spellings if one in stored
    )


def _message(
    config: CohereConfig, quantization: Quantization | None, device: torch.device, needed: int, room: int
) -> str:
    dtype, ways = config.dtype or torch.get_default_dtype(), []
    if quantization is None:
        for name in ("int8", "int4"):
            size = weight_bytes(config, dtype, as_quantization(name))
            if size < room:
                ways.append(f"quantization_config={name!r} ({gigabytes(size)})")
    ways.append('device_map="auto", which leaves on the disk what has no room')
    return (
        f"loading the weights takes {gigabytes(needed)} of memory on {device}, which has {gigabytes(room)} available: "
        f"{', or '.join(ways)}; check_memory=False loads them all the same"
    )
