"""What stands around the command line: terminals, streams that are closed, interrupts, devices that do not exist."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from quarterdeck import AutoModelForCausalLM, AutoTokenizer
from quarterdeck import __main__ as program
from quarterdeck.cli.answering import Answerer
from quarterdeck.cli.conversation import Conversation
from quarterdeck.cli.main import main
from quarterdeck.cli.rich_terminal import RichTerminal, has_person
from quarterdeck.cli.session import Session
from quarterdeck.cli.session_help import HELP
from quarterdeck.cli.terminal import PlainTerminal

pytest_plugins = ["checkpoint_fixtures"]

MISCHIEF = "a\x1b]0;title\x07\x9b31m\x08b\tc\n"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Written(SimpleNamespace):
    finish_reason = "COMPLETE"

    def __iter__(self) -> Iterator[str]:
        return iter(["a\x1b]0;ti", "tle\x07\x9b31m", "\x08b\tc\n"])


@pytest.mark.parametrize(("kind", "expected"), [(Screen, "a]0;title31mb\tc\n"), (io.StringIO, MISCHIEF)])
def test_a_continuation_cannot_steer_the_terminal(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, kind: type[io.StringIO], expected: str
) -> None:
    output = kind()
    monkeypatch.setattr(Answerer, "continuation", lambda self, text: Written())
    monkeypatch.setattr(sys, "stdout", output)
    assert main(["run", "--task", "text-generation", "--model", str(checkpoint), "x"]) == 0
    assert output.getvalue().split() == expected.split()


@pytest.mark.skipif(sys.platform == "win32", reason="closes streams in the way of POSIX shells")
@pytest.mark.parametrize(
    ("line", "closed", "code", "errors"),
    [
        (["env"], ">&-", 0, ""),
        (["--version"], ">&-", 0, ""),
        (["env"], "<&- >&- 2>&-", 0, ""),
        (["run"], "<&-", 2, "quarterdeck: the prompt is empty"),
        (["chat", "CHECKPOINT"], "<&-", 0, ""),
    ],
)
def test_closed_streams_are_empty_ones(
    checkpoint: Path, line: Sequence[str], closed: str, code: int, errors: str
) -> None:
    words = [sys.executable, "-m", "quarterdeck", *(str(checkpoint) if w == "CHECKPOINT" else w for w in line)]
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(errors)
    assert len(done.stderr.splitlines()) == bool(errors)


def test_an_interrupt_while_importing_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "quarterdeck.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "quarterdeck.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Impatient(), *sys.meta_path])
    assert program.main() == 130


def test_the_installed_program_is_the_module() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'quarterdeck = "quarterdeck.__main__:main"' in text


def test_a_device_that_does_not_exist_is_one_short_message(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "x", "--model", str(checkpoint), "--device", "foo"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("quarterdeck: there is no kind of device 'foo': give 'cpu'")
    assert len(errors) < 120


# -- terminals -------------------------------------------------------------------------------------------


@dataclass
class Interrupt:
    """Ctrl-C with so much in the line."""

    typed: str


class Typist:
    """An editor in which this is written."""

    def __init__(self, *lines: str | Interrupt) -> None:
        self._lines = iter(lines)
        self.has_text = False

    def read(self) -> str:
        line = next(self._lines, None)
        if isinstance(line, Interrupt):
            self.has_text = bool(line.typed)
            raise KeyboardInterrupt
        if line is None:
            raise EOFError
        return line


def console(output: io.StringIO) -> Console:
    return Console(file=output, force_terminal=True, color_system="truecolor", highlight=False, width=20)


def test_a_person_sees_prompts_and_colours(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.generation_config.update(max_new_tokens=12)
    answerer = Answerer(model, AutoTokenizer.from_pretrained(checkpoint), model.generation_config)
    output = io.StringIO()
    Session(Conversation(answerer), RichTerminal(console(output), Typist("Where do penguins live?", "!bogus"))).run()
    shown = output.getvalue()
    assert "model> " in shown
    assert "\x1b[31mthere is no command !bogus" in shown


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    output = io.StringIO()
    terminal = RichTerminal(console(output))
    terminal.write("[red]a[/red]\x1b]0;title\x07\x9b31m\x08b\tc\nd é\u200d🐧")
    assert output.getvalue() == "[red]a[/red]]0;title31mb        c\nd é\u200d🐧"
    output.truncate(0)
    terminal.end_answer(stopped=True)
    assert "[stopped]" in output.getvalue()


def test_a_plain_terminal_cleans_what_goes_to_a_person_only() -> None:
    for kind, expected in ((Screen, "a]0;b\tc\n"), (io.StringIO, "a\x1b]0;\x07b\tc\n")):
        output = kind()
        PlainTerminal(io.StringIO(), output, io.StringIO()).write("a\x1b]0;\x07b\tc\n")
        assert output.getvalue() == expected


def test_an_interrupt_clears_the_line_before_it_ends_the_session() -> None:
    """Ctrl-C after half a line, a whole line, and twice at an empty one."""
    half, empty = Interrupt("half a li"), Interrupt("")
    terminal = RichTerminal(console(io.StringIO()), Typist(half, empty, "whole", empty, half, empty, empty))
    assert terminal.read() == "whole"
    with pytest.raises(KeyboardInterrupt):
        terminal.read()
    assert "At the prompt it clears the line" in HELP


def test_a_plain_terminal_unless_a_person_sits_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_person(stdin: io.StringIO, stdout: io.StringIO) -> bool:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        return has_person()

    assert is_person(Screen(), Screen())
    assert not is_person(io.StringIO(), Screen())
    assert not is_person(Screen(), io.StringIO())
