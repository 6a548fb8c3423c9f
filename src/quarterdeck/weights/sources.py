"""Where the tensors of a model come from: memory, a GGUF file, or the safetensors files of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from quarterdeck.errors import InputError
from quarterdeck.locate import HubOptions
from quarterdeck.weights.gguf import GGUFTensors, open_gguf
from quarterdeck.weights.index import find_weights
from quarterdeck.weights.reader import CheckpointTensors, MemoryTensors, TensorSource


def resolve_source(
    name: str | os.PathLike[str] | None,
    state_dict: Mapping[str, Tensor] | None,
    hub: HubOptions,
    gguf: Path | None = None,
) -> TensorSource:
    """The tensors of a model.

    Args:
        name: the model, ``"midshipman"``, a folder or a hub id.
        state_dict: tensors in place of the model's.
        hub: see `HubOptions`.
        gguf: the GGUF file that the name stands for, if it does.

    Raises:
        InputError: there is nothing to read from.
        CheckpointError: no weights, or files that are damaged.
    """
    if state_dict is not None:
        return MemoryTensors(state_dict)
    if gguf is not None:
        return GGUFTensors(open_gguf(gguf))
    if name is None:
        raise InputError("there is neither a checkpoint's name nor a state_dict; give one of them")
    return CheckpointTensors(find_weights(name, hub))
