"""GenerationConfig: the options of `generate`, read from and written to ``generation_config.json``.

The names, defaults and file format are those of transformers. What each option does is told beside the code
that does it (``processors``, ``warpers``, ``stopping``, ``mixin``); ``options`` lists all that exist.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from quarterdeck.errors import CheckpointCorruptError, InputError, UnsupportedOptionError
from quarterdeck.generation.compile_config import CompileConfig
from quarterdeck.generation.options import CALL_ARGUMENTS, IMPLEMENTED, OPTIONS
from quarterdeck.generation.validation import check_beams, check_supported, check_value
from quarterdeck.generation.watermark_config import WatermarkingConfig, read_watermarking_config
from quarterdeck.locate import HubOptions

FILE_NAME = "generation_config.json"


class ModelConfig(Protocol):
    """What a model's configuration must offer to derive generation options from it."""

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        ...


class GenerationConfig:
    """The options of one call of `generate`, or the defaults of a model.

    >>> GenerationConfig(do_sample=True, temperature=0.3, max_new_tokens=100).to_diff_dict()
    {'max_new_tokens': 100, 'do_sample': True, 'temperature': 0.3}

    Every option of the table in ``options`` is an attribute. A name that is no option, a value that cannot be
    right and an option that this version does not have are refused at construction. A *file* is read more
    leniently: unknown keys are kept in ``extra`` and written back, and options that this version does not
    have are kept too; they are refused when `generate` is asked to follow them.
    """

    SAMPLING_ONLY: ClassVar[tuple[str, ...]] = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
    )
    BEAMS_ONLY: ClassVar[tuple[str, ...]] = (
        "num_beam_groups",
        "early_stopping",
        "diversity_penalty",
        "length_penalty",
    )
    DICT_ONLY: ClassVar[tuple[str, ...]] = (
        "output_scores",
        "output_logits",
        "output_attentions",
        "output_hidden_states",
    )

    max_length: int | None
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    max_time: float | None
    stop_strings: str | list[str] | None
    do_sample: bool
    num_return_sequences: int
    num_beams: int | None
    num_beam_groups: int | None
    early_stopping: bool | Literal["never"] | None
    diversity_penalty: float | None
    length_penalty: float | None
    use_cache: bool
    cache_implementation: str | None
    cache_config: Mapping[str, Any] | None
    prefill_chunk_size: int | None
    compile_config: CompileConfig | None
    disable_compile: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: list[list[int]] | None
    sequence_bias: Mapping[tuple[int, ...], float] | list[tuple[list[int], float]] | None
    logit_bias: Mapping[int, float] | None
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | list[int] | None
    exponential_decay_length_penalty: tuple[int, float] | None
    renormalize_logits: bool
    remove_invalid_values: bool
    guidance_scale: float | None
    watermarking_config: WatermarkingConfig | None
    num_assistant_tokens: int | None
    num_assistant_tokens_schedule: Literal["constant", "heuristic", "heuristic_transient"] | None
    assistant_confidence_threshold: float | None
    prompt_lookup_num_tokens: int | None
    max_matching_ngram_size: int | None
    return_dict_in_generate: bool
    output_scores: bool
    output_logits: bool | None
    output_attentions: bool
    output_hidden_states: bool
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    extra: dict[str, Any]

    def __init__(self, **options: Any) -> None:
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise UnsupportedOptionError(describe_unknown(unknown[0]))
        for name, value in options.items():
            check_supported(name, value)
        self._fill(options)
        self.validate()

    def _fill(self, options: Mapping[str, Any]) -> None:
        """Set every option: to the value given, else to its default; keep what is no option in ``extra``."""
        for name, option in OPTIONS.items():
            setattr(self, name, _normal(name, options.get(name, option.default)))
        self.extra = {name: copy.deepcopy(value) for name, value in options.items() if name not in OPTIONS}

    # ------------------------------------------------------------------------------ checks

    def validate(self) -> None:
        """Raise `InputError` if a value, or a pair of values, cannot be right."""
        for name in IMPLEMENTED:
            check_value(name, getattr(self, name))
        if self.do_sample and self.temperature == 0:
            raise InputError(
                "temperature=0.0 with do_sample=True would divide by zero. Set do_sample=False for the most "
                "likely token (greedy), or a temperature above 0."
            )
        check_beams(lambda name: getattr(self, name))
        if not self.do_sample and (self.num_return_sequences or 1) > 1 and (self.num_beams or 1) == 1:
            raise InputError(
                f"num_return_sequences={self.num_return_sequences} with do_sample=False would give the same "
                "sequence that many times. Set do_sample=True, num_beams to as many, or num_return_sequences=1."
            )

    def check_supported(self) -> None:
        """Raise `UnsupportedOptionError` if an option asks for what this version does not have."""
        for name in OPTIONS:
            check_supported(name, getattr(self, name))

    def without_effect(self) -> dict[str, str]:
        """Options that are set but have no effect next to the others, each with the reason."""
        idle: dict[str, str] = {}
        if not self.do_sample:
            names = (name for name in self.SAMPLING_ONLY if self._is_set(name))
            idle.update(dict.fromkeys(names, "it needs do_sample=True"))
        if (self.num_beams or 1) == 1:
            names = (name for name in self.BEAMS_ONLY if self._is_set(name))
            idle.update(dict.fromkeys(names, "it needs num_beams above 1"))
        if not self.return_dict_in_generate:
            names = (name for name in self.DICT_ONLY if self._is_set(name))
            idle.update(dict.fromkeys(names, "it needs return_dict_in_generate=True"))
        if self.prompt_lookup_num_tokens is None and self.max_matching_ngram_size is not None:
            idle["max_matching_ngram_size"] = "it needs prompt_lookup_num_tokens"
        if self.use_cache is False and self.cache_implementation is not None:
            idle["cache_implementation"] = "use_cache=False"
        return idle

    def _is_set(self, name: str) -> bool:
        return getattr(self, name) not in (None, OPTIONS[name].default)

    # ------------------------------------------------------------------------------ changes

    def update(self, **options: Any) -> dict[str, Any]:
        """Set the options given, check the result, and return those arguments that are no options.

        Raises:
            InputError: a value cannot be right; nothing has been changed then.
        """
        known = {name: value for name, value in options.items() if name in OPTIONS}
        changed = copy.copy(self)
        for name, value in known.items():
            check_supported(name, value)
            setattr(changed, name, _normal(name, value))
        changed.validate()
        self.__dict__.update(changed.__dict__)
        return {name: value for name, value in options.items() if name not in known}

    def with_defaults_of(self, other: GenerationConfig) -> GenerationConfig:
        """A copy in which every option that has its global default takes its value in ``other``."""
        merged = copy.deepcopy(self)
        for name, option in OPTIONS.items():
            if getattr(self, name) == option.default:
                setattr(merged, name, copy.deepcopy(getattr(other, name)))
        if merged.temperature == 0 and not self.do_sample:
            merged.do_sample = False  # asked for greedy by temperature; the other's sampling is not wanted
        return merged

    # ------------------------------------------------------------------------------ dictionaries and files

    def to_dict(self) -> dict[str, Any]:
        """All options and the extra keys."""
        options = {name: copy.deepcopy(getattr(self, name)) for name in OPTIONS}
        return options | copy.deepcopy(self.extra)

    def to_diff_dict(self) -> dict[str, Any]:
        """The options that differ from their default, and the extra keys."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in OPTIONS or value != OPTIONS[name].default
        }

    def to_json_string(self) -> str:
        """The text of ``generation_config.json``: what differs from the defaults, sorted."""
        return json.dumps(_jsonable(self.to_diff_dict()), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write all options, or with ``use_diff`` those that differ from the defaults, into a file."""
        options = self.to_diff_dict() if use_diff else self.to_dict()
        text = json.dumps(_jsonable(options), indent=2, sort_keys=True)
        Path(json_file_path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any], **overrides: Any) -> GenerationConfig:
        """Options as read from a file, then those given by name. See the class for what a file may hold.

        Raises:
            InputError: a value, of the file or by name, that cannot be right.
            UnsupportedOptionError: an argument by name that is no option, or not in this version.
        """
        config = cls._read(options, f"{FILE_NAME}, or a dictionary in its place")
        unknown = config.update(**overrides)
        if unknown:
            raise UnsupportedOptionError(describe_unknown(next(iter(unknown))))
        return config

    @classmethod
    def _read(cls, options: Mapping[str, Any], place: str) -> GenerationConfig:
        """Options and other keys; an error names the ``place`` to look at."""
        config = cls.__new__(cls)
        config._fill(options)
        try:
            config.validate()
        except InputError as error:
            raise InputError(f"{error} (The value comes from {place}.)") from error
        return config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str = FILE_NAME,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **overrides: Any,
    ) -> GenerationConfig:
        """Read the options of a model: the embedded one, a folder, or a hub id.

        Raises:
            CheckpointNotFoundError: the model has no such file.
            CheckpointCorruptError: the file is not a JSON object.
        """
        hub = HubOptions(revision, token, subfolder, cache_dir, local_files_only, force_download)
        path = hub.resolve_file(pretrained_model_name, config_file_name)
        return cls.from_dict(_read_object(path), **overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str], config_file_name: str = FILE_NAME) -> None:
        """Write the options that differ from the defaults; the folder is made if need be.

        Raises:
            InputError: the folder is a file, or an option is a function, which no file can hold.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"'{folder}' is a file; give a folder to write {config_file_name} into.")
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{config_file_name}.partial"
        partial.write_text(self.to_json_string(), encoding="utf-8")
        partial.replace(folder / config_file_name)

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> GenerationConfig:
        """The options that a model's configuration holds: special tokens, and what old checkpoints keep.

        Negative ids of tokens, which old files write for "there is none", are left out.
        """
        fields = config.to_dict()
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            fields[name] = _without_negatives(fields.get(name))
        options = {name: fields[name] for name in OPTIONS if fields.get(name) is not None}
        made = cls._read(options, "the model's configuration")
        if any(getattr(made, name) for name in cls.DICT_ONLY):
            made.return_dict_in_generate = True
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable; mypy knows no way to say "unhashable"

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.to_diff_dict().items())
        return f"GenerationConfig({shown})"


def _without_negatives(ids: int | list[int] | None) -> int | list[int] | None:
    """The ids that are tokens; None if there are none."""
    if isinstance(ids, list):
        return [number for number in ids if number >= 0] or None
    return None if ids is None or ids < 0 else ids


def describe_unknown(name: str) -> str:
    """The message for an argument that is no option: why, and what may have been meant."""
    if name in CALL_ARGUMENTS:
        reason = CALL_ARGUMENTS[name]
        return f"{name!r} is refused: {reason}." if reason else f"{name!r} is no option: pass it to generate() itself."
    close = difflib.get_close_matches(name, [*OPTIONS, *CALL_ARGUMENTS], n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"{name!r} is no generation option.{hint}"


def _normal(name: str, value: Any) -> Any:
    """The value in plain Python: tensors and arrays as numbers and lists, JSON's string keys as ids."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if name == "watermarking_config":
        return read_watermarking_config(value)
    if name == "logit_bias" and isinstance(value, Mapping):
        return {int(key) if str(key).isdecimal() else key: bias for key, bias in value.items()}
    if name == "compile_config" and isinstance(value, Mapping):
        return CompileConfig.from_dict(value)
    return copy.deepcopy(value)


def _jsonable(options: dict[str, Any]) -> dict[str, Any]:
    """The same as JSON has it: ``sequence_bias`` as a list of pairs, since no tuple can be a key."""
    watermark, bias = options.get("watermarking_config"), options.get("sequence_bias")
    if isinstance(options.get("compile_config"), CompileConfig):
        options = options | {"compile_config": options["compile_config"].to_dict()}
    if watermark is not None:
        options = options | {"watermarking_config": watermark.to_dict()}
    if isinstance(bias, Mapping):
        return options | {"sequence_bias": [[list(ids), number] for ids, number in bias.items()]}
    return options


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointCorruptError(f"{path} is not valid JSON: {error}. Fetch or write it again.") from error
    if not isinstance(content, dict):
        raise CheckpointCorruptError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content
