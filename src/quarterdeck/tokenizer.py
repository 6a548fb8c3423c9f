"""CohereTokenizerFast: the tokenizer of the Command-R family, over the `tokenizers` library.

Byte-level BPE on NFC text with digits split singly. What is Cohere's own here: padding on the left, no token types,
and the tokens put around a text,

    one text    <BOS_TOKEN> A
    two texts   <BOS_TOKEN> A <BOS_TOKEN> B

with ``eos_token`` after each as well if ``add_eos_token`` is set.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, Tokenizer

from quarterdeck.errors import TokenizerError, UnsupportedOptionError
from quarterdeck.gguf.container import GGUFFile
from quarterdeck.gguf.vocabulary import tokenizer_arguments
from quarterdeck.locate import HubOptions, gguf_path
from quarterdeck.tokenization import backend as backends
from quarterdeck.tokenization import files
from quarterdeck.tokenization.chat import ChatTemplate
from quarterdeck.tokenization.encoding import BatchEncoding
from quarterdeck.tokenization.incremental import IncrementalDecoder
from quarterdeck.tokenization.special_tokens import ADDITIONAL, NAMED_TOKENS
from quarterdeck.tokenization.surround import Surrounding
from quarterdeck.tokenization.training import retrain
from quarterdeck.tokenization.vocabulary import Token

__all__ = ["AddedToken", "BatchEncoding", "CohereTokenizer", "CohereTokenizerFast", "IncrementalDecoder"]

_OWN_CLASSES = ("CohereTokenizerFast", "CohereTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", None)

_WITHOUT_EFFECT = ("use_fast", "trust_remote_code", "legacy", "_commit_hash", "_from_auto", "resume_download")
"""Options of the same method elsewhere that there is nothing to choose about here."""


class CohereTokenizerFast(Surrounding):
    """Tokenizer of Command-R, Command-R+, Aya 23 and Aya Expanse.

    Example: ``CohereTokenizerFast.from_pretrained("midshipman")("Hello")["input_ids"]``.

    Args:
        vocab_file, merges_file: vocab.json and merges.txt as `save_vocabulary` writes them, both; they hold no added
            tokens, so ``added_tokens_decoder`` must name those with their ids.
        vocab, merges: the names of the same in transformers 5; also ids by token and a list of pairs.
        tokenizer_file: a tokenizer.json.
        tokenizer_object: a `tokenizers.Tokenizer`, which is copied.
        clean_up_tokenization_spaces: remove the space before punctuation when decoding.
        unk_token, bos_token, eos_token, pad_token, sep_token, cls_token, mask_token: named tokens, added to the
            vocabulary if they are not there.
        add_bos_token, add_eos_token: put ``bos_token`` before, ``eos_token`` after each text.
        use_default_system_prompt: kept and written back; templates decide about system prompts.
        add_prefix_space: encode a text as if it began with a space. None: as the tokenizer file says.
        model_max_length: tokens that the model can read; None: not known.
        padding_side, truncation_side: ``"left"`` or ``"right"``.
        chat_template: Jinja text, texts by name, or a list of ``{"name", "template"}``.
        additional_special_tokens: special tokens without a name.
        extra_special_tokens: tokens with names of this model's own, which become attributes.
        split_special_tokens: treat the spelling of special tokens in a text as ordinary text.
        model_input_names: inputs of the model, the ids first.
        added_tokens_decoder: tokens by id to be in the vocabulary with exactly these properties.
        name_or_path: where it came from.
        kept_options: what else the configuration file holds; written back by `save_pretrained`.
    """

    vocab_files_names = {"tokenizer_file": files.TOKENIZER_FILE}  # noqa: RUF012 (a class attribute by custom)
    slow_tokenizer_class = None

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        unk_token: Token | None = "<UNK>",
        bos_token: Token | None = "<BOS_TOKEN>",
        eos_token: Token | None = "<|END_OF_TURN_TOKEN|>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        use_default_system_prompt: bool = False,
        add_prefix_space: bool | None = None,
        *,
        vocab: backends.Vocabulary | None = None,
        merges: backends.Merges | None = None,
        tokenizer_object: Tokenizer | None = None,
        pad_token: Token | None = None,
        sep_token: Token | None = None,
        cls_token: Token | None = None,
        mask_token: Token | None = None,
        additional_special_tokens: Sequence[Token] | None = None,
        extra_special_tokens: Mapping[str, Token] | None = None,
        model_max_length: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        chat_template: ChatTemplate | Sequence[Mapping[str, str]] | None = None,
        split_special_tokens: bool = False,
        model_input_names: Sequence[str] | None = None,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        name_or_path: str = "",
        kept_options: Mapping[str, Any] | None = None,
    ) -> None:
        vocab, merges = _one(vocab_file=vocab_file, vocab=vocab), _one(merges_file=merges_file, merges=merges)
        backend = backends.open_backend(tokenizer_object, tokenizer_file, vocab, merges)
        defaults = backends.take_saved_state(backend)
        super().__init__(
            backend,
            {
                "unk_token": unk_token,
                "bos_token": bos_token,
                "eos_token": eos_token,
                "pad_token": pad_token or defaults.pad_token,
                "sep_token": sep_token,
                "cls_token": cls_token,
                "mask_token": mask_token,
            },
            additional_special_tokens or (),
            extra_special_tokens or {},
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            model_max_length=model_max_length,
            padding_side=padding_side or defaults.padding_side or "left",
            truncation_side=truncation_side or defaults.truncation_side or "right",
            split_special_tokens=split_special_tokens,
        )
        self.name_or_path = name_or_path
        self.vocab_file = vocab_file
        self.use_default_system_prompt = use_default_system_prompt
        self.chat_template = _templates_by_name(chat_template)
        self.model_input_names = list(model_input_names or self.model_input_names)
        self._kept_options = dict(kept_options or {})
        backends.add_missing_tokens(
            backend, added_tokens_decoder or {}, self.all_special_tokens_extended, may_grow=vocab is None
        )
        self.add_prefix_space = backends.set_prefix_space(backend, add_prefix_space)
        self._add_bos_token, self._add_eos_token = add_bos_token, add_eos_token
        self.update_post_processor()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path='{self.name_or_path}', vocab_size={self.vocab_size}, "
            f"added_tokens={len(self) - self.vocab_size}, model_max_length={self.model_max_length}, "
            f"padding_side='{self.padding_side}', truncation_side='{self.truncation_side}', "
            f"special_tokens={self.special_tokens_map})"
        )

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────

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
        **options: Any,
    ) -> Self:
        """Loads a tokenizer.

        Args:
            pretrained_model_name_or_path: ``"midshipman"`` (the embedded model), a folder, a hub id, a
                tokenizer.json, or a GGUF file.
            revision, token, subfolder, cache_dir, local_files_only, force_download: see `HubOptions`.
            gguf_file: name of a GGUF file in the folder or hub repository, to read instead.
            options: arguments of the constructor that replace what the files say. ``use_fast`` and
                ``trust_remote_code`` are accepted: there is one implementation, and no code is ever fetched.

        Raises:
            CheckpointNotFoundError: there is nothing under that name.
            CheckpointCorruptError: a file is not what its name says.
            TokenizerError: the files are another model family's.
            UnsupportedOptionError: an option that does not exist.
        """
        hub = HubOptions(revision, token, subfolder or "", cache_dir, local_files_only, force_download)
        given = {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT}
        gguf = gguf_path(pretrained_model_name_or_path, gguf_file, hub)
        if gguf is not None:
            return cls._from_gguf(gguf, given, str(pretrained_model_name_or_path))
        found = files.read_tokenizer_files(pretrained_model_name_or_path, hub)
        backends.check_option_names(cls.__init__, set(given) - set(found.options), files.SOURCES)
        every = {**found.options, **given}
        _check_class(every.pop("tokenizer_class", None))
        known, kept = backends.split_options(cls.__init__, every)
        listed = {token.content: token for token in found.added_tokens.values()}
        for name in set(NAMED_TOKENS) & set(known):  # a name stands for the token with the properties listed
            known[name] = listed.get(str(known[name]), known[name])
        if known.get(ADDITIONAL):
            known[ADDITIONAL] = [listed.get(str(each), each) for each in known[ADDITIONAL]]
        known["tokenizer_file"] = found.tokenizer_file
        known["name_or_path"] = str(pretrained_model_name_or_path)
        return cls(**known, added_tokens_decoder=found.added_tokens, kept_options=kept)

    @classmethod
    def _from_gguf(cls, path: Path, given: Mapping[str, Any], name: str) -> Self:
        """The tokenizer in the metadata of a GGUF file; ``given`` replaces what they say."""
        backends.check_option_names(cls.__init__, given, files.SOURCES)
        every = {**tokenizer_arguments(GGUFFile(path)), **given}
        _check_class(every.pop("tokenizer_class", None))
        known, kept = backends.split_options(cls.__init__, every)
        return cls(**known, name_or_path=name, kept_options=kept)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        *,
        save_jinja_files: bool = True,
    ) -> tuple[str, ...]:
        """Writes the files of a tokenizer, each whole or not at all.

        Args:
            save_directory: made if it is not there; a tokenizer in it is replaced.
            legacy_format: must not be True; there is no other format for this tokenizer.
            filename_prefix: put before each file's name, with a ``-``.
            push_to_hub: must not be True; upload the folder with `huggingface_hub`.
            save_jinja_files: chat templates in files of their own; otherwise in tokenizer_config.json.

        Returns:
            The paths written.
        """
        if legacy_format or push_to_hub:
            option = "legacy_format" if legacy_format else "push_to_hub"
            raise UnsupportedOptionError(
                f"save_pretrained has no {option}=True: it writes tokenizer.json; upload the folder with "
                "huggingface_hub.upload_folder"
            )
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        if folder.is_file():
            raise TokenizerError(f"save_directory '{folder}' is a file; give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        config, named, tokenizer = (
            folder / f"{prefix}{name}" for name in (files.CONFIG_FILE, files.SPECIAL_TOKENS_FILE, files.TOKENIZER_FILE)
        )
        templates = files.write_templates(folder, self.chat_template if save_jinja_files else None, prefix)
        files.write_json(config, self.options_to_save(with_templates=not save_jinja_files))
        files.write_json(named, _without_special(self.special_tokens_map_extended))
        files.write_atomically(tokenizer, lambda path: self._backend.save(str(path)))
        return tuple(map(str, (config, named, *templates, tokenizer)))

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes the trained vocabulary alone, vocab.json and merges.txt, and returns their paths.

        Added tokens are not in them: `save_pretrained` writes everything.
        """
        if not Path(save_directory).is_dir():
            raise TokenizerError(f"save_directory '{save_directory}' is not a folder; make it first")
        return tuple(self._backend.model.save(str(save_directory), filename_prefix))

    def options_to_save(self, with_templates: bool) -> dict[str, Any]:
        """The contents of tokenizer_config.json."""
        config: dict[str, Any] = {
            **self._kept_options,
            **dict.fromkeys(NAMED_TOKENS),
            **self.special_tokens_map,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
            "add_prefix_space": self.add_prefix_space,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "extra_special_tokens": self.extra_special_tokens,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "split_special_tokens": self.split_special_tokens,
            "truncation_side": self.truncation_side,
            "use_default_system_prompt": self.use_default_system_prompt,
            "added_tokens_decoder": {str(i): t.__getstate__() for i, t in self.added_tokens_decoder.items()},
            "tokenizer_class": type(self).__name__,
        }
        if list(self.model_input_names) != list(type(self).model_input_names):
            config["model_input_names"] = list(self.model_input_names)
        if with_templates and self.chat_template is not None:
            config["chat_template"] = _templates_in_config(self.chat_template)
        return dict(files.as_json(config))

    # ── training ──────────────────────────────────────────────────────────────────────────────────────────────────

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[list[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[Token] | None = None,
        **trainer_options: Any,
    ) -> Self:
        """A new tokenizer of the same kind, with a vocabulary learned from other texts.

        Args:
            text_iterator: texts, or lists of texts.
            vocab_size: tokens of the new vocabulary, special tokens included (they come first).
            length: number of texts, for the progress bar.
            new_special_tokens: special tokens beside the present ones.
            trainer_options: of `tokenizers.trainers.BpeTrainer`, such as ``min_frequency``.
        """
        new = list(new_special_tokens or ())
        trained = retrain(self._backend, text_iterator, vocab_size, length, new, trainer_options)
        other = copy.deepcopy(self)
        other._backend = trained
        other.additional_special_tokens = [*self._additional, *new]
        other.update_post_processor()
        return other


CohereTokenizer = CohereTokenizerFast
"""The name of the class in transformers 5."""


def _one(**named: Any) -> Any:
    """The one of two names of an option that is given, if any."""
    given = {name: value for name, value in named.items() if value is not None}
    if len(given) > 1:
        raise TokenizerError(f"{' and '.join(given)} are one option; give one of them")
    return next(iter(given.values()), None)


def _check_class(name: str | None) -> None:
    if name not in _OWN_CLASSES:
        raise TokenizerError(
            f"these files are of a {name}, not of a CohereTokenizerFast, which would encode differently; pass "
            "tokenizer_class='CohereTokenizerFast' to load them as such nevertheless"
        )


def _templates_by_name(template: ChatTemplate | Sequence[Mapping[str, str]] | None) -> ChatTemplate | None:
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, Mapping):
        return dict(template)
    return {entry["name"]: entry["template"] for entry in template}


def _templates_in_config(template: ChatTemplate) -> str | list[dict[str, str]]:
    if isinstance(template, str):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]


def _without_special(named: Mapping[str, Token | list[Token]]) -> dict[str, Any]:
    """Named tokens as special_tokens_map.json has them: with their properties, "special" excepted."""

    def plain(token: Token) -> Any:
        state = token if isinstance(token, str) else dict(token.__getstate__())
        return {k: v for k, v in state.items() if k != "special"} if isinstance(state, dict) else state

    return {name: [plain(t) for t in v] if name == ADDITIONAL else plain(v) for name, v in named.items()}
