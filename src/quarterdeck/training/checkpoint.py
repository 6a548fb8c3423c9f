"""Checkpoints of a training run: tensors as safetensors, the rest as JSON, replaced in one step, never pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from quarterdeck.errors import CheckpointNotFoundError


def optimizer_tensors(optimizer: Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``<prefix>.<parameter index>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{index}.{name}": value.contiguous()
        for index, entries in state.items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Put back what `optimizer_tensors` took; hyperparameters stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix + "."):
            _, index, name = key.rsplit(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _places(folder: Path) -> tuple[Path, Path, Path]:
    """Where a checkpoint may lie: in its place, or, if a crash hit between two renames, beside it."""
    return folder, folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")


def _found(folder: Path) -> Path | None:
    return next((place for place in _places(folder) if (place / "state.json").is_file()), None)


def exists(folder: Path) -> bool:
    """Whether `load` finds a checkpoint."""
    return _found(folder) is not None


def find(folder: Path) -> Path:
    """Where the files lie that `load` reads.

    Raises:
        CheckpointNotFoundError: there are none.
    """
    place = _found(folder)
    if place is None:
        raise CheckpointNotFoundError(f"no training checkpoint in {folder}; start without resuming to make one")
    return place


def delete(folder: Path) -> None:
    """Remove a checkpoint, if there is one, with all that a crash has left of it."""
    for place in _places(folder):
        shutil.rmtree(place, ignore_errors=True)


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write ``<folder>/tensors.safetensors`` and ``state.json`` beside the old ones, then swap the folders."""
    _, fresh, old = _places(folder)
    if not folder.exists() and (left := _found(folder)):  # the only one, until the next is whole
        os.replace(left, folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(dict(tensors), fresh / "tensors.safetensors")
    (fresh / "state.json").write_text(json.dumps(state))
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` wrote; falls back on the previous one if a crash hit between the two renames.

    Raises:
        CheckpointNotFoundError: there is none.
    """
    place = find(folder)
    state: dict[str, Any] = json.loads((place / "state.json").read_text())
    return load_file(place / "tensors.safetensors"), state
