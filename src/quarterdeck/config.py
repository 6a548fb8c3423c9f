"""CohereConfig: the shape of a model, and every spelling of ``config.json``, in one place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from quarterdeck.activations import Activation
from quarterdeck.config_checks import RopeTableDtype, as_dtype, check_choices, check_numbers, check_sizes, one_dtype
from quarterdeck.errors import CheckpointCorruptError, ConfigError, UnsupportedOptionError
from quarterdeck.locate import HubOptions
from quarterdeck.rope import rope_type, validate_rope


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer; in the Cohere architecture, nothing does."""

    attention_window: int | None = None
    rotary: bool = True


class CohereConfig:
    """The configuration of a Cohere model, with the field names and defaults of Command-R.

    Keys that are not listed here are kept as attributes and written back by :meth:`save_pretrained`.

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
        attention_bias: whether the attention projections have a bias.
        attention_dropout: probability of dropping an attention weight in training.
        use_qk_norm: whether queries and keys are normalised per head (Command-R+).
        rope_table_dtype: ``"activation"`` rounds cos and sin to the activations' type as transformers does since
            4.45; ``"float32"`` keeps them exact. The two are the same in float32.
        dtype: type of the weights, a ``torch.dtype`` or its name; ``torch_dtype`` is the older name.
        attn_implementation: attention backend, ``None`` for the default; not written to files.
        other: any other key of a ``config.json``.

    Raises:
        ConfigError: a value that no model can be built with.
    """

    model_type: ClassVar[str] = "cohere"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

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
        rope_theta: float = 10000.0,
        rope_scaling: Mapping[str, Any] | None = None,
        attention_bias: bool = False,
        attention_dropout: float = 0.0,
        use_qk_norm: bool = False,
        *,
        head_dim: int | None = None,
        rope_table_dtype: RopeTableDtype = "activation",
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
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
        self.rope_theta = rope_theta
        self.rope_scaling = _rope_scaling(rope_scaling)
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.use_qk_norm = use_qk_norm
        self.rope_table_dtype = rope_table_dtype
        self.dtype = one_dtype(dtype, torch_dtype)
        self._head_dim = head_dim
        self._attn_implementation = attn_implementation
        self._set_common(other)
        self.validate()

    def _set_common(self, other: dict[str, Any]) -> None:
        """Fields that every Hugging Face configuration has, then whatever else was given."""
        self.output_attentions: bool = other.pop("output_attentions", False)
        self.output_hidden_states: bool = other.pop("output_hidden_states", False)
        self.return_dict: bool = other.pop("return_dict", True)
        self.architectures: list[str] | None = other.pop("architectures", None)
        self._name_or_path: str = str(other.pop("name_or_path", other.pop("_name_or_path", "")))
        other.pop("model_type", None)
        for key, value in other.items():
            if key in _PRIVATE or hasattr(type(self), key):
                raise ConfigError(f"{key} is derived, or a name of CohereConfig itself, and cannot be a field; drop it")
            setattr(self, key, value)

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
        published with 8192 there and 131072 here); linear, dynamic and yarn scaling stretch the trained length.
        """
        trained = self.max_position_embeddings
        scaling = self.rope_scaling or {}
        stretched = rope_type(self) in {"linear", "dynamic"} or (
            rope_type(self) == "yarn" and scaling.get("original_max_position_embeddings") is None
        )
        if stretched:
            trained = math.floor(trained * scaling["factor"])
        declared = getattr(self, "model_max_length", None)
        return max(trained, int(declared)) if isinstance(declared, int) else trained

    @property
    def attn_implementation(self) -> str | None:
        """Name of the attention backend; ``None`` for the default."""
        return self._attn_implementation

    @attn_implementation.setter
    def attn_implementation(self, name: str | None) -> None:
        self._attn_implementation = name

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The older name of :attr:`dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: str | torch.dtype | None) -> None:
        self.dtype = as_dtype(value)

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
        check_choices(self)
        validate_rope(self)

    # -- dictionaries and files ------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Build from the contents of a ``config.json``; ``overrides`` replace fields that exist."""
        values = dict(values)
        model_type = values.pop("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ConfigError(
                f"this is a model of type {model_type!r}; Quarterdeck runs the type {cls.model_type!r} "
                "(Command-R, Command-R+, Aya 23, Aya Expanse)"
            )
        config = cls(**values)
        if not overrides:
            return config
        if unknown := [key for key in overrides if not config.has_field(key)]:
            raise UnsupportedOptionError(f"no such field in the configuration: {', '.join(sorted(unknown))}")
        if "torch_dtype" in overrides:
            overrides.setdefault("dtype", overrides.pop("torch_dtype"))
        runtime = {"attn_implementation": config.attn_implementation, "name_or_path": config.name_or_path}
        return cls(**(config.to_dict() | runtime | overrides))

    def has_field(self, name: str) -> bool:
        """Whether ``name`` is a field that can be overridden by keyword."""
        return not name.startswith("_") and name in {*vars(self), *_SETTABLE_PROPERTIES}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **overrides: Any,
    ) -> Self:
        """Read ``config.json`` of a folder, a hub repository or ``midshipman``; ``overrides`` replace its fields.

        Raises:
            CheckpointNotFoundError: there is no such folder, repository or file.
            ConfigError: the file is of another architecture or its values cannot be right.
        """
        hub = HubOptions(revision, token, subfolder, cache_dir, local_files_only, force_download)
        path = hub.resolve_file(pretrained_model_name_or_path, "config.json")
        values = {**read_json(path), "name_or_path": str(pretrained_model_name_or_path)}
        return cls.from_dict(values, **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into ``save_directory``, which is made if it is not there."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".config.json.{os.getpid()}"
        partial.write_text(self.to_json_string(), encoding="utf-8")
        partial.replace(folder / "config.json")

    def to_dict(self) -> dict[str, Any]:
        """All fields, known and unknown, as plain values; the type of weights under ``dtype`` by name."""
        fields = {key: value for key, value in vars(self).items() if key not in _PRIVATE}
        fields = {key: value for key, value in fields.items() if (key, value) not in _NOT_WRITTEN}
        fields["model_type"] = self.model_type
        if self._head_dim is not None:
            fields["head_dim"] = self._head_dim
        if self.dtype is not None:
            fields["dtype"] = str(self.dtype).removeprefix("torch.")
        return fields

    def to_json_string(self) -> str:
        """The text of ``config.json``."""
        if callable(self.hidden_act):
            raise ConfigError("hidden_act is a function, which a file cannot hold; use one of the names")
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def preset(cls, name: str) -> Self:
        """The configuration of a public checkpoint, offline; see :meth:`preset_names`.

        >>> CohereConfig.preset("c4ai-command-r-v01").context_length
        131072
        """
        presets = _presets()
        key = name.removeprefix("CohereForAI/").removeprefix("CohereLabs/")
        if key not in presets:
            raise ConfigError(f"there is no preset {name!r}; there are {', '.join(presets)}")
        return cls.from_dict(presets[key])

    @classmethod
    def preset_names(cls) -> tuple[str, ...]:
        """Names of the public checkpoints whose configurations come with the package."""
        return tuple(_presets())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CohereConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable, compared by value

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True, default=repr)}"


