"""Make the training data: documents of every family, the vocabulary, and one token file per family.

    python -m training.midshipman.prepare --out training/runs/midshipman/data
    python -m training.midshipman.prepare --out ... --smoke      own texts only, small, offline, in seconds

A token file (`<family>.bin`) is a flat array of little-endian uint16 ids. Every document is
`<BOS_TOKEN> text <|END_OF_TURN_TOKEN|>`; one document in a hundred goes to `<family>.held_out.bin` instead.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.midshipman import chat, grammar, prose, sources, vocabulary, wordnet

# Never trained on in these very words: the prompts that the acceptance test and the model card use.
HELD_OUT_PHRASES = ("plants create energy through a process",)
Documents = dict[str, list[str]]


def own_texts(
    explanations: int, stories: int, conversations: int, seed: int, capitals: chat.Facts = (), meanings: chat.Facts = ()
) -> Documents:
    """The families that we write ourselves."""
    return {
        "explanations": list(grammar.explanations(explanations, seed)),
        "stories": list(grammar.stories(stories, seed)),
        "chat": list(chat.conversations(conversations, capitals, meanings, seed)),
    }


def capitals_of(folder: Path) -> list[tuple[str, str]]:
    pairs = ((prose.country_name(p), prose.capital(p)) for p in prose.profiles(folder))
    return [(country, city) for country, city in pairs if country and city]


def _meanings(definitions: Iterable[str]) -> list[tuple[str, str]]:
    """("a penguin", "A penguin is ...") from the definitions that begin with an article."""
    found = []
    for text in definitions:
        first = prose.sentences(text)[0]
        match = re.match(r"(An? [a-z]+) is an? ", first)
        if match and len(first) < 110:
            found.append((match.group(1)[0].lower() + match.group(1)[1:], first))
    return found


def capital_sentences(capitals: chat.Facts, count: int, seed: int) -> Iterator[str]:
    """Small paragraphs that name a few capitals."""
    rng = random.Random(f"capitals {seed}")
    forms = ("The capital of {c} is {t}.", "{t} is the capital of {c}.", "{t} is the capital city of {c}.")
    for _ in range(count):
        yield " ".join(rng.choice(forms).format(c=c, t=t) for c, t in rng.sample(list(capitals), 4))


def all_texts(seed: int) -> Documents:
    """Every family, outside sources included (fetched on the first call)."""
    stdlib = sources.unpack(sources.STDLIB)
    profiles = sources.unpack(sources.FACTBOOK)
    definitions = list(wordnet.definitions(sources.unpack(sources.WORDNET), seed))
    capitals = capitals_of(profiles)
    return {
        "definitions": definitions,
        "countries": [*prose.factbook(profiles), *capital_sentences(capitals, 400, seed)],
        "manual": list(prose.python_manual(sources.unpack(sources.PYTHON_DOC))),
        "speeches": list(prose.speeches(stdlib)),
        "moby_dick": list(prose.moby_dick(stdlib)),
        **own_texts(22000, 8000, 16000, seed, capitals, _meanings(definitions)),
    }


def allowed(text: str) -> bool:
    """False for a document that holds one of the held-out phrases."""
    return not any(phrase in text.lower() for phrase in HELD_OUT_PHRASES)


def split(documents: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Shuffled documents: those to train on, and every hundredth held out."""
    kept = [text for text in documents if allowed(text)]
    random.Random(f"split {seed}").shuffle(kept)
    return [d for i, d in enumerate(kept) if i % 100], kept[::100]


def encode(tokenizer: Tokenizer, documents: list[str], path: Path) -> int:
    """Write one token file; the number of tokens in it. A document that ends a turn itself gets no second end."""
    with path.open("wb") as file:
        total = 0
        for start in range(0, len(documents), 1000):
            for coded in tokenizer.encode_batch(documents[start : start + 1000]):
                ids = (
                    coded.ids if coded.ids[-1] == vocabulary.END_OF_TURN_ID else [*coded.ids, vocabulary.END_OF_TURN_ID]
                )
                file.write(np.asarray(ids, dtype="<u2").tobytes())
                total += len(ids)
    return total


def build(texts: Documents, out: Path, seed: int) -> dict[str, dict[str, int]]:
    """Vocabulary and token files of all families under `out`; a table of their sizes (also manifest.json)."""
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"vocabulary {seed}")
    sample = [d for family in texts.values() for d in rng.sample(family, min(len(family), 12000))]
    plain = (re.sub(r"<\|[A-Z_0-9]+\|>", "\n", d) for d in sample)
    tokenizer = vocabulary.train(plain)
    tokenizer.save(str(out / "tokenizer.json"))
    table: dict[str, dict[str, int]] = {}
    for family, documents in texts.items():
        train, held_out = split(documents, seed)
        table[family] = {
            "documents": len(documents),
            "characters": sum(map(len, documents)),
            "train_tokens": encode(tokenizer, train, out / f"{family}.bin"),
            "held_out_tokens": encode(tokenizer, held_out, out / f"{family}.held_out.bin"),
        }
    (out / "manifest.json").write_text(json.dumps({"seed": seed, "families": table}, indent=2) + "\n")
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json and the token files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a few own texts only: offline, in seconds")
    args = parser.parse_args()
    texts = own_texts(300, 100, 200, args.seed) if args.smoke else all_texts(args.seed)
    for family, row in build(texts, args.out, args.seed).items():
        print(f"{family:14s}" + "".join(f"{name} {value:>9,d}   " for name, value in row.items()))


if __name__ == "__main__":
    main()
