"""Quarterdeck beside llama.cpp, OpenVINO and transformers: same weights, same threads, one run, taking turns.

    python benchmarks/compare_engines.py --out RESULTS [--layers 8] [--vocabulary 256000] [--formats float32,int8]

The model has Aya-8B's layer shape with 8 layers, 2.8 billion random weights, and a vocabulary of 256,000 (smaller for
a quick look: ``--layers 2 --hidden 512 --vocabulary 8192``). In each format every engine that can is loaded, then they
take turns: one run that is not counted, then as many as ``--repeats`` says for each prompt length, and medians. Steps
of decoding follow a prompt of the first length. A format's models are gone before those of the next are made.

Formats: float32 and bf16 are the same tensors in both libraries; int8 is one scale per row (Q8_0, with one per 32
weights, in llama.cpp; nncf's 8 bits in OpenVINO); int4 is 4.5 bits with one scale per 32 weights (Q4_0).
Engines that are not installed are left out and named. Written to the folder: results.json, results.md, results.svg; a
scratch folder beside it holds the files that the engines read (9 GB) and is removed. Versions, builds and settings of
the engines, and the processor, stand below the table and in the JSON under "compared".
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compared import compared
from engines import Engine, LlamaCpp, OpenVino, Quarterdeck, Transformers, make_weights
from machine import gemm_rate, read_bandwidth
from openvino_model import export
from results import markdown, svg

from quarterdeck import AutoTokenizer, CohereConfig
from quarterdeck.quantization.surgery import quantize_model
from quarterdeck.weights.gguf_export import write_gguf
from quarterdeck.weights.reader import MemoryTensors

FORMATS = ("float32", "bf16", "int8", "int4")
GGUF = {"float32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare engines on the same weights.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=256000)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--engines", default="quarterdeck,llama.cpp,openvino,transformers")
    parser.add_argument("--prompts", default="256,512,2048", help="lengths of prompts")
    parser.add_argument("--repeats", default="3,1,1", help="runs of each length; the last counts for the others too")
    parser.add_argument("--longest-float", type=int, default=512, help="longest prompt of float32 and bf16")
    parser.add_argument("--tokens", type=int, default=16, help="steps of decoding")
    parser.add_argument("--rounds", type=int, default=3, help="turns of decoding")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--no-repack",
        action="store_true",
        help="keep llama.cpp from repacking weights: some builds crash in their AMX products; build it without AMX "
        "instead where repacked figures are wanted",
    )
    return parser.parse_args()


def configuration(options: argparse.Namespace) -> CohereConfig:
    """Aya-8B's shape, scaled if need be."""
    config = CohereConfig.preset("aya-expanse-8b")
    config.num_attention_heads = options.hidden // 128
    config.num_key_value_heads = max(config.num_attention_heads // 4, 1)
    config.hidden_size, config.intermediate_size = options.hidden, options.hidden * 7 // 2
    config.num_hidden_layers, config.vocab_size, config.eos_token_id = options.layers, options.vocabulary, 3
    return config


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def engines_of(kind: str, options: argparse.Namespace, scratch: Path) -> Iterator[Engine]:
    """Loads the engines of a format, those first that need the most memory for it."""
    config, wanted = configuration(options), options.engines.split(",")
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    model = make_weights(config, dtype)
    context = max(int(length) for length in options.prompts.split(",")) + options.tokens + 8
    if kind == "int8" and "openvino" in wanted and has("openvino") and has("nncf"):
        path = scratch / f"{kind}.xml"
        export(model.float(), path)
        model = model.bfloat16()
        yield OpenVino(path, options.threads)
    if "llama.cpp" in wanted and has("llama_cpp"):
        path = scratch / f"{kind}.gguf"
        source = MemoryTensors({name: t for name, t in model.state_dict().items() if name != "lm_head.weight"})
        write_gguf(path, source, config, AutoTokenizer.from_pretrained("midshipman"), kind=GGUF[kind])
        yield LlamaCpp(path, context, options.threads, repack=not options.no_repack)
    if kind in ("int8", "int4"):
        quantize_model(model, kind)
    elif "transformers" in wanted:
        yield Transformers(model)
    yield Quarterdeck(model)


def prefill_seconds(engine: Engine, ids: list[int]) -> float:
    begin = time.perf_counter()
    engine.prefill(ids)
    return time.perf_counter() - begin


def step_seconds(engine: Engine, ids: list[int], tokens: int) -> list[float]:
    """Seconds of each step behind a prompt; the first one is not counted."""
    token, times = engine.prefill(ids), []
    for _ in range(tokens + 1):
        begin = time.perf_counter()
        token = engine.step(token)
        times.append(time.perf_counter() - begin)
    return times[1:]


def in_turns(engines: list[Engine], count: int) -> Iterator[Engine]:
    for turn in range(count):
        yield from engines if turn % 2 == 0 else reversed(engines)


def measure(kind: str, engines: list[Engine], options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(1)
    words = min(options.vocabulary, 4000)
    lengths = [int(text) for text in options.prompts.split(",")]
    counts = [int(text) for text in options.repeats.split(",")]
    for length, repeats in zip(lengths, [*counts, *[counts[-1]] * len(lengths)], strict=False):
        if kind in ("float32", "bf16") and length > options.longest_float:
            continue
        ids = torch.randint(8, words, (length,), generator=generator).tolist()
        found: dict[str, list[float]] = {engine.name: [] for engine in engines}
        if length == lengths[0]:
            for engine in engines:
                engine.prefill(ids)
        for engine in in_turns(engines, repeats):
            found[engine.name].append(prefill_seconds(engine, ids))
        rows += [row(kind, f"prefill {length}", engine, length, found[engine.name]) for engine in engines]
    ids = torch.randint(8, words, (lengths[0],), generator=generator).tolist()
    steps: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for engine in in_turns(engines, options.rounds):
        steps[engine.name] += step_seconds(engine, ids, options.tokens)
    return rows + [row(kind, "decode", engine, 1, steps[engine.name]) for engine in engines]


def row(kind: str, what: str, engine: Engine, tokens: int, times: list[float]) -> dict[str, Any]:
    median = statistics.median(times)
    print(f"{kind:8s} {what:13s} {engine.name:13s} {tokens / median:9.2f} tok/s", flush=True)
    found = {"format": kind, "what": what, "engine": engine.name, "tokens_per_second": tokens / median}
    return found | ({"gb_per_second": engine.weight_bytes / median / 1e9} if what == "decode" else {})


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    limits = {"read_gb_per_second": read_bandwidth(), "float32_gflops": gemm_rate(), "threads": options.threads}
    rows: list[dict[str, Any]] = []
    facts_of: dict[str, dict[str, Any]] = {}
    begin = time.perf_counter()
    with torch.no_grad():
        for kind in options.formats.split(","):
            with tempfile.TemporaryDirectory(dir=options.out) as name:
                made = time.perf_counter()
                engines = list(engines_of(kind, options, Path(name)))
                print(f"{kind}: {len(engines)} engines ready in {time.perf_counter() - made:.0f} s", flush=True)
                rows += measure(kind, engines, options)
                facts_of |= {engine.name: facts_of.get(engine.name, {}) | engine.facts for engine in engines}
                while engines:
                    engines.pop().close()
                gc.collect()
    missing = [package for package in ("llama_cpp", "openvino", "nncf") if not has(package)]
    shape = f"hidden {options.hidden}, {options.layers} layers, vocabulary {options.vocabulary}"
    facts = {"shape": shape, "limits": limits, "missing": missing, "seconds": time.perf_counter() - begin}
    facts["compared"] = compared(facts_of)
    text = markdown(facts, rows)
    (options.out / "results.json").write_text(json.dumps(facts | {"rows": rows}, indent=2), encoding="utf-8")
    (options.out / "results.md").write_text(text, encoding="utf-8")
    (options.out / "results.svg").write_text(svg(rows), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
