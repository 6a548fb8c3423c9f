"""What constrained decoding costs per token, and how long its parts take to make.

    python benchmarks/grammar_masks.py [FOLDER] [--tokens 400] [--bandwidth 19] [--parameters 8]

FOLDER holds a tokenizer (or give its tokenizer.json); without it the embedded model's is used. For every grammar a
text that satisfies it is followed token by token: `consume` and `mask` together are what the worker thread does for
each token while the model runs; `apply` is what the model waits for: the expansion of the mask and its use on scores.
Times are of the processor, so that what else runs on the machine does not count. All are given as shares of a decode
step of a model that reads its 16-bit weights once per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from quarterdeck.chat.grammars.grammar import Grammar, cited_answer_grammar, json_grammar, tool_calls_grammar
from quarterdeck.chat.grammars.matcher import GrammarCompiler
from quarterdeck.generation.constrained import GrammarLogitsProcessor
from quarterdeck.tokenizer import CohereTokenizerFast

TEXT = "Emperor penguins are the tallest of all; they grow up to 122 cm and only live in Antarctica. "

TOOL = {
    "name": "search",
    "description": "Searches the web.",
    "parameters": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "language": {"enum": ["English", "Français", "日本語"]},
            "results": {"type": "integer", "minimum": 1, "maximum": 20},
            "since": {"type": "string", "format": "date"},
            "filters": {"type": "array", "items": {"type": "string", "maxLength": 200}, "maxItems": 8},
        },
        "required": ["query"],
    },
}

PARAMETERS = {"query": TEXT * 2, "language": "Français", "results": 5, "since": "2024-02-29", "filters": [TEXT, "x"]}


def cases() -> dict[str, tuple[Grammar, str]]:
    """Grammars by name, each with a text that satisfies it."""
    calls = json.dumps([{"tool_name": "search", "parameters": PARAMETERS}] * 2, indent=4, ensure_ascii=False)
    action = f"Action: ```json\n{calls}\n```"
    cited = f"<co: 0,2>{TEXT.strip()}</co: 0,2> And so on. "
    grounded = f"Relevant Documents: 0,2\nCited Documents: 0\nAnswer: {TEXT * 3}\nGrounded answer: {cited * 3}"
    return {
        "calls, forced": (tool_calls_grammar([TOOL], tool_choice="required"), f"Plan: {TEXT * 3}\n{action}"),
        "calls, free": (tool_calls_grammar([TOOL]), f"Plan: {TEXT * 3}\n{action}"),
        "calls, one step": (tool_calls_grammar([TOOL], tool_choice="search", format="tool_use"), action),
        "JSON": (json_grammar(), json.dumps({"tool": TOOL, "text": TEXT * 3}, indent=4, ensure_ascii=False)),
        "JSON Schema": (json_grammar(TOOL["parameters"]), json.dumps(PARAMETERS, ensure_ascii=False)),
        "cited answer": (cited_answer_grammar(range(10)), grounded),
    }


def follow(compiler: GrammarCompiler, grammar: Grammar, ids: list[int]) -> list[float]:
    """Processor seconds of `mask` and `consume` for each token, the first mask included."""
    matcher = compiler.compile(grammar)
    times = []
    for token in ids:
        start = time.thread_time()
        matcher.mask()
        matcher.consume(token)
        times.append(time.thread_time() - start)
    return times


def apply(compiler: GrammarCompiler, grammar: Grammar, repeats: int = 50) -> float:
    """Median processor seconds of a processor's call when the mask is there already."""
    processor = GrammarLogitsProcessor([compiler.compile(grammar)])
    ids, scores = torch.zeros(1, 1, dtype=torch.int64), torch.randn(1, compiler.vocab_size)
    processor(ids, scores)
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        processor(ids, scores)
        times.append(time.thread_time() - start)
    return statistics.median(times)


def report(compiler: GrammarCompiler, tokenizer: CohereTokenizerFast, most: int, step: float) -> None:
    """One line per grammar: microseconds per token, first without and then with what earlier texts left in caches."""
    print(f"{'':16} tokens  compile   cold µs   warm µs  warm p99   largest   share of step (warm, with apply)")
    for name, (grammar, text) in cases().items():
        start = time.perf_counter()
        compiler.compile(grammar)
        compiled = time.perf_counter() - start
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:most]
        cold, warm = follow(compiler, grammar, ids), sorted(follow(compiler, grammar, ids))
        mean, slow = statistics.fmean(warm), warm[int(len(warm) * 0.99)]
        applied = apply(compiler, grammar)
        print(
            f"{name:16} {len(ids):6} {compiled * 1e3:6.1f}ms {statistics.fmean(cold) * 1e6:9.0f} {mean * 1e6:9.0f} "
            f"{slow * 1e6:9.0f} {max(cold) * 1e6:9.0f}   {100 * mean / step:.3f}% + {100 * applied / step:.3f}%"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", help="folder of a tokenizer, or its tokenizer.json")
    parser.add_argument("--tokens", type=int, default=400, help="follow that many tokens of each text at most")
    parser.add_argument("--bandwidth", type=float, default=19.0, help="of the model's memory, GB/s")
    parser.add_argument("--parameters", type=float, default=8.0, help="of the model, billions of 2 bytes")
    options = parser.parse_args()
    if options.path is None:
        tokenizer, vocab_size = CohereTokenizerFast.from_pretrained("midshipman"), None
    elif Path(options.path).is_dir():
        tokenizer, vocab_size = CohereTokenizerFast.from_pretrained(options.path), 256000
    else:
        tokenizer, vocab_size = CohereTokenizerFast(tokenizer_file=options.path), 256000
    torch.set_num_threads(1)
    start, busy = time.perf_counter(), time.process_time()
    compiler = GrammarCompiler(tokenizer, vocab_size=vocab_size)
    compiler.prepare()
    elapsed, busy = time.perf_counter() - start, time.process_time() - busy
    step = options.parameters * 2 / options.bandwidth
    print(f"vocabulary of {compiler.vocab_size}: made ready in {elapsed:.2f} s ({busy:.2f} s of processor time)")
    print(f"decode step of {options.parameters:g}B at {options.bandwidth:g} GB/s: {step * 1e3:.0f} ms")
    report(compiler, tokenizer, options.tokens, step)


if __name__ == "__main__":
    main()
