"""Make what training needs besides the generator: passages of outside texts, facts, and the vocabulary.

    python -m training.midshipman.prepare --out training/runs/midshipman/data
    python -m training.midshipman.prepare --out ... --smoke      our own texts only: small, offline, in seconds

Writes passages.jsonl (sentences to ask about), texts.jsonl (plain texts), knowledge.json (capitals, meanings of words)
and tokenizer.json. With --jargon it writes the held-out corpus instead, from the Jargon File, which nothing is
trained on: src/quarterdeck/training/midshipman/held_out.jsonl was made so.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer

from quarterdeck.chat.messages import Message, Tool
from quarterdeck.chat.template import render
from quarterdeck.training.midshipman import vocabulary
from quarterdeck.training.midshipman.described import HELD_OUT
from quarterdeck.training.midshipman.example import Example, segments
from quarterdeck.training.midshipman.grammar import blocks, explanation
from quarterdeck.training.midshipman.mixture import Materials, Mixture
from quarterdeck.training.midshipman.natural import Passage, is_good_sentence, write_passages
from training.midshipman import prose, sources, wordnet

# Never trained on in these very words: the prompts that the acceptance test and the model card use.
HELD_OUT_PHRASES = ("plants create energy through a process", *HELD_OUT)
_CRUDE = re.compile(
    r"fuck|shit|damn|\bass|crap|sex|porn|penis|breast|bitch|whore|bastard|nazi|hitler|rape|suck|piss|turd|drug|gay|"
    r"lesbian|kill|suicide|murder|slave|negro|savage",
    re.IGNORECASE,
)


def allowed(text: str) -> bool:
    """False for a text that holds one of the held-out phrases."""
    return not any(phrase in text.lower() for phrase in HELD_OUT_PHRASES)


def capitals_of(folder: Path) -> list[tuple[str, str]]:
    """(country, capital) of the country profiles."""
    pairs = ((prose.country_name(p), prose.capital(p)) for p in prose.profiles(folder))
    return [(country, city) for country, city in pairs if country and city]


def meanings_of(definitions: Iterable[str]) -> list[tuple[str, str]]:
    """("a penguin", "A penguin is ...") from the definitions that begin with an article."""
    found = []
    for text in definitions:
        first = prose.sentences(text)[0]
        match = re.match(r"(An? [a-z]+) is an? ", first)
        if match and len(first) < 110:
            found.append((match.group(1)[0].lower() + match.group(1)[1:], first))
    return found


def passages_of(source: str, titles: Iterable[tuple[str, str]]) -> Iterator[Passage]:
    """Passages of up to six sentences that can be asked about, from (title, text)."""
    for title, text in titles:
        if not allowed(text):
            continue
        run: list[str] = []
        for sentence in [*prose.sentences(text), ""]:
            if sentence.startswith("For example"):
                continue
            if is_good_sentence(sentence) and len(run) < 6 and not _CRUDE.search(sentence):
                run.append(sentence)
            elif run:
                yield Passage(source, title, tuple(run))
                run = []


def _titled(texts: Iterable[str], title: str) -> Iterator[tuple[str, str]]:
    for number, text in enumerate(texts, start=1):
        yield f"{title}, part {number}" if number % 3 else title, text


def _definition_titles(definitions: Iterable[str]) -> Iterator[tuple[str, str]]:
    for text in definitions:
        match = re.match(r"(?:An? |To |The )?\"?([\w' -]+?)\"? (?:is|are|means)\b", text)
        title = match[1][0].upper() + match[1][1:] if match else ""
        yield title if title not in ("", "What") else "Dictionary", text


def outside_materials(seed: int) -> tuple[list[Passage], list[str], dict[str, list[tuple[str, str]]]]:
    """Passages, plain texts and facts of all sources (fetched on the first call)."""
    stdlib, profiles = sources.unpack(sources.STDLIB), sources.unpack(sources.FACTBOOK)
    definitions = list(wordnet.definitions(sources.unpack(sources.WORDNET), seed))
    manual = list(prose.python_manual(sources.unpack(sources.PYTHON_DOC)))
    countries, whale = list(prose.factbook(profiles)), list(prose.moby_dick(stdlib))
    speeches = list(prose.speeches(stdlib))
    rng = random.Random(f"passages {seed}")
    passages = [
        *passages_of("wordnet", _definition_titles(rng.sample(definitions, min(len(definitions), 20000)))),
        *passages_of("factbook", _titled(countries, "World Factbook")),
        *passages_of("manual", _titled(manual, "Python manual")),
        *passages_of("speeches", _titled(speeches, "State of the Union")),
        *passages_of("moby_dick", _titled(whale, "Moby-Dick")),
    ]
    texts = [*rng.sample(definitions, min(len(definitions), 12000)), *countries, *manual, *speeches, *whale]
    facts = {"capitals": capitals_of(profiles), "meanings": meanings_of(definitions)}
    return passages, [text for text in texts if allowed(text)], facts


def own_materials(seed: int) -> tuple[list[Passage], list[str], dict[str, list[tuple[str, str]]]]:
    """The same of our own texts, for a smoke test without a network."""
    rng = random.Random(f"own {seed}")
    topics = [(block.name.capitalize(), explanation(block, rng)) for block in blocks("topics.txt") for _ in range(4)]
    facts = {
        "capitals": [("Freedonia", "Rufus"), ("Sylvania", "Trentino")],
        "meanings": [("a mast", "A mast is a pole.")],
    }
    return list(passages_of("topics", topics)), [text for _, text in topics if allowed(text)], facts


def fixed_texts() -> list[str]:
    """The prompts of all formats without anything in them: every word of these texts is to be a token."""
    tool = Tool("f", "", {"type": "object", "properties": {}})
    asked = [Message("user", "a")]
    modes = ("accurate", "fast", "off")
    prompts = [render(asked, documents=[], citation_mode=mode) for mode in modes]
    prompts += [
        render(asked, tools=[tool], citation_mode=mode, multi_step=steps) for mode in modes for steps in (True, False)
    ]
    written = (
        'Plan: Reflection: Action: ```json\n[\n    {\n        "tool_name": "f",\n        "parameters": {\n            '
        '"a": "b",\n            "c": 1\n        }\n    }\n]\n```\nRelevant Documents: 0,1\nCited Documents: None\n'
        "Answer: a\nGrounded answer: <co: 0>a</co: 0> Document: 0\ntitle: a\ntext: b\nsnippet: c\nurl: https://a\n"
        "Title: Text:"
    )
    return [*(text for prompt in prompts for kind, text in prompt.parts if kind == "text"), written]


def vocabulary_texts(mixture: Mixture, examples: int, seed: int) -> Iterator[str]:
    """Texts of the mixture as it is in the middle of training; the fixed ones so often that all their words count."""
    fixed = fixed_texts()
    yield from itertools.chain.from_iterable(itertools.repeat(fixed, max(20, examples // 25)))
    for _, example in itertools.islice(mixture.examples(random.Random(f"vocabulary {seed}"), 0.6), examples):
        if isinstance(example, Example):
            yield from (text for kind, text, _ in segments(example, compact=True) if kind == "text")


def train_vocabulary(folder: Path, examples: int, seed: int) -> Tokenizer:
    """Learn and write tokenizer.json from what is in the folder."""
    mixture = Mixture(Materials.read(folder))
    plain = (re.sub(r"<\|[A-Z_0-9]+\|>", "\n", text) for text in vocabulary_texts(mixture, examples, seed))
    tokenizer = vocabulary.train(plain)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def build(out: Path, *, smoke: bool, seed: int, examples: int) -> dict[str, int]:
    """Write everything; how much of each there is."""
    out.mkdir(parents=True, exist_ok=True)
    passages, texts, facts = own_materials(seed) if smoke else outside_materials(seed)
    counts = {"passages": write_passages(passages, out / "passages.jsonl"), "texts": len(texts)}
    lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
    (out / "texts.jsonl").write_text(lines, encoding="utf-8")
    (out / "knowledge.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
    train_vocabulary(out, examples, seed)
    return counts | {name: len(pairs) for name, pairs in facts.items()}


def jargon_passages(folder: Path) -> list[Passage]:
    """Entries of the Jargon File in decent words: the corpus that is held out."""
    packed = next(folder.rglob("jargon.dict.dz")).read_bytes()
    text = gzip.decompress(packed).decode("utf-8")
    entries = re.split(r"\n(?=\S)", text)
    titled = []
    for entry in entries:
        title, _, body = entry.partition("\n")
        plain = prose.tidy(
            re.sub(r"[{}]", "", re.sub(r"\[[^\]]*\]|^ [a-z]+\.[a-z. ,]*$", "", body, flags=re.MULTILINE))
        )
        if re.fullmatch(r"[A-Za-z][\w' -]{2,30}", title.strip()) and not _CRUDE.search(entry):
            titled.append((title.strip(), re.sub(r"(?:^|(?<=[.!?)] ))(?:\d\. ?|[a-z]+\. )+", "", plain)))
    return list(passages_of("jargon", titled))


def write_held_out(path: Path, count: int, seed: int) -> int:
    """Some hundred passages of the Jargon File."""
    passages = [one for one in jargon_passages(sources.unpack(sources.JARGON)) if len(one.sentences) >= 2]
    chosen = random.Random(f"jargon {seed}").sample(passages, min(count, len(passages)))
    return write_passages(chosen, path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; a file with --jargon")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=60_000, help="how many the vocabulary is learned from")
    parser.add_argument("--smoke", action="store_true", help="our own texts only: offline, in seconds")
    parser.add_argument("--jargon", action="store_true", help="write the held-out corpus")
    args = parser.parse_args()
    if args.jargon:
        print(write_held_out(args.out, 400, args.seed), "passages")
    else:
        examples = min(args.examples, 2000) if args.smoke else args.examples
        print(build(args.out, smoke=args.smoke, seed=args.seed, examples=examples))


if __name__ == "__main__":
    main()
