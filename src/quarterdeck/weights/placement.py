"""Where each part of a model goes: to one device, to several, to the CPU beside an accelerator, or to the disk.

A device map says it: names of modules to places. It is given, or worked out by `accelerate` from the sizes of the
modules and the memory of the devices, before anything is loaded. What is in such a map runs where it is, but for parts
on the CPU beside an accelerator and parts on the disk: their weights visit the main device for each use.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from quarterdeck.errors import InputError, UnsupportedOptionError
from quarterdeck.quantization.bnb import is_bitsandbytes

Place = int | str
"""The number of an accelerator, the name of a device, or ``"disk"``."""
MaxMemory = Mapping[int | str, int | str]
DeviceMap = Mapping[str, Place]
Strategy = Literal["auto", "balanced", "balanced_low_0", "sequential"]

DISK = "disk"
STRATEGIES: tuple[Strategy, ...] = ("auto", "balanced", "balanced_low_0", "sequential")
_META = torch.device("meta")


@runtime_checkable
class ReportsBytes(Protocol):
    """A module that will take another number of bytes than the tensors that it has before loading, once quantized."""

    def placed_bytes(self) -> int:
        """Bytes of the module's weights once they are loaded."""
        ...


@dataclass(frozen=True)
class Placement:
    """A device map that has been checked against a model.

    Attributes:
        device_map: names of modules to places; the most specific name counts. ``""`` is the whole model.
        parts: the same without overlaps, in the model's order: no name is inside another.
        main: where inputs go, and where weights from the CPU and the disk visit.
        is_given: whether it was asked for; if not, it is torch's default device.
    """

    device_map: DeviceMap
    parts: DeviceMap
    main: Place
    is_given: bool = True

    @property
    def is_divided(self) -> bool:
        """Whether the model is in more than one place, or on the disk."""
        places = set(self.parts.values())
        return len(places) > 1 or DISK in places

    def where(self, name: str) -> Place:
        """The place of the module or weight of that name; ``main`` for a module without weights that has none."""
        return _where(self.device_map, name, self.main)

    def device(self, name: str) -> torch.device:
        """The device on which a weight is kept; the meta device for those on the disk."""
        place = self.where(name)
        return _META if place == DISK else device_of(place)


def check_device_map(device_map: object, max_memory: MaxMemory | None) -> Strategy | dict[str, Place]:
    """What a caller gave as ``device_map``: a strategy, or places of modules; what needs no model is checked.

    Raises:
        InputError: no such device or amount of memory, or torch's default device is the meta device, which holds no
            weights.
        UnsupportedOptionError: ``max_memory`` beside a map that leaves nothing to be worked out.
    """
    if isinstance(device_map, str) and device_map in STRATEGIES:
        checked_memory(max_memory)
        strategy: Strategy = next(name for name in STRATEGIES if name == device_map)
        return strategy
    if max_memory is not None:
        raise UnsupportedOptionError(
            f"max_memory={max_memory!r} is refused: it counts where a map is worked out, and "
            f"device_map={device_map!r} says all places; give device_map as one of {', '.join(STRATEGIES)}"
        )
    if device_map is None:
        return {"": _place(_default_device(), "device_map")}
    if not isinstance(device_map, Mapping):
        return {"": _place(device_map, "device_map")}
    if not device_map:
        raise InputError("device_map is empty; give the place of each part, such as {'': 'cpu'}")
    places = {name: _place(place, f"device_map[{name!r}]") for name, place in device_map.items()}
    if "meta" in places.values() and set(places.values()) != {"meta"}:
        raise InputError("device_map places a part on 'meta', where weights have no values, and others elsewhere")
    return places


def place_model(
    model: nn.Module,
    wanted: Strategy | DeviceMap,
    *,
    max_memory: MaxMemory | None = None,
    dtype: torch.dtype | None = None,
    is_given: bool = True,
) -> Placement:
    """The placement of a model, which is on the meta device.

    Args:
        model: what is placed; says by ``_no_split_modules`` which modules stay whole, and by ``tied_weights()`` which
            weights are one.
        wanted: of `check_device_map`.
        max_memory: most bytes of each device, for strategies.
        dtype: the type that floating weights will have.
        is_given: see `Placement`.

    Raises:
        InputError: the map names what the model does not have, leaves out a part, divides what is one, or has a
            device that is not there.
    """
    if isinstance(wanted, str):
        planned = plan_device_map(model, wanted, max_memory=max_memory, dtype=dtype)
        device_map = {name: _place(place, f"the planned place of {name!r}") for name, place in planned.items()}
    else:
        device_map = dict(wanted)
    _check_names(model, device_map)
    _check_tied(model, device_map)
    parts = dict(_parts(model, "", None, device_map))
    devices = [place for place in parts.values() if place not in ("cpu", DISK)]
    return Placement(device_map, parts, devices[0] if devices else "cpu", is_given)


