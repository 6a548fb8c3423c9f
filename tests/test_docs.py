"""The pages for users do what they say: their code runs from top to bottom and prints what is shown below it.

Blocks of ``python`` share their names, as in one session. A block without a language that follows one of ``python`` or
``sh`` is what that prints; white space counts as one space, so that long lines may be wrapped. Blocks of ``sh`` run the
command line, where a model writes what a comment before them says. Commands in other blocks have to be well-formed.
The embedded model stands in for those of the hub.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import test_chat_attacks
from chat_scripts import Scripted
from quarterdeck.chat.documents.chunks import MAX_CHARACTERS
from quarterdeck.cli.answering import Answerer
from quarterdeck.cli.grounding import DOCUMENTS_HELP
from quarterdeck.cli.main import build_parser, main

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")))

_BLOCK = re.compile(
    r"(?P<comments>(?:^<!-- the model writes: [^\n]* -->\n)*)^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
_COMMENT = re.compile(r"<!-- the model writes: (.*) -->")


@dataclass
class Block:
    """A block of a page, what it is said to print, and what a stand-in for the model says meanwhile."""

    line: int
    language: str
    code: str
    model: list[str]
    printed: str | None = None


def blocks(page: str) -> list[Block]:
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(page):
        follows_directly = bool(found) and not page[end : match.start()].strip()
        if follows_directly and not match["language"] and found[-1].language in ("python", "sh"):
            found[-1].printed = match["code"]
        else:
            line = page.count("\n", 0, match.start("code")) + 1
            model = [text.replace("\\n", "\n") for text in _COMMENT.findall(match["comments"])]
            found.append(Block(line, match["language"], match["code"], model))
        end = match.end()
    return found


def run_python(block: Block, names: dict[str, Any], page: str) -> None:
    code = re.sub(r"CohereForAI/[\w-]+", "midshipman", block.code)
    code = "\n" * (block.line - 1) + code  # so that a traceback names the line of the page
    exec(compile(code, page, "exec"), names)


def run_shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(*block.model)

    def raw(self: Answerer, prompt: Any, *, grammar: Any = None, sampling_params: Any = None, **_: Any) -> Any:
        return script(prompt, grammar=grammar, sampling_params=sampling_params)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "raw", raw)
        for line in block.code.splitlines():
            echoed, bar, command = line.rpartition(" | ")
            words = shlex.split(command)
            assert words[0] == "quarterdeck", line
            if bar:
                text = shlex.split(echoed)[1] + "\n"
                patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            assert main(words[1:]) == 0, line
    assert len(script.asked) == len(block.model)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_what_happens(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        if block.language == "python":
            run_python(block, names, page)
        elif block.language == "sh":
            run_shell(block, monkeypatch)
        printed = capsys.readouterr().out
        if block.printed is not None:
            assert printed.split() == block.printed.split(), f"{page}:{block.line} prints something else:\n{printed}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_a_page_are_well_formed(page: str) -> None:
    parser = build_parser()
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        for line in block.code.splitlines() if block.language != "python" else ():
            if line.startswith("quarterdeck "):
                parser.parse_args(shlex.split(line, comments=True)[1:])


def test_pages_link_to_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_what_tokenization_cannot_prevent_is_told_in_the_same_words() -> None:
    quoted = re.search(r"(?:^> .*\n)+", (ROOT / "docs/chat.md").read_text(encoding="utf-8"), re.M)
    assert quoted
    docstring = test_chat_attacks.__doc__
    assert docstring
    told = docstring[docstring.index("What tokenization cannot prevent.") :]
    assert re.sub(r"^> ", "", quoted[0], flags=re.M).replace("\\", "").split() == told.replace("``", "`").split()


def test_how_texts_are_cut_is_told_in_the_same_numbers() -> None:
    limit = f"{MAX_CHARACTERS:,} characters"
    assert limit in " ".join(DOCUMENTS_HELP.split())
    assert limit in " ".join((ROOT / "docs/chat.md").read_text(encoding="utf-8").split())
