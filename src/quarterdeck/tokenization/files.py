"""The files of a tokenizer, read and written.

    tokenizer.json                        the tokenizer itself, in the format of the `tokenizers` library
    tokenizer_config.json                 options, and properties of added tokens (these win over tokenizer.json)
    special_tokens_map.json               named tokens; read only where tokenizer_config.json is silent on added tokens
    added_tokens.json                     added tokens with their ids; read only, written by old versions
    chat_template.jinja                   the chat template, or the one named "default"; wins over tokenizer_config.json
    additional_chat_templates/NAME.jinja  the others

Older files have ``chat_template`` inside tokenizer_config.json: a text, or a list of ``{"name", "template"}``.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from quarterdeck.errors import CheckpointCorruptError, TokenizerError
from quarterdeck.locate import HubOptions, local_folder
from quarterdeck.tokenization.special_tokens import ADDITIONAL, NAMED_TOKENS

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"

SOURCES = (
    "tokenizer_object",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "vocab",
    "merges",
    "special_tokens_map_file",
    "added_tokens_decoder",
    "name_or_path",
    "kept_options",
)
"""Keys of tokenizer_config.json, and arguments of the constructor, that say what the files themselves say."""

_TEMPLATE_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of a tokenizer say.

    Attributes:
        tokenizer_file: path of tokenizer.json.
        options: contents of tokenizer_config.json, with the named tokens and the chat template of the other files
            put in where those win. Dictionaries that stand for tokens are `AddedToken` objects.
        added_tokens: tokens by id, as the configuration wants them to be.
    """

    tokenizer_file: Path
    options: dict[str, Any] = field(default_factory=dict)
    added_tokens: dict[int, AddedToken] = field(default_factory=dict)


def read_tokenizer_files(name_or_dir: str | os.PathLike[str], hub: HubOptions) -> TokenizerFiles:
    """Finds and reads the files of a tokenizer; all but tokenizer.json may be absent.

    Raises:
        CheckpointNotFoundError: no such model, or no tokenizer.json in it.
        CheckpointCorruptError: a file is not JSON, or not what it should hold.
    """
    if Path(name_or_dir).is_file():
        return TokenizerFiles(Path(name_or_dir))
    tokenizer_file = hub.resolve_file(name_or_dir, TOKENIZER_FILE)
    hub = hub.pinned_to(tokenizer_file)
    options = _read_optional(name_or_dir, CONFIG_FILE, hub)
    listed = "added_tokens_decoder" in options
    added = {int(index): as_token(token) for index, token in options.pop("added_tokens_decoder", {}).items()}
    options = {name: _tokens_inside(value) for name, value in options.items() if name not in SOURCES}
    if isinstance(options.get("extra_special_tokens"), list):  # as later versions of transformers write them
        options[ADDITIONAL] = [*(options.get(ADDITIONAL) or []), *options.pop("extra_special_tokens")]
    if not listed:
        options.update(_read_special_tokens(name_or_dir, hub, options))
        added = _read_added_tokens(name_or_dir, hub, options)
    template = _read_templates(name_or_dir, hub, tokenizer_file)
    if template is not None:
        options["chat_template"] = template
    return TokenizerFiles(tokenizer_file, options, added)


def as_token(value: Any) -> AddedToken:
    """A token from what stands for it in a file: its text, or a dictionary with its properties.

    Raises:
        CheckpointCorruptError: something else.
    """
    if isinstance(value, str | AddedToken):
        return AddedToken(value, normalized=False, special=True) if isinstance(value, str) else value
    try:
        return AddedToken(**{name: item for name, item in value.items() if name not in ("__type", "id")})
    except (AttributeError, TypeError) as error:
        raise CheckpointCorruptError(f"{CONFIG_FILE} describes a token by {value!r}: {error}") from error


