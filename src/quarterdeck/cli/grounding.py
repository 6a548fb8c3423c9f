"""Options for what answers rest on: documents, tools, and how they are cited."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from quarterdeck.cli.arguments import UsageError
from quarterdeck.errors import InputError

if TYPE_CHECKING:
    from quarterdeck.chat.documents.reading import Library

DOCUMENTS_HELP = """\
documents:
  .json .jsonl .ndjson  a list, or one value per line: strings, or objects with fields such as title and text
  .csv .tsv             a document per row, its fields named by the first row
  .txt .md              text and Markdown, cut at blank lines into passages of at most 1,200 characters, Markdown also
                        before every heading; longer paragraphs are cut between sentences
  Objects and rows are one document each and are never cut; a field "id" names the document and is not shown to the
  model. Other files are JSON if they begin like it, else text. '-' is standard input. A cited answer is followed by
  its sources.
"""


def add_citation_option(parser: argparse.ArgumentParser) -> None:
    """How to cite."""
    parser.add_argument(
        "--citations",
        choices=("accurate", "fast", "off"),
        help="accurate (default): answer, then the same with citations; fast: both at once; off: cite nothing",
    )


def check_grounding(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if arguments.documents is not None and arguments.tools is not None:
        raise UsageError("--documents and --tools do not go together: give one of the two")
    if arguments.citations is not None and arguments.documents is None and arguments.tools is None:
        raise UsageError("--citations needs --documents or --tools: without them there is nothing to cite")


def read_library(name: str) -> Library:
    """The documents of a file, a folder or standard input; what was passed over is said on standard error."""
    # here, since it imports all of chat, which --help need not wait for
    from quarterdeck.chat.documents.reading import read_documents_from

    if name == "-" and sys.stdin.isatty():
        print("reading documents; end them with Ctrl-D on an empty line", file=sys.stderr)
    library = read_documents_from(name)
    if library.skipped:
        skipped = ", ".join(library.skipped)
        print(f"quarterdeck: not read, since of no known kind: {skipped}", file=sys.stderr)
    return library


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of an answer for documents and citations, as far as the command line has them."""
    options: dict[str, Any] = {}
    if arguments.documents is not None:
        options["documents"] = read_library(arguments.documents).documents
    if arguments.citations is not None:
        options["citation_mode"] = arguments.citations
    return options


def listen_to_the_terminal() -> None:
    """Make the terminal standard input, after something else was read from there.

    Raises:
        InputError: there is no terminal.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError as error:
        raise InputError(
            "the documents came from standard input, and there is no terminal to talk at; put them into a file"
        ) from error
    os.dup2(terminal, 0)
    os.close(terminal)
    sys.stdin = open(0, encoding=sys.stdin.encoding, closefd=False)  # noqa: SIM115  # open for as long as the program
