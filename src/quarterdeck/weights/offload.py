"""Weights that are not in the model: on the CPU beside an accelerator, or on the disk, fetched for each use.

The hooks that fetch them, and that move what goes from one device to another, are those of `accelerate`; here is what
they fetch from. A weight on the disk is read from the checkpoint's own file where it is; what is stored nowhere in the
form that is needed is written into a folder.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from quarterdeck.errors import InputError
from quarterdeck.weights.load import LoadReport, Shape, WeightReceiver, put_tensor
from quarterdeck.weights.placement import DISK, Placement, device_of
from quarterdeck.weights.reader import MemoryTensors, SafetensorsFile, TensorSource
from quarterdeck.weights.save import write_file


class OffloadedWeights(Mapping[str, Tensor]):
    """The weights that are not in a model, by its names; each is read when it is asked for, and not kept.

    Args:
        offload_folder: where weights are written that no file holds in the form that is needed. They go into a folder
            of their own inside, which is removed when nobody needs this object any more.
    """

    def __init__(self, offload_folder: Path | None = None) -> None:
        self._offload_folder = offload_folder
        self._own_folder: Path | None = None
        self._entries: dict[str, tuple[TensorSource, str, torch.dtype | None]] = {}

    def __getitem__(self, name: str) -> Tensor:
        source, stored, dtype = self._entries[name]
        tensor = source.once(stored)
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # what is in files is the same for a copy of the model

    @property
    def can_write(self) -> bool:
        """Whether there is a folder to write into."""
        return self._offload_folder is not None

    def paths(self) -> set[Path]:
        """The files that are read from."""
        found = (source.path(stored) for source, stored, _ in self._entries.values())
        return {path for path in found if path is not None}

    def refer(self, name: str, source: TensorSource, stored: str, dtype: torch.dtype | None) -> None:
        """Takes the weight ``name`` from where it is stored, as ``dtype``."""
        self._entries[name] = source, stored, dtype

    def share(self, alias: str, name: str) -> None:
        """Lets ``alias`` be another name of ``name``."""
        self._entries[alias] = self._entries[name]

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes a weight into the folder.

        Raises:
            InputError: there is no folder.
        """
        if self._offload_folder is None:
            raise InputError(
                f"{name} is to be on the disk, and no safetensors file holds it in the form that is needed: give "
                "offload_folder, a folder to write it into"
            )
        if self._own_folder is None:
            self._offload_folder.mkdir(parents=True, exist_ok=True)
            self._own_folder = Path(tempfile.mkdtemp(prefix="offloaded-", dir=self._offload_folder))
            weakref.finalize(self, shutil.rmtree, self._own_folder, ignore_errors=True)
        path = self._own_folder / f"{name}.safetensors"
        write_file({name: tensor}, path)
        self._entries[name] = SafetensorsFile(path), name, None


class OffloadingReceiver:
    """Writes what another receiver makes to the disk at once, where the disk is its place.

    So that of the parts of a model that are quantized for the disk, one at a time is in memory.
    """

    def __init__(
        self, receiver: WeightReceiver, model: nn.Module, placement: Placement, offloaded: OffloadedWeights
    ) -> None:
        self._receiver = receiver
        self._model = model
        self._placement = placement
        self._offloaded = offloaded
        self._own = dict(model.state_dict(keep_vars=True))

    def shapes(self) -> Mapping[str, Shape]:
        """What the other takes."""
        return self._receiver.shapes()

    def receive(self, name: str, tensor: Tensor, device: torch.device) -> None:
        """Lets the other make of it what it does, and puts that away; what is kept as it is stays where it is."""
        on_disk = self._placement.where(name) == DISK
        own = self._own.get(name)
        if on_disk and own is not None and (own.shape, own.dtype) == (tensor.shape, tensor.dtype):
            return
        self._receiver.receive(name, tensor, device)
        if on_disk:
            path = name.rpartition(".")[0]
            for leaf in self._model.get_submodule(path).state_dict(keep_vars=True):
                _put_away(self._model, f"{path}.{leaf}", self._offloaded)


