"""A new vocabulary for an existing way of tokenizing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

from quarterdeck.errors import UnsupportedOptionError
from quarterdeck.tokenization.vocabulary import Token


def retrain(
    backend: Tokenizer,
    texts: Iterable[str] | Iterable[list[str]],
    vocab_size: int,
    length: int | None,
    new_special_tokens: Sequence[Token],
    trainer_options: Mapping[str, Any],
) -> Tokenizer:
    """A backend with the normalizer, pre-tokenizer, decoder and added tokens of ``backend``, its merges learned anew.

    Added tokens come first in the new vocabulary, in the order of their old ids, then the byte alphabet, then merges.

    Raises:
        UnsupportedOptionError: the backend is not BPE.
    """
    state = json.loads(backend.to_str())
    kind = state["model"]["type"]
    if kind != "BPE":
        raise UnsupportedOptionError(f"train_new_from_iterator trains BPE tokenizers; this one is {kind}")
    added = [AddedToken(**{k: v for k, v in token.items() if k != "id"}) for token in state.pop("added_tokens")]
    state["model"].update(vocab={}, merges=[])
    state.update(added_tokens=[], post_processor=None)
    trained = Tokenizer.from_str(json.dumps(state))
    is_byte_level = type(backend.decoder).__name__ == "ByteLevel"
    options = {
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet() if is_byte_level else [],
        "show_progress": False,
        **trainer_options,
    }
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[*added, *new_special_tokens], **options)
    trained.train_from_iterator(texts, trainer=trainer, length=length)
    return trained
