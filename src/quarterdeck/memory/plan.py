"""The memory plan of a model: what it takes, what there is, and what would make it fit.

    plan = plan_memory("c4ai-command-r-v01", context=8192, quantization="int4")
    plan.total, plan.available, plan.fits     # bytes, bytes, bool
    print(plan)                               # a table

Only config.json is looked at, or the header of a GGUF file. Figures are bytes; where they are shown, GB are 10^9 bytes.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, get_args

import torch

from quarterdeck.config import CohereConfig
from quarterdeck.config_checks import as_dtype
from quarterdeck.errors import InputError
from quarterdeck.generation.caches import PROMPT_CHUNK
from quarterdeck.locate import HubOptions, gguf_path, local_folder
from quarterdeck.memory.machine import available_memory
from quarterdeck.memory.sizes import CacheKind, cache_bytes, weight_bytes, workspace_bytes
from quarterdeck.quantization.choose import AnyQuantization, Quantization, as_quantization, chosen_quantization
from quarterdeck.quantization.config import QuantizationConfig
from quarterdeck.quantization.surgery import write_quantization
from quarterdeck.weights.foreign import arranged, declared
from quarterdeck.weights.gguf import GGUFTensors, open_gguf

DEFAULT_CONTEXT = 8192
_STEP = 1024
"""Contexts that are proposed are multiples of it, where they are not smaller."""


@dataclass(frozen=True)
class Remedy:
    """A change that makes a plan fit.

    Attributes:
        change: the options of ``quarterdeck plan``, and of the other commands and classes under the same names.
        total: bytes with it.
    """

    change: str
    total: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a model takes on a device, in bytes.

    Attributes:
        model: its name.
        device: where it is to run.
        dtype, quantization, kv_cache: types of the weights and of the cache.
        context: tokens of a sequence, prompt and answer together.
        batch_size: sequences at once.
        weights: bytes of all weights.
        mapped: how many of these are pages of the checkpoint's files, used as they are. The system can drop them and
            read them again: if they do not fit, a model still runs, at the speed of the disk.
        cache: bytes of keys and values at the full context.
        workspace: bytes that a run of the model takes besides: activations of a piece of the prompt, logits, kernels.
        available: bytes that there are on the device; None if it does not tell.
        remedies: changes that make it fit, if it does not.
    """

    model: str
    device: str
    dtype: str
    quantization: str | None
    kv_cache: CacheKind
    context: int
    batch_size: int
    weights: int
    mapped: int
    cache: int
    workspace: int
    available: int | None
    remedies: tuple[Remedy, ...] = ()

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.cache + self.workspace

    @property
    def fits(self) -> bool:
        """Whether there are so many; True where the device does not tell."""
        return self.available is None or self.total <= self.available

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"total": self.total, "fits": self.fits}

    def __str__(self) -> str:
        weights = f"{self.dtype}, {self.quantization}" if self.quantization else self.dtype
        sequences = f"{self.context:,} tokens" + (f" x {self.batch_size}" if self.batch_size > 1 else "")
        lines = [
            f"{self.model} on {self.device}",
            _line("weights", self.weights, weights),
            _line("cache", self.cache, f"{self.kv_cache}, {sequences}"),
            _line("workspace", self.workspace, "a piece of the prompt, logits, kernels"),
            _line("total", self.total, ""),
        ]
        if self.available is not None:
            lines.append(_line("available", self.available, "fits" if self.fits else "DOES NOT FIT"))
        if self.mapped:
            lines.append(f"{gigabytes(self.mapped)} of the weights are pages of the files, which can be read again.")
        if self.remedies:
            lines += ["What would make it fit:", *(_line(f"  {r.change}", r.total, "", 44) for r in self.remedies)]
        elif not self.fits:
            lines.append('Nothing here makes it fit: use device_map="auto", which leaves layers on the disk.')
        return "\n".join(lines)


def gigabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count < 10**10 else f"{count / 1e9:.1f} GB"


def _line(name: str, count: int, note: str, width: int = 12) -> str:
    return f"{name:{width}s} {gigabytes(count):>10s}  {note}".rstrip()


