"""Documents from files: what each kind of file becomes, how long texts are cut, and what is refused."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarterdeck.chat import Document
from quarterdeck.chat.documents.chunks import MAX_CHARACTERS, chunks_of
from quarterdeck.chat.documents.reading import Library, read_documents_from, read_tools_from
from quarterdeck.errors import ChatError

PENGUINS = [
    {"title": "Tall penguins", "text": "Emperor penguins are the tallest."},
    {"title": "Habitats", "text": "Emperor penguins only live in Antarctica.", "id": "habitats"},
]

MARKDOWN = """\
Notes before any heading.

# Penguins

They are birds.

## Emperor

### Size

Up to 122 cm.
Up to 40 kg.

```sh
# no heading

echo penguin
```

## Adélie ##

Smaller.
"""


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


# -- cutting ---------------------------------------------------------------------------------------------

words = st.text(alphabet="ab.!? \n\t#`~。é🐧", max_size=400)


@given(text=words, markdown=st.booleans(), limit=st.integers(1, 60))
def test_passages_are_the_text_in_order_and_nothing_is_lost(text: str, markdown: bool, limit: int) -> None:
    chunks = chunks_of(text, markdown=markdown, limit=limit)
    assert squeezed("".join(chunk.text for chunk in chunks)) == squeezed(text)
    lines = text.split("\n")
    position = 0
    for chunk in chunks:
        assert chunk.text == chunk.text.strip()
        assert 0 < len(chunk.text) <= limit
        position = text.index(chunk.text, position) + len(chunk.text)
        assert chunk.text in "\n".join(lines[chunk.first_line - 1 : chunk.last_line])
        assert text[:position].count("\n") + 1 == chunk.last_line
        assert chunk.last_line - chunk.first_line == chunk.text.count("\n")


def test_blocks_stay_together_as_far_as_they_fit() -> None:
    blocks = ["a" * 40, "b" * 40, "c" * 40, "d" * 10]
    chunks = chunks_of("\n\n".join(blocks), limit=90)
    assert [chunk.text for chunk in chunks] == ["\n\n".join(blocks[:2]), "\n\n".join(blocks[2:])]
    assert [(chunk.first_line, chunk.last_line) for chunk in chunks] == [(1, 3), (5, 7)]


def test_long_blocks_are_cut_at_sentences_then_at_spaces_then_anywhere() -> None:
    assert [c.text for c in chunks_of("One two. Three four! Five six seven.", limit=22)] == [
        "One two. Three four!",
        "Five six seven.",
    ]
    assert [c.text for c in chunks_of("one two three four", limit=10)] == ["one two", "three four"]
    assert [c.text for c in chunks_of("x" * 25, limit=10)] == ["x" * 10, "x" * 10, "x" * 5]
    assert [c.text for c in chunks_of("東京は都です。大阪は府です。", limit=8)] == ["東京は都です。", "大阪は府です。"]
    assert [c.text for c in chunks_of("version 1.25 of it", limit=11)] == ["version", "1.25 of it"]


def test_markdown_is_cut_before_headings_but_not_in_code() -> None:
    chunks = chunks_of(MARKDOWN, markdown=True)
    assert [(chunk.headings, chunk.first_line, chunk.last_line) for chunk in chunks] == [
        ((), 1, 1),
        (("Penguins",), 3, 5),
        (("Penguins", "Emperor", "Size"), 7, 18),
        (("Penguins", "Adélie"), 20, 22),
    ]
    assert chunks[2].text.startswith("## Emperor\n\n### Size\n\nUp to")
    assert chunks[2].text.endswith("echo penguin\n```")


@pytest.mark.parametrize(
    ("line", "is_heading"),
    [("# A", True), ("###### A", True), ("   # A #", True), ("#", True), ("#A", False), ("####### A", False),
     ("    # A", False), ("\\# A", False)],
)  # fmt: skip
def test_what_a_heading_is(line: str, is_heading: bool) -> None:
    chunks = chunks_of(f"before\n\n{line}\n\nafter", markdown=True)
    assert (len(chunks) == 2) == is_heading
    assert chunks[-1].headings == (("A",) if is_heading and "A" in line else ())
    assert len(chunks_of(f"before\n\n{line}\n\nafter")) == 1


def test_an_inline_run_of_backticks_opens_no_fence() -> None:
    assert len(chunks_of("``` a ``` b\n\n# One\n\ntext\n\n# Two\n\ntext", markdown=True)) == 3


# -- kinds of files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["docs.json", "docs.jsonl", "docs.ndjson", "docs", "docs.data"])
@pytest.mark.parametrize("style", ["list", "indented", "lines"])
def test_json_by_content_whatever_the_file_is_called(tmp_path: Path, name: str, style: str) -> None:
    text = {
        "list": json.dumps(PENGUINS),
        "indented": "\ufeff" + json.dumps(PENGUINS, indent=2) + "\n",
        "lines": "\r\n\r\n".join(map(json.dumps, PENGUINS)),
    }[style]
    library = read_documents_from(write(tmp_path, name, text))
    assert library == Library((Document.of(PENGUINS[0]), Document.of(PENGUINS[1])), 1)
    assert library.documents[1].id == "habitats"


def test_json_of_strings_and_of_one_object(tmp_path: Path) -> None:
    assert read_documents_from(write(tmp_path, "a.json", '["one", "two"]')).documents == (
        Document({"text": "one"}),
        Document({"text": "two"}),
    )
    assert read_documents_from(write(tmp_path, "b.json", '{"text": "one"}')).documents == (Document({"text": "one"}),)


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "|")])
def test_rows_become_documents(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [["id", "bird", " height "], ["e", 'The "emperor"\nitself', "122"], ["", "Adélie", ""], ["", "", ""]]
    text = "\n".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    assert read_documents_from(write(tmp_path, name, text)).documents == (
        Document({"bird": 'The "emperor"\nitself', "height": "122"}, "e"),
        Document({"bird": "Adélie"}),
    )


def test_text_becomes_passages_with_title_and_place(tmp_path: Path) -> None:
    path = write(tmp_path, "notes.txt", "# One\r\n\r\n" + "word " * 300)
    first, second = read_documents_from(path).documents
    assert first.data["title"] == second.data["title"] == "notes.txt"
    assert (first.id, second.id) == (f"{path}:1-3", f"{path}:3-3")
    assert len(first.data["text"]) <= MAX_CHARACTERS
    assert first.data["text"].startswith("# One\n\nword")


def test_markdown_titles_are_headings(tmp_path: Path) -> None:
    documents = read_documents_from(write(tmp_path, "notes.md", MARKDOWN)).documents
    titles = ["notes.md", "Penguins", "Penguins > Emperor > Size", "Penguins > Adélie"]
    assert [document.data["title"] for document in documents] == titles


def test_a_folder_is_read_in_order_and_says_what_it_skipped(tmp_path: Path) -> None:
    write(tmp_path, "b/c.TXT", "third")
    write(tmp_path, "b/a.md", "second")
    write(tmp_path, "a.json", '["first"]')
    write(tmp_path, "z.pdf", b"%PDF\x00")
    write(tmp_path, ".hidden.txt", "no")
    write(tmp_path, ".git/x.txt", "no")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    library = read_documents_from(tmp_path)
    assert [document.data["text"] for document in library.documents] == ["first", "second", "third"]
    assert (library.files, library.skipped) == (3, (str(tmp_path / "z.pdf"),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"text": "x"}]', Document({"text": "x"})),
        ('{"text": "x"}\n', Document({"text": "x"})),
        ("[1] A footnote", Document({"title": "standard input", "text": "[1] A footnote"}, "standard input:1-1")),
        ("plain", Document({"title": "standard input", "text": "plain"}, "standard input:1-1")),
    ],
)
def test_standard_input_is_json_or_text(text: str, expected: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read_documents_from("-").documents == (expected,)


# -- what is refused -------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, str | bytes, str]] = {
    "empty text": ("a.txt", " \n", "no documents"),
    "empty JSON": ("a.json", "", "no documents"),
    "empty list": ("a.json", "[]", "no documents"),
    "header only": ("a.csv", "a,b\n", "no documents"),
    "nothing": ("a.csv", "", "no documents"),
    "not UTF-8": ("a.txt", b"caf\xe9 au lait", "byte 3"),
    "binary": ("a.txt", b"PK\x00\x01", "zero byte"),
    "broken list": ("a.json", '[\n{"text": "x"},\n', "neither JSON"),
    "broken line": ("a.jsonl", '{"text": "x"}\n{"text": \n', "line 2"),
    "broken, by its beginning": ("a.data", '[{"text": ', "neither JSON"),
    "NaN": ("a.json", '[{"text": NaN}]', "NaN"),
    "a number": ("a.json", "7", "int"),
    "a document that is none": ("a.json", '["x", 7]', "entry 2"),
    "a line that is none": ("a.jsonl", '"x"\n\n[7]\n', "line 3"),
    "too many cells": ("a.csv", "a,b\n1,2\n1,2,3\n", "line 3 has 3 cells"),
    "columns without name": ("a.csv", "a,,c\n1,2,3\n", "first row"),
    "columns called alike": ("a.csv", "a,a\n1,2\n", "first row"),
    "a quote never closed": ("a.csv", 'a,b\n1,"2\n', "not CSV in line 2"),
}


@pytest.mark.parametrize(("name", "text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_files_that_are_not_what_they_say(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(ChatError) as error:
        read_documents_from(path)
    assert message in str(error.value)
    assert name in str(error.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ChatError, match="no file"):
        read_documents_from(tmp_path / "missing.txt")
    write(tmp_path, "a.pdf", b"")
    with pytest.raises(ChatError, match=r"no documents in .*; 1 files"):
        read_documents_from(tmp_path)
    with pytest.raises(ChatError, match="no documents"):
        read_documents_from(write(tmp_path, "x/y.md", "").parent)


# -- tools -----------------------------------------------------------------------------------------------

SEARCH = {"name": "search", "description": "Searches.", "parameters": {"type": "object", "properties": {}}}


def test_tools_from_a_file(tmp_path: Path) -> None:
    other = {"type": "function", "function": {**SEARCH, "name": "find"}}
    for text in (json.dumps([SEARCH, other]), json.dumps(SEARCH) + "\n" + json.dumps(other)):
        tools = read_tools_from(write(tmp_path, "tools.json", text))
        assert [tool.name for tool in tools] == ["search", "find"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no tool"),
        ("[{}]", r"tools\[0\]"),
        (json.dumps([SEARCH, SEARCH]), "more than once"),
        ("search", "neither JSON"),
    ],
)
def test_tools_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ChatError, match=message) as error:
        read_tools_from(write(tmp_path, "tools.json", text))
    assert "tools.json" in str(error.value)
