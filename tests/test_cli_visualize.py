"""``quarterdeck visualize``: what it draws is what the library draws; errors say what does not go together."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quarterdeck import AttentionMaskVisualizer
from quarterdeck.cli.main import main

pytest_plugins = ["checkpoint_fixtures"]

Run = Callable[..., str]
TEXT = "Emperor penguins"
CHAT = [{"role": "user", "content": "Where?"}]


@pytest.fixture
def run(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str, code: int = 0) -> str:
        assert main(["visualize", "--model", str(checkpoint), *arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return call


def test_draws_what_the_library_draws(run: Run, checkpoint: Path) -> None:
    ours = AttentionMaskVisualizer(str(checkpoint))
    assert run(TEXT, "--width", "90") == ours.view(TEXT).text(90) + "\n"
    assert run(TEXT, "more", "--padding", "left", "--width", "90") == (
        ours.view([TEXT, "more"], padding="left").text(90) + "\n"
    )
    assert run(TEXT, "more", "--packed", "--format", "svg") == ours.view(packed=[TEXT, "more"]).svg()
    assert run(TEXT, "--past", "-1", "--max-cache-len", "30", "--format", "html") == (
        ours.view(TEXT, past=-1, max_cache_len=30).html()
    )
    assert run(TEXT, "--layer", "1", "--head", "0", "--format", "svg", "--theme", "dark") == (
        ours.view(TEXT, layer=1, head=0).svg("dark")
    )


def test_prints_what_transformers_prints(run: Run, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AttentionMaskVisualizer(str(checkpoint))(TEXT)
    expected = capsys.readouterr().out
    assert run(TEXT, "--format", "transformers") == expected


def test_chat_and_documents_come_from_files(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, documents, picture = (tmp_path / name for name in ("chat.json", "documents.json", "picture.svg"))
    chat.write_text(json.dumps(CHAT), encoding="utf-8")
    documents.write_text(json.dumps([{"text": "South."}]), encoding="utf-8")
    ours = AttentionMaskVisualizer(str(checkpoint))
    run("--chat", str(chat), "--documents", str(documents), "--output", str(picture))
    expected = ours.view(CHAT, documents=[{"text": "South."}]).svg()
    assert picture.read_text(encoding="utf-8") == expected
    assert "Document: 0" in expected
    assert run("Where?", "--documents", str(documents), "--format", "svg") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(CHAT)))
    assert run("--chat", "-", "--format", "svg") == ours.view(CHAT).svg()


def test_standard_input_is_the_text(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe\n"))
    assert run("--format", "svg") == AttentionMaskVisualizer(str(checkpoint)).view("from a pipe").svg()
    monkeypatch.setattr(sys, "stdin", io.StringIO("  \n"))
    assert "a text is empty" in run(code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--output", "picture.png"], "does not say the format"),
        (["a", "--theme", "dark"], "--theme is for SVG"),
        (["a", "--format", "svg", "--width", "80"], "--width is for text"),
        (["a", "--dtype", "float32"], "only --weights, --layer and --head do"),
        (["a", "--chat", "chat.json"], "in place of TEXT"),
        (["a", "--packed", "--documents", "d.json"], "--packed is for texts"),
        (["a", "b", "--documents", "d.json"], "ground one TEXT"),
        (["--documents", "-"], "TEXT has to be an argument"),
        (["a", "b", "--format", "transformers"], "takes one TEXT"),
        (["a", "--format", "transformers", "--head", "0"], "nothing else goes with it"),
        (["a", "--layer", "x"], "whole number"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], message: str) -> None:
    assert message in run(*arguments, code=2)


def test_failures_are_one_message(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "chat.json"
    broken.write_text("[", encoding="utf-8")
    assert "is no JSON" in run("--chat", str(broken), code=1)
    broken.write_text('["a"]', encoding="utf-8")
    assert "JSON list of messages" in run("--chat", str(broken), code=1)
    assert "layer is 7, but must be in 0 to 1" in run("a", "--layer", "7", code=1)
    assert "No such file" in run("--chat", str(tmp_path / "none.json"), code=1)


def test_the_embedded_model_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visualize", "Ahoy", "--width", "60"]) == 0
    assert "Attention mask · midshipman" in capsys.readouterr().out
