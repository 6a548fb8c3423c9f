"""CohereConfig: the shape of a model, and every spelling of ``config.json``, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from quarterdeck.activations import Activation
from quarterdeck.config_checks import (
    RopeTableDtype,
    as_dtype,
    check_choices,
    check_numbers,
    check_sizes,
    check_tokens,
    declared_length,
    label_names,
    one_backend,
    one_dtype,
)
from quarterdeck.config_files import ConfigFiles
from quarterdeck.rope import length_stretch, normal_scaling, split_parameters, validate_rope

_ROPE_THETA = 10000.0


AttentionChoice = str | Callable[..., Any] | None
"""A backend's name, or a function like :func:`quarterdeck.attention.eager.eager_attention`; None is the default."""


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer; in the Cohere architecture, nothing does."""

    attention_window: int | None = None
    rotary: bool = True


class CohereConfig(ConfigFiles):
    """The configuration of a Cohere model, with the field names and defaults of Command-R.

    Keys that are not listed here are kept as attributes and written back by :meth:`save_pretrained`. Fields may be
    assigned later; a model checks them again when it is built.

    Args:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward block.
        logit_scale: factor on the output logits.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; ``None`` means as many as query heads, 1 is multi-query attention.
        hidden_act: name of the activation (see :mod:`quarterdeck.activations`) or a function of a tensor.
        max_position_embeddings: the trained length; see :attr:`context_length` for the usable one.
        initializer_range: standard deviation of freshly initialised weights.
        layer_norm_eps: added to the variance in every layer norm.
        use_cache: whether ``forward`` returns a key-value cache unless told otherwise.
        pad_token_id: id of the padding token; its embedding row starts at zero.
        bos_token_id: id that begins a text.
        eos_token_id: id, or ids, that end a turn.
        tie_word_embeddings: whether the output head shares the embedding's weight.
        rope_theta: base of the rotary frequencies.
        rope_scaling: ``{"rope_type": ..., ...}``, one of default, linear, dynamic, yarn, longrope, llama3.
        rope_parameters: both in one dictionary, ``{"rope_theta": ..., "rope_type": ..., ...}``, as transformers 5
            writes them; written back under the two names, which every version reads.
        attention_bias: whether the attention projections have a bias.
        attention_dropout: probability of dropping an attention weight in training.
        use_qk_norm: whether queries and keys are normalised per head (Command-R+).
        rope_table_dtype: ``"activation"`` rounds cos and sin to the activations' type as transformers does since
            4.45; ``"float32"`` keeps them exact. The two are the same in float32.
        dtype: type of the weights, a ``torch.dtype`` or its name; ``torch_dtype`` is the older name.
        attn_implementation: attention backend: its name, a function (see :data:`AttentionChoice`), or ``None`` for
            the default; not written to files.
        other: any other key of a ``config.json``; ``_attn_implementation`` is an older name of
            ``attn_implementation``. ``num_labels``, ``id2label`` and ``label2id`` depend on each other as in
            transformers; no model here uses them.

    Raises:
        ConfigError: a value that no model can be built with.
    """

    model_type: ClassVar[str] = "cohere"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    id2label: dict[int, str]
    label2id: dict[str, int] | None
    _attention: AttentionChoice

    def __init__(
        self,
        vocab_size: int = 256000,
        hidden_size: int = 8192,
        intermediate_size: int = 22528,
        logit_scale: float = 0.0625,
        num_hidden_layers: int = 40,
        num_attention_heads: int = 64,
        num_key_value_heads: int | None = None,
        hidden_act: str | Activation = "silu",
        max_position_embeddings: int = 8192,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 5,
        eos_token_id: int | list[int] | None = 255001,
        tie_word_embeddings: bool = True,
        rope_theta: float = _ROPE_THETA,
        rope_scaling: Mapping[str, Any] | None = None,
        attention_bias: bool = False,
        attention_dropout: float = 0.0,
        use_qk_norm: bool = False,
        *,
        head_dim: int | None = None,
        rope_parameters: Mapping[str, Any] | None = None,
        rope_table_dtype: RopeTableDtype = "activation",
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        attn_implementation: AttentionChoice | Mapping[str, Any] = None,
        **other: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.logit_scale = logit_scale
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        if rope_parameters is not None:
            rope_theta, rope_scaling = split_parameters(rope_parameters, rope_theta, rope_scaling, _ROPE_THETA)
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.use_qk_norm = use_qk_norm
        self.rope_table_dtype = rope_table_dtype
        self.dtype = one_dtype(dtype, torch_dtype)
        self._head_dim = head_dim
        older = other.pop("_attn_implementation", None)
        self.attn_implementation = older if attn_implementation is None else attn_implementation
        self._set_common(other)
        self.validate()

    def _set_common(self, other: dict[str, Any]) -> None:
        """Fields that every Hugging Face configuration has, then whatever else was given."""
        self.output_attentions: bool = other.pop("output_attentions", False)
        self.output_hidden_states: bool = other.pop("output_hidden_states", False)
        self.return_dict: bool = other.pop("return_dict", True)
        self.architectures: list[str] | None = other.pop("architectures", None)
        self._name_or_path: str = str(other.pop("name_or_path", other.pop("_name_or_path", "")))
        self._set_labels(other.pop("num_labels", None), other.pop("id2label", None), other.pop("label2id", None))
        other.pop("model_type", None)
        for key, value in other.items():
            self._check_settable(key)
            setattr(self, key, value)

    def _set_labels(self, count: int | None, id2label: Any, label2id: Any) -> None:
        """Two labels unless there are ``id2label`` or a ``count``; ids are numbers, which JSON has as texts."""
        self.num_labels = 2 if count is None else count
        if id2label is not None:
            self.id2label, self.label2id = label_names(id2label, count), None
        if label2id is not None:
            self.label2id = label2id

    # -- derived values, in one place ------------------------------------------------------------------

    @property
    def head_dim(self) -> int:
        """Width of one attention head: as given, else ``hidden_size // num_attention_heads``."""
        return self.hidden_size // self.num_attention_heads if self._head_dim is None else self._head_dim

    @head_dim.setter
    def head_dim(self, value: int | None) -> None:
        self._head_dim = value

    @property
    def context_length(self) -> int:
        """Usable tokens per sequence.

        ``model_max_length`` counts where it is larger than ``max_position_embeddings`` (Command-R v01 and R+ were
        published with 8192 there and 131072 here), but not if it is 1e20 or more, which tokenizers' files write for
        "unlimited". Linear, dynamic, yarn and longrope scaling stretch the trained length.
        """
        trained = math.floor(self.max_position_embeddings * length_stretch(self))
        return max(trained, declared_length(self) or 0)

    # -- fields with a spelling of their own -----------------------------------------------------------

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """Kind and numbers of the rotary scaling, with ``rope_type``; whoever assigns may call that ``type``."""
        return self._rope_scaling

    @rope_scaling.setter
    def rope_scaling(self, value: Mapping[str, Any] | None) -> None:
        self._rope_scaling = normal_scaling(value)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """``rope_theta`` and :attr:`rope_scaling` in one dictionary, the spelling of transformers 5."""
        return {"rope_theta": self.rope_theta, **(self.rope_scaling or {"rope_type": "default"})}

    @rope_parameters.setter
    def rope_parameters(self, value: Mapping[str, Any]) -> None:
        self.rope_theta, self.rope_scaling = split_parameters(value, self.rope_theta, None, self.rope_theta)

    @property
    def eos_token_id(self) -> int | list[int] | None:
        """Id, or list of ids, that end a turn."""
        return self._eos_token_id

    @eos_token_id.setter
    def eos_token_id(self, value: int | list[int] | tuple[int, ...] | None) -> None:
        self._eos_token_id = list(value) if isinstance(value, tuple) else value

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the weights; may be assigned by name."""
        return self._dtype

    @dtype.setter
    def dtype(self, value: str | torch.dtype | None) -> None:
        self._dtype = as_dtype(value)

    @property
    def num_labels(self) -> int:
        """Length of ``id2label``; assigning another number makes new names ``LABEL_0``, ``LABEL_1``, ..."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if "id2label" not in vars(self) or self.num_labels != count:
            self.id2label = label_names(None, count)
            self.label2id = {name: number for number, name in self.id2label.items()}

    @property
    def attn_implementation(self) -> AttentionChoice:
        """The attention backend; ``None`` for the default. ``{"": backend}`` may be assigned, as in transformers."""
        return self._attention

    @attn_implementation.setter
    def attn_implementation(self, chosen: AttentionChoice | Mapping[str, Any]) -> None:
        self._attention = one_backend(chosen, vars(self).get("_attention"))

    @property
    def _attn_implementation(self) -> AttentionChoice:
        """The older name of :attr:`attn_implementation`, by which programs for transformers read and set it."""
        return self._attention

    @_attn_implementation.setter
    def _attn_implementation(self, chosen: AttentionChoice | Mapping[str, Any]) -> None:
        self.attn_implementation = chosen

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The older name of :attr:`dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: str | torch.dtype | None) -> None:
        self.dtype = value

    @property
    def use_return_dict(self) -> bool:
        """The older name of :attr:`return_dict`."""
        return self.return_dict

    @property
    def name_or_path(self) -> str:
        """Where this configuration was read from; empty if it was not."""
        return self._name_or_path

    @name_or_path.setter
    def name_or_path(self, value: object) -> None:
        self._name_or_path = str(value)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a turn, none if there are none."""
        if self.eos_token_id is None:
            return ()
        return tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else (self.eos_token_id,)

    def layer_spec(self, layer_idx: int) -> LayerSpec:
        """What is particular to layer ``layer_idx``; the seam for architectures whose layers differ."""
        return LayerSpec()

    # -- checks ----------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise ConfigError if no model can be built from these values."""
        check_sizes(self, derived=self._head_dim is None)
        check_numbers(self)
        check_tokens(self)
        check_choices(self)
        validate_rope(self)
