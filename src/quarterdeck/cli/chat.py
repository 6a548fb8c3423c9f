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
from quarterdeck.locate import EMBEDDED_MODEL

DEFAULT_TEMPERATURE = 0.3

_EPILOG = """\
In the session, !help lists the commands: !clear, !save, !set, !exit. Ctrl-C stops an answer and leaves the session
running. If standard input is no terminal, each of its lines is answered in turn, without prompts or colours.
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "chat", "hold a conversation", execute, _EPILOG)
    parser.add_argument("model", nargs="?", default=EMBEDDED_MODEL, metavar="MODEL", help=model_help())
    parser.add_argument("--system", metavar="TEXT", help="system message that goes before the conversation")
    add_generation_options(parser, f"default: {DEFAULT_TEMPERATURE}")
    add_model_options(parser)


def execute(arguments: argparse.Namespace) -> int:
    """Talk until the end of input."""
    if arguments.temperature is None:
        arguments.temperature = DEFAULT_TEMPERATURE
    for name in ("top_p", "top_k"):
        if arguments.temperature == 0 and getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} needs a temperature over 0: without it nothing is drawn")
    # here, since they import torch and rich, which --help need not wait for
    from quarterdeck.cli.answering import Answerer
    from quarterdeck.cli.conversation import Conversation
    from quarterdeck.cli.session import Session
    from quarterdeck.cli.terminal import RichTerminal, open_terminal

    answerer = Answerer.load(arguments.model, arguments)
    answerer.check_chat()
    terminal = open_terminal()
    if isinstance(terminal, RichTerminal):
        terminal.show(f"{arguments.model} on {answerer.model.device}; !help lists the commands, !exit ends")
    Session(Conversation(answerer, arguments.system), terminal).run()
    return 0
