"""What several commands share on their command lines. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, TypeAlias

from quarterdeck.cli.flags import parse_flags
from quarterdeck.errors import QuarterdeckError
from quarterdeck.locate import EMBEDDED_MODEL

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Execute = Callable[[argparse.Namespace], int]

DEFAULT_MAX_TOKENS = 256
DEFAULT_TOP_P = 0.75


class UsageError(QuarterdeckError):
    """A command line that cannot be right, found when its parts are seen together; exit code 2."""


def add_command(
    commands: Commands, name: str, summary: str, execute: Execute, epilog: str = ""
) -> argparse.ArgumentParser:
    """A new command; options must be spelled out, so that later ones cannot change what a short one means."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog or None,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    return parser


def add_generation_options(parser: argparse.ArgumentParser, temperature: str) -> None:
    """How to write; ``temperature`` says what happens without one."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-tokens",
        type=positive_int,
        metavar="N",
        help=f"most tokens of an answer (default: {DEFAULT_MAX_TOKENS}); the end of the model's context ends it too",
    )
    group.add_argument(
        "--temperature", type=non_negative, metavar="T", help=f"0 takes the most likely token each time ({temperature})"
    )
    group.add_argument(
        "--top-p",
        type=probability,
        metavar="P",
        help=f"draw from the most likely tokens that have probability P together (default: {DEFAULT_TOP_P})",
    )
    group.add_argument(
        "--top-k", type=natural, metavar="K", help="draw from the K most likely tokens (default: 0, off)"
    )
    group.add_argument("--seed", type=natural, metavar="N", help="the same seed draws the same answer")
    group.add_argument(
        "--generation_config",
        "--generation-config",
        metavar="G",
        help="options of generation from a JSON file, or from generation_config.json of a folder or an id on the hub",
    )
    parser.add_argument(
        "flags",
        nargs="*",
        metavar="NAME=VALUE",
        help="any other option of generation, such as repetition_penalty=1.1; wins over --generation_config",
    )


_SPELLED_OUT = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}


def check_generation(arguments: argparse.Namespace) -> dict[str, Any]:
    """The ``NAME=VALUE`` of a command line, which say nothing that an option says too.

    Raises:
        InputError: an unknown name, or a value that cannot be right.
        UsageError: something is said twice, or has no effect.
    """
    flags = parse_flags(arguments.flags)
    for name, option in _SPELLED_OUT.items():
        if name in flags and getattr(arguments, option) is not None:
            raise UsageError(f"{name} is given both as --{option.replace('_', '-')} and as {name}=...; give it once")
    if arguments.temperature == 0:
        for name in ("top_p", "top_k"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} needs a temperature over 0: without it nothing is drawn")
    return flags


def model_help() -> str:
    """What can be named as a model."""
    return f"a folder, an id on the Hugging Face hub, or {EMBEDDED_MODEL}, the model inside the package (default)"


def _number(text: str, convert: type[int] | type[float], holds: Callable[[float], bool], wanted: str) -> int | float:
    try:
        value = convert(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
    if not math.isfinite(value) or not holds(value):
        raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
    return value


def positive_int(text: str) -> int:
    """A whole number from 1 on."""
    return int(_number(text, int, lambda value: value >= 1, "a whole number from 1 on"))


def natural(text: str) -> int:
    """A whole number from 0 on that fits into 63 bits, as seeds must."""
    return int(_number(text, int, lambda value: 0 <= value < 2**63, "a whole number from 0 on"))


def non_negative(text: str) -> float:
    """A number from 0 on."""
    return _number(text, float, lambda value: value >= 0, "a number from 0 on")


def probability(text: str) -> float:
    """A number over 0, up to 1."""
    return _number(text, float, lambda value: 0 < value <= 1, "a number over 0, up to 1")


def device(text: str) -> str | int:
    """The name of a device, or the number of an accelerator."""
    return int(text) if text.removeprefix("-").isdecimal() else text
