"""Putting weights into a model that was built without any.

The model is constructed on the meta device, where tensors have shapes and no memory. Each tensor of the
checkpoint then takes the place of a parameter (nothing is copied into one), converted and moved one by one,
so that at no time there is more in memory than the model and one tensor.

Every name counts: what the model needs and the checkpoint lacks, what the checkpoint has and the model does
not know, and what differs in shape are errors that list all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quarterdeck.errors import CheckpointMismatchError
from quarterdeck.weights.reader import TensorSource, weight_names

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Naming:
    """How a model's weights may be called in a checkpoint.

    Attributes:
        prefix: what stands before the base model's names inside a model with a head (``"model."``). A
            checkpoint of either loads into the other.
        head: names that only a model with a head has, left aside when the base model is loaded.
        tied: names that share another's tensor, to that other name. A checkpoint may hold either or both.
    """

    prefix: str = ""
    head: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass
class LoadReport:
    """How a checkpoint and a model fit, by the model's names.

    Attributes:
        missing: weights of the model that the checkpoint lacks, with their shapes.
        unexpected: tensors of the checkpoint that the model does not have, with their shapes.
        mismatched: name, shape in the checkpoint, shape in the model.
        unequal: pairs of names that share one tensor in the model and differ in the checkpoint.
        found: name in the model to name in the checkpoint, of all that fit; no part of how two reports compare.
    """

    missing: dict[str, Shape] = field(default_factory=dict)
    unexpected: dict[str, Shape] = field(default_factory=dict)
    mismatched: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    unequal: list[tuple[str, str]] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The same as the loading information that transformers gives."""
        return {
            "missing_keys": list(self.missing),
            "unexpected_keys": list(self.unexpected),
            "mismatched_keys": list(self.mismatched),
            "error_msgs": [],
        }

    def check(self, *, strict: bool, ignore_mismatched_sizes: bool) -> None:
        """Raise CheckpointMismatchError listing all that does not fit and is not explicitly allowed."""
        lines: list[str] = []
        if strict:
            lines += _listed("missing in the checkpoint", "strict=False initialises them", _shapes(self.missing))
            lines += _listed("unknown to the model", "strict=False leaves them out", _shapes(self.unexpected))
            pairs = [f"{alias} and {name}" for alias, name in self.unequal]
            lines += _listed(
                "one tensor in the model, two in the checkpoint", "tie_word_embeddings=False keeps both", pairs
            )
        if not ignore_mismatched_sizes:
            sizes = [f"{name}: {stored}, but {own} in the model" for name, stored, own in self.mismatched]
            lines += _listed("of another shape", "ignore_mismatched_sizes=True initialises them", sizes)
        if lines:
            start = "the weights do not fit the model; does config.json belong to them?"
            raise CheckpointMismatchError("\n".join([start, *lines]))


def _shapes(tensors: Mapping[str, Shape]) -> list[str]:
    return [f"{name} {shape}" for name, shape in tensors.items()]


def _listed(problem: str, remedy: str, items: Sequence[str]) -> list[str]:
    return [f"  {len(items)} {problem} ({remedy}):", *(f"    {item}" for item in items)] if items else []


class WeightReceiver(Protocol):
    """Takes some tensors of a checkpoint that are not to become parameters as they are, to quantize them say."""

    def shapes(self) -> Mapping[str, Shape]:
        """The names that it takes, as an unchanged model would call them, and the shapes that they must have.

        The buffers of a module for which it takes a tensor are its to fill; they are not looked for in the
        checkpoint. A tied name is never asked for: its tensor comes under the name that it is tied to.
        """
        ...

    def receive(self, name: str, tensor: Tensor, device: torch.device) -> None:
        """One of these tensors, in the checkpoint's type, on the CPU, to be kept on ``device`` in some form.

        The tensor may be a window on a file: who keeps it keeps the file mapped, who reads it once costs no memory.
        A ``device`` of type "meta" is the caller's sign that the result will be put elsewhere: make it on the CPU.
        """
        ...


def load_weights(
    model: nn.Module,
    source: TensorSource,
    *,
    naming: Naming,
    dtype: torch.dtype | None,
    place: Callable[[str], torch.device],
    initialise: Callable[[nn.Module], None],
    receiver: WeightReceiver | None = None,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
) -> LoadReport:
    """Gives ``model``, built on the meta device, the weights of ``source``.

    Tied names are left for the caller to tie; everything else has its memory afterwards, but for weights whose place
    is the meta device.

    Args:
        model: the model; its parameters are replaced.
        source: the tensors.
        naming: what may be called how.
        dtype: type of all floating weights; None keeps each as it is stored.
        place: the device of the weight of that name. On the meta device it has its shape and type only, and nothing
            is read; one that the checkpoint lacks is made on the CPU instead, since it is nowhere else.
        initialise: fills a module's fresh parameters; called for modules with missing or mismatched weights.
        receiver: takes some of the tensors in place of the model's parameters.
        strict: refuse missing and unexpected names.
        ignore_mismatched_sizes: initialise weights whose shape differs, instead of refusing.

    Raises:
        CheckpointMismatchError: names or shapes do not fit, or a weight is stored in whole numbers.
        CheckpointCorruptError: a tensor cannot be read.
    """
    received = dict(receiver.shapes()) if receiver is not None else {}
    shapes = _wanted(model, naming.tied, received)
    with torch.device("cpu"):
        report = _match(shapes, source, naming, compare_tied=strict)
        report.check(strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes)
        absent = [*report.missing, *(name for name, _, _ in report.mismatched)]
        _check_received(absent, received)
        for name, stored in report.found.items():
            if receiver is not None and name in received:
                receiver.receive(name, source.once(stored), place(name))
            else:
                put_tensor(model, name, source.tensor(stored, dtype, place(name)))
        _initialise(model, absent, dtype, place, initialise)
    return report