_PRIVATE = ("_head_dim", "_attn_implementation", "_name_or_path")
_SETTABLE_PROPERTIES = ("head_dim", "torch_dtype", "attn_implementation", "name_or_path", "model_max_length")
# fields at a value that says nothing, left out of files
_NOT_WRITTEN = (
    ("output_attentions", False),
    ("output_hidden_states", False),
    ("return_dict", True),
    ("architectures", None),
    ("rope_table_dtype", "activation"),
    ("dtype", None),
)


def _rope_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A copy under today's key ``rope_type``; ``type`` is the older spelling."""
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping):
        raise ConfigError(f"rope_scaling is {scaling!r}, but must be a dictionary with rope_type, or None")
    fields = dict(scaling)
    legacy = fields.pop("type", None)
    if legacy is not None and fields.setdefault("rope_type", legacy) != legacy:
        raise ConfigError(f"rope_scaling names two types, type={legacy!r} and rope_type={fields['rope_type']!r}")
    if "rope_type" not in fields:
        raise ConfigError(f"rope_scaling is {scaling!r}, but lacks rope_type")
    return fields


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointCorruptError names the file if it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointCorruptError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointCorruptError(f"{path} holds a {type(values).__name__}, but must hold a JSON object")
    return values


def _presets() -> dict[str, dict[str, Any]]:
    text = files("quarterdeck").joinpath("presets.json").read_text(encoding="utf-8")
    presets: dict[str, dict[str, Any]] = json.loads(text)
    return presets