def plan_device_map(
    model: nn.Module,
    strategy: Strategy,
    *,
    max_memory: MaxMemory | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Place]:
    """The device map that `accelerate` finds for a strategy; touches no device that ``max_memory`` names.

    Args:
        model: a model on the meta device.
        strategy: ``"auto"`` and ``"balanced"`` fill accelerators evenly, ``"balanced_low_0"`` leaves most of the
            first one free, ``"sequential"`` fills one after the other; then the CPU, then the disk.
        max_memory: most bytes for weights of each device, ``{0: "10GiB", "cpu": 64 * 10**9}``: accelerators by number,
            ``"cpu"``, ``"disk"``. Those that are not in it are not used. Default: what is free.
        dtype: the type that floating weights will have; None: the one they have on the meta device.

    Raises:
        InputError: memory that cannot be read.
    """
    from accelerate.utils import get_balanced_memory, get_max_memory, infer_auto_device_map

    stand_in = _with_real_sizes(model)
    whole = list(getattr(model, "_no_split_modules", ()))
    types = {} if dtype is None else {n: dtype for n, p in stand_in.named_parameters() if p.is_floating_point()}
    limits = checked_memory(max_memory)
    if strategy == "sequential":
        memory = get_max_memory(copy.copy(limits))
    else:
        memory = get_balanced_memory(
            stand_in,
            max_memory=copy.copy(limits),
            no_split_module_classes=whole,
            special_dtypes=types,
            low_zero=strategy == "balanced_low_0",
        )
    for place in memory:
        memory[place] += _reserved(place)
        if limits is not None and place in limits:
            memory[place] = min(memory[place], limits[place])
    planned = infer_auto_device_map(
        stand_in, max_memory=memory, no_split_module_classes=whole, special_dtypes=types, offload_buffers=True
    )
    device_map: dict[str, Place] = dict(planned)
    for alias, name in _tied(model).items():  # packed weights that are one are buffers, which nobody else ties
        if _where(device_map, alias) != _where(device_map, name):
            device_map[alias.rpartition(".")[0]] = _where(device_map, name)
    return device_map


def checked_memory(max_memory: MaxMemory | None) -> dict[int | str, int] | None:
    """``max_memory`` in bytes.

    Raises:
        InputError: no mapping, a device of another kind, or an amount that is no number of bytes.
    """
    from accelerate.utils import convert_file_size_to_int

    if max_memory is None:
        return None
    if not isinstance(max_memory, Mapping):
        raise InputError(
            f"max_memory is {max_memory!r}, but must be a dictionary such as {{0: '10GiB', 'cpu': '64GB'}}"
        )
    checked: dict[int | str, int] = {}
    for place, amount in max_memory.items():
        known = place in ("cpu", "mps", DISK) or (isinstance(place, int) and not isinstance(place, bool) and place >= 0)
        if not known:
            raise InputError(f"max_memory names {place!r}; devices are the numbers of accelerators, 'cpu' and 'disk'")
        is_amount = isinstance(amount, int | str) and not isinstance(amount, bool)
        try:
            size: int = convert_file_size_to_int(amount) if is_amount else -1
        except ValueError:
            size = -1
        if size < 0:
            raise InputError(
                f"max_memory[{place!r}] is {amount!r}, but must be a number of bytes or a text such as '10GiB'"
            )
        checked[place] = size
    return checked


def device_of(place: Place) -> torch.device:
    """The device of a place that is not the disk; numbers are those of the accelerator that torch would use."""
    if isinstance(place, str):
        return torch.device(place)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device(accelerator.type if accelerator is not None else "cuda", place)


def _place(value: Any, what: str) -> Place:
    """A place as it is written in a device map: accelerators by number."""
    if value == DISK:
        return DISK
    if isinstance(value, bool) or not isinstance(value, int | str | torch.device):
        raise InputError(f"{what} is {value!r}, which is no device; give one such as 'cuda:0', 0, 'cpu' or 'disk'")
    try:
        device = device_of(value) if isinstance(value, int) else torch.device(value)
    except RuntimeError as error:
        raise InputError(f"{what} is {value!r}, which is no device: {error}") from error
    if device.type in ("cpu", "meta"):
        return device.type
    return _accelerator(device, f"{what} is {value!r}")