def _tokens_inside(value: Any) -> Any:
    """``value`` with the dictionaries that are marked as tokens made into tokens."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return as_token(value)
        return {name: _tokens_inside(item) for name, item in value.items()}
    return [_tokens_inside(item) for item in value] if isinstance(value, list) else value


def _read_special_tokens(
    name_or_dir: str | os.PathLike[str], hub: HubOptions, options: Mapping[str, Any]
) -> dict[str, Any]:
    found = _read_optional(name_or_dir, SPECIAL_TOKENS_FILE, hub)
    named = {name: _special(found[name]) for name in found if name != ADDITIONAL}
    if ADDITIONAL in found:
        earlier = [token for token in options.get(ADDITIONAL) or [] if isinstance(token, str | AddedToken)]
        texts = {str(token) for token in earlier}
        new = [_special(token) for token in found[ADDITIONAL]]
        named[ADDITIONAL] = earlier + [token for token in new if str(token) not in texts]
    return named


def _special(value: Any) -> Any:
    return as_token({**value, "special": True}) if isinstance(value, dict) else value


def _read_added_tokens(
    name_or_dir: str | os.PathLike[str], hub: HubOptions, options: Mapping[str, Any]
) -> dict[int, AddedToken]:
    named = {str(options[name]) for name in NAMED_TOKENS if options.get(name)}
    special = named | {str(token) for token in options.get(ADDITIONAL) or []}
    return {
        int(index): AddedToken(text, normalized=text not in special, special=text in special)
        for text, index in _read_optional(name_or_dir, ADDED_TOKENS_FILE, hub).items()
    }


def _read_optional(name_or_dir: str | os.PathLike[str], filename: str, hub: HubOptions) -> dict[str, Any]:
    path = hub.resolve_file(name_or_dir, filename, required=False)
    if path is None:
        return {}
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointCorruptError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(contents, dict):
        raise CheckpointCorruptError(f"'{path}' holds a {type(contents).__name__}, not a JSON object")
    return contents


def _read_templates(
    name_or_dir: str | os.PathLike[str], hub: HubOptions, tokenizer_file: Path
) -> str | dict[str, str] | None:
    """The chat templates that have files of their own: one text if it is the only one and the default."""
    found: dict[str, str] = {}
    default = hub.resolve_file(name_or_dir, TEMPLATE_FILE, required=False)
    if default is not None:
        found["default"] = _read_text(default)
    for path in sorted(_template_folder(name_or_dir, hub, tokenizer_file).glob("*.jinja")):
        found[path.stem] = _read_text(path)
    if not found:
        return None
    return found["default"] if list(found) == ["default"] else found


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise CheckpointCorruptError(f"'{path}' is not UTF-8 text: {error}") from error


def _template_folder(name_or_dir: str | os.PathLike[str], hub: HubOptions, tokenizer_file: Path) -> Path:
    """The folder of additional templates; one on the hub is fetched first, since only the hub knows their names."""
    if local_folder(name_or_dir) is None:
        from quarterdeck.hub import fetch_snapshot  # here, so that local folders do not pay for the hub library

        prefix = f"{hub.subfolder}/" if hub.subfolder else ""
        fetch_snapshot(
            str(name_or_dir),
            [f"{prefix}{TEMPLATE_FOLDER}/*.jinja"],
            revision=hub.revision,
            token=hub.token,
            cache_dir=hub.cache_dir,
            local_files_only=hub.local_files_only,
            force_download=hub.force_download,
        )
    return tokenizer_file.parent / TEMPLATE_FOLDER


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def as_json(value: Any) -> Any:
    """``value`` with tokens inside made into dictionaries that `read_tokenizer_files` makes tokens again."""
    if isinstance(value, AddedToken):
        return {**value.__getstate__(), "__type": "AddedToken"}
    if isinstance(value, Mapping):
        return {name: as_json(item) for name, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, keys sorted, with the line break that other tools put at the end."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Writes a text file so that it is there whole or not at all."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` write another file beside ``path``, then puts that in its place in one step."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_templates(folder: Path, template: str | Mapping[str, str] | None, prefix: str = "") -> list[Path]:
    """Writes chat templates to files of their own, and removes those of an earlier tokenizer in the same folder.

    Returns:
        The paths written, the default template first.
    """
    templates = {"default": template} if isinstance(template, str) else dict(template or {})
    default, others = folder / f"{prefix}{TEMPLATE_FILE}", folder / f"{prefix}{TEMPLATE_FOLDER}"
    paths = {
        name: default if name == "default" else others / f"{check_template_name(name)}.jinja"
        for name in sorted(templates, key=lambda name: (name != "default", name))
    }
    for stale in {default, *others.glob("*.jinja")} - set(paths.values()):
        stale.unlink(missing_ok=True)
    for name, path in paths.items():
        path.parent.mkdir(exist_ok=True)
        write_text(path, templates[name])
    return list(paths.values())


def check_template_name(name: str) -> str:
    """The name, if it can be the name of a file.

    Raises:
        TokenizerError: it could lead to another folder.
    """
    if not _TEMPLATE_NAME.fullmatch(name):
        raise TokenizerError(
            f"the chat template's name {name!r} cannot be a file's name; use letters, digits, '_', '-' and '.'"
        )
    return name
