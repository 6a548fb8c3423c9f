"""Train midshipman: a resumable run on two CPU cores or on one GPU.

    python -m training.midshipman.train --minutes 240                                     two CPU cores, small size
    python -m training.midshipman.train --minutes 27 --device cuda --session-minutes 9    one GPU, medium size
    python -m training.midshipman.train ... --resume                                      go on where it stopped

Reads what `prepare` made (--data), writes log.jsonl, settings.json, checkpoint/ and the curves under --run. A session
that goes on may change everything but size and shape, logit scale, seed and matrix optimizer; settings.json has the
command of every session and the step at which it began.
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
from quarterdeck.errors import CheckpointCorruptError, CheckpointNotFoundError, InputError
from quarterdeck.model import CohereForCausalLM
from quarterdeck.training.attention import PackedAttention
from quarterdeck.training.batches import Batches, LocalBatches, WorkerBatches
from quarterdeck.training.checkpoint import find
from quarterdeck.training.curves import read_log, write_curves
from quarterdeck.training.layers import join_layers
from quarterdeck.training.midshipman import vocabulary
from quarterdeck.training.midshipman.mixture import BatchMaker, held_out_rows
from quarterdeck.training.packing import Packer, pack, pack_stream
from quarterdeck.training.schedule import Budget
from quarterdeck.training.script import run_script
from quarterdeck.training.trainer import Trainer, TrainingOptions, check_unused

SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SIZES = {"tiny": (64, 128, 2, 4, 2), "small": (192, 512, 6, 3, 3), "medium": (320, 832, 8, 5, 5)}
"""0.6, 4.2 and 12.3 million parameters. Heads are 64 wide where copying counts: narrower ones mix tokens up."""
DATA_FILES = ("passages.jsonl", "texts.jsonl", "knowledge.json", "tokenizer.json")
"""What `prepare` makes."""
KEPT = ("seed", "matrix_optimizer")
"""Arguments that a run keeps to its end, besides its architecture."""


def architecture(size: str, logit_scale: float, **changes: int | None) -> dict[str, Any]:
    """The fields of midshipman's config.json that are not defaults: a size, with what is changed of its shape.

    More or fewer heads have as many groups unless these are given, too.
    """
    if changes.get("num_attention_heads") and not changes.get("num_key_value_heads"):
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    changed = {name: value for name, value in changes.items() if value is not None}
    return {
        "vocab_size": vocabulary.SIZE,
        **dict(zip(SHAPE, SIZES[size], strict=True)),
        **changed,
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
    for name in SHAPE:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: that of the size")
    parser.add_argument("--tokens", type=int, help="tokens per step; default: 131072 on a GPU, 8192 on a CPU")
    parser.add_argument("--length", type=int, default=2048, help="on a GPU, tokens per row; on a CPU, longest document")
    parser.add_argument("--workers", type=int, help="processes that make batches; default: 1, on a GPU all cores but 1")
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


def asked_architecture(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments ask for."""
    return architecture(args.size, args.logit_scale, **{name: getattr(args, name) for name in SHAPE})


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


def require_data(folder: Path) -> None:
    """What `prepare` makes is there.

    Raises:
        InputError: a file is missing.
    """
    missing = [name for name in DATA_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} has no {', '.join(missing)}: make the data with "
            f"python -m training.midshipman.prepare --out {folder}, or give --data another folder"
        )


def read_settings(run: Path) -> dict[str, Any]:
    """What `write_settings` wrote.

    Raises:
        CheckpointNotFoundError: there is no settings.json.
        CheckpointCorruptError: it is no JSON.
    """
    path = run / "settings.json"
    if not path.is_file():
        raise CheckpointNotFoundError(f"{path} is missing, which says what {run} was begun with: put it back")
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointCorruptError(f"{path} is no JSON ({error}): put back what it was") from error
    return settings


