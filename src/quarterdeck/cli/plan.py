"""``quarterdeck plan``: how much memory a model takes, before anything is downloaded or loaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from quarterdeck.cli.arguments import Commands, add_command, device, model_help, positive_int
from quarterdeck.errors import CheckpointNotFoundError
from quarterdeck.locate import EMBEDDED_MODEL

if TYPE_CHECKING:
    from quarterdeck.memory.plan import MemoryPlan

_EPILOG = """\
Public checkpoints are known by their names without network; of others on the hub config.json is fetched, no weights.
GB are 10^9 bytes. The exit code is 0 if the model fits and 1 if it does not.

examples:
  quarterdeck plan c4ai-command-r-v01 --quantization int4
  quarterdeck plan aya-expanse-8b --context 65536 --dtype bfloat16 --kv-cache int8
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(
        commands, "plan", "tell how much memory a model takes, and what would make it fit", execute, _EPILOG
    )
    parser.add_argument("model", nargs="?", default=EMBEDDED_MODEL, metavar="MODEL", help=model_help())
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a model on the hub")
    parser.add_argument(
        "--context",
        type=positive_int,
        metavar="N",
        help="tokens of a sequence, prompt and answer together (default: 8192, or the model's most)",
    )
    parser.add_argument(
        "--batch-size", type=positive_int, default=1, metavar="B", help="sequences at once (default: 1)"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type of the weights (default: auto, the checkpoint's)",
    )
    parser.add_argument("--quantization", choices=("int8", "int4"), help="hold weights in fewer bits")
    parser.add_argument(
        "--kv-cache",
        default="dynamic",
        choices=("dynamic", "static", "int8", "int4"),
        help="how keys and values are stored (default: dynamic, in the type of the weights)",
    )
    parser.add_argument(
        "--device", type=device, metavar="D", help="where to run (default: the first accelerator, else the CPU)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, in bytes")


def execute(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    try:
        plan = _plan(arguments)
    except CheckpointNotFoundError as error:
        if Path(arguments.model).expanduser().exists():
            raise
        from quarterdeck.config import CohereConfig

        known = ", ".join(CohereConfig.preset_names())
        raise CheckpointNotFoundError(f"{error}; known without network are {known}") from error
    print(json.dumps(plan.to_dict(), ensure_ascii=False, indent=2) if arguments.json else plan)
    return 0 if plan.fits else 1


def _plan(arguments: argparse.Namespace) -> MemoryPlan:
    from quarterdeck.memory.plan import plan_memory  # here, since --help need not wait for torch
    from quarterdeck.pipelines.factory import as_device

    return plan_memory(
        arguments.model,
        context=arguments.context,
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        kv_cache=arguments.kv_cache,
        device=as_device(arguments.device),
        revision=arguments.revision,
    )
