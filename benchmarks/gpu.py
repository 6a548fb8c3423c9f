"""Decode and prefill on a GPU beside what the GPU can do and beside transformers, in one run of less than 9 minutes.

    python benchmarks/gpu.py [--layers N] [--prompt 8192] [--tokens 32] [--no-peer] [--dry-run]

The model has the shape of c4ai-command-r-v01 (hidden 8192, 64 heads, 22528 in the feed-forward block, 256000 words, 40
layers: 35 billion weights, 65 GiB in bfloat16) with random weights, made on the GPU. Where memory is short, layers are
left out, and figures are of the model that was run: what counts are the ratios, of bytes that a step must read to what
a copy moves in that time, and of arithmetic to a large bfloat16 product. transformers runs the very same tensors.

``--dry-run`` does everything once on a CPU with a tiny model: it shows that this script works, and its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import quarterdeck
from quarterdeck import CohereConfig, CohereForCausalLM, CompileConfig, StaticCache
from quarterdeck.fusion import fuse_model
from quarterdeck.generation.graphs import recordings_of
from quarterdeck.kernels import fp8, int4, int8
from quarterdeck.quantization.surgery import quantize_model

GiB = 2**30
FULL: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "max_position_embeddings": 131072,
    "logit_scale": 0.0625,
}
TINY: dict[str, Any] = FULL | {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
TARGETS = {"decode bf16": 0.90, "decode int4": 0.75, "prefill": 0.65, "transformers": 2.0}
LEFT = 8 * GiB
"""Of the GPU's memory, for the cache, activations and the allocator."""


