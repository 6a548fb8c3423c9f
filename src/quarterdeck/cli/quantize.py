"""``quarterdeck quantize``: a checkpoint in fewer bits, and what that cost each layer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quarterdeck.cli.arguments import Commands, UsageError, add_command, device, positive_int
from quarterdeck.cli.targets import check_target, size_on_disk
from quarterdeck.errors import CheckpointNotFoundError, InputError, TokenizerError
from quarterdeck.locate import EMBEDDED_MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from quarterdeck.model import CohereForCausalLM
    from quarterdeck.quantization.config import Method, QuantizationConfig
    from quarterdeck.quantization.report import LayerError
    from quarterdeck.tokenizer import CohereTokenizerFast

_EPILOG = """\
OUT is a folder like any other model: quarterdeck run --model OUT ...

examples:
  quarterdeck quantize midshipman small
  quarterdeck quantize ./aya-expanse-8b ./aya-expanse-8b-int4 --calibration articles.txt
  quarterdeck quantize ./aya-expanse-8b ./aya-expanse-8b-int8 --format int8
"""

_ROWS, _ROW_LENGTH = 128, 512


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "quantize", "write a model with weights in 8 or 4 bits", execute, _EPILOG)
    parser.add_argument("model", metavar="MODEL", help=f"a folder, an id on the Hugging Face hub, or {EMBEDDED_MODEL}")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, which must not be there or be empty")
    parser.add_argument(
        "--format",
        default="int4",
        choices=("int4", "int8"),
        help="int4: 4.5 bits for each weight, scales included (default); int8: 8 bits",
    )
    parser.add_argument(
        "--asymmetric", action="store_true", help="int4 with a scale and a minimum for 64 weights, not a scale for 32"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="NAME",
        help="leave modules of this name as they are, such as lm_head or model.layers.0; may be given several times",
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a model on the hub")
    parser.add_argument(
        "--device", type=device, default="cpu", metavar="D", help="where to compute: cpu (default), cuda, cuda:1 ..."
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file to write (default: 5GB)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calibration", type=Path, metavar="FILE", help="text (UTF-8) of the kind that the model is to read and write"
    )
    group.add_argument(
        "--method",
        choices=("round-to-nearest", "gptq"),
        help="gptq lets later columns of a weight make up for what earlier ones lose, by what a layer sees of the "
        "text (default with --calibration); round-to-nearest needs no text (default without)",
    )
    group.add_argument(
        "--rows", type=positive_int, metavar="N", help=f"rows of text to take at most (default: {_ROWS})"
    )
    group.add_argument("--row-length", type=positive_int, metavar="N", help=f"tokens in a row (default: {_ROW_LENGTH})")


def execute(arguments: argparse.Namespace) -> int:
    """Load, quantize, save, report."""
    config = _configuration(arguments)
    check_target(arguments.out, is_file=False)
    from quarterdeck.auto import AutoModelForCausalLM  # here, since --help need not wait for torch
    from quarterdeck.weights.save import parse_size

    parse_size(arguments.max_shard_size)
    tokenizer = _tokenizer(arguments)
    batches = [] if arguments.calibration is None else _rows(arguments, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype="auto", device_map=arguments.device, revision=arguments.revision
    )
    _check_for(model, arguments.keep, batches)
    before = model.get_memory_footprint()
    errors = list(_with_progress(model, config, batches))
    model.save_pretrained(arguments.out, max_shard_size=arguments.max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(arguments.out)
    report = {"model": str(arguments.model), "out": str(arguments.out), "format": config.to_dict()}
    sizes = {"bytes_before": before, "bytes_after": model.get_memory_footprint()}
    _show(report | sizes, errors, as_json=arguments.json)
    print(f"wrote safetensors in {_described(config)}: {size_on_disk(arguments.out)}", file=sys.stderr)
    return 0


def _configuration(arguments: argparse.Namespace) -> QuantizationConfig:
    from quarterdeck.quantization.config import QuantizationConfig

    method: Method = arguments.method or ("round-to-nearest" if arguments.calibration is None else "gptq")
    if method == "gptq" and arguments.calibration is None:
        raise UsageError("--method gptq needs text: give --calibration FILE")
    for name in ("rows", "row_length"):
        if arguments.calibration is None and getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is about text: give --calibration FILE, or leave it out")
    if arguments.asymmetric and arguments.format == "int8":
        raise UsageError("--asymmetric is for int4: leave it out, or leave out --format int8")
    return QuantizationConfig(
        format=arguments.format,
        symmetric=not arguments.asymmetric,
        modules_to_not_convert=tuple(arguments.keep),
        method=method,
    )


def _tokenizer(arguments: argparse.Namespace) -> CohereTokenizerFast | None:
    """The model's tokenizer; None if it has none and none is needed."""
    from quarterdeck.auto import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(arguments.model, revision=arguments.revision)
    except (CheckpointNotFoundError, TokenizerError):
        if arguments.calibration is not None:
            raise
        return None


