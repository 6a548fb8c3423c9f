"""What several commands share on their command lines. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeAlias

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


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which version of the model, in which form, where."""
    group = parser.add_argument_group("model")
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a model on the hub")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type of the weights (default: auto, the checkpoint's)",
    )
    group.add_argument(
        "--device",
        type=device,
        metavar="D",
        help="where to run: cpu, cuda, cuda:1 ...; a number means that accelerator, -1 the CPU "
        "(default: the first accelerator, else the CPU)",
    )
    group.add_argument(
        "--attn_implementation",
        "--attn-implementation",
        metavar="A",
        help="attention backend: sdpa (default), eager, flash_attention_2 or flex_attention",
    )


def add_generation_options(parser: argparse.ArgumentParser, temperature: str) -> None:
    """How to write; ``temperature`` says what happens without one."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-tokens",
        type=positive_int,
        default=DEFAULT_MAX_TOKENS,
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
