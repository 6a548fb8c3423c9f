"""A configuration as a dictionary and as ``config.json``: reading, writing, copying with changes.

Keys of a file that no field is called by are kept and written back. Most become attributes; those that are names of
the class itself (a derived value, a method) would hide it and are kept aside.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from quarterdeck.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    ConfigError,
    InputError,
    UnsupportedOptionError,
)
from quarterdeck.gguf.container import GGUFFile
from quarterdeck.gguf.metadata import config_values
from quarterdeck.locate import HubOptions, gguf_path

# what vars() holds under a name that is no field
_PRIVATE = ("_attention", "_dtype", "_eos_token_id", "_head_dim", "_kept", "_name_or_path", "_rope_scaling")
# properties that are fields of every file
_PROPERTIES = ("dtype", "eos_token_id", "rope_scaling")
_SETTABLE = {
    *_PROPERTIES,
    "attn_implementation",
    "head_dim",
    "model_max_length",
    "name_or_path",
    "num_labels",
    "rope_parameters",
    "torch_dtype",
}
# older names of runtime choices, which constructors understand
_OLDER = {"_attn_implementation", "_name_or_path"}
_TWO_LABELS = {0: "LABEL_0", 1: "LABEL_1"}
# fields at a value that says nothing, left out of files
_NOT_WRITTEN = (
    ("output_attentions", False),
    ("output_hidden_states", False),
    ("return_dict", True),
    ("architectures", None),
    ("rope_table_dtype", "activation"),
    ("dtype", None),
    ("id2label", _TWO_LABELS),
    ("label2id", {name: number for number, name in _TWO_LABELS.items()}),
)
# options of transformers' from_pretrained that are no fields: the values that ask for nothing else than what is done
_ALREADY_SO: Mapping[str, tuple[object, ...]] = {
    "code_revision": (None,),
    "proxies": (None,),
    "resume_download": (True, False, None),
    "return_unused_kwargs": (False, None),
    "trust_remote_code": (False, None),
    "use_auth_token": (None,),
}


class ConfigFiles:
    """The part of `quarterdeck.config.CohereConfig` that knows dictionaries and files."""

    model_type: ClassVar[str]
    hidden_act: Any
    dtype: torch.dtype | None
    attn_implementation: Any
    name_or_path: str
    _head_dim: int | None
    # keys of a file that cannot be attributes
    _kept: Mapping[str, Any] = {}

    def __init__(self, **fields: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not say what its fields are")

    def validate(self) -> None:
        """Raise ConfigError if no model can be built from these values."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its fields may be")

    # -- dictionaries ----------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Build from the contents of a ``config.json``; ``overrides`` replace fields that exist."""
        values = dict(values)
        cls._check_model_type(values.pop("model_type", cls.model_type))
        config = cls._from_fields(values)
        if not overrides:
            return config
        if unknown := [key for key in overrides if not config.has_field(key)]:
            raise UnsupportedOptionError(f"no such field in the configuration: {', '.join(sorted(unknown))}")
        if "torch_dtype" in overrides:
            overrides.setdefault("dtype", overrides.pop("torch_dtype"))
        runtime = {"attn_implementation": config.attn_implementation, "name_or_path": config.name_or_path}
        fields = config.to_dict() | runtime
        if "num_labels" in overrides:
            fields = {key: value for key, value in fields.items() if key not in ("id2label", "label2id")}
        if overrides.get("rope_parameters") is not None:
            fields = {key: value for key, value in fields.items() if key not in ("rope_theta", "rope_scaling")}
        return cls._from_fields(fields | overrides)

    @classmethod
    def _from_fields(cls, values: Mapping[str, Any]) -> Self:
        kept = {key: value for key, value in values.items() if cls._is_taken(key)}
        config = cls(**{key: value for key, value in values.items() if key not in kept})
        config._kept = copy.deepcopy(kept)
        return config

    @classmethod
    def _check_model_type(cls, model_type: object) -> None:
        if model_type != cls.model_type:
            raise ConfigError(
                f"this is a model of type {model_type!r}; Quarterdeck runs the type {cls.model_type!r} "
                "(Command-R, Command-R+, Aya 23, Aya Expanse)"
            )

    @classmethod
    def _is_taken(cls, key: str) -> bool:
        """Whether an attribute of this name would hide something of the class's own."""
        return (key in _PRIVATE or hasattr(cls, key)) and key not in (_SETTABLE | _OLDER | {"model_type"})

    @classmethod
    def _check_settable(cls, key: str) -> None:
        if cls._is_taken(key):
            raise ConfigError(f"{key} is derived, or a name of {cls.__name__} itself, and cannot be a field; drop it")

    def has_field(self, name: str) -> bool:
        """Whether ``name`` is a field that can be overridden by keyword."""
        return not name.startswith("_") and name in {*vars(self), *_SETTABLE}

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Assign all fields in ``config_dict``, known and unknown.

        Raises:
            ConfigError: a value that cannot be right, or no field's name; nothing has been changed then.
        """
        changed = copy.copy(self)
        for key, value in config_dict.items():
            if key == "model_type":
                self._check_model_type(value)
                continue
            self._check_settable(key)
            setattr(changed, key, value)
        changed.validate()
        vars(self).update(vars(changed))

    def to_dict(self) -> dict[str, Any]:
        """All fields, known and unknown, as plain values; the type of weights under ``dtype`` by name."""
        fields = {key: value for key, value in vars(self).items() if key not in _PRIVATE}
        fields |= {key: getattr(self, key) for key in _PROPERTIES}
        fields = {key: value for key, value in fields.items() if (key, value) not in _NOT_WRITTEN}
        fields = copy.deepcopy({**self._kept, **fields})
        fields = {key: value.to_dict() if hasattr(value, "to_dict") else value for key, value in fields.items()}
        fields["model_type"] = self.model_type
        if self._head_dim is not None:
            fields["head_dim"] = self._head_dim
        if self.dtype is not None:
            fields["dtype"] = str(self.dtype).removeprefix("torch.")
        return fields

    def to_diff_dict(self) -> dict[str, Any]:
        """What transformers would write to a file: :meth:`to_dict` without ``tie_word_embeddings`` if it is True."""
        return {key: value for key, value in self.to_dict().items() if (key, value) != ("tie_word_embeddings", True)}

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Self:
        """The configuration of the part that reads and writes text: this one itself."""
        return self

    # -- files -----------------------------------------------------------------------------------------

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
        gguf_file: str | None = None,
        **overrides: Any,
    ) -> Self:
        """Read ``config.json`` of a folder, a hub repository or ``midshipman``; ``overrides`` replace its fields.

        Of a GGUF file, or of ``gguf_file`` in a folder or repository, the metadata are read instead.

        Raises:
            CheckpointNotFoundError: there is no such folder, repository or file.
            ConfigError: the file is of another architecture or its values cannot be right.
            UnsupportedOptionError: an override is no field. Of transformers' options, those that ask for what is
                always done (``trust_remote_code=False``, ``proxies=None``) are accepted.
        """
        done = [key for key, value in overrides.items() if any(value is one for one in _ALREADY_SO.get(key, ()))]
        overrides = {key: value for key, value in overrides.items() if key not in done}
        hub = HubOptions(revision, token, subfolder, cache_dir, local_files_only, force_download)
        gguf = gguf_path(pretrained_model_name_or_path, gguf_file, hub)
        if gguf is None:
            values = read_json(hub.resolve_file(pretrained_model_name_or_path, "config.json"))
        else:
            values = config_values(GGUFFile(gguf))
        values["name_or_path"] = str(pretrained_model_name_or_path)
        return cls.from_dict(values, **overrides)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Self:
        """Read one file, whatever it is called; errors as of :meth:`from_pretrained`."""
        path = Path(json_file)
        if not path.is_file():
            raise CheckpointNotFoundError(f"there is no file '{path}'; for a folder or a hub id use from_pretrained")
        return cls.from_dict(read_json(path))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` with all fields into ``save_directory``, which is made if it is not there."""
        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"'{folder}' is a file; give a folder to write config.json into, or use to_json_file")
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / "config.json", use_diff=False)

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write :meth:`to_json_string` under any name; an earlier file is replaced as a whole or not at all."""
        path = Path(json_file_path)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(self.to_json_string(use_diff), encoding="utf-8")
        partial.replace(path)

    def to_json_string(self, use_diff: bool = True) -> str:
        """JSON of :meth:`to_diff_dict`, or without ``use_diff`` of :meth:`to_dict`."""
        if callable(self.hidden_act):
            raise ConfigError("hidden_act is a function, which a file cannot hold; use one of the names")
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

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

    # -- as a value ------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigFiles) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable, compared by value

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True, default=repr)}"


def no_config(value: object, class_name: str) -> str:
    """The message for a ``value`` where a configuration of class ``class_name`` should be."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    start = f"config is of the type {name}, but must be quarterdeck's {class_name}"
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        fields = "config" if isinstance(value, Mapping) else "config.to_dict()"
        return f"{start}; make one with {class_name}.from_dict({fields})"
    return f"{start}; to load a checkpoint use from_pretrained(...)"


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
