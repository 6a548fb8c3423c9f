"""What a quantized cache costs in accuracy, and what it saves in memory.

    python benchmarks/cache_error.py [--model midshipman] [--tokens 1536] [--last 256] [--text FILE] [--random]

A long text runs through the model with the exact cache and with quantized ones; compared are the logits of its last
tokens, fed 32 at a time behind a prompt that is in the cache. The text is drawn from the model itself, so that it is
one that the model understands, unless a file is given. Reported per kind of storage:
largest and mean difference of logits, how often the likeliest token is the same, what the loss on the text changes
(nats per token, and as a ratio of perplexities), and bits per number. ``--random`` adds a model with random weights
and grouped heads of 128 channels, whose keys are nothing like a trained model's.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quarterdeck import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    DynamicCache,
    QuantizedCache,
)
from quarterdeck.cache import Cache

STEP = 32
"""Tokens that are fed at a time behind the prompt."""

KINDS: dict[str, dict[str, Any]] = {
    "8 bit, keys per channel": {"nbits": 8},
    "8 bit, keys per token": {"nbits": 8, "axis_key": 0},
    "4 bit, keys per channel": {"nbits": 4},
    "4 bit, keys per token": {"nbits": 4, "axis_key": 0},
    "4 bit, both per channel": {"nbits": 4, "axis_value": -1},
    "4 bit, groups of 32": {"nbits": 4, "q_group_size": 32},
    "4 bit, nothing exact": {"nbits": 4, "residual_length": 0},
}


@dataclass(frozen=True)
class Run:
    """Logits of the last tokens [N, V] and the cache that they were computed with."""

    logits: Tensor
    cache: Cache


@torch.no_grad()
def run(model: CohereForCausalLM, ids: Tensor, last: int, cache: Cache, chunk: int | None = None) -> Run:
    """Feed all but the last tokens at once or in chunks, then those in small steps."""
    prompt = ids.shape[1] - last
    for start in range(0, prompt, chunk or prompt):
        model(ids[:, start : min(start + (chunk or prompt), prompt)], past_key_values=cache, logits_to_keep=1)
    steps = [model(ids[:, at : at + STEP], past_key_values=cache).logits[0] for at in range(prompt, ids.shape[1], STEP)]
    return Run(torch.cat(steps), cache)


def loss(logits: Tensor, ids: Tensor) -> float:
    """Nats per token of the text behind the logits."""
    return float(functional.cross_entropy(logits[:-1], ids[0, 1 - len(logits) :]))


def bits(cache: Cache, config: CohereConfig) -> float:
    """Bits per number, of all that is held: quantized, exact and spare."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * cache.get_seq_length()
    return cache.nbytes * 8 / numbers


def report(name: str, model: CohereForCausalLM, ids: Tensor, last: int) -> None:
    """One line per kind of storage."""
    exact = run(model, ids, last, DynamicCache())
    print(f"\n{name}: {ids.shape[1]} tokens, the last {last} compared; loss {loss(exact.logits, ids):.4f}, ", end="")
    print(f"standard deviation of logits {float(exact.logits.std()):.3f}")
    print(f"{'':36} largest     mean  same token  loss change  perplexity  bits held")
    for kind, options in KINDS.items():
        for chunk in (None, 128) if kind in ("8 bit, keys per channel", "4 bit, keys per channel") else (None,):
            ours = run(model, ids, last, QuantizedCache(**options), chunk)
            error = (ours.logits - exact.logits).abs()
            same = float((ours.logits.argmax(-1) == exact.logits.argmax(-1)).float().mean())
            change = loss(ours.logits, ids) - loss(exact.logits, ids)
            label = kind + ("" if chunk is None else f", chunks of {chunk}")
            print(
                f"{label:36} {float(error.max()):7.3f} {float(error.mean()):8.4f} {same:11.1%} {change:+12.4f} "
                f"{exp(change):10.2%} {bits(ours.cache, model.config):10.2f}"
            )


def random_model() -> CohereForCausalLM:
    """Grouped heads of 128 channels, random weights."""
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        rope_theta=8e6,
        initializer_range=0.06,
    )
    return CohereForCausalLM(config).eval()


def text_ids(model: CohereForCausalLM, options: argparse.Namespace) -> Tensor:
    """[1, tokens] of the file, or drawn from the model."""
    if options.text is not None:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        return torch.tensor([tokenizer(options.text.read_text(encoding="utf-8"))["input_ids"][: options.tokens]])
    ids = torch.tensor([[model.config.bos_token_id]])
    drawn = model.generate(
        ids,
        max_new_tokens=options.tokens - 1,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        seed=0,
        eos_token_id=None,
    )
    assert isinstance(drawn, Tensor)
    return drawn


def v01_bytes() -> None:
    """Bytes per token of c4ai-command-r-v01: 40 layers, 64 key-value heads of 128 channels."""
    numbers = 2 * 40 * 64 * 128
    print("\nc4ai-command-r-v01, per token and at 131,072 tokens:")
    for name, width in (("16 bit", 16.0), ("8 bit (8.5)", 8.5), ("4 bit (4.5)", 4.5)):
        per_token = numbers * width / 8
        print(f"{name:12} {per_token / 2**20:6.3f} MiB {per_token * 131072 / 2**30:7.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="midshipman")
    parser.add_argument("--tokens", type=int, default=1536)
    parser.add_argument("--last", type=int, default=256)
    parser.add_argument("--text", type=Path, help="a file in place of a text that the model writes")
    parser.add_argument("--random", action="store_true", help="also a model with random weights")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model)
    report(options.model, model, text_ids(model, options), options.last)
    if options.random:
        report("random weights", random_model(), torch.randint(9, 500, (1, options.tokens)), options.last)
    v01_bytes()


if __name__ == "__main__":
    main()
