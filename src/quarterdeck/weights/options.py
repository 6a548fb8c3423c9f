"""What may be asked of loading: the type of the weights, and what is refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from quarterdeck.config_checks import as_dtype
from quarterdeck.errors import InputError, UnsupportedOptionError

Dtype = str | torch.dtype | None

# options of transformers that ask for what is always done here: the values that do
_ALREADY_SO: Mapping[str, tuple[object, ...]] = {
    "low_cpu_mem_usage": (True, False, None),
    "use_safetensors": (True, None),
    "trust_remote_code": (False, None),
    "weights_only": (True, None),
    "resume_download": (True, False, None),
    # weights are placed one by one, and the CPU never holds what goes elsewhere
    "offload_state_dict": (True, False, None),
    # the only buffers are packed weights, which always go where their layer goes
    "offload_buffers": (True, False, None),
}

_REFUSED: Mapping[str, str] = {
    "use_safetensors": "weights are read from safetensors files only, since others can run code when they are opened",
    "trust_remote_code": "no code of a checkpoint is ever run; the architecture is the one in this package",
    "code_revision": "no code of a checkpoint is ever run; the architecture is the one in this package",
    "weights_only": "pickle files are not opened at all; only safetensors files are read",
    "tp_size": "tensors are not divided among devices, layers are: give a device_map instead",
    "distributed_config": "tensors are not divided among devices, layers are: give a device_map instead",
    "tp_plan": "tensors are not divided among devices, layers are: give a device_map instead",
    "device_mesh": "tensors are not divided among devices, layers are: give a device_map instead",
    "from_tf": "TensorFlow weights are not read; use the checkpoint's safetensors files",
    "from_flax": "Flax weights are not read; use the checkpoint's safetensors files",
    "variant": "only files without a variant are looked for; use a revision or subfolder that has them",
    "adapter_name": "adapters are not there yet",
    "adapter_kwargs": "adapters are not there yet",
    "use_kernels": "kernels are not fetched from the hub; leave it out",
    "generation_config": "set it on the model: model.generation_config = ...",
    "key_mapping": "weights must have the architecture's names; rename them and pass them as state_dict",
    "use_auth_token": "the option is called token",
    "proxies": "set the environment variable HTTPS_PROXY instead",
    "mirror": "set the environment variable HF_ENDPOINT instead",
}

# those of the above that False switches off, as None does all
_SWITCHES = frozenset(("from_tf", "from_flax", "use_kernels"))


def check_load_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that are left for the configuration, after those of transformers that are not.

    What asks for nothing (``variant=None``, ``from_tf=False``) is left out.

    Raises:
        UnsupportedOptionError: an option asks for what is not done here.
    """
    overrides: dict[str, Any] = {}
    for name, value in options.items():
        if name in _ALREADY_SO and any(value is accepted for accepted in _ALREADY_SO[name]):
            continue
        if name in _REFUSED and name not in _ALREADY_SO and _is_off(name, value):
            continue
        if name in _REFUSED:
            raise UnsupportedOptionError(f"{name}={value!r} is refused: {_REFUSED[name]}")
        if name in _ALREADY_SO:
            raise UnsupportedOptionError(f"{name} is {value!r}, but must be True or False")
        overrides[name] = value
    return overrides


def _is_off(name: str, value: object) -> bool:
    return value is None or (value is False and name in _SWITCHES)


def weights_dtype(dtype: Dtype, torch_dtype: Dtype) -> torch.dtype | Literal["auto"]:
    """The type that weights are asked for in; torch's default type if nothing is said, as in transformers.

    Raises:
        InputError: the two names of the option contradict each other.
        ConfigError: no floating type.
    """
    new, old = (name if name == "auto" else as_dtype(name) for name in (dtype, torch_dtype))
    if new is not None and old not in (None, new):
        raise InputError(f"dtype={dtype!r} and torch_dtype={torch_dtype!r} are one option; give one of them")
    asked = old if new is None else new
    if asked is None:
        return torch.get_default_dtype()
    return asked if isinstance(asked, torch.dtype) else "auto"