def check_fit(model: nn.Module, source: TensorSource, naming: Naming) -> None:
    """Refuse tensors that `load_weights` would refuse, without loading them: ``model`` may be on the meta device.

    Raises:
        CheckpointMismatchError: names or shapes do not fit, or a weight is stored in whole numbers.
    """
    report = _match(_wanted(model, naming.tied, {}), source, naming, compare_tied=True)
    report.check(strict=True, ignore_mismatched_sizes=False)
    for name, stored in report.found.items():
        if not source.dtype(stored).is_floating_point:
            raise _no_floating_type(name, source.dtype(stored))


def _no_floating_type(name: str, dtype: torch.dtype) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"{name} is stored as {str(dtype).removeprefix('torch.')}, but must be of a floating type: "
        "if the checkpoint is quantized, its config.json must say how (quantization_config)"
    )


def _wanted(model: nn.Module, tied: Mapping[str, str], received: Mapping[str, Shape]) -> dict[str, Shape]:
    """Names and shapes to look for: the model's own, less those that follow from others, and the receiver's."""
    buffers = {name for name, _ in model.named_buffers()}
    full = {name.rpartition(".")[0] for name in received}
    made = {name for name in buffers if name.rpartition(".")[0] in full}
    shapes = {name: tuple(tensor.shape) for name, tensor in _weights(model).items() if name not in made}
    return {name: shape for name, shape in (shapes | dict(received)).items() if name not in tied}


def _check_received(absent: Iterable[str], received: Mapping[str, Shape]) -> None:
    lacking = [name for name in absent if name in received]
    if lacking:
        raise CheckpointMismatchError(
            f"{len(lacking)} weights, {lacking[0]} among them, are not in the checkpoint in the model's shape; they "
            "are to be quantized, and fresh values would make no sense: load them without quantization"
        )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor under two names appears under both."""
    return dict(model.state_dict(keep_vars=True))


def _match(shapes: Mapping[str, Shape], source: TensorSource, naming: Naming, *, compare_tied: bool) -> LoadReport:
    """Pairs the model's names with the checkpoint's."""
    report = LoadReport()
    stored = _stored_names(shapes, source, naming)
    for alias, name in naming.tied.items():
        _match_tied(alias, name, stored, source, report, compare=compare_tied)
    report.unexpected = {name: source.shape(as_stored) for name, as_stored in stored.items() if name not in shapes}
    report.missing = {name: shape for name, shape in shapes.items() if name not in stored}
    for name, shape in shapes.items():
        if name in stored and source.shape(stored[name]) == shape:
            report.found[name] = stored[name]
        elif name in stored:
            report.mismatched.append((name, source.shape(stored[name]), shape))
    return report


def _stored_names(shapes: Iterable[str], source: TensorSource, naming: Naming) -> dict[str, str]:
    """The model's name of each tensor in the checkpoint, to its name there."""
    names = weight_names(source)
    prefix = naming.prefix
    model_has_prefix = any(name.startswith(prefix) for name in shapes)
    stored_has_prefix = any(name.startswith(prefix) for name in names)
    if not prefix or model_has_prefix == stored_has_prefix:
        return {name: name for name in names}
    if model_has_prefix:
        return {name if name in naming.head else prefix + name: name for name in names}
    return {name.removeprefix(prefix): name for name in names if name not in naming.head}


def _match_tied(
    alias: str, name: str, stored: dict[str, str], source: TensorSource, report: LoadReport, *, compare: bool
) -> None:
    """Reduces two names of one tensor in ``stored`` to one; notes a pair that should be equal and is not."""
    second = stored.pop(alias, None)
    first = stored.get(name)
    if second is None:
        return
    if first is None:
        stored[name] = second
        return
    cpu = torch.device("cpu")
    if compare and not torch.equal(source.tensor(first, None, cpu), source.tensor(second, None, cpu)):
        report.unequal.append((alias, name))


def put_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts ``tensor`` in the place of a parameter or buffer, which keeps whether it is trained."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    if old.is_floating_point() and not tensor.is_floating_point():
        raise _no_floating_type(name, tensor.dtype)
    new = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    setattr(module, leaf, new)


def _initialise(
    model: nn.Module,
    names: Iterable[str],
    dtype: torch.dtype | None,
    place: Callable[[str], torch.device],
    initialise: Callable[[nn.Module], None],
) -> None:
    """Gives memory and fresh values to the weights in ``names`` and leaves their neighbours as they are."""
    leaves: dict[str, list[str]] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        leaves.setdefault(path, []).append(leaf)
    for path, absent in leaves.items():
        module = model.get_submodule(path)
        tensors = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
        for leaf, old in tensors.items():
            device = place(f"{path}.{leaf}" if path else leaf)
            kind = dtype if old.is_floating_point() else None
            fresh = torch.empty_like(old, dtype=kind, device="cpu" if device.type == "meta" else device)
            put_tensor(module, leaf, fresh)
        initialise(module)
        for leaf in tensors.keys() - set(absent):
            setattr(module, leaf, tensors[leaf])
