"""Making a backend of the `tokenizers` library ready: opening it and bringing it into the state that is asked for."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from quarterdeck.errors import CheckpointCorruptError, CheckpointNotFoundError, TokenizerError, UnsupportedOptionError
from quarterdeck.tokenization.vocabulary import Token

NamedId = tuple[str, int]
"""A token's text and id."""


Vocabulary = str | os.PathLike[str] | Mapping[str, int]
Merges = str | os.PathLike[str] | Sequence[str | tuple[str, str]]


def open_backend(
    given: Tokenizer | None,
    tokenizer_file: str | os.PathLike[str] | None,
    vocab: Vocabulary | None,
    merges: Merges | None,
) -> Tokenizer:
    """A backend of the caller's own: a copy of ``given``, or read from files.

    Raises:
        TokenizerError: none, or more than one, of the three sources is given.
        CheckpointNotFoundError, CheckpointCorruptError: a file is not there, or not what it should be.
    """
    pair = merges if vocab is None else vocab
    if sum(source is not None for source in (given, tokenizer_file, pair)) != 1:
        raise TokenizerError("a tokenizer needs one of tokenizer_object, tokenizer_file, or vocab and merges")
    if given is not None:
        return copy.deepcopy(given)
    if tokenizer_file is not None:
        return _read(Tokenizer.from_file, tokenizer_file)
    if vocab is None or merges is None:
        raise TokenizerError("vocab and merges, or vocab_file and merges_file, go together: give both")
    return command_r_pipeline(_byte_pairs(vocab, merges))


def _byte_pairs(vocab: Vocabulary, merges: Merges) -> models.Model:
    if isinstance(vocab, Mapping) and not isinstance(merges, str | os.PathLike):
        pairs = [tuple(each.split(" ")) if isinstance(each, str) else tuple(each) for each in merges]
        if wrong := [pair for pair in pairs if len(pair) != 2]:
            raise TokenizerError(f"merges holds {wrong[0]!r}, but each must be two tokens, such as 'h e'")
        try:
            return models.BPE(vocab=dict(vocab), merges=pairs)
        except Exception as error:  # the library raises the base class itself
            raise TokenizerError(f"vocab and merges do not fit: {error}") from error
    if isinstance(vocab, Mapping) or not isinstance(merges, str | os.PathLike):
        raise TokenizerError("vocab and merges are both paths, or a dictionary and a list")
    model: models.Model = _read(models.BPE.from_file, vocab, merges)
    return model


def _read(reader: Callable[..., Any], *paths: str | os.PathLike[str]) -> Any:
    for path in paths:
        if not Path(path).is_file():
            raise CheckpointNotFoundError(f"there is no file '{path}'")
    try:
        return reader(*[os.fspath(path) for path in paths])
    except Exception as error:  # the library raises the base class itself
        raise CheckpointCorruptError(f"'{paths[0]}' cannot be read as a tokenizer: {error}") from error


def command_r_pipeline(model: models.Model) -> Tokenizer:
    """A backend that treats texts as Command-R does: NFC, every digit alone, bytes of the GPT-2 alphabet, BPE."""
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


@dataclass(frozen=True)
class SavedState:
    """Defaults that a tokenizer.json implies by the padding and truncation saved in it."""

    pad_token: str | None = None
    padding_side: str | None = None
    truncation_side: str | None = None


def take_saved_state(backend: Tokenizer) -> SavedState:
    """Clears the padding and truncation that a backend was saved with; they are chosen anew for each call."""
    padding, truncation = backend.padding or {}, backend.truncation or {}
    if padding:
        backend.no_padding()
    if truncation:
        backend.no_truncation()
    return SavedState(padding.get("pad_token"), padding.get("direction"), truncation.get("direction"))


