"""c4ai-command-r-v01's real shape, 35 billion weights in 4 bits, on a machine with 24 GiB.

    python benchmarks/full_size.py --folder SCRATCH [--layers 40] [--prompt 64] [--tokens 16] [--kv-cache int4]
    python benchmarks/full_size.py --in-memory --layers 8

Weights are random and made in their packed form, matrix by matrix: no float of them ever exists. With ``--folder``
they are written there once, in shards (20 GB for all 40 layers), and the model is loaded from the files, whose pages
are its weights; the second run finds them. ``--in-memory`` makes them in the process instead. ``--limit`` is the most
memory that the process may take, in GiB: the run fails if it took more. Printed are the plan, the peak (anonymous
memory, and pages of files that were touched), and the speed of prefill and decoding with the bytes that a step reads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import read_bandwidth
from safetensors.torch import save_file
from torch import Tensor

from quarterdeck import CohereConfig, CohereForCausalLM, QuantizationConfig, plan_memory
from quarterdeck.quantization.formats import PACKED, SCALE
from quarterdeck.quantization.surgery import replace_modules

PRESET = "c4ai-command-r-v01"
SHARD = 2 * 10**9  # bytes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Load and run Command-R's real shape in 4 bits.")
    parser.add_argument("--preset", default=PRESET, help=f"whose shape (default: {PRESET})")
    parser.add_argument("--layers", type=int, help="fewer layers than it has, to try")
    parser.add_argument("--folder", type=Path, help="where the weights are, or are to be written")
    parser.add_argument("--in-memory", action="store_true", help="make the weights in memory")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of activations and cache")
    parser.add_argument("--kv-cache", default="int4", choices=("dynamic", "int8", "int4"))
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16, help="tokens to decode")
    parser.add_argument("--limit", type=float, default=24.0, help="GiB that the process may take")
    options = parser.parse_args()
    if options.in_memory == (options.folder is not None):
        parser.error("give one of --folder and --in-memory")
    return options


def configuration(options: argparse.Namespace) -> CohereConfig:
    config = CohereConfig.preset(options.preset)
    config.num_hidden_layers = options.layers or config.num_hidden_layers
    config.dtype = getattr(torch, options.dtype)
    return config


def packed_tensors(config: CohereConfig, quantization: QuantizationConfig) -> Iterator[tuple[str, Tensor]]:
    """Random weights under a checkpoint's names, one tensor at a time, in their packed form."""
    with torch.device("meta"):
        model = CohereForCausalLM(config).to(config.dtype)
    replace_modules(model, quantization)
    model.tie_weights()
    tied = model.tied_weights()
    torch.manual_seed(0)
    for name, like in model.state_dict().items():
        if name not in tied:
            yield name, random_like(name.rpartition(".")[2], like, config.hidden_size)


def random_like(leaf: str, like: Tensor, width: int) -> Tensor:
    """Values for which activations stay of the order of 1: a weight's deviation is about 1 / sqrt(width)."""
    if leaf == PACKED:
        made = torch.empty(like.shape, dtype=like.dtype)
        made.view(-1).view(torch.int64).random_(-(2**63), 2**63 - 1)  # 16 weights at a time
        return made
    if leaf == SCALE:
        return torch.full(like.shape, 1 / (4.6 * width**0.5), dtype=like.dtype)  # 4.6: deviation of -8 to 7
    return torch.ones(like.shape, dtype=like.dtype)


def write(options: argparse.Namespace, config: CohereConfig, quantization: QuantizationConfig) -> None:
    """The checkpoint in shards, never more than one of them in memory."""
    options.folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    for name, tensor in packed_tensors(config, quantization):
        if shard and sum(one.nbytes for one in shard.values()) + tensor.nbytes > SHARD:
            flush(options.folder, shard, index)
        shard[name] = tensor
    flush(options.folder, shard, index)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (options.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    config.quantization_config = quantization
    config.save_pretrained(options.folder)


def flush(folder: Path, shard: dict[str, Tensor], index: dict[str, str]) -> None:
    name = f"weights-{len(set(index.values())) + 1:05d}.safetensors"
    save_file(shard, folder / name)
    index.update(dict.fromkeys(shard, name))
    shard.clear()


def load(options: argparse.Namespace, config: CohereConfig, quantization: QuantizationConfig) -> CohereForCausalLM:
    if options.folder is not None:
        return CohereForCausalLM.from_pretrained(options.folder, dtype="auto")
    state = dict(packed_tensors(config, quantization))
    config.quantization_config = quantization
    return CohereForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype="auto")


def memory(field: str) -> float:
    """GiB, by what the system says of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 2**20


def report(name: str) -> None:
    print(f"{name:12s} {memory('VmRSS'):6.2f} GiB: {memory('RssAnon'):.2f} anonymous, {memory('RssFile'):.2f} of files")


def run(model: CohereForCausalLM, options: argparse.Namespace) -> None:
    ids = torch.randint(8, 255000, (1, options.prompt))
    more: dict[str, Any] = {}
    if options.kv_cache != "dynamic":
        nbits = 8 if options.kv_cache == "int8" else 4
        more = {"cache_implementation": "quantized", "cache_config": {"nbits": nbits}}
    begin = time.perf_counter()
    marks = []
    for _ in model.generate_steps(ids, max_new_tokens=options.tokens + 1, do_sample=False, eos_token_id=None, **more):
        marks.append(time.perf_counter())
        if len(marks) == 1:
            report("prompt read")
    print(f"prefill      {options.prompt / (marks[0] - begin):.2f} tok/s ({options.prompt} tokens)")
    median = statistics.median(after - before for before, after in itertools.pairwise(marks))
    report("end")
    peak, read, limit = memory("VmHWM"), model.get_memory_footprint() / 1e9, read_bandwidth()
    print(f"decode       {1 / median:.3f} tok/s, {read:.1f} GB a step: {read / median:.1f} GB/s")
    print(f"limit        {limit:.1f} GB/s, reading in PyTorch")
    print(f"peak         {peak:.2f} GiB")
    if peak > options.limit:
        raise SystemExit(f"the peak is over the limit of {options.limit} GiB")


def main() -> None:
    options = arguments()
    config, quantization = configuration(options), QuantizationConfig("int4")
    context = options.prompt + options.tokens + 1
    print(plan_memory(config, context=context, quantization=quantization, kv_cache=options.kv_cache, device="cpu"))
    if options.folder is not None and not (options.folder / "model.safetensors.index.json").is_file():
        begin = time.perf_counter()
        write(options, config, quantization)
        print(f"written in {time.perf_counter() - begin:.0f} s")
    begin = time.perf_counter()
    with torch.no_grad():
        model = load(options, config, quantization)
        print(f"loaded in {time.perf_counter() - begin:.1f} s")
        report("loaded")
        run(model, options)


if __name__ == "__main__":
    main()
