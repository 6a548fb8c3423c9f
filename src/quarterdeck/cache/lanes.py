"""Copies between the memory of the host and that of a device, beside what the device computes.

A lane takes copies in order. On CUDA they run on a stream of their own, and events keep them and the computation apart;
anywhere else a copy is made at once, which is slower and always right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Lane(Protocol):
    """Where copies to and from one device are queued."""

    def run(self, copy: Callable[[], object], tensors: tuple[Tensor, ...]) -> None:
        """Queue ``copy``: it begins when all that the device has been given so far is done.

        ``tensors`` are those on the device that it touches: their memory is not given to others before it ends.
        """
        ...

    def wait(self) -> None:
        """What the device is given from now on begins when all copies so far are done; the host goes on."""
        ...

    def finish(self) -> None:
        """The host waits until all copies so far are done, and may read what they wrote."""
        ...


class DirectLane:
    """Copies at once."""

    def run(self, copy: Callable[[], object], tensors: tuple[Tensor, ...]) -> None:
        """Do it."""
        copy()

    def wait(self) -> None:
        """Nothing is under way."""

    def finish(self) -> None:
        """Nothing is under way."""


class CudaLane:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no annotation here

    def run(self, copy: Callable[[], object], tensors: tuple[Tensor, ...]) -> None:
        """Queue it behind the computation that was queued before."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy()
        for tensor in tensors:
            tensor.record_stream(self._stream)

    def wait(self) -> None:
        """Let the computation to come wait for the copies."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def finish(self) -> None:
        """Let the host wait for the copies."""
        self._stream.synchronize()


class Lanes:
    """One lane per device, made when first used; a copy of this begins with none, since streams cannot be copied."""

    def __init__(self) -> None:
        self._lanes: dict[torch.device, Lane] = {}

    def to(self, device: torch.device) -> Lane | None:
        """The lane of a device; ``None`` for the CPU, whose memory is the host's."""
        if device.type == "cpu":
            return None
        if device not in self._lanes:
            self._lanes[device] = CudaLane(device) if device.type == "cuda" else DirectLane()
        return self._lanes[device]

    def finish(self) -> None:
        """The host waits for the copies of all lanes."""
        for lane in self._lanes.values():
            lane.finish()

    def __deepcopy__(self, memo: dict[int, Any]) -> Lanes:
        self.finish()
        fresh = Lanes()
        memo[id(self)] = fresh
        return fresh
