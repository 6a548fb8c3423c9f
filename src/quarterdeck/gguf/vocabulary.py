"""A tokenizer in the metadata of a GGUF file: tokens with their types, merges, named ids, chat templates.

What has no key there (padding side, longest text, ...) stands beside it as the JSON text
``quarterdeck.tokenizer_config``, in a file of our own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken

from quarterdeck.errors import CheckpointCorruptError, TokenizerError
from quarterdeck.gguf.container import GGUFFile, Value
from quarterdeck.gguf.metadata import read_text_of

OWN_OPTIONS = "quarterdeck.tokenizer_config"
NAMED_IDS: Mapping[str, str] = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}
ADD_BOS, ADD_EOS = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"
_TOKENS, _TYPES, _MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
_TEMPLATE, _TEMPLATE_NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_PIPELINES = ("command-r", "default", None)  # older files do not say; the architecture does


class TokenType(IntEnum):
    """What kind of token one is, as llama.cpp counts them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_ADDED = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)


def tokenizer_arguments(file: GGUFFile) -> dict[str, Any]:
    """Arguments of the tokenizer's constructor, and what it keeps besides (``kept`` fields of our own text included).

    Tokens up to the last ordinary one are the trained vocabulary; added ones behind it are not part of it, and unused
    ones at the end, which fill the model's table, are left out.

    Raises:
        TokenizerError: the file has no tokenizer, or one of another kind.
        CheckpointCorruptError: its lists do not fit together.
    """
    tokens, types = _token_lists(file)
    trained = max((index for index, kind in enumerate(types) if kind in (TokenType.NORMAL, TokenType.BYTE)), default=-1)
    added = {
        index: AddedToken(tokens[index], special=kind != TokenType.USER_DEFINED, normalized=False)
        for index, kind in enumerate(types)
        if kind in _ADDED
    }
    own = read_text_of(file, OWN_OPTIONS) or {}
    for index, properties in own.pop("added_tokens_decoder", {}).items():
        token = added.get(int(index))
        if token is not None and (token.content, token.special) == (properties["content"], properties["special"]):
            added[int(index)] = AddedToken(**properties)
    arguments: dict[str, Any] = {
        **own,
        "vocab": {token: index for index, token in enumerate(tokens[: trained + 1])},
        "merges": file.metadata.get(_MERGES, []),
        "added_tokens_decoder": added,
        "add_bos_token": file.metadata.get(ADD_BOS, True),
        "add_eos_token": file.metadata.get(ADD_EOS, False),
    }
    for name, key in NAMED_IDS.items():
        index = file.metadata.get(key)
        if index is not None and index < len(tokens):
            arguments[name] = added.get(index, tokens[index])
        else:
            arguments.setdefault(name, None)
    template = _read_templates(file)
    return arguments if template is None else arguments | {"chat_template": template}


def vocabulary_metadata(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], templates: str | Mapping[str, str] | None
) -> dict[str, Value]:
    """The keys for tokens by id, their types, merges (``"h e"``) and chat templates."""
    found: dict[str, Value] = {
        _MODEL: "gpt2",
        _PRE: "command-r",
        _TOKENS: tokens,
        _TYPES: [int(kind) for kind in types],
        _MERGES: merges,
    }
    named = {"default": templates} if isinstance(templates, str) else dict(templates or {})
    if "default" in named:
        found[_TEMPLATE] = named.pop("default")
    if named:
        found[_TEMPLATE_NAMES] = sorted(named)
    return found | {f"{_TEMPLATE}.{name}": text for name, text in sorted(named.items())}


def _token_lists(file: GGUFFile) -> tuple[list[str], list[int]]:
    metadata = file.metadata
    if _TOKENS not in metadata:
        raise TokenizerError(f"{file.path} holds no tokenizer: give the tokenizer of the original model")
    if metadata.get(_MODEL) != "gpt2" or metadata.get(_PRE) not in _PIPELINES:
        raise TokenizerError(
            f"{file.path} has a tokenizer of model {metadata.get(_MODEL)!r}, kind {metadata.get(_PRE)!r}; that of "
            "Command-R is 'gpt2', 'command-r': give the tokenizer of the original model"
        )
    tokens, types = metadata[_TOKENS], metadata.get(_TYPES)
    if types is None or len(types) != len(tokens):
        raise CheckpointCorruptError(
            f"{file.path} has {len(tokens)} tokens, but the types of {'none' if types is None else len(types)} "
            f"({_TYPES}); use another conversion"
        )
    return tokens, types


def _read_templates(file: GGUFFile) -> str | dict[str, str] | None:
    default = file.metadata.get(_TEMPLATE)
    names = file.metadata.get(_TEMPLATE_NAMES, [])
    found = {"default": default} if default is not None else {}
    found |= {name: file.metadata[f"{_TEMPLATE}.{name}"] for name in names if f"{_TEMPLATE}.{name}" in file.metadata}
    if not found:
        return None
    return default if list(found) == ["default"] else found
