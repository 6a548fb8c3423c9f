"""How much memory there is: on the host within the limits of its control groups, and on accelerators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_MOUNT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where it does not tell.

    On the host this is what the system can give without swapping, files that it merely keeps in memory included, and
    never more than what is left to this process's control groups (containers, batch systems).
    """
    if device.type == "cpu":
        own = int(psutil.virtual_memory().available)
        return min([own, *control_group_rooms(_OWN, _MOUNT)])
    if device.type == "cuda" and torch.cuda.is_available():
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return None


def control_group_rooms(own: Path, mount: Path) -> Iterator[int]:
    """Bytes left in each control group around this process that has a limit.

    Pages of files that a group keeps but could drop count as left, as they do in the system's own number.

    Args:
        own: the list of the process's groups, ``/proc/self/cgroup``.
        mount: where groups are mounted, ``/sys/fs/cgroup``. Version 1 has a folder for memory there, version 2 has not.
    """
    if not own.is_file():
        return
    for line in own.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _rooms(mount, path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            yield from _rooms(mount / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _rooms(root: Path, path: str, limit_file: str, usage_file: str, prefix: str) -> Iterator[int]:
    """What is left in the group of that path and in those around it; inside a container the root is its own."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts) + 1):
        folder = root.joinpath(*parts[:depth])
        limit, usage = _number(folder / limit_file), _number(folder / usage_file)
        if limit is not None and usage is not None and limit < psutil.virtual_memory().total:
            yield max(limit - usage + _droppable(folder / "memory.stat", prefix), 0)


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no file, or it says ``max``."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8").strip()
    return int(text) if text.isdecimal() else None


def _droppable(path: Path, prefix: str) -> int:
    """Bytes of files in a group's memory."""
    if not path.is_file():
        return 0
    wanted = {f"{prefix}inactive_file", f"{prefix}active_file"}
    pairs = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return sum(int(pair[1]) for pair in pairs if pair[0] in wanted)
