"""``quarterdeck visualize``: who sees whom in a text, and what a model looks at."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quarterdeck.cli.arguments import Commands, UsageError, add_command, device, model_help, natural, positive_int
from quarterdeck.cli.grounding import DOCUMENTS_HELP, read_library
from quarterdeck.errors import InputError
from quarterdeck.locate import EMBEDDED_MODEL

if TYPE_CHECKING:
    from quarterdeck.visualize import AttentionView

_FORMATS = {".txt": "text", ".svg": "svg", ".html": "html", ".htm": "html"}

_EPILOG = f"""\
{DOCUMENTS_HELP}
examples:
  quarterdeck visualize "Plants create energy"
  quarterdeck visualize "Ahoy" "Plants create energy" --padding left
  quarterdeck visualize --packed "Ahoy" "Plants create energy"
  quarterdeck visualize "Plants create energy" --past -1 --max-cache-len 16
  quarterdeck visualize --chat chat.json --weights --output attention.html
  quarterdeck visualize "Where do penguins live?" --documents penguins.json --layer 2 --head 0 --output attention.svg
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "visualize", "show who sees whom in a text, and what a model looks at", execute, _EPILOG
    )
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text, or several for a batch; '-' or nothing reads standard input"
    )
    parser.add_argument("--model", default=EMBEDDED_MODEL, metavar="M", help=model_help())
    _add_content(parser.add_argument_group("what is shown"))
    _add_weights(parser.add_argument_group("attention weights"))
    _add_output(parser.add_argument_group("output"))


def _add_content(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--chat", metavar="FILE", help="a conversation in place of TEXT: a JSON list of messages with role and content"
    )
    group.add_argument("--documents", metavar="FILE", help="ground the conversation, or TEXT, on these; see below")
    group.add_argument("--packed", action="store_true", help="put the texts one behind the other into one row")
    group.add_argument("--padding", choices=("left", "right"), help="side of the padding (default: the tokenizer's)")
    group.add_argument("--pad-to", type=positive_int, metavar="N", help="pad to N tokens (default: the longest text)")
    group.add_argument(
        "--past", type=int, default=0, metavar="N", help="the first N tokens are in the cache; -1: all but the last"
    )
    group.add_argument("--max-cache-len", type=positive_int, metavar="N", help="use a static cache of N slots")


def _add_weights(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--weights", action="store_true", help="run the model and show how much each token looks at which"
    )
    group.add_argument("--layer", type=natural, metavar="N", help="weights of this layer, from 0 (default: the mean)")
    group.add_argument("--head", type=natural, metavar="N", help="weights of this head, from 0 (default: the mean)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type of its weights (default: the checkpoint's)",
    )
    group.add_argument("--device", type=device, metavar="D", help="where to run it: cpu, cuda, cuda:1 ...")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output", metavar="FILE", help="write the picture to FILE; .txt, .svg or .html say the format")
    group.add_argument(
        "--format",
        choices=("text", "svg", "html", "transformers"),
        help="text (default), svg, html (a page to explore), or transformers: what transformers prints for TEXT",
    )
    group.add_argument("--theme", choices=("light", "dark"), help="colours of an SVG (default: light)")
    group.add_argument("--width", type=positive_int, metavar="N", help="columns of text (default: the terminal's)")
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a model on the hub")


def execute(arguments: argparse.Namespace) -> int:
    """Draw the picture."""
    form = _form(arguments)
    _check(arguments, form)
    texts = _texts(arguments)
    content = _content(arguments, texts)
    from quarterdeck.visualize import AttentionMaskVisualizer  # here: it imports torch, which --help need not wait for

    visualizer = AttentionMaskVisualizer(
        arguments.model, revision=arguments.revision, dtype=arguments.dtype or "auto", device=arguments.device
    )
    if form == "transformers":
        visualizer(texts[0])
        return 0
    view = visualizer.view(
        **content,
        padding=arguments.padding,
        pad_to=arguments.pad_to,
        past=arguments.past,
        max_cache_len=arguments.max_cache_len,
        weights=arguments.weights,
        layer=arguments.layer,
        head=arguments.head,
    )
    _write(_drawn(view, form, arguments), arguments.output)
    return 0


