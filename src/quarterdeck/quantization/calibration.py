"""Quantizing with calibration text: every linear is rounded by what it sees, layer after layer.

The text runs through one layer at a time. What a layer's linears get is gathered while they are still whole; then they
are rounded, and what the rounded layer makes of the text is what the next one sees. So at any time there is one layer's
worth of statistics in memory, and no layer is run more than twice.

In a Cohere layer one norm feeds five linears (queries, keys, values, gate and up), which share their statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quarterdeck.errors import InputError
from quarterdeck.quantization.config import QuantizationConfig
from quarterdeck.quantization.formats import format_of, round_weight, tensors_of
from quarterdeck.quantization.gptq import gptq
from quarterdeck.quantization.modules import PackedModule
from quarterdeck.quantization.report import LayerError, layer_error
from quarterdeck.quantization.surgery import like, naming, note, output_head, put, rounding_steps, targets

_TABLE_PART = 0.1  # of what a head's weight is rounded for, what it counts that it is a table of rows too
Inputs = list[tuple[Tensor, tuple[Any, ...]]]


def quantization_steps(
    model: nn.Module, config: QuantizationConfig, batches: Sequence[Tensor] = ()
) -> Iterator[LayerError]:
    """Quantizes a built model one module after the other, and tells after each how it went.

    Args:
        model: a model with values and without gradients, whose ``base_model`` has ``layers`` and a ``norm``.
        config: what and how; ``"gptq"`` needs batches.
        batches: calibration text, token ids ``[B, T]`` in each.

    Raises:
        InputError: ``"gptq"`` without text, weights that cannot be quantized, or a layer that sees no finite numbers.
    """
    if not batches and config.method != "round-to-nearest":
        raise InputError(f"method={config.method!r} needs calibration text: give batches of token ids")
    if not batches:
        yield from rounding_steps(model, config)
        return
    with torch.no_grad():
        yield from _calibrated(model, config, batches)


def _calibrated(model: Any, config: QuantizationConfig, batches: Sequence[Tensor]) -> Iterator[LayerError]:
    decoder = model.base_model
    chosen = targets(model, config)
    linears = {name: module for name, module in chosen.items() if isinstance(module, nn.Linear)}
    tables = {name: module for name, module in chosen.items() if type(module) is nn.Embedding}
    heads = {name: module for name, module in linears.items() if module is output_head(model)}
    tied = [name for name, head in heads.items() if any(head.weight is table.weight for table in tables.values())]
    if tied:
        yield _quantize_tied(model, [*tables, *tied], config, _last_states(decoder, batches))
    else:
        yield from rounding_steps(model, config, only=list(tables))
    states = _first_inputs(decoder, batches)
    for layer in decoder.layers:
        inside = _inside(model, layer, linears)
        gathered = _statistics(inside, layer, states)
        for name, module in inside.items():
            yield _quantize(model, name, module, config, gathered.mean(name))
        states = _through(layer, states)
    for name in heads.keys() - set(tied):
        yield _quantize(model, name, heads[name], config, _mean_product(decoder.norm(x) for x, _ in states))
    note(model, config)


def _quantize(
    model: nn.Module, name: str, linear: nn.Linear, config: QuantizationConfig, hessian: Tensor
) -> LayerError:
    weight = linear.weight.detach()
    new: PackedModule = like(linear, format_of(config, name))
    new.set_tensors(_tensors(name, weight, config, hessian))
    put(model, name, new)
    return layer_error(name, weight, new.packed, hessian)


def _quantize_tied(
    model: nn.Module, names: list[str], config: QuantizationConfig, states: Iterable[Tensor]
) -> LayerError:
    """One weight for a table and a head; its rows are looked up too, so that all columns count for a part alike."""
    old: Any = model.get_submodule(names[-1])
    weight = old.weight.detach()
    hessian = _mean_product(states)
    table_counts = _TABLE_PART * hessian.diagonal().mean() * torch.eye(len(hessian), device=hessian.device)
    tensors = _tensors(names[-1], weight, config, hessian + table_counts)
    for name in names:
        module: Any = model.get_submodule(name)
        new = like(module, format_of(config, names[-1]))
        new.set_tensors(tensors)
        put(model, name, new)
    return layer_error(names[-1], weight, new.packed, hessian)


def _tensors(name: str, weight: Tensor, config: QuantizationConfig, hessian: Tensor) -> dict[str, Tensor]:
    """The packed tensors of a module's weight, on its device."""
    with naming(name):
        if config.method != "gptq":
            return round_weight(format_of(config, name), weight)
        return {part: tensor.to(weight.device) for part, tensor in tensors_of(gptq(weight, hessian, config)).items()}


class _Reached(Exception):  # noqa: N818 (no error: it ends a run of the model where it has done its work)
    """The first layer has its inputs."""


def _first_inputs(decoder: Any, batches: Iterable[Tensor]) -> Inputs:
    """What the first layer gets of each batch."""
    found: Inputs = []

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.append((arguments[0], arguments[1:]))
        raise _Reached

    hook = decoder.layers[0].register_forward_pre_hook(keep)
    try:
        for ids in batches:
            try:
                decoder(ids, use_cache=False)
            except _Reached:
                continue
    finally:
        hook.remove()
    return found


def _last_states(decoder: Any, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """What the head gets of each batch."""
    for ids in batches:
        yield decoder(ids, use_cache=False).last_hidden_state


def _mean_product(states: Iterable[Tensor]) -> Tensor:
    """The mean outer product of all positions of some states, float32 ``[K, K]``."""
    gathered = _Gathered()
    for x in states:
        gathered.look("head", x)
        gathered.next_run()
    return gathered.mean("head")


def _through(layer: nn.Module, states: Inputs) -> Inputs:
    return [(layer(x, *rest)[0], rest) for x, rest in states]


def _inside(model: nn.Module, layer: nn.Module, linears: Mapping[str, Any]) -> dict[str, nn.Linear]:
    own = {id(module) for module in layer.modules()}
    return {name: module for name, module in linears.items() if id(module) in own}


class _Gathered:
    """Mean outer products of what linears get; those that get one tensor share one result."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._same: dict[str, str] = {}
        self._current: list[tuple[Tensor, str]] = []  # of the run at hand; held, so that no address is used twice

    def look(self, name: str, x: Tensor) -> None:
        """Takes the input of one linear."""
        for seen, first in self._current:
            if seen is x:
                self._same[name] = first
                return
        self._current.append((x, name))
        self._same[name] = name
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if name not in self._sums:
            self._sums[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
            self._rows[name] = 0
        self._sums[name].addmm_(rows.T, rows)
        self._rows[name] += len(rows)

    def next_run(self) -> None:
        """What comes now is another text."""
        self._current.clear()

    def mean(self, name: str) -> Tensor:
        """Of one linear, ``[K, K]``; not to be changed, since others may have the same."""
        first = self._same[name]
        return self._sums[first] / self._rows[first]


def _statistics(linears: Mapping[str, nn.Linear], run: Callable[..., Any], states: Inputs) -> _Gathered:
    gathered = _Gathered()

    def look(name: str, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        gathered.look(name, arguments[0])

    hooks = [linear.register_forward_pre_hook(partial(look, name)) for name, linear in linears.items()]
    try:
        for x, rest in states:
            run(x, *rest)
            gathered.next_run()
    finally:
        for hook in hooks:
            hook.remove()
    return gathered
