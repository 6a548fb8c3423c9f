"""``quarterdeck run --input``: rows in, rows and answers out, whatever happens on the way."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quarterdeck.cli.answering import Answerer
from quarterdeck.cli.main import main
from quarterdeck.errors import InputError

pytest_plugins = ["checkpoint_fixtures"]

QUESTIONS = ["Where do penguins live?", "How tall\nare they, é?", "Hi"]


@pytest.fixture
def alone(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The answer of a command for one prompt."""

    def run(prompt: str, *options: str) -> str:
        assert main(["run", prompt, "--model", str(checkpoint), "--max-tokens", "8", "--json", *options]) == 0
        text: str = json.loads(capsys.readouterr().out)["text"]
        return text

    return run


def run(checkpoint: Path, *options: str, code: int = 0) -> None:
    assert main(["run", "--model", str(checkpoint), "--max-tokens", "8", *options]) == code


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_rows_keep_their_columns_and_get_the_answers_of_prompts_alone(
    checkpoint: Path, tmp_path: Path, alone: Callable[..., str], ending: str
) -> None:
    rows = [{"id": str(number), "question": text} for number, text in enumerate(QUESTIONS)]
    source = write_table(tmp_path / "in.csv", rows)
    output = tmp_path / f"out.{ending}"
    run(checkpoint, "--input", str(source), "--column", "question", "--output", str(output))
    text = output.read_text(encoding="utf-8")
    found = {
        "csv": lambda: read_table(output),
        "json": lambda: json.loads(text),
        "jsonl": lambda: [json.loads(line) for line in text.splitlines()],
    }[ending]()
    assert found == [{**row, "text": alone(row["question"]), "finish_reason": "MAX_TOKENS"} for row in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Hi\n\nAhoy\n"),
        ("a.json", '["Hi", {"prompt": "Ahoy"}]'),
        ("a.ndjson", '"Hi"\n{"prompt": "Ahoy"}\n'),
        ("a.tsv", "prompt\tn\nHi\t1\nAhoy\t2\n"),
        ("a.csv", "\ufeffonly\r\nHi\r\nAhoy\r\n"),
    ],
)
def test_formats_are_told_by_endings(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    alone: Callable[..., str],
    name: str,
    content: str,
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    run(checkpoint, "--input", str(tmp_path / name))
    found = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert found == [alone("Hi"), alone("Ahoy")]


def test_a_pipe_answers_line_by_line(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, alone: Callable[..., str]
) -> None:
    for options in (["--format", "pipe"], ["--input", "-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAhoy"))
        run(checkpoint, *options, "--task", "text-generation")
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        texts = [alone(text, "--task", "text-generation") for text in ("Hi", "Ahoy")]
        assert [(line["prompt"], line["text"]) for line in lines] == [("Hi", texts[0]), ("Ahoy", texts[1])]


def test_rows_that_fail_are_told_and_the_others_go_on(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ['"Hi"', "{", "7", '{"prompt": ""}', '{"other": "x"}', json.dumps("penguin " * 2000), '"Ahoy"']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    run(checkpoint, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.json"), code=1)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["finish_reason"] for row in found] == ["MAX_TOKENS", *["ERROR"] * 5, "MAX_TOKENS"]
    errors = capsys.readouterr().err
    for number, message in ((2, "not JSON"), (3, "7"), (4, "no text"), (5, "'other'"), (6, "context")):
        assert f"row {number}: " in errors
        assert message in errors
        assert message in found[number - 1]["error"]
    assert "5 of 7 rows failed: 2, 3, 4, 5, 6" in errors


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_an_interrupt_loses_nothing_that_was_done(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (tmp_path / "in.txt").write_text("Hi\nAhoy\nBye\n")
    asked: list[str] = []

    def continuation(self: Answerer, text: str) -> Any:
        asked.append(text)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(self, text)

    whole = Answerer.continuation
    monkeypatch.setattr(Answerer, "continuation", continuation)
    output = tmp_path / f"out.{ending}"
    options = ["--input", str(tmp_path / "in.txt"), "--output", str(output), "--task", "text-generation"]
    run(checkpoint, *options, code=130)
    text = output.read_text()
    prompts = {
        "csv": lambda: [row["prompt"] for row in read_table(output)],
        "json": lambda: [row["prompt"] for row in json.loads(text)],
        "jsonl": lambda: [json.loads(line)["prompt"] for line in text.splitlines()],
    }[ending]()
    assert prompts == ["Hi", "Ahoy"]


def test_a_seed_makes_every_row_as_if_it_were_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], alone: Callable[..., str]
) -> None:
    (tmp_path / "in.txt").write_text("Hi\nHi\nAhoy\n")
    draw = ["--seed", "3", "temperature=1.5"]
    run(checkpoint, "--input", str(tmp_path / "in.txt"), *draw)
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert texts == [alone("Hi", *draw), alone("Hi", *draw), alone("Ahoy", *draw)]
    assert texts[0] != alone("Hi")


def test_files_are_not_overwritten_unless_one_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("Hi\n")
    output.write_text("mine\n" * 100)
    line = ["--input", str(source), "--output", str(output)]
    run(checkpoint, *line, code=1)
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text() == "mine\n" * 100
    run(checkpoint, *line, "--overwrite")
    assert len(output.read_text().splitlines()) == 1
    rows = tmp_path / "rows.jsonl"
    rows.write_text('"Hi"\n')
    run(checkpoint, "--input", str(rows), "--output", str(rows), "--overwrite", code=1)
    assert rows.read_text() == '"Hi"\n'


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text\nHi\n", [], "--output-column"),
        ("a,b\nHi,1\n", [], "--column"),
        ("a,b\nHi,1\n", ["--column", "c"], "'c'"),
        ("a,a\nHi,1\n", [], "each differently"),
        ("", [], "no rows"),
        ("a\n", [], "no rows"),
        ('a\n"Hi', [], "not CSV"),
    ],
)
def test_input_that_cannot_be_meant_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, options: list[str], message: str
) -> None:
    (tmp_path / "in.csv").write_text(content)
    line = ["run", "--model", str(tmp_path / "missing"), "--input", str(tmp_path / "in.csv"), *options]
    assert main(line) in (1, 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        ["x", "--input", "a.txt"],
        ["x", "--output", "a.jsonl"],
        ["x", "--column", "a"],
        ["x", "--overwrite"],
        ["x", "--format", "csv"],
        ["--input", "a.txt", "--json"],
        ["--input", "a.txt", "--overwrite"],
        ["--input", "a.txt", "--format", "pipe"],
        ["--input", "a.txt", "--output", "a.txt"],
        ["--input", "a.txt", "--output", "answers"],
        ["--format", "pipe", "--documents", "-"],
    ],
    ids=" ".join,
)
def test_options_of_rows_that_do_not_go_together(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *line]) == 2
    assert capsys.readouterr().err


