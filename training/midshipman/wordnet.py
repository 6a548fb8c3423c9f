"""WordNet's definitions, kinds, synonyms and examples as natural sentences."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.midshipman.prose import tidy

# Kinds of nouns whose rarer members are still worth knowing (file numbers of WordNet's lexicographers):
# animals, artefacts, body parts, food, natural objects, phenomena, plants, substances.
_CONCRETE = {5, 6, 8, 13, 17, 19, 20, 27}


@dataclass(frozen=True)
class Synset:
    """One meaning: its words, the number of times a corpus used it in this meaning, definition and examples."""

    key: str
    kind: str
    topic: int
    words: tuple[str, ...]
    parents: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    count: int


def _counts(path: Path) -> dict[str, int]:
    """Synset key -> how often the tagged corpus used it, from index.sense."""
    kinds = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
    counts: dict[str, int] = defaultdict(int)
    for line in path.read_text(encoding="latin-1").splitlines():
        sense, offset, _, count = line.split()
        counts[kinds[sense.split("%")[1][0]] + offset] += int(count)
    return counts


def _parse(line: str, kind: str, counts: dict[str, int]) -> Synset:
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    n_words = int(fields[3], 16)
    words = tuple(re.sub(r"\(.*\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(n_words))
    pointers = fields[5 + 2 * n_words :]
    parents = tuple(
        kind + pointers[i + 1]
        for i in range(0, len(pointers) - 3, 4)
        if pointers[i] in ("@", "@i") and i // 4 < int(fields[4 + 2 * n_words])
    )
    parts = re.split(r';\s*(?=")', tidy(gloss))
    definition = re.sub(r"^\([^)]*\)\s*", "", parts[0]).strip(" ;")
    examples = tuple(p.strip(' ;"') for p in parts[1:] if p.count('"') == 2)
    key = kind + fields[0]
    return Synset(key, kind, int(fields[1]), words, parents, definition, examples, counts.get(key, 0))


def read(folder: Path) -> list[Synset]:
    """All synsets of the package unpacked in `folder`."""
    base = folder / "package/dict"
    counts = _counts(base / "index.sense")
    files = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
    return [
        _parse(line, kind, counts)
        for kind, name in files.items()
        for line in (base / name).read_text(encoding="latin-1").splitlines()
        if not line.startswith("  ")
    ]


def _article(noun: str) -> str:
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _define(s: Synset, rng: random.Random) -> str:
    """The defining sentence, in a form that fits the part of speech and the definition's first word."""
    word, text = s.words[0], s.definition
    if s.kind == "v":
        return rng.choice((f"To {word} is to {text}.", f"To {word} means to {text}."))
    if s.kind == "n" and re.match(r"an? |any |one of", text):
        if word[0].isupper():
            return f"{word} is {text}."
        return rng.choice((f"{_upper(_article(word))} is {text}.",) * 3 + (f"What is {_article(word)}? It is {text}.",))
    if s.kind == "n" and re.match(r"the ", text):
        return f"{_upper(word)} is {text}."
    return rng.choice((f'The word "{word}" means {text}.', f'"{_upper(word)}" means {text}.'))


def _document(s: Synset, by_key: dict[str, Synset], rng: random.Random) -> str:
    lines = [_define(s, rng)]
    others = [w for w in s.words[1:3] if w.lower() != s.words[0].lower()]
    if others and rng.random() < 0.5:
        lines.append(f"Another word for {s.words[0]} is {others[0]}.")
    parent = by_key.get(s.parents[0]) if s.parents else None
    countable = s.definition.startswith(("a ", "an "))
    if parent and s.kind == "n" and countable and s.words[0].islower() and rng.random() < 0.5:
        lines.append(f"{_upper(_article(s.words[0]))} is a kind of {parent.words[0]}.")
    for example in s.examples[:3]:
        whole = " " in example and len(example) > 18
        if whole and re.match(r"(?:[A-Z]|he |she |they |we |you |the |it |his |her )", example):
            lines.append(_upper(example).rstrip(".") + ("" if example[-1] in "!?" else "."))
        elif whole:
            lines.append(f'For example: "{example}".')
    return " ".join(lines)


def definitions(folder: Path, seed: int) -> Iterator[str]:
    """One short document per common meaning, in random order.

    A meaning is kept when a tagged corpus used it at least once or it has an example, or when it is a concrete noun
    of one word; long, bracketed and Latin-name definitions are left out.
    """
    rng = random.Random(f"wordnet {seed}")
    synsets = read(folder)
    by_key = {s.key: s for s in synsets}
    kept = [s for s in synsets if _wanted(s)]
    rng.shuffle(kept)
    for synset in kept:
        yield _document(synset, by_key, rng)


def _wanted(s: Synset) -> bool:
    plain = len(s.definition) < 160 and not re.search(r"[()\[\]:;`]|\d", s.definition)
    simple_word = re.fullmatch(r"[A-Za-z' -]+", s.words[0]) is not None and len(s.words[0].split()) <= 2
    common = s.count > 0 or bool(s.examples)
    concrete = s.kind == "n" and s.topic in _CONCRETE and s.words[0].islower() and " " not in s.words[0]
    return plain and simple_word and len(s.definition) > 8 and (common or concrete) and s.kind != "r"
