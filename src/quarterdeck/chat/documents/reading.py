"""Documents from files: text, Markdown, JSON, JSON lines and CSV; from a folder; or from standard input.

    read_documents_from("penguins.md")      # Library(documents=(Document({"title", "text"}, "penguins.md:1-9"), ...))
    read_documents_from("notes/")           # every such file in the folder, and in folders within it
    read_documents_from("-")                # standard input: JSON if it looks like it, else text

    .txt .text .md .markdown    cut into passages (see `quarterdeck.chat.documents.chunks`); each has a ``title``, the
                                headings above it or the file's name, its ``text``, and the id
                                ``{path}:{first}-{last line}``
    .json .jsonl .ndjson        a list, or one value per line; each is what `Document.of` takes
    .csv .tsv                   a document per row; its fields are called as the first row says, empty cells left out

JSON and CSV keep their own ids (``id``), and are never cut. A file with another ending is JSON if it begins like it,
and text otherwise. In a folder only files with the endings above are read; the others are reported as ``skipped``.
Hidden files and folders are passed over. All files are UTF-8.
"""

from __future__ import annotations

import csv
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quarterdeck.chat.documents.chunks import Chunk, chunks_of
from quarterdeck.chat.json_text import kind, parse_json, shown
from quarterdeck.chat.messages import Document, Tool
from quarterdeck.chat.prompts.conversation import read_tools
from quarterdeck.errors import ChatError

STANDARD_INPUT = "-"

_LOOKS_LIKE_JSON = re.compile(r'\s*(\{\s*["}]|\[\s*["{\]])')


@dataclass(frozen=True)
class Library:
    """What was read.

    Args:
        documents: in the order of the files' names, and of their places in them.
        files: how many files they come from.
        skipped: paths in a folder that were not read, since their endings are unknown.
    """

    documents: tuple[Document, ...]
    files: int
    skipped: tuple[str, ...] = ()


def read_documents_from(name: str | os.PathLike[str]) -> Library:
    """The documents of a file, of a folder, or of standard input (``"-"``).

    Raises:
        ChatError: nothing is there, it has no documents, or a file is not what its name says.
        OSError: it cannot be read.
    """
    if os.fspath(name) == STANDARD_INPUT:
        return _library(_documents(_decoded(sys.stdin.buffer.read(), "standard input"), "standard input", ""), 1, name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _read_folder(path)
    return _library(_read_file(path), 1, path)


def read_tools_from(name: str | os.PathLike[str]) -> list[Tool]:
    """The tools in a file: a JSON list, or one tool per line; each is what `Tool.of` takes of dictionaries.

    Raises:
        ChatError: the file is not there or not JSON, or a tool is malformed.
    """
    path = Path(name).expanduser()
    tools = [value for _, value in _json_values(_text_of(path), str(path))]
    if not tools:
        raise ChatError(f"there is no tool in {path}")
    try:
        return read_tools(tools)
    except ChatError as error:
        raise ChatError(f"{path}: {error}") from error


def _library(documents: list[Document], files: int, name: object, skipped: tuple[str, ...] = ()) -> Library:
    if not documents:
        what = f"; {len(skipped)} files have other endings than {' '.join(_READERS)}" if skipped else ""
        raise ChatError(f"there are no documents in {name}{what}")
    return Library(tuple(documents), files, skipped)


def _read_folder(folder: Path) -> Library:
    documents: list[Document] = []
    files, skipped = 0, []
    for path in _files_in(folder):
        if path.suffix.lower() in _READERS:
            documents += _read_file(path)
            files += 1
        else:
            skipped.append(str(path))
    return _library(documents, files, folder, tuple(skipped))


def _files_in(folder: Path) -> Iterator[Path]:
    """Files in it and below it, by name, but none that are hidden, and none behind links to folders."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if not entry.is_symlink():
                yield from _files_in(entry)
        elif entry.is_file():
            yield entry


def _read_file(path: Path) -> list[Document]:
    return _documents(_text_of(path), str(path), path.suffix.lower())


def _documents(text: str, name: str, suffix: str) -> list[Document]:
    reader = _READERS.get(suffix, _read_json if _LOOKS_LIKE_JSON.match(text) else _read_text)
    return reader(text, name)


def _text_of(path: Path) -> str:
    if not path.exists():
        raise ChatError(f"there is no file {path}")
    return _decoded(path.read_bytes(), str(path))


def _decoded(content: bytes, name: str) -> str:
    """UTF-8, its lines ended by line feeds."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ChatError(f"{name} is not UTF-8 at byte {error.start}; save it as UTF-8 text") from error
    if "\0" in text:
        raise ChatError(f"{name} is not text: it has a zero byte at character {text.index(chr(0))}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_text(text: str, name: str) -> list[Document]:
    return [_passage(chunk, name) for chunk in chunks_of(text)]


def _read_markdown(text: str, name: str) -> list[Document]:
    return [_passage(chunk, name) for chunk in chunks_of(text, markdown=True)]


def _passage(chunk: Chunk, name: str) -> Document:
    title = " > ".join(chunk.headings) or Path(name).name
    return Document({"title": title, "text": chunk.text}, f"{name}:{chunk.first_line}-{chunk.last_line}")


def _read_json(text: str, name: str) -> list[Document]:
    return [_document(value, place) for place, value in _json_values(text, name)]


def _json_values(text: str, name: str) -> list[tuple[str, Any]]:
    """The values of a JSON list, or of JSON lines, and where each stands. An object alone counts as a list of one."""
    try:
        value = parse_json(text)
    except ValueError as error:
        return _json_lines(text, name, error)
    if not isinstance(value, (list, dict)):
        raise ChatError(f"{name} is a JSON list, or has one value per line; it holds {kind(value)}: {shown(value)}")
    items = value if isinstance(value, list) else [value]
    return [(f"{name}, entry {number}", item) for number, item in enumerate(items, start=1)]


def _json_lines(text: str, name: str, as_a_whole: ValueError) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append((f"{name}, line {number}", parse_json(line)))
        except ValueError as error:
            if found:
                raise ChatError(f"{name} is not JSON in line {number}: {error}") from error
            raise ChatError(f"{name} is neither JSON ({as_a_whole}) nor has one JSON value per line") from error
    return found


def _read_csv(text: str, name: str) -> list[Document]:
    header, _, _ = text.partition("\n")
    delimiter = max(",;\t|", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return list(_read_rows(rows, name))
    except csv.Error as error:
        raise ChatError(f"{name} is not CSV in line {rows.line_num}: {error}") from error


def _read_rows(rows: Any, name: str) -> Iterator[Document]:
    names = [cell.strip() for cell in next(rows, [])]
    if names and (not all(names) or len(set(names)) < len(names)):
        raise ChatError(f"the first row of {name} names its columns, each differently, not {shown(names)}")
    for row in rows:
        if len(row) > len(names):
            raise ChatError(f"{name}, line {rows.line_num} has {len(row)} cells, and the first row names {len(names)}")
        fields = {key: cell for key, cell in zip(names, row, strict=False) if cell.strip()}
        if fields:
            yield _document(fields, f"{name}, line {rows.line_num}")


def _document(value: Any, place: str) -> Document:
    try:
        return Document.of(value)
    except ChatError as error:
        raise ChatError(f"{place}: {error}") from error


_READERS: Mapping[str, Callable[[str, str], list[Document]]] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
