"""Writing a checkpoint so that at every moment there is a whole one in the folder: the old or the new.

Everything is first written into a folder of its own inside the target, then renamed into place. What makes
the new weights count is one step: the rename of the single file or of the index, or the removal of an old single
file, which goes before an index. Files of an earlier save that no longer belong are removed last.

The configuration is renamed just before that step: dying between the two leaves the new configuration with the
old weights, the one state that is neither; loading tells if their shapes do not fit.

A model whose weights are mapped from the very files that it replaces stays usable: a renamed or removed file
lives on for as long as it is mapped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from quarterdeck.errors import CheckpointError, InputError
from quarterdeck.weights.aligned import write_aligned
from quarterdeck.weights.index import INDEX_FILE, SHARD_FILE, SINGLE_FILE, read_weight_map

_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]*)")


@contextmanager
def replacing_checkpoint(folder: Path) -> Iterator[Path]:
    """A temporary folder for the files of a new checkpoint, which replace those in ``folder`` on leaving.

    If the block fails, ``folder`` stays as it was (and if the process is killed, too, but for the temporary
    folder ``.saving-...``, which may then be deleted). Files that the block does not write, such as a
    tokenizer's, are left alone; weights of an earlier save are removed.

    Raises:
        InputError: there is a file where the folder should be.
    """
    if folder.is_file():
        raise InputError(f"'{folder}' is a file; give a folder to save into")
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        yield staging
        _install(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_weights(
    state_dict: Mapping[str, Tensor],
    folder: Path,
    max_shard_size: int | str,
    offloaded: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes one file, or shards with an index if the tensors are larger than ``max_shard_size`` together.

    Args:
        state_dict: the tensors; two that share memory are both written.
        folder: an existing folder, without weights.
        max_shard_size: bytes, or a text such as ``"5GB"``; a tensor that is larger is a shard by itself.
        offloaded: the values of tensors that are on the meta device, asked for when their file is written.

    Raises:
        InputError: nothing to write, tensors without values, or a size that cannot be read.
    """
    values = {} if offloaded is None else offloaded
    _check_tensors(state_dict, values)
    shards = split_into_shards(state_dict, parse_size(max_shard_size))
    if len(shards) == 1:
        write_file(shards[0], folder / SINGLE_FILE, values)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        filename = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(shard, folder / filename, values)
        weight_map.update(dict.fromkeys(shard, filename))
    total_size = sum(tensor.nbytes for tensor in state_dict.values())
    _write_index(weight_map, total_size, folder / INDEX_FILE)


def split_into_shards(state_dict: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """The tensors in their order, cut wherever the next one would not fit: of 8, 4 and 4 bytes, two shards of 8."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state_dict.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def parse_size(size: int | str) -> int:
    """Bytes of a number, or of a text with a unit: ``"5GB"`` is 5 * 10**9, ``"5GiB"`` 5 * 2**30.

    Raises:
        InputError: no such size, or none above zero.
    """
    match = _SIZE.fullmatch(str(size).strip().upper())
    if match is None or match[2] not in _UNITS:
        raise InputError(f"max_shard_size is {size!r}; give a number of bytes or a text such as '5GB' or '500MiB'")
    count = int(float(match[1]) * _UNITS[match[2]])
    if count < 1:
        raise InputError(f"max_shard_size is {size!r}, but must be at least one byte")
    return count


def _check_tensors(state_dict: Mapping[str, Tensor], offloaded: Mapping[str, Tensor]) -> None:
    if not state_dict:
        raise InputError("there are no weights to save")
    unreal = [name for name, tensor in state_dict.items() if tensor.is_meta and name not in offloaded]
    if unreal:
        raise InputError(
            f"{len(unreal)} weights, {unreal[0]} among them, are on the meta device and have no values to save; "
            "load or initialise the model first"
        )


def write_file(tensors: Mapping[str, Tensor], path: Path, offloaded: Mapping[str, Tensor] | None = None) -> None:
    """One safetensors file, on the disk when this returns; ``offloaded`` has what is on the meta device."""
    values = {} if offloaded is None else offloaded
    write_aligned(path, tensors, lambda name: values[name] if tensors[name].is_meta else tensors[name])
    _flush(path)


def _write_index(weight_map: Mapping[str, str], total_size: int, path: Path) -> None:
    """The index, under its name at once whole; ``total_size`` in bytes, without headers."""
    content = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _flush(partial)
    partial.replace(path)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _install(staging: Path, folder: Path) -> None:
    """Renames the new files into place, those that make them count last, and removes what they supersede."""
    new = {path.name for path in staging.iterdir()}
    _free_names(folder, new)
    old = {path.name for path in folder.iterdir() if _holds_weights(path.name)}
    for name in sorted(new, key=_install_order):
        (staging / name).replace(folder / name)
    for name in sorted(old - new, key=_removal_order):
        (folder / name).unlink()


def _install_order(name: str) -> int:
    """Shards, then what goes with them, then what makes them count."""
    if name in (SINGLE_FILE, INDEX_FILE):
        return 2
    return 0 if SHARD_FILE.fullmatch(name) else 1


def _removal_order(name: str) -> int:
    """What makes old weights count first, so that shards are never missing from an index."""
    return (SINGLE_FILE, INDEX_FILE).index(name) if name in (SINGLE_FILE, INDEX_FILE) else 2


def _free_names(folder: Path, names: set[str]) -> None:
    """Gives shards in use under one of ``names`` second names, and lets the index use those.

    The files can then be replaced while the index still describes a whole checkpoint. What is no whole
    checkpoint has nothing to lose and is left as it is.
    """
    index = folder / INDEX_FILE
    try:
        weight_map = read_weight_map(index) if index.is_file() else {}
    except CheckpointError:
        return
    shards = set(weight_map.values())
    if not shards & names or not all((folder / shard).is_file() for shard in shards):
        return
    second = {shard: shard.replace("model-", "model-old-", 1) for shard in shards & names}
    for shard, name in second.items():
        _link(folder / shard, folder / name)
    total_size = sum((folder / shard).stat().st_size for shard in shards)
    _write_index({name: second.get(shard, shard) for name, shard in weight_map.items()}, total_size, index)


def _link(path: Path, second_name: Path) -> None:
    second_name.unlink(missing_ok=True)
    try:
        second_name.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copy2(path, second_name)


def _holds_weights(filename: str) -> bool:
    return filename in (SINGLE_FILE, INDEX_FILE) or SHARD_FILE.fullmatch(filename) is not None
