"""The program at a real terminal: several lines, history, completion, interrupts. Keys in, screen out."""

from __future__ import annotations

import os
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from quarterdeck.cli.editor import SessionCompleter, Words

pytest_plugins = ["checkpoint_fixtures"]
pytestmark = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")

CONTROL = {letter: bytes([ord(letter) & 31]) for letter in "CDRU"}
_SEQUENCE = re.compile(rb"\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b\[[?0-9;]*[A-Za-z]|\x1b[=>]")
_UNFINISHED = re.compile(rb"\x1b[^A-Za-z]*\Z")
PATIENCE = 60.0


class Program:
    """``quarterdeck chat`` with a person in front of it."""

    def __init__(self, *words: str, home: Path, **environment: str) -> None:
        self.person, screen = os.openpty()
        line = [sys.executable, "-m", "quarterdeck", "chat", *words]
        own = {"TERM": "xterm-256color", "XDG_STATE_HOME": str(home), "OMP_NUM_THREADS": "1", **environment}
        own = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | own
        # a session of its own, so that the terminal is its controlling one and Ctrl-C reaches it
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_A_TERMINAL, *line], stdin=screen, stdout=screen, stderr=screen, env=own,
            start_new_session=True,
        )  # fmt: skip
        os.close(screen)
        self.shown = b""
        self.seen = 0

    def press(self, *keys: str | bytes) -> None:
        os.write(self.person, b"".join(key.encode() if isinstance(key, str) else key for key in keys))

    def wait_for(self, *texts: str) -> None:
        """Until they have been shown, one after the other, after all that was waited for before."""
        end = time.monotonic() + PATIENCE
        for text in texts:
            while (place := self.text.find(text, self.seen)) < 0:
                assert time.monotonic() < end, self.text
                assert self._read(), f"the program ended: {self.text}"
            self.seen = place + len(text)

    def wait(self) -> int:
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    @property
    def text(self) -> str:
        whole = _UNFINISHED.sub(b"", _SEQUENCE.sub(b"", self.shown))
        return whole.decode(errors="replace").replace("\r", "")

    def _read(self) -> bool:
        try:
            if not select.select([self.person], [], [], PATIENCE)[0]:
                return False
            piece = os.read(self.person, 65536)
        except OSError:  # Linux says that a terminal is gone in this way
            return False
        if b"\x1b[6n" in piece:  # where is the cursor?
            os.write(self.person, b"\x1b[1;1R")
        self.shown += piece
        return bool(piece)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.person)


_IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


Start = Callable[..., Program]


@pytest.fixture
def start(checkpoint: Path, tmp_path: Path) -> Iterator[Start]:
    programs: list[Program] = []

    def run(*words: str, **environment: str) -> Program:
        programs.append(Program(str(checkpoint), *words, home=tmp_path, **environment))
        programs[-1].wait_for("me> " if "me" in words else "you> ")
        return programs[-1]

    yield run
    for program in programs:
        program.close()


def saved(program: Program, tmp_path: Path, name: str) -> str:
    program.press(f"!save {tmp_path}/{name}\r")
    program.wait_for(f"to {tmp_path}/{name}", "> ")
    return (tmp_path / name).read_text()


def test_lines_history_completion_and_the_end(start: Start, tmp_path: Path) -> None:
    program = start("--max-tokens", "2", "--temperature", "0")
    program.press("first\\\r", "second", b"\x1b\r", "third\r")  # a backslash, and Alt-Enter
    program.wait_for("model>", "you> ")
    program.press(b"\x1b[200~one\r\ntwo\n!three\x1b[201~", "\r")  # pasted
    program.wait_for("model>", "you> ")
    program.press("!sta\t\r")
    program.wait_for("questions:", "you> ")
    content = saved(program, tmp_path, "a.json")
    assert "first\\nsecond\\nthird" in content
    assert "one\\ntwo\\n!three" in content
    program.press("nothing", CONTROL["C"], CONTROL["D"])  # the line is cleared, and the session ends
    assert program.wait() == 0
    history = tmp_path / "quarterdeck" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert stat.S_IMODE(history.parent.stat().st_mode) == 0o700

    again = start("--max-tokens", "2", "--user", "me", NO_COLOR="1")
    again.press(CONTROL["R"], "second", "\r", "\r")  # finds what was written in the session before
    again.wait_for("model> ", "me> ")  # without colours the name is on the line of the answer
    assert "first\\nsecond\\nthird" in saved(again, tmp_path, "b.json")
    again.press(CONTROL["C"])
    again.wait_for("Ctrl-C once more", "me> ")
    again.press(CONTROL["C"])
    assert again.wait() == 130


def test_ctrl_c_stops_the_answer_and_not_the_program(start: Start, tmp_path: Path) -> None:
    program = start("--max-tokens", "1900", "min_new_tokens=1900", "--no-input-history")
    program.press("Hi\r")
    program.wait_for("model>")
    while len(program.text) < program.seen + 20:  # it has begun to answer
        program._read()
    program.press("typed meanwhile", CONTROL["C"])
    program.wait_for("[stopped]", "you> ")
    program.press(CONTROL["U"], "!set max_new_tokens=3 min_new_tokens=None\r")
    program.wait_for("do_sample", "you> ")
    program.press("And now?\r")
    program.wait_for("model>", "you> ")
    assert "And now?" in saved(program, tmp_path, "a.json")
    program.press("!exit\r")
    assert program.wait() == 0
    assert not (tmp_path / "quarterdeck").exists()
    assert b"\x1b]0" not in program.shown  # the window's title is not ours
    assert b"\x1b]2" not in program.shown


def test_words_can_be_completed() -> None:
    completer = SessionCompleter(Words(("temperature", "top_k", "top_p"), ("tides",)))

    def found(text: str) -> list[str]:
        return [one.text for one in completer.get_completions(Document(text), CompleteEvent())]

    assert found("!s") == ["!status", "!save", "!set", "!source"]
    assert found("!set to") == ["top_k=", "top_p="]
    assert found("!set top_k=1 te") == ["temperature="]
    assert found("!set top_k=") == found("!example x") == found("top") == found("two\n!s") == found("!help ") == []
    assert found("!example ") == ["tides"]
    assert found("!load /") != []
