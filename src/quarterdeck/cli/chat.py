"""``quarterdeck chat``: a conversation at the terminal."""

from __future__ import annotations

import argparse

from quarterdeck.cli.arguments import (
    Commands,
    UsageError,
    add_command,
    add_generation_options,
    add_model_options,
    model_help,
)
from quarterdeck.cli.functions import function_names, load_functions
from quarterdeck.cli.grounding import (
    DOCUMENTS_HELP,
    add_citation_option,
    check_grounding,
    listen_to_the_terminal,
    options_of,
)
from quarterdeck.locate import EMBEDDED_MODEL

DEFAULT_TEMPERATURE = 0.3

_EPILOG = f"""\
In the session, !help lists the commands: !clear, !save, !set, !source, !exit. Ctrl-C stops an answer and leaves the
session running. If standard input is no terminal, each of its lines is answered in turn, without prompts or colours.

{DOCUMENTS_HELP}
  In a folder all files of these kinds are read, also in folders within it; hidden ones are passed over. If all
  documents are too long for the model's context, each question gets those that share the most words with it
  and with the one before it.
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "chat", "hold a conversation", execute, _EPILOG)
    parser.add_argument("model", nargs="?", default=EMBEDDED_MODEL, metavar="MODEL", help=model_help())
    parser.add_argument("--system", metavar="TEXT", help="system message that goes before the conversation")
    parser.add_argument(
        "--documents", metavar="FILE|FOLDER|-", help="answer from these documents and cite them; see below"
    )
    parser.add_argument(
        "--tools",
        type=function_names,
        metavar="MODULE:FUNCTION[,FUNCTION]",
        help="Python functions with type hints that the model may call; MODULE is imported, from the current folder "
        "or as it is installed, which runs it",
    )
    add_citation_option(parser)
    add_generation_options(parser, f"default: {DEFAULT_TEMPERATURE}")
    add_model_options(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Talk until the end of input."""
    check_grounding(arguments)
    if arguments.temperature is None:
        arguments.temperature = DEFAULT_TEMPERATURE
    for name in ("top_p", "top_k"):
        if arguments.temperature == 0 and getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} needs a temperature over 0: without it nothing is drawn")
    options = options_of(arguments)
    if arguments.tools is not None:
        from quarterdeck.chat.prompts.conversation import read_tools

        options["tools"] = read_tools(load_functions(arguments.tools))
    if arguments.documents == "-":
        listen_to_the_terminal()
    # here, since they import torch and rich, which --help need not wait for
    from quarterdeck.cli.answering import Answerer
    from quarterdeck.cli.conversation import Conversation, Grounds
    from quarterdeck.cli.session import Session
    from quarterdeck.cli.terminal import RichTerminal, open_terminal

    answerer = Answerer.load(arguments.model, arguments)
    terminal = open_terminal()
    if isinstance(terminal, RichTerminal):
        terminal.show(f"{arguments.model} on {answerer.model.device}; !help lists the commands, !exit ends")
        if "documents" in options:
            terminal.show(f"{len(options['documents'])} documents; !source N opens a source")
    Session(Conversation(answerer, arguments.system, Grounds(**options)), terminal).run()
    return 0
