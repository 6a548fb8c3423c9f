"""Quantizing a model from outside: linears and embeddings are replaced by name, nothing else is touched.

    quantize_model(model, "int4")        # rounds the weights of a built model, one after the other
    dequantize_model(model, torch.float32)   # back to plain linears, with the weights as they were rounded

Loading uses the first half only, `replace_modules` on a model without memory; the weights come from the receiver.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from quarterdeck.errors import InputError
from quarterdeck.kernels.linears import is_linear
from quarterdeck.quantization.choose import as_quantization
from quarterdeck.quantization.config import QuantizationConfig, is_named
from quarterdeck.quantization.formats import PackedFormat, format_of
from quarterdeck.quantization.modules import PackedModule, QuantizedEmbedding, QuantizedLinear, packed_modules
from quarterdeck.quantization.report import LayerError, layer_error

ModelT = TypeVar("ModelT", bound=nn.Module)


def skipped(name: str, skip: Iterable[str]) -> bool:
    """Whether a module's name is among ``skip``: whole, by its beginning, or by its last part."""
    return any(is_named(name, one) for one in skip)


def targets(model: nn.Module, config: QuantizationConfig) -> dict[str, nn.Linear | nn.Embedding]:
    """What ``config`` quantizes of ``model``, by name.

    Raises:
        InputError: embedding and head are one tensor and only one of them is to be quantized, or nothing is, or some
            weights are quantized already.
    """
    _check_in_full(model)
    head = output_head(model)
    found: dict[str, nn.Linear | nn.Embedding] = {}
    left: list[nn.Module] = []
    for name, module in model.named_modules():
        if type(module) is not nn.Embedding and not is_linear(module):
            continue
        wanted = config.head if module is head else config.embeddings if type(module) is nn.Embedding else True
        if wanted and not skipped(name, config.modules_to_not_convert):
            found[name] = module
        else:
            left.append(module)
    tensors = {id(module.weight) for module in found.values()}
    if any(id(module.weight) in tensors for module in left):
        raise InputError(
            "the output head and the embedding are one tensor in this model: quantize both or none (embeddings, head, "
            "modules_to_not_convert)"
        )
    if not found:
        raise InputError(f"there is nothing to quantize: the model has no linears but those that {config} leaves out")
    return found


def _check_in_full(model: nn.Module) -> None:
    """InputError where weights are quantized: no one configuration says how they and the others are then held."""
    if packed_modules(model) or getattr(model, "is_quantized", False):
        raise InputError(
            f"the model's weights, or some, are quantized already, as {getattr(model, 'quantization', None)}: quantize "
            "the checkpoint that it was made from, or one in full, as model.dequantize() and, of GGUF, GPTQ and AWQ, "
            "`quarterdeck convert` make it"
        )


def output_head(model: nn.Module) -> nn.Module | None:
    """The output head of a model that tells."""
    get = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = get() if get is not None else None
    return head


def replace_modules(model: nn.Module, config: QuantizationConfig) -> dict[str, PackedModule]:
    """Puts modules without weights in the places of those that ``config`` quantizes; returns them by name."""
    made: dict[str, PackedModule] = {}
    for name, module in targets(model, config).items():
        made[name] = like(module, format_of(config, name))
        put(model, name, made[name])
    return made


def quantize_model(model: ModelT, config: QuantizationConfig | str) -> ModelT:
    """Rounds the weights of a built model and returns the model, which has changed.

    Args:
        model: a model with values; each weight is let go as soon as it is rounded.
        config: what to quantize, or a format's name; its method must be round-to-nearest.

    Raises:
        InputError: no such configuration, weights that are not finite or quantized already, or a method that needs
            calibration text.
    """
    chosen = as_quantization(config)
    if not isinstance(chosen, QuantizationConfig):
        raise InputError(f"quantize_model takes a QuantizationConfig or a format's name, not {config!r}")
    if chosen.method != "round-to-nearest":
        raise InputError(
            f"method={chosen.method!r} needs calibration text: quarterdeck.quantization.calibration.quantization_steps"
        )
    for _ in rounding_steps(model, chosen):
        pass
    return model


def rounding_steps(
    model: nn.Module, config: QuantizationConfig, *, only: Collection[str] | None = None
) -> Iterator[LayerError]:
    """Rounds the weights of a built model to nearest, and tells after each module how it went.

    Args:
        model: a model with values.
        config: what to quantize.
        only: names of modules to take; the others and the model's configuration stay as they are. None takes all.
    """
    old = {name: module for name, module in targets(model, config).items() if only is None or name in only}
    names: dict[int, list[str]] = {}
    for name, module in old.items():
        names.setdefault(id(module.weight), []).append(name)
    for group in names.values():
        modules = [old.pop(name) for name in group]
        weight = modules[0].weight.detach()
        made = [like(module, format_of(config, group[0])) for module in modules]  # one weight is held in one way
        with naming(group[0]):
            made[0].set_weight(weight, weight.device)
        error = layer_error(group[0], weight, made[0].packed)
        for name, new in zip(group, made, strict=True):
            new.set_tensors(made[0].tensors)
            put(model, name, new)
        del modules, weight
        yield error
    if only is None:
        note(model, config)


def dequantize_model(model: ModelT, dtype: torch.dtype) -> ModelT:
    """Gives a model of this package's formats plain linears and embeddings in ``dtype``; tied ones are one again."""
    shared: dict[int, nn.Parameter] = {}
    for name, module in packed_modules(model).items():
        key = id(next(iter(module.tensors.values())))
        if key not in shared:
            shared[key] = nn.Parameter(module.dequantized(dtype))
        put(model, name, _plain(module, shared[key]))
    note(model, None)
    return model


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the name of a module, or of its weight, before what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Makes ``module`` the one called ``name``, in the mode of the one that was."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, module.train(model.get_submodule(name).training))


def note(model: nn.Module, config: Any) -> None:
    """Says in a model's configuration how its weights are quantized; None: not at all."""
    own = getattr(model, "config", None)
    if own is not None:
        write_quantization(own, config)


def write_quantization(own: Any, config: Any) -> None:
    """Sets or removes ``quantization_config`` of a configuration."""
    if config is not None:
        own.quantization_config = config
    elif hasattr(own, "quantization_config"):
        del own.quantization_config


def like(module: nn.Linear | nn.Embedding, form: PackedFormat) -> PackedModule:
    """A module without values for the place of ``module``."""
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding.like(module, form)
    return QuantizedLinear.like(module, form)


def _plain(module: PackedModule, weight: nn.Parameter) -> nn.Module:
    """An ordinary linear or embedding with ``weight``."""
    with torch.device("meta"):
        if isinstance(module, QuantizedEmbedding):
            table = nn.Embedding(module.rows, module.columns, module.padding_idx)
            table.weight = weight
            return table
        linear = nn.Linear(module.columns, module.rows, bias=False)
    linear.weight = weight
    bias: nn.Parameter | None = module.bias if isinstance(module, QuantizedLinear) else None
    linear.register_parameter("bias", bias)
    return linear