def offload_weights(
    model: nn.Module,
    placement: Placement,
    source: TensorSource,
    report: LoadReport,
    offloaded: OffloadedWeights,
    *,
    tied: Mapping[str, str],
) -> None:
    """Fills ``offloaded`` with the weights that visit the main device, after the model was loaded.

    Args:
        model: the model; weights for the disk are on the meta device afterwards.
        placement: what goes where.
        source: what the model was loaded from; in memory or in files.
        report: of loading.
        offloaded: is filled.
        tied: names that share another's tensor, to that other name.

    Raises:
        InputError: a weight for the disk is in no file, and there is no folder to write it into.
    """
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in tied}
    for name, tensor in own.items():
        place = placement.where(name)
        if place == DISK and not tensor.is_meta:
            _put_away(model, name, offloaded)  # made here: of no checkpoint, or in another form
        elif place == DISK and name not in offloaded:
            _refer(name, source, report.found[name], tensor.dtype, offloaded)
        elif place == "cpu" and placement.main != "cpu":
            offloaded.refer(name, MemoryTensors({name: tensor}), name, None)
    for alias, name in tied.items():
        if name in offloaded:
            offloaded.share(alias, name)


def _refer(name: str, source: TensorSource, stored: str, dtype: torch.dtype, offloaded: OffloadedWeights) -> None:
    """A weight that was not read: it stays where it is, or is written if that saves converting it at each use."""
    changes = source.dtype(stored) != dtype
    if source.path(stored) is None or (changes and offloaded.can_write):
        offloaded.write(name, source.tensor(stored, dtype, torch.device("cpu")))
    else:
        offloaded.refer(name, source, stored, dtype)


def _put_away(model: nn.Module, name: str, offloaded: OffloadedWeights) -> None:
    tensor = model.state_dict()[name]
    if not tensor.is_meta:
        offloaded.write(name, tensor)
        put_tensor(model, name, tensor.to("meta"))


class OneAtATime:
    """Lets one thread at a time run modules whose weights come and go; others wait for their turn."""

    def __init__(self) -> None:
        self._turn = threading.RLock()  # a module may run others of the same model

    def guard(self, module: nn.Module) -> None:
        """Has the module ask for its turn before it runs and give it back after that, whatever happens."""
        module.register_forward_pre_hook(self._enter)
        module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._turn.acquire()

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._turn.release()

    def __reduce__(self) -> tuple[type[OneAtATime], tuple[()]]:
        return OneAtATime, ()  # a copy of the model has turns of its own


def dispatch(model: nn.Module, placement: Placement, offloaded: OffloadedWeights) -> None:
    """Gives the modules of a divided model the hooks that bring inputs and weights to where they are needed."""
    from accelerate import dispatch_model

    for name, module in model.named_modules():
        if not len(module.state_dict()) and not list(module.children()):
            module.to(_runs_on(placement, name))  # tables that are no weights
    dispatch_model(
        model,
        dict(placement.parts),
        main_device=placement.main,
        state_dict=offloaded,
        offload_index={},
        offload_buffers=True,  # the only buffers are packed weights
    )
    for refusal in ("to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa", "neuron"):
        model.__dict__.pop(refusal, None)  # the model itself refuses to be moved, and says why
    for name in _pieces(model, placement):
        # what is added up inside of a layer must be in one place
        model.get_submodule(name)._hf_hook.io_same_device = True  # type: ignore[union-attr]
    turns = OneAtATime()
    for module in model.modules():
        if offloaded and hasattr(module, "tied_weights"):  # whole models, with and without a head
            turns.guard(module)


def _runs_on(placement: Placement, name: str) -> torch.device:
    place = placement.where(name)
    return device_of(placement.main if place in ("cpu", DISK) else place)


def _pieces(model: nn.Module, placement: Placement) -> list[str]:
    """The parts that are inside of a module that is usually kept whole."""
    kinds = getattr(model, "_no_split_modules", ())
    whole = [name for name, module in model.named_modules() if type(module).__name__ in kinds]
    return [part for part in placement.parts if any(part.startswith(f"{name}.") for name in whole)]