def add_missing_tokens(
    backend: Tokenizer, by_id: Mapping[int, AddedToken], named: Sequence[Token], may_grow: bool
) -> None:
    """Sees to it that tokens are in the vocabulary, touching it only if they are not (which takes time if it is large).

    Args:
        backend: changed in place.
        by_id: tokens with the ids and properties that they must have.
        named: tokens that must be there; one given as plain text may have any properties.
        may_grow: whether a named token that is not there is added as the next id, or refused.

    Raises:
        TokenizerError: a token cannot have the id it should have, or must not be added.
    """
    present = backend.get_added_tokens_decoder()
    names = {str(token) for token in named}
    wanted = [
        _with_special(token, token.special or token.content in names)
        for index, token in sorted(by_id.items())
        if index not in present or present[index].__getstate__() != token.__getstate__()
    ]
    if wanted:
        backend.add_tokens(wanted)
    _check_ids(backend, by_id)
    known = {token.content for token in (*present.values(), *wanted)}
    missing = [token for token in named if str(token) not in known]
    nowhere = [str(token) for token in missing if backend.token_to_id(str(token)) is None]
    if nowhere and not may_grow:
        raise TokenizerError(
            f"vocab_file and merges_file lack {', '.join(nowhere)}, whose id is therefore not known: give "
            "added_tokens_decoder, or a tokenizer_file"
        )
    if missing:
        backend.add_tokens([_with_special(token, True) for token in missing])


def _with_special(token: Token, special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special)
    return AddedToken(**{**token.__getstate__(), "special": special})


def _check_ids(backend: Tokenizer, by_id: Mapping[int, AddedToken]) -> None:
    for index, token in by_id.items():
        found = backend.token_to_id(token.content)
        if found != index:
            raise TokenizerError(
                f"the token {token.content!r} should have the id {index} and has {found}: tokenizer_config.json and "
                "tokenizer.json do not belong together"
            )


def set_prefix_space(backend: Tokenizer, wanted: bool | None) -> bool:
    """Makes byte-level pre-tokenizers put a space before a text, or not; None leaves them as they are.

    Returns:
        Whether they do now.
    """
    parts = [part for part in _parts(backend.pre_tokenizer) if hasattr(part, "add_prefix_space")]
    if wanted is not None:
        for part in parts:
            part.add_prefix_space = wanted  # shared with the backend, so this is all there is to do
    return any(part.add_prefix_space for part in parts)


def _parts(pre_tokenizer: Any) -> list[Any]:
    if isinstance(pre_tokenizer, pre_tokenizers.Sequence):
        return list(pre_tokenizer)
    return [] if pre_tokenizer is None else [pre_tokenizer]


def around_token(name: str, text: str | None, index: int | None) -> NamedId:
    """A token that is put around texts.

    Raises:
        TokenizerError: there is none.
    """
    if text is None or index is None:
        raise TokenizerError(f"add_{name}=True needs a {name}, and it is {text!r}: set it, or add_{name}=False")
    return text, index


def post_processor(begin: NamedId | None, end: NamedId | None) -> Any:
    """What puts ``begin`` before and ``end`` after each text; both texts of a pair get them."""

    def around(text: str, number: int) -> list[str]:
        before = [f"{begin[0]}:{number}"] if begin else []
        return [*before, f"${text}:{number}", *([f"{end[0]}:{number}"] if end else [])]

    return processors.TemplateProcessing(
        single=around("A", 0),
        pair=around("A", 0) + around("B", 1),
        special_tokens=[token for token in (begin, end) if token is not None],
    )


def check_option_names(constructor: Callable[..., Any], names: Iterable[str], excluded: Iterable[str]) -> None:
    """Refuses names that are no argument of a constructor, or one of the ``excluded`` ones.

    Raises:
        UnsupportedOptionError: naming them and those that exist.
    """
    known = [name for name in inspect.signature(constructor).parameters if name not in {"self", *excluded}]
    unknown = sorted(set(names) - {*known, "tokenizer_class"})
    if unknown:
        raise UnsupportedOptionError(f"a tokenizer has no option {', '.join(unknown)}; it has {', '.join(known)}")


def split_options(constructor: Callable[..., Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that are arguments of a constructor, and the others."""
    known = set(inspect.signature(constructor).parameters) - {"self"}
    return (
        {name: value for name, value in options.items() if name in known},
        {name: value for name, value in options.items() if name not in known},
    )
