"""From safetensors to GGUF and back, tensor by tensor: weights, configuration, tokenizer, generation defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quarterdeck.config import CohereConfig
from quarterdeck.config_files import read_json
from quarterdeck.errors import CheckpointMismatchError, InputError
from quarterdeck.gguf.container import GGUFFile
from quarterdeck.gguf.metadata import generation_values
from quarterdeck.gguf.names import to_gguf
from quarterdeck.locate import HubOptions, gguf_path
from quarterdeck.quantization.surgery import write_quantization
from quarterdeck.tokenization.files import write_json
from quarterdeck.tokenizer import CohereTokenizerFast
from quarterdeck.weights.foreign import in_full
from quarterdeck.weights.gguf_export import write_gguf
from quarterdeck.weights.load import Naming, check_fit
from quarterdeck.weights.reader import TensorSource, first_floating_dtype, weight_names
from quarterdeck.weights.save import replacing_checkpoint, write_weights
from quarterdeck.weights.sources import resolve_source

GENERATION_FILE = "generation_config.json"
PLAIN_TYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that both kinds of files have."""

Progress = Callable[[int, int], None]
"""Is told how many tensors are done, of how many."""

_ARCHITECTURE = "CohereForCausalLM"
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Checkpoint:
    """A model as files, weights in full and read one by one.

    Attributes:
        config, tokenizer: what they are.
        source: the weights.
        generation: what generation_config.json holds; None if the model has none.
    """

    config: CohereConfig
    tokenizer: CohereTokenizerFast
    source: TensorSource
    generation: dict[str, Any] | None

    @property
    def plain_type(self) -> str:
        """The type of the weights, or of most: a name of `PLAIN_TYPES`."""
        dtype = self.config.dtype or first_floating_dtype(self.source) or torch.float32
        return next((name for name, plain in PLAIN_TYPES.items() if plain == dtype), "F32")


def open_checkpoint(
    name: str | os.PathLike[str], *, gguf_file: str | None = None, hub: HubOptions | None = None
) -> Checkpoint:
    """A folder, a hub id, ``"midshipman"`` or a GGUF file, as it is stored.

    Raises:
        CheckpointError, ConfigError, TokenizerError: something is missing, damaged or of another kind.
        InputError: weights that this package or bitsandbytes quantized.
    """
    hub = HubOptions() if hub is None else hub
    gguf = gguf_path(name, gguf_file, hub)
    config = CohereConfig.from_pretrained(name if gguf is None else gguf, **vars(hub))
    tokenizer = CohereTokenizerFast.from_pretrained(name if gguf is None else gguf, **vars(hub))
    source = resolve_source(name, None, hub, gguf)
    stored = getattr(config, "quantization_config", None)
    full = in_full(source, stored, has_bias=config.attention_bias)
    write_quantization(config, None)
    if gguf is not None:
        return Checkpoint(config, tokenizer, full, generation_values(GGUFFile(gguf)))
    path = hub.resolve_file(name, GENERATION_FILE, required=False)
    return Checkpoint(config, tokenizer, full, None if path is None else read_json(path))


def check_complete(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Refuse a checkpoint that would not load, which files made of it would not either.

    Args:
        checkpoint: the files.
        model: one of its configuration with a head, without memory.

    Raises:
        CheckpointMismatchError: weights are missing, unknown, of another shape or of no floating type, or two that the
            model has as one differ.
    """
    tied = {_HEAD: _TABLE} if checkpoint.config.tie_word_embeddings else {}
    check_fit(model, checkpoint.source, Naming(prefix="model.", head=frozenset({_HEAD}), tied=tied))


def to_gguf_file(checkpoint: Checkpoint, path: Path, kind: str | None = None, progress: Progress | None = None) -> None:
    """Writes a GGUF file; ``kind`` is a type of `quarterdeck.weights.gguf_blocks.WRITABLE`, None the weights' own.

    Raises:
        InputError: the file is there, or the model is one that such a file cannot hold.
    """
    count = len(list(checkpoint.source.names()))
    done = iter(range(1, count + 1))
    write_gguf(
        path,
        checkpoint.source,
        checkpoint.config,
        checkpoint.tokenizer,
        kind=kind or checkpoint.plain_type,
        generation=checkpoint.generation,
        progress=lambda name, rows: None if progress is None else progress(next(done, count), count),
    )


def to_safetensors(
    checkpoint: Checkpoint,
    folder: Path,
    kind: str | None = None,
    progress: Progress | None = None,
    *,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes a folder as ``save_pretrained`` does.

    Args:
        checkpoint: the model.
        folder: must not be there, or be empty.
        kind: a name of `PLAIN_TYPES`; None is the weights' own type.
        progress: see `Progress`.
        max_shard_size: bytes in one file at most.

    Raises:
        InputError: the folder holds something, or no such type.
        CheckpointMismatchError: tensors that no model of this architecture has.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"'{folder}' is there already: remove it or give another name")
    kind = kind or checkpoint.plain_type
    if kind not in PLAIN_TYPES:
        raise InputError(f"safetensors are written in one of {', '.join(PLAIN_TYPES)}, not in {kind!r}")
    source, dtype = checkpoint.source, PLAIN_TYPES[kind]
    names = weight_names(source)
    if unknown := [name for name in names if to_gguf(name) is None and to_gguf(f"model.{name}") is None]:
        raise CheckpointMismatchError(f"no model of this architecture has the tensors {', '.join(unknown)}")
    shapes = {name: torch.empty(source.shape(name), dtype=dtype, device="meta") for name in names}
    checkpoint.config.dtype, checkpoint.config.architectures = dtype, [_ARCHITECTURE]
    with replacing_checkpoint(folder) as staging:
        write_weights(shapes, staging, max_shard_size, _Values(source, dtype, progress))
        checkpoint.config.save_pretrained(staging)
        if checkpoint.generation is not None:
            write_json(staging / GENERATION_FILE, checkpoint.generation)
    checkpoint.tokenizer.save_pretrained(folder)


class _Values(Mapping[str, Tensor]):
    """Tensors that are read when they are asked for."""

    def __init__(self, source: TensorSource, dtype: torch.dtype, progress: Progress | None) -> None:
        self._source, self._dtype, self._progress = source, dtype, progress
        self._count, self._done = len(list(source.names())), 0

    def __getitem__(self, name: str) -> Tensor:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._count)
        tensor = self._source.tensor(name, self._dtype, _CPU)
        changed = self._source.dtype(name) != self._dtype
        if changed and self._dtype == torch.float16 and not bool(tensor.isfinite().all()):
            raise InputError(f"{name} holds numbers that float16 cannot: choose bf16 or f32")
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in set(self._source.names())

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.names())

    def __len__(self) -> int:
        return self._count
