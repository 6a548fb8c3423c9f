"""The scripts that make midshipman's own texts, vocabulary and token files (training/midshipman)."""

from __future__ import annotations

import importlib
import json
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import pytest
from tokenizers import Tokenizer

from quarterdeck.chat.prompts.families import jinja_template

ROOT = Path(__file__).resolve().parents[1]


class Importer(Protocol):
    def __call__(self, name: str) -> ModuleType: ...


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Importer:
    """Import a module of training/midshipman, which is no part of the installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"training.midshipman.{name}")


def test_own_texts_are_the_same_for_the_same_seed(script: Importer) -> None:
    prepare = script("prepare")
    assert prepare.own_texts(20, 10, 20, seed=5) == prepare.own_texts(20, 10, 20, seed=5)
    assert prepare.own_texts(20, 10, 20, seed=5) != prepare.own_texts(20, 10, 20, seed=6)


def test_own_texts_are_clean_sentences(script: Importer) -> None:
    texts = script("prepare").own_texts(300, 200, 300, seed=1)
    for text in texts["explanations"] + texts["stories"]:
        assert not re.search(r"[{}|<>~]|  | [.,;:!?]|^[a-z]", text), text
        assert text[-1] in '.!?"', text
    for text in texts["chat"]:
        assert not re.search(r"[{}~]|  ", text), text


def test_every_phrase_line_has_balanced_braces_and_known_slots(script: Importer) -> None:
    grammar = script("grammar")
    for name in ("topics.txt", "stories.txt", "chat.txt"):
        for block in grammar.blocks(name):
            lines = block.lines + [line for tagged in block.tagged.values() for line in tagged]
            assert lines, block.name
            for line in lines:
                assert line.count("{") == line.count("}"), line
                assert set(re.findall(r"<(\w+)>", line)) <= set(grammar.words()), line


def test_a_slot_keeps_its_word_within_a_story(script: Importer) -> None:
    slots: dict[str, str] = {}
    grammar = script("grammar")
    line = grammar.spin("<girl> saw <girl> and {<girl>|<girl>}", random.Random(0), slots)
    assert line == "{0} saw {0} and {0}".format(slots["girl"])


def test_conversations_have_the_shape_of_the_chat_template(script: Importer) -> None:
    chat = script("chat")
    turn = r"<\|START_OF_TURN_TOKEN\|><\|{}_TOKEN\|>[^<]+<\|END_OF_TURN_TOKEN\|>"
    form = f"(?:{turn.format('SYSTEM')})?(?:{turn.format('USER')}{turn.format('CHATBOT')})+"
    for text in chat.conversations(200, [("France", "Paris")], [("a dog", "A dog is an animal.")], seed=2):
        assert re.fullmatch(form, text), text


def test_the_acceptance_prompt_is_held_out(script: Importer) -> None:
    prepare = script("prepare")
    assert not prepare.allowed("Plants create energy through a process known as photosynthesis.")
    assert prepare.allowed("Plants make their own food through a process known as photosynthesis.")


def test_smoke_data_needs_no_network_and_has_the_documented_form(script: Importer, tmp_path: Path) -> None:
    prepare = script("prepare")
    texts = prepare.own_texts(60, 20, 40, seed=1)
    table = prepare.build(texts, tmp_path, seed=1)
    assert json.loads((tmp_path / "manifest.json").read_text())["families"] == table
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 8192
    assert tokenizer.token_to_id("<|START_OF_TURN_TOKEN|>") == 8163
    for family, row in table.items():
        ids = np.fromfile(tmp_path / f"{family}.bin", dtype="<u2")
        assert len(ids) == row["train_tokens"]
        assert ids[0] == 5
        assert ids[-1] == 8164
        starts = np.flatnonzero(ids == 5)
        assert (ids[starts[1:] - 1] == 8164).all()
        documents = [tokenizer.decode(part, skip_special_tokens=False) for part in np.split(ids, starts[1:])[:5]]
        own = {"<BOS_TOKEN>" + d.removesuffix("<|END_OF_TURN_TOKEN|>") + "<|END_OF_TURN_TOKEN|>" for d in texts[family]}
        assert set(documents) <= own


def test_phrases_read_from_outside_texts_are_put_into_sentences(script: Importer) -> None:
    prose = script("prose")
    profile = {
        "Government": {
            "Country name": {"conventional short form": {"text": "Freedonia"}},
            "Capital": {"name": {"text": "Rufus (new); old one"}},
        },
        "Geography": {"Climate": {"text": "mild; wet winters (cold in 2015)"}},
    }
    assert prose.country_name(profile) == "Freedonia"
    assert prose.capital(profile) == "Rufus"
    assert list(prose._phrases("Freedonia", profile)) == ["The climate of Freedonia is mild, wet winters."]


def test_the_curve_is_a_drawing_of_both_losses(script: Importer) -> None:
    log = [{"tokens": t, "loss": 9.0 - t, "held_out": {"a": 8.0, "b": 6.0}} for t in range(1, 5)]
    picture = script("curve").draw(log)
    assert picture.startswith("<svg ")
    assert picture.count('fill="none"') == 2


def test_the_chat_template_is_the_packaged_default_one(script: Importer, tmp_path: Path) -> None:
    export = script("export")
    export.write_template(tmp_path)
    written = (tmp_path / "chat_template.jinja").read_bytes()
    assert written == (export.ASSETS / "chat_template.jinja").read_bytes()
    assert written.decode() == jinja_template("default")
