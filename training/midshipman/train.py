"""Train midshipman: a resumable run on two CPU cores or on one GPU.

    python -m training.midshipman.train --minutes 240                                     two CPU cores, small size
    python -m training.midshipman.train --minutes 27 --device cuda --session-minutes 9    one GPU, medium size
    python -m training.midshipman.train ... --resume                                      go on where it stopped

Reads what `prepare` made (--data), writes log.jsonl, settings.json, checkpoint/ and the curves under --run.
--minutes is the whole training time, which the learning rate and the mixture follow; --session-minutes ends this call.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quarterdeck.config import CohereConfig
from quarterdeck.model import CohereForCausalLM
from quarterdeck.training.attention import PackedAttention
from quarterdeck.training.batches import Batches, LocalBatches, WorkerBatches
from quarterdeck.training.curves import write_curves
from quarterdeck.training.layers import join_layers
from quarterdeck.training.midshipman import vocabulary
from quarterdeck.training.midshipman.mixture import BatchMaker, held_out_rows
from quarterdeck.training.packing import Packer, pack, pack_stream
from quarterdeck.training.schedule import Budget
from quarterdeck.training.trainer import Trainer, TrainingOptions

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "heads": 4, "groups": 2},
    "small": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "heads": 3, "groups": 3},
    "medium": {"hidden_size": 320, "intermediate_size": 832, "num_hidden_layers": 8, "heads": 5, "groups": 5},
}
"""0.6, 4.2 and 12.3 million parameters. Heads are 64 wide where copying counts: narrower ones mix tokens up."""


def architecture(size: str, logit_scale: float) -> dict[str, Any]:
    """The fields of midshipman's config.json that are not defaults."""
    shape = dict(SIZES[size])
    heads, groups = shape.pop("heads"), shape.pop("groups")
    return {
        "vocab_size": vocabulary.SIZE,
        **shape,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "logit_scale": logit_scale,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "bos_token_id": vocabulary.BOS_ID,
        "eos_token_id": vocabulary.END_OF_TURN_ID,
        "pad_token_id": 0,
    }


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Normal weights of standard deviation 0.02 (embedding 0.05); what adds to the residual stream starts at 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
        elif parameter.ndim == 2:
            parameter.normal_(0.0, 0.05 if "embed" in name else 0.02, generator=generator)


def build_model(fields: dict[str, Any], seed: int) -> CohereForCausalLM:
    """A fresh model in float32."""
    model = CohereForCausalLM(CohereConfig(**fields))
    initialise(model, seed)
    return model


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("training/runs/midshipman"))
    parser.add_argument("--data", type=Path, help="what prepare made; default: data in --run")
    parser.add_argument("--minutes", type=float, help="training time over all sessions")
    parser.add_argument("--steps", type=int, help="number of steps, instead of --minutes")
    parser.add_argument("--session-minutes", type=float, help="end this call after so long")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=tuple(SIZES), help="default: medium on a GPU, small on a CPU")
    parser.add_argument("--tokens", type=int, help="tokens per step; default: 131072 on a GPU, 8192 on a CPU")
    parser.add_argument("--length", type=int, default=2048, help="on a GPU, tokens per row; on a CPU, longest document")
    parser.add_argument("--workers", type=int, help="processes that make batches; default: all cores but one")
    parser.add_argument("--logit-scale", type=float, default=0.5)
    parser.add_argument("--matrix-optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--other-lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=60, help="steps until the full learning rate")
    parser.add_argument("--hold", type=float, default=0.4, help="progress until which the learning rate stays")
    parser.add_argument("--attention", help="attention while training: packed (CPU), sdpa (GPU) or flex_attention")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the passes; default: what is faster")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward pass")
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    gpu = args.device != "cpu"
    defaults = {
        "data": args.run / "data",
        "size": "medium" if gpu else "small",
        "tokens": 131072 if gpu else 8192,
        "attention": "sdpa" if gpu else "packed",
        "workers": max(1, (os.cpu_count() or 2) - 1) if gpu else 1,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def packer(attention: str, tokens: int, length: int) -> Packer:
    """Rows of one length for attention that is told apart by positions, a stream for packed attention."""
    if attention == "packed":
        return functools.partial(pack_stream, tokens=tokens, longest=length, multiple=256)
    return functools.partial(pack, rows=max(1, tokens // length), length=length)


def make_batches(args: argparse.Namespace) -> Batches:
    """The stream of batches, in this process or in workers."""
    one_batch = packer(args.attention, args.tokens, args.length)
    build = functools.partial(BatchMaker, args.data, seed=args.seed, packer=one_batch)
    return WorkerBatches(build, args.workers) if args.workers else LocalBatches(build())


def make_trainer(args: argparse.Namespace, batches: Batches) -> Trainer:
    """The run that the arguments ask for; writes settings.json."""
    fields = architecture(args.size, args.logit_scale)
    model = build_model(fields, args.seed).to(args.device)
    model.config.attn_implementation = PackedAttention() if args.attention == "packed" else args.attention
    if args.attention == "packed":
        join_layers(model)
    options = TrainingOptions(
        Budget(steps=args.steps, minutes=args.minutes),
        matrix_optimizer=args.matrix_optimizer,
        matrix_lr=args.matrix_lr,
        other_lr=args.other_lr,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        hold=args.hold,
        log_every=args.log_every,
        evaluate_every=args.evaluate_every,
        save_every=args.save_every,
        compile=args.compile,
        bfloat16=None if args.dtype is None else args.dtype == "bfloat16",
    )
    held_out_tokens = 2048 if args.device == "cpu" else 8192
    held_out = held_out_rows(args.data, packer(args.attention, held_out_tokens, max(args.length, 2048)))
    args.run.mkdir(parents=True, exist_ok=True)
    settings = {"architecture": fields, "command": {k: v if v is None else str(v) for k, v in vars(args).items()}}
    (args.run / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return Trainer(model, batches, held_out, options, args.run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train to the end of the budget, or of the session."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    batches = make_batches(args)
    try:
        trainer = make_trainer(args, batches)
        if args.resume:
            trainer.resume()
        trainer.run(stop_seconds=None if args.session_minutes is None else 60.0 * args.session_minutes)
    finally:
        batches.close()
    if (args.run / "log.jsonl").is_file() and (args.run / "log.jsonl").stat().st_size:
        write_curves(args.run)
    print((args.run / "log.jsonl").read_text().splitlines()[-1] if trainer.progress.step else "no step was taken")


if __name__ == "__main__":
    main()
