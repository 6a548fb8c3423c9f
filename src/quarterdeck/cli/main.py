"""The entry point of the command line.

Exit codes: 0 done; 1 it failed; 2 wrong usage; 130 interrupted; 141 the reader of the output has left. A failure is
one message on stderr; only a mistake in Quarterdeck itself, which should be reported, shows a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from quarterdeck._version import __version__
from quarterdeck.cli import bench, chat, convert, download, env, plan, quantize, run, visualize
from quarterdeck.cli.arguments import UsageError
from quarterdeck.cli.command_parser import CommandParser
from quarterdeck.errors import QuarterdeckError

# what the world around a program does to it: files, memory, devices, missing packages, values from outside
_FAILURES = (QuarterdeckError, OSError, RuntimeError, ValueError, MemoryError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (``sys.argv`` if None) and returns its exit code."""
    _open_closed_streams()
    try:
        code = _execute(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has left
        _discard_output()
        return 141
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # the shell's prompt begins a new line
        return 130
    except UsageError as error:
        _complain(f"{error}; see 'quarterdeck --help'")
        return 2
    except _FAILURES as error:
        _complain(_message(error))
        return 1
    return code


def _execute(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as exit_:  # after --help, --version, or a message about wrong usage
        return exit_.code if isinstance(exit_.code, int) else 2
    if arguments.execute is None:
        parser.print_help()
        return 2
    _accept_any_text()
    code: int = arguments.execute(arguments)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="quarterdeck",
        description="Runs Cohere's Command-R family on your own hardware.",
        epilog="'quarterdeck COMMAND --help' explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__, help="print the version and exit")
    parser.set_defaults(execute=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=CommandParser)
    for command in (run, chat, plan, bench, quantize, convert, env, download, visualize):
        command.add_parser(commands)
    return parser


def _open_closed_streams() -> None:
    """Standard streams that were closed by the caller (``>&-``) read and write nothing, and are there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (to the end)


def _accept_any_text() -> None:
    """A terminal that lacks a character shows its number instead of ending the program."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None and sys.stdout.errors == "strict":
        reconfigure(errors="backslashreplace")


def _message(error: BaseException) -> str:
    text = str(error).strip()
    return text if isinstance(error, QuarterdeckError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _complain(message: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"quarterdeck: {message}", file=sys.stderr, flush=True)


def _discard_output() -> None:
    """Sends what is still buffered nowhere, so that the interpreter does not fail over it when it ends."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