def plan_memory(
    model: str | os.PathLike[str] | CohereConfig,
    *,
    context: int | None = None,
    batch_size: int = 1,
    dtype: str | torch.dtype | None = "auto",
    quantization: AnyQuantization = None,
    kv_cache: str = "dynamic",
    device: str | torch.device | None = None,
    prefill_chunk_size: int | None = None,
    available: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> MemoryPlan:
    """What a model takes, and whether that is there. No weights are read or downloaded.

    Args:
        model: a configuration; a folder, ``"midshipman"``, the name of a public checkpoint (``"c4ai-command-r-v01"``:
            `CohereConfig.preset_names`, known without network), or a hub id, of which config.json is fetched; or a GGUF
            file, of which the headers are read, of all parts.
        context: tokens of a sequence, prompt and answer together. Default: 8192, or the model's most if that is less.
        batch_size: sequences at once.
        dtype: type of the weights that are not quantized and of activations; ``"auto"`` is the checkpoint's.
        quantization: as in ``LLM``; a checkpoint that is quantized says so itself. One of GPTQ or AWQ is taken for what
            config.json says of it.
        kv_cache: ``"dynamic"``, ``"static"``, ``"int8"`` or ``"int4"``.
        device: where to run. Default: the first accelerator, else the CPU.
        prefill_chunk_size: tokens of the prompt per run of the model. Default: what ``generate`` does, which is 1024 on
            the CPU and all at once elsewhere.
        available: bytes to hold the plan against. Default: what the device has now.
        revision, token, local_files_only: version on the hub, the right to read it, and whether to ask it.

    Raises:
        InputError: a number, kind of cache or device that cannot be right.
        CheckpointNotFoundError, ConfigError: there is no such model, or it is of another architecture.
        CheckpointCorruptError: a GGUF file is damaged.
    """
    hub = HubOptions(revision, token, local_files_only=local_files_only)
    file = None if isinstance(model, CohereConfig) else gguf_path(model, None, hub)
    config = _configuration(model if file is None else file, hub, is_file=file is not None)
    place = _device(device)
    stored = config.dtype or torch.float32
    windows: Mapping[torch.dtype, int] | None = None
    of_other_tool, as_stored = declared(getattr(config, "quantization_config", None))
    if of_other_tool:
        config, windows = copy.deepcopy(config), {}  # what is packed again is no page of a file
        write_quantization(config, None)
    held = chosen_quantization(as_quantization(quantization), getattr(config, "quantization_config", None)) or as_stored
    if file is not None:
        held, windows = _of_file(file, held, config)
    wanted = _Wanted(
        config,
        place,
        stored if dtype in (None, "auto") else as_dtype(dtype) or stored,
        held,
        _cache_kind(kv_cache),
        _count("context", min(config.context_length, DEFAULT_CONTEXT) if context is None else context),
        _count("batch_size", batch_size),
        None if prefill_chunk_size is None else _count("prefill_chunk_size", prefill_chunk_size),
        windows,
    )
    if wanted.context > config.context_length:
        raise InputError(f"context is {context}, but this model has {config.context_length} at most")
    room = available_memory(place) if available is None else _count("available", available)
    name = (config.name_or_path or "a model") if isinstance(model, CohereConfig) else str(model)
    plan = wanted.plan(name, room)
    return plan if plan.fits or room is None else replace(plan, remedies=tuple(_remedies(wanted, room)))


@dataclass(frozen=True)
class _Wanted:
    """All that a plan depends on but the machine.

    Attributes:
        windows: of a GGUF file, bytes of the tensors that need not be made of blocks, by their type.
    """

    config: CohereConfig
    device: torch.device
    dtype: torch.dtype
    quantization: Quantization | None
    kv_cache: CacheKind
    context: int
    batch_size: int
    chunk: int | None
    windows: Mapping[torch.dtype, int] | None = None

    def weights(self) -> int:
        return weight_bytes(self.config, self.dtype, self.quantization)

    def mapped(self) -> int:
        """Weights that stay pages of files: on the CPU, stored as they are used."""
        if self.windows is not None:
            return self.windows.get(self.dtype, 0) if self.device.type == "cpu" else 0
        stored = as_quantization(getattr(self.config, "quantization_config", None))
        as_stored = isinstance(stored, QuantizationConfig) or (self.quantization is None and stored is None)
        is_mapped = self.device.type == "cpu" and self.dtype == self.config.dtype and as_stored
        return self.weights() if is_mapped else 0

    def cache(self) -> int:
        return cache_bytes(self.config, self.kv_cache, self.dtype, length=self.context, batch=self.batch_size)

    def workspace(self) -> int:
        on_host = self.device.type == "cpu"
        chunk = self.chunk or (PROMPT_CHUNK if on_host else self.context)
        return workspace_bytes(
            self.config,
            self.kv_cache,
            self.dtype,
            self.quantization,
            length=self.context,
            chunk=chunk,
            batch=self.batch_size,
            on_host=on_host,
        )

    def total(self) -> int:
        return self.weights() + self.cache() + self.workspace()

    def plan(self, name: str, available: int | None) -> MemoryPlan:
        """The finished plan, without remedies."""
        return MemoryPlan(
            model=name,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            quantization=quantization_name(self.quantization),
            kv_cache=self.kv_cache,
            context=self.context,
            batch_size=self.batch_size,
            weights=self.weights(),
            mapped=self.mapped(),
            cache=self.cache(),
            workspace=self.workspace(),
            available=available,
        )


def _remedies(wanted: _Wanted, room: int) -> Iterator[Remedy]:
    """Changes that fit: single ones, and where none of them is enough, several together."""
    found = [remedy for change, one in _changes(wanted) if (remedy := _if_fits(change, one, room))]
    if not found:
        together = _all_smaller(wanted)
        found = [remedy for change, one in together if (remedy := _if_fits(change, one, room))][:1]
        if not found and together:
            change, smallest = together[-1]
            found = [
                remedy
                for more, one in _shorter(smallest, room)
                if (remedy := _if_fits(" ".join([change, more]), one, room))
            ]
    yield from found
    yield from (remedy for change, one in _shorter(wanted, room) if (remedy := _if_fits(change, one, room)))


def _if_fits(change: str, wanted: _Wanted, room: int) -> Remedy | None:
    total = wanted.total()
    return Remedy(change, total) if total <= room else None


def _changes(wanted: _Wanted) -> Iterator[tuple[str, _Wanted]]:
    """Each single change of type that makes a model smaller."""
    if wanted.dtype == torch.float32:
        yield "--dtype bfloat16", replace(wanted, dtype=torch.bfloat16)
    yield from _quantizations(wanted)
    for kind in ("int8", "int4"):
        if wanted.kv_cache in ("dynamic", "static") or (wanted.kv_cache, kind) == ("int8", "int4"):
            yield f"--kv-cache {kind}", replace(wanted, kv_cache=_cache_kind(kind))


def _quantizations(wanted: _Wanted) -> Iterator[tuple[str, _Wanted]]:
    if wanted.quantization is None or (
        isinstance(wanted.quantization, QuantizationConfig)
        and wanted.quantization.format == "int8"
        and getattr(wanted.config, "quantization_config", None) is None
    ):
        for name in ("int8", "int4") if wanted.quantization is None else ("int4",):
            yield f"--quantization {name}", replace(wanted, quantization=as_quantization(name))


def _all_smaller(wanted: _Wanted) -> list[tuple[str, _Wanted]]:
    """Weights and cache together in fewer bits, step by step to the least."""
    weights = [*_quantizations(wanted)] or [("", wanted)]
    return [
        (f"{change} --kv-cache {kind}".strip(), replace(one, kv_cache=_cache_kind(kind)))
        for change, one in weights
        for kind in ("int8", "int4")
    ]


def _shorter(wanted: _Wanted, room: int) -> Iterator[tuple[str, _Wanted]]:
    """The most sequences, and the longest context, that fit."""
    if wanted.batch_size > 1:
        count = _largest(1, wanted.batch_size - 1, lambda n: replace(wanted, batch_size=n).total() <= room)
        if count:
            yield f"--batch-size {count}", replace(wanted, batch_size=count)
    length = _largest(1, wanted.context - 1, lambda n: replace(wanted, context=n).total() <= room)
    length = length // _STEP * _STEP if length > _STEP else length
    if length:
        yield f"--context {length}", replace(wanted, context=length)


def _largest(low: int, high: int, holds: Any) -> int:
    """The largest number from ``low`` to ``high`` for which ``holds`` does, given that it does for all smaller ones; 0
    if for none.
    """
    best = 0
    while low <= high:
        middle = (low + high) // 2
        if holds(middle):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def _of_file(
    path: Path, asked: Quantization | None, config: CohereConfig
) -> tuple[Quantization | None, Mapping[torch.dtype, int]]:
    """How loading holds the weights of a GGUF file, and `_Wanted.windows`; none if they are quantized anew."""
    source, held = arranged(GGUFTensors(open_gguf(path)), asked, config, has_head=True)
    windows: Counter[torch.dtype] = Counter()
    for name in source.names() if asked is None else ():
        if source.path(name) is not None:
            windows[source.dtype(name)] += prod(source.shape(name)) * source.dtype(name).itemsize
    return held, windows


def _configuration(
    model: str | os.PathLike[str] | CohereConfig, hub: HubOptions, *, is_file: bool = False
) -> CohereConfig:
    if isinstance(model, CohereConfig):
        return model
    if is_file:
        return CohereConfig.from_pretrained(model, **vars(hub))
    name = os.fspath(model)
    known = name.removeprefix("CohereForAI/").removeprefix("CohereLabs/")
    if local_folder(model) is None and known in CohereConfig.preset_names():
        return CohereConfig.preset(known)
    return CohereConfig.from_pretrained(model, **vars(hub))


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if accelerator is None else accelerator
    try:
        return torch.device(device)
    except RuntimeError:
        raise InputError(f"there is no kind of device {device!r}: give 'cpu', 'cuda', 'cuda:1' or the like") from None


def _cache_kind(kind: str) -> CacheKind:
    for known in get_args(CacheKind):
        if kind == known:
            chosen: CacheKind = known
            return chosen
    raise InputError(f"kv_cache is {kind!r}, but must be one of {', '.join(get_args(CacheKind))}")


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}, but must be a whole number from 1 on")
    return value


def quantization_name(quantization: Quantization | None) -> str | None:
    """What holds weights, in a word or two; None if nothing does."""
    if quantization is None:
        return None
    if isinstance(quantization, QuantizationConfig):
        return quantization.format
    return "bitsandbytes, 8 bit" if quantization.load_in_8bit else "bitsandbytes, 4 bit"
