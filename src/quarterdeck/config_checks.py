"""What the fields of a configuration may be, the rotary ones apart (see :mod:`quarterdeck.rope`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, get_args

import torch

from quarterdeck.activations import ACTIVATIONS
from quarterdeck.errors import ConfigError
from quarterdeck.rope import is_number

RopeTableDtype = Literal["activation", "float32"]


class Fields(Protocol):
    """What the functions here read by name; they read the numbers of the tables below besides."""

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    pad_token_id: int | None
    bos_token_id: int | None
    hidden_act: Any
    rope_table_dtype: RopeTableDtype

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        ...

    @property
    def eos_token_id(self) -> int | list[int] | None:
        """Id, or ids, that end a turn."""
        ...


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_NUMBERS: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "logit_scale": ("a number", lambda value: True),
    "initializer_range": ("a number of at least 0", lambda value: value >= 0),
    "layer_norm_eps": ("a number over 0", lambda value: value > 0),
    "rope_theta": ("a number over 0", lambda value: value > 0),
    "attention_dropout": ("a number from 0 to below 1", lambda value: 0 <= value < 1),
}
_FLAGS = (
    "use_cache",
    "tie_word_embeddings",
    "attention_bias",
    "use_qk_norm",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)
_UNLIMITED = 1e20  # from here on, a tokenizer's model_max_length says that there is no limit


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_sizes(config: Fields, *, derived: bool) -> None:
    """Sizes are whole and fit each other; ``derived``: nobody gave ``head_dim``. ConfigError names field and value."""
    for name in _SIZES:
        value = getattr(config, name)
        if not _is_whole(value) or value < 1:
            raise ConfigError(f"{name} is {value!r}, but must be a whole number of at least 1")
    hidden, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    if derived and hidden % heads:
        raise ConfigError(
            f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads}); change one, or give head_dim"
        )
    head_dim = config.head_dim
    if not _is_whole(head_dim) or head_dim < 2 or head_dim % 2:
        raise ConfigError(f"head_dim is {head_dim!r}, but rotary positions need an even number from 2 on")
    if heads % groups:
        raise ConfigError(f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({groups})")


def check_numbers(config: Fields) -> None:
    """Numbers are finite and in range; ConfigError names the field, its value and the range."""
    for name, (rule, holds) in _NUMBERS.items():
        value = getattr(config, name)
        if not (is_number(value) and holds(value)):
            raise ConfigError(f"{name} is {value!r}, but must be {rule}")
    declared_length(config)


def declared_length(config: object) -> int | None:
    """``model_max_length`` as a whole number; None if there is none, or one so large that it means "unlimited"."""
    value = getattr(config, "model_max_length", None)
    if value is None:
        return None
    if not is_number(value) or value < 1 or value != int(value):
        raise ConfigError(f"model_max_length is {value!r}, but must be None or a whole number of at least 1")
    return int(value) if value < _UNLIMITED else None


def check_tokens(config: Fields) -> None:
    """Ids of special tokens are whole numbers; ConfigError names the field and its value."""
    begin, end = config.bos_token_id, config.eos_token_id
    if begin is not None and not _is_whole(begin):
        raise ConfigError(f"bos_token_id is {begin!r}, but must be None or a whole number")
    if end is not None and not all(_is_whole(one) for one in (end if isinstance(end, list) else [end])):
        raise ConfigError(f"eos_token_id is {end!r}, but must be None, a whole number or a list of them")
    pad, vocabulary = config.pad_token_id, config.vocab_size
    if pad is not None and not (_is_whole(pad) and -1 <= pad < vocabulary):
        raise ConfigError(f"pad_token_id is {pad!r}, but must be None or within the vocabulary of {vocabulary}")


def check_choices(config: Fields) -> None:
    """Names are among those there are, which ConfigError lists, and what is on or off is True or False."""
    for name in _FLAGS:
        if not isinstance(value := getattr(config, name), bool):
            raise ConfigError(f"{name} is {value!r}, but must be True or False")
    if not callable(config.hidden_act) and config.hidden_act not in tuple(ACTIVATIONS):
        raise ConfigError(f"hidden_act is {config.hidden_act!r}, but must be one of {', '.join(ACTIVATIONS)}")
    options = get_args(RopeTableDtype)
    if config.rope_table_dtype not in options:
        raise ConfigError(f"rope_table_dtype is {config.rope_table_dtype!r}, but must be one of {', '.join(options)}")
    rotated = getattr(config, "partial_rotary_factor", 1.0)
    if rotated != 1.0:
        raise ConfigError(
            f"partial_rotary_factor is {rotated!r}, but the Cohere architecture rotates whole heads; leave it out"
        )


def as_dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    """A floating ``torch.dtype`` from itself or its name (``"bfloat16"``, ``"torch.float16"``)."""
    if value is None:
        return None
    found = value if isinstance(value, torch.dtype) else getattr(torch, str(value).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype is {value!r}, but must be a floating type such as float32, bfloat16 or float16")
    return found


def one_dtype(dtype: str | torch.dtype | None, torch_dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The type under its name and its older name; both may be given if they agree."""
    new, old = as_dtype(dtype), as_dtype(torch_dtype)
    if new is not None and old not in (None, new):
        raise ConfigError(f"dtype={dtype!r} and torch_dtype={torch_dtype!r} are two names of one field; give one")
    return old if new is None else new


def one_backend(chosen: Any, present: Any) -> Any:
    """The attention backend in ``chosen``, which may be ``{"": backend}``; without that key, the ``present`` one.

    Raises:
        ConfigError: other keys; they are for models of several parts.
    """
    if not isinstance(chosen, Mapping):
        return chosen
    if parts := [key for key in chosen if key != ""]:
        raise ConfigError(
            f"attn_implementation has the key {parts[0]!r}, but a Cohere model has no parts of its own: give one name "
            "for the whole model, 'sdpa' or {'': 'sdpa'}"
        )
    return chosen.get("", present)


def label_names(given: object, count: int | None) -> dict[int, str]:
    """``id2label`` with numbers for keys; ``count`` names ``LABEL_0``, ``LABEL_1``, ... if none are given."""
    if count is not None and (not _is_whole(count) or count < 0):
        raise ConfigError(f"num_labels is {count!r}, but must be a whole number of at least 0")
    if given is None:
        return {number: f"LABEL_{number}" for number in range(count or 0)}
    try:
        names = {int(number): name for number, name in dict(given).items()}  # type: ignore[call-overload]  # any object
    except (TypeError, ValueError):
        raise ConfigError(f"id2label is {given!r}, but must be a dictionary from numbers to names") from None
    if count not in (None, len(names)):
        raise ConfigError(f"num_labels is {count}, but id2label has {len(names)} names; give one of them")
    return names
