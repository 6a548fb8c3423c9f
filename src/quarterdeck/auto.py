"""AutoConfig, AutoTokenizer, AutoModel, AutoModelForCausalLM: the right class for whatever a checkpoint holds.

The class follows from what the checkpoint says of itself (``model_type`` in config.json, ``tokenizer_class`` in
tokenizer_config.json). There is one architecture so far; a second one is a line in each of the tables here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from quarterdeck.chat.prompts.families import builtin_templates
from quarterdeck.chat.prompts.parts import control_tokens
from quarterdeck.config import AttentionChoice, CohereConfig
from quarterdeck.config_files import no_config, read_json
from quarterdeck.errors import ConfigError, InputError, TokenizerError, UnsupportedOptionError
from quarterdeck.gguf.metadata import MODEL_TYPE as GGUF_MODEL_TYPE
from quarterdeck.locate import HubOptions, gguf_path
from quarterdeck.model import CohereForCausalLM, CohereModel
from quarterdeck.pretrained import PreTrainedModel
from quarterdeck.tokenization.chat import ChatTemplate
from quarterdeck.tokenizer import CohereTokenizerFast

Name = str | os.PathLike[str]
ModelT = TypeVar("ModelT", bound=PreTrainedModel)

_CONFIGS: Mapping[str, type[CohereConfig]] = {"cohere": CohereConfig}
_TOKENIZERS: Mapping[str, type[CohereTokenizerFast]] = {
    "CohereTokenizerFast": CohereTokenizerFast,
    "CohereTokenizer": CohereTokenizerFast,
    "PreTrainedTokenizerFast": CohereTokenizerFast,
    "TokenizersBackend": CohereTokenizerFast,
}


class AutoConfig:
    """Reads the configuration of any supported architecture."""

    def __init__(self) -> None:
        raise InputError(_not_constructible("AutoConfig", "for_model(model_type)"))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Name, **options: Any) -> CohereConfig:
        """The configuration of a folder, a hub id or ``midshipman``.

        Args:
            pretrained_model_name_or_path: the model.
            options: those of :meth:`CohereConfig.from_pretrained`: ``revision``, ``token``, ``subfolder``,
                ``cache_dir``, ``local_files_only``, ``force_download``, and fields to override by name.

        Raises:
            CheckpointNotFoundError: there is no such model, or no config.json in it.
            ConfigError: its ``model_type`` is not supported, or its values cannot be right.
        """
        options = _without_remote_code(options)
        config_class = _config_class(pretrained_model_name_or_path, options)
        return config_class.from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def for_model(cls, model_type: str, **config_fields: Any) -> CohereConfig:
        """A new configuration of the architecture ``model_type`` (``"cohere"``) with the given fields."""
        return _known_config(model_type, f"model_type {model_type!r}")(**config_fields)


class AutoTokenizer:
    """Loads the tokenizer of any supported architecture."""

    def __init__(self) -> None:
        raise InputError(_not_constructible("AutoTokenizer"))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Name, **options: Any) -> CohereTokenizerFast:
        """The tokenizer of a folder, a hub id or ``midshipman``.

        If it has no chat template, but the control tokens of Cohere's chat models, it gets the built-in templates of
        its family (`quarterdeck.chat.prompts.families`), so that `apply_chat_template` works; ``chat_template=None``
        among the options leaves it without. A template that is there is never replaced, nor added to.

        Args:
            pretrained_model_name_or_path: the model.
            options: those of :meth:`CohereTokenizerFast.from_pretrained`. ``use_fast=True`` is accepted, being
                what is always done.

        Raises:
            CheckpointNotFoundError: there is no such model, or no tokenizer.json in it.
            TokenizerError: its ``tokenizer_class`` is not supported.
        """
        options = _without_remote_code(options)
        if not options.pop("use_fast", True):
            raise UnsupportedOptionError(
                "use_fast=False asks for a tokenizer written in Python, and Cohere models never had one; leave it out"
            )
        tokenizer_class = _tokenizer_class(pretrained_model_name_or_path, options)
        tokenizer = tokenizer_class.from_pretrained(pretrained_model_name_or_path, **options)
        if tokenizer.chat_template is None and "chat_template" not in options:
            tokenizer.chat_template = _family_templates(pretrained_model_name_or_path, tokenizer)
        return tokenizer


class _AutoModel(Generic[ModelT]):
    """What both model classes do; ``_models`` maps configurations to models."""

    _models: ClassVar[Mapping[type[CohereConfig], type[Any]]] = {}

    def __init__(self) -> None:
        raise InputError(_not_constructible(type(self).__name__, "from_config(config)"))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Name | None, **options: Any) -> ModelT:
        """The model of a folder, a hub id or ``midshipman``, with its weights, in evaluation mode.

        Args:
            pretrained_model_name_or_path: the model; None if ``config`` and ``state_dict`` say it all.
            options: those of :meth:`quarterdeck.pretrained.PreTrainedModel.from_pretrained`: ``dtype``,
                ``device_map``, ``attn_implementation``, ``config``, ``revision``, ``token`` and so on.

        Raises:
            CheckpointError: files are missing, damaged, unsafe or do not fit.
            ConfigError: the checkpoint's ``model_type`` is not supported.
        """
        config_class = _class_of_source(pretrained_model_name_or_path, options)
        model: ModelT = cls._model_class(config_class).from_pretrained(pretrained_model_name_or_path, **options)
        return model

    @classmethod
    def from_config(
        cls,
        config: CohereConfig,
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        attn_implementation: AttentionChoice | Mapping[str, Any] = None,
    ) -> ModelT:
        """An untrained model of ``config``, which is copied; what is not given is as ``config`` has it.

        Raises:
            InputError: ``config`` is no configuration of quarterdeck's.
        """
        if not isinstance(config, CohereConfig):
            raise InputError(no_config(config, CohereConfig.__name__))
        model: ModelT = cls._model_class(type(config))._from_config(
            config, dtype=dtype, torch_dtype=torch_dtype, attn_implementation=attn_implementation
        )
        return model

    @classmethod
    def _model_class(cls, config_class: type[CohereConfig]) -> type[Any]:
        for known, model_class in cls._models.items():
            if issubclass(config_class, known):
                return model_class
        known_names = ", ".join(known.__name__ for known in cls._models)
        raise ConfigError(f"{cls.__name__} has no model for a {config_class.__name__}; it knows {known_names}")


class AutoModel(_AutoModel[CohereModel]):
    """Loads the decoder, without a language-model head, of any supported architecture."""

    _models: ClassVar[Mapping[type[CohereConfig], type[Any]]] = {CohereConfig: CohereModel}


class AutoModelForCausalLM(_AutoModel[CohereForCausalLM]):
    """Loads the language model of any supported architecture."""

    _models: ClassVar[Mapping[type[CohereConfig], type[Any]]] = {CohereConfig: CohereForCausalLM}


def _not_constructible(name: str, *others: str) -> str:
    ways = " or ".join(f"{name}.{way}" for way in ("from_pretrained(name)", *others))
    return f"{name} chooses a class and has no objects of its own; call {ways}"


def _without_remote_code(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without ``trust_remote_code``, which may only say what is done anyway."""
    options = dict(options)
    if options.pop("trust_remote_code", False):
        raise UnsupportedOptionError(
            "trust_remote_code=True is refused: code from a checkpoint is never run, and Cohere models need none; "
            "leave it out"
        )
    return options


