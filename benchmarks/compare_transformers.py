"""Load time, prefill and decode in float32 beside transformers: same weights, same threads, one run.

    python benchmarks/compare_transformers.py [--hidden 1024] [--layers 12] [--prompt 512] [--tokens 48] [--repeats 7]

Both sides take turns, so that a machine that slows down slows both; the table shows medians and their ratio
(over 1: Quarterdeck is faster). Loading is timed with the files in the page cache. "import the package" and "import
the model" are a fresh process that imports the library, and its causal language model class; the former is what
``quarterdeck --help`` waits for, and should take less than 0.15 s, the start of Python included.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import gemm_rate, read_bandwidth

import quarterdeck

SIDES = ("quarterdeck", "transformers")
IMPORT_LIMIT = 0.15  # seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Quarterdeck with transformers on one random model.")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--prompt", type=int, default=512, help="prompt length of the prefill")
    parser.add_argument("--tokens", type=int, default=48, help="tokens to decode")
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


def make_checkpoint(options: argparse.Namespace, folder: Path) -> quarterdeck.CohereForCausalLM:
    config = quarterdeck.CohereConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 7 // 2,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(options.hidden // 256, 1),
        eos_token_id=7,
        logit_scale=0.25,
    )
    torch.manual_seed(0)
    model = quarterdeck.CohereForCausalLM(config)
    model.save_pretrained(folder)
    return model


def alternate(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds per side, the sides taking turns; the first round is not counted."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(repeats + 1):
        for side in SIDES if turn % 2 else reversed(SIDES):
            begin = time.perf_counter()
            work[side]()
            if turn:
                times[side].append(time.perf_counter() - begin)
    return {side: statistics.median(times[side]) for side in SIDES}


def running(code: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)


def measure_imports() -> None:
    package = alternate({side: running(f"import {side}") for side in SIDES}, 5)
    within = "within" if package["quarterdeck"] < IMPORT_LIMIT else "OVER"
    report("import the package", package, "s", 0, f"{within} {IMPORT_LIMIT} s")
    report("import the model", alternate({s: running(f"from {s} import CohereForCausalLM") for s in SIDES}, 3), "s", 0)


def decoding(model: Any, prompt: torch.Tensor, tokens: int) -> Callable[[], object]:
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    return lambda: model.generate(prompt, attention_mask=mask, **options)


def prefilling(model: Any, prompt: torch.Tensor) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return model(prompt, logits_to_keep=1)

    return forward


def report(name: str, times: dict[str, float], unit: str, amount: float, note: str = "") -> None:
    """One line; ``amount / seconds`` is what is shown, seconds themselves where ``amount`` is 0."""
    shown = {side: amount / seconds if amount else seconds for side, seconds in times.items()}
    ratio = times["transformers"] / times["quarterdeck"]
    figures = "  ".join(f"{shown[side]:10.3f}" for side in SIDES)
    print(f"{name:24} {figures}  {unit:6} {ratio:6.2f}x  {note}")


def main() -> None:
    options = arguments()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_checkpoint(options, folder).num_parameters()
        bandwidth, gemm = read_bandwidth(), gemm_rate()
        print(f"{parameters / 1e6:.0f}M parameters, float32, {torch.get_num_threads()} threads")
        print(f"machine: {bandwidth:.1f} GB/s read, {gemm:.0f} GFLOP/s float32 matrix product")
        print(f"{'':24} {SIDES[0]:>10}  {SIDES[1]:>10}  {'':6} ratio")
        libraries = {"quarterdeck": quarterdeck, "transformers": transformers}
        measure_imports()
        loading = {s: lambda s=s: libraries[s].CohereForCausalLM.from_pretrained(folder) for s in SIDES}
        report("load", alternate(loading, options.repeats), "s", 0)
        first = {s: lambda s=s: prefilling(loading[s](), torch.full((1, 8), 9))() for s in SIDES}
        report("load and first forward", alternate(first, options.repeats), "s", 0)
        models = {side: loading[side]() for side in SIDES}
        measure(options, models, parameters, gemm, bandwidth)


def measure(
    options: argparse.Namespace, models: dict[str, Any], parameters: int, gemm: float, bandwidth: float
) -> None:
    prompt = torch.randint(8, options.vocabulary, (1, options.prompt))
    body = parameters - options.vocabulary * options.hidden
    times = alternate({side: prefilling(models[side], prompt) for side in SIDES}, options.repeats)
    rate = 2 * body * options.prompt / times["quarterdeck"] / 1e9
    report(
        f"prefill {options.prompt}", times, "tok/s", options.prompt, f"{rate:.0f} GFLOP/s, {rate / gemm:.0%} of limit"
    )
    short = prompt[:, :32]
    once = alternate({side: decoding(models[side], short, 1) for side in SIDES}, options.repeats)
    whole = alternate({side: decoding(models[side], short, options.tokens + 1) for side in SIDES}, options.repeats)
    steps = {side: whole[side] - once[side] for side in SIDES}
    read = parameters * 4 * options.tokens / steps["quarterdeck"] / 1e9
    report(
        f"decode {options.tokens}", steps, "tok/s", options.tokens, f"{read:.1f} GB/s, {read / bandwidth:.0%} of limit"
    )


if __name__ == "__main__":
    main()
