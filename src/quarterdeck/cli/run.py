"""``quarterdeck run``: one answer, or the continuation of a text."""

from __future__ import annotations

import argparse
import json
import sys

from quarterdeck.cli.arguments import (
    Commands,
    UsageError,
    add_command,
    add_generation_options,
    add_model_options,
    model_help,
)
from quarterdeck.locate import EMBEDDED_MODEL

_EPILOG = """\
examples:
  quarterdeck run "Who are you?"
  quarterdeck run --task text-generation "Plants create energy through a process known as"
  cat letter.txt | quarterdeck run --system "Answer in one sentence." --json
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "run", "answer one prompt", execute, _EPILOG)
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="what to answer; '-' or nothing reads standard input"
    )
    parser.add_argument("--model", default=EMBEDDED_MODEL, metavar="M", help=model_help())
    parser.add_argument(
        "--task",
        default="chat",
        choices=("chat", "text-generation"),
        help="chat answers the prompt through the model's chat template (default); text-generation continues the "
        "text as it is, without a template, and prints what follows it",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message that goes before the prompt")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: text, citations, tool_plan, tool_calls, finish_reason, usage",
    )
    add_generation_options(parser, "default: 0")
    add_model_options(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Print the answer, as it comes unless it is JSON."""
    _check(arguments)
    prompt = _prompt(arguments.prompt)
    from quarterdeck.cli.answering import Answerer  # here, since it imports torch, which --help need not wait for

    answerer = Answerer.load(arguments.model, arguments)
    if arguments.task == "chat":
        system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
        answer = answerer.answer([*system, {"role": "user", "content": prompt}])
    else:
        answer = answerer.continuation(prompt)
    if arguments.json:
        print(json.dumps(answer.finished().as_dict(), ensure_ascii=False, indent=2))
        return 0
    for piece in answer:
        print(piece, end="", flush=True)
    if not answer.text.endswith("\n"):
        print()
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    if arguments.task == "text-generation" and arguments.system is not None:
        raise UsageError("--system has no place in --task text-generation, which has no turns; put it into PROMPT")
    if not arguments.temperature:
        for option in ("top_p", "top_k"):
            if getattr(arguments, option) is not None:
                raise UsageError(
                    f"--{option.replace('_', '-')} needs --temperature over 0: without it nothing is drawn"
                )


def _prompt(given: str | None) -> str:
    """The prompt from the command line, or else standard input without its final line break."""
    if given in (None, "-"):
        if sys.stdin.isatty():
            print("reading the prompt; end it with Ctrl-D on an empty line", file=sys.stderr)
        given = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    assert given is not None
    if not given.strip():
        raise UsageError("the prompt is empty: give some text, as an argument or on standard input")
    return given