def _accelerator(device: torch.device, what: str) -> Place:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{what}, but there is no CUDA device here; use 'cpu'")
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or device.type != here.type:
        raise InputError(f"{what}, but there is no such device here; use {'cpu' if here is None else here.type!r}")
    count = torch.accelerator.device_count()
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    if not 0 <= index < count:
        raise InputError(f"{what}, but there are {count} such devices here, numbered from 0; give one of those")
    return index if device.type != "mps" else "mps"


def _default_device() -> torch.device:
    device = torch.get_default_device()
    if device.type == "meta":
        raise InputError(
            "torch's default device is 'meta', where weights have no values: leave `with torch.device('meta')` before "
            "from_pretrained, which builds without memory anyway, or give device_map='cpu' (or 'meta' for shapes only)"
        )
    return device


def _where(device_map: DeviceMap, name: str, otherwise: Place = "cpu") -> Place:
    """The place by the longest name in the map that is ``name`` or contains it."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map.get(name, otherwise)


def _parts(module: nn.Module, name: str, inherited: Place | None, device_map: DeviceMap) -> Iterable[tuple[str, Place]]:
    """Modules as large as can be that are in one place as a whole."""
    place = device_map.get(name, inherited)
    inside = name + "." if name else ""
    if not any(key != name and key.startswith(inside) for key in device_map):
        if place is not None:
            yield name, place
        return
    for child, part in module.named_children():
        yield from _parts(part, inside + child, place, device_map)


def _check_names(model: nn.Module, device_map: DeviceMap) -> None:
    """Refuse names that the model does not have, and maps in which a weight has no place."""
    modules = [name for name, _ in model.named_modules()]
    for name in device_map:
        if name not in modules:
            near = get_close_matches(str(name), modules, n=3)
            raise InputError(
                f"device_map names {name!r}, and the model has no such module"
                + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "; model.named_modules() lists them")
            )
    lacking = [name for name in model.state_dict() if "" not in device_map and not _covers(device_map, name)]
    if lacking:
        raise InputError(
            f"device_map has no place for {len(lacking)} weights: {', '.join(lacking[:3])}"
            + (" ..." if len(lacking) > 3 else "")
            + "; name their modules, or give '' as the place of all others"
        )


def _covers(device_map: DeviceMap, name: str) -> bool:
    return any(name.startswith(key + ".") for key in device_map)


def _check_tied(model: nn.Module, device_map: DeviceMap) -> None:
    for alias, name in _tied(model).items():
        one, other = _where(device_map, alias), _where(device_map, name)
        if one != other:
            raise InputError(
                f"{alias} and {name} are one tensor (tie_word_embeddings), but device_map places them on {one!r} and "
                f"{other!r}; give both modules one place"
            )


def _tied(model: nn.Module) -> Mapping[str, str]:
    own: Any = getattr(model, "tied_weights", dict)  # a plain module has none
    tied: Mapping[str, str] = own()
    return tied


def _with_real_sizes(model: nn.Module) -> nn.Module:
    """The model, or one like it in which modules that say how many bytes they will take hold so many."""
    sizes = {name: size for name, module in model.named_modules() if (size := _reported_bytes(module)) is not None}
    if not sizes:
        return model
    # their weights are dropped anyway, and some of bitsandbytes cannot be copied before they are loaded
    kept = {id(weight): weight for name in sizes for weight in model.get_submodule(name).parameters()}
    stand_in = copy.deepcopy(model, dict(kept))
    for name, size in sizes.items():
        module = stand_in.get_submodule(name)
        for inner in module.modules():
            inner._parameters.clear()
            inner._buffers.clear()
        module.register_buffer("placed", torch.empty(size, dtype=torch.uint8, device=_META))
    return stand_in


def _reported_bytes(module: nn.Module) -> int | None:
    """Bytes of a module once it is loaded, where its tensors do not say them."""
    if isinstance(module, ReportsBytes):
        return module.placed_bytes()
    if not is_bitsandbytes(module) or not module.weight.is_floating_point():  # type: ignore[operator]  # a tensor
        return None
    count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return count // 2 if type(module).__name__ == "Linear4bit" else count


def _reserved(place: Place) -> int:
    """Bytes of a CUDA device that torch holds and does not use, which count as taken and are not."""
    if not isinstance(place, int) or not torch.cuda.is_available() or place >= torch.cuda.device_count():
        return 0
    return torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