def _rows(arguments: argparse.Namespace, tokenizer: CohereTokenizerFast | None) -> list[Tensor]:
    """The calibration text in rows of token ids ``[1, T]``, the last one shorter if need be."""
    import torch

    try:
        text = arguments.calibration.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{arguments.calibration} is no UTF-8 text: {error}") from error
    if not text.strip() or tokenizer is None:
        raise InputError(f"{arguments.calibration} is empty; calibration needs text, some pages of it")
    ids = torch.tensor(tokenizer(text)["input_ids"])
    rows = torch.split(ids, arguments.row_length or _ROW_LENGTH)[: arguments.rows or _ROWS]
    return [row[None].to(_torch_device(arguments.device)) for row in rows]


def _check_for(model: CohereForCausalLM, keep: list[str], batches: list[Tensor]) -> None:
    """Refuse names that no module has, which would keep nothing, and rows that the model has no room for."""
    from quarterdeck.quantization.config import is_named

    modules = [name for name, _ in model.named_modules()]
    for pattern in keep:
        if not any(is_named(name, pattern) for name in modules if name):
            raise UsageError(
                f"--keep {pattern}: this model has no module of that name; give a whole name "
                "(model.layers.0.mlp.up_proj), the beginning of one (model.layers.0) or the last part (up_proj)"
            )
    longest, room = max((batch.shape[1] for batch in batches), default=0), model.config.context_length
    if longest > room:
        raise UsageError(f"rows of {longest} tokens, and this model has room for {room}: give --row-length {room}")


def _torch_device(place: str | int) -> Any:
    from quarterdeck.pipelines.factory import as_device

    return as_device(place)


def _with_progress(model: CohereForCausalLM, config: QuantizationConfig, batches: list[Tensor]) -> Iterator[LayerError]:
    """The errors of the modules as they are done, with a bar on the standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    from quarterdeck.quantization.calibration import quantization_steps
    from quarterdeck.quantization.surgery import targets

    total = len({id(module.weight) for module in targets(model, config).values()})
    console = Console(stderr=True)
    steps = quantization_steps(model, config, batches)
    yield from track(steps, "quantizing", total, console=console, disable=not console.is_terminal, transient=True)


def _described(config: QuantizationConfig) -> str:
    kind = config.format if config.symmetric else f"asymmetric {config.format}"
    return f"{kind} by {config.method}"


def _show(facts: dict[str, Any], errors: list[LayerError], *, as_json: bool) -> None:
    if as_json:
        layers = [vars(error) for error in errors]
        print(json.dumps(facts | {"layers": layers}, ensure_ascii=False, indent=2))
        return
    print(f"{'module':44s} {'weight error':>12s} {'output error':>12s}")
    for error in errors:
        output = "" if error.output_error is None else f"{error.output_error:12.2%}"
        print(f"{error.name:44s} {error.weight_error:12.2%} {output}".rstrip())
    before, after = facts["bytes_before"] / 1e6, facts["bytes_after"] / 1e6
    print(f"\n{facts['out']}: {after:.1f} MB in memory, {after / before:.0%} of the {before:.1f} MB before")
