"""Prompts from a file, a row each, and results that go beside them into another. Nothing heavy is imported.

text    a prompt per line                                    read only
json    a list of texts, or of objects                       read and written
jsonl   a text or an object per line                         read and written
csv     a table whose first row names its columns            read and written; .tsv has tabs
pipe    a prompt per line of standard input, an object of JSON per line of standard output
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from quarterdeck.errors import InputError

Format = Literal["text", "json", "jsonl", "csv", "pipe"]
FORMATS = get_args(Format)
PROMPT_COLUMN = "prompt"

_ENDINGS: Mapping[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}


@dataclass(frozen=True)
class Row:
    """One row of the input.

    Args:
        number: from 1 on; of a text or of JSON lines it is the line's.
        values: its columns.
        problem: why it cannot be used, None if it can.
    """

    number: int
    values: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def prompt(self, column: str) -> str:
        """The text in a column.

        Raises:
            InputError: there is none.
        """
        if self.problem is not None:
            raise InputError(self.problem)
        if column not in self.values:
            raise InputError(f"there is no column {column!r}; there are {_listed(self.values)}")
        text = self.values[column]
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"the column {column!r} holds {json.dumps(text, ensure_ascii=False)}, which is no text")
        return text


def format_of(name: str, given: str) -> Format:
    """The format of a file: as given, or as its ending says.

    Raises:
        InputError: the ending says nothing.
    """
    for one in get_args(Format):
        if given == one:
            return one  # type: ignore[no-any-return]  # get_args has no type
    if name == "-":
        return "pipe"
    ending = Path(name).suffix.lower()
    if ending not in _ENDINGS:
        raise InputError(f"the ending of {name} does not say its format: give --format, one of {', '.join(FORMATS)}")
    return _ENDINGS[ending]


def read_rows(name: str, form: Format) -> Iterator[Row]:
    """The rows of a file, or of standard input (``"-"``), as they are asked for.

    Raises:
        InputError: it is not there, not UTF-8, or not what the format says.
    """
    if name == "-":
        yield from _READERS[form](sys.stdin, "standard input", "")
        return
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"--input: there is no file {path}")
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from _READERS[form](file, name, path.suffix.lower())
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is not UTF-8 at byte {error.start} of a part; save it as UTF-8") from error


def _read_lines(file: TextIO, name: str, ending: str) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield Row(number, {PROMPT_COLUMN: line.rstrip("\r\n")})


def _read_json(file: TextIO, name: str, ending: str) -> Iterator[Row]:
    try:
        values = json.load(file)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not JSON: {error}; a value per line is --format jsonl") from error
    if not isinstance(values, list):
        raise InputError(f"{name} must hold a JSON list of texts or objects, not {type(values).__name__}")
    for number, value in enumerate(values, start=1):
        yield _json_row(number, value)


def _read_json_lines(file: TextIO, name: str, ending: str) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield _json_row(number, json.loads(line))
        except json.JSONDecodeError as error:
            yield Row(number, problem=f"it is not JSON: {error}")


def _json_row(number: int, value: Any) -> Row:
    if isinstance(value, str):
        return Row(number, {PROMPT_COLUMN: value})
    if isinstance(value, dict):
        return Row(number, value)
    return Row(number, problem=f"a row is a text or an object, not {json.dumps(value, ensure_ascii=False)}")


def _read_csv(file: TextIO, name: str, ending: str) -> Iterator[Row]:
    reader = csv.reader(file, delimiter="\t" if ending == ".tsv" else ",", strict=True)
    try:
        columns = next(reader, None)
        if columns is None:
            return
        if not columns or not all(columns) or len(set(columns)) < len(columns):
            raise InputError(f"the first row of {name} must name its columns, each differently, not {columns}")
        for number, cells in enumerate(reader, start=1):
            if len(cells) == len(columns):
                yield Row(number, dict(zip(columns, cells, strict=True)))
            elif cells:
                values = dict(zip(columns, cells, strict=False))
                yield Row(number, values, f"it has {len(cells)} cells, and there are {len(columns)} columns")
    except csv.Error as error:
        raise InputError(f"{name} is not CSV in line {reader.line_num}: {error}") from error


_READERS = {"text": _read_lines, "pipe": _read_lines, "json": _read_json, "jsonl": _read_json_lines, "csv": _read_csv}


def prompt_column(first: Row, given: str | None) -> str:
    """The column with the prompts: as given, or ``prompt``, or ``text``, or the only one.

    Raises:
        InputError: it is not there, or it is not clear which one is meant.
    """
    columns = list(first.values)
    if given is not None:
        if first.problem is None and given not in columns:
            raise InputError(f"there is no column {given!r}; there are {_listed(columns)}")
        return given
    for name in (PROMPT_COLUMN, "text"):
        if name in columns:
            return name
    if len(columns) == 1:
        return columns[0]
    raise InputError(f"which column holds the prompts? Give --column, one of {_listed(columns)}")


class RowWriter:
    """Writes rows as they come: a reader of the file finds whole rows only, all that were written so far.

    Args:
        file: where to; text mode, ``newline=""``.
        form: ``jsonl``, ``csv``, or ``json``, for which the file must be one that can be moved in.
        columns: of the table, in order; other formats take what rows have.
        delimiter: of the table.
    """

    def __init__(self, file: TextIO, form: Format, columns: Sequence[str] = (), delimiter: str = ",") -> None:
        self._file = file
        self._form = form
        self._columns = columns
        self._delimiter = delimiter
        self._is_empty = True
        if form == "csv":
            self._put(self._table_row(columns))
        elif form == "json":
            self._put("[\n]\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """One row more."""
        if self._form == "csv":
            self._put(self._table_row(_cell(row.get(name)) for name in self._columns))
        elif self._form == "json":
            self._file.seek(0, io.SEEK_END)
            self._file.seek(self._file.tell() - len("]\n") - (0 if self._is_empty else len("\n")))
            self._put(("" if self._is_empty else ",\n") + json.dumps(row, ensure_ascii=False) + "\n]\n")
        else:
            self._put(json.dumps(row, ensure_ascii=False) + "\n")
        self._is_empty = False

    def _put(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def _table_row(self, cells: Iterable[str]) -> str:
        line = io.StringIO(newline="")
        csv.writer(line, delimiter=self._delimiter, lineterminator="\n").writerow(cells)
        return line.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(map(repr, columns)) or "none"
