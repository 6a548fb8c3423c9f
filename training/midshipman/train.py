"""Train midshipman: a resumable run of a given number of minutes on two CPU cores.

    python -m training.midshipman.train --minutes 45
    python -m training.midshipman.train --minutes 45 --resume      continue after an interruption

Reads the token files of `prepare`, writes `log.jsonl` and `checkpoint/` under --run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from quarterdeck.config import CohereConfig
from quarterdeck.model import CohereForCausalLM
from quarterdeck.training.data import Mixture, TokenStream
from quarterdeck.training.schedule import Budget
from quarterdeck.training.trainer import Trainer, TrainingOptions
from training.midshipman import vocabulary

# Shares of the rows of a batch, at the beginning and at the end of training: from broad to simple and clean.
FIRST = {
    "definitions": 0.27,
    "countries": 0.07,
    "manual": 0.10,
    "speeches": 0.13,
    "moby_dick": 0.05,
    "explanations": 0.17,
    "stories": 0.08,
    "chat": 0.13,
}
LAST = {
    "definitions": 0.21,
    "countries": 0.06,
    "manual": 0.05,
    "speeches": 0.07,
    "moby_dick": 0.02,
    "explanations": 0.25,
    "stories": 0.12,
    "chat": 0.22,
}


def architecture() -> dict[str, object]:
    """The fields of midshipman's config.json that are not defaults."""
    return {
        "vocab_size": vocabulary.SIZE,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "logit_scale": 0.25,
        "max_position_embeddings": 2048,
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


def build_model(seed: int) -> CohereForCausalLM:
    """A fresh model in float32."""
    model = CohereForCausalLM(CohereConfig(**architecture()))
    initialise(model, seed)
    return model


def open_data(folder: Path, length: int, seed: int) -> tuple[Mixture, dict[str, np.ndarray]]:
    """The mixture of all families present in `folder`, and their held-out tokens."""
    names = [name for name in FIRST if (folder / f"{name}.bin").is_file()]
    streams = {name: TokenStream(folder / f"{name}.bin", length, seed) for name in names}
    held_out = {name: np.fromfile(folder / f"{name}.held_out.bin", dtype="<u2") for name in names}
    mixture = Mixture(streams, {n: FIRST[n] for n in names}, {n: LAST[n] for n in names}, seed)
    return mixture, {name: tokens for name, tokens in held_out.items() if len(tokens) >= length}


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("training/runs/midshipman"))
    parser.add_argument("--minutes", type=float, help="training time over all sessions")
    parser.add_argument("--steps", type=int, help="number of steps, instead of --minutes")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --run")
    parser.add_argument("--rows", type=int, default=8, help="sequences per step")
    parser.add_argument("--length", type=int, default=257, help="tokens per sequence, plus one")
    parser.add_argument("--matrix-optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--other-lr", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train to the end of the budget."""
    args = parse()
    torch.set_num_threads(args.threads)
    mixture, held_out = open_data(args.run / "data", args.length, args.seed)
    options = TrainingOptions(
        Budget(steps=args.steps, minutes=args.minutes),
        rows=args.rows,
        bos=vocabulary.BOS_ID,
        matrix_optimizer=args.matrix_optimizer,
        matrix_lr=args.matrix_lr,
        other_lr=args.other_lr,
    )
    trainer = Trainer(build_model(args.seed), mixture, held_out, options, args.run)
    if args.resume:
        trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
