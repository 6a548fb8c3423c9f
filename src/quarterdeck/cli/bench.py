"""``quarterdeck bench``: how fast a model reads prompts and writes answers, beside the limits of the machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from quarterdeck.cli.arguments import Commands, UsageError, add_command, device, model_help, positive_int
from quarterdeck.locate import EMBEDDED_MODEL

if TYPE_CHECKING:
    from quarterdeck.cli.measuring import Limits, Speed
    from quarterdeck.model import CohereForCausalLM

_EPILOG = """\
Prefill is held against the machine's matrix products (GOP/s), decoding against the speed at which it reads memory
(GB/s): a step reads every weight once, and all keys and values. A model that fits into the processor's cache can be
faster than reading memory. Figures are medians.

examples:
  quarterdeck bench
  quarterdeck bench ./aya-expanse-8b --quantization int4 --prompt 256,2048 --batch 1,8 --json
  quarterdeck bench ./aya-expanse-8b --prompt 8192 --kv-cache int8
"""


def add_parser(commands: Commands) -> None:
    """Describe the command."""
    parser = add_command(commands, "bench", "measure how fast a model reads and writes", execute, _EPILOG)
    parser.add_argument("model", nargs="?", default=EMBEDDED_MODEL, metavar="MODEL", help=model_help())
    parser.add_argument(
        "--prompt", type=counts, default=(128, 512), metavar="N,N", help="lengths of prompts (default: 128,512)"
    )
    parser.add_argument(
        "--new", type=positive_int, default=32, metavar="N", help="tokens to decode after each (default: 32)"
    )
    parser.add_argument("--batch", type=counts, default=(1, 4), metavar="B,B", help="sequences at once (default: 1,4)")
    parser.add_argument("--repeats", type=positive_int, default=3, metavar="N", help="runs of each (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    group = parser.add_argument_group("model")
    group.add_argument("--revision", metavar="R", help="branch, tag or commit of a model on the hub")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type of the weights (default: auto, the checkpoint's)",
    )
    group.add_argument("--quantization", choices=("int8", "int4"), help="hold weights in fewer bits")
    group.add_argument(
        "--kv-cache",
        default="dynamic",
        choices=("dynamic", "static", "int8", "int4"),
        help="how keys and values are stored (default: dynamic, in the type of the weights)",
    )
    group.add_argument(
        "--device", type=device, metavar="D", help="where to run (default: the first accelerator, else the CPU)"
    )
    group.add_argument("--attn-implementation", metavar="A", help="attention backend (default: sdpa)")


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, separated by commas."""
    return tuple(positive_int(part.strip()) for part in text.split(","))


def execute(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    import torch  # here, since --help need not wait for it

    from quarterdeck.cli.measuring import measure_limits, measure_speed
    from quarterdeck.memory.plan import quantization_name

    model = _load(arguments)
    most = max(arguments.prompt) + arguments.new + 1
    if most > model.config.context_length:
        raise UsageError(
            f"--prompt and --new make {most} tokens, and this model has room for {model.config.context_length}: "
            "give smaller ones"
        )
    limits = measure_limits(model.device)
    speeds = [
        measure_speed(
            model,
            batch=batch,
            prompt=prompt,
            new=arguments.new,
            repeats=arguments.repeats,
            kv_cache=arguments.kv_cache,
        )
        for batch in arguments.batch
        for prompt in arguments.prompt
    ]
    facts = {
        "model": str(arguments.model),
        "parameters": model.num_parameters(),
        "bytes": model.get_memory_footprint(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": quantization_name(model.quantization),
        "kv_cache": arguments.kv_cache,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
    }
    _show(facts, limits, speeds, as_json=arguments.json)
    return 0


def _load(arguments: argparse.Namespace) -> CohereForCausalLM:
    from quarterdeck.auto import AutoModelForCausalLM
    from quarterdeck.pipelines.factory import as_device

    return AutoModelForCausalLM.from_pretrained(
        arguments.model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        device_map=as_device(arguments.device),
        attn_implementation=arguments.attn_implementation,
        quantization_config=arguments.quantization,
    )


def _show(facts: dict[str, Any], limits: Limits, speeds: list[Speed], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts | {"limits": asdict(limits), "speeds": [asdict(one) for one in speeds]}, indent=2))
        return
    held = facts["quantization"] or facts["dtype"]
    print(
        f"{facts['model']}: {facts['parameters'] / 1e6:.1f}M parameters, {held}, {facts['bytes'] / 1e6:.1f} MB, "
        f"{facts['kv_cache']} cache, on {facts['device']}, {facts['threads']} threads"
    )
    eight = "" if limits.int8 is None else f", int8 {limits.int8:.0f}"
    print(
        f"limits: {limits.read:.1f} GB/s read; GOP/s of matrix products: float32 {limits.float32:.0f}, "
        f"bfloat16 {limits.bfloat16:.0f}{eight}"
    )
    print(f"\nbatch  prompt | {'prefill':>28s} | {'decode':>26s} {'of reading':>10s}")
    for one in speeds:
        print(
            f"{one.batch:5d} {one.prompt:7d} | {one.prefill_tokens:8.1f} tok/s {one.prefill_gops:7.1f} GOP/s"
            f" | {one.decode_tokens:8.1f} tok/s {one.decode_gbs:6.2f} GB/s {one.decode_gbs / limits.read:10.0%}"
        )
