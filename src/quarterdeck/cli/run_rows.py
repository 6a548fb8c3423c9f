"""``quarterdeck run --input``: an answer for every row of a file."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from quarterdeck.cli.arguments import UsageError
from quarterdeck.cli.rows import FORMATS, Format, Row, RowWriter, format_of, prompt_column, read_rows
from quarterdeck.errors import InputError, QuarterdeckError

Respond = Callable[[str], dict[str, Any]]
"""From a prompt to ``text``, ``finish_reason`` and what else there is."""

_LONGEST_LIST = 20


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """What to read, what to write."""
    group = parser.add_argument_group("many prompts")
    group.add_argument(
        "--input", metavar="FILE", help="answer every row of FILE in place of PROMPT; '-' is standard input"
    )
    group.add_argument("--column", metavar="C", help="column with the prompts (default: prompt, text, or the only one)")
    group.add_argument(
        "--format",
        choices=("infer", *FORMATS),
        help="of the input (default: infer, by its ending): text has a prompt per line, json a list, jsonl an object "
        "per line, csv a header; pipe reads lines of standard input and answers each with a line of JSON",
    )
    group.add_argument(
        "--output",
        metavar="FILE",
        help="where rows go, each as soon as it is done: .jsonl, .json, .csv or .tsv "
        "(default: JSON lines on standard output)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace FILE if it is there already")
    group.add_argument("--output-column", metavar="C", default="text", help="what answers are called (default: text)")


def is_about_rows(arguments: argparse.Namespace) -> bool:
    """Whether a command line asks for rows."""
    return arguments.input is not None or arguments.format == "pipe"


def check_rows(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: they do not.
    """
    if not is_about_rows(arguments):
        for name in ("column", "format", "output"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is about the rows of --input FILE, which is not given")
        if arguments.overwrite or arguments.output_column != "text":
            raise UsageError("--overwrite and --output-column are about the rows of --input FILE, which is not given")
        return
    if arguments.prompt is not None:
        raise UsageError("--input is in place of PROMPT: give one of the two")
    if arguments.json:
        raise UsageError("--json is for one PROMPT; rows are JSON without it")
    if arguments.overwrite and arguments.output is None:
        raise UsageError("--overwrite is about --output FILE, which is not given")
    if arguments.format == "pipe" and arguments.input not in (None, "-"):
        raise UsageError("--format pipe reads standard input: leave out --input")
    if arguments.documents == "-" and arguments.input in (None, "-"):
        raise UsageError("--documents - reads standard input, and so do the rows")
    if arguments.output is not None and _output_format(arguments.output) in ("text", "pipe"):
        raise UsageError(f"--output {arguments.output}: answers have line breaks; end it with .jsonl, .json or .csv")


def first_and_all(arguments: argparse.Namespace) -> tuple[str, Iterator[Row]]:
    """The name of the column with the prompts, and the rows; found out before a model is loaded.

    Raises:
        InputError: the input cannot be read, or has no such column.
    """
    name = arguments.input or "-"
    rows = read_rows(name, format_of(name, arguments.format or "infer"))
    first = next(rows, None)
    if first is None:
        raise InputError(f"there are no rows in {name}")
    column = prompt_column(first, arguments.column)
    if arguments.output_column in first.values:
        raise InputError(
            f"the rows have a column {arguments.output_column!r} already: name another one for the answers, such as "
            "--output-column answer"
        )
    return column, itertools.chain([first], rows)


def answer_rows(arguments: argparse.Namespace, column: str, rows: Iterator[Row], respond: Respond) -> int:
    """Write every row with its answer as soon as it is there; gives the exit code.

    A row that fails is reported, and written with ``finish_reason`` ``ERROR``; the others go on.
    """
    failed: list[int] = []
    done = 0
    first = next(rows)
    added = [arguments.output_column, "finish_reason"]
    added += ["citations"] * (arguments.documents is not None) + ["tool_calls"] * (arguments.tools is not None)
    with _output(arguments, [*first.values, *added]) as writer:
        try:
            for row in itertools.chain([first], rows):
                found, problem = _answered(row, column, respond)
                if problem is not None:
                    failed.append(row.number)
                    print(f"quarterdeck: row {row.number}: {problem}", file=sys.stderr, flush=True)
                text = {arguments.output_column: found.pop("text", "")}
                writer.write({**row.values, **text, **found})
                done += 1
        except KeyboardInterrupt:
            print(f"quarterdeck: interrupted; {done} rows are written", file=sys.stderr)
            raise
    if failed:
        print(f"quarterdeck: {len(failed)} of {done} rows failed: {_numbers(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _answered(row: Row, column: str, respond: Respond) -> tuple[dict[str, Any], str | None]:
    try:
        return respond(row.prompt(column)), None
    except (QuarterdeckError, RuntimeError) as error:  # torch has RuntimeError for memory and devices
        return {"text": "", "finish_reason": "ERROR", "error": str(error)}, str(error)


@contextmanager
def _output(arguments: argparse.Namespace, columns: list[str]) -> Iterator[RowWriter]:
    if arguments.output is None:
        yield RowWriter(sys.stdout, "jsonl")
        return
    path = Path(arguments.output).expanduser()
    if arguments.input is not None and path.exists() and path.samefile(arguments.input):
        raise InputError(f"--output {path} is the input, whose rows would be lost: name another file")
    with _opened(path, arguments.overwrite) as file:
        yield RowWriter(file, _output_format(arguments.output), columns, "\t" if path.suffix.lower() == ".tsv" else ",")


def _opened(path: Path, overwrite: bool) -> TextIO:
    try:
        return path.open("w" if overwrite else "x", encoding="utf-8", newline="")
    except FileExistsError:
        raise InputError(f"{path} is there already: give --overwrite, or name another file") from None


def check_output(arguments: argparse.Namespace) -> None:
    """Refuse an output that is there already, before anything is loaded."""
    if arguments.output is not None and not arguments.overwrite and os.path.exists(arguments.output):
        raise InputError(f"{arguments.output} is there already: give --overwrite, or name another file")


def _output_format(name: str) -> Format:
    try:
        return format_of(name, "infer")
    except InputError:
        raise UsageError(f"--output {name}: end it with .jsonl, .json, .csv or .tsv, which says the format") from None


def _numbers(rows: Iterable[int]) -> str:
    listed = list(rows)
    more = f" and {len(listed) - _LONGEST_LIST} more" if len(listed) > _LONGEST_LIST else ""
    return ", ".join(map(str, listed[:_LONGEST_LIST])) + more