@dataclass
class Run:
    """What is measured on, and what was found."""

    device: torch.device
    options: argparse.Namespace
    copy: float = 0.0  # bytes per second, read and written
    peak: float = 0.0  # floating-point operations per second
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)

    def add(self, name: str, figure: str, ratio: str, target: str = "") -> None:
        self.lines.append((name, figure, ratio, target))
        print(f"{name:38} {figure:>22} {ratio:>28} {target}", flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Median seconds of one call, after two that are not counted."""
        if self.options.dry_run:
            repeats = 1
        times = []
        for turn in range(repeats + 2):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            if turn > 1:
                times.append(time.perf_counter() - begin)
        return statistics.median(times)

    def kernel_seconds(self, works: list[Callable[[], object]]) -> float:
        """Seconds of one call among many that follow one another, each on memory of its own; without Python between."""
        if self.device.type != "cuda":
            return self.seconds(lambda: [work() for work in works]) / len(works)
        for work in works:
            work()
        self.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for work in works:
                work()
        return self.seconds(graph.replay) / len(works)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Quarterdeck on a GPU beside its limits and transformers.")
    parser.add_argument("--layers", type=int, help="decoder layers; as many of 40 as fit if not given")
    parser.add_argument("--prompt", type=int, default=8192, help="tokens of the prefill")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a decode run")
    parser.add_argument("--context", type=int, default=512, help="tokens before those that are decoded")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, only to see that it works")
    options = parser.parse_args()
    if options.dry_run:
        options.prompt, options.tokens, options.context, options.layers = 64, 4, 16, 2
    return options


def measure_limits(run: Run) -> None:
    count, size = (2**20, 256) if run.options.dry_run else (2 * GiB, 8192)
    source = torch.empty(count, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    run.copy = 2 * count / run.seconds(lambda: target.copy_(source))
    a, b = (torch.randn(size, size, device=run.device, dtype=torch.bfloat16) for _ in range(2))
    run.peak = 2 * size**3 / run.seconds(lambda: a @ b)
    run.add("copy", f"{run.copy / 1e9:.0f} GB/s", "")
    run.add("matrix product, bfloat16", f"{run.peak / 1e12:.1f} TFLOP/s", "")


# -- kernels -------------------------------------------------------------------------------------------


def packed_weights(run: Run, rows: int, columns: int) -> dict[str, tuple[Any, Any, int]]:
    """Name to the product, a weight, and the bytes that reading it takes."""
    weight = torch.randn(rows, columns, device=run.device)
    four, asymmetric = (int4.pack(*int4.quantize(weight, symmetric=flag)) for flag in (True, False))
    eight, float8 = int8.pack(*int8.quantize(weight)), fp8.pack(*fp8.quantize(weight))
    plain = weight.to(torch.bfloat16)
    made = {
        "bf16": (nn.functional.linear, plain),
        "int4": (int4.linear, four),
        "int4 asymmetric": (int4.linear, asymmetric),
        "int8": (int8.linear, eight),
        "fp8": (fp8.linear, float8),
    }
    return {name: (function, packed, nbytes(packed)) for name, (function, packed) in made.items()}


def nbytes(packed: Any) -> int:
    parts = [packed] if isinstance(packed, Tensor) else [part for part in packed if isinstance(part, Tensor)]
    return sum(part.numel() * part.element_size() for part in parts)


def copied(packed: Any) -> Any:
    """The same elsewhere in memory: a weight that is read again and again would stay in the GPU's own cache."""
    if isinstance(packed, Tensor):
        return packed.clone()
    return type(packed)(*(part.clone() if isinstance(part, Tensor) else part for part in packed))


def measure_kernels(run: Run) -> None:
    shapes = [(64, 128)] if run.options.dry_run else [(8192, 8192), (22528, 8192), (1024, 8192)]
    for rows, columns in shapes:
        for name, (function, packed, size) in packed_weights(run, rows, columns).items():
            copies = [copied(packed) for _ in range(2 if run.options.dry_run else max(4, min(32, 2**29 // size)))]
            for batch in (1, 8, 64):
                x = torch.randn(batch, columns, device=run.device, dtype=torch.bfloat16)
                took = run.kernel_seconds([partial(function, x, one) for one in copies])
                title = f"{name} {rows}x{columns}, {batch} rows"
                run.add(title, f"{size / took / 1e9:.0f} GB/s", f"{size / took / run.copy:.0%} of copy")


# -- models --------------------------------------------------------------------------------------------


def fitting_layers(run: Run) -> int:
    """As many layers as fit beside the embedding in bfloat16."""
    if run.options.layers is not None:
        return int(run.options.layers)
    hidden, inner = FULL["hidden_size"], FULL["intermediate_size"]
    layer = 2 * (4 * hidden * hidden + 3 * hidden * inner)
    free = torch.cuda.mem_get_info()[0] - LEFT - 2 * FULL["vocab_size"] * hidden
    # the cache and the states of a prompt
    free -= 16 * run.options.prompt * inner
    per_layer = layer + 2 * 2 * hidden * (run.options.prompt + 512)
    return max(1, min(40, int(free // per_layer)))


def make_model(run: Run, layers: int) -> CohereForCausalLM:
    config = CohereConfig(**(TINY if run.options.dry_run else FULL), num_hidden_layers=layers)
    with torch.device("meta"):
        model = CohereForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=run.device).eval()
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, 0.02)
    for module in model.modules():  # frequencies are no parameters: made anew, with values
        if hasattr(module, "inv_freq"):
            module.inv_freq = type(module)(config).inv_freq.to(run.device)
    return model


def step_bytes(model: nn.Module, positions: float) -> int:
    """Bytes that a step must read: each weight once (the embedding is the head), and the cache."""
    tensors = {kept.data_ptr(): kept for kept in (*model.parameters(), *model.buffers())}
    config = model.config
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2 * positions
    return int(sum(kept.numel() * kept.element_size() for kept in tensors.values()) + cache)


def decode_seconds(run: Run, model: Any, **options: Any) -> float:
    """Seconds of one step: a run of many less a run of one."""
    ids = torch.randint(8, 500, (1, run.options.context), device=run.device)
    shared = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}

    def generate(count: int) -> Callable[[], object]:
        return lambda: model.generate(ids, max_new_tokens=count, **shared, **options)

    # one room for both lengths, so that both use one recording or program
    long, short = run.seconds(generate(run.options.tokens + 2), 3), run.seconds(generate(2), 3)
    return max(long - short, 1e-9) / run.options.tokens


def measure_decode(run: Run, name: str, model: CohereForCausalLM, target: float | None) -> float:
    graphs = {"cache_implementation": "static", "compile_config": CompileConfig(backend="cuda_graph")}
    took = decode_seconds(run, model, **({} if run.options.dry_run else graphs))
    recordings_of(model).clear()
    size = step_bytes(model, run.options.context + run.options.tokens / 2)
    wanted = "" if target is None else f"target {target:.0%}"
    run.add(f"decode {name}", f"{1 / took:.1f} tok/s", f"{size / took / run.copy:.0%} of copy", wanted)
    return took


def measure_prefill(run: Run, name: str, model: Any) -> float:
    ids = torch.randint(8, 500, (1, run.options.prompt), device=run.device)
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layer = config.hidden_size * (4 * width * (heads + groups) + 6 * config.intermediate_size)
    attention = 2 * run.options.prompt * heads * width  # half of all pairs, scores and values
    work = run.options.prompt * config.num_hidden_layers * (layer + attention)

    @torch.inference_mode()
    def forward() -> object:
        return model(ids, logits_to_keep=1, use_cache=False)

    took = run.seconds(forward, 3)
    run.add(
        f"prefill {run.options.prompt}, {name}",
        f"{run.options.prompt / took:.0f} tok/s",
        f"{work / took / run.peak:.0%} of product",
        f"target {TARGETS['prefill']:.0%}" if name == "bf16" else "",
    )
    return took


def peer_of(run: Run, model: CohereForCausalLM) -> Any:
    """transformers' model over the same tensors."""
    import transformers

    transformers.logging.set_verbosity_error()
    values = TINY if run.options.dry_run else FULL
    config = transformers.CohereConfig(**values, num_hidden_layers=model.config.num_hidden_layers)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        peer = transformers.CohereForCausalLM(config)
    peer.load_state_dict(model.state_dict(), strict=True, assign=True)
    peer.tie_weights()
    peer.model.rotary_emb = type(peer.model.rotary_emb)(config).to(run.device)
    return peer.eval()


def measure_peer(run: Run, peer: Any, decode: float, prefill: float) -> None:
    target = f"target {TARGETS['transformers']:.0f}x"
    took = decode_seconds(run, peer)
    run.add("decode bf16, transformers", f"{1 / took:.1f} tok/s", f"we are {took / decode:.2f}x as fast", target)
    took = measure_prefill(run, "transformers", peer)
    run.add("prefill against transformers", "", f"we are {took / prefill:.2f}x as fast", target)


def measure_models(run: Run) -> None:
    model = make_model(run, fitting_layers(run))
    count = sum(parameter.numel() for parameter in model.parameters())
    run.add(f"model of {model.config.num_hidden_layers} layers", f"{count / 1e9:.1f} billion weights", "")
    peer = None if run.options.no_peer else peer_of(run, model)
    fuse_model(model)
    check_steps(run, model)
    decode, prefill = measure_decode(run, "bf16", model, TARGETS["decode bf16"]), measure_prefill(run, "bf16", model)
    if peer is not None:
        measure_peer(run, peer, decode, prefill)
    del peer
    layers = model.config.num_hidden_layers
    for form in ("int8", "int4"):
        if form == "int4":
            del model
            collect(run)
            model = fuse_model(make_model(run, layers))
        quantize_model(model, form)
        collect(run)
        took = measure_decode(run, form, model, TARGETS["decode int4"] if form == "int4" else None)
        run.add(f"decode {form} against bf16", "", f"{decode / took:.2f}x as fast")
        measure_prefill(run, form, model)


@torch.inference_mode()
def check_steps(run: Run, model: CohereForCausalLM) -> None:
    """A step over the cache gives what reading the text at once gives, but for rounding: nobody times nonsense."""
    ids = torch.randint(8, 500, (1, 40), device=run.device)
    whole, cache = model(ids, use_cache=False).logits[:, -1], StaticCache(model.config, 64)
    model(ids[:, :-1], past_key_values=cache)
    step = model(ids[:, -1:], past_key_values=cache).logits[:, -1]
    error = float((whole - step).float().abs().max() / whole.float().abs().max())
    run.add("a step differs from reading at once by", f"{error:.1e}", "of the largest logit", "at most 5e-02")
    if not error <= 5e-2:
        raise SystemExit("steps are wrong: there is nothing to measure")


def collect(run: Run) -> None:
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    options = arguments()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --dry-run shows that the script works")
    begin = time.perf_counter()
    torch.manual_seed(0)
    device = torch.device("cpu" if options.dry_run else "cuda")
    name = "dry run, figures mean nothing" if options.dry_run else torch.cuda.get_device_name()
    print(f"{name}; quarterdeck {quarterdeck.__version__}, torch {torch.__version__}")
    run = Run(device, options)
    measure_limits(run)
    measure_kernels(run)
    collect(run)
    measure_models(run)
    if device.type == "cuda":
        run.add("peak memory", f"{torch.cuda.max_memory_allocated() / GiB:.1f} GiB", "")
    run.add("this took", f"{time.perf_counter() - begin:.0f} s", "")


if __name__ == "__main__":
    main()
