"""The tokenizer: byte-level BPE of 8192 entries in the order of Cohere's vocabularies, trained on our own data.

Ids 0-7 are the control tokens, 8-263 the bytes, then the merges, and the last 29 are the chat tokens, so that
`<|START_OF_TURN_TOKEN|>` is 8163. Only names and layout follow Cohere; no entry is taken from their files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SIZE = 8192
CONTROL = ("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<EOP_TOKEN>")
_NAMES = (
    "START_OF_TURN",
    "END_OF_TURN",
    "YES",
    "NO",
    "GOOD",
    "BAD",
    "USER",
    "CHATBOT",
    "SYSTEM",
    *(f"USER_{i}" for i in range(10)),
    *(f"EXTRA_{i}" for i in range(10)),
)
CHAT = tuple(f"<|{name}_TOKEN|>" for name in _NAMES)
BOS_ID, END_OF_TURN_ID = 5, SIZE - len(CHAT) + 1
END_OF_TURN = "<|END_OF_TURN_TOKEN|>"


def _pieces(merges: Iterable[list[str]], alphabet: list[str]) -> dict[str, int]:
    """Vocabulary in the wanted order: control tokens, bytes, merges."""
    order = [*CONTROL, *alphabet, *("".join(pair) for pair in merges)]
    return {piece: i for i, piece in enumerate(order)}


def _with_specials(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<BOS_TOKEN> $A", pair="<BOS_TOKEN> $A $B:1", special_tokens=[("<BOS_TOKEN>", BOS_ID)]
    )
    return tokenizer


def train(texts: Iterable[str], size: int = SIZE) -> Tokenizer:
    """Learn the merges from `texts` and lay the vocabulary out in Cohere's order."""
    learner = _with_specials(Tokenizer(models.BPE()))
    learner.post_processor = processors.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    budget = size - len(CONTROL) - len(CHAT)
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=budget, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    )
    merges = json.loads(learner.to_str())["model"]["merges"]
    missing = budget - len(alphabet) - len(merges)
    vocabulary = _pieces(merges, alphabet)
    for i in range(missing):  # a tiny training text has too few merges: keep the size, with entries never used
        vocabulary[f"<unused_{i}>"] = len(vocabulary)
    tokenizer = _with_specials(Tokenizer(models.BPE(vocab=vocabulary, merges=[(a, b) for a, b in merges])))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    for token in CHAT:
        special = token == END_OF_TURN
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    if tokenizer.get_vocab_size() != size:
        raise RuntimeError(f"the vocabulary has {tokenizer.get_vocab_size()} entries instead of {size}")
    return tokenizer
