"""``quarterdeck convert``: a model from safetensors to GGUF, which llama.cpp reads, or back."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from quarterdeck.cli.arguments import Commands, UsageError, add_command
from quarterdeck.cli.targets import check_target, size_on_disk
from quarterdeck.locate import EMBEDDED_MODEL, HubOptions

_GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_PLAIN_TYPES = ("f32", "f16", "bf16")
_SHARD_SIZE = "5GB"
_FILE_SUFFIX = re.compile(r"\.[a-zA-Z]\w*")  # not what ends aya-v1.5 or command-r-0.5b
_EPILOG = """\
What TARGET is called says what is written: a name that ends in .gguf is a file, all others are folders. A name that
looks like another kind of file, such as out.bin, needs --to safetensors. The tokenizer, its chat templates and
generation defaults go over with the weights. The path is printed on standard output, format and size on standard error.

examples:
  quarterdeck convert midshipman midshipman.gguf --type q8_0
  quarterdeck convert ./command-r.Q6_K.gguf ./command-r --type bf16
  quarterdeck convert organisation/name-GGUF ./name --gguf-file name.Q8_0.gguf
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "convert", "turn safetensors into GGUF or GGUF into safetensors", execute, _EPILOG)
    parser.add_argument(
        "source", metavar="SOURCE", help=f"a folder, an id on the Hugging Face hub, {EMBEDDED_MODEL}, or a GGUF file"
    )
    parser.add_argument("target", metavar="TARGET", type=Path, help="file or folder to write, which must not be there")
    parser.add_argument("--to", choices=("gguf", "safetensors"), help="what to write (default: what TARGET is called)")
    parser.add_argument(
        "--type",
        choices=_GGUF_TYPES,
        metavar="T",
        help=f"type of the weights: {', '.join(_GGUF_TYPES)}; the last five for GGUF only (default: as they are, and "
        "bf16 for quantized ones)",
    )
    parser.add_argument("--gguf-file", metavar="NAME", help="the GGUF file to read inside the folder or id SOURCE")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a model on the hub")
    parser.add_argument("--max-shard-size", metavar="N", help=f"most in one safetensors file (default: {_SHARD_SIZE})")


def execute(arguments: argparse.Namespace) -> int:
    """Convert, with progress and what was written on stderr, and print the path on stdout."""
    target: Path = arguments.target
    to_gguf = target.suffix.lower() == ".gguf"
    _check(arguments, to_gguf)
    from quarterdeck.model import CohereForCausalLM  # here, since --help need not wait for torch
    from quarterdeck.weights.convert import check_complete, open_checkpoint, to_gguf_file, to_safetensors
    from quarterdeck.weights.save import parse_size

    shard_size = parse_size(arguments.max_shard_size or _SHARD_SIZE)
    checkpoint = open_checkpoint(
        arguments.source, gguf_file=arguments.gguf_file, hub=HubOptions(revision=arguments.revision)
    )
    check_complete(checkpoint, CohereForCausalLM._on_meta(checkpoint.config))
    kind = None if arguments.type is None else arguments.type.upper()
    if to_gguf:
        _with_progress(lambda progress: to_gguf_file(checkpoint, target, kind, progress))
    else:
        _with_progress(lambda progress: to_safetensors(checkpoint, target, kind, progress, max_shard_size=shard_size))
    written = (kind or checkpoint.plain_type).lower()
    form = "GGUF" if to_gguf else "safetensors"
    print(f"wrote {form} in {written}: {size_on_disk(target)}", file=sys.stderr)
    print(target)
    return 0


def _check(arguments: argparse.Namespace, to_gguf: bool) -> None:
    """Refuse what cannot be right before anything is read."""
    target: Path = arguments.target
    if arguments.to == "gguf" and not to_gguf:
        raise UsageError(f"--to gguf writes a file, and '{target}' does not end in .gguf: call it '{target}.gguf'")
    if arguments.to == "safetensors" and to_gguf:
        raise UsageError(f"--to safetensors writes a folder, and '{target}' ends in .gguf: leave that out")
    if arguments.to is None and not to_gguf and _FILE_SUFFIX.fullmatch(target.suffix) and not target.is_dir():
        raise UsageError(
            f"'{target}' looks like a file of the kind {target.suffix}, and the only files that are written are .gguf: "
            f"call it '{target.with_suffix('.gguf')}', or give --to safetensors to make a folder of that name"
        )
    if not to_gguf and arguments.type not in (None, *_PLAIN_TYPES):
        raise UsageError(f"--type {arguments.type} is for GGUF; safetensors are written in {', '.join(_PLAIN_TYPES)}")
    if to_gguf and arguments.max_shard_size is not None:
        raise UsageError("--max-shard-size is for safetensors; a GGUF file is one file: leave it out")
    check_target(target, is_file=to_gguf)


def _with_progress(work: Callable[[Callable[[int, int], None]], None]) -> None:
    """A bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tensors", total=None)
        work(lambda done, count: bar.update(task, completed=done, total=count))
