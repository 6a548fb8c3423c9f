"""``quarterdeck chat``: a conversation at the terminal."""

from __future__ import annotations

import argparse
import logging
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

from quarterdeck.cli.arguments import (
    Commands,
    UsageError,
    add_command,
    add_generation_options,
    check_generation,
    model_help,
)
from quarterdeck.cli.flags import SETTABLE
from quarterdeck.cli.functions import function_names, load_functions
from quarterdeck.cli.grounding import (
    DOCUMENTS_HELP,
    add_citation_option,
    check_grounding,
    listen_to_the_terminal,
    options_of,
)
from quarterdeck.cli.loading import add_model_options, check_loading, loading_options_given
from quarterdeck.cli.server_address import Server, add_server_options, server_of
from quarterdeck.locate import EMBEDDED_MODEL

if TYPE_CHECKING:
    from quarterdeck.cli.dialogue import Dialogue
    from quarterdeck.cli.terminal import Terminal

DEFAULT_TEMPERATURE = 0.3

_EPILOG = f"""\
MODEL may be the address of a server that has OpenAI's API: http://localhost:8000/v1, or localhost:8000.
In the session, !help lists the commands: !retry, !save, !load, !set, !source, !exit ... Enter sends; Alt-Enter, a
backslash at the end of a line, or a pasted text make more lines. Ctrl-C stops an answer and leaves the session running.
If standard input is no terminal, each of its lines is answered in turn, without prompts or colours.

{DOCUMENTS_HELP}
  In a folder all files of these kinds are read, also in folders within it; hidden ones are passed over. If all
  documents are too long for the model's context, each question gets those that share the most words with it
  and with the one before it.

examples:
  quarterdeck chat
  quarterdeck chat CohereForAI/aya-expanse-8b --load_in_4bit temperature=0.6 repetition_penalty=1.1
  quarterdeck chat CohereForAI/c4ai-command-r-v01 --quantization int4 --documents handbook/
  quarterdeck chat http://localhost:8000/v1 --model_name_or_path aya-expanse-8b
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "chat", "hold a conversation", execute, _EPILOG)
    parser.add_argument("model", nargs="?", metavar="MODEL", help=model_help())
    parser.add_argument("--system", "--system_prompt", metavar="TEXT", help="message that goes before the conversation")
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
    _add_session_options(parser.add_argument_group("session"))
    add_generation_options(parser, f"default: {DEFAULT_TEMPERATURE}")
    add_model_options(parser)
    add_server_options(parser)
    parser.set_defaults(config=None, tokenizer=None)


def _add_session_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--history", metavar="FILE", help="go on from a saved conversation")
    group.add_argument("--save_folder", "--save-folder", metavar="DIR", help="where !save without a name writes to")
    group.add_argument(
        "--examples_path",
        "--examples-path",
        metavar="FILE",
        help="named questions for !example, YAML or JSON",
    )
    group.add_argument("--user", metavar="NAME", default="you", help="what stands before your lines (default: you)")
    group.add_argument("--verbose", action="store_true", help="show what answers took, and what is logged")
    group.add_argument("--no-markdown", action="store_true", help="show answers as they are written, unformatted")
    group.add_argument(
        "--no-input-history",
        action="store_true",
        help="do not keep what you write for later sessions",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Talk until the end of input."""
    if arguments.model is not None and "=" in arguments.model and not os.path.exists(arguments.model):
        arguments.flags.insert(0, arguments.model)
        arguments.model = None
    server = server_of(arguments)
    if server is None:
        _check_local(arguments)
    else:
        _check_remote(arguments)
    if arguments.verbose:
        logging.basicConfig(level=logging.INFO)
    # here, since they import torch and rich, which --help need not wait for
    from quarterdeck.cli.examples import read_examples
    from quarterdeck.cli.histories import read_history

    examples = read_examples(arguments.examples_path)
    if arguments.history is not None:
        read_history(arguments.history)  # its errors come before the model is loaded
    dialogue, name, settings = _local(arguments) if server is None else _remote(server, arguments)
    with closing(dialogue):
        _hold(dialogue, name, arguments, settings, examples)
    return 0


