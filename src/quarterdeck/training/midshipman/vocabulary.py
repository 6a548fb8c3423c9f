"""The tokenizer: byte-level BPE of 8192 entries in the order of Cohere's vocabularies, trained on our own data.

Ids 0-7 are the control tokens, 8-263 the bytes, then the merges, and the last 29 are the chat tokens, so that
`<|START_OF_TURN_TOKEN|>` is 8163. Only names and layout follow Cohere; no entry is taken from their files.

A word is spelled by the same tokens wherever it stands: after a space, at the start of a line, of a citation, of a
JSON string, inside a tool's name. So a name is copied token by token; if the space before it were part of its first
token, as in most vocabularies, a small model would have to respell every name that it cites. Therefore merges are
learned from words without the space before them, and a space is joined, last of all, only to the commonest words that
hardly ever stand without one (" of", " is"). What is left to respell are words that begin with one of those and are no
token as a whole (" not" + "ify").
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SIZE = 8192
JOINED = 512
"""How many words, at most, have a token with the space before them."""
AFTER_SPACE = 0.97
"""How often such a word stands after a space."""
REPEATS = 100
"""How many repetitions of a text count: fixed texts, which come with every prompt, are not to decide everything."""
_SPACE = "\u0120"
"""How byte-level BPE writes a space."""
_WORD = re.compile(r"( ?)\b([^\W\d_]{2,}|a)\b")
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


class _Words:
    """Counts the words of texts on their way: all of them, and those that follow a space."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._spaced: Counter[str] = Counter()

    def of(self, texts: Iterable[str]) -> Iterator[str]:
        """The same texts."""
        for text in texts:
            self._seen[text] += 1
            for space, word in _WORD.findall(text) if self._seen[text] <= REPEATS else ():
                self._all[word] += 1
                if space:
                    self._spaced[word] += 1
            yield text

    def mostly_spaced(self) -> Iterator[str]:
        """Words that hardly ever stand without a space before them, the commonest first."""
        return (word for word, n in self._spaced.most_common() if n >= AFTER_SPACE * self._all[word])


def _learned(texts: Iterable[str], size: int) -> list[list[str]]:
    """Merges of words without the space before them."""
    learner = _with_specials(Tokenizer(models.BPE()))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" (?=\p{L})"), behavior="isolated"), learner.pre_tokenizer]
    )
    learner.post_processor = processors.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    )
    merges: list[list[str]] = json.loads(learner.to_str())["model"]["merges"]
    return merges


def train(texts: Iterable[str], size: int = SIZE) -> Tokenizer:
    """Learn the merges from `texts` and lay the vocabulary out in Cohere's order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    budget = size - len(CONTROL) - len(CHAT)
    words = _Words()
    merges = _learned(words.of(texts), budget - JOINED)
    whole = {*alphabet, *("".join(pair) for pair in merges)}
    joined = [word for word in words.mostly_spaced() if word in whole][:JOINED]
    merges += [[_SPACE, word] for word in joined]
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