def test_a_table_keeps_citations_as_json(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.csv").write_text("prompt\nWhere?\n")
    (tmp_path / "d.json").write_text('["Penguins live in Antarctica."]')

    def fail(*_: Any, **__: Any) -> Any:
        raise InputError("nothing to say")

    monkeypatch.setattr(Answerer, "raw", fail)
    options = ["--input", str(tmp_path / "in.csv"), "--documents", str(tmp_path / "d.json")]
    run(checkpoint, *options, "--output", str(tmp_path / "out.csv"), code=1)
    (row,) = read_table(tmp_path / "out.csv")
    assert list(row) == ["prompt", "text", "finish_reason", "citations"]


def test_another_tokenizer_and_configuration(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], alone: Callable[..., str]
) -> None:
    config = json.loads((checkpoint / "config.json").read_text()) | {"logit_scale": 0.5, "max_position_embeddings": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "in.txt").write_text("Hi\n")
    others = ["--config", str(tmp_path), "--tokenizer", str(checkpoint)]
    assert alone("Hi", "--tokenizer", str(checkpoint)) == alone("Hi")
    line = ["run", "word " * 30, "--task", "text-generation", "--model", str(checkpoint), *others]
    assert main(line) == 1  # the context is that of the other configuration
    assert "24" in capsys.readouterr().err