def _hub_options(options: Mapping[str, Any]) -> HubOptions:
    return HubOptions(**{field.name: options[field.name] for field in fields(HubOptions) if field.name in options})


def _class_of_source(name: Name | None, options: Mapping[str, Any]) -> type[CohereConfig]:
    """The class of the configuration that is given, or else of the one in the checkpoint."""
    given: CohereConfig | Name | None = options.get("config")
    if isinstance(given, CohereConfig):
        return type(given)
    if not isinstance(given, str | os.PathLike | None):
        raise InputError(no_config(given, CohereConfig.__name__))
    source = name if given is None else given
    if source is None:
        raise InputError("there is nothing to load: give a model's name, or config and state_dict")
    # a configuration of its own is not in the file with the weights
    return _config_class(source, options if given is None else {**options, "gguf_file": None})


def _config_class(name: Name, options: Mapping[str, Any]) -> type[CohereConfig]:
    if gguf_path(name, options.get("gguf_file"), _hub_options(options)) is not None:
        return _CONFIGS[GGUF_MODEL_TYPE]  # another architecture is refused by whoever reads the file
    path = _hub_options(options).resolve_file(name, "config.json")
    model_type = read_json(path).get("model_type")
    if model_type is None:
        raise ConfigError(
            f"config.json of '{name}' has no model_type; if it is a Cohere model, use the Cohere classes themselves"
        )
    return _known_config(model_type, f"'{name}' is a model of type {model_type!r}")


def _known_config(model_type: str, what: str) -> type[CohereConfig]:
    try:
        return _CONFIGS[model_type]
    except (KeyError, TypeError):
        supported = ", ".join(map(repr, _CONFIGS))
        raise ConfigError(
            f"{what}, which is not supported; supported: {supported} (Command-R, Command-R+, Aya 23, Aya Expanse)"
        ) from None


def _tokenizer_class(name: Name, options: Mapping[str, Any]) -> type[CohereTokenizerFast]:
    """The class that tokenizer_config.json names; without such a file or name, the only one there is."""
    if gguf_path(name, options.get("gguf_file"), _hub_options(options)) is not None:
        return CohereTokenizerFast
    path = _hub_options(options).resolve_file(name, "tokenizer_config.json", required=False)
    found = read_json(path).get("tokenizer_class") if path is not None else None
    if found is None:
        return CohereTokenizerFast
    if found not in _TOKENIZERS:
        supported = ", ".join(_TOKENIZERS)
        raise TokenizerError(
            f"'{name}' has a tokenizer of class {found!r}, which is not supported; supported: {supported}"
        )
    return _TOKENIZERS[found]


def _family_templates(name: Name, tokenizer: CohereTokenizerFast) -> ChatTemplate | None:
    """The built-in templates for a checkpoint of that name; None if the tokenizer lacks tokens that they write."""
    templates = builtin_templates(Path(name).name)
    written = {token for text in templates.values() for token in control_tokens() if token in text}
    if tokenizer.bos_token is None or not written <= set(tokenizer.added_tokens_encoder):
        return None
    return templates["default"] if len(templates) == 1 else templates
