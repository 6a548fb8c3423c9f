"""What a model returns: named fields that are also a dictionary, and read as a tuple.

    out = model(input_ids)
    out.logits; out["logits"]; out[0]; logits, cache = out[:2]; {**out}

Fields that are ``None`` are absent from the tuple and dictionary views, as in transformers. Setting a field, by
attribute or by key, changes all views; ``None`` takes it out of them.

Outputs are dictionaries for whatever takes batches of nested containers apart and together again
(``torch.nn.parallel``), and pytrees for ``torch.export`` and ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, NoReturn, Self

from torch import Tensor
from torch.utils import _pytree

from quarterdeck.cache.base import Cache


class ModelOutput(dict[str, Any]):
    """Base of all outputs, which are dataclasses: attribute, key, index and slice access.

    The first argument may be a mapping or pairs of names and values instead of the first field.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        name = f"{cls.__module__}.{cls.__qualname__}"
        _pytree.register_pytree_node(cls, _flatten, cls._unflatten, serialized_type_name=name)

    @classmethod
    def _unflatten(cls, values: Iterable[Any], names: Any) -> Self:
        return cls(**dict(zip(names, values, strict=True)))

    def __post_init__(self) -> None:
        first = fields(self)[0].name  # type: ignore[arg-type]  # every subclass is a dataclass
        pairs = _named(self.get(first)) if len(self) == 1 else None
        if pairs is not None:
            setattr(self, first, None)
            for name, value in pairs:
                self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The values as a tuple; what ``return_dict=False`` returns."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.__dataclass_fields__:  # type: ignore[attr-defined]  # every subclass is a dataclass
            known = ", ".join(self.__dataclass_fields__)  # type: ignore[attr-defined]
            raise KeyError(f"{type(self).__name__} has no field {key!r}, only {known}")
        setattr(self, key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        names = tuple(self.__dataclass_fields__)  # type: ignore[attr-defined]  # every subclass is a dataclass
        if name not in names:
            return
        if value is None:
            super().pop(name, None)
            return
        is_new = name not in self
        super().__setitem__(name, value)
        for later in names[names.index(name) + 1 :] if is_new else ():  # views are in the order of the fields
            if later in self:
                super().__setitem__(later, super().pop(later))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Removing and merging, which would leave the attributes behind."""
        raise TypeError(f"{type(self).__name__} has fixed fields: set one, to None if it shall be absent")

    __delitem__ = __ior__ = pop = popitem = clear = setdefault = update = _refuse


def _flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output)


def _named(value: object) -> list[tuple[str, Any]] | None:
    """The pairs of a mapping or of an iterable of pairs with names; ``None`` for any other value."""
    if isinstance(value, Tensor | Cache | str) or not isinstance(value, Iterable):
        return None
    pairs = list(value.items() if isinstance(value, dict) else value)
    named = all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs)
    return pairs if pairs and named else None


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """Output of the decoder without a head.

    Shapes: ``B`` sequences, ``T`` positions, ``E`` hidden size, ``H`` heads, ``S`` keys, ``L`` layers.

    Attributes:
        last_hidden_state: ``[B, T, E]``, after the final norm.
        past_key_values: the cache, if one was used.
        hidden_states: ``L + 1`` tensors ``[B, T, E]``: the embeddings, the outputs of layers 1 to L - 1, and the
            final-normed state.
        attentions: ``L`` tensors ``[B, H, T, S]`` of attention weights.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """Output of the language model; see :class:`BaseModelOutputWithPast` for the fields that are not here.

    Attributes:
        loss: next-token cross entropy, if labels were given.
        logits: ``[B, K, V]`` for the ``K`` positions asked for, scaled by ``logit_scale``.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