def _form(arguments: argparse.Namespace) -> str:
    if arguments.format is not None:
        return str(arguments.format)
    if arguments.output is None:
        return "text"
    ending = Path(arguments.output).suffix.lower()
    if ending not in _FORMATS:
        raise UsageError(
            f"--output {arguments.output} does not say the format: give --format, or end it with .svg or .html"
        )
    return _FORMATS[ending]


def _check(arguments: argparse.Namespace, form: str) -> None:
    """Refuse options that go with nothing, or not together."""
    if form != "svg" and arguments.theme is not None:
        raise UsageError("--theme is for SVG; a page has both, and a terminal has its own colours")
    if form != "text" and arguments.width is not None:
        raise UsageError("--width is for text")
    has_weights = arguments.weights or arguments.layer is not None or arguments.head is not None
    if not has_weights and (arguments.dtype is not None or arguments.device is not None):
        raise UsageError("--dtype and --device say how to run the model, which only --weights, --layer and --head do")
    if arguments.chat is not None and arguments.texts:
        raise UsageError("--chat is in place of TEXT: give one of the two")
    if arguments.packed and (arguments.chat is not None or arguments.documents is not None):
        raise UsageError("--packed is for texts, not for conversations")
    if arguments.documents is not None and len(arguments.texts) > 1:
        raise UsageError("--documents ground one TEXT or a --chat")
    if form == "transformers":
        _check_classic(arguments, has_weights)


def _check_classic(arguments: argparse.Namespace, has_weights: bool) -> None:
    given = [arguments.chat, arguments.documents, arguments.padding, arguments.pad_to, arguments.max_cache_len]
    if (
        any(item is not None for item in (*given, arguments.output))
        or arguments.packed
        or arguments.past
        or has_weights
    ):
        raise UsageError("--format transformers prints the mask of one TEXT, and nothing else goes with it")
    if len(arguments.texts) > 1:
        raise UsageError("--format transformers takes one TEXT")


def _texts(arguments: argparse.Namespace) -> list[str]:
    """The texts of the command line; standard input without its last line break where there are none."""
    if arguments.chat is not None:
        return []
    if arguments.documents == "-" and arguments.texts in ([], ["-"]):
        raise UsageError("--documents - reads standard input, so TEXT has to be an argument")
    texts = [_read_input("the text") if text == "-" else text for text in arguments.texts or ["-"]]
    if not all(text.strip() for text in texts):
        raise UsageError("a text is empty: give some text, as an argument or on standard input")
    return texts


def _read_input(what: str) -> str:
    if sys.stdin.isatty():
        print(f"reading {what}; end it with Ctrl-D on an empty line", file=sys.stderr)
    return sys.stdin.read().removesuffix("\n").removesuffix("\r")


def _content(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    """What to show, as arguments of `AttentionMaskVisualizer.view`."""
    if arguments.packed:
        return {"packed": texts}
    documents = None if arguments.documents is None else read_library(arguments.documents).documents
    if arguments.chat is not None:
        return {"text": _read_chat(arguments.chat), "documents": documents}
    return {"text": texts[0] if len(texts) == 1 else texts, "documents": documents}


def _read_chat(name: str) -> Any:
    text = _read_input("messages") if name == "-" else Path(name).read_text(encoding="utf-8")
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name} is no JSON: {error}") from error
    if not isinstance(messages, list) or not messages or isinstance(messages[0], str):
        raise InputError(f'{name} must be a JSON list of messages, such as [{{"role": "user", "content": "Ahoy"}}]')
    return messages


def _drawn(view: AttentionView, form: str, arguments: argparse.Namespace) -> str:
    if form == "svg":
        return view.svg(arguments.theme or "light")
    if form == "html":
        return view.html()
    width = arguments.width or (None if arguments.output is None else 100)
    return view.text(width, color=arguments.output is None and sys.stdout.isatty()) + "\n"


def _write(picture: str, output: str | None) -> None:
    if output is None:
        sys.stdout.write(picture)
        return
    Path(output).write_text(picture, encoding="utf-8")
    print(f"written to {output}", file=sys.stderr)
