"""``quarterdeck run``: one answer, or the continuation of a text, or one for every row of a file."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from quarterdeck.cli.arguments import (
    Commands,
    UsageError,
    add_command,
    add_generation_options,
    check_generation,
    model_help,
)
from quarterdeck.cli.flags import looks_like_flag
from quarterdeck.cli.grounding import DOCUMENTS_HELP, add_citation_option, check_grounding, options_of
from quarterdeck.cli.loading import add_model_options, check_loading
from quarterdeck.cli.run_rows import (
    Respond,
    add_row_options,
    answer_rows,
    check_output,
    check_rows,
    first_and_all,
    is_about_rows,
)
from quarterdeck.locate import EMBEDDED_MODEL

if TYPE_CHECKING:
    from quarterdeck.cli.answering import Answerer

_EPILOG = f"""\
{DOCUMENTS_HELP}
examples:
  quarterdeck run "Who are you?"
  quarterdeck run --task text-generation "Plants create energy through a process known as" repetition_penalty=1.1
  cat letter.txt | quarterdeck run --system "Answer in one sentence." --json
  quarterdeck run "Where do penguins live?" --documents penguins.json
  quarterdeck run --input questions.csv --column question --output answers.csv --quantization int4
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "run", "answer one prompt, or every row of a file", execute, _EPILOG)
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="what to answer; '-' or nothing reads standard input"
    )
    parser.add_argument("--model", default=EMBEDDED_MODEL, metavar="M", help=model_help())
    parser.add_argument(
        "--task",
        default="chat",
        choices=("chat", "text-generation"),
        help="chat answers the prompt, in the format that Command-R's chat models were trained with (default); "
        "text-generation continues the text as it is and prints what follows it: for models without chat training",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message that goes before the prompt")
    parser.add_argument("--documents", metavar="FILE", help="answer from these documents and cite them; see below")
    parser.add_argument(
        "--tools",
        metavar="FILE",
        help="tools that the model may ask to be called: a JSON list, or one per line, in OpenAI's or Cohere's form; "
        "the calls are printed, not made",
    )
    add_citation_option(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: text, citations, tool_plan, tool_calls, finish_reason, usage",
    )
    add_row_options(parser)
    add_generation_options(parser, "default: 0")
    add_model_options(parser)
    parser.set_defaults(verbose=False)
    parser.add_argument("--config", metavar="C", help="a configuration in place of the model's: a folder or an id")
    parser.add_argument("--tokenizer", metavar="T", help="a tokenizer in place of the model's: a folder or an id")


def execute(arguments: argparse.Namespace) -> int:
    """Print the answer, as it comes unless it is JSON."""
    if arguments.prompt is not None and looks_like_flag(arguments.prompt):
        arguments.flags.insert(0, arguments.prompt)
        arguments.prompt = None
    _check(arguments)
    if is_about_rows(arguments):
        return _run_rows(arguments)
    prompt = _prompt(arguments.prompt)
    options = _options(arguments)
    from quarterdeck.cli.answering import Answerer  # here, since it imports torch, which --help need not wait for

    answerer = Answerer.load(arguments.model, arguments)
    if arguments.task == "text-generation":
        _continue(answerer, prompt, arguments.json)
        return 0
    _answer(answerer, _messages(arguments.system, prompt), options, arguments.json)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    options = options_of(arguments)
    if arguments.tools is not None:
        from quarterdeck.chat.documents.reading import read_tools_from

        options["tools"] = read_tools_from(arguments.tools)
    return options


def _run_rows(arguments: argparse.Namespace) -> int:
    check_output(arguments)
    column, rows = first_and_all(arguments)
    options = _options(arguments)
    from quarterdeck.cli.answering import Answerer

    answerer = Answerer.load(arguments.model, arguments)
    return answer_rows(arguments, column, rows, _responder(answerer, arguments, options))


def _responder(answerer: Answerer, arguments: argparse.Namespace, options: dict[str, Any]) -> Respond:
    """Each row as if it were alone: with a seed, every row draws from its beginning."""
    from quarterdeck.chat.answers.answering import answer
    from quarterdeck.cli.dialogue import check_text

    kept = ["text", "finish_reason", *(("citations",) if "documents" in options else ())]
    kept += ["tool_calls"] if "tools" in options else []

    def respond(prompt: str) -> dict[str, Any]:
        if answerer.generator is not None:
            answerer.generator.manual_seed(arguments.seed)
        if arguments.task == "text-generation":
            text = answerer.continuation(prompt)
            return {"text": "".join(text), "finish_reason": text.finish_reason}
        check_text(prompt)
        found = answer(answerer.raw, _messages(arguments.system, prompt), **options).to_dict()
        return {name: found[name] for name in kept}

    return respond


def _continue(answerer: Answerer, prompt: str, as_json: bool) -> None:
    from quarterdeck.cli.rich_terminal import open_screen

    text, written, screen = answerer.continuation(prompt), "", open_screen()
    for piece in text:
        written += piece
        if not as_json:
            screen.write(piece)
    if as_json:
        plain = {"text": written, "citations": [], "tool_plan": "", "tool_calls": []}
        _print_json({**plain, "finish_reason": text.finish_reason, "usage": vars(text.usage)})
    elif not written.endswith("\n"):
        print()


def _answer(answerer: Answerer, messages: list[dict[str, str]], options: dict[str, Any], as_json: bool) -> None:
    from quarterdeck.chat.answers.answering import answer, stream_answer
    from quarterdeck.cli.dialogue import check_text
    from quarterdeck.cli.footnotes import AnswerView
    from quarterdeck.cli.rich_terminal import open_screen

    for message in messages:
        check_text(message["content"])
    if as_json:
        _print_json(answer(answerer.raw, messages, **options).to_dict())
        return
    view = AnswerView(open_screen())
    with stream_answer(answerer.raw, messages, **options) as events:
        for event in events:
            view.take(event)
    if view.has_text or view.is_empty:
        print(flush=True)
    view.close()


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _messages(system: str | None, prompt: str) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": prompt})
    return messages


def _check(arguments: argparse.Namespace) -> None:
    """Refuse options that would have no effect."""
    if arguments.task == "text-generation":
        for option in ("system", "documents", "tools", "citations"):
            if getattr(arguments, option) is not None:
                raise UsageError(
                    f"--{option} has no place in --task text-generation, which has no turns; put it into PROMPT"
                )
    check_grounding(arguments)
    check_loading(arguments)
    check_rows(arguments)
    if arguments.documents == "-" and arguments.prompt in (None, "-") and not is_about_rows(arguments):
        raise UsageError("--documents - reads standard input, so PROMPT has to be an argument")
    flags = check_generation(arguments)
    draws = flags.get("temperature") or flags.get("do_sample") or arguments.generation_config is not None
    if not arguments.temperature and not draws:
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
