"""What stands around the command line: terminals, streams that are closed, interrupts, devices that do not exist."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quarterdeck import __main__ as program
from quarterdeck.cli.answering import Answerer
from quarterdeck.cli.main import main

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
