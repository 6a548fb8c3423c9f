"""Loading with quantization: a model without memory is prepared, then a receiver fills it while a checkpoint is read.

Receivers take tensors of a checkpoint in place of a model's parameters. They follow the protocol ``WeightReceiver`` of
`quarterdeck.weights.load`, which they do not import.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quarterdeck.errors import CheckpointMismatchError
from quarterdeck.kernels import native
from quarterdeck.quantization.bnb import BitsAndBytesReceiver, parts_in_full, replace_with_bitsandbytes
from quarterdeck.quantization.bnb_config import BitsAndBytesConfig
from quarterdeck.quantization.choose import Quantization
from quarterdeck.quantization.formats import PACKED
from quarterdeck.quantization.modules import PackedModule, QuantizedEmbedding
from quarterdeck.quantization.surgery import naming, note, replace_modules

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]


def prepare(
    model: nn.Module,
    quantization: Quantization,
    stored: Mapping[str, Shape],
    *,
    prefix: str,
    dtype: torch.dtype,
    places: object = None,
) -> RoundingReceiver | StoredReceiver | MixedReceiver | BitsAndBytesReceiver:
    """Replaces the linears of a model without memory, and says in its configuration how it is quantized.

    Args:
        model: the model, on the meta device.
        quantization: how.
        stored: name and shape of each tensor of the checkpoint. Whether its weights are quantized already is seen by
            the names.
        prefix: what a model with a head puts before the names of one without.
        dtype: type of the model.
        places: a device map, names of modules to places, or the name of a strategy. Parts that it puts on the CPU
            beside an accelerator or on disk are left in full by bitsandbytes.

    Returns:
        What fills the model while the checkpoint is read.

    Raises:
        InputError: there is nothing to quantize, or not in this way or in these places.
        MissingPackageError: bitsandbytes is needed and not installed.
    """
    note(model, quantization)
    if isinstance(quantization, BitsAndBytesConfig):
        far = parts_in_full(quantization, places)
        linears = replace_with_bitsandbytes(model, quantization, elsewhere=far)
        return BitsAndBytesReceiver(linears, quantization, stored, prefix, dtype)
    if not native.levels():
        logger.warning(
            "the native kernels are missing: on the CPU, products with quantized weights go through PyTorch, much "
            "slower; `quarterdeck env` tells the reason"
        )
    modules = replace_modules(model, quantization)
    for module in modules.values():
        if isinstance(module, QuantizedEmbedding):
            module.dtype = dtype
    held = {name.rpartition(".")[0].removeprefix(prefix) for name in stored if name.rpartition(".")[2] == PACKED}
    plain = {name.removesuffix(".weight").removeprefix(prefix) for name in stored if name.endswith(".weight")}
    if not held:
        return RoundingReceiver(modules)
    full = {name: module for name, module in modules.items() if name.removeprefix(prefix) in plain - held}
    if not full:
        return StoredReceiver(modules)
    rest = {name: module for name, module in modules.items() if name not in full}
    return MixedReceiver(StoredReceiver(rest), RoundingReceiver(full))


class RoundingReceiver:
    """Takes full weights and keeps them rounded: beside the quantized model there is one tensor in memory.

    Args:
        modules: the modules to fill, by name.
    """

    def __init__(self, modules: Mapping[str, PackedModule]) -> None:
        self._modules = {f"{name}.weight": module for name, module in modules.items()}

    def shapes(self) -> dict[str, Shape]:
        """The weights by the names of the plain model."""
        return {name: (module.rows, module.columns) for name, module in self._modules.items()}

    def receive(self, name: str, tensor: Tensor, device: torch.device) -> None:
        """Rounds one weight; InputError says which one no scale can hold."""
        if not tensor.is_floating_point():
            raise CheckpointMismatchError(
                f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, but must be of a floating type to be "
                "quantized: use the checkpoint that this was made from"
            )
        with naming(name):
            self._modules[name].set_weight(tensor, _memory(device))


class StoredReceiver:
    """Takes packed tensors as they are stored: on the CPU they stay windows on the file.

    Args:
        modules: the modules to fill, by name.
    """

    def __init__(self, modules: Mapping[str, PackedModule]) -> None:
        self._modules = modules

    def shapes(self) -> dict[str, Shape]:
        """The packed tensors by their names."""
        return {
            f"{name}.{leaf}": shape
            for name, module in self._modules.items()
            for leaf, (shape, _) in module.sizes.items()
        }

    def receive(self, name: str, tensor: Tensor, device: torch.device) -> None:
        """Takes one tensor."""
        path, _, leaf = name.rpartition(".")
        module = self._modules[path]
        expected = module.sizes[leaf][1]
        if tensor.dtype != expected:
            raise CheckpointMismatchError(f"{name} is stored as {tensor.dtype}, but must be {expected}")
        module.set_tensors({leaf: tensor.to(_memory(device))})


class MixedReceiver:
    """Takes some weights packed and rounds the others.

    Args:
        receivers: who takes what.
    """

    def __init__(self, *receivers: StoredReceiver | RoundingReceiver) -> None:
        self._of = {name: receiver for receiver in receivers for name in receiver.shapes()}
        self._shapes = {name: shape for receiver in receivers for name, shape in receiver.shapes().items()}

    def shapes(self) -> dict[str, Shape]:
        """All that they take."""
        return self._shapes

    def receive(self, name: str, tensor: Tensor, device: torch.device) -> None:
        """Hands one tensor on."""
        self._of[name].receive(name, tensor, device)


def _memory(device: torch.device) -> torch.device:
    """Where a result is made: the caller puts what is for the meta device elsewhere by itself."""
    return torch.device("cpu") if device.type == "meta" else device
