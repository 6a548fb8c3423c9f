"""Checkpoints that other tools quantized, as sources of tensors with this package's names.

GGUF files and GPTQ and AWQ checkpoints have weights in layouts of their own. Those that the kernels can take are handed
out packed (``X.weight_packed``, ``X.weight_scale``, ...), all others in full (``X.weight``); who loads them need
not know where they came from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from quarterdeck.config import CohereConfig
from quarterdeck.errors import CheckpointMismatchError, InputError
from quarterdeck.quantization.choose import Quantization, chosen_quantization
from quarterdeck.quantization.config import FORMS, QuantizationConfig
from quarterdeck.quantization.formats import format_named, tensors_of
from quarterdeck.quantization.gptq_awq import (
    PARTS,
    GroupedLayout,
    GroupedWeight,
    dequantize,
    input_groups,
    is_regular,
    repack,
    unpack,
    zeros,
)
from quarterdeck.quantization.surgery import skipped, write_quantization
from quarterdeck.weights.gguf import PACKABLE, GGUFTensors
from quarterdeck.weights.reader import TensorSource

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_METHODS = ("gptq", "awq")
_CPU = torch.device("cpu")


def arranged(
    source: TensorSource, asked: Quantization | None, config: CohereConfig, *, has_head: bool
) -> tuple[TensorSource, Quantization | None]:
    """The tensors of a checkpoint as loading takes them, and how the model is to hold them.

    Args:
        source: the tensors as they are stored.
        asked: what the caller asks for. Weights of another tool's may be quantized anew; those that are in that
            format already go over unchanged. None keeps in their bits what the kernels can take, the rest in full.
        config: the checkpoint's; it no longer says afterwards how another tool quantized the weights.
        has_head: whether the model's names have the prefix ``model.``.
    """
    stored = getattr(config, "quantization_config", None)
    if isinstance(source, GGUFTensors):
        matrices = source.matrices
        forms = {name: PACKABLE[kind] for name, kind in matrices.items() if kind in PACKABLE}
        packed, how = _choice(forms, set(matrices), asked, has_head=has_head)
        write_quantization(config, None)
        return source.with_packed(packed), how
    if not _is_grouped(stored):
        return source, chosen_quantization(asked, stored)
    grouped = GroupedTensors(source, GroupedLayout.from_dict(stored), has_bias=config.attention_bias)
    form, able = grouped.packable()
    packed, how = _choice(dict.fromkeys(sorted(able), form), grouped.matrices(), asked, has_head=has_head)
    write_quantization(config, None)
    return grouped.with_packed(packed, form), how


def declared(stored: Any) -> tuple[bool, QuantizationConfig | None]:
    """Whether another tool quantized the weights of a checkpoint, and how loading holds them if nothing is asked for.

    Told by ``quantization_config`` of config.json alone, for who does not have the weights: a checkpoint whose zero
    points, groups or types of scales are others than it says is held otherwise.

    Raises:
        UnsupportedOptionError: a layout that is not read.
    """
    if not _is_grouped(stored):
        return False, None
    layout = GroupedLayout.from_dict(stored)
    symmetric = layout.method == "gptq" and stored.get("sym", True) is True
    able = {4: ("int4",) if symmetric else ("int4-asymmetric", "int4-asymmetric-32"), 8: ("int8-32",)[: int(symmetric)]}
    if stored.get("desc_act"):  # the order of inputs is then another
        return True, None
    for form in able.get(layout.bits, ()):
        kind, even, group, _ = FORMS[form]
        if layout.group_size == -1 or (group is not None and layout.group_size % group == 0):
            return True, QuantizationConfig(kind, even, group, embeddings=False, head=False)
    return True, None


def in_full(source: TensorSource, stored: Any, *, has_bias: bool) -> TensorSource:
    """The tensors of a checkpoint, all weights in full.

    Args:
        source: the tensors as they are stored.
        stored: the ``quantization_config`` of config.json.
        has_bias: whether attention projections have a bias; GPTQ tools write one that is zero for all linears.

    Raises:
        InputError: they are quantized in a way that only loading knows.
    """
    if _is_grouped(stored):
        return GroupedTensors(source, GroupedLayout.from_dict(stored), has_bias=has_bias)
    if stored is not None and not isinstance(source, GGUFTensors):
        method = stored.get("quant_method") if isinstance(stored, Mapping) else type(stored).__name__
        raise InputError(
            f"the checkpoint's weights are quantized by {method!r}: convert the checkpoint that it was made from"
        )
    return source


class GroupedTensors:
    """A GPTQ or AWQ checkpoint.

    Args:
        source: its files.
        layout: how the weights are stored.
        has_bias: whether attention projections have a bias.
        packed: names of modules whose weight is to be handed out packed.
        form: the format of those, a name in `quarterdeck.quantization.config.FORMS`.
    """

    def __init__(
        self,
        source: TensorSource,
        layout: GroupedLayout,
        *,
        has_bias: bool,
        packed: Collection[str] = (),
        form: str = "int4",
    ) -> None:
        self._source, self._layout, self._has_bias, self._named = source, layout, has_bias, form
        stored = list(source.names())
        self._modules = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
        if not self._modules:
            raise CheckpointMismatchError(
                f"config.json says the weights are quantized by '{layout.method}', and there are none (X.qweight): "
                "remove quantization_config if they are in full"
            )
        self._stored = set(stored)
        self._form = format_named(form)
        self._made: dict[str, tuple[str, str]] = {}  # name that is handed out to the module and the part of it
        for module in self._modules:
            leaves = self._form.tensors(1, 1) if module in packed else ("weight",)
            self._made |= {f"{module}.{leaf}": (module, leaf) for leaf in leaves}
        gone = {f"{module}.{part}" for module in self._modules for part in PARTS} | self._zero_biases()
        self._names = [name for name in stored if name not in gone] + list(self._made)
        self._latest: tuple[str, Mapping[str, Tensor]] = "", {}

    def with_packed(self, packed: Collection[str], form: str) -> GroupedTensors:
        """The same tensors, with the weights of some modules packed."""
        return GroupedTensors(self._source, self._layout, has_bias=self._has_bias, packed=packed, form=form)

    def matrices(self) -> set[str]:
        """Names of all modules with a weight that could be quantized."""
        plain = {name.removesuffix(".weight") for name in self._names if name.endswith(".weight")}
        return {name for name in plain if not name.endswith("norm")} | set(self._modules)

    def packable(self) -> tuple[str, set[str]]:
        """A format of the kernels, by its name in `FORMS`, and the modules that it can hold; none for other bits."""
        bits = self._layout.bits
        if bits not in (4, 8):
            return "int4", set()
        symmetric = all(
            bool((zeros(self._source.once(f"{module}.qzeros"), self._layout) == 2 ** (bits - 1)).all())
            for module in self._modules
        )
        if bits == 8:
            return "int8-32", self._holding("int8-32") if symmetric else set()
        if symmetric:
            return "int4", self._holding("int4")
        coarse = self._holding("int4-asymmetric")
        return ("int4-asymmetric", coarse) if coarse else ("int4-asymmetric-32", self._holding("int4-asymmetric-32"))

    def _holding(self, form: str) -> set[str]:
        """The modules whose groups are whole groups of a format."""
        group = FORMS[form][2]
        return {module for module in self._modules if group is not None and self._fits(module, group)}

    def names(self) -> Iterable[str]:
        """All names."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        if name not in self._made:
            return self._source.shape(name)
        module, leaf = self._made[name]
        shape = self._layout.shape(self._source.shape(f"{module}.qweight"))
        return shape if leaf == "weight" else tuple(self._form.tensors(*shape)[leaf][0])

    def dtype(self, name: str) -> torch.dtype:
        """The type of one tensor; weights in full are made in float32."""
        if name not in self._made:
            return self._source.dtype(name)
        leaf = self._made[name][1]
        return torch.float32 if leaf == "weight" else self._form.tensors(1, 1)[leaf][1]

    def tensor(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        """One tensor on ``device``, as ``dtype`` if that is given and it is of a floating type."""
        if name not in self._made:
            return self._source.tensor(name, dtype, device)
        module, leaf = self._made[name]
        if leaf == "weight":
            return dequantize(self._weight(module)).to(device=device, dtype=dtype)
        if self._latest[0] != module:  # its parts are asked for one after the other
            self._latest = module, tensors_of(repack(self._weight(module), self._named))
        return self._latest[1][leaf].to(device)

    def once(self, name: str) -> Tensor:
        """One tensor on the CPU."""
        return self.tensor(name, None, _CPU) if name in self._made else self._source.once(name)

    def path(self, name: str) -> Path | None:
        """The file that holds the tensor as it is."""
        return None if name in self._made else self._source.path(name)

    def _weight(self, module: str) -> GroupedWeight:
        names = {part: f"{module}.{part}" for part in PARTS}
        found = {part: self._source.once(name) for part, name in names.items() if name in self._stored}
        return unpack(found, self._layout)

    def _fits(self, module: str, group: int) -> bool:
        index = f"{module}.g_idx"
        parts = {"g_idx": self._source.once(index)} if index in self._stored else {}
        columns = self._layout.shape(self._source.shape(f"{module}.qweight"))[1]
        half = self._source.dtype(f"{module}.scales") == torch.float16
        return half and is_regular(input_groups(parts, self._layout, columns), group)

    def _zero_biases(self) -> set[str]:
        """Biases of linears that have none, which some tools write as zeros."""
        names = [f"{module}.bias" for module in self._modules if not (self._has_bias and "self_attn" in module)]
        return {name for name in names if name in self._stored and not bool(self._source.once(name).any())}


def _is_grouped(stored: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(stored, Mapping) and stored.get("quant_method") in _METHODS


def _choice(
    able: Mapping[str, str], matrices: set[str], asked: Quantization | None, *, has_head: bool
) -> tuple[set[str], Quantization | None]:
    """Which modules are handed out packed, and how the model is to hold its weights.

    Args:
        able: the modules that can be, each with the name of its format.
        matrices: all modules with a weight that could be quantized.
        asked, has_head: as of `arranged`.
    """
    if asked is None:
        return set(able), _as_stored(able, matrices, has_head=has_head) if able else None
    if not isinstance(asked, QuantizationConfig):
        return set(), asked
    apart = {EMBEDDING: asked.embeddings, HEAD: asked.head}
    wanted = {name for name in able if apart.get(name, True) and not skipped(name, asked.modules_to_not_convert)}
    return {name for name in wanted if able[name] == asked.form_of(name)}, asked


def _as_stored(packed: Mapping[str, str], matrices: set[str], *, has_head: bool) -> QuantizationConfig:
    """A configuration that takes exactly the modules in ``packed``, each in its format."""
    full = matrices - packed.keys() - {EMBEDDING, HEAD}
    always = {_leaf(name) for name in full} - {_leaf(name) for name in packed}
    named = sorted(_own(name, has_head) for name in full if _leaf(name) not in always)
    embeddings = EMBEDDING in packed
    head = HEAD in packed if HEAD in matrices else embeddings
    most = Counter(packed.values()).most_common(1)[0][0]
    kind, symmetric, group, _ = FORMS[most]
    return QuantizationConfig(
        kind,
        symmetric,
        group,
        embeddings=embeddings,
        head=head,
        modules_to_not_convert=(*sorted(always), *named),
        module_formats=_others(packed, most, has_head=has_head, tied=embeddings and HEAD not in matrices),
    )


def _others(packed: Mapping[str, str], most: str, *, has_head: bool, tied: bool) -> tuple[tuple[str, str], ...]:
    """The formats of modules that are not in that of ``most``: by the last part of their names if that is enough."""
    forms = {name: form for name, form in packed.items() if name != HEAD}
    if HEAD in packed or tied:
        forms[HEAD] = packed[HEAD] if HEAD in packed else packed[EMBEDDING]
    of_leaf: dict[str, set[str]] = {}
    for name, form in forms.items():
        of_leaf.setdefault(_leaf(name), set()).add(form)
    pairs = {
        _own(name, has_head) if len(of_leaf[_leaf(name)]) > 1 else _leaf(name): form
        for name, form in forms.items()
        if form != most
    }
    return tuple(sorted(pairs.items()))


def _own(name: str, has_head: bool) -> str:
    """What a module is called in a model with or without a head."""
    return name if has_head else name.removeprefix("model.")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