def _hold(
    dialogue: Dialogue, name: str, arguments: argparse.Namespace, settings: tuple[str, ...], examples: dict[str, str]
) -> None:
    from quarterdeck.cli.histories import HistoryWriter
    from quarterdeck.cli.session import Habits, Session

    terminal = _terminal(arguments, settings, tuple(examples))
    if _is_rich(terminal):
        terminal.show(f"{name}; !help lists the commands, !exit ends")
        if "documents" in dialogue.status():
            terminal.show(f"{dialogue.status()['documents']} documents; !source N opens a source")
    habits = Habits(examples, HistoryWriter(arguments.save_folder), arguments.verbose, name)
    session = Session(dialogue, terminal, habits)
    if arguments.history is not None:
        session.load(arguments.history)
    session.run()


def _check_local(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, and fill in what follows."""
    if arguments.api_key_env is not None:
        raise UsageError("--api_key_env is for a server: give its address in place of MODEL, or --host")
    other = arguments.model_name_or_path
    if other is not None and arguments.model not in (None, other):
        raise UsageError(f"the model is {arguments.model} and --model_name_or_path says {other}: give one of them")
    arguments.model = arguments.model or other or EMBEDDED_MODEL
    check_grounding(arguments)
    check_loading(arguments)
    flags = check_generation(arguments)
    is_drawing = flags.get("do_sample", True) is True and arguments.generation_config is None
    if arguments.temperature is None and is_drawing:
        arguments.temperature = flags.get("temperature", DEFAULT_TEMPERATURE)


def _check_remote(arguments: argparse.Namespace) -> None:
    """Refuse what a server cannot be told."""
    loading = loading_options_given(arguments)
    if loading:
        raise UsageError(f"{', '.join(loading)}: the server has loaded its model already; leave it out")
    for option in ("documents", "tools", "citations", "generation_config"):
        if getattr(arguments, option) is not None:
            raise UsageError(
                f"--{option} is refused with a server: only messages and settings are sent, since OpenAI's API has no "
                "place for it; give a MODEL instead"
            )


def _local(arguments: argparse.Namespace) -> tuple[Dialogue, str, tuple[str, ...]]:
    options = options_of(arguments)
    if arguments.tools is not None:
        from quarterdeck.chat.prompts.conversation import read_tools

        options["tools"] = read_tools(load_functions(arguments.tools))
    if arguments.documents == "-":
        listen_to_the_terminal()
    from quarterdeck.cli.answering import Answerer
    from quarterdeck.cli.conversation import Conversation, Grounds

    answerer = Answerer.load(arguments.model, arguments)
    name = f"{arguments.model} on {answerer.model.device}"
    return Conversation(answerer, arguments.system, Grounds(**options)), name, SETTABLE


def _remote(server: Server, arguments: argparse.Namespace) -> tuple[Dialogue, str, tuple[str, ...]]:
    from quarterdeck.cli.flags import parse_words
    from quarterdeck.cli.remote import REMOTE_SETTINGS, RemoteConversation

    named = {
        "max_new_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "seed": arguments.seed,
    }
    settings = {name: value for name, value in named.items() if value is not None}
    dialogue = RemoteConversation(server, arguments.system, settings | parse_words(arguments.flags))
    return dialogue, f"{dialogue.model} at {server.url}", REMOTE_SETTINGS


def _terminal(arguments: argparse.Namespace, settings: tuple[str, ...], examples: tuple[str, ...]) -> Terminal:
    from quarterdeck.cli.rich_terminal import RichTerminal, can_draw, has_person, open_console, plain_terminal

    if not has_person():
        return plain_terminal()
    from quarterdeck.cli.editor import Editor, Words, history_path

    console = open_console()
    history = None if arguments.no_input_history else history_path()
    editor = Editor(f"{arguments.user}> ", history, Words(settings, examples))
    return RichTerminal(console, editor, markdown=can_draw(console) and not arguments.no_markdown)


def _is_rich(terminal: Any) -> bool:
    from quarterdeck.cli.rich_terminal import RichTerminal

    return isinstance(terminal, RichTerminal)