def check_same_run(args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """The arguments go on with the run that has these settings.

    Raises:
        InputError: architecture, seed or matrix optimizer differ.
    """
    asked = asked_architecture(args) | {name: str(getattr(args, name)) for name in KEPT}
    begun = settings["architecture"] | {name: settings["command"].get(name, asked[name]) for name in KEPT}
    names = [*asked, *(name for name in begun if name not in asked)]
    changed = [f"{n} {begun.get(n)}, now {asked.get(n)}" for n in names if begun.get(n) != asked.get(n)]
    if changed:
        raise InputError(
            f"{args.run} was begun with other settings, which a run keeps to its end ({'; '.join(changed)}): "
            "give --size and shape, --logit-scale, --seed and --matrix-optimizer as they were, or begin a run in "
            "another --run"
        )


def earlier_sessions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The sessions of the run that is resumed, as settings.json has them; none of a new run. Writes nothing.

    Raises:
        InputError: the folder of a new run holds another run, or the one that is resumed has other settings.
        CheckpointError: what is to be resumed is not there, or not readable.
    """
    if not args.resume:
        check_unused(args.run)
        return []
    find(args.run / "checkpoint")
    settings = read_settings(args.run)
    check_same_run(args, settings)
    # before sessions were listed, the last command was all that was kept, and not where it began
    sessions: list[dict[str, Any]] = settings.get("sessions", [{"step": None, "command": settings["command"]}])
    return sessions


def write_settings(args: argparse.Namespace, earlier: Sequence[dict[str, Any]], step: int) -> None:
    """settings.json: the architecture, this command, and the commands of all sessions with their first steps."""
    command = {name: value if value is None else str(value) for name, value in vars(args).items()}
    settings = {
        "architecture": asked_architecture(args),
        "command": command,
        "sessions": [*earlier, {"step": step, "command": command}],
    }
    fresh = args.run / "settings.json.new"
    fresh.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    fresh.replace(args.run / "settings.json")


def training_options(args: argparse.Namespace) -> TrainingOptions:
    """How the run goes.

    Raises:
        InputError: the budget trains nothing, or is none, or the forward pass would be compiled for every step.
    """
    if args.compile and args.attention == "packed":
        raise InputError(
            "--compile does not go with --attention packed: every step has other documents, and is compiled anew, "
            "which takes minutes; leave --compile out, or give --attention sdpa or flex_attention, on a GPU"
        )
    return TrainingOptions(
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


def make_trainer(args: argparse.Namespace, options: TrainingOptions, batches: Batches) -> Trainer:
    """A new run as the arguments ask for it."""
    model = build_model(asked_architecture(args), args.seed).to(args.device)
    model.config.attn_implementation = PackedAttention() if args.attention == "packed" else args.attention
    if args.attention == "packed":
        join_layers(model)
    held_out_tokens = 2048 if args.device == "cpu" else 8192
    held_out = held_out_rows(args.data, packer(args.attention, held_out_tokens, max(args.length, 2048)))
    return Trainer(model, batches, held_out, options, args.run)


def report(args: argparse.Namespace, first: int, last: int) -> None:
    """Draw the curves, and say what the session has done."""
    print(f"steps done in this session: {last - first}; in all: {last}")
    path = args.run / "log.jsonl"
    log = read_log(path) if path.is_file() else []
    if log:
        write_curves(args.run)
        print(json.dumps(log[-1]))
    else:
        print(f"log.jsonl has no line yet: it gets one every {args.log_every} steps")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train to the end of the budget, or of the session.

    Raises:
        InputError: arguments, data or the folder of the run do not fit; nothing has been written then.
        CheckpointError: what is to be resumed is not there, or not readable.
    """
    args = parse(arguments)
    options = training_options(args)
    require_data(args.data)
    earlier = earlier_sessions(args)
    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    batches = make_batches(args)
    try:
        trainer = make_trainer(args, options, batches)
        if args.resume:
            trainer.resume()
        first = trainer.progress.step
        write_settings(args, earlier, first)
        trainer.run(stop_seconds=None if args.session_minutes is None else 60.0 * args.session_minutes)
    finally:
        batches.close()
    report(args, first, trainer.progress.step)


if __name__ == "__main__":
    raise SystemExit(run_script(main))
