"""Which files hold the weights of a checkpoint.

Either one file, ``model.safetensors``, or shards ``model-00001-of-00003.safetensors`` and so on, with
``model.safetensors.index.json`` saying which tensor is in which shard. Where both are, the one file counts,
as it does in transformers; saving relies on that order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quarterdeck.config_files import read_json
from quarterdeck.errors import CheckpointCorruptError, CheckpointNotFoundError, CheckpointUnsafeError
from quarterdeck.locate import HubOptions, local_folder

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILE = re.compile(r"model(-old)?-\d{5}-of-\d{5}\.safetensors")

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLES_ON_HUB = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class WeightFiles:
    """The files of one checkpoint.

    Attributes:
        paths: the safetensors files, on disk.
        weight_map: name of a tensor to name of its file, as the index has it; None for a single file.
    """

    paths: Sequence[Path]
    weight_map: Mapping[str, str] | None = None


def find_weights(name_or_dir: str | os.PathLike[str], options: HubOptions) -> WeightFiles:
    """The weight files of a model, downloaded first if it is on the hub.

    Raises:
        CheckpointNotFoundError: no weights, or a shard that the index names is missing.
        CheckpointUnsafeError: the weights are only there as pickle files.
        CheckpointCorruptError: the index is not what it should be.
    """
    single = options.resolve_file(name_or_dir, SINGLE_FILE, required=False)
    if single is not None:
        return WeightFiles([single])
    index = options.resolve_file(name_or_dir, INDEX_FILE, required=False)
    if index is None:
        raise _no_weights(name_or_dir, options)
    weight_map = read_weight_map(index)
    shards = sorted(set(weight_map.values()))
    try:
        paths = options.pinned_to(index).resolve_files(name_or_dir, shards)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(f"{INDEX_FILE} names {len(shards)} shards, but {error}") from error
    return WeightFiles(paths, weight_map)


def read_weight_map(path: Path) -> dict[str, str]:
    """The ``weight_map`` of an index file: name of a tensor to name of its file, all beside the index.

    Raises:
        CheckpointCorruptError: no JSON object, no such map, or a name that leads out of the folder.
        CheckpointUnsafeError: the map names files of another format.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointCorruptError(f"{path} has no weight_map that names a file for each tensor")
    for shard in weight_map.values():
        _check_shard_name(path, shard)
    return weight_map


def _check_shard_name(index: Path, shard: Any) -> None:
    if not isinstance(shard, str) or not shard or "/" in shard or "\\" in shard:
        raise CheckpointCorruptError(f"{index} names the file {shard!r}, which is not a file beside it")
    if not shard.endswith(".safetensors"):
        raise CheckpointUnsafeError(
            f"{index} names the file {shard!r}; only safetensors files are read, since others can run code"
        )


def _no_weights(name_or_dir: str | os.PathLike[str], options: HubOptions) -> Exception:
    place = f"'{name_or_dir}'" + (f", folder '{options.subfolder}'" if options.subfolder else "")
    pickles = _pickles(name_or_dir, options)
    if pickles:
        return CheckpointUnsafeError(
            f"{place} has weights only as {', '.join(pickles)}: pickle files can run any code when they are "
            "opened, so Quarterdeck never opens them; convert them to safetensors (the `safetensors` package "
            "and the hub's conversion service do), or use a revision that has them"
        )
    unseen = "" if local_folder(name_or_dir) else "; if this machine is offline, they were not downloaded before"
    return CheckpointNotFoundError(f"{place} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}{unseen}")


def _pickles(name_or_dir: str | os.PathLike[str], options: HubOptions) -> list[str]:
    """Names of pickle files where safetensors were looked for; of a hub model, only the usual ones."""
    folder = local_folder(name_or_dir)
    if folder is not None:
        entries = (folder / options.subfolder).iterdir() if (folder / options.subfolder).is_dir() else ()
        return sorted(entry.name for entry in entries if entry.suffix in _PICKLE_SUFFIXES)
    return [name for name in _PICKLES_ON_HUB if options.has_file(name_or_dir, name)]
