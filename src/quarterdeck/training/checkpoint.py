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


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write ``<folder>/tensors.safetensors`` and ``state.json`` beside the old ones, then swap the folders."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
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
    """What `save` wrote; falls back on the previous one if a crash hit between the two renames."""
    for candidate in (folder, folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").is_file():
            state: dict[str, Any] = json.loads((candidate / "state.json").read_text())
            return load_file(candidate / "tensors.safetensors"), state
    raise CheckpointNotFoundError(f"no training checkpoint in {folder}; start without resuming to make one")
